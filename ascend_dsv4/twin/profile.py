# SPDX-License-Identifier: Apache-2.0
"""What kernels did in the twin, and an estimate of the time that would take on a device.

The counts are exact: the twin sees every access. The estimate is not a measurement: it divides counts by rates, of which only
core counts, clocks and the bandwidth of device memory come from a table; the others are the round figures in `Rates`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ascend_dsv4.twin.kernel_library import KernelLibrary, kernel_library

MACS_PER_CYCLE = {"int8": 8192, "16-bit float": 4096, "float32": 1024}
"""Of one cube core."""
SLOW_VECTOR = frozenset({"Div", "Exp", "Ln", "Sqrt", "Rsqrt", "Reciprocal", "Sort32", "MrgSort", "Gather"})


@dataclass(frozen=True)
class Device:
    """One die, as the platform tables of CANN have it."""

    name: str
    cube_cores: int
    vector_cores: int
    mhz: int
    hbm_bytes_per_second: float = 1.6e12

    def seconds(self, cycles: float) -> float:
        return cycles / (self.mhz * 1e6)


DEVICES = {
    device.name: device
    for device in (
        Device("910b1", 24, 48, 1850),
        Device("910b2", 24, 48, 1800),
        Device("910b3", 20, 40, 1800),
        Device("910b4", 20, 40, 1500),
        Device("910c-9392", 24, 48, 1850),
        Device("910c-9382", 24, 48, 1800),
        Device("910c-9372", 20, 40, 1800),
        Device("910c-9362", 20, 40, 1500),
    )
}
ALIASES = {"910b": "910b3", "910c": "910c-9392"}


def device(name: str) -> Device:
    """A device by name; 910b and 910c stand for a common part. Raises KeyError."""
    return DEVICES[ALIASES.get(name, name)]


@dataclass(frozen=True)
class Rates:
    """What the estimate assumes of a core, in cycles and bytes per cycle. Nobody has measured these."""

    dma_bytes: float = 64
    """Between global memory and UB or L1, one direction."""
    dma_start: float = 64
    """A copy instruction before its first byte."""
    dma_row: float = 8
    """Each further row of a copy with strides."""
    l2_times_hbm: float = 4
    """Global memory that was touched before is taken to come from L2, at this multiple of the bandwidth of device memory."""
    l0a_bytes: float = 256
    l0b_bytes: float = 128
    l0c_bytes: float = 128
    vector_start: float = 12
    """A vector instruction beside its repeats, which take a cycle each."""
    slow_vector: float = 4
    """Cycles of a repeat of the instructions in SLOW_VECTOR."""
    product_start: float = 32
    scalar: float = 10
    """GetValue and SetValue in local memory."""
    scalar_global: float = 200
    flag: float = 10
    """SetFlag, WaitFlag, PipeBarrier, on the scalar unit."""
    cross_core: float = 200
    sync_all: float = 2000
    latency: float = 1000
    """Of the first bytes in and the last bytes out together, once a launch."""

    def lines(self) -> list[str]:
        """The assumptions in words."""
        slow = ", ".join(sorted(SLOW_VECTOR))
        return [
            f"copies: {self.dma_bytes:g} B/cycle per core and direction, {self.dma_start:g} cycles an instruction, "
            f"{self.dma_row:g} a further row; L2 moves {self.l2_times_hbm:g} times what device memory does",
            f"L1 to L0A {self.l0a_bytes:g}, to L0B {self.l0b_bytes:g}, L0C to global memory {self.l0c_bytes:g} B/cycle",
            f"cube: {MACS_PER_CYCLE['16-bit float']} MACs a cycle for 16-bit floats, twice that for int8, a quarter for "
            f"float32; {self.product_start:g} cycles an Mmad",
            f"vector: a cycle per repeat of 256 bytes ({self.slow_vector:g} for {slow}), {self.vector_start:g} an instruction",
            f"scalar: {self.scalar:g} cycles a local access, {self.scalar_global:g} a global one, {self.flag:g} a flag or "
            f"barrier, {self.cross_core:g} a cross-core flag, {self.sync_all:g} a SyncAll",
            f"pipes of a core overlap without gaps, and so do cores, but for {self.latency:g} cycles until the first bytes are "
            "in and the last are out; the start of the kernel on the device is left out",
        ]


@dataclass(frozen=True)
class Moved:
    """Copies on one path: instructions, rows of them, bytes."""

    instructions: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class Vector:
    """One kind of vector instruction on elements of `width` bytes, 0 where that is not known."""

    name: str
    width: int
    instructions: int
    repeats: int


@dataclass(frozen=True)
class Core:
    """Counts of one core of a launch."""

    vector_core: bool
    moved: Mapping[str, Moved]
    events: Mapping[str, int]
    macs: Mapping[str, int]
    """By element type, what pads m, n and k included."""
    products: int
    vector: tuple[Vector, ...]


@dataclass(frozen=True)
class Range:
    """A tensor or workspace in global memory: bytes there are, bytes moved, bytes of the 32-byte blocks that were touched."""

    name: str
    kind: str
    bytes: int
    read: int
    written: int
    distinct: int


@dataclass(frozen=True)
class Launch:
    """Counts of one launch of a kernel."""

    kernel: str
    ranges: tuple[Range, ...]
    cores: tuple[Core, ...]

    def moved(self, path: str) -> int:
        """Bytes that all cores moved on a path."""
        return sum(core.moved[path].bytes for core in self.cores)

    def event(self, name: str) -> int:
        return sum(core.events[name] for core in self.cores)

    def macs(self) -> dict[str, int]:
        return {kind: sum(core.macs[kind] for core in self.cores) for kind in MACS_PER_CYCLE}

    def vector(self) -> list[Vector]:
        """Vector instructions of all cores, most repeats first."""
        sums: dict[tuple[str, int], list[int]] = {}
        for count in (count for core in self.cores for count in core.vector):
            entry = sums.setdefault((count.name, count.width), [0, 0])
            entry[0] += count.instructions
            entry[1] += count.repeats
        return sorted((Vector(*key, *entry) for key, entry in sums.items()), key=lambda count: -count.repeats)


@dataclass
class Profile:
    """Launches of a `with profile()` block, known at its end."""

    launches: tuple[Launch, ...] = field(default_factory=tuple)


@contextmanager
def profile(library: KernelLibrary | None = None) -> Iterator[Profile]:
    """Count what kernels do inside a block."""
    library = library or kernel_library()
    result = Profile()
    library.count(True)
    try:
        yield result
        result.launches = read(json.loads(library.counted()))
    finally:
        library.count(False)


def read(document: list[dict[str, Any]]) -> tuple[Launch, ...]:
    """The twin's counts: `twin_profile_json`."""
    return tuple(
        Launch(
            launch["kernel"],
            tuple(Range(**one) for one in launch["ranges"]),
            tuple(
                Core(
                    core["vector_core"],
                    {path: Moved(**moved) for path, moved in core["moved"].items()},
                    core["events"],
                    core["macs"],
                    core["products"],
                    tuple(Vector(**count) for count in core["vector"]),
                )
                for core in launch["cores"]
            ),
        )
        for launch in document
    )


