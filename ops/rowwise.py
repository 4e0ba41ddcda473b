# SPDX-License-Identifier: Apache-2.0
"""Torch primitives whose result for a row does not depend, to the last bit, on the other rows of the call.

The references are built from these and from exactly rounded elementwise arithmetic. What to avoid, and why: a matrix product
picks its blocking by the number of rows, and its kernels for few columns sum in an order that depends on where in memory a
row begins; `sigmoid`, `silu` and `softplus` run a vector kernel on full vectors and a scalar one on the remainder, so here they
are given full vectors only; a sum that leaves a single value is split between threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

TILE_ROWS = 16
"""Rows of every matrix product; shorter inputs are padded with zeros, so the kernel always sees the same shape."""
ALIGNED_COLUMNS = 16
"""Columns between the starts of two rows are a multiple of this: 64 bytes in float32, the widest vector register."""


VECTOR_ELEMENTS = 64
"""A multiple of what an elementwise kernel takes at once: two vector registers of float32 or of float64."""
PIECE_ELEMENTS = 16384
"""Elements that torch leaves to one thread; it splits from 32,768 on."""


_is_narrow = ContextVar("is_narrow", default=False)


def accumulate_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 for float64 inputs."""
    return x.dtype if _is_narrow.get() else torch.promote_types(x.dtype, torch.float32)


@contextmanager
def narrow_accumulation() -> Iterator[None]:
    """References compute in the dtype of their inputs instead, rounding after every step: how a naive composition errs."""
    token = _is_narrow.set(True)
    try:
        yield
    finally:
        _is_narrow.reset(token)


def aligned_rows(x: Tensor, num_rows: int) -> Tensor:
    """x [n, width] in fresh memory, with zero rows added up to `num_rows`; every row begins at a multiple of 64 bytes."""
    width = x.shape[1]
    rows = x.new_zeros(num_rows, width + -width % ALIGNED_COLUMNS)[:, :width]
    rows[: x.shape[0]] = x
    return rows


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    """x · weightᵀ in tiles of 16 rows. x [..., in], weight [out, in], both of one dtype → [..., out]."""
    rows = x.reshape(-1, x.shape[-1])
    num_rows = rows.shape[0]
    rows = aligned_rows(rows, num_rows + -num_rows % TILE_ROWS)
    out = rows.new_empty(rows.shape[0], weight.shape[0])
    transposed = weight.t()
    for start in range(0, rows.shape[0], TILE_ROWS):
        torch.mm(rows[start : start + TILE_ROWS], transposed, out=out[start : start + TILE_ROWS])
    return out[:num_rows].reshape(*x.shape[:-1], weight.shape[0])


def row_sum(x: Tensor) -> Tensor:
    """Sum over the last axis: [..., n] → [...]."""
    if x.numel() == x.shape[-1]:
        return torch.cat([x.reshape(1, -1)] * 2).sum(-1)[:1].reshape(x.shape[:-1])
    return x.contiguous().sum(-1)


def row_mean_square(x: Tensor) -> Tensor:
    """Mean of squares over the last axis, keeping it: [..., n] → [..., 1]."""
    return (row_sum(x * x) / x.shape[-1]).unsqueeze(-1)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return _whole_vectors(torch.sigmoid, x)


def silu(x: Tensor) -> Tensor:
    """x / (1 + e^-x)."""
    return _whole_vectors(torch.nn.functional.silu, x)


def _whole_vectors(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An elementwise function in pieces that fill whole vector registers and that torch does not split between threads."""
    size = x.numel()
    pieces = x.new_zeros(size + -size % VECTOR_ELEMENTS)
    pieces[:size] = x.reshape(-1)
    for start in range(0, size, PIECE_ELEMENTS):
        piece = pieces[start : start + PIECE_ELEMENTS]
        piece.copy_(function(piece))
    return pieces[:size].reshape(x.shape)


def softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x); the identity above 20, where float32 can no longer tell the difference."""
    return _whole_vectors(torch.nn.functional.softplus, x)
