# SPDX-License-Identifier: Apache-2.0
"""The measured bar, that this project's bfloat16 is below it, and when it gives no verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ascend_dsv4 import LLM
from ascend_dsv4.accuracy.bf16_bar import BAR_FACTOR, MIN_POSITIONS, bar_models, bf16_bar, prompt_hash, runner_fingerprint
from ascend_dsv4.accuracy.end_metrics import kl_divergence
from ascend_dsv4.accuracy.model_comparison import WalkOptions, bar_prompts, compare_model


def open_pair(folder: Path) -> tuple[LLM, LLM]:
    options = {"ops": "reference", "cache_rounding": "off", "max_model_len": 704, "max_num_seqs": 1, "progress": False}
    return (LLM(folder, weights="fp32", **options),
            LLM(folder, dtype="bfloat16", weights="bf16", kv_cache="bf16", **options))  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture(scope="module")
def pair(golden_v4: Path) -> tuple[LLM, LLM]:
    return open_pair(golden_v4 / "fp8_fp4")


def test_what_was_measured() -> None:
    assert [model.name for model in bar_models()] == ["v4", "v32", "v41"]
    for model in bar_models():
        assert sum(len(prompt.token_ids) for prompt in model.prompts) > 4 * MIN_POSITIONS
        assert all(prompt_hash(prompt.token_ids) == prompt.sha256 for prompt in model.prompts)
        assert all(0 < prompt.kl_mean < 1 for prompt in model.prompts)
        assert model.baseline.startswith("stand-in" if model.name == "v41" else "transformers 5")


def test_prompts_are_those_of_the_goldens(golden_v4: Path, pair: tuple[LLM, LLM]) -> None:
    golden = load_file(golden_v4 / "logits.safetensors")
    prompts = {prompt.name: list(prompt.token_ids) for prompt in bar_prompts(pair[0].runner)}
    for name in ("len5", "len130", "len700"):
        assert prompts[name] == golden[f"{name}.input_ids"].tolist()


def test_a_model_is_known_whatever_it_is_held_in(golden_v4: Path, pair: tuple[LLM, LLM]) -> None:
    assert runner_fingerprint(pair[0].runner) == runner_fingerprint(pair[1].runner) == bar_models()[0].fingerprint
    assert bf16_bar("another model", {}) is None
    assert bf16_bar(bar_models()[0].fingerprint, {"another prompt": np.zeros(3)}) is None


def test_this_projects_bfloat16_is_below_the_bar(pair: tuple[LLM, LLM]) -> None:
    reference, candidate = pair
    divergences = {}
    for prompt in bar_prompts(reference.runner):
        if prompt.name in ("len300", "len700"):
            ids = prompt.token_ids
            divergences[prompt_hash(ids)] = kl_divergence(reference.logits(ids), candidate.logits(ids))
    bar = bf16_bar(runner_fingerprint(reference.runner), divergences)
    assert bar is not None and bar.status == "pass"
    assert (bar.num_prompts, bar.num_positions) == (2, 1000)
    assert bar.limit == BAR_FACTOR * bar.kl_baseline
    assert 0.4 * bar.kl_baseline < bar.kl < bar.kl_baseline  # below transformers itself, and not by not rounding at all
    worse = {key: 2 * divergence for key, divergence in divergences.items()}
    assert bf16_bar(bar_models()[0].fingerprint, worse).status == "fail"  # type: ignore[union-attr]
    nothing = {key: np.full_like(divergence, np.nan) for key, divergence in divergences.items()}
    assert bf16_bar(bar_models()[0].fingerprint, nothing).status == "fail"  # type: ignore[union-attr]


def test_few_positions_are_no_verdict(golden_v4: Path, pair: tuple[LLM, LLM]) -> None:
    (short,) = (prompt for prompt in bar_prompts(pair[0].runner) if prompt.name == "len33")
    options = {"walk": WalkOptions(prompts=()), "greedy_tokens": 1}
    (bar,) = compare_model(pair[0].runner, pair[1].runner, [short], **options).bars  # type: ignore[arg-type]
    assert (bar.status, bar.num_positions) == ("noted", 33)
    assert bar.kl == pytest.approx(compare_model(pair[0].runner, pair[1].runner, [short], **options).ends[0].kl_mean)  # type: ignore[arg-type]
    assert compare_model(pair[1].runner, pair[0].runner, [short], **options).bars == ()  # type: ignore[arg-type]
