# SPDX-License-Identifier: Apache-2.0
"""One safetensors file: header checked in full, data mapped lazily and never copied. numpy only."""

from __future__ import annotations

import json
import math
import mmap
import os
import reprlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_LENGTH_BYTES = 8
_REPR = reprlib.Repr()  # shows hostile values shortened
_REPR.maxstring = 200
_MAX_DIMS = 32
_MAX_SIZE = 2**59  # elements; times the widest element still an int64
# mmap gained the name in Python 3.13; the value is the same on x86-64 and aarch64. 0 where there is no such flag.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

# Storage dtype name -> numpy dtype of `array`. numpy has no bfloat16 and no float8: their bits are unsigned integers.
NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        name: np.dtype(code)
        for name, code in {
            "BOOL": "?",
            "U8": "u1",
            "I8": "i1",
            "F8_E4M3": "u1",
            "F8_E5M2": "u1",
            "F8_E8M0": "u1",
            "I16": "<i2",
            "U16": "<u2",
            "F16": "<f2",
            "BF16": "<u2",
            "I32": "<i4",
            "U32": "<u4",
            "F32": "<f4",
            "I64": "<i8",
            "U64": "<u8",
            "F64": "<f8",
        }.items()
    }
)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies. dtype is the safetensors name; offset counts bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class SafetensorsFile:
    """A safetensors file whose header has been checked. Construction reads the header only.

    path     the file
    tensors  name -> TensorEntry, in file order of the data
    raises   CheckpointError if the header is damaged or does not describe the file's bytes exactly
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.num_bytes, header, data_start = _read_header(self.path)
        tensors = {name: _parse_entry(self.path, name, raw, data_start) for name, raw in header.items()}
        _check_coverage(self.path, tensors, data_start, self.num_bytes)
        self.tensors: Mapping[str, TensorEntry] = MappingProxyType(tensors)

    def bytes(self, name: str) -> NDArray[np.uint8]:
        """uint8 [num_bytes], a view of the mapped file. Writing to it changes private memory, never the file."""
        return self.read_bytes(self.tensors[name])

    def array(self, name: str) -> NDArray[Any]:
        """The tensor under its numpy dtype (BF16 as uint16 bits, F8_* as uint8), a view of the mapped file."""
        return self.read(self.tensors[name])

    def read_bytes(self, entry: TensorEntry) -> NDArray[np.uint8]:
        """Bytes of an entry, which may be a part of a stored tensor. uint8 [num_bytes], a view of the mapped file."""
        return self._mapped[entry.offset : entry.offset + entry.num_bytes]

    def read(self, entry: TensorEntry) -> NDArray[Any]:
        """Array of an entry, which may be a part of a stored tensor. A view; a copy if the file does not align it."""
        dtype = NUMPY_DTYPES[entry.dtype]
        array = self.read_bytes(entry).view(dtype).reshape(entry.shape)
        return array if array.flags.aligned else array.copy()

    @cached_property
    def _mapped(self) -> NDArray[np.uint8]:
        if self.num_bytes == 0:
            return np.empty(0, dtype=np.uint8)
        # Private and writable, so that torch takes the views without a copy and cannot reach the file. NORESERVE,
        # because Linux otherwise refuses a private writable mapping larger than memory, and shards of 100 GB exist.
        with self.path.open("rb") as file:
            flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
            mapped = mmap.mmap(file.fileno(), self.num_bytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        return np.frombuffer(mapped, dtype=np.uint8)


def load_json(text: bytes, where: str) -> Any:
    """Parse JSON of an untrusted file; duplicate keys, bad UTF-8 and absurd nesting are a CheckpointError."""

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise CheckpointError(
                    f"{where}: the key {_REPR.repr(key)} occurs twice, expected once, because the two could "
                    "differ. Download the file again."
                )
            result[key] = value
        return result

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: not valid JSON ({type(error).__name__}: {error}), expected a JSON object, because it describes "
            "the tensors. Download the file again."
        ) from error


def _read_header(path: Path) -> tuple[int, dict[str, Any], int]:
    """(file size, name -> raw entry, offset of the data)."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(_LENGTH_BYTES)
            length = int.from_bytes(prefix, "little")
            _check_header_length(path, size, prefix, length)
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}), expected a safetensors file. Check the path and its permissions."
        ) from error
    header = load_json(text, f"header of {path}")
    if not isinstance(header, dict):
        raise CheckpointError(
            f"header of {path}: got a JSON {type(header).__name__}, expected an object, because it maps tensor names "
            "to their place. Download the file again."
        )
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(
            f"header of {path}: __metadata__ is not a map of strings, as the format demands. Download the file again."
        )
    return size, header, _LENGTH_BYTES + length


