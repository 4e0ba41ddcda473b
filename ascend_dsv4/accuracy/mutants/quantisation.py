# SPDX-License-Identifier: Apache-2.0
"""Wrong decoding and rounding: nibbles, scales, grids, the order of a transform."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ascend_dsv4.ops.engram_rows.reference import engram_rows
from ascend_dsv4.ops.expert_mlp.reference import expert_mlp
from ascend_dsv4.ops.grouped_linear.reference import grouped_linear
from ascend_dsv4.ops.linear.reference import linear
from ascend_dsv4.ops.linear_bias.reference import linear_bias
from ascend_dsv4.ops.store_kv.reference import round_rows, store_kv


def swapped_nibbles(weight: Tensor) -> Tensor:
    """FP4 bytes with their two codes exchanged; any other weight as it is."""
    if weight.dtype != torch.int8:
        return weight
    codes = weight.view(torch.uint8)
    return (codes << 4 | codes >> 4).view(torch.int8)


def nibbles_swapped(x: Tensor, weight: Tensor, scale: Tensor | None, **attrs: Any) -> Tensor:
    """The high nibble is taken for the even column."""
    return linear(x, swapped_nibbles(weight), scale, **attrs)


def scale_of_the_neighbour(x: Tensor, weight: Tensor, scale: Tensor | None, **attrs: Any) -> Tensor:
    """Each block takes the scale of the block beside it."""
    return linear(x, weight, None if scale is None else scale.roll(1, -1), **attrs)


def scale_of_the_row_above(x: Tensor, weight: Tensor, scale: Tensor | None, **attrs: Any) -> Tensor:
    """Each block takes the scale of the block above it."""
    return linear(x, weight, None if scale is None else scale.roll(1, 0), **attrs)


def scale_missing(x: Tensor, weight: Tensor, scale: Tensor | None, **attrs: Any) -> Tensor:
    """Codes are multiplied without their scales."""
    return linear(
        x, weight, None if scale is None else torch.full_like(scale, 127 if scale.dtype == torch.uint8 else 1), **attrs
    )


def exponent_off_by_one(x: Tensor, weight: Tensor, scale: Tensor | None, **attrs: Any) -> Tensor:
    """Power-of-two scales have a bias of 128."""
    return linear(x, weight, scale - 1 if scale is not None and scale.dtype == torch.uint8 else scale, **attrs)


def activations_in_fp8(x: Tensor, weight: Tensor, scale: Tensor | None, **attrs: Any) -> Tensor:
    """Activations are rounded to E4M3 where the weight is FP8."""
    rounded = x.to(torch.float8_e4m3fn).to(x.dtype) if weight.dtype == torch.float8_e4m3fn else x
    return linear(rounded, weight, scale, **attrs)


def groups_share_an_input(x: Tensor, weight: Tensor, scale: Tensor | None, **attrs: Any) -> Tensor:
    """All groups take the input of the first one."""
    return grouped_linear(x[:, :1].expand_as(x), weight, scale, **attrs)


def bias_missing(x: Tensor, weight: Tensor, bias: Tensor, **attrs: Any) -> Tensor:
    """The bias is not added."""
    return linear_bias(x, weight, torch.zeros_like(bias), **attrs)


def expert_nibbles_swapped(
    rows: Tensor,
    row_weights: Tensor,
    counts: Tensor,
    w13: Tensor,
    w13_scale: Tensor | None,
    w2: Tensor,
    w2_scale: Tensor | None,
    **attrs: Any,
) -> Tensor:
    """The high nibble is taken for the even column."""
    w13, w2 = swapped_nibbles(w13), swapped_nibbles(w2)
    return expert_mlp(rows, row_weights, counts, w13, w13_scale, w2, w2_scale, **attrs)


def scales_of_expert_0(
    rows: Tensor, row_weights: Tensor, counts: Tensor, w13: Tensor, w13_scale: Tensor | None, *rest: Any, **attrs: Any
) -> Tensor:
    """All experts take the scales of the first one."""
    shared = None if w13_scale is None else w13_scale[:1].expand_as(w13_scale)
    return expert_mlp(rows, row_weights, counts, w13, shared, *rest, **attrs)


def engram_nibbles_swapped(rows: Tensor, *, format: str, head_dim: int, **attrs: Any) -> Tensor:
    """The high nibble is taken for the even channel."""
    codes = rows[..., : head_dim // 2]
    swapped = torch.cat([codes << 4 | codes >> 4, rows[..., head_dim // 2 :]], dim=-1)
    return engram_rows(swapped if format == "int4" else rows, format=format, head_dim=head_dim, **attrs)


def engram_scale_of_the_neighbour(rows: Tensor, *, format: str, head_dim: int, **attrs: Any) -> Tensor:
    """Each group takes the scale of the group beside it."""
    count = 0 if format == "bf16" else head_dim // 32
    codes, scales = rows[..., : rows.shape[-1] - count], rows[..., rows.shape[-1] - count :]
    return engram_rows(torch.cat([codes, scales.roll(1, -1)], dim=-1), format=format, head_dim=head_dim, **attrs)


def big_endian_rows(rows: Tensor, *, format: str, **attrs: Any) -> Tensor:
    """The bytes of a bfloat16 are read in the wrong order."""
    swapped = rows.reshape(*rows.shape[:-1], -1, 2).flip(-1).flatten(-2) if format == "bf16" else rows
    return engram_rows(swapped, format=format, **attrs)


def hadamard_in_another_order(cache: Tensor, rows: Tensor, slots: Tensor, *, rounding: str, rope_dim: int) -> None:
    """The Hadamard transform numbers its outputs with the bits reversed."""
    if rounding == "hadamard_fp4":
        rows = rows[:, bit_reversed(rows.shape[1])]
    store_kv(cache, rows, slots, rounding=rounding, rope_dim=rope_dim)


def bit_reversed(size: int) -> Tensor:
    """The numbers below a power of two in the order of their bits read backwards."""
    numbers, order = torch.arange(size), torch.zeros(size, dtype=torch.int64)
    for _ in range(size.bit_length() - 1):
        order, numbers = order << 1 | numbers & 1, numbers >> 1
    return order


def hadamard_missing(cache: Tensor, rows: Tensor, slots: Tensor, *, rounding: str, rope_dim: int) -> None:
    """Index keys are rounded without the transform before it."""
    store_kv(cache, rows, slots, rounding="fp4_b32" if rounding == "hadamard_fp4" else rounding, rope_dim=rope_dim)


def rotary_channels_rounded(cache: Tensor, rows: Tensor, slots: Tensor, *, rounding: str, rope_dim: int) -> None:
    """The rotary channels are put on the FP8 grid too."""
    store_kv(cache, rows, slots, rounding=rounding, rope_dim=0)


def nothing_rounded(cache: Tensor, rows: Tensor, slots: Tensor, *, rounding: str, rope_dim: int) -> None:
    """Rows are stored as they are, without the grid that the model was trained with."""
    store_kv(cache, rows, slots, rounding="none", rope_dim=rope_dim)


def groups_of_32(cache: Tensor, rows: Tensor, slots: Tensor, *, rounding: str, rope_dim: int) -> None:
    """FP8 scales are per 32 channels where they should be per 64."""
    split = rows.shape[1] - rope_dim
    if rounding == "fp8":
        rows, rounding = torch.cat([round_rows(rows[:, :split], "fp8_b32", 0), rows[:, split:]], dim=1), "none"
    store_kv(cache, rows, slots, rounding=rounding, rope_dim=rope_dim)


MUTANTS = {
    "linear/nibbles-swapped": nibbles_swapped,
    "linear/scale-of-the-neighbour": scale_of_the_neighbour,
    "linear/scale-of-the-row-above": scale_of_the_row_above,
    "linear/scale-missing": scale_missing,
    "linear/exponent-off-by-one": exponent_off_by_one,
    "linear/activations-in-fp8": activations_in_fp8,
    "grouped_linear/groups-share-an-input": groups_share_an_input,
    "linear_bias/bias-missing": bias_missing,
    "expert_mlp/nibbles-swapped": expert_nibbles_swapped,
    "expert_mlp/scales-of-expert-0": scales_of_expert_0,
    "engram_rows/nibbles-swapped": engram_nibbles_swapped,
    "engram_rows/scale-of-the-neighbour": engram_scale_of_the_neighbour,
    "engram_rows/big-endian": big_endian_rows,
    "store_kv/hadamard-in-another-order": hadamard_in_another_order,
    "store_kv/hadamard-missing": hadamard_missing,
    "store_kv/rotary-channels-rounded": rotary_channels_rounded,
    "store_kv/nothing-rounded": nothing_rounded,
    "store_kv/groups-of-32": groups_of_32,
}
