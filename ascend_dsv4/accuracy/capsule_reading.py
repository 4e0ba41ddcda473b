# SPDX-License-Identifier: Apache-2.0
"""Reading capsules. One may come from a stranger: every field is checked, nothing in it is executed, no path leaves it."""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn

from torch import Tensor

from ascend_dsv4.accuracy.capsule import (
    FORMAT,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    VERSION,
    RecordedCall,
    StepRequests,
    checksum,
    contract_hash,
)
from ascend_dsv4.accuracy.stored_tensors import (
    MAX_MEMORY_BYTES,
    PAGE_BYTES,
    STORED_DTYPES,
    Bytes,
    Part,
    StoredTensor,
    restore_tensor,
    restore_widened,
)
from ascend_dsv4.config.checks import show
from ascend_dsv4.errors import CapsuleError, CheckpointError
from ascend_dsv4.model.safetensors_file import SafetensorsFile
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.registry import get_spec
from ascend_dsv4.ops.spec import DTYPE_BYTES, ShapeError, TensorType

MAX_THREADS: Final = 1024
_FILE_NAME = re.compile(r"data-\d{5,9}\.safetensors")
_MAX_INT = 1 << 59
_MAX_DIMS = 32
_HASH_BYTES = 1 << 22


@dataclass(frozen=True)
class Capsule:
    """A capsule whose files were found to be what its manifest says."""

    folder: Path
    manifest: Mapping[str, Any]
    calls: tuple[RecordedCall, ...]
    steps: Mapping[int, StepRequests]
    files: Mapping[str, SafetensorsFile]
    blobs: Mapping[str, SafetensorsFile]
    """Name of stored bytes → the file that holds them."""

    @property
    def is_complete(self) -> bool:
        """Whether the recording ended by itself, and not because its process did."""
        return bool(self.manifest["complete"])

    def read(self, blob: str) -> Bytes:
        """Stored bytes: uint8, a view of the mapped file."""
        return self.blobs[blob].bytes(blob)

    def arguments(self, call: RecordedCall) -> dict[str, Tensor | None]:
        """The arguments as they were before the call, in memory of their own. Raises CapsuleError without room for them."""
        return {name: None if t is None else self._restore(call, name, t) for name, t in call.args.items()}

    def results(self, call: RecordedCall) -> dict[str, Tensor]:
        """Outputs, and written arguments as they were after the call, by name."""
        outs = {name: self._restore(call, name, tensor) for name, tensor in call.outs.items()}
        for name, changes in call.written.items():
            before = call.args[name]
            assert before is not None
            outs[name] = self._restore(call, name, before, changes)
        return outs

    def wide_arguments(self, call: RecordedCall) -> dict[str, Tensor | None]:
        """`arguments` with every floating tensor in float64."""
        return {name: None if t is None else self._restore(call, name, t, widen=True) for name, t in call.args.items()}

    def _restore(
        self, call: RecordedCall, name: str, stored: StoredTensor, changes: Sequence[Part] = (), *, widen: bool = False
    ) -> Tensor:
        try:
            return restore_widened(stored, self.read) if widen else restore_tensor(stored, self.read, changes)
        except (OSError, OverflowError, MemoryError) as error:
            raise CapsuleError(
                f"{self.folder}: call {call.number}, {name}: {stored.reach[1]:,} B cannot be mapped ({error}), expected room "
                "for them, because the tensor keeps its offset and strides. Replay where there is more address space."
            ) from error