def _check_header_length(path: Path, size: int, prefix: bytes, length: int) -> None:
    if len(prefix) == _LENGTH_BYTES and length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: the header claims {length:,} bytes, expected at most {MAX_HEADER_BYTES:,}, because larger "
            "headers are refused by the format. The file is damaged or not safetensors; download it again."
        )
    needed = _LENGTH_BYTES + length if len(prefix) == _LENGTH_BYTES else _LENGTH_BYTES
    if size < needed:
        raise _truncated(path, size, needed, "already its header is cut off")


def _truncated(path: Path, size: int, needed: int, because: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: truncated: got {size:,} bytes, expected {needed:,}, {needed - size:,} bytes are missing, because "
        f"{because}. Download this shard again."
    )


def _parse_entry(path: Path, name: str, raw: Any, data_start: int) -> TensorEntry:
    if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
        raise _bad_entry(path, name, _REPR.repr(raw), "an object with dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in NUMPY_DTYPES:
        raise _bad_entry(path, name, f"dtype {_REPR.repr(dtype)}", f"one of {', '.join(NUMPY_DTYPES)}")
    if not _is_size_list(shape) or _num_elements(shape) > _MAX_SIZE:
        raise _bad_entry(
            path,
            name,
            f"shape {_REPR.repr(shape)}",
            f"at most {_MAX_DIMS} sizes of 0 or more with a product up to 2^59",
        )
    if not _is_size_list(offsets) or len(offsets) != 2:
        raise _bad_entry(path, name, f"data_offsets {_REPR.repr(offsets)}", "two offsets from 0 to 2^59")
    begin, end = offsets
    needed = math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
    if end - begin != needed:
        got = f"data_offsets {offsets}, a span of {end - begin:,} bytes"
        raise _bad_entry(path, name, got, f"{needed:,} bytes for shape {shape} of {dtype}")
    return TensorEntry(dtype, tuple(shape), data_start + begin, needed)


def _bad_entry(path: Path, name: str, got: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: tensor {_REPR.repr(name)}: got {got}, expected {expected}, because the place and size of a tensor "
        "must be certain before it is read. Download this shard again."
    )


def _is_size_list(value: Any) -> bool:
    # bool is an int in Python, but `true` is no size. The bounds keep hostile products short.
    return (
        isinstance(value, list)
        and len(value) <= _MAX_DIMS
        and all(type(item) is int and 0 <= item <= _MAX_SIZE for item in value)
    )


def _num_elements(shape: list[int]) -> int:
    """Product of the sizes that are not zero: numpy refuses to index more even where the array is empty."""
    return math.prod(size for size in shape if size)


def _check_coverage(path: Path, tensors: Mapping[str, TensorEntry], data_start: int, size: int) -> None:
    """The data must be covered from its first to its last byte, each byte by one tensor."""
    position = data_start
    previous = "the header"
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if entry.offset != position:
            kind = "overlaps" if entry.offset < position else "leaves a hole after"
            raise CheckpointError(
                f"{path}: tensor {_REPR.repr(name)} {kind} {previous}: it starts at byte {entry.offset:,}, expected "
                f"{position:,}, because tensors must lie back to back. Download this shard again."
            )
        position += entry.num_bytes
        previous = name if len(name) < 200 else "a tensor"
    if size < position:
        raise _truncated(path, size, position, "its header describes that many")
    if size > position:
        raise CheckpointError(
            f"{path}: got {size:,} bytes, expected {position:,}, {size - position:,} bytes at the end belong to no "
            "tensor, because tensors must cover the file. Download this shard again."
        )
