# SPDX-License-Identifier: Apache-2.0
"""Capsules: recorded operator calls in one portable folder. What they are, and how they are written.

    manifest.json              who recorded what, where and with which versions; every call; size and SHA-256 of each file
    data-00000.safetensors …   the bytes of tensors, each once, by names that say their dtype and digest

The manifest is replaced atomically, after the data it speaks of is on the disk: whatever kills the process, the folder
holds the calls up to then, marked as incomplete. `capsule_reading` reads it, and executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ascend_dsv4 import __version__
from ascend_dsv4.accuracy.selection import check_folder
from ascend_dsv4.accuracy.stored_tensors import Bytes, Part, StoredTensor, blob_name, plain
from ascend_dsv4.errors import CapsuleError
from ascend_dsv4.ops.library import schema
from ascend_dsv4.ops.registry import get_spec

FORMAT, VERSION = "ascend-dsv4 capsule", 1
MANIFEST = "manifest.json"
FLUSH_BYTES = 64 << 20
"""Recorded bytes that are held in memory at most, besides constants and a single call."""
FLUSH_SECONDS = 1.0
"""A flush is made at the end of a step after so long, or after ten times what the last one took: what a kill may cost."""
MAX_MANIFEST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One operator call of a run."""

    number: int
    op: str
    implementation: str
    attrs: Mapping[str, Any]
    step: int
    """Forward pass, counted from 0 since the recording began."""
    graph: str
    """layer3, embed, head, step_tables"""
    layer: int | None
    node: str
    """Unique in the graph: hc_pre_0."""
    scope: str
    """Path of model functions."""
    where: str
    """File and line of the call in the model."""
    args: Mapping[str, StoredTensor | None]
    outs: Mapping[str, StoredTensor]
    written: Mapping[str, tuple[Part, ...]]
    """What the call changed in each argument that it writes."""


@dataclass(frozen=True, slots=True)
class StepRequests:
    """Who was in a step: request number, position of its first token there, number of tokens."""

    number: int
    requests: tuple[tuple[int, int, int], ...]


def contract_hash(op: str) -> str:
    """Changes whenever arguments, outputs or attributes of an operator do."""
    spec = get_spec(op)
    shapes = [[name, list(arg.shape)] for name, arg in spec.args.items()]
    outs = [[name, list(out.shape), out.dtype] for name, out in spec.outs.items()]
    return hashlib.sha256(json.dumps([schema(spec), shapes, outs]).encode()).hexdigest()


