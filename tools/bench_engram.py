# SPDX-License-Identifier: Apache-2.0
"""What Engram rows on disk or in host memory cost a step, against rows that are at hand. Needs no checkpoint.

    python tools/bench_engram.py --folder DIR --gigabytes 8 --json

Writes two synthetic tables of V4.1 rows (24 rows of 264 bytes per token and layer) into DIR and removes them at the end. A
step is 40 slices of real matrix products; the rows of two layers are needed after the first and after the fourteenth slice,
as in the model. Rows are uniformly random, the worst case: no row repeats, so no cache helps. Ways to get them:

    resident   copied from memory where they are needed, as a table in device memory would be read
    sync       read before the step begins, while nothing computes
    same-step  asked for when the step begins (decoding: the last token has just been sampled)
    ahead      asked for one step earlier (prompts, and drafts to verify)

Before each timed run on disk the pages of the tables are dropped. Runs of all kinds alternate, so that a busy machine slows
all of them alike: each stands between two resident runs, which it is held against. Figures are medians. On a
busy machine trust the share of a step spent waiting for rows, and the time on the cores, more than the overhead.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import mmap
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.engram.hashing import EngramHash
from ascend_dsv4.engram.rows import decode_rows
from ascend_dsv4.engram.store import EngramStore, EngramTier, HostTable, PreadFile
from ascend_dsv4.engram.table_file import TableHeader, TableWriter

HEAD_DIM, ROW_BYTES, COLUMNS = 256, 264, 24
LAYERS = (1, 14)
HIDDEN, INTERMEDIATE, SLICES = 5120, 2304, 40
NUM_COMPRESSED = 99_092
CHUNK_ROWS = 1 << 16
MODES = {"memory": ("resident", "sync", "same-step", "ahead"), "disk": ("sync", "same-step", "ahead")}
MAX_RESIDENT_SHARE = 0.01
MAX_PROCESS_BYTES = 2 << 30
RANDOM_TOKENS = np.arange(NUM_COMPRESSED, dtype=np.int32)
"""A token map that changes nothing: tokens are drawn as compressed ids."""


def make_hash(gigabytes: float) -> EngramHash:
    """Columns of such a size that both tables together have about that many bytes."""
    per_column = int(gigabytes * 1e9 / (len(LAYERS) * COLUMNS * ROW_BYTES))
    return EngramHash.make(
        layer_ids=LAYERS, max_ngram_size=4, num_heads=8, vocab_size=per_column, num_compressed=NUM_COMPRESSED, pad=2
    )


def table_rows(layer: int, num_rows: int) -> Iterator[NDArray[np.uint8]]:
    """Chunks of a table: one random block of valid rows over and over, each row stamped with its number."""
    rng = np.random.default_rng(layer)
    block = rng.integers(0, 127, (CHUNK_ROWS, ROW_BYTES)).astype(np.uint8)
    for start in range(0, num_rows, CHUNK_ROWS):
        rows = block[: num_rows - start].copy()
        rows[:, :8] = np.arange(start, start + len(rows), dtype="<u8").view(np.uint8).reshape(-1, 8) & 0x77
        rows[:, 8:16] = (np.arange(start, start + len(rows), dtype="<u8") * 2654435761).view(np.uint8).reshape(-1, 8) & 0x77
        yield rows


def table_path(folder: str, layer: int) -> Path:
    return Path(folder) / f"engram.layer{layer}.fp8.table"


def write_tables(folder: str, hash: EngramHash) -> float:
    """Write both tables; returns bytes per second."""
    start, written = time.perf_counter(), 0
    for layer, num_rows in zip(LAYERS, hash.num_rows, strict=True):
        header = TableHeader.make(layer=layer, num_rows=num_rows, head_dim=HEAD_DIM, format="fp8")
        written += header.file_bytes
        with TableWriter(table_path(folder, layer), header) as writer:
            for rows in table_rows(layer, num_rows):
                writer.append(rows)
    return written / (time.perf_counter() - start)


def tables_in_memory(hash: EngramHash) -> list[EngramTier]:
    """Both tables, made anew without their files."""
    tables: list[EngramTier] = []
    for layer, num_rows in zip(LAYERS, hash.num_rows, strict=True):
        whole = np.empty((num_rows, ROW_BYTES), dtype=np.uint8)
        for i, rows in enumerate(table_rows(layer, num_rows)):
            whole[i * CHUNK_ROWS : i * CHUNK_ROWS + len(rows)] = rows
        tables.append(HostTable(whole, "fp8", HEAD_DIM))
    return tables


def resident_share(path: Path) -> float:
    """Share of a file's pages that the system holds in memory."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view = np.frombuffer(mapped, dtype=np.uint8)
    pages = np.zeros(-(-len(view) // mmap.PAGESIZE), dtype=np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(view)), ctypes.c_void_p(pages.ctypes.data)):
        raise OSError(ctypes.get_errno(), "mincore failed")
    return float((pages & 1).mean())


def drop_pages(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def process_bytes() -> int:
    """Memory of this process that the system cannot drop: anonymous and shared."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def device_bytes() -> int:
    """Bytes that this process had fetched from block devices so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


@dataclass
class Run:
    """One timed run. Times are medians over its steps; cpu_ms is the time on all cores of the process."""

    step_ms: float
    cpu_ms: float
    wait_ms: float
    hash_ms: float
    device_bytes_per_token: float
    resident_share: float
    process_bytes: int


Pair = tuple[Run, Run, Run]
"""A run between the two resident runs before and after it."""


class Worker:
    """One process: a store over one kind of tier, and something to compute."""

    def __init__(self, kind: str, options: argparse.Namespace) -> None:
        import torch

        torch.set_num_threads(options.threads)
        self.torch, self.kind, self.options = torch, kind, options
        self.hash = make_hash(options.gigabytes)
        self.paths = [table_path(options.folder, layer) for layer in LAYERS] if kind == "disk" else []
        tables = [PreadFile(path, threads=options.read_threads) for path in self.paths] or tables_in_memory(self.hash)
        self.store = EngramStore(tables, self.hash, RANDOM_TOKENS)
        self.weights = [torch.randn(INTERMEDIATE, HIDDEN) for _ in range(8)]
        self.projection = torch.randn(HIDDEN, COLUMNS * HEAD_DIM)
        self.repeat = 1

    def sample(self, seed: int) -> str:
        """Digest of the rows of 2,000 random tokens, read in both ways."""
        ids = self._ids(np.random.default_rng(seed), 2000)
        self.store.prefetch("sample", ids)
        taken = self.store.take("sample", ids)
        assert np.array_equal(taken, self.store.rows(ids))
        return hashlib.sha256(np.ascontiguousarray(taken)).hexdigest()

    def calibrate(self) -> int:
        """Repetitions of a slice's product that make a step of batch 1 last for `--step-ms` at least."""
        self._compute(1, lambda index: None)
        start = time.perf_counter()
        self._compute(1, lambda index: None)
        return max(1, int(np.ceil(self.options.step_ms / 1000 / (time.perf_counter() - start))))

    def run(self, mode: str, batch: int, seed: int) -> Run:
        """`--steps` steps, and one before them that is not counted."""
        rng = np.random.default_rng(seed)
        for path in self.paths:
            drop_pages(path)
        share = max((resident_share(path) for path in self.paths), default=0.0)
        times, cpu_times, waits, hashes = [], [], [], []
        ids, before = self._ids(rng, batch), 0
        if mode == "ahead":
            self.store.prefetch(0, ids)
        for step in range(self.options.steps + 1):
            start, cpu, waited = time.perf_counter(), time.process_time(), self.store.metrics.wait_seconds
            following = self._ids(rng, batch)
            hashes.append(time.perf_counter() - start)
            self._step(mode, batch, step, ids, following)
            times.append(time.perf_counter() - start)
            cpu_times.append(time.process_time() - cpu)
            waits.append(self.store.metrics.wait_seconds - waited)
            ids = following
            before = before or device_bytes()
        self.store.drop(self.options.steps + 1)
        fetched = (device_bytes() - before) / (self.options.steps * batch)
        medians = (1000 * statistics.median(values[1:]) for values in (times, cpu_times, waits, hashes))
        return Run(*medians, fetched, share, process_bytes())

    def _step(self, mode: str, batch: int, step: int, ids: NDArray[np.int64], following: NDArray[np.int64]) -> None:
        if mode == "sync":
            rows = self.store.rows(ids)
            self._compute(batch, lambda index: rows[:, index])
        elif mode == "resident":
            tables = self.store.tables
            self._compute(batch, lambda index: tables[index]._rows[ids[:, index]])  # type: ignore[attr-defined]
        else:
            key, wanted = (step, ids) if mode == "same-step" else (step + 1, following)
            self.store.prefetch(key, wanted)
            self._compute(batch, lambda index: self.store.take_layer(step, ids, index))

    def _compute(self, batch: int, rows_of: Any) -> None:
        x = self.torch.ones(batch, HIDDEN)
        for i in range(SLICES):
            if i in LAYERS:
                rows = rows_of(LAYERS.index(i))
                if rows is not None:
                    e = decode_rows(rows.reshape(-1, ROW_BYTES), "fp8", HEAD_DIM).reshape(batch, -1)
                    self.torch.from_numpy(e) @ self.projection.t()
            for j in range(self.repeat):
                x @ self.weights[(i + j) % len(self.weights)].t()

    def _ids(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Row ids of `count` requests with a token each: three tokens before it are looked back at."""
        tokens = rng.integers(3, NUM_COMPRESSED, (count, 4)).astype(np.int32)
        return np.concatenate([self.store.ids_for(row[3:], row[:3]) for row in tokens])


def serve(kind: str, options: argparse.Namespace, pipe: Connection) -> None:
    """Run what the parent asks for until it hangs up."""
    worker = Worker(kind, options)
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        name, *args = order
        if name == "repeat":
            worker.repeat = args[0]
            pipe.send(None)
        else:
            pipe.send(getattr(worker, name)(*args))
    worker.store.close()


def ask(pipe: Connection, *order: Any) -> Any:
    pipe.send(order)
    return pipe.recv()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Start both workers and alternate between all kinds of runs."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for kind in MODES:
        pipes[kind], child = context.Pipe()
        processes.append(context.Process(target=serve, args=(kind, options, child), daemon=True))
        processes[-1].start()
        child.close()
    for pipe in pipes.values():
        pipe.recv()
    digests = {kind: ask(pipe, "sample", 1) for kind, pipe in pipes.items()}
    repeat = ask(pipes["memory"], "calibrate")
    for pipe in pipes.values():
        ask(pipe, "repeat", repeat)
    kinds = [(kind, mode) for kind, modes in MODES.items() for mode in modes if mode != "resident"]
    pairs: dict[tuple[str, str, int], list[Pair]] = {}
    seeds = iter(range(100, 1 << 30))  # never the same rows twice: no cache may know them
    for number in range(options.rounds):
        for batch in options.batch:
            before = ask(pipes["memory"], "run", "resident", batch, next(seeds))
            for kind, mode in kinds if number % 2 else kinds[::-1]:
                run = ask(pipes[kind], "run", mode, batch, next(seeds))
                after = ask(pipes["memory"], "run", "resident", batch, next(seeds))
                pairs.setdefault((kind, mode, batch), []).append((before, run, after))
                before = after
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(None)
        process.join(60)
    figures = [figure for batch in options.batch for figure in summaries(batch, pairs)]
    return {"identical": digests["memory"] == digests["disk"], "runs": figures}


def summaries(batch: int, pairs: dict[tuple[str, str, int], list[Pair]]) -> Iterator[dict[str, Any]]:
    """Medians of every kind of run at a batch size; overheads against the resident runs right before and after each."""
    mine = {key: found for key, found in pairs.items() if key[2] == batch}
    resident = [run for found in mine.values() for before, _, after in found for run in (before, after)]
    nothing = {"overhead": 0.0, "wait_share": 0.0}
    yield {"tier": "memory", "mode": "resident", "batch": batch, **nothing, **medians(resident), "bound_by": "-"}
    for kind, mode in ((kind, mode) for kind, modes in MODES.items() for mode in modes if mode != "resident"):
        found = mine[kind, mode, batch]
        ratios = [2 * run.step_ms / (before.step_ms + after.step_ms) for before, run, after in found]
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        figures = medians([run for _, run, _ in found])
        overhead = quartiles[1] - 1
        extra_ms = overhead * figures["step_ms"] / (1 + overhead)
        wait_share = figures["wait_ms"] / figures["step_ms"]
        if wait_share >= 0.01 and figures["wait_ms"] >= extra_ms / 2:
            bound = "waiting for rows" + (" from the device" if kind == "disk" else "")
        elif quartiles[0] > 1:
            bound = "host work that competes with the compute for cores"
        else:
            bound = "the compute: no different from resident rows"
        spread = {"overhead": overhead, "overhead_quartiles": [quartiles[0] - 1, quartiles[2] - 1], "wait_share": wait_share}
        yield {"tier": kind, "mode": mode, "batch": batch, **spread, **figures, "bound_by": bound}


def medians(runs: list[Run]) -> dict[str, float]:
    """Medians of the figures, and the largest of what must stay below a bound."""
    figures = {name: statistics.median(getattr(run, name) for run in runs) for name in asdict(runs[0])}
    return figures | {name: max(getattr(run, name) for run in runs) for name in ("resident_share", "process_bytes")}


def report(result: dict[str, Any]) -> None:
    print(f"rows from disk equal rows in memory: {result['identical']}; tables of {result['table_bytes'] / 1e9:.2f} GB, "
          f"written at {result['write_bytes_per_second'] / 1e6:.0f} MB/s")  # fmt: skip
    print("tier     mode       batch  step ms   cpu ms  overhead   waits  wait ms  hash ms  device B/token  resident  own MB  "
          "bound by")  # fmt: skip
    for run in result["runs"]:
        print(f"{run['tier']:8} {run['mode']:10} {run['batch']:5} {run['step_ms']:8.2f} {run['cpu_ms']:8.2f} "
              f"{run['overhead']:9.2%} {run['wait_share']:7.2%} "
              f"{run['wait_ms']:8.3f} {run['hash_ms']:8.3f} {run['device_bytes_per_token']:15,.0f} "
              f"{run['resident_share']:9.4%} {run['process_bytes'] / 1e6:7,.0f}  {run['bound_by']}")  # fmt: skip
    for problem in result["problems"]:
        print(f"FAILED: {problem}")


def problems(result: dict[str, Any]) -> list[str]:
    """What makes the figures worthless, or breaks a bound."""
    found = [] if result["identical"] else ["rows from disk differ from rows in memory"]
    disk = [run for run in result["runs"] if run["tier"] == "disk"]
    if max(run["process_bytes"] for run in disk) >= MAX_PROCESS_BYTES:
        found.append(f"the process that reads from disk holds {MAX_PROCESS_BYTES} bytes or more")
    if max(run["resident_share"] for run in disk) >= MAX_RESIDENT_SHARE:
        found.append("pages of the tables were in memory before a run: the disk was not measured")
    if min(run["step_ms"] for run in result["runs"]) < 50:
        found.append("a step was shorter than 50 ms; raise --step-ms")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=None, help="where the tables are written; default: a temporary folder")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="size of both tables together")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=4, help="timed steps per run")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--step-ms", type=float, default=60.0, help="a step of batch 1 takes at least as long")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute; an accelerator would need none")
    parser.add_argument("--read-threads", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-engram-", dir=options.folder) as folder:
        options.folder = folder
        hash = make_hash(options.gigabytes)
        free, needed = shutil.disk_usage(folder).free, int(options.gigabytes * 1.05e9) + (1 << 30)
        if free < needed:
            parser.error(f"{folder}: {free:,} bytes free, expected {needed:,}; choose another --folder or fewer --gigabytes")
        speed = write_tables(folder, hash)
        result = {"table_bytes": sum(hash.num_rows) * ROW_BYTES, "write_bytes_per_second": speed, **measure(options)}
    result |= {"problems": problems(result), "options": {**vars(options), "folder": None}}
    result["machine"] = {"cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps(result, indent=1)) if options.json else report(result)
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
