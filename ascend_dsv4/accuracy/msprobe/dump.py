# SPDX-License-Identifier: Apache-2.0
"""dump.json as msprobe writes it: what one rank recorded in one step, as plain data.

    <dump path>/step<n>/rank<m>/dump.json            or proc<pid>, pid<pid> where there is no rank
                                dump_tensor_data/    task "tensor": one file a tensor, .pt, or .npy from MindSpore
                                stack.json           where in the user's code each record comes from

dump.json holds `task`, `level`, `framework`, `dump_data_dir` and `data`: record name → what went in and what came out. A
record is called `<type>.<api>.<call>.<forward|backward>`, or `Module.<path>.<class>.<forward|backward>.<call>`, and has
`input_args`, `input_kwargs`, `output` and `parameters` (forward) or `input` and `output` (backward): lists and dicts of
leaves, nested like the call's arguments. A leaf is null, or a dict with a `type`; of tensors it holds dtype, shape, Max, Min,
Mean, Norm, perhaps a checksum and the name of the file with the values. Source: msprobe's data collection manuals (PyTorch and
MindSpore) and the dumps in its repository, 2026.

Nothing of a dump is trusted: sizes, types and nesting are checked, and what does not fit is a DumpError.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascend_dsv4.errors import DumpError

STATISTICS = ("Max", "Min", "Mean", "Norm")
FORWARD_SECTIONS = {
    "input_args": "input", "input_kwargs": "input", "input": "input", "parameters": "parameters", "output": "output",
}  # fmt: skip
"""Key of a record → how the names of its leaves go on, in the order of msprobe's tables."""
DTYPES = {
    **{name: name for name in (
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64",
        "bool", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128",
    )},
    "bfloat": "bfloat16",
}  # fmt: skip
"""A dtype as PyTorch, MindSpore or numpy spell it, without prefix and in small letters → our name of it."""
MAX_DEPTH = 400
"""Nesting of a record at which msprobe itself gives up."""
MAX_SIZE, MAX_AXES = 1 << 40, 64
"""Of one axis, and how many there may be: far beyond any tensor, and small enough to reckon with."""
MAX_JSON_BYTES = 4 << 30
HEADER = ("task", "level", "framework")
DUMP_FILES = ("dump.json", "debug.json")
TENSOR_FOLDER = "dump_tensor_data"
SEARCH_DEPTH = 5
"""Folders between the one that is given and a dump.json: graph or pynative, step, rank, and some to spare."""
_CALL_LAST = re.compile(r"(?P<api>.+)\.(?P<direction>forward|backward|parameters_grad)\.(?P<call>\d+)")
_DIRECTION_LAST = re.compile(r"(?P<api>.+)\.(?P<call>\d+)\.(?P<direction>forward|backward|debug)")


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """One value of a record. Equal to itself only."""

    record: str
    role: str
    """input, output, parameters, parameters_grad or debug."""
    path: tuple[str, ...]
    """Index or key at each level: ("0",), ("1", "0"), ("eps",)."""
    type: str
    """As recorded: torch.Tensor, int, slice, …; None for null."""
    dtype: str = ""
    """Our name of a tensor's dtype, or what is recorded if we have none; empty for other values."""
    recorded_dtype: str = ""
    """As the framework spells it."""
    shape: tuple[int, ...] = ()
    value: Any = None
    """Of what is no tensor."""
    statistics: Mapping[str, float | None] = field(default_factory=dict)
    """By STATISTICS; None where msprobe computes none: mean and norm of integers, anything of empty tensors."""
    checksum: str = ""
    """CRC-32 or XOR of the bytes, as recorded."""
    requires_grad: bool | None = None
    data_name: str = ""
    """File with the values; empty if there is none."""

    @property
    def is_tensor(self) -> bool:
        """Whether it has a dtype and a shape: tensors of either framework, and numpy arrays."""
        return bool(self.dtype)

    @property
    def position(self) -> str:
        """input.0, output.0, parameters.weight, …"""
        return ".".join((self.role, *self.path))

    @property
    def name(self) -> str:
        """As msprobe calls it in its tables: the file's name without its ending, or else record and position."""
        if self.data_name:
            return self.data_name.rsplit(".", 1)[0]
        if self.role in ("parameters_grad", "debug"):  # which the record's own name says already
            return ".".join((self.record, *self.path))
        return f"{self.record}.{self.position}"

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def is_float(self) -> bool:
        """Whether the tensor holds real floating-point numbers."""
        return self.dtype.startswith(("float", "bfloat"))


