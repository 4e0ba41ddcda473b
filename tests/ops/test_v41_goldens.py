# SPDX-License-Identifier: Apache-2.0
"""The operators of V4.1 one by one on tensors that its released code computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ascend_dsv4.ops.registry import bind

OPS = bind("reference")


class Goldens:
    """What was recorded of one prompt of 300 tokens, the weights and the configuration."""

    def __init__(self, folder: Path) -> None:
        self.hidden = load_file(folder / "hidden_len300.safetensors")
        self.modules = load_file(folder / "modules_len300.safetensors")
        self.weights = load_file(folder / "bf16" / "model.safetensors")
        self.config: dict[str, Any] = json.loads((folder / "bf16" / "config.json").read_text(encoding="utf-8"))["text_config"]
        self.recorded = self.hidden["positions"].long()
        """Positions of the rows of most tensors; some have all of them."""


@pytest.fixture(scope="module")
def golden(full_golden_v41: Path) -> Goldens:
    return Goldens(full_golden_v41)


@pytest.mark.parametrize("layer", [3, 6])
def test_delayed_hyper_connections(golden: Goldens, layer: int) -> None:
    """From the streams after the layer before and the weights it handed on, to the input of attention."""
    config, before, name = golden.config, f"layer{layer - 1}", f"layers.{layer}"
    streams, mix = golden.hidden[f"{before}.out_streams"], golden.hidden[f"{before}.out_pre_mix"]
    site = [golden.weights[f"{name}.hc_attn_{part}"] for part in ("fn", "base", "scale")]
    eps = config["rms_norm_eps"]
    x, post, comb, pre = OPS.hc_pre(
        streams, *site, mix, sinkhorn_iters=config["hc_sinkhorn_iters"], hc_eps=config["hc_eps"], norm_eps=eps
    )
    for part, found in (("pre", pre), ("post", post), ("comb", comb)):
        torch.testing.assert_close(found, golden.modules[f"layer{layer}.attn_hc_{part}"], rtol=0, atol=1e-5)
    for collapsed in (x, OPS.hc_collapse(streams, mix)):
        normed = OPS.rms_norm(collapsed, golden.weights[f"{name}.attn_norm.weight"].float(), eps=eps)
        torch.testing.assert_close(normed, golden.hidden[f"layer{layer}.attn_in"], rtol=0, atol=1e-5)


def test_collapse_before_the_head(golden: Goldens) -> None:
    last = f"layer{golden.config['num_hidden_layers'] - 1}"
    x = OPS.hc_collapse(golden.hidden[f"{last}.out_streams"], golden.hidden[f"{last}.out_pre_mix"])
    normed = OPS.rms_norm(x, golden.weights["norm.weight"].float(), eps=golden.config["rms_norm_eps"])
    torch.testing.assert_close(normed, golden.hidden["final_norm.out"], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("layer", "ratio"), [(2, 2), (4, 1)])
def test_compressor(golden: Goldens, layer: int, ratio: int) -> None:
    """In chunks of 7 tokens; without a gate at ratio 1, where every token is a group."""
    x, name = golden.hidden[f"layer{layer}.attn_in_all"], f"layers.{layer}.attn.compressor"
    kv = x @ golden.weights[f"{name}.wkv.weight"].float().T
    gate = x @ golden.weights[f"{name}.wgate.weight"].float().T if ratio > 1 else torch.zeros_like(kv)
    state, first, parts = torch.full((1, ratio, 2, kv.shape[1]), torch.nan), torch.zeros(1, dtype=torch.int32), []
    for start in range(0, len(x), 7):
        positions = torch.arange(start, min(start + 7, len(x)), dtype=torch.int32)
        rows = slice(start, start + 7)
        step = (kv[rows], gate[rows], positions, torch.zeros_like(positions), torch.tensor([0, len(positions)]).int(), first)
        parts.append(OPS.pool_kv(state, *step, ratio=ratio, entry_dtype="float32")[(positions + 1) % ratio == 0])
        OPS.store_state(state, *step)
    latent = OPS.rms_norm(torch.cat(parts), golden.weights[f"{name}.norm.weight"].float(), eps=golden.config["rms_norm_eps"])
    torch.testing.assert_close(latent, golden.modules[f"layer{layer}.compressor.latent"], rtol=0, atol=1e-5)


def choose(golden: Goldens, layer: int, ratio: int, candidates: Tensor | None, num_candidates: int) -> tuple[Tensor, Tensor]:
    """index_topk on recorded scores: every recorded position is a request whose keys are its scores.

    Two heads with queries and weights 1 and −1 make relu(s) − relu(−s) = s.
    """
    scores = golden.modules[f"layer{layer}.indexer.scores"]
    num = len(scores)
    heads = torch.tensor([1.0, -1.0]).expand(num, 2)
    number = torch.arange(num, dtype=torch.int32)
    chosen: tuple[Tensor, Tensor] = OPS.index_topk(
        heads[..., None].contiguous(), heads.contiguous(), scores.unsqueeze(-1), golden.recorded.int(), number, number[:, None],
        candidates, ratio=ratio, topk=golden.config["index_topk"], rounding="none",
        candidate_block=golden.config["candidate_block_size"], num_candidates=num_candidates,
    )  # fmt: skip
    return chosen


def test_two_level_selection(golden: Goldens) -> None:
    """The choices of three index sources and the blocks that one of them publishes for the last, exactly."""
    config, size = golden.config, golden.config["candidate_block_size"]
    recorded = {layer: golden.modules[f"layer{layer}.indexer.topk"][golden.recorded] for layer in (2, 4, 6)}
    assert torch.equal(choose(golden, 2, 2, None, 0)[0], recorded[2])
    entries, blocks = choose(golden, 4, 1, None, config["candidate_topk_blocks"])
    assert torch.equal(entries, recorded[4])

    allowed = golden.modules["layer4.indexer.candidates"][golden.recorded].numpy()
    for position, row, expected in zip(golden.recorded.tolist(), blocks.tolist(), allowed, strict=True):
        kept = np.flatnonzero(expected[: position + 1])
        assert sorted(set(kept // size)) == [block for block in row if block >= 0]
    assert torch.equal(choose(golden, 6, 1, blocks, 0)[0], recorded[6])
    assert not torch.equal(choose(golden, 6, 1, None, 0)[0], recorded[6])
