# SPDX-License-Identifier: Apache-2.0
"""Every value of the three small float formats, and the rounding that the model applies to its caches.

The tables are built from the bit layouts of the OCP FP8 and MX specifications. numpy is enough for everything that
reads checkpoints; torch is imported inside the functions that take tensors, so that a header check starts without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

E8M0_BIAS = 127
E8M0_NAN = 255


def _minifloat_values(exponent_bits: int, mantissa_bits: int, bias: int) -> NDArray[np.float32]:
    """Value of every code of a sign/exponent/mantissa format, subnormals included; float32 [2**(1 + bits)]."""
    codes = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    mantissa = codes & ((1 << mantissa_bits) - 1)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    is_normal = exponent > 0
    significand = mantissa + (is_normal << mantissa_bits)
    magnitude = np.ldexp(significand.astype(np.float32), np.maximum(exponent, 1) - bias - mantissa_bits)
    values: NDArray[np.float32] = np.where(codes >> (exponent_bits + mantissa_bits), -magnitude, magnitude)
    return values


def _e4m3fn_values() -> NDArray[np.float32]:
    values = _minifloat_values(exponent_bits=4, mantissa_bits=3, bias=7)
    values[[0x7F, 0xFF]] = np.nan  # the "fn" variant: no infinities, one NaN per sign
    return values


def _e8m0_values() -> NDArray[np.float32]:
    # Code 0 is 2^-127, a float32 subnormal: shifting the byte into the exponent field would give 0 instead.
    finite = np.ldexp(np.ones(E8M0_NAN, dtype=np.float32), np.arange(E8M0_NAN) - E8M0_BIAS)
    return np.append(finite, np.float32(np.nan)).astype(np.float32)


def _frozen(values: NDArray[np.float32]) -> NDArray[np.float32]:
    values.flags.writeable = False
    return values


E4M3FN = _frozen(_e4m3fn_values())  # [256]
E2M1 = _frozen(_minifloat_values(exponent_bits=2, mantissa_bits=1, bias=1))  # [16]; code 8 is -0
E8M0 = _frozen(_e8m0_values())  # [256]
# [256, 2]: a byte holds the even column in its low nibble and the odd column in its high nibble
E2M1_PAIRS = _frozen(np.stack([E2M1[np.arange(256) & 15], E2M1[np.arange(256) >> 4]], axis=1))


@dataclass(frozen=True, slots=True)
class RoundingGrid:
    """A float format used with one scale per group of values.

    max_value      largest magnitude; the scale brings the largest value of the group to it, or below
    min_exponent   exponent of the smallest normal value
    mantissa_bits  stored mantissa bits
    amax_floor     the group maximum is taken as at least this, so that a group of zeros has a scale
    """

    max_value: float
    min_exponent: int
    mantissa_bits: int
    amax_floor: float

    @property
    def reciprocal(self) -> float:
        """1 / max_value rounded to float32: a power-of-two scale is defined by this product, not by a division."""
        return float(np.float32(1.0 / self.max_value))


E4M3_GRID = RoundingGrid(max_value=448.0, min_exponent=-6, mantissa_bits=3, amax_floor=1e-4)
E2M1_GRID = RoundingGrid(max_value=6.0, min_exponent=0, mantissa_bits=1, amax_floor=6.0 * 2.0**-126)
E2M1_E4M3_GRID = RoundingGrid(max_value=6.0, min_exponent=0, mantissa_bits=1, amax_floor=6.0 * 2.0**-9)
"""E2M1 under scales that are E4M3 numbers: the floor gives the smallest of those, 2^-9."""


def scale_codes(amax: NDArray[np.float32], grid: RoundingGrid) -> NDArray[np.uint8]:
    """E8M0 codes of the scales of groups whose largest magnitude is `amax` (finite, >= 0).

    The code is ceil(log2(amax * fp32(1 / max_value))) + 127, read from the bits of the product: the biased exponent,
    plus one if any mantissa bit is set; at least 1. A group of zeros gets code 127 (scale 1).
    """
    product: NDArray[np.float32] = amax.astype(np.float32) * np.float32(grid.reciprocal)
    bits = product.view(np.uint32)
    codes = (bits >> 23) + ((bits & 0x7FFFFF) != 0)
    return np.where(product == 0, E8M0_BIAS, codes).astype(np.uint8)


def nearest_even_codes(values: NDArray[np.float32], positive: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Code of the nearest entry of `positive` for every |value|; a tie takes the even code; too large takes the last.

    positive  the format's non-negative finite values by ascending code. Sums of neighbours are exact in float32, so a
              tie is found by an exact comparison.
    """
    midpoints = (positive[:-1] + positive[1:]) * np.float32(0.5)
    magnitude = np.abs(values)
    codes: NDArray[np.intp] = np.searchsorted(midpoints, magnitude, side="left")
    is_tie: NDArray[np.bool_] = midpoints[np.minimum(codes, len(midpoints) - 1)] == magnitude
    codes += is_tie & (codes % 2 == 1)
    return codes.astype(np.uint8)