@dataclass(frozen=True, slots=True)
class Record:
    """One call of an API or module, or the gradients of its parameters."""

    name: str
    api: str
    """Functional.linear, NPU.npu_rms_norm, Module.layers.0.mlp.Linear, …"""
    call: str
    """Its number; empty if it has none."""
    direction: str
    """forward, backward, parameters_grad, debug; empty if the name does not say."""
    content: Mapping[str, Any]
    """As recorded."""
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, slots=True)
class Dump:
    """What one rank recorded in one step."""

    label: str
    """step0/rank1; empty for a single dump.json."""
    file: Path
    task: str
    level: str
    framework: str
    records: Mapping[str, Record]
    stacks: Mapping[str, str]
    """Record name → lines of the user's code, from stack.json; empty without one."""

    @property
    def tensor_folder(self) -> Path:
        """Where the tensors are now: beside dump.json, wherever they were written."""
        return self.file.parent / TENSOR_FOLDER

    def where(self, record: str) -> str:
        """A record with its step and rank."""
        return f"{self.label}/{record}" if self.label else record


def find_dumps(source: str | Path) -> dict[str, Path]:
    """All dump.json (or debug.json) of a dump, by step and rank.

    source  a dump.json, or a folder at any level above it
    Raises DumpError if there is none.
    """
    source = Path(source)
    if source.is_file():
        return {"": source}
    if not source.is_dir():
        raise DumpError(f"{source}: no such file or folder; expected a dump.json or a folder above it. Check the path.")
    found: dict[str, Path] = {}
    num_tensor_files = 0
    for folder, names, files in os.walk(source):
        here = Path(folder)
        num_tensor_files += sum(name.endswith((".pt", ".npy")) for name in files)
        if len(here.relative_to(source).parts) >= SEARCH_DEPTH:
            names.clear()
        names[:] = sorted(name for name in names if name != TENSOR_FOLDER)
        name = next((name for name in DUMP_FILES if name in files), None)
        if name:
            found["/".join(here.relative_to(source).parts)] = here / name
    if not found:
        beside = f", though {num_tensor_files} tensor files" if num_tensor_files else ""
        raise DumpError(
            f"{source}: no dump.json in it or below{beside}; expected step<n>/rank<m>/dump.json, because only that file says "
            "what was recorded. msprobe writes it when PrecisionDebugger.stop() and step() run (its ACL-graph dumper writes "
            'none for task "tensor"): record again, and let the program come to its end.'
        )
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts step2 before step10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def read_dump(file: Path, label: str = "") -> Dump:
    """Read one dump.json. Raises DumpError if it is damaged, empty, or something else."""
    content = _read_json(file)
    data = content.get("data")
    if not isinstance(data, Mapping):
        raise DumpError(
            f"{file}: no records: data is {_kind(data)}, expected an object of records by name, as msprobe writes. Is this a "
            "dump.json, and did the program run to its end?"
        )
    if not data:
        raise DumpError(
            f"{file}: empty dump: data holds no record, expected at least one. The range of steps, the list of names or the "
            "level left nothing, or stop() came before the model ran: widen them and record again."
        )
    records = {name: _read_record(file, name, content) for name, content in data.items()}
    task, level, framework = (value if isinstance(value := content.get(key), str) else "" for key in HEADER)
    return Dump(label, file, task, level, framework or "pytorch", records, _read_stacks(file.parent / "stack.json"))


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        size = file.stat().st_size
        if size > MAX_JSON_BYTES:
            raise DumpError(
                f"{file}: {size} bytes, expected at most {MAX_JSON_BYTES}, because the file is read whole. "
                "Record fewer steps, or list the names you need."
            )
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DumpError(f"{file}: cannot be read: {error}. Check its path and permissions.") from error
    except RecursionError:
        raise DumpError(f"{file}: nested too deeply for any call's arguments; this is no dump of msprobe.") from None
    except ValueError as error:
        raise DumpError(
            f"{file}: no valid JSON: {error}. msprobe rewrites the file as it records, so it was cut off when the program was "
            "stopped, or copied while it ran: copy it again, or record again."
        ) from None
    if not isinstance(content, Mapping):
        raise DumpError(f"{file}: holds {_kind(content)}, expected an object with task, level and data. Is this a dump.json?")
    return content


