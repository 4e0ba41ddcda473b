# SPDX-License-Identifier: Apache-2.0
"""Plausible bugs, to see that a comparison finds them.

A mutant is a function with an operator's signature, tensors in contract order and attributes by name, that computes something
wrong. Most call the reference with changed arguments or change what it returns, so that the mistake can be read off. Each file
has MUTANTS, operator/bug → function, whose docstring says what is wrong; files of users have the same form (`loading`).

Left out is what no operator's outputs show:
- the same terms in another order: sums, a softmax with or without its maximum, routing weights before or after a product;
- which of equal scores is chosen: choices are compared as sets, ties allowed;
- what float32 hardly tells from its own error: an eps of 1e-6 added to a sigmoid, or not;
- what cancels: the two weights of the n-gram gate exchanged, or queries and keys transformed in one same wrong order;
- a scale, window or ratio that is wrong before the operator gets it: it does as it is told, and `compare model` finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ascend_dsv4.accuracy.mutants import (
    attention,
    compression,
    host,
    hyper_connections,
    indexing,
    manners,
    positions,
    quantisation,
    routing,
    surroundings,
)

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One wrong implementation."""

    name: str
    """operator/bug."""
    function: Function
    what: str
    """What is wrong, as a sentence."""

    @property
    def op(self) -> str:
        return self.name.partition("/")[0]


def described(name: str, value: Function | tuple[Function, str]) -> Mutant:
    """A mutant from an entry of MUTANTS: a function, or a function and what is wrong with it."""
    function, what = value if isinstance(value, tuple) else (value, "")
    text = what or (function.__doc__ or "").strip().partition("\n\n")[0]
    return Mutant(name, function, " ".join(text.split()))


@cache
def built_in() -> Mapping[str, Mutant]:
    """All mutants of the package, by name."""
    files = (
        attention, indexing, compression, hyper_connections, positions, routing, quantisation, surroundings, manners, host,
    )  # fmt: skip
    return {name: described(name, function) for file in files for name, function in file.MUTANTS.items()}