def power_of_two_scale(amax: torch.Tensor, grid: RoundingGrid) -> torch.Tensor:
    """2^ceil(log2(max(amax, floor) * fp32(1 / max_value))) in amax's dtype; NaN where amax is not finite in float32."""
    import torch

    product = amax.clamp_min(grid.amax_floor).to(torch.float32) * grid.reciprocal
    bits = product.view(torch.int32)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(torch.int32)
    scale = (exponent << 23).view(torch.float32)
    return torch.where(torch.isfinite(product), scale, torch.nan).to(amax.dtype)


def e4m3_scale(amax: torch.Tensor, grid: RoundingGrid) -> torch.Tensor:
    """max(amax, floor) / max_value as an E4M3 number, at most 448, in amax's dtype; NaN where amax is not finite in float32.

    Rounding to the nearest may leave the scale too small for the group's largest values, and 448 limits it: what then
    exceeds the grid is clamped.
    """
    import torch

    quotient = amax.clamp_min(grid.amax_floor).to(torch.float32) / grid.max_value
    scale = _round_to_format(quotient, E4M3_GRID).clamp_max(E4M3_GRID.max_value)
    return torch.where(torch.isfinite(quotient), scale, torch.nan).to(amax.dtype)


def round_groups(
    x: torch.Tensor,
    group: int,
    grid: RoundingGrid,
    scale_rule: Callable[[torch.Tensor, RoundingGrid], torch.Tensor] = power_of_two_scale,
) -> torch.Tensor:
    """Round every `group` consecutive values of the last axis to `grid` times their own scale.

    x           [..., width] any float dtype, computed in float32, or in float64 if x is that; a last group may be partial
    scale_rule  the scales from the groups' largest magnitudes: `power_of_two_scale` or `e4m3_scale`
    returns     [..., width] in x's dtype; exact there for bfloat16, float32 and float64
    A group that holds a NaN or an infinity (in float64: a magnitude above float32's range) comes back as NaN in full,
    never as plausible numbers; a value that rounds past x's largest number becomes an infinity. A group of zeros stays
    zero. Only element-wise operations and maxima: a row never depends on other rows.
    """
    import torch

    width = x.shape[-1]
    num_groups = -(-width // group)
    work = x if x.dtype == torch.float64 else x.to(torch.float32)
    padded = torch.nn.functional.pad(work, (0, num_groups * group - width))
    groups = padded.reshape(*x.shape[:-1], num_groups, group)
    scale = scale_rule(groups.abs().amax(-1, keepdim=True), grid)
    scaled = (groups / scale).clamp(-grid.max_value, grid.max_value)
    rounded = _round_to_format(scaled, grid) * scale  # exact: few bits times few bits
    return rounded.flatten(-2)[..., :width].to(x.dtype)


def _round_to_format(x: torch.Tensor, grid: RoundingGrid) -> torch.Tensor:
    """Nearest number of the grid's format, ties to even, without its upper limit; x float32 or float64."""
    import torch

    step = _power_of_two_floor(x).clamp_min(2.0**grid.min_exponent) * 2.0**-grid.mantissa_bits
    return torch.round(x / step) * step  # torch.round takes ties to even; the other steps are exact


def _power_of_two_floor(x: torch.Tensor) -> torch.Tensor:
    """2^floor(log2(|x|)) for normal values and 0 below them; x float32 or float64."""
    import torch

    if x.dtype == torch.float64:
        return (x.view(torch.int64) & (0x7FF << 52)).view(torch.float64)
    return (x.view(torch.int32) & (0xFF << 23)).view(torch.float32)