def _read_record(file: Path, name: str, content: Any) -> Record:
    _check_text(file, name)
    match = _CALL_LAST.fullmatch(name) or _DIRECTION_LAST.fullmatch(name)
    api, call, direction = (match["api"], match["call"], match["direction"]) if match else (name, "", "")
    if not match and name.endswith(".parameters_grad"):
        api, direction = name.removesuffix(".parameters_grad"), "parameters_grad"
    if direction == "debug":
        return Record(name, api, call, direction, {"debug": content}, tuple(_leaves(file, name, "debug", content)))
    if not isinstance(content, Mapping):
        raise DumpError(f"{file}: record {name} is {_kind(content)}, expected an object. Is the file damaged?")
    leaves: list[Leaf] = []
    if direction == "parameters_grad":
        for parameter, gradients in content.items():
            one = gradients[0] if isinstance(gradients, list) and len(gradients) == 1 else gradients
            _check_text(file, parameter)
            leaves += _leaves(file, name, "parameters_grad", one, (parameter,))
    else:
        for section, role in FORWARD_SECTIONS.items():
            leaves += _leaves(file, name, role, content.get(section, []))
    return Record(name, api, call, direction, content, tuple(leaves))


def _leaves(file: Path, record: str, role: str, value: Any, path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """The leaves below a value, in order. Empty lists and dicts have none."""
    if len(path) > MAX_DEPTH:
        raise DumpError(f"{file}: record {record} is nested more than {MAX_DEPTH} levels deep, which msprobe does not write.")
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(file, record, role, item, (*path, str(index)))
    elif isinstance(value, Mapping) and not isinstance(value.get("type"), str):
        # A point-to-point operation of torch.distributed: a tensor, and what is sent where.
        items = {"tensor": value.get("tensor")} if "class_type" in value else value
        for key, item in items.items():
            _check_text(file, key)
            yield from _leaves(file, record, role, item, (*path, key))
    elif isinstance(value, Mapping):
        yield _leaf(file, record, role, value, path)
    else:
        yield Leaf(record, role, path, type(value).__name__ if value is not None else "None", value=value)


def _leaf(file: Path, record: str, role: str, content: Mapping[str, Any], path: tuple[str, ...]) -> Leaf:
    kind, dtype = content["type"], content.get("dtype")
    _check_text(file, kind)
    if not isinstance(dtype, str) or "shape" not in content:
        value = content.get("value", content.get("format", content.get("group_ranks")))
        return Leaf(record, role, path, kind, value=value)
    _check_text(file, dtype)
    shape, data_name = content["shape"], content.get("data_name") or ""
    here = f"{file}: record {record}, {role} {'.'.join(path)}"
    sizes = shape if isinstance(shape, list) and len(shape) <= MAX_AXES else [None]
    if not all(isinstance(size, int) and 0 <= size <= MAX_SIZE for size in sizes):
        raise DumpError(f"{here}: shape is {_short(shape)}, expected a list of sizes. Is the file damaged?")
    if not isinstance(data_name, str):
        raise DumpError(f"{here}: data_name is {_short(data_name)}, expected the name of a file. Is the file damaged?")
    checksum, grad = content.get("md5"), content.get("requires_grad")
    return Leaf(
        record, role, path, kind, plain_dtype(dtype), dtype, tuple(shape),
        statistics={key: _number(content.get(key)) for key in STATISTICS},
        checksum=checksum if isinstance(checksum, str) and checksum.isprintable() else "",
        requires_grad=grad if isinstance(grad, bool) else None,
        data_name=data_name if data_name != "-1" else "",
    )  # fmt: skip


def _check_text(file: Path, text: str) -> None:
    """Names end up in tables and on screens, so one with control characters is refused."""
    if not text.isprintable():
        raise DumpError(f"{file}: {_short(text)} is no name: expected printable text, as msprobe writes. Is the file damaged?")


def plain_dtype(recorded: str) -> str:
    """torch.bfloat16, BFloat16 → bfloat16. What has no name of ours stays as it is."""
    return DTYPES.get(recorded.rsplit(".", 1)[-1].lower(), recorded)


def _number(value: Any) -> float | None:
    """A statistic. Those of booleans are booleans; NaN and ∞ are JSON's extension, or texts."""
    if not isinstance(value, bool | int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _read_stacks(file: Path) -> dict[str, str]:
    """stack.json in either form: number → [record names, lines], or record name → lines. A hint, so damage is no error."""
    try:
        content = json.loads(file.read_bytes()) if file.is_file() and file.stat().st_size <= MAX_JSON_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    stacks: dict[str, str] = {}
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if not isinstance(value, list):
            continue
        if len(value) == 2 and all(isinstance(part, list) for part in value):
            stacks |= {name: _lines(value[1]) for name in value[0] if isinstance(name, str)}
        else:
            stacks[key] = _lines(value)
    return stacks


def _lines(value: list[Any]) -> str:
    return "\n".join(line.strip() for line in value if isinstance(line, str))


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
