# SPDX-License-Identifier: Apache-2.0
"""The draft layer of V3.2, of which no golden exists: against its formula in float64, and what every drafter must hold to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.engine.engine import Engine
from ascend_dsv4.kv_cache.accounting import account
from tests.engine.harness import check_empty
from tests.spec_decode.test_drafters import Recorder

FEW = dict.fromkeys((17, 300), 60.0)
GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, logit_bias=FEW, logprobs=1)
DRAWN = SamplingParams(max_tokens=20, seed=3, top_p=0.9, ignore_eos=True, logit_bias=FEW, frequency_penalty=0.3)
PLAIN = SamplingParams(max_tokens=9, temperature=0, ignore_eos=True)


def make(golden_v32: Path, **options: Any) -> LLM:
    return LLM(golden_v32 / "fp8", weights="fp32", ops="reference", progress=False, **options)


@pytest.fixture(scope="module")
def drafting(golden_v32: Path) -> LLM:
    return make(golden_v32, speculative="mtp", num_speculative_tokens=3)


class Formula:
    """One layer in plain float64: heads with keys and values of their own, one position after the other."""

    def __init__(self, folder: Path, config: Any) -> None:
        self.c = config
        with safe_open(folder / "model.safetensors", "pt") as file:
            self.tensors = {name: file.get_tensor(name).to(torch.float64).numpy() for name in file.keys()}  # noqa: SIM118
        dim = config.qk_rope_head_dim
        freq = 10000.0 ** (-np.arange(0, dim, 2) / dim)
        low, high = (dim * np.log(256 / (turns * 2 * np.pi)) / (2 * np.log(10000)) for turns in (32, 1))
        ramp = np.clip((np.arange(dim // 2) - max(np.floor(low), 0)) / (np.ceil(high) - max(np.floor(low), 0)), 0, 1)
        self.freq = freq * (1 - ramp) + freq / 4 * ramp
        self.scale = (config.qk_nope_head_dim + dim) ** -0.5 * (0.1 * np.log(4) + 1) ** 2

    def w(self, name: str) -> np.ndarray:
        return self.tensors[f"model.layers.4.{name}.weight"]

    def rms(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * self.w(name)

    def turn(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs [num_tokens, ..., dim / 2] turned by their positions."""
        angle = np.arange(len(first))[:, None] * self.freq
        cos, sin = (f(angle).reshape(len(first), *[1] * (first.ndim - 2), -1) for f in (np.cos, np.sin))
        return first * cos - second * sin, first * sin + second * cos

    def adjacent(self, x: np.ndarray) -> np.ndarray:
        return np.stack(self.turn(x[..., ::2], x[..., 1::2]), -1).reshape(x.shape)

    def halves(self, x: np.ndarray) -> np.ndarray:
        """The first channels, by halves."""
        half = self.c.qk_rope_head_dim // 2
        return np.concatenate([*self.turn(x[..., :half], x[..., half : 2 * half]), x[..., 2 * half :]], -1)

    def chosen(self, x: np.ndarray, latent: np.ndarray) -> np.ndarray:
        """Which tokens each token attends to, bool [num_tokens, num_tokens]."""
        c, length = self.c, len(x)
        q = self.halves((latent @ self.w("self_attn.indexer.wq_b").T).reshape(length, c.index_n_heads, c.index_head_dim))
        k = x @ self.w("self_attn.indexer.wk").T
        k = (k - k.mean(-1, keepdims=True)) / np.sqrt(k.var(-1, keepdims=True) + 1e-6)
        k = self.halves(k * self.w("self_attn.indexer.k_norm") + self.tensors["model.layers.4.self_attn.indexer.k_norm.bias"])
        heads = x @ self.w("self_attn.indexer.weights_proj").T
        scores = np.einsum("th,ths->ts", heads, np.maximum(np.einsum("thd,sd->ths", q, k), 0))
        scores[np.triu_indices(length, 1)] = -np.inf
        mask = np.zeros((length, length), bool)
        for t, row in enumerate(scores):
            mask[t, np.argsort(-row)[: min(c.index_topk, t + 1)]] = True
        return mask

    def attention(self, x: np.ndarray) -> np.ndarray:
        c, length = self.c, len(x)
        nope, rank, heads = c.qk_nope_head_dim, c.mla.kv_lora_rank, c.num_attention_heads
        latent = self.rms(x @ self.w("self_attn.q_a_proj").T, "self_attn.q_a_layernorm")
        q = (latent @ self.w("self_attn.q_b_proj").T).reshape(length, heads, -1)
        joint = x @ self.w("self_attn.kv_a_proj_with_mqa").T
        kv = self.rms(joint[:, :rank], "self_attn.kv_a_layernorm") @ self.w("self_attn.kv_b_proj").T
        kv = kv.reshape(length, heads, nope + c.mla.v_head_dim)
        scores = np.einsum("thd,shd->hts", q[..., :nope], kv[..., :nope])
        scores += np.einsum("thd,sd->hts", self.adjacent(q[..., nope:]), self.adjacent(joint[:, rank:]))
        scores = np.where(self.chosen(x, latent), scores * self.scale, -np.inf)
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        o = np.einsum("hts,shd->thd", probs / probs.sum(-1, keepdims=True), kv[..., nope:])
        return o.reshape(length, -1) @ self.w("self_attn.o_proj").T

    def mlp(self, x: np.ndarray, name: str) -> np.ndarray:
        gate = x @ self.w(f"{name}.gate_proj").T
        return (gate / (1 + np.exp(-gate)) * (x @ self.w(f"{name}.up_proj").T)) @ self.w(f"{name}.down_proj").T

    def experts(self, x: np.ndarray) -> np.ndarray:
        c = self.c
        chance = 1 / (1 + np.exp(-x @ self.w("mlp.gate").T))
        biased = chance + self.tensors["model.layers.4.mlp.gate.e_score_correction_bias"]
        y = self.mlp(x, "mlp.shared_experts")
        size = c.n_routed_experts // c.n_group
        for t in range(len(x)):
            groups = np.sort(biased[t].reshape(c.n_group, size))[:, -2:].sum(-1)
            open_to = np.repeat(np.isin(np.arange(c.n_group), np.argsort(-groups)[: c.topk_group]), size)
            ids = np.argsort(-np.where(open_to, biased[t], -np.inf))[: c.num_experts_per_tok]
            for expert in ids:
                y[t] += 2.5 * chance[t, expert] / chance[t, ids].sum() * self.mlp(x[t], f"mlp.experts.{expert}")
        return y

    def logits(self, hidden: np.ndarray, followers: list[int]) -> np.ndarray:
        token = self.rms(self.tensors["model.embed_tokens.weight"][followers], "enorm")
        x = np.concatenate([token, self.rms(hidden, "hnorm")], -1) @ self.w("eh_proj").T
        x = x + self.attention(self.rms(x, "input_layernorm"))
        x = x + self.experts(self.rms(x, "post_attention_layernorm"))
        return self.rms(x, "shared_head.norm") @ self.tensors["lm_head.weight"].T


