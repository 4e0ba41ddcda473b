# SPDX-License-Identifier: Apache-2.0
"""The same prompt gives bit-identical logits and tokens however it is scheduled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ascend_dsv4 import LLM, SamplingParams

PROMPT_TOKENS = 262
"""Past two HCA blocks and a few CSA windows."""
GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
DRAWN = SamplingParams(max_tokens=6, temperature=1.0, top_p=0.9, seed=7, ignore_eos=True)


@dataclass(frozen=True)
class Setting:
    """A model, a prompt, and what it gives when it is prefilled whole."""

    folder: Path
    rounding: str
    prompt: list[int]
    llm: LLM
    logits: np.ndarray
    tokens: list[list[int]]


def make(folder: Path, rounding: str, **options: int) -> LLM:
    return LLM(folder, ops="reference", weights="fp32", cache_rounding=rounding, max_num_batched_tokens=512, progress=False,
               **options)  # fmt: skip


@pytest.fixture(scope="module", params=["off", "released"])
def setting(request: pytest.FixtureRequest, golden_v4: Path) -> Setting:
    folder = golden_v4 / "fp8_fp4"
    prompt = load_file(golden_v4 / "logits.safetensors")["len300.input_ids"][:PROMPT_TOKENS].tolist()
    llm = make(folder, request.param)
    tokens = [llm.generate(prompt, params)[0].token_ids for params in (GREEDY, DRAWN)]
    return Setting(folder, request.param, prompt, llm, llm.logits(prompt), tokens)


def strangers(count: int) -> list[list[int]]:
    """Prompts of awkward lengths."""
    return [np.random.randint(2, 500, size).tolist() for size in (1, 3, 127, 128, 129, 40, 16)[:count]]


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 5, 127, 128, 129])
def test_chunks(setting: Setting, chunk_size: int) -> None:
    assert np.array_equal(setting.llm.logits(setting.prompt, chunk_size=chunk_size), setting.logits)


@pytest.mark.parametrize("chunk_size", [1, 5, 128])
def test_tokens_after_chunks(setting: Setting, chunk_size: int) -> None:
    """Decoding goes on from what chunked prefill left in the caches."""
    requests = [setting.llm.engine.submit(setting.prompt, p, chunk_size=chunk_size) for p in (GREEDY, DRAWN)]
    while setting.llm.engine.has_work:
        setting.llm.engine.step()
    assert [request.output_ids for request in requests] == setting.tokens


def test_token_by_token_from_the_start(setting: Setting) -> None:
    """A sequence grown from its first token has the logits of its prefill."""
    grown = setting.llm.logits([*setting.prompt, *setting.tokens[0][:-1]], chunk_size=1)
    assert np.array_equal(grown[: len(setting.prompt)], setting.logits)
    assert grown[len(setting.prompt) - 1 :].argmax(-1).tolist() == setting.tokens[0]


def test_batched_with_strangers(setting: Setting) -> None:
    """Seven other prompts in the same steps, submitted before and after, change nothing."""
    llm = setting.llm
    others = strangers(7)
    for prompt in others[:3]:
        llm.engine.submit(prompt, DRAWN)
    mine = [llm.engine.submit(setting.prompt, SamplingParams(max_tokens=0), keep_logits=True)]
    mine += [llm.engine.submit(setting.prompt, params) for params in (GREEDY, DRAWN)]
    for prompt in others[3:]:
        llm.engine.submit(prompt, GREEDY)
    while llm.engine.has_work:
        llm.engine.step()
    assert np.array_equal(np.concatenate(mine[0].logits), setting.logits)
    assert [request.output_ids for request in mine[1:]] == setting.tokens


@pytest.mark.parametrize("bucket", [7, 64])
def test_padded(setting: Setting, bucket: int) -> None:
    llm = make(setting.folder, setting.rounding, batch_bucket=bucket)
    assert np.array_equal(llm.logits(setting.prompt, chunk_size=100), setting.logits)
    assert [llm.generate(setting.prompt, params)[0].token_ids for params in (GREEDY, DRAWN)] == setting.tokens


def test_other_block_sizes(setting: Setting) -> None:
    """Where rows lie in memory is nobody's business."""
    llm = make(setting.folder, setting.rounding, block_size=256, window_block_size=16, max_num_seqs=2)
    assert np.array_equal(llm.logits(setting.prompt, chunk_size=37), setting.logits)
