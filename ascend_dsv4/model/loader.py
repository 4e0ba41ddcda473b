# SPDX-License-Identifier: Apache-2.0
"""Parameters from a checkpoint: join, convert to the resident format, hand over to the backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from ascend_dsv4.errors import CheckpointError
from ascend_dsv4.graph.tree import leaves, map_leaves
from ascend_dsv4.model.checkpoint import Checkpoint
from ascend_dsv4.model.vision_weights import VisionWeights
from ascend_dsv4.model.weights import (
    Constant,
    DSparkWeights,
    HeadRows,
    ModelWeights,
    MtpWeights,
    Param,
    PlainMtpWeights,
    is_parameter,
)

_RAW = {
    ("BF16", "bfloat16"), ("F32", "float32"), ("F8_E4M3", "float8_e4m3fn"), ("F8_E8M0", "uint8"), ("U8", "uint8"),
    ("I8", "int8"), ("U8", "int8"),
}  # fmt: skip
"""Stored dtype → resident dtype pairs that share their bits."""
_BITS: dict[str, np.dtype[Any]] = {
    name: np.dtype(bits)
    for name, bits in (("bfloat16", "u2"), ("float8_e4m3fn", "u1"), ("uint8", "u1"), ("int8", "i1"), ("float32", "f4"))
}
"""Resident dtype → numpy dtype of its stored bits."""

Tree = TypeVar("Tree", bound="ModelWeights | MtpWeights | PlainMtpWeights | DSparkWeights | VisionWeights")
MakeParameter = Callable[[str, str, tuple[int, ...], np.ndarray], Any]
"""(name, dtype, shape, stored bits) → backend tensor."""


class WeightLoader:
    """Turns parameter trees into trees of backend tensors. A parameter that occurs again is the same tensor."""

    def __init__(self, checkpoint: Checkpoint, parameter: MakeParameter) -> None:
        self._checkpoint = checkpoint
        self._parameter = parameter
        self._made: dict[Param, Any] = {}

    @property
    def has_draft(self) -> bool:
        """Whether the files hold the draft stages that the configuration names."""
        return self._checkpoint.has_draft

    def load(self, params: Tree, progress: Callable[[int], None]) -> Tree:
        """`params` with tensors in place of `Param` and `Constant`. `progress` is called with the checkpoint bytes of each
        parameter when it is done."""

        def load(path: str, leaf: Param | Constant) -> Any:
            shape = tuple(int(dim) for dim in leaf.type.shape)
            if isinstance(leaf, Constant):
                return self._parameter(path, leaf.type.dtype, shape, leaf.array)
            if leaf not in self._made:
                self._made[leaf] = self._parameter(path, leaf.type.dtype, shape, read_parameter(self._checkpoint, leaf))
                progress(self._stored_bytes(leaf))
            return self._made[leaf]

        return map_leaves(load, params, is_parameter)  # type: ignore[no-any-return]

    def stored_bytes(self, params: ModelWeights | MtpWeights) -> int:
        """Checkpoint bytes that `load` will report in total."""
        wanted = {leaf for leaf in leaves(params, is_parameter).values() if isinstance(leaf, Param)}
        return sum(self._stored_bytes(param) for param in wanted - self._made.keys())

    def _stored_bytes(self, param: Param) -> int:
        return sum(self._checkpoint.entry(name).num_bytes for name in param.names)


def as_stored(checkpoint: Checkpoint, params: Tree) -> Tree:
    """The tree for the format "released" where the files hold F32 instead of BF16: such tensors are kept as they are."""

    def widen(_: str, leaf: Param | Constant) -> Param | Constant:
        is_f32 = isinstance(leaf, Param) and {checkpoint.entry(name).dtype for name in leaf.names} == {"F32"}
        return replace(leaf, type=replace(leaf.type, dtype="float32")) if is_f32 else leaf

    return map_leaves(widen, params, is_parameter)  # type: ignore[no-any-return]


def resident_bytes(*trees: ModelWeights | MtpWeights | PlainMtpWeights | DSparkWeights) -> int:
    """Bytes of the tensors that `WeightLoader.load` makes of these trees; what they share counts once."""
    found = {leaf for tree in trees for leaf in leaves(tree, lambda item: isinstance(item, Param)).values()}
    return sum(leaf.type.num_bytes() for leaf in found)


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
    if (stored, resident) in _RAW and param.heads is None:
        bits = checkpoint.array(name).view(_BITS[resident])
        return bits if param.scale_rows is None else _finer_scales(bits, *param.scale_rows)
    if stored == "I64":
        return _id_table(name, checkpoint.array(name), param.id_limit)
    values = checkpoint.read_float32(name, param.block)
    if param.heads is not None:
        values = _head_rows(values, param.heads)
    return to_bfloat16_bits(values) if resident == "bfloat16" else values


def _finer_scales(scales: np.ndarray, repeats: int, num_rows: int) -> np.ndarray:
    """Scales [rows, columns] for blocks that are `repeats` times shorter, of a matrix with `num_rows` such blocks."""
    return np.ascontiguousarray(np.repeat(scales, repeats, axis=0)[:num_rows])


def _head_rows(values: np.ndarray, part: HeadRows) -> np.ndarray:
    """The part of each head's rows, heads one below the other."""
    heads = values.reshape(-1, part.rows, values.shape[1])[:, part.start : part.stop]
    if part.transposed:
        heads = heads.transpose(0, 2, 1)
    return np.ascontiguousarray(heads.reshape(-1, heads.shape[-1]))


def _id_table(name: str, ids: np.ndarray, limit: int) -> np.ndarray:
    if ids.min() < 0 or ids.max() >= limit:
        raise CheckpointError(
            f"{name}: holds ids from {ids.min()} to {ids.max()}, expected 0 to {limit - 1}, because each is the number of an "
            "expert. The file is damaged: download it again."
        )
    return ids.astype(np.int32)


def to_bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """float32 → bfloat16 bits (uint16), to nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)