def open_capsule(folder: Path | str) -> Capsule:
    """Read and verify a capsule: manifest, sizes and SHA-256 of files, tensors, contracts.

    Raises CapsuleError for a folder that is none, and one that is damaged, incomplete, or of another version.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    root = _Field(manifest, f"{folder / MANIFEST}")
    files = {name: _open_file(folder, name, entry) for name, entry in root["files"].items()}
    blobs = {name: file for file in files.values() for name in file.tensors}
    calls = tuple(_read_call(number, entry, blobs) for number, entry in enumerate(root["calls"].entries()))
    if not calls:
        raise CapsuleError(
            f"{folder}: incomplete: no call in it, expected at least one, because the process ended before the first was on "
            "the disk. Record again."
        )
    _check_contracts(folder, root, {call.op for call in calls})
    steps = {step.number: step for step in (_read_step(entry) for entry in root["steps"].entries())}
    for name in ("versions", "processor", "model"):
        root[name].items()
    root["processor"]["num_threads"].integer(1, MAX_THREADS)
    for name in ("selection", "ended"):
        root[name].text()
    root["complete"].boolean()
    return Capsule(folder, MappingProxyType(manifest), calls, steps, files, blobs)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_MANIFEST_BYTES:
            raise CapsuleError(
                f"{path}: got {info.st_size:,} B, expected a plain file of at most {MAX_MANIFEST_BYTES:,} B, because no "
                "recording writes another. Take the capsule from its source again."
            )
        data = path.read_bytes()
    except OSError as error:
        raise CapsuleError(
            f"{folder}: no capsule: {MANIFEST} cannot be read ({error.strerror}), expected it beside the data, because it says "
            "what was recorded. Name the folder that --capture wrote."
        ) from error
    try:
        manifest = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CapsuleError(
            f"{path}: no JSON ({type(error).__name__}), expected the manifest of a capsule, because it is damaged or something "
            "else. Take the capsule from its source again, or record again."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CapsuleError(
            f"{path}: no capsule: format {show(manifest.get('format') if isinstance(manifest, dict) else manifest)}, expected "
            f"{FORMAT!r}, because other folders have a {MANIFEST} too. Name the folder that --capture wrote."
        )
    _check_version(path, manifest)
    if manifest.get("checksum") != checksum(manifest):
        raise CapsuleError(
            f"{path}: corrupted: its checksum is not that of its content, expected {show(manifest.get('checksum'))}, because "
            "something was changed after recording. Take the capsule from its source again."
        )
    return manifest


def _check_version(path: Path, manifest: Mapping[str, Any]) -> None:
    version = manifest.get("version")
    if type(version) is int and version == VERSION:
        return
    written = manifest.get("versions")
    by = written.get("ascend_dsv4") if isinstance(written, dict) else None
    is_newer = type(version) is int and version > VERSION
    raise CapsuleError(
        f"{path}: version mismatch: format {show(version)}, written by ascend-dsv4 {show(by)}, expected {VERSION}, "
        "because formats change with what they hold. "
        + ("Update ascend-dsv4." if is_newer else "Record again with --capture.")
    )  # fmt: skip


def _check_contracts(folder: Path, root: _Field, ops: set[str]) -> None:
    recorded = {name: entry.text() for name, entry in root["contracts"].items()}
    changed = sorted(op for op in ops if recorded.get(op) != contract_hash(op))
    if changed:
        by = root["versions"].value.get("ascend_dsv4") if isinstance(root["versions"].value, dict) else None
        raise CapsuleError(
            f"{folder}: version mismatch: the contract of {', '.join(changed)} is not the one recorded by ascend-dsv4 "
            f"{show(by)}, expected the same arguments, outputs and attributes, because a call means something else otherwise. "
            "Record again with this version, or replay with that one."
        )


def _open_file(folder: Path, name: str, entry: _Field) -> SafetensorsFile:
    """A data file, once its name, size and digest are those of the manifest."""
    if not _FILE_NAME.fullmatch(name):
        raise CapsuleError(
            f"{folder}: file {show(name)} of the manifest: expected a name such as data-00000.safetensors, because no file "
            "outside the folder is read. Do not trust this capsule."
        )
    path = folder / name
    num_bytes, digest = entry["num_bytes"].integer(0), entry["sha256"].text()
    try:
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode):
            raise CapsuleError(
                f"{path}: no plain file, expected one, because links could lead anywhere. Do not trust this capsule, or copy "
                "the file to its place."
            )
        if info.st_size != num_bytes:
            kind = "truncated" if info.st_size < num_bytes else "corrupted"
            raise CapsuleError(
                f"{path}: {kind}: got {info.st_size:,} B, expected {num_bytes:,}, because the manifest says so. Take the "
                "capsule from its source again."
            )
        actual = _digest(path)
    except OSError as error:
        raise CapsuleError(
            f"{path}: incomplete: cannot be read ({error.strerror}), expected {num_bytes:,} B, because calls of the manifest "
            "need it. Take the whole folder from its source again."
        ) from error
    if actual != digest:
        raise CapsuleError(
            f"{path}: corrupted: SHA-256 {actual}, expected {show(digest)}, because something was changed after recording. "
            "Take the capsule from its source again."
        )
    try:
        return SafetensorsFile(path)
    except CheckpointError as error:
        raise CapsuleError(
            f"{path}: not the data of a capsule, expected a safetensors file, because its header does not hold: {error}"
        ) from error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASH_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _read_step(entry: _Field) -> StepRequests:
    requests = []
    for one in entry["requests"].entries():
        number, start, count = one.integers(length=3)
        requests.append((number, start, count))
    return StepRequests(entry["number"].integer(0), tuple(requests))


def _read_call(number: int, entry: _Field, blobs: Mapping[str, SafetensorsFile]) -> RecordedCall:
    op = entry["op"].text()
    if op not in OP_NAMES:
        entry["op"].refuse(f"an operator of this version ({', '.join(OP_NAMES)})", "Replay with the version that recorded it.")
    spec = get_spec(op)
    args = {name: one.optional(lambda t: _read_tensor(t, blobs)) for name, one in entry["args"].named(spec.args)}
    outs = {name: _read_tensor(one, blobs) for name, one in entry["outs"].named(spec.outs)}
    written = {}
    for name, one in entry["written"].named(spec.mutates):
        before = args[name]
        if before is None:
            one.refuse("a written argument that was given", "Record again.")
        written[name] = _read_parts(one, before, blobs)
    if entry["number"].integer(0) != number:
        entry["number"].refuse(f"{number}, its place in the list", "Record again.")
    layer = entry["layer"].optional(lambda one: one.integer(0))
    texts = {name: entry[name].text() for name in ("implementation", "graph", "node", "scope", "where")}
    attrs = {name: _attribute(one, spec.attrs[name]) for name, one in entry["attrs"].named(spec.attrs)}
    call = RecordedCall(number=number, op=op, attrs=attrs, step=entry["step"].integer(0), layer=layer, args=args, outs=outs,
                        written=written, **texts)  # fmt: skip
    _check_types(entry, call)
    return call


def _check_types(entry: _Field, call: RecordedCall) -> None:
    """The call fits the operator's contract."""
    spec = get_spec(call.op)
    try:
        types = spec.infer([None if t is None else TensorType(t.shape, t.dtype) for t in call.args.values()], call.attrs)
    except ShapeError as error:
        raise CapsuleError(
            f"{entry.where}: {error}; expected a call of the operator's contract, because it could not have run otherwise. The "
            "capsule is damaged; record again."
        ) from error
    for (name, out), expected in zip(call.outs.items(), types, strict=True):
        if (out.shape, out.dtype) != (expected.shape, expected.dtype):
            entry["outs"][name].refuse(f"{expected}, as the contract infers", "Record again.")


