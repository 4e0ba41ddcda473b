# SPDX-License-Identifier: Apache-2.0
"""Sorting instructions of the twin and `cann_kernels/common/sort_pairs.h`, against numpy's stable sort."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from ascend_dsv4.twin.kernel_library import build

OLD = np.float32(-7)
"""What the destination held."""


@pytest.fixture(scope="module")
def library():
    loaded = ctypes.CDLL(str(build([Path(__file__).with_name("sort_conformance.cpp")])))
    loaded.twin_last_error.restype = ctypes.c_char_p
    return loaded


def run(library, name: str, scores: np.ndarray, k: int = 0) -> np.ndarray:
    """2 n floats. Indices are 1000 and up. Raises RuntimeError with the twin's message."""
    scores = np.ascontiguousarray(scores, np.float32)
    indices = 1000 + np.arange(len(scores), dtype=np.uint32)
    out = np.empty(2 * len(scores), np.float32)
    arrays = (ctypes.c_void_p(array.ctypes.data) for array in (scores, indices, out))
    if library.sort_run(name.encode(), *arrays, len(scores), k):
        raise RuntimeError(library.twin_last_error().decode())
    return out


def draw(n: int, kind: str) -> np.ndarray:
    rng = np.random.default_rng(n)
    if kind == "ties":
        return rng.integers(-2, 3, n).astype(np.float32)
    if kind == "infinite":
        return np.where(rng.random(n) < 0.5, -np.inf, rng.standard_normal(n)).astype(np.float32)
    return rng.standard_normal(n).astype(np.float32)


def records(scores: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Scores and, as bits, indices side by side."""
    return np.stack([scores[order], (1000 + order).astype(np.uint32).view(np.float32)], axis=1).ravel()


def descending(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, kind="stable")


@pytest.mark.parametrize("kind", ("normal", "ties", "infinite"))
@pytest.mark.parametrize("runs", (1, 3))
def test_sort32_sorts_each_run_and_keeps_the_order_of_equals(library, runs, kind):
    scores = draw(32 * runs, kind)
    wanted = [records(scores, 32 * run + descending(scores[32 * run :][:32])) for run in range(runs)]
    np.testing.assert_array_equal(run(library, "sort32", scores).view(np.uint32), np.concatenate(wanted).view(np.uint32))


def test_no_repeat_writes_nothing(library):
    np.testing.assert_array_equal(run(library, "sort32_none", draw(32, "normal")), np.full(64, OLD))


@pytest.mark.parametrize("kind", ("normal", "ties"))
@pytest.mark.parametrize(("name", "lists"), (("merge2", 2), ("merge4", 4)))
@pytest.mark.parametrize("length", (0, 1, 4, 32))
def test_merge_prefers_the_earlier_list(library, name, lists, length, kind):
    scores = draw(32 * lists, kind)
    heads = np.concatenate([32 * i + descending(scores[32 * i :][:32])[:length] for i in range(lists)]).astype(int)
    wanted = np.full(64 * lists, OLD)
    wanted[: 2 * len(heads)] = records(scores, heads[descending(scores[heads])])
    np.testing.assert_array_equal(run(library, name, scores, length).view(np.uint32), wanted.view(np.uint32))


def test_suspension_stops_with_the_first_empty_list(library):
    scores = np.concatenate([np.arange(32) + 100, np.arange(32), np.arange(32), np.arange(32) + 200]).astype(np.float32)
    out = run(library, "merge4_suspend", scores, 8)
    np.testing.assert_array_equal(out[0:16:2], 231 - np.arange(8))  # the last list is the highest and ends first
    np.testing.assert_array_equal(out[16:-4], OLD)
    np.testing.assert_array_equal(out[-4:], [0, 0, 0, 8])


def test_extract_splits_records(library):
    scores = draw(64, "ties")
    order = np.concatenate([descending(scores[:32]), 32 + descending(scores[32:])])
    out = run(library, "extract", scores)
    np.testing.assert_array_equal(out[:64], scores[order])
    np.testing.assert_array_equal(out[64:].view(np.uint32), 1000 + order)


@pytest.mark.parametrize("count", (1, 63, 64, 100, 128))
def test_gather_mask_keeps_what_compared_true(library, count):
    scores = draw(128, "ties")
    wanted = scores[:count][scores[:count] > 0]
    out = run(library, "gather_mask", scores, count)
    np.testing.assert_array_equal(out[: len(wanted)], wanted)
    np.testing.assert_array_equal(out[len(wanted) : -1], OLD)
    assert out[-1] == len(wanted)


@pytest.mark.parametrize(
    ("pattern", "lanes"), [(1, (0, 2)), (2, (1, 2)), (3, (0, 4)), (4, (1, 4)), (5, (2, 4)), (6, (3, 4)), (7, (0, 1))]
)
def test_fixed_patterns(library, pattern, lanes):
    scores = draw(128, "normal")
    wanted = scores[lanes[0] :: lanes[1]]
    out = run(library, "gather_fixed", scores, pattern)
    np.testing.assert_array_equal(out[: len(wanted)], wanted)
    assert out[-1] == len(wanted)


@pytest.mark.parametrize("kind", ("normal", "ties", "infinite"))
@pytest.mark.parametrize(
    ("runs", "keep"),
    [
        (1, 1),
        (1, 32),
        (2, 64),
        (3, 10),
        (4, 128),
        (5, 160),
        (5, 33),
        (8, 256),
        (9, 40),
        (16, 512),
        (17, 6),
        (33, 700),
        (64, 64),
        (64, 2048),
    ],
)
def test_sort_pairs(library, runs, keep, kind):
    scores = draw(32 * runs, kind)
    order = descending(scores)[:keep]
    out = run(library, "sort_pairs_split", scores, keep)
    np.testing.assert_array_equal(out[:keep], scores[order])
    np.testing.assert_array_equal(out[32 * runs :][:keep].view(np.uint32), 1000 + order)


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "sort32_misaligned": "Sort32 at sort_conformance.cpp:.*dst starts at UB byte .* must be a multiple of 256",
        "sort32_misaligned_score": "src0 starts at UB byte .* must be a multiple of 128",
        "sort32_overlap": "overlap",
        "sort32_many": r"repeatTime must be 0\.\.255, got 256",
        "merge_unsorted": "src1 is not sorted: record",
        "merge_overlap": "overlap",
        "merge_valid_bit": "validBit must be 3, 7 or 15, got 5",
        "merge_long": r"elementLengths\[0\] must be 0\.\.4095, got 4096",
        "merge_repeat_apart": "repeatTimes 2 needs four valid lists",
        "gather_overlap": "overlap",
        "gather_pattern_8": r"fixed patterns are 1\.\.7, got 8",
        "gather_no_mask": "counter mode needs mask >= 1",
    }.items(),
)
def test_broken_rules_are_reported(library, name, message):
    with pytest.raises(RuntimeError, match=message):
        run(library, name, draw(512, "normal"))


def test_sorting_a_nan_is_reported(library):
    scores = draw(32, "normal")
    scores[7] = np.nan
    with pytest.raises(RuntimeError, match="score 7 is NaN"):
        run(library, "sort32", scores)