def test_formula(full_golden_v32: Path) -> None:
    """From the released model's own states behind its last norm."""
    with safe_open(full_golden_v32 / "hidden_len130.safetensors", "np") as file:
        ids, hidden = file.get_tensor("input_ids").tolist(), file.get_tensor("final_norm.out").astype(np.float64)
    llm = make(full_golden_v32, cache_rounding="off")
    drafts, logits, confidences = llm.draft(ids, "mtp")
    expected = Formula(full_golden_v32 / "bf16", llm.config).logits(hidden[:-1], ids[1:])
    assert np.abs(logits - expected).max() < 1e-4
    assert expected.std() > 0.5
    assert drafts.tolist() == expected.argmax(-1).tolist() and confidences is None


def test_chunks(golden_v32: Path) -> None:
    ids = np.random.default_rng(4).integers(2, 512, 70).tolist()
    _, whole, _ = make(golden_v32).draft(ids, "mtp")
    _, chunks, _ = make(golden_v32, max_num_batched_tokens=7, batch_bucket=4).draft(ids, "mtp")
    assert np.array_equal(whole, chunks)


def test_outputs_are_those_without_drafts(golden_v32: Path, drafting: LLM) -> None:
    rng = np.random.default_rng(2)
    prompts = [rng.integers(2, 512, length).tolist() for length in (30, 119, 9)]
    each = [GREEDY, DRAWN, PLAIN]
    assert drafting.generate(prompts, each) == make(golden_v32).generate(prompts, each)
    stats = drafting.engine.stats
    assert 5 < stats.num_accepted_tokens < stats.num_draft_tokens
    check_empty(drafting.engine)


def test_drafts_are_those_of_the_layer_alone(drafting: LLM) -> None:
    """After accepted and rejected drafts the first draft is that of the layer run over the whole text."""
    drafter = Recorder(drafting)
    options = drafting.engine_config.replace(max_num_batched_tokens=16)
    engine = Engine(drafting.config, options, drafting.runner, drafter=drafter)
    rng = np.random.default_rng(7)
    for length in (30, 9):
        engine.submit(rng.integers(2, 512, length).tolist(), replace(GREEDY, logprobs=None))
    while engine.has_work:
        engine.step()
    assert 0 < engine.stats.num_accepted_tokens < engine.stats.num_draft_tokens
    for text in [*drafter.seen][::3]:
        assert np.array_equal(drafter.logits[text], drafting.draft(text, "mtp")[1][-1])


def test_preemption(golden_v32: Path) -> None:
    rng = np.random.default_rng(1)
    prompts = [rng.integers(2, 512, length).tolist() for length in (113, 120)]
    llm = make(golden_v32, speculative="mtp", max_num_seqs=2, max_model_len=256, max_total_tokens=256)
    outputs = llm.generate(prompts, [GREEDY, DRAWN])
    assert llm.engine.stats.num_preemptions > 0
    assert outputs == make(golden_v32).generate(prompts, [GREEDY, DRAWN])


def test_caches_are_counted(drafting: LLM) -> None:
    """A latent row of 128 + 32 numbers and an index key of 128 per token."""
    counted = account(drafting.config, drafting.engine_config).draft
    assert counted is not None
    assert (counted.layers, counted.row_bytes) == (1, (160 + 128) * 4)
    plan = drafting.runner.plan
    assert drafting._stages.num_bytes(drafting.runner.weights, plan.num_blocks)[1] == counted.allocated_bytes
    assert counted.allocated_bytes == plan.num_blocks["cmp1"] * 128 * (160 + 128) * 4
