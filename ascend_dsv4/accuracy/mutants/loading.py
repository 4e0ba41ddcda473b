# SPDX-License-Identifier: Apache-2.0
"""Mutants from a file of the user: a Python file with `MUTANTS = {"operator/bug": function}`.

A value may also be a pair (function, what is wrong). Functions take what the operator's reference takes.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ascend_dsv4.accuracy.mutants import Mutant, described
from ascend_dsv4.accuracy.mutants.host import HOST_FUNCTIONS
from ascend_dsv4.errors import ConfigError
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.registry import FOREIGN_ERRORS, get_spec

_FORM = 'MUTANTS = {"operator/bug": function}'


def load_mutants(path: Path) -> dict[str, Mutant]:
    """The mutants of a file, by name.

    Raises ConfigError for a file that is missing, cannot be imported or has no MUTANTS, and for a mutant of an operator that
    does not exist, that is no function, or that does not take the operator's arguments.
    """
    content = getattr(_imported(path), "MUTANTS", None)
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(
            f"{path}: MUTANTS is {'missing' if content is None else repr(content)}, expected {_FORM}, because that says which "
            "functions to try on which operators. Add it at the end of the file."
        )
    return {str(name): _checked(path, str(name), value) for name, value in content.items()}


def _imported(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"mutants_of_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(
            f"{path}: no Python file, expected one with {_FORM}, because mutants are Python functions. Check the path, "
            "which must end in .py."
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickles look for it
    try:
        spec.loader.exec_module(module)
    except FOREIGN_ERRORS as error:
        raise ConfigError(
            f"{path}: cannot be imported: {type(error).__name__}: {error}; expected a file that Python can run, because "
            "mutants are its functions. Run it with python to see where it fails."
        ) from error
    return module


def _checked(path: Path, name: str, value: Any) -> Mutant:
    op, slash, bug = name.partition("/")
    known = (*OP_NAMES, *HOST_FUNCTIONS)
    if op not in known or not slash or not bug:
        raise ConfigError(
            f"{path}: mutant {name!r}, expected operator/bug with an operator of {', '.join(known)}, because its cases are "
            "tried. Correct the name."
        )
    function, what = value if isinstance(value, tuple) and len(value) == 2 else (value, "")
    if not callable(function) or not isinstance(what, str):
        raise ConfigError(
            f"{path}: mutant {name!r} is {value!r}, expected a function, or a function and a sentence, because it is called "
            "like the operator. Give the function itself."
        )
    tensors, attrs = signature(op)
    try:
        inspect.signature(function).bind(*tensors, **dict.fromkeys(attrs))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: mutant {name!r} cannot be called: {error}; expected ({', '.join(tensors)}"
            f"{', *, ' + ', '.join(attrs) if attrs else ''}), because {op} is called like that: tensors in this order, "
            "attributes by name. Correct its parameters."
        ) from error
    return described(name, (function, what) if what else function)


def signature(op: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tensors in order, and attributes, that an operator or a function of the host is called with."""
    if op in HOST_FUNCTIONS:
        return HOST_FUNCTIONS[op], ()
    spec = get_spec(op)
    return tuple(spec.args), tuple(spec.attrs)