@dataclass(frozen=True)
class Estimate:
    """Time of one launch on a device, from counts.

    cycles        by pipe, of the core whose pipe is busiest; "HBM" and "L2" are shared by all cores, in cycles of a core
    bound         the pipe that takes longest
    ideal_seconds bytes that must move once at the bandwidth of device memory, or products at the peak of all cube cores
    share         ideal_seconds / seconds: the share of the roofline
    """

    kernel: str
    cycles: Mapping[str, float]
    bound: str
    seconds: float
    ideal_seconds: float

    @property
    def share(self) -> float:
        return self.ideal_seconds / self.seconds if self.seconds else 0.0


def pipe_cycles(core: Core, rates: Rates) -> dict[str, float]:
    """Cycles that each pipe of a core is busy, SyncAll left out."""

    def copies(path: str, width: float) -> float:
        moved = core.moved[path]
        return moved.bytes / width + moved.instructions * rates.dma_start + (moved.rows - moved.instructions) * rates.dma_row

    vector = sum(
        count.instructions * rates.vector_start + count.repeats * (rates.slow_vector if count.name in SLOW_VECTOR else 1)
        for count in core.vector
    )
    events = core.events
    flags = events["set_flag"] + events["wait_flag"] + events["pipe_barrier"]
    cross = events["cross_core_set"] + events["cross_core_wait"]
    scalar = events["scalar_local"] * rates.scalar + events["scalar_global"] * rates.scalar_global
    return {
        "MTE2": copies("gm_to_ub", rates.dma_bytes) + copies("gm_to_l1", rates.dma_bytes),
        "MTE3": copies("ub_to_gm", rates.dma_bytes) + copies("l1_to_gm", rates.dma_bytes),
        "MTE1": core.moved["l1_to_l0a"].bytes / rates.l0a_bytes + core.moved["l1_to_l0b"].bytes / rates.l0b_bytes,
        "M": sum(macs / MACS_PER_CYCLE[kind] for kind, macs in core.macs.items()) + core.products * rates.product_start,
        "FIX": copies("l0c_to_gm", rates.l0c_bytes),
        "V": vector,
        "S": scalar + flags * rates.flag + cross * rates.cross_core,
    }


def estimate(launch: Launch, target: Device, rates: Rates | None = None) -> Estimate:
    """Time of a launch on a device. Pipes are taken to overlap, so the busiest one decides; waits come on top."""
    rates = rates or Rates()
    busy = [pipe_cycles(core, rates) for core in launch.cores]
    cycles = {pipe: max(core[pipe] for core in busy) for pipe in busy[0]}
    per_cycle = target.hbm_bytes_per_second / (target.mhz * 1e6)
    once = sum(min(one.read, one.distinct) + min(one.written, one.distinct) for one in launch.ranges if one.kind != "workspace")
    cycles["HBM"] = once / per_cycle
    cycles["L2"] = sum(one.read + one.written for one in launch.ranges) / (per_cycle * rates.l2_times_hbm)
    bound = max(cycles, key=lambda pipe: cycles[pipe])
    waits = max(core.events["sync_all"] for core in launch.cores) * rates.sync_all
    ideal = max(
        once / target.hbm_bytes_per_second,
        target.seconds(sum(macs / MACS_PER_CYCLE[kind] for kind, macs in launch.macs().items()) / target.cube_cores),
    )
    return Estimate(launch.kernel, cycles, bound, target.seconds(cycles[bound] + waits + rates.latency), ideal)
