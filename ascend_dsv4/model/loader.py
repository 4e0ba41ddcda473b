# SPDX-License-Identifier: Apache-2.0
"""Parameters from a checkpoint: join, convert to the resident format, hand over to the backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ascend_dsv4.graph.tree import leaves, map_leaves
from ascend_dsv4.model.checkpoint import Checkpoint
from ascend_dsv4.model.weights import Constant, ModelWeights, MtpWeights, Param, is_parameter

_RAW = {
    ("BF16", "bfloat16"), ("F32", "float32"), ("F8_E4M3", "float8_e4m3fn"), ("F8_E8M0", "uint8"), ("U8", "uint8"),
    ("I8", "int8"), ("U8", "int8"),
}  # fmt: skip
"""Stored dtype → resident dtype pairs that share their bits."""
_BITS = {"bfloat16": np.uint16, "float8_e4m3fn": np.uint8, "uint8": np.uint8, "int8": np.int8, "float32": np.float32}

W = TypeVar("W", ModelWeights, MtpWeights)
MakeParameter = Callable[[str, str, tuple[int, ...], np.ndarray], Any]


def load_weights(
    checkpoint: Checkpoint, params: W, parameter: MakeParameter, progress: Callable[[int], None]
) -> W:
    """The parameter tree with backend tensors in place of `Param` and `Constant`.

    `parameter(name, dtype, shape, data)` makes a backend tensor; equal parameters are made once. `progress` is called with
    the checkpoint bytes of each parameter when it is done.
    """
    made: dict[Param, Any] = {}

    def load(path: str, leaf: Param | Constant) -> Any:
        shape = tuple(int(dim) for dim in leaf.type.shape)
        if isinstance(leaf, Constant):
            return parameter(path, leaf.type.dtype, shape, leaf.array)
        if leaf not in made:
            made[leaf] = parameter(path, leaf.type.dtype, shape, read_parameter(checkpoint, leaf))
            progress(sum(checkpoint.entry(name).num_bytes for name in leaf.names))
        return made[leaf]

    return map_leaves(load, params, is_parameter)  # type: ignore[no-any-return]


def stored_bytes(checkpoint: Checkpoint, params: ModelWeights | MtpWeights) -> int:
    """Checkpoint bytes that `load_weights` reports in total."""
    wanted = {leaf for leaf in leaves(params, is_parameter).values() if isinstance(leaf, Param)}
    return sum(checkpoint.entry(name).num_bytes for param in wanted for name in param.names)


def read_parameter(checkpoint: Checkpoint, param: Param) -> np.ndarray:
    """A parameter's host array in its resident format, as stored bits. One unconverted tensor is not copied."""
    parts = (_convert(checkpoint, name, param) for name in param.names)
    if len(param.names) == 1:
        return next(parts)
    shape = tuple(int(dim) for dim in param.type.shape)
    joined = np.empty((shape[0] * shape[1], *shape[2:]), _BITS[param.type.dtype])
    start = 0
    for part in parts:
        joined[start : start + len(part)] = part
        start += len(part)
    return joined


def _convert(checkpoint: Checkpoint, name: str, param: Param) -> np.ndarray:
    stored, resident = checkpoint.entry(name).dtype, param.type.dtype
    if (stored, resident) in _RAW:
        array = checkpoint.array(name)
        return array.view(_BITS[resident]) if resident in _BITS and array.dtype.itemsize == _BITS[resident]().itemsize else array
    if stored == "I64":
        return checkpoint.array(name).astype(np.int32)
    values = checkpoint.read_float32(name, param.block)
    return to_bfloat16_bits(values) if resident == "bfloat16" else values


def to_bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """float32 → bfloat16 bits (uint16), to nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)