def _attribute(entry: _Field, kind: str) -> Any:
    """An attribute of a type as torch schemas spell it."""
    value = entry.value
    if kind.endswith("?") and value is None:
        return None
    kind = kind.removesuffix("?")
    if kind == "float" and value in ("inf", "-inf", "nan"):
        return float(value)
    if kind.startswith("int["):
        return entry.integers(length=int(kind[4:-1]), low=-_MAX_INT)
    python = {"int": int, "float": float, "bool": bool, "str": str}[kind]
    if type(value) is not python and not (kind == "float" and type(value) is int):
        entry.refuse(f"a value of type {kind}", "Record again.")
    return value


def _read_tensor(entry: _Field, blobs: Mapping[str, SafetensorsFile]) -> StoredTensor:
    dtype = entry["dtype"].text()
    if dtype not in STORED_DTYPES:
        entry["dtype"].refuse(f"one of {', '.join(STORED_DTYPES)}", "Record again.")
    if entry["layout"].text() != "strided":
        entry["layout"].refuse("strided, the only layout of this version", "Replay with the version that recorded it.")
    shape = entry["shape"].integers()
    tensor = StoredTensor(
        dtype=dtype,
        shape=shape,
        strides=entry["strides"].integers(length=len(shape)),
        offset=entry["offset"].integer(0),
        address=entry["address"].integer(0, PAGE_BYTES - 1),
        source=entry["source"].text(),
        parts=(),
    )
    if math.prod(size for size in shape if size) > _MAX_INT or tensor.reach[1] > MAX_MEMORY_BYTES:
        entry.refuse(f"at most {MAX_MEMORY_BYTES:,} B of memory", "Do not trust this capsule.")
    return replace(tensor, parts=_read_parts(entry["parts"], tensor, blobs))


