# SPDX-License-Identifier: Apache-2.0
"""Which calls of a run are recorded: operators, graphs, steps. Framework-free, so that a command line is checked at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ascend_dsv4.errors import ConfigError
from ascend_dsv4.graph.ir import BUILTINS, Graph
from ascend_dsv4.ops import OP_NAMES

MODEL_GRAPHS = ("step_tables", "embed", "head")
"""Graphs besides those of layers."""
DEFAULT_LIMIT = 4 << 30
_RANGE = re.compile(r"(\d{1,9})(?:(-)(\d{0,9}))?")
_SIZE = re.compile(r"(\d{1,12})([KMGT]?)i?B?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which calls are recorded; None stands for all."""

    ops: frozenset[str] | None = None
    layers: frozenset[int | str] | None = None
    """Layer numbers and names of MODEL_GRAPHS."""
    steps: tuple[tuple[int, int | None], ...] | None = None
    """First and last step of each range; None for no last one. Forward passes, counted from 0 since recording began."""

    def has_step(self, step: int) -> bool:
        return self.steps is None or any(first <= step and (last is None or step <= last) for first, last in self.steps)

    def has_graph(self, where: int | str) -> bool:
        """`where` is a layer number, or the name of another graph."""
        return self.layers is None or where in self.layers

    def has_op(self, op: str) -> bool:
        """Only operators of the registry: what else is in a graph, such as a reshape, has no contract to replay by."""
        return op not in BUILTINS and (self.ops is None or op in self.ops)

    def is_over(self, step: int) -> bool:
        """Whether neither this step nor a later one is chosen."""
        return self.steps is not None and all(last is not None and last < step for _, last in self.steps)

    def __str__(self) -> str:
        """As the flags spell it."""
        ops = "all" if self.ops is None else ",".join(sorted(self.ops))
        layers = "all" if self.layers is None else ",".join(sorted(map(str, self.layers), key=_natural))
        return f"ops {ops}; layers {layers}; steps {_spelled_steps(self.steps)}"

    def check(self, graphs: Mapping[int | str, Graph]) -> None:
        """Refuse what no step of a model with these graphs can have: a recording of it would be empty. Raises ConfigError."""
        layers = sorted(where for where in graphs if isinstance(where, int))
        if missing := [str(where) for where in self.layers or () if where not in graphs]:
            raise ConfigError(
                f"--capture-layers: got {', '.join(missing)}, expected layers {layers[0]} to {layers[-1]}, or "
                f"{', '.join(name for name in graphs if isinstance(name, str))}, because the model has no others. Choose among "
                "them."
            )
        chosen = {where: graph for where, graph in graphs.items() if self.has_graph(where)}
        called = sorted({node.op for graph in graphs.values() for node in graph.nodes} - set(BUILTINS))
        for op in sorted(self.ops or ()):
            if not any(node.op == op for graph in chosen.values() for node in graph.nodes):
                holders = ",".join(str(where) for where, graph in graphs.items() if any(n.op == op for n in graph.nodes))
                raise ConfigError(
                    f"--capture-ops {op}: no chosen layer calls it, because "
                    + (f"only these do: {holders}. Choose among them with --capture-layers." if holders else
                       f"no graph of this model's steps has it; they have {', '.join(called)}. Choose among these.")
                )  # fmt: skip


def parse_ops(text: str | Iterable[str]) -> frozenset[str] | None:
    """Operator names, separated by commas; "all" is None. Raises ConfigError for unknown ones."""
    names = _split(text)
    if names == ["all"]:
        return None
    unknown = [name for name in names if name not in OP_NAMES]
    if unknown or not names:
        raise ConfigError(
            f"--capture-ops: got {', '.join(map(repr, unknown)) or 'nothing'}, expected operators among "
            f"{', '.join(OP_NAMES)}, or all, because others do not exist. Correct the names."
        )
    return frozenset(names)


def parse_layers(text: str | Iterable[int | str]) -> frozenset[int | str] | None:
    """Layer numbers, ranges such as 3-5, and names of MODEL_GRAPHS; "all" is None. Raises ConfigError for anything else."""
    if not isinstance(text, str):
        text = ",".join(map(str, text))
    if text == "all":
        return None
    chosen: set[int | str] = set()
    for part in _split(text):
        found = _RANGE.fullmatch(part)
        if part in MODEL_GRAPHS:
            chosen.add(part)
        elif found is None or (found[2] and not found[3]) or int(found[3] or found[1]) - int(found[1]) not in range(10_000):
            raise ConfigError(
                f"--capture-layers: got {part!r}, expected layer numbers and ranges such as 0,3-5, "
                f"{', '.join(MODEL_GRAPHS)}, or all, because graphs go by these names. Correct it."
            )
        else:
            chosen |= set(range(int(found[1]), int(found[3] or found[1]) + 1))
    return frozenset(chosen)


def parse_steps(text: str | Iterable[int]) -> tuple[tuple[int, int | None], ...] | None:
    """Steps and ranges such as 0,5-9,20-; "all" is None. Raises ConfigError for anything else."""
    if not isinstance(text, str):
        text = ",".join(map(str, text))
    if text == "all":
        return None
    ranges: list[tuple[int, int | None]] = []
    for part in _split(text):
        found = _RANGE.fullmatch(part)
        if found is None or (found[3] and int(found[3]) < int(found[1])):
            raise ConfigError(
                f"--capture-steps: got {part!r}, expected steps and ranges such as 0,5-9,20-, or all, because steps are "
                "counted from 0. Correct it."
            )
        first = int(found[1])
        ranges.append((first, first if not found[2] else int(found[3]) if found[3] else None))
    if not ranges:
        raise ConfigError("--capture-steps: got nothing, expected steps such as 0,5-9, because none would be empty. Name some.")
    return tuple(ranges)


def parse_size(text: str) -> int:
    """Bytes of "4G", "500M", "1048576": units are powers of 1024. Raises ConfigError for anything else."""
    found = _SIZE.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise ConfigError(
            f"--capture-limit: got {text!r}, expected bytes such as 500M or 4G, because it bounds what is written. Correct it."
        )
    return int(found[1]) << 10 * " KMGT".index(found[2].upper() or " ")


def check_folder(folder: Path) -> None:
    """Refuse a folder that a recording would mix with something else. Raises ConfigError."""
    try:
        is_taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        can_write = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
    except OSError as error:
        raise ConfigError(f"--capture {folder}: {error.strerror}; expected a folder to write to. Name another one.") from error
    if is_taken:
        raise ConfigError(
            f"--capture {folder}: there is something already, expected a new or empty folder, because a capsule is never mixed "
            "with other files. Name another folder, or empty this one."
        )
    if not can_write:
        raise ConfigError(
            f"--capture {folder}: {parent} cannot be written to, expected room for a new folder, because that is where the "
            "capsule goes. Name another folder."
        )


def _split(text: str | Iterable[str]) -> list[str]:
    return [part.strip() for part in text.split(",")] if isinstance(text, str) else list(text)


def _spelled_steps(steps: tuple[tuple[int, int | None], ...] | None) -> str:
    if steps is None:
        return "all"
    return ",".join(f"{a}" if a == b else f"{a}-{'' if b is None else b}" for a, b in steps)


def _natural(text: str) -> tuple[bool, int, str]:
    return (not text.isdigit(), int(text) if text.isdigit() else 0, text)
