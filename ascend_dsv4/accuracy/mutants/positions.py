# SPDX-License-Identifier: Apache-2.0
"""Wrong rotations: layout, direction, place and angle."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ascend_dsv4.ops.rope.reference import rope
from ascend_dsv4.ops.step_metadata.reference import step_metadata

Angles = tuple[Tensor, Tensor]


def half_split(x: Tensor, cos: Tensor, sin: Tensor, *, layout: str, **attrs: Any) -> Tensor:
    """Pairs are half a head apart instead of adjacent."""
    return rope(x, cos, sin, layout="halves", **attrs)


def interleaved(x: Tensor, cos: Tensor, sin: Tensor, *, layout: str, **attrs: Any) -> Tensor:
    """Pairs are adjacent instead of half a head apart."""
    return rope(x, cos, sin, layout="adjacent", **attrs)


def inverse_missing(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool, **attrs: Any) -> Tensor:
    """The output of attention is turned once more instead of back."""
    return rope(x, cos, sin, inverse=False, **attrs)


def first_channels(x: Tensor, cos: Tensor, sin: Tensor, *, start: int, **attrs: Any) -> Tensor:
    """The first channels are turned, not those from `start` on."""
    return rope(x, cos, sin, start=0, **attrs)


def angles_of_the_last_token(x: Tensor, cos: Tensor, sin: Tensor, **attrs: Any) -> Tensor:
    """Angles of the last token serve all tokens."""
    return rope(x, cos[-1:].expand_as(cos), sin[-1:].expand_as(sin), **attrs)


def entry_at_its_last_token(positions: Tensor, inv_freq: Tensor, *, offset: int) -> Angles:
    """A compressed entry is rotated at its last token instead of its first."""
    return step_metadata(positions, inv_freq, offset=0)


def entry_one_token_early(positions: Tensor, inv_freq: Tensor, *, offset: int) -> Angles:
    """A compressed entry is rotated one token before its first."""
    return step_metadata(positions, inv_freq, offset=offset - (offset != 0))


def positions_in_bfloat16(positions: Tensor, inv_freq: Tensor, *, offset: int) -> Angles:
    """Positions pass through bfloat16, which has no odd numbers above 256."""
    return step_metadata(positions.bfloat16().int(), inv_freq, offset=offset)


def positions_within_the_step(positions: Tensor, inv_freq: Tensor, *, offset: int) -> Angles:
    """Positions are counted from the first token of the step."""
    return step_metadata(positions - positions[:1], inv_freq, offset=offset)


def angles_in_bfloat16(positions: Tensor, inv_freq: Tensor, *, offset: int) -> Angles:
    """The table of cosines and sines is kept in bfloat16."""
    cos, sin = step_metadata(positions, inv_freq, offset=offset)
    return cos.bfloat16().float(), sin.bfloat16().float()


def cos_and_sin_exchanged(positions: Tensor, inv_freq: Tensor, *, offset: int) -> Angles:
    """The two tables come back in the wrong order."""
    cos, sin = step_metadata(positions, inv_freq, offset=offset)
    return sin, cos


MUTANTS = {
    "rope/half-split": half_split,
    "rope/interleaved": interleaved,
    "rope/inverse-missing": inverse_missing,
    "rope/first-channels": first_channels,
    "rope/angles-of-the-last-token": angles_of_the_last_token,
    "step_metadata/entry-at-its-last-token": entry_at_its_last_token,
    "step_metadata/entry-one-token-early": entry_one_token_early,
    "step_metadata/positions-in-bfloat16": positions_in_bfloat16,
    "step_metadata/positions-within-the-step": positions_within_the_step,
    "step_metadata/angles-in-bfloat16": angles_in_bfloat16,
    "step_metadata/cos-and-sin-exchanged": cos_and_sin_exchanged,
}
