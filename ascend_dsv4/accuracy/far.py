# SPDX-License-Identifier: Apache-2.0
"""Caches of more than 2^31 elements in a few pages of memory: a mapping that is touched only where a case has blocks.

A kernel that counts elements or bytes in 32 bits finds zeros in place of the blocks, or writes somewhere else.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ascend_dsv4.errors import CapacityError
from ascend_dsv4.ops.cases import FarBlocks

Arguments = dict[str, Tensor | None]
"""Tensors of a call by argument name, in contract order."""

NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
"""Python names this flag from 3.13 on. Without it a system may refuse a mapping larger than its memory."""


class StrayWriteError(ValueError):
    """A cache was written outside the blocks of the call."""


def untouched(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros without memory behind them: a page is allocated when it is first written, and freed with the tensor.

    Raises CapacityError where the system has no room for the addresses.
    """
    size = math.prod(shape) * dtype.itemsize
    try:
        room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    except (OSError, ValueError, OverflowError) as error:
        raise CapacityError(
            f"far cache of {list(shape)} in {dtype}: no mapping of {size:,} bytes ({error}); expected address space for it, "
            "because its blocks lie past 2^31 elements, though only a few pages are ever used. Raise the limit (ulimit -v) or "
            "leave out the cases called far."
        ) from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        room.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page per block would be 2 MiB instead of 4 KiB
    return torch.frombuffer(room, dtype=dtype).view(*shape)


def far_arguments(places: Mapping[str, FarBlocks], tensors: Arguments) -> Arguments:
    """The same call with these caches far apart, and the tables and slots that point into them renumbered.

    places   cache argument → where its blocks lie: `CaseInputs.far`
    tensors  the call with small caches; all others are shared with the result
    """
    far = {**tensors, **renumbered(places, tensors, tensors)}
    for name, place in places.items():
        small = _present(tensors, name)
        cache = untouched((place.num_blocks, *small.shape[1:]), small.dtype)
        cache[torch.from_numpy(place.ids)] = small
        far[name] = cache
    return far


def renumbered(places: Mapping[str, FarBlocks], caches: Arguments, given: Arguments) -> Arguments:
    """`given` with tables and slots that point to the far blocks; `caches` holds the small caches."""
    result = dict(given)
    for name, place in places.items():
        ids, block_rows = torch.from_numpy(place.ids), _present(caches, name).shape[1]
        for arg in place.tables:
            if (table := given.get(arg)) is not None:
                result[arg] = torch.where(table < 0, -1, ids[table.clamp(min=0).long()]).to(table.dtype)
        for arg in place.slots:
            if (slots := given.get(arg)) is not None:
                far = ids[slots.clamp(min=0).long() // block_rows] * block_rows + slots % block_rows
                result[arg] = torch.where(slots < 0, -1, far).to(slots.dtype)
    return result


def gather_back(place: FarBlocks, cache: Tensor) -> Tensor:
    """The blocks of a far cache side by side again, as the case holds them."""
    return cache[torch.from_numpy(place.ids)]


def check_strays(where: str, place: FarBlocks, cache: Tensor | None) -> None:
    """Raise StrayWriteError where a block beside those of the call is no longer zero, or one that wrapped offsets lead to."""
    found = [] if cache is None else stray_blocks(place, cache)
    if found:
        raise StrayWriteError(
            f"{where}: blocks {found} were written, expected zeros there, because only {np.sort(place.ids).tolist()} "
            "belong to the call. Offsets that wrap around at 2^31 or 2^32 lead there: compute them in 64 bits."
        )


def stray_blocks(place: FarBlocks, cache: Tensor) -> list[int]:
    """Blocks that were written without being the call's, of those that a wrapped offset or an index off by one leads to."""
    elements = math.prod(cache.shape[1:])
    suspects = {int(block) + beside for block in place.ids for beside in (-1, 1)}
    for block in place.ids.tolist():
        for first in wrapped_offsets(block * elements, cache.numel(), cache.dtype.itemsize):
            suspects |= {first // elements, first // elements + 1}
    suspects = {block for block in suspects if 0 <= block < place.num_blocks} - set(place.ids.tolist())
    index = torch.tensor(sorted(suspects), dtype=torch.long)
    written = (cache[index] != 0).flatten(1).any(1)  # NaN is not 0 either
    return index[written].tolist()


def wrapped_offsets(offset: int, size: int, item_bytes: int) -> list[int]:
    """Where an element's number ends up, in elements, if it or its bytes are counted in too few bits; modulo the size."""
    wrapped = []
    for bits in (31, 32):
        wrapped.append(offset % (1 << bits))
        wrapped.append(offset * item_bytes % (1 << bits) // item_bytes)
    for unit in (1, item_bytes):  # signed numbers come out negative, and count from the end
        signed = (offset * unit + (1 << 31)) % (1 << 32) - (1 << 31)
        wrapped.append(signed // unit)
    return [number % size for number in wrapped]


def _present(tensors: Arguments, name: str) -> Tensor:
    tensor = tensors[name]
    assert tensor is not None, f"{name}: a cache of the case is missing"
    return tensor
