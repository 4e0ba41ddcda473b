# SPDX-License-Identifier: Apache-2.0
"""The same prompt gives bit-identical logits and tokens however it is scheduled, in every family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ascend_dsv4 import LLM, SamplingParams

GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
DRAWN = SamplingParams(max_tokens=6, temperature=1.0, top_p=0.9, seed=7, ignore_eos=True)


@dataclass(frozen=True)
class Case:
    """A model, how it stores keys, and a prompt that is long enough for it."""

    family: str
    variant: str
    rounding: str
    prompt_tokens: int


CASES = [
    # Past two HCA blocks and a few CSA windows.
    *(Case("v4", "fp8_fp4", rounding, 262) for rounding in ("off", "released")),
    # Past the window, many pairs, and four times the entries that the candidate blocks hold.
    *(Case("v41", "fp8_fp4", rounding, 140) for rounding in ("off", "released")),
    # Past index_topk. V3.2 stores its rows as they are computed: there is nothing to round.
    Case("v32", "fp8", "off", 140),
]


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


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, id=f"{case.family}-{case.rounding}", marks=pytest.mark.goldens(f"golden_{case.family}"))
        for case in CASES
    ],
)
def setting(request: pytest.FixtureRequest) -> Setting:
    case: Case = request.param
    goldens: Path = request.getfixturevalue(f"golden_{case.family}")
    folder = goldens / case.variant
    prompt = load_file(goldens / "logits.safetensors")["len300.input_ids"][: case.prompt_tokens].tolist()
    llm = make(folder, case.rounding)
    tokens = [llm.generate(prompt, params)[0].token_ids for params in (GREEDY, DRAWN)]
    return Setting(folder, case.rounding, prompt, llm, llm.logits(prompt), tokens)


def strangers(count: int) -> list[list[int]]:
    """Prompts of awkward lengths."""
    return [np.random.randint(2, 500, size).tolist() for size in (1, 3, 127, 128, 129, 40, 16)[:count]]


@pytest.mark.parametrize("chunk_size", [2, 3, 4, 5, 7, 8, 9, 127, 128, 129])
def test_chunks(setting: Setting, chunk_size: int) -> None:
    assert np.array_equal(setting.llm.logits(setting.prompt, chunk_size=chunk_size), setting.logits)


@pytest.mark.parametrize("chunk_size", [5, 128])
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


def test_preempted(setting: Setting) -> None:
    """The caches hold both prompts but not what they grow to: the younger one is dropped and processed again."""
    llm = make(setting.folder, setting.rounding, max_num_seqs=2, max_model_len=256, max_total_tokens=256)
    prompt = setting.prompt[:124]
    older = llm.engine.submit(strangers(5)[-1][:124], replace(GREEDY, max_tokens=12))
    younger = llm.engine.submit(prompt, replace(DRAWN, max_tokens=12), keep_logits=True)
    while not (older.is_finished and younger.is_finished):
        llm.engine.step()
    assert llm.engine.stats.num_preemptions > 0
    assert np.array_equal(np.concatenate(younger.logits)[:124], setting.logits[:124])
    assert younger.output_ids == setting.llm.generate(prompt, replace(DRAWN, max_tokens=12))[0].token_ids
