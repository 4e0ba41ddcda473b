# SPDX-License-Identifier: Apache-2.0
"""FP8 weights: E4M3FN codes with one scale per block of a matrix (V4: 128x128, V4.1: 32x32, Engram rows: 1x32).

value[o, i] = e4m3(codes[o, i]) * scale[o // rows, i // cols]. Scales are E8M0 bytes (powers of two, so the product is
exact barring float32's exponent range) or float32 (V3.2's `weight_scale_inv`, which multiplies in spite of its name).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.errors import CheckpointError
from ascend_dsv4.quant.tables import E4M3_GRID, E4M3FN, E8M0, nearest_even_codes, round_groups, scale_codes

if TYPE_CHECKING:
    import torch

Block = tuple[int, int]


def decode_numpy(
    codes: NDArray[np.uint8], scales: NDArray[np.uint8] | NDArray[np.float32], block: Block
) -> NDArray[np.float32]:
    """Values of an FP8 matrix.

    codes   uint8 [out, in]
    scales  uint8 (E8M0) or float32, [ceil(out / rows), ceil(in / cols)]
    block   (rows, cols)
    raises  CheckpointError if the scale grid does not fit the matrix
    """
    _check_grid(codes.shape, scales.shape, block)
    if scales.dtype not in (np.uint8, np.float32):
        raise CheckpointError(
            f"fp8 decoder: got scales of dtype {scales.dtype}, expected uint8 (E8M0) or float32, because other bits stand for "
            "other numbers. Check the dtype of the scale tensor."
        )
    values = np.take(E4M3FN, codes)
    multipliers = E8M0[scales] if scales.dtype == np.uint8 else scales
    columns = np.repeat(multipliers, block[1], axis=1)[:, : codes.shape[1]]
    with np.errstate(over="ignore"):  # a scale near 2^127 overflows to infinity, as it does in torch
        _scale_row_blocks(values, columns, block[0])
    return values


def decode(codes: torch.Tensor, scales: torch.Tensor, block: Block) -> torch.Tensor:
    """Same as `decode_numpy` for tensors, bit for bit; result float32 [out, in] on the device of `codes`.

    codes   float8_e4m3fn or uint8; scales float8_e8m0fnu, uint8 or float32
    """
    import torch

    _check_grid(codes.shape, scales.shape, block)
    table = torch.tensor(E4M3FN, device=codes.device)
    # Lookups by byte instead of a cast: builds of torch for some devices lack the float8 types.
    values = torch.index_select(table, 0, codes.view(torch.uint8).reshape(-1).int()).view(codes.shape)
    columns = scale_values(scales).repeat_interleave(block[1], dim=1)[:, : codes.shape[1]]
    _scale_row_blocks(values, columns, block[0])
    return values


def scale_values(scales: torch.Tensor) -> torch.Tensor:
    """float32 values of a scale tensor of any shape: float32 as it is, uint8 or float8_e8m0fnu through the table."""
    import torch

    if scales.dtype == torch.float32:
        return scales
    table = torch.tensor(E8M0, device=scales.device)
    return torch.index_select(table, 0, scales.view(torch.uint8).reshape(-1).int()).view(scales.shape)


def encode_numpy(values: NDArray[np.float32], block: Block) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Codes uint8 [out, in] and E8M0 scales uint8 [ceil(out / rows), ceil(in / cols)] of a float32 matrix.

    Each block's scale is the smallest power of two from 2^-126 on that brings its largest magnitude to 448 or below (1
    for a block of zeros); values round to the nearest code, ties to even. Values decoded under such scales stay exact.
    raises  CheckpointError for a NaN or an infinity: no scale can represent it
    """
    if not np.isfinite(values).all():
        raise CheckpointError(
            "fp8 encoder: got a NaN or an infinity, expected finite values, because a block scale is taken from the "
            "largest magnitude. Fix the tensor before storing it."
        )
    out, width = values.shape
    rows, cols = block
    padded = np.pad(np.abs(values), ((0, -out % rows), (0, -width % cols)))
    tiles = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // cols, cols)
    scales = scale_codes(tiles.max(axis=(1, 3)), E4M3_GRID)
    spread = np.repeat(np.repeat(E8M0[scales], rows, axis=0)[:out], cols, axis=1)[:, :width]
    sign = np.signbit(values).astype(np.uint8) << np.uint8(7)
    codes = nearest_even_codes(values / spread, E4M3FN[:0x7F])
    return (codes | sign).astype(np.uint8), scales


def round_to_grid(x: torch.Tensor, group: int) -> torch.Tensor:
    """Round each `group` of the last axis to E4M3 times its power-of-two scale, back in x's dtype: the grid of window KV.

    The largest magnitude of a group counts as at least 1e-4. Partial last group, NaN and zeros: see
    `tables.round_groups`.
    """
    return round_groups(x, group, E4M3_GRID)


def _check_grid(codes: Sequence[int], scales: Sequence[int], block: Block) -> None:
    if len(codes) == 2 and tuple(scales) == (-(-codes[0] // block[0]), -(-codes[1] // block[1])):
        return
    raise CheckpointError(
        f"fp8 decoder: got codes {tuple(codes)} with scales {tuple(scales)}, expected a matrix and one scale per "
        f"{block[0]}x{block[1]} block, because each scale covers one block of the matrix. "
        "Check weight_block_size in config.json against the checkpoint."
    )


def _scale_row_blocks(values: Any, columns: Any, rows: int) -> None:
    """Multiply values [out, in] in place by columns [ceil(out / rows), in]; numpy arrays or torch tensors."""
    num_whole = values.shape[0] // rows
    whole = values[: num_whole * rows].reshape(num_whole, rows, values.shape[1])
    whole *= columns[:num_whole, None]
    rest = values[num_whole * rows :]
    rest *= columns[num_whole:]
