# SPDX-License-Identifier: Apache-2.0
"""Which function implements which operator. `bind` resolves a whole set once at start-up; nothing is chosen per call."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.spec import DTYPE_BYTES, Implementation, OpSpec

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

    Raises UnsupportedError for an unknown name; ImportError or AttributeError for a file that cannot be loaded, or a function
    that is not there.
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
    importlib.import_module(f"ascend_dsv4.ops.{name}.{IMPLEMENTATION_MODULES[implementation]}")
    return _IMPLEMENTATIONS[spec.name, implementation]


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

OP_SETS: Mapping[str, str] = {"auto": "reference", "reference": "reference"}
"""What the option `ops` accepts → the implementation it resolves to."""


class BoundOps:
    """Operators as attributes: `ops.rms_norm(x, weight, eps)`. Written caches come back as handles to rebind."""

    def __init__(self, functions: Mapping[str, Implementation], implementation: str) -> None:
        self.functions = dict(functions)
        self.implementation = implementation

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
    """Resolve an op set. Raises UnsupportedError that lists every operator without an implementation at once."""
    if ops not in OP_SETS:
        raise UnsupportedError(f"ops={ops!r}: no such op set; choose one of {', '.join(OP_SETS)}")
    implementation = OP_SETS[ops]
    functions: dict[str, Implementation] = {}
    missing = []
    for name in names:
        try:
            functions[name] = get_implementation(name, implementation)
        except ModuleNotFoundError as error:
            if error.name != f"ascend_dsv4.ops.{name}.{IMPLEMENTATION_MODULES[implementation]}":
                raise  # the implementation is there, but something it imports is not
            missing.append(name)
    if missing:
        raise UnsupportedError(
            f"ops={ops!r}: no {implementation!r} implementation of {', '.join(missing)}, and operators are not mixed silently. "
            f"Choose another op set: {', '.join(OP_SETS)}."
        )
    return BoundOps(functions, implementation)
