# SPDX-License-Identifier: Apache-2.0
"""What an Ascend C kernel does in the CPU twin, counted, and an estimate of the time that takes on a device.

    python tools/profile_kernel.py --op sparse_attention --device 910c
    python tools/profile_kernel.py --op hc_post --shape tokens=512,hidden=7168 --device 910b --json

The kernel runs once through its `ascendc-twin` wrapper, on all cores of the device, on random inputs. Without --shape they are
those of a decode step of V4-Flash: 8 sequences of 131,072 tokens, or 64 tokens where no cache is involved.

This is an ESTIMATE. The counts are exact; the rates they are divided by are partly round assumptions, which are printed.
Nothing of it was measured on a device. Devices: 910b (20 cube and 40 vector cores), 910c (one die, 24 and 48), or a part.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ascend_dsv4.ops.registry import get_implementation, get_spec
from ascend_dsv4.twin.kernel_library import kernel_library, settings
from ascend_dsv4.twin.profile import ALIASES, DEVICES, Device, Estimate, Launch, Rates, device, estimate, profile

NOTE = "An estimate from exact counts and assumed rates; nothing was measured on a device."
Sizes = dict[str, int]
Call = tuple[list[Tensor | None], list[Any]]
"""Tensors of a call in contract order, then its attributes."""


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _hc_pre(size: Sizes, dtype: torch.dtype) -> Call:
    hc, hidden = size["hc"], size["hidden"]
    count = (2 + hc) * hc
    streams = _random(size["tokens"], hc, hidden, dtype=dtype)
    return [streams, _random(count, hc * hidden) * 0.01, _random(count), torch.ones(3), None], [20, 1e-6, 1e-6]


def _hc_post(size: Sizes, dtype: torch.dtype) -> Call:
    tokens, hc, hidden = size["tokens"], size["hc"], size["hidden"]
    mixing = [torch.rand(tokens, hc), torch.rand(tokens, hc, hc)]
    return [_random(tokens, hidden, dtype=dtype), _random(tokens, hc, hidden, dtype=dtype), *mixing], []


def _route(size: Sizes, dtype: torch.dtype) -> Call:
    tokens, experts = size["tokens"], size["experts"]
    ids = torch.arange(tokens, dtype=torch.int32)
    tensors = [_random(tokens, experts), _random(experts) * 0.1, None, ids, None, None]
    return tensors, [size["topk"], "sqrtsoftplus", True, 1.5, 0.0, 1, 1]


def _choices(size: Sizes) -> Tensor:
    """Experts of each token, all different, [tokens, topk] int32."""
    return _random(size["tokens"], size["experts"]).topk(size["topk"]).indices.int()


def _moe_dispatch(size: Sizes, dtype: torch.dtype) -> Call:
    x = _random(size["tokens"], size["hidden"], dtype=dtype)
    return [x, _choices(size), torch.rand(size["tokens"], size["topk"])], [size["experts"]]


def _moe_combine(size: Sizes, dtype: torch.dtype) -> Call:
    pairs = size["tokens"] * size["topk"]
    row_of = torch.randperm(pairs, generator=torch.Generator().manual_seed(0)).int()
    return [_random(pairs, size["hidden"], dtype=dtype), row_of.reshape(size["tokens"], size["topk"])], []


def _paged(size: Sizes, rows: int) -> Tensor:
    """Blocks of each sequence for so many rows, [seqs, blocks] int32, in mixed order."""
    blocks = -(-rows // size["block_rows"])
    order = torch.randperm(size["seqs"] * blocks, generator=torch.Generator().manual_seed(1)).int()
    return order.reshape(size["seqs"], blocks)


def _decode(size: Sizes) -> tuple[Tensor, Tensor]:
    """Position and sequence of one token per sequence, at the end of the context."""
    return torch.full((size["seqs"],), size["context"] - 1, dtype=torch.int32), torch.arange(size["seqs"], dtype=torch.int32)


def _index_topk(size: Sizes, dtype: torch.dtype) -> Call:
    seqs, heads, dim = size["seqs"], size["heads"], size["dim"]
    table = _paged(size, size["context"] // size["ratio"])
    cache = _random(table.numel(), size["block_rows"], dim, dtype=dtype)
    q, weights = _random(seqs, heads, dim, dtype=dtype, seed=2), _random(seqs, heads, seed=3).to(dtype)
    return [q, weights, cache, *_decode(size), table, None], [size["ratio"], size["topk"], "none", 128, 0]


def _sparse_attention(size: Sizes, dtype: torch.dtype) -> Call:
    seqs, heads, dim, window = size["seqs"], size["heads"], size["dim"], size["window"]
    entries_of, rows = size["context"] // size["ratio"], size["block_rows"]
    table = _paged(size, entries_of)
    columns = -(-window // rows) + 1
    window_table = torch.arange(seqs * columns, dtype=torch.int32).reshape(seqs, columns)
    caches = [_random(count, rows, dim, dtype=dtype, seed=4) for count in (seqs * columns, table.numel())]
    chosen = [torch.randperm(entries_of, generator=torch.Generator().manual_seed(s))[: size["topk"]] for s in range(seqs)]
    entries = torch.stack(chosen).sort().values.int() if size["topk"] else None
    q = _random(seqs, heads, dim, dtype=dtype)
    return [q, *caches, entries, _random(heads), *_decode(size), window_table, table], [window, size["ratio"], dim**-0.5]


def _compress_kv(size: Sizes, dtype: torch.dtype) -> Call:
    seqs, dim, ratio = size["seqs"], size["dim"], size["ratio"]
    width, half = dim * (2 if size["overlap"] else 1), size["rotary"] // 2
    positions, req_idx = _decode(size)
    cache = torch.zeros(-(-seqs // size["block_rows"]), size["block_rows"], dim, dtype=dtype)
    state = _random(seqs, width // dim * ratio + 1, 2, width)
    token = [_random(seqs, width), _random(seqs, width), _random(ratio, width) * 0.1, torch.ones(dim, dtype=dtype)]
    angles = torch.rand(seqs, half)
    closes = (positions + 1) % ratio == 0
    slots = torch.where(closes, req_idx, -1).int()
    where = [positions, req_idx, torch.arange(seqs + 1, dtype=torch.int32), torch.arange(seqs, dtype=torch.int32), slots]
    entry = str(dtype).removeprefix("torch.")
    return [cache, state, *token, angles.cos(), angles.sin(), *where], [ratio, 1e-6, "none", entry]


TOKENS, PAGES = {"tokens": 64}, {"seqs": 8, "context": 131072, "ratio": 4, "block_rows": 128}
MAKERS: dict[str, tuple[Callable[[Sizes, torch.dtype], Call], Sizes]] = {
    "hc_pre": (_hc_pre, {**TOKENS, "hc": 4, "hidden": 4096}),
    "hc_post": (_hc_post, {**TOKENS, "hc": 4, "hidden": 4096}),
    "route": (_route, {**TOKENS, "experts": 256, "topk": 6}),
    "moe_dispatch": (_moe_dispatch, {**TOKENS, "hidden": 4096, "experts": 256, "topk": 6}),
    "moe_combine": (_moe_combine, {**TOKENS, "hidden": 4096, "topk": 6}),
    "index_topk": (_index_topk, {**PAGES, "heads": 64, "dim": 128, "topk": 512}),
    "sparse_attention": (_sparse_attention, {**PAGES, "heads": 64, "dim": 512, "topk": 512, "window": 128}),
    "compress_kv": (_compress_kv, {**PAGES, "dim": 512, "rotary": 64, "overlap": 1}),
}
"""Input maker of each operator and the sizes it takes, with their defaults."""


def shape(op: str, text: str) -> Sizes:
    """Sizes of a call from `key=value,...`. Raises ValueError for a key the operator lacks."""
    sizes = dict(MAKERS[op][1])
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in sizes or not value.isdecimal():
            raise ValueError(f"--shape: got {part!r}, expected key=number with a key of {', '.join(sizes)}")
        sizes[key] = int(value)
    return sizes


def run(op: str, sizes: Sizes, dtype: torch.dtype, target: Device) -> tuple[tuple[Launch, ...], float]:
    """Launches of one call on all cores of the device, and the seconds the twin took."""
    tensors, attrs = MAKERS[op][0](sizes, dtype)
    kernel = get_implementation(op, "ascendc-twin")
    kernel_library()  # built outside the time
    start = time.perf_counter()
    with settings(vector_cores=target.vector_cores), profile() as counted:
        kernel(*tensors, **dict(zip(get_spec(op).attrs, attrs, strict=True)))
    return counted.launches, time.perf_counter() - start


def _document(launch: Launch, told: Estimate) -> dict[str, Any]:
    events = {name: launch.event(name) for name in launch.cores[0].events}
    vector_cores = sum(core.vector_core for core in launch.cores)
    return {
        "kernel": launch.kernel,
        "cores": {"cube": len(launch.cores) - vector_cores, "vector": vector_cores},
        "moved": {path: launch.moved(path) for path in launch.cores[0].moved},
        "ranges": [asdict(one) for one in launch.ranges],
        "vector": [asdict(count) for count in launch.vector()],
        "macs": launch.macs(),
        "events": events,
        "estimate": {**asdict(told), "share_of_roofline": told.share},
    }  # fmt: skip


def _tables(console: Console, launch: Launch, told: Estimate, target: Device) -> None:
    cores = sum(core.vector_core for core in launch.cores)
    table = Table("count", "all cores", title=f"{launch.kernel}: {len(launch.cores) - cores} cube, {cores} vector cores")
    paths = {path.replace("_", " "): moved for path in launch.cores[0].moved if (moved := launch.moved(path))}
    rows: Mapping[str, str] = {
        **{f"bytes {path}": f"{moved:,}" for path, moved in paths.items()},
        **{f"bytes of '{one.name}' touched": f"{one.distinct:,} of {one.bytes:,}" for one in launch.ranges},
        **{f"MACs {kind}": f"{macs:,}" for kind, macs in launch.macs().items() if macs},
        **{
            f"{count.name}{f' of {8 * count.width} bits' if count.width else ''}":
            f"{count.instructions:,} instructions, {count.repeats:,} repeats" for count in launch.vector()
        },
        **{name.replace("_", " "): f"{number:,}" for name in launch.cores[0].events if (number := launch.event(name))},
    }  # fmt: skip
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    table = Table("pipe", "cycles of the busiest core", "µs", title=f"estimate for {target.name}")
    for pipe, cycles in sorted(told.cycles.items(), key=lambda item: -item[1]):
        if cycles:
            table.add_row(pipe, f"{cycles:,.0f}", f"{target.seconds(cycles) * 1e6:.2f}")
    console.print(table)
    console.print(
        f"{told.seconds * 1e6:.2f} µs, bounded by {told.bound}; ideal {told.ideal_seconds * 1e6:.2f} µs: "
        f"{told.share:.0%} of the roofline"
    )


def main(arguments: list[str] | None = None) -> int:
    sizes_of = "\n".join(f"  {op:17} {','.join(f'{key}={value}' for key, value in MAKERS[op][1].items())}" for op in MAKERS)
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"sizes of --shape and their defaults:\n{sizes_of}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--op", required=True, choices=MAKERS)
    parser.add_argument("--shape", default="", help="key=value,... in place of some of the defaults below")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--device", default="910b", choices=(*ALIASES, *DEVICES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        sizes = shape(options.op, options.shape)
    except ValueError as error:
        parser.error(str(error))
    target, rates = device(options.device), Rates()
    launches, seconds = run(options.op, sizes, getattr(torch, options.dtype), target)
    told = [estimate(launch, target, rates) for launch in launches]
    if options.json:
        document = {
            "note": NOTE, "op": options.op, "shape": sizes, "dtype": options.dtype, "device": asdict(target),
            "assumptions": rates.lines(), "twin_seconds": seconds,
            "launches": [_document(launch, one) for launch, one in zip(launches, told, strict=True)],
        }  # fmt: skip
        print(json.dumps(document, indent=1))
        return 0
    console = Console()
    console.print(f"{options.op} {','.join(f'{key}={value}' for key, value in sizes.items())} {options.dtype}")
    for launch, one in zip(launches, told, strict=True):
        _tables(console, launch, one, target)
    console.print(f"the twin took {seconds:.1f} s. {NOTE} Assumed:")
    for line in rates.lines():
        console.print(f"  {line}", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