def _read_parts(entry: _Field, tensor: StoredTensor, blobs: Mapping[str, SafetensorsFile]) -> tuple[Part, ...]:
    """Parts inside a tensor's memory, in order, whose bytes are there under the tensor's dtype and in the right number."""
    parts = []
    position, end = tensor.reach
    for one in entry.entries():
        fields = one.entries()
        if len(fields) != 3:
            one.refuse("first byte, number of bytes and name", "Record again.")
        part = Part(fields[0].integer(0), fields[1].integer(1), fields[2].text())
        if part.at < position or part.at + part.num_bytes > end:
            one.refuse(f"bytes behind the part before and within {position:,} to {end:,}", "Do not trust this capsule.")
        position = part.at + part.num_bytes
        if part.blob:
            _check_blob(one, tensor, part, blobs)
        parts.append(part)
    return tuple(parts)


def _check_blob(entry: _Field, tensor: StoredTensor, part: Part, blobs: Mapping[str, SafetensorsFile]) -> None:
    if part.blob not in blobs:
        entry.refuse("bytes that a data file holds; this tensor is missing", "Take the capsule from its source again.")
    stored = blobs[part.blob].tensors[part.blob]
    shape = (part.num_bytes // DTYPE_BYTES[tensor.dtype],)
    if (stored.dtype, stored.shape) != (STORED_DTYPES[tensor.dtype], shape) or stored.num_bytes != part.num_bytes:
        entry.refuse(
            f"{STORED_DTYPES[tensor.dtype]} {list(shape)}, but the file holds {stored.dtype} {list(stored.shape)}",
            "Take the capsule from its source again.",
        )


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


class _Field:
    """A value of the manifest, and where it is."""

    def __init__(self, value: Any, where: str) -> None:
        self.value = value
        self.where = where

    def refuse(self, expected: str, do: str) -> NoReturn:
        raise CapsuleError(
            f"{self.where}: got {show(self.value)}, expected {expected}, because nothing may be guessed about a recording. {do}"
        )

    def __getitem__(self, name: str) -> _Field:
        if not isinstance(self.value, dict):
            self.refuse("an object", "The manifest is damaged; record again.")
        if name not in self.value:
            self.refuse(f"a field {name!r}", "The manifest is damaged; record again.")
        return _Field(self.value[name], f"{self.where}, {name}")

    def items(self) -> list[tuple[str, _Field]]:
        if not isinstance(self.value, dict):
            self.refuse("an object", "The manifest is damaged; record again.")
        return [(name, self[name]) for name in self.value]

    def named(self, names: Sequence[str] | Mapping[str, Any]) -> list[tuple[str, _Field]]:
        """Fields of exactly these names, in their order."""
        if {name for name, _ in self.items()} != set(names):
            wanted = f"exactly the fields {', '.join(names)}" if names else "no field"
            self.refuse(wanted, "The manifest is damaged; record again.")
        return [(name, self[name]) for name in names]

    def entries(self) -> list[_Field]:
        if not isinstance(self.value, list):
            self.refuse("a list", "The manifest is damaged; record again.")
        return [_Field(item, f"{self.where} {number}") for number, item in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str):
            self.refuse("a text", "The manifest is damaged; record again.")
        return self.value

    def boolean(self) -> bool:
        if not isinstance(self.value, bool):
            self.refuse("true or false", "The manifest is damaged; record again.")
        return self.value

    def integer(self, low: int, high: int = _MAX_INT) -> int:
        if type(self.value) is not int or not low <= self.value <= high:
            self.refuse(f"an integer from {low} to {high}", "The manifest is damaged; record again.")
        number: int = self.value
        return number

    def integers(self, length: int | None = None, low: int = 0) -> tuple[int, ...]:
        items = self.entries()
        if len(items) > _MAX_DIMS or length not in (None, len(items)):
            self.refuse(f"{'at most 32' if length is None else length} integers", "The manifest is damaged; record again.")
        return tuple(item.integer(low) for item in items)

    def optional(self, read: Callable[[_Field], Any]) -> Any:
        return None if self.value is None else read(self)
