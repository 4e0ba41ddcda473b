# SPDX-License-Identifier: Apache-2.0
"""How far a bfloat16 model may be from float32: at most BAR_FACTOR times what another implementation shows.

`bf16_bar.json` holds what was measured once by tools/measure_bf16_bar.py: for each model the mean of KL(float32 ‖ bfloat16)
over all positions of its prompts. A rounding that flips a choice of experts or entries makes single positions jump by orders
of magnitude, so neither maxima nor short prompts say anything, and a verdict takes MIN_POSITIONS.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.accuracy.results import BarResult
from ascend_dsv4.runner.runner import ModelRunner

BAR_FACTOR = 1.2
MIN_POSITIONS = 1000
"""Fewer positions give figures without a verdict."""
FINGERPRINT_ROWS = 64
"""Rows of the embedding that tell one model from another."""


@dataclass(frozen=True, slots=True)
class BarPrompt:
    """A prompt, and what the other implementation showed on it."""

    name: str
    sha256: str
    token_ids: tuple[int, ...]
    kl_mean: float


@dataclass(frozen=True, slots=True)
class BarModel:
    """What was measured on one model."""

    name: str
    baseline: str
    """Which implementation was measured, and how."""
    fingerprint: str
    prompts: tuple[BarPrompt, ...]


@cache
def bar_models() -> tuple[BarModel, ...]:
    """All models that were measured."""
    text = files("ascend_dsv4.accuracy").joinpath("bf16_bar.json").read_text(encoding="utf-8")
    return tuple(
        BarModel(
            model["name"], model["baseline"], model["fingerprint"],
            tuple(BarPrompt(p["name"], p["sha256"], tuple(p["token_ids"]), p["kl_mean"]) for p in model["prompts"]),
        )
        for model in json.loads(text)["models"]
    )  # fmt: skip


def fingerprint(embedding: NDArray[Any]) -> str:
    """Of a model, by the first rows of its embedding as real numbers, whatever they are stored as."""
    return hashlib.sha256(np.ascontiguousarray(embedding[:FINGERPRINT_ROWS], np.float32).tobytes()).hexdigest()


def runner_fingerprint(runner: ModelRunner) -> str:
    """Of the model that a runner holds."""
    return fingerprint(runner.backend.to_host(runner.weights.embed[:FINGERPRINT_ROWS]))


def prompt_hash(token_ids: Sequence[int]) -> str:
    """Of a prompt: SHA-256 of its ids as little-endian int32."""
    return hashlib.sha256(np.asarray(token_ids, "<i4").tobytes()).hexdigest()


def find_bar(model_fingerprint: str) -> BarModel | None:
    """What was measured on a model; None if nothing was."""
    return next((model for model in bar_models() if model.fingerprint == model_fingerprint), None)


def bf16_bar(model_fingerprint: str, divergences: Mapping[str, NDArray[np.float64]]) -> BarResult | None:
    """Hold a bfloat16 candidate against the bar.

    divergences   KL(float32 ‖ candidate) of every position, in nats, by `prompt_hash`; prompts that were not measured are
                  left out
    Returns None if the model, or none of the prompts, was measured.
    """
    model = find_bar(model_fingerprint)
    shared = [] if model is None else [prompt for prompt in model.prompts if prompt.sha256 in divergences]
    if model is None or not shared:
        return None
    count = sum(len(prompt.token_ids) for prompt in shared)
    baseline = sum(prompt.kl_mean * len(prompt.token_ids) for prompt in shared) / count
    mine = float(np.concatenate([divergences[prompt.sha256] for prompt in shared]).mean())
    enough = count >= MIN_POSITIONS
    return BarResult(
        name=model.name,
        baseline=model.baseline,
        num_prompts=len(shared),
        num_positions=count,
        kl_baseline=baseline,
        kl=mine,
        limit=BAR_FACTOR * baseline,
        # Written so that NaN fails.
        status="noted" if not enough else "pass" if mine <= BAR_FACTOR * baseline else "fail",
        reason="" if enough else f"{count} positions, of which {MIN_POSITIONS} are needed for a verdict",
    )
