# SPDX-License-Identifier: Apache-2.0
"""Compressed entries are pure functions of their tokens, however many drafts were processed and rejected on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ascend_dsv4.ops.compress_kv.reference import compress_kv

HEAD_DIM = 4


class Compressor:
    """One request's cache and state, with projections of its true tokens and of drafts."""

    def __init__(self, ratio: int, num_spare: int, length: int) -> None:
        self.ratio = ratio
        roles = 2 if ratio == 4 else 1
        self.width = roles * HEAD_DIM
        self.state = torch.zeros(2, roles * ratio + num_spare, 2, self.width)
        self.cache = torch.zeros(length // ratio + 8, 1, HEAD_DIM)
        self.rows = torch.from_numpy(np.random.default_rng(ratio).standard_normal((length, 2, self.width)).astype(np.float32))
        self.ape = torch.linspace(-1, 1, ratio * self.width).reshape(ratio, self.width)

    def step(self, start: int, num_true: int, num_wrong: int) -> None:
        """Process true tokens from `start` on, and drafts behind them that are going to be rejected."""
        wrong = 9 * torch.randn(num_wrong, 2, self.width)
        rows = torch.cat([self.rows[start : start + num_true], wrong])
        count = len(rows)
        positions = torch.arange(start, start + count, dtype=torch.int32)
        closes = (positions + 1) % self.ratio == 0
        slots = torch.where(closes, positions // self.ratio, -1).to(torch.int32)
        angle = (positions / 7).float()[:, None]
        compress_kv(
            self.cache, self.state, rows[:, 0].contiguous(), rows[:, 1].contiguous(), self.ape, torch.ones(HEAD_DIM),
            angle.cos(), angle.sin(), positions, torch.zeros(count, dtype=torch.int32),
            torch.tensor([0, count], dtype=torch.int32), torch.tensor([1], dtype=torch.int32), slots,
            ratio=self.ratio, eps=1e-6, rounding="none", entry_dtype="float32",
        )  # fmt: skip

    def entries(self, length: int) -> Tensor:
        return self.cache[: length // self.ratio].clone()


def never_drafted(ratio: int, length: int) -> Compressor:
    one = Compressor(ratio, 0, length)
    one.step(0, length, 0)
    return one


def with_rejections(one: Compressor, length: int, num_drafts: int) -> set[tuple[int, int]]:
    """Process all tokens in random rounds; returns (accepted, start mod ratio) of the rounds that rejected something."""
    start, seen = 0, set()
    first = int(torch.randint(1, 10, ()))
    one.step(0, first, 0)
    start = first
    while start < length:
        num_true = min(int(torch.randint(1, num_drafts + 2, ())), length - start)
        num_wrong = num_drafts + 1 - num_true
        if num_wrong:
            seen.add((num_true, start % one.ratio))
        one.step(start, num_true, num_wrong)
        start += num_true
    return seen


@pytest.mark.parametrize(
    ("ratio", "num_drafts", "length"), [(4, 1, 90), (4, 3, 150), (4, 16, 300), (128, 2, 1400), (128, 5, 1400)]
)
def test_every_alignment(ratio: int, num_drafts: int, length: int) -> None:
    expected = never_drafted(ratio, length).entries(length)
    seen: set[tuple[int, int]] = set()
    for _ in range(2 if ratio == 128 else 6):
        one = Compressor(ratio, num_drafts, length)
        seen |= with_rejections(one, length, num_drafts)
        assert torch.equal(one.entries(length), expected)
    assert {start for _, start in seen} == set(range(ratio))
    if ratio == 4:
        assert len(seen) > 0.8 * 4 * num_drafts, "nearly every number of accepted drafts at every start"


@pytest.mark.parametrize("ratio", [4, 128])
def test_fewer_rows_would_not_do(ratio: int) -> None:
    """All n drafts rejected right before the token that closes an entry: its oldest row is still there with n - 1 spare rows,
    for the step that closes it brings its own, and is gone with n - 2. We keep n."""
    length, num_drafts = 2 * ratio, 4
    expected = never_drafted(ratio, length).entries(length)
    results = {}
    for num_spare in (num_drafts - 1, num_drafts - 2):
        one = Compressor(ratio, num_spare, length)
        one.step(0, length - 2, 0)
        one.step(length - 2, 1, num_drafts)
        one.step(length - 1, 1, 0)
        results[num_spare] = torch.equal(one.entries(length), expected)
    assert results == {num_drafts - 1: True, num_drafts - 2: False}
