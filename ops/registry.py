# SPDX-License-Identifier: Apache-2.0
"""Which function implements which operator. `bind` resolves a whole set once at start-up; nothing is chosen per call."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.spec import DTYPE_BYTES, Implementation, OpSpec
from ascend_dsv4.twin.kernel_library import compiler

_SPECS: dict[str, OpSpec] = {}
_IMPLEMENTATIONS: dict[tuple[str, str], Implementation] = {}
_DTYPES: dict[tuple[str, str], frozenset[str]] = {}

F = TypeVar("F", bound=Implementation)

FOREIGN_ERRORS: Final = (Exception, SystemExit)
"""What code that is not ours may raise: anything. Only KeyboardInterrupt is not its own."""


def define(spec: OpSpec) -> OpSpec:
    """Register a contract. A second one under the same name is a programming error."""
    if spec.name in _SPECS:
        raise ValueError(f"operator {spec.name!r} is defined twice")
    _SPECS[spec.name] = spec
    return spec


def implements(spec: OpSpec, implementation: str, dtypes: Iterable[str] = DTYPE_BYTES) -> Callable[[F], F]:
    """Decorator: register a function as `implementation` ("reference", "ascendc-twin", …) of an operator.

    dtypes  compute dtypes that it takes; a kernel may have fewer than the contract
    """

    def register(function: F) -> F:
        if (spec.name, implementation) in _IMPLEMENTATIONS:
            raise ValueError(f"operator {spec.name!r} has two implementations called {implementation!r}")
        _IMPLEMENTATIONS[spec.name, implementation] = function
        _DTYPES[spec.name, implementation] = frozenset(dtypes)
        return function

    return register


def get_spec(name: str) -> OpSpec:
    """The contract of one operator."""
    if name not in OP_NAMES:
        raise UnsupportedError(
            f"no operator is called {did_you_mean(name, OP_NAMES)}, expected one of {', '.join(OP_NAMES)}, because only these "
            "have a contract. Choose among them."
        )
    importlib.import_module(f"ascend_dsv4.ops.{name}")
    return _SPECS[name]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A name that is not known, with the most similar one that is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"{name!r}" + (f" (did you mean {close[0]}?)" if close else "")


def get_implementation(name: str, implementation: str) -> Implementation:
    """One implementation, imported on demand. "module:function" or "path/file.py:function" names anybody's own.

    Raises UnsupportedError for an unknown name, or one that this operator does not have; ImportError or AttributeError for a
    file that cannot be loaded, or a function that is not there.
    """
    spec = get_spec(name)
    if ":" in implementation:
        module, _, function = implementation.rpartition(":")
        found = getattr(_load_module(module), function)
        if not callable(found):
            raise ImportError(f"{function} of {module} is of type {type(found).__name__}, which nobody can call")
        return found  # type: ignore[no-any-return]
    if implementation not in IMPLEMENTATION_MODULES:
        raise UnsupportedError(
            f"operator {name!r}: unknown implementation {implementation!r}, expected {', '.join(IMPLEMENTATION_MODULES)}, or a "
            "function as module:function or FILE.py:function, because no other names are registered. Name one of these."
        )
    if not has_implementation(name, implementation):
        raise UnsupportedError(
            f"operator {name!r}: it has no implementation {implementation!r}, expected one of "
            f"{', '.join(other for other in IMPLEMENTATION_MODULES if has_implementation(name, other))}, because not every "
            "operator is written for everything. Name one of these."
        )
    importlib.import_module(f"ascend_dsv4.ops.{name}.{IMPLEMENTATION_MODULES[implementation]}")
    return _IMPLEMENTATIONS[spec.name, implementation]


def has_implementation(name: str, implementation: str) -> bool:
    """Whether an operator has a file for an implementation that is known by name. Its file is not imported."""
    return find_spec(f"ascend_dsv4.ops.{name}.{IMPLEMENTATION_MODULES[implementation]}") is not None


def dtypes_of(name: str, implementation: str) -> frozenset[str]:
    """Compute dtypes that a registered implementation takes. Raises what `get_implementation` raises."""
    get_implementation(name, implementation)
    return _DTYPES[name, implementation]


def _load_module(name: str) -> ModuleType:
    """A module of anybody's own. Raises ImportError whatever it raises itself."""
    try:
        return _load_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except ImportError:
        raise
    except FOREIGN_ERRORS as error:
        line = error.lineno if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)[-1].lineno
        raise ImportError(f"{name} cannot be imported: {type(error).__name__}: {error} (line {line})") from error


@cache
def _load_file(path: Path) -> ModuleType:
    """A Python file as a module; it can import its neighbours' names only from where Python looks for modules anyway."""
    if not path.is_file():
        raise ImportError(f"there is no file {path}")
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


IMPLEMENTATION_MODULES: Mapping[str, str] = {"reference": "reference", "ascendc-twin": "ascendc"}
"""Implementation name → module inside each operator's folder."""

OP_SETS: Mapping[str, tuple[str, ...]] = {
    "auto": ("reference",),
    "reference": ("reference",),
    "ascendc-twin": ("ascendc-twin", "reference"),
}
"""What the option `ops` accepts → implementations in order of preference; every operator gets the first that it has."""


class BoundOps:
    """Operators as attributes: `ops.rms_norm(x, weight, eps)`. Written caches come back as handles to rebind.

    functions        operator → what computes it
    implementations  operator → what that is called, for the same operators at least
    """

    def __init__(self, functions: Mapping[str, Implementation], implementations: Mapping[str, str]) -> None:
        self.functions = dict(functions)
        self.implementations = dict(implementations)

    @property
    def implementation(self) -> str:
        """One name, or of several which operators they compute: "ascendc-twin (hc_post, route), reference (all others)"."""
        names = {other: sorted(op for op, name in self.implementations.items() if name == other)
                 for other in dict.fromkeys(self.implementations.values())}  # fmt: skip
        if len(names) == 1:
            return next(iter(names))
        *few, most = sorted(names, key=lambda name: len(names[name]))
        return ", ".join([*(f"{name} ({', '.join(names[name])})" for name in few), f"{most} (all others)"])

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            function = self.functions[name]
        except KeyError:
            raise AttributeError(f"operator {name!r} is not bound") from None
        spec = get_spec(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            tensors, attrs = spec.bind(args, kwargs)
            outs = function(*tensors, **attrs)
            if not spec.mutates:
                return outs
            written = tuple(tensors[list(spec.args).index(name)] for name in spec.mutates)
            return written[0] if len(written) == 1 else written

        return call


def bind(ops: str, names: Iterable[str] = OP_NAMES) -> BoundOps:
    """Resolve an op set. Raises UnsupportedError that lists every operator without an implementation at once, or for a set
    that this machine lacks a compiler for.
    """
    if ops not in OP_SETS:
        raise UnsupportedError(f"ops={ops!r}: no such op set; choose one of {', '.join(OP_SETS)}")
    chosen = {name: next((other for other in OP_SETS[ops] if has_implementation(name, other)), "") for name in names}
    if missing := [name for name, implementation in chosen.items() if not implementation]:
        raise UnsupportedError(
            f"ops={ops!r}: no {' or '.join(map(repr, OP_SETS[ops]))} implementation of {', '.join(missing)}, and operators are "
            f"not mixed silently. Choose another op set: {', '.join(OP_SETS)}."
        )
    if "ascendc-twin" in chosen.values():
        compiler()  # the kernels are built at their first call, which is late to learn that they cannot be
    return BoundOps({name: get_implementation(name, other) for name, other in chosen.items()}, chosen)
