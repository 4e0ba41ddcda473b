# SPDX-License-Identifier: Apache-2.0
"""Tensors as bytes and back: same bits, strides and offset, at the same place within a page.

What a tensor reaches of its memory is kept, also what lies between strided elements. Memory larger than a chunk is cut into
chunks, each stored once under its digest, and chunks of zeros not at all: a cache of gigabytes costs what was written to it,
and comes back as a mapping of which only that is touched.
"""

from __future__ import annotations

import hashlib
import mmap
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ascend_dsv4.ops.library import dtype_name
from ascend_dsv4.ops.spec import DTYPE_BYTES

CHUNK_BYTES = 1 << 16
PAGE_BYTES = 4096
MAX_MEMORY_BYTES = 1 << 46
"""Of one tensor: what a process can map."""
STORED_DTYPES: Mapping[str, str] = {
    "float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16", "float8_e4m3fn": "F8_E4M3",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""Dtype → its name in safetensors files."""
# Python names the flag from 3.13 on; the value is the same on x86-64 and aarch64. 0 where there is no such flag.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive bytes of a tensor's memory."""

    at: int
    """Byte, counted from the memory's first."""
    num_bytes: int
    blob: str
    """Name of the stored bytes; "" for zeros."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor whose bytes lie elsewhere. Bytes of its memory that no part covers are zero."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    offset: int
    """Of the first element in its memory, in elements."""
    address: int
    """Of the memory's first byte, within a page: some kernels choose by alignment."""
    source: str
    """The graph's name for it: "w.attn.q_norm.weight", "caches.win_kv", "batch.positions", or the result of a node."""
    parts: tuple[Part, ...]

    @property
    def reach(self) -> tuple[int, int]:
        """First byte of the memory that the tensor reaches, and the one after the last."""
        width = DTYPE_BYTES[self.dtype]
        if 0 in self.shape:
            return self.offset * width, self.offset * width
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return self.offset * width, (self.offset + last + 1) * width


AddBlob = Callable[[str, Bytes, bool], str]
"""Takes a dtype, bytes, and whether these never change; returns the name they are stored by."""


def blob_name(dtype: str, data: Bytes) -> str:
    """The name of stored bytes: what they are and a digest of them."""
    return f"{STORED_DTYPES[dtype]}-{hashlib.sha256(data.data).hexdigest()[:40]}"


def store_tensor(tensor: Tensor, source: str, add: AddBlob, *, is_constant: bool = False) -> StoredTensor:
    """Describe a tensor and hand its bytes to `add`: a constant in one piece, others in chunks without those of zeros."""
    stored = StoredTensor(
        dtype=dtype_name(tensor.dtype),
        shape=tuple(tensor.shape),
        strides=tuple(tensor.stride()),
        offset=int(tensor.storage_offset()),
        address=tensor.untyped_storage().data_ptr() % PAGE_BYTES,
        source=source,
        parts=(),
    )
    data, first = reached_bytes(tensor), stored.reach[0]
    if not data.size:
        return stored
    if is_constant or data.size <= CHUNK_BYTES:
        pieces = [(0, data)]
    else:
        pieces = [(i * CHUNK_BYTES, data[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES]) for i in _nonzero_chunks(data)]
    parts = tuple(Part(first + at, piece.size, add(stored.dtype, piece, is_constant)) for at, piece in pieces)
    return replace(stored, parts=parts)


def reached_bytes(tensor: Tensor) -> Bytes:
    """uint8 [bytes that the tensor reaches of its memory], a view if the memory is the host's."""
    if not tensor.numel():
        return np.empty(0, np.uint8)
    length = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = torch.as_strided(tensor, (length,), (1,), tensor.storage_offset())
    return flat.view(torch.uint8).cpu().numpy()


def changed_parts(before: StoredTensor, after: StoredTensor) -> tuple[Part, ...]:
    """What `after` has otherwise than `before`, two states of one memory; chunks that became zero have no blob."""
    known = {part.at: part for part in before.parts}
    now = {part.at for part in after.parts}
    zeroed = [replace(part, blob="") for at, part in known.items() if at not in now]
    return tuple(sorted([*(p for p in after.parts if known.get(p.at) != p), *zeroed], key=lambda part: part.at))


def restore_tensor(stored: StoredTensor, read: Callable[[str], Bytes], changes: Sequence[Part] = ()) -> Tensor:
    """The tensor in memory of its own, of which nothing but its parts is touched, then `changes`.

    Raises OSError or ValueError if there is no room for the mapping.
    """
    dtype = getattr(torch, stored.dtype)
    end = stored.reach[1]
    if stored.reach[0] == end:
        empty: Tensor = torch.empty(0, dtype=dtype).as_strided(stored.shape, stored.strides, 0)
        return empty
    # Writable memory that the system need not have: it is zero until written, and what is only read stays so.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    mapped = mmap.mmap(-1, stored.address + end, flags=flags)
    memory = np.frombuffer(mapped, np.uint8, count=end, offset=stored.address)
    for part in (*stored.parts, *changes):
        memory[part.at : part.at + part.num_bytes] = read(part.blob) if part.blob else 0
    return torch.from_numpy(memory).view(dtype).as_strided(stored.shape, stored.strides, stored.offset)


def restore_widened(stored: StoredTensor, read: Callable[[str], Bytes]) -> Tensor:
    """The same in float64 if it holds floating numbers (FP8 codes are none): strides and untouched memory as they are."""
    if stored.dtype not in ("float32", "bfloat16", "float16"):
        return restore_tensor(stored, read)
    tensor = restore_tensor(replace(stored, dtype="float64", address=0, parts=()), read)
    if tensor.numel():
        narrow, width = getattr(torch, stored.dtype), DTYPE_BYTES[stored.dtype]
        memory = tensor.as_strided((stored.reach[1] // width,), (1,), 0)
        for part in stored.parts:
            values = torch.from_numpy(read(part.blob).copy()).view(narrow)
            memory[part.at // width : (part.at + part.num_bytes) // width] = values
    return tensor


def changed_rows(before: StoredTensor, after: Tensor, changes: Sequence[Part]) -> list[int]:
    """Numbers along the first axis that `changes` touch, or where `after` is not what was before. Reads `after` once."""
    now = store_tensor(after, before.source, lambda dtype, data, _: blob_name(dtype, data))
    step = before.strides[0] * DTYPE_BYTES[before.dtype]
    if not step or now.strides != before.strides:
        return list(range(before.shape[0]))
    rows: set[int] = set()
    for part in (*changes, *changed_parts(before, now)):
        at = part.at - before.reach[0]
        rows.update(range(at // step, min((at + part.num_bytes - 1) // step + 1, before.shape[0])))
    return sorted(rows)


def _nonzero_chunks(data: Bytes) -> list[int]:
    """Numbers of the chunks that hold anything but zeros."""
    whole = data.size // CHUNK_BYTES
    found: list[int] = []
    slab = 1024  # chunks looked at together, so that no array of the memory's size is made
    for first in range(0, whole, slab):
        last = min(first + slab, whole)
        words = data[first * CHUNK_BYTES : last * CHUNK_BYTES].view(np.uint64).reshape(last - first, -1)
        found += (np.flatnonzero(words.max(axis=1)) + first).tolist()
    if data[whole * CHUNK_BYTES :].any():
        found.append(whole)
    return found


def plain(value: Any) -> Any:
    """An attribute as JSON has it; numbers that JSON lacks as text."""
    if isinstance(value, float) and not np.isfinite(value):
        return repr(value)
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value
