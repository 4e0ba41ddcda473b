# SPDX-License-Identifier: Apache-2.0
"""adjust_logits: what it leaves alone, how it rounds, what it hands to `sample`, and its numpy twin in the null backend."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from ascend_dsv4.accuracy.calls import make_inputs, same_bits, to_numpy
from ascend_dsv4.backend.null import NullBackend
from ascend_dsv4.ops.adjust_logits.cases import CASES, adjusted, bit_mask, inputs
from ascend_dsv4.ops.cases import CaseInputs, Rng, f32, i32, normal
from ascend_dsv4.ops.spec import ShapeError
from tests.ops.harness import run

ALL = i32([[-1]])
"""The mask that bars nothing of up to 32 tokens in one row."""


def adjust(given: CaseInputs) -> torch.Tensor:
    return run("adjust_logits", given, "float32")["y"]


def null_adjust(given: CaseInputs) -> Any:
    return NullBackend().bound_ops().adjust_logits(**given.args)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_null_backend_agrees(case: Any) -> None:
    """To the last bit, but for the sign of NaN: both round each step to float32."""
    given, logits = make_inputs("adjust_logits", case), make_inputs("adjust_logits", case).args["logits"]
    mine, reference = null_adjust(given), to_numpy(adjust(given))
    assert mine.dtype == np.float32 and mine.shape == reference.shape
    number = ~np.isnan(reference)
    np.testing.assert_array_equal(np.isnan(mine), ~number)
    np.testing.assert_array_equal(mine[number].view(np.int32), reference[number].view(np.int32))
    np.testing.assert_array_equal(given.args["logits"], logits, err_msg="the argument was written")


@pytest.mark.parametrize("call", [adjust, null_adjust], ids=["reference", "null"])
@pytest.mark.parametrize(("vocab_size", "words", "right"), [(64, 1, 2), (64, 3, 2), (65, 2, 3), (5, 0, 1), (32, 2, 1)])
def test_a_mask_of_the_wrong_width_is_refused(call: Any, vocab_size: int, words: int, right: int) -> None:
    given = adjusted(np.zeros((2, vocab_size), np.float32), np.zeros((2, words), np.int32))
    expected = f"expected [num_rows=2, ceil(vocab_size={vocab_size} / 32)={right}]"
    message = f"adjust_logits: allowed has shape [2, {words}], {expected}"
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        call(given)


def test_the_rest_keeps_its_bits(rng: Rng) -> None:
    given = inputs(rng, 6, num_adjustments=80, vocab_size=70, logits=normal(rng, 6, 70) * f32([0, 1]).repeat(35))
    logits, rows, ids = (torch.from_numpy(np.asarray(given.args[name])) for name in ("logits", "rows", "ids"))
    assert bool((torch.signbit(logits) & (logits == 0)).any()), "negative zeros are among them"
    y = adjust(given)
    alone = torch.ones(6, 70, dtype=torch.bool)
    alone[rows.long(), ids.long()] = False
    barred = np.unpackbits(np.asarray(given.args["allowed"]).view(np.uint8), axis=1, bitorder="little")[:, :70] == 0
    alone &= ~torch.from_numpy(barred)
    assert 100 < int(alone.sum()) < 400
    assert same_bits(y[alone], logits[alone])


def test_each_step_rounds_to_float32() -> None:
    """-3 · 4194303.75 = -12582911.25 rounds to -12582911 before the bias is added; a fused operation would give 0.75."""
    assert adjust(adjusted(f32([[-3]]), ALL, i32([0]), i32([0]), f32([4194303.75]), f32([12582912]))).item() == 1


def test_a_penalty_never_helps(rng: Rng) -> None:
    """Above 1 every logit falls, below 1 every logit rises, on both sides of zero."""
    logits = normal(rng, 1, 32, scale=5)
    every = {"rows": i32([0] * 32), "ids": i32(range(32)), "bias": f32([0] * 32)}
    harder = adjust(adjusted(logits, ALL, repetition=f32([1.3] * 32), **every)).numpy()
    softer = adjust(adjusted(logits, ALL, repetition=f32([0.7] * 32), **every)).numpy()
    assert (logits > 0).any() and (logits < 0).any()
    assert (harder < logits).all() and (logits < softer).all()
    assert ((harder > 0) == (logits > 0)).all()


def draw(logits: torch.Tensor, uniform: float = 0.5) -> list[int]:
    count = len(logits)
    args = {"temperature": f32([1] * count), "top_k": i32([0] * count), "top_p": f32([1] * count), "min_p": f32([0] * count)}
    drawn = run("sample", CaseInputs({"logits": logits.numpy(), **args, "uniform": np.full(count, uniform)}), "float32")
    return drawn["ids"].tolist()


def test_only_what_is_allowed_is_drawn(rng: Rng) -> None:
    allow = rng.random((40, 50)) < 0.1
    allow[:, 49] |= ~allow.any(axis=1)
    y = adjust(adjusted(normal(rng, 40, 50, scale=4), bit_mask(rng, allow)))
    for uniform in (0.0, 0.3, 0.999):
        assert all(allow[row, token] for row, token in enumerate(draw(y, uniform)))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("by", ["mask", "bias"])
def test_barring_does_not_hide_a_broken_row(broken: float, by: str) -> None:
    """Row 0 has a broken logit that is barred, row 1 nothing left, row 2 one token."""
    logits, allow = f32([[broken, 1, 2], [0.0, 1, 2], [0.0, 1, 2]]), np.array([[0, 1, 1], [0, 0, 0], [0, 1, 0]], dtype=bool)
    if by == "mask":
        given = adjusted(logits, i32(np.packbits(allow, axis=1, bitorder="little")))
    else:
        rows, ids = np.nonzero(~allow)
        count = len(rows)
        given = adjusted(logits, i32([[-1]] * 3), i32(rows), i32(ids), f32([1] * count), f32([-np.inf] * count))
    assert draw(adjust(given)) == [-1, -1, 1]
