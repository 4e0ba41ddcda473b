# SPDX-License-Identifier: Apache-2.0
"""The same prompt computed in ways that should not matter: again, beside others, in chunks, padded, in other cache blocks."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.accuracy.results import SweepResult
from ascend_dsv4.engine.engine import Engine
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.errors import RequestError
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.runner.batch import PlacedRows
from ascend_dsv4.runner.runner import ModelRunner

_PROMPT_ONLY = SamplingParams(max_tokens=0)
_STRANGER = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
_STRANGER_TOKENS = (1, 3, 40, 16, 5, 33, 7)
"""Lengths of the prompts beside the one that is compared."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to compute a prompt."""

    label: str
    chunk_size: int | None = None
    bucket: int = 1
    strangers: int = 0
    block_seed: int | None = None
    """Blocks are handed out in a random order of this seed; None for the order they lie in."""


SWEEPS: Mapping[str, tuple[Way, ...]] = {
    "repeats": (Way("1st"), Way("2nd"), Way("3rd")),
    "batch size": tuple(Way(str(count + 1), strangers=count) for count in (0, 1, 3, 7)),
    "chunk size": (Way("whole"), *(Way(str(size), chunk_size=size) for size in (128, 64, 17, 5, 1))),
    "padding": tuple(Way(f"to {bucket}", bucket=bucket) for bucket in (1, 7, 64, 96)),
    "block order": (Way("in order"), Way("shuffled", block_seed=0), Way("shuffled again", block_seed=1)),
}
"""What can be swept, each with its ways; the first is what the others are held against."""


def run_sweeps(
    runner: ModelRunner,
    prompt: Sequence[int],
    names: Sequence[str] = tuple(SWEEPS),
    *,
    images: tuple[PlacedRows, ...] = (),
    promised: bool,
) -> list[SweepResult]:
    """How many different logits a prompt has in each sweep, bit for bit.

    promised   whether the implementation promises a single output; if so, two are a failure

    Raises RequestError for an unknown sweep, a prompt that does not fit, or one that leaves a sweep a single way.
    """
    if unknown := [name for name in names if name not in SWEEPS]:
        raise RequestError(
            f"sweeps: got {unknown[0]!r}, expected some of {', '.join(SWEEPS)}, because there are no others. Correct the name."
        )
    return [_sweep(runner, prompt, images, name, promised) for name in names]


def _sweep(
    runner: ModelRunner, prompt: Sequence[int], images: tuple[PlacedRows, ...], name: str, promised: bool
) -> SweepResult:
    # A way that the options leave no room for would repeat another one.
    ways = [way for way in SWEEPS[name] if way.strangers < runner.engine.max_num_seqs and (way.chunk_size or 0) < len(prompt)]
    # Single tokens are as many steps as tokens, so they stand in only where nothing else does.
    ways = [way for way in ways if way.chunk_size != 1 or len(ways) == 2]
    if len(ways) < 2:
        raise RequestError(
            f"sweep {name!r}: a prompt of {len(prompt)} tokens with max_num_seqs={runner.engine.max_num_seqs} leaves one way "
            "to compute it, expected at least two, because one alone always agrees with itself. Use a longer prompt, or raise "
            "max_num_seqs."
        )
    first, digests, largest = None, set(), 0.0
    for way in ways:
        logits = compute(runner, prompt, images, way)
        digests.add(hashlib.sha256(logits.tobytes()).digest())
        first = logits if first is None else first
        with np.errstate(invalid="ignore"):
            largest = float(np.maximum(largest, np.abs(logits.astype(np.float64) - first).max()))
    return SweepResult(name, tuple(way.label for way in ways), len(digests), largest, promised)


def compute(runner: ModelRunner, prompt: Sequence[int], images: tuple[PlacedRows, ...], way: Way) -> NDArray[np.float32]:
    """Logits of every token of a prompt, float32 [num_tokens, vocab_size]."""
    twin = copy.copy(runner)
    twin.engine = runner.engine.replace(batch_bucket=way.bucket)
    engine = Engine(twin.config, twin.engine, twin)
    if way.block_seed is not None:
        shuffle_blocks(engine.manager, way.block_seed)
    others = list(_strangers(runner, way.strangers))
    for ids in others[::2]:
        engine.submit(ids, _STRANGER)
    request = engine.submit(prompt, _PROMPT_ONLY, keep_logits=True, chunk_size=way.chunk_size, images=images)
    for ids in others[1::2]:
        engine.submit(ids, _STRANGER)
    while not request.is_finished:
        engine.step()
    return np.concatenate(request.logits)


def shuffle_blocks(manager: CacheManager, seed: int) -> None:
    """Hand out the free blocks of every group in a random order from now on."""
    rng = np.random.default_rng(seed)
    for pool in manager.pools.values():
        pool.free(rng.permutation(pool.allocate(pool.num_free)).tolist())


def _strangers(runner: ModelRunner, count: int) -> Iterator[list[int]]:
    """Random prompts without image tokens, none longer than the model takes."""
    rng, config = np.random.default_rng(count), runner.config
    for size in _STRANGER_TOKENS[:count]:
        ids = rng.integers(0, config.vocab_size, min(size, runner.plan.max_model_len - _STRANGER.max_tokens)).tolist()
        yield [token for token in ids if token != config.image_token_id] or [0]