def versions() -> dict[str, str]:
    """What computes here."""
    return {
        "ascend_dsv4": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def processor() -> dict[str, Any]:
    """On what, with what of it, and on how many threads; all of it can change the last bits."""
    return {
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
        "num_threads": torch.get_num_threads(),
    }


def checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its own checksum."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def tensor_json(tensor: StoredTensor) -> dict[str, Any]:
    """A stored tensor in the manifest."""
    return {
        "dtype": tensor.dtype,
        "layout": "strided",
        "shape": list(tensor.shape),
        "strides": list(tensor.strides),
        "offset": tensor.offset,
        "address": tensor.address,
        "source": tensor.source,
        "parts": parts_json(tensor.parts),
    }


def parts_json(parts: Sequence[Part]) -> list[list[Any]]:
    """[first byte, number of bytes, name of the stored bytes] each."""
    return [[part.at, part.num_bytes, part.blob] for part in parts]


def _call_json(call: RecordedCall) -> dict[str, Any]:
    content = {name: getattr(call, name) for name in ("number", "op", "implementation", "step", "graph", "layer", "node",
                                                      "scope", "where")}  # fmt: skip
    return content | {
        "attrs": {name: plain(value) for name, value in call.attrs.items()},
        "args": {name: None if tensor is None else tensor_json(tensor) for name, tensor in call.args.items()},
        "outs": {name: tensor_json(tensor) for name, tensor in call.outs.items()},
        "written": {name: parts_json(parts) for name, parts in call.written.items()},
    }


class CapsuleWriter:
    """Writes a capsule. `about` is what the manifest says of the run besides versions and processor.

    Calls come from one thread, `close` from any. Raises ConfigError if the folder has something in it, OSError if it cannot
    be written.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], limit: int) -> None:
        check_folder(folder)
        self.folder = folder
        self.num_calls = 0
        self.num_bytes = 0
        """Of data and manifest, as far as they are known."""
        self._is_own_folder = not folder.exists()
        self.limit = limit
        self.known: set[str] = set()
        """Names of bytes that are stored, or will be at the next flush."""
        self._lock = threading.Lock()
        self._is_closed = False
        self._pending: dict[str, Bytes] = {}
        self._pending_bytes = 0
        self._manifest_bytes = 0
        self._next_flush = 0.0
        self._manifest: dict[str, Any] = {
            "format": FORMAT, "version": VERSION, "complete": False, "ended": "", "versions": versions(),
            "processor": processor(), **about, "contracts": {}, "steps": [], "files": {}, "calls": [],
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self._write_manifest()

    def add(self, call: RecordedCall, blobs: Mapping[str, Bytes], requests: StepRequests) -> None:
        """Record a call; `blobs` is what its tensors consist of and `known` does not name.

        Raises CapsuleFullError, and records nothing, if that exceeds the limit.
        """
        with self._lock:
            if self._is_closed:
                return
            added, content = sum(data.size for data in blobs.values()), _call_json(call)
            described = len(json.dumps(content, separators=(",", ":")))
            is_too_long = self._manifest_bytes + described > MAX_MANIFEST_BYTES // 2  # the rest is for what is no call
            if is_too_long or self.num_bytes + added + described > self.limit:
                raise CapsuleFullError
            self.num_bytes += added + described
            self._manifest_bytes += described
            self.known |= blobs.keys()
            self._pending |= blobs
            self._pending_bytes += added
            self._manifest["contracts"].setdefault(call.op, contract_hash(call.op))
            steps = self._manifest["steps"]
            if not steps or steps[-1]["number"] != requests.number:
                steps.append({"number": requests.number, "requests": [list(one) for one in requests.requests]})
            self._manifest["calls"].append(content)
            self.num_calls += 1
            if self._pending_bytes > FLUSH_BYTES:
                self._flush()

    def step_done(self) -> None:
        """Put what was recorded on the disk, unless that was done a moment ago."""
        with self._lock:
            if not self._is_closed and time.monotonic() >= self._next_flush:
                self._flush()

    def close(self, ended: str = "") -> None:
        """Write the rest and mark the capsule complete; one without calls leaves nothing behind. `ended` says why it is
        shorter than it was meant to be."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            if self.num_calls == 0:
                self._remove()
                return
            self._manifest |= {"complete": True, "ended": ended}
            self._flush()

    def _flush(self) -> None:
        began = time.monotonic()
        if self._pending:
            name = f"data-{len(self._manifest['files']):05d}.safetensors"
            self._manifest["files"][name] = write_data(self.folder / name, self._pending)
            self._pending, self._pending_bytes = {}, 0
        self._write_manifest()
        now = time.monotonic()
        self._next_flush = now + max(FLUSH_SECONDS, 10 * (now - began))

    def _write_manifest(self) -> None:
        self._manifest["checksum"] = checksum(self._manifest)
        new = self.folder / f"{MANIFEST}.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump(self._manifest, file, sort_keys=True, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.folder / MANIFEST)
        _sync_folder(self.folder)

    def _remove(self) -> None:
        (self.folder / MANIFEST).unlink(missing_ok=True)
        if self._is_own_folder:
            with suppress(OSError):  # somebody has put something into it
                self.folder.rmdir()


def write_data(path: Path, blobs: Mapping[str, Bytes]) -> dict[str, Any]:
    """A safetensors file of one-dimensional tensors, on the disk when this returns: its size and SHA-256 for the manifest."""
    items = sorted(blobs.items(), key=lambda item: -_width(item[0]))  # widest first, so that every tensor is aligned
    header: dict[str, Any] = {}
    position = 0
    for name, data in items:
        dtype = name.partition("-")[0]
        end = position + data.size
        header[name] = {"dtype": dtype, "shape": [data.size // _width(name)], "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, num_bytes = hashlib.sha256(), 0
    with path.open("wb") as file:
        pieces: list[Any] = [len(text).to_bytes(8, "little"), text, *(data for _, data in items)]
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            num_bytes += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"num_bytes": num_bytes, "sha256": digest.hexdigest()}


def _width(name: str) -> int:
    """Bytes of an element."""
    dtype = name.partition("-")[0]
    return {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2}.get(dtype, 1)


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class CapsuleFullError(Exception):
    """The next bytes would exceed the limit."""


class BlobStore:
    """The bytes that one call's tensors consist of and that a writer does not have, as `store_tensor` hands them over."""

    def __init__(self, writer: CapsuleWriter) -> None:
        self.blobs: dict[str, Bytes] = {}
        self._known = writer.known
        self._room = writer.limit - writer.num_bytes

    def add(self, dtype: str, data: Bytes, is_constant: bool) -> str:
        """Constants are held as they are, everything else is copied. Raises CapsuleFullError instead of more than fits."""
        name = blob_name(dtype, data)
        if name not in self.blobs and name not in self._known:
            self._room -= data.size
            if self._room < 0:
                raise CapsuleFullError
            self.blobs[name] = data if is_constant else data.copy()
        return name


def empty_capture(selection: str, num_steps: int, reason: str) -> CapsuleError:
    """The error of a recording without a call."""
    run = f"the run had steps 0 to {num_steps - 1}" if num_steps else "the run had no step"
    return CapsuleError(
        f"--capture: nothing was recorded, expected at least one call ({selection}), because {reason or run}. Choose other "
        "steps, ops or layers, and make sure that requests come."
    )
