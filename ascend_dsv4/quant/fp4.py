# SPDX-License-Identifier: Apache-2.0
"""FP4 weights (MXFP4), two E2M1 codes per byte and one E8M0 scale per 32 inputs; and the rounding of index keys.

The low nibble is the even column 2j, the high nibble the odd column 2j + 1. Files store the bytes as I8; they are read
as unsigned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.errors import CheckpointError, ConfigError
from ascend_dsv4.quant.fp8_blockwise import scale_values
from ascend_dsv4.quant.tables import (
    E2M1,
    E2M1_E4M3_GRID,
    E2M1_GRID,
    E2M1_PAIRS,
    E8M0,
    e4m3_scale,
    nearest_even_codes,
    round_groups,
    scale_codes,
)

if TYPE_CHECKING:
    import torch

GROUP = 32  # inputs per scale, fixed by the MX format
E4M3_GROUP = 16  # values under one E4M3 scale, in V4.1's compressed KV

# Both values of a byte as one 8-byte item: one gather instead of two, five times faster in numpy.
_PAIR_ITEMS = E2M1_PAIRS.view(np.float64)[:, 0]


def decode_numpy(packed: NDArray[np.uint8] | NDArray[np.int8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Values of packed FP4 rows.

    packed  uint8 or int8 [..., in / 2]
    scales  uint8 (E8M0) [..., in / 32]
    returns float32 [..., in]
    raises  CheckpointError if the scales do not fit
    """
    _check_groups(packed.shape, scales.shape)
    values = _PAIR_ITEMS[packed.view(np.uint8)].view(np.float32)
    groups = values.reshape(*scales.shape, GROUP)
    with np.errstate(over="ignore"):  # a scale near 2^127 overflows to infinity, as it does in torch
        groups *= E8M0[scales][..., None]
    return values


def decode(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Same as `decode_numpy` for tensors, bit for bit; float32 [..., in] on the device of `packed`.

    packed  int8 or uint8, for example stacked experts [E, out, in / 2]; scales uint8 or float8_e8m0fnu
    """
    import torch

    _check_groups(packed.shape, scales.shape)
    table = torch.tensor(E2M1_PAIRS, device=packed.device)
    pairs = torch.nn.functional.embedding(packed.view(torch.uint8).int(), table)  # [..., in / 2, 2]
    groups = pairs.view(*scales.shape, GROUP)
    groups *= scale_values(scales).unsqueeze(-1)
    return groups.flatten(-2)


def encode_numpy(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Packed bytes uint8 [..., in / 2] and E8M0 scales uint8 [..., in / 32] of float32 [..., in], in divisible by 32.

    Each group's scale is the smallest power of two from 2^-126 on that brings its largest magnitude to 6 or below (1
    for a group of zeros); values round to the nearest code, ties to even. Values decoded under such scales stay exact.
    raises  CheckpointError for other widths, a NaN or an infinity
    """
    width = values.shape[-1]
    if width % GROUP or not np.isfinite(values).all():
        raise CheckpointError(
            f"fp4 encoder: got rows of {width} values (finite: {bool(np.isfinite(values).all())}), expected finite "
            f"values and a multiple of {GROUP}, because {GROUP} inputs share one scale. Fix or pad the tensor before "
            "storing it."
        )
    groups = values.reshape(*values.shape[:-1], width // GROUP, GROUP)
    scales = scale_codes(np.abs(groups).max(axis=-1), E2M1_GRID)
    sign = np.signbit(groups).astype(np.uint8) << np.uint8(3)
    codes = nearest_even_codes(groups / E8M0[scales][..., None], E2M1[:8]) | sign
    pairs = codes.reshape(*values.shape[:-1], width // 2, 2)
    return (pairs[..., 0] | pairs[..., 1] << 4).astype(np.uint8), scales


def round_to_grid(x: torch.Tensor, group: int = GROUP) -> torch.Tensor:
    """Round each `group` of the last axis to E2M1 times its power-of-two scale, back in x's dtype: the grid of index keys.

    The largest magnitude of a group counts as at least 6 * 2^-126. Partial last group, NaN and zeros: see
    `tables.round_groups`.
    """
    return round_groups(x, group, E2M1_GRID)


def round_to_e4m3_scaled_grid(x: torch.Tensor, group: int = E4M3_GROUP) -> torch.Tensor:
    """Round each `group` of the last axis to E2M1 times its E4M3 scale, back in x's dtype: V4.1's grid of compressed KV.

    The largest magnitude of a group counts as at least 6 * 2^-9 and the scale, a sixth of it rounded to E4M3, is at most
    448; values are clamped to 6 scales. Partial last group, NaN and zeros: see `tables.round_groups`.
    """
    return round_groups(x, group, E2M1_E4M3_GRID, e4m3_scale)


def hadamard(x: torch.Tensor) -> torch.Tensor:
    """Hadamard transform of the last axis in Sylvester (natural) order, times n^-0.5 in one multiplication at the end.

    x        [..., n], n a power of two; float32 butterflies (float64 if x is float64), one rounding back to x's dtype
    raises   ConfigError for another width
    A row that holds a NaN or an infinity comes back non-finite; other rows are not touched by it.
    """
    import torch

    n = x.shape[-1]
    if n < 1 or n & (n - 1):
        raise ConfigError(
            f"hadamard: got a last axis of {n}, expected a power of two, because the transform is built from pairs. "
            "Set index_head_dim to a power of two."
        )
    work = x if x.dtype == torch.float64 else x.to(torch.float32)
    half = 1
    while half < n:
        low, high = work.reshape(*x.shape[:-1], n // (2 * half), 2, half).unbind(-2)
        work = torch.stack((low + high, low - high), dim=-2).flatten(-3)
        half *= 2
    scale: float = n**-0.5
    return (work * scale).to(x.dtype)


def _check_groups(packed: Sequence[int], scales: Sequence[int]) -> None:
    if packed and scales and tuple(packed[:-1]) == tuple(scales[:-1]) and packed[-1] * 2 == scales[-1] * GROUP:
        return
    raise CheckpointError(
        f"fp4 decoder: got packed bytes {tuple(packed)} with scales {tuple(scales)}, expected [..., in / 2] and "
        f"[..., in / {GROUP}], because a byte holds two values and {GROUP} values share one scale. "
        "Check that both tensors belong to the same weight."
    )
