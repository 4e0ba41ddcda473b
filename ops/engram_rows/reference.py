# SPDX-License-Identifier: Apache-2.0
"""Reference of `engram_rows`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ascend_dsv4.ops.engram_rows import SPEC
from ascend_dsv4.ops.registry import implements
from ascend_dsv4.ops.spec import ShapeError
from ascend_dsv4.quant import fp8_blockwise
from ascend_dsv4.quant.tables import E4M3FN

SCALE_GROUP = 32
"""Channels per scale byte."""


def _fp8(codes: Tensor) -> Tensor:
    table = torch.tensor(E4M3FN, device=codes.device)
    return torch.index_select(table, 0, codes.reshape(-1).int()).view(codes.shape)


def _int8(codes: Tensor) -> Tensor:
    wide = codes.int()
    return torch.where(wide < 128, wide, wide - 256).float()


def _int4(codes: Tensor) -> Tensor:
    wide = codes.int()
    nibbles = torch.stack([wide & 15, wide >> 4], dim=-1).flatten(-2)
    return torch.where(nibbles < 8, nibbles, nibbles - 16).float()


def _bf16(rows: Tensor) -> Tensor:
    """Put together byte by byte: a row may begin at an odd address."""
    low, high = rows[..., 0::2].int(), rows[..., 1::2].int()
    return ((low << 16) | (high << 24)).view(torch.float32)


_CODES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {"fp8": (1, _fp8), "int8": (1, _int8), "int4": (2, _int4)}
"""Format → channels per byte of codes, and what decodes them."""


@implements(SPEC, "reference")
def engram_rows(rows: Tensor, *, format: str, head_dim: int, out_dtype: str) -> Tensor:
    if format != "bf16" and format not in _CODES:
        raise ShapeError(f"engram_rows: format {format!r}, expected one of {', '.join((*_CODES, 'bf16'))}")
    per_byte, decode = _CODES.get(format, (1, _bf16))
    code_bytes = 2 * head_dim if format == "bf16" else head_dim // per_byte
    scale_bytes = 0 if format == "bf16" else head_dim // SCALE_GROUP
    num_tokens, columns, row_bytes = rows.shape
    if row_bytes != code_bytes + scale_bytes or (scale_bytes * SCALE_GROUP != head_dim and format != "bf16"):
        raise ShapeError(
            f"engram_rows: rows of {row_bytes} bytes with head_dim {head_dim}, expected {code_bytes + scale_bytes} bytes in "
            f"format {format!r}, and whole groups of {SCALE_GROUP} channels"
        )
    values = decode(rows[..., :code_bytes])  # [num_tokens, columns, head_dim] float32
    if scale_bytes:
        scales = fp8_blockwise.scale_values(rows[..., code_bytes:])
        values = values.view(num_tokens, columns, scale_bytes, SCALE_GROUP) * scales.unsqueeze(-1)
    return values.reshape(num_tokens, columns * head_dim).to(getattr(torch, out_dtype))
