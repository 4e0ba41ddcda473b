# SPDX-License-Identifier: Apache-2.0
"""What an operator is: typed arguments, outputs, attributes, tolerances. Plain data, no framework.

`OpSpec.infer` is the only shape function of an operator: the tracer, the fake kernels of `torch.library`, the byte counts
and the argument checks all derive from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Dim = int | str
"""A size: a number, or the name of a symbol such as "num_tokens" in a traced graph."""

FLOAT = ("float32", "bfloat16", "float16", "float64")
WEIGHT = (*FLOAT, "float8_e4m3fn", "int8")
"""Dtypes of a matrix: plain, FP8 codes, or two FP4 codes per int8 byte; the latter two need a scale."""
CACHE = ("float32", "bfloat16", "float64")
INT = ("int32",)
BYTE = ("uint8",)
SCALE = (*BYTE, "float32")
"""Dtypes of a quantised matrix's scales: power-of-two exponents, or factors as they are."""

DTYPE_BYTES = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip

REST = "..."


class ShapeError(TypeError):
    """A call that does not fit the operator's contract."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape and dtype of a tensor value."""

    shape: tuple[Dim, ...]
    dtype: str

    def num_bytes(self, **sizes: int) -> int:
        """Bytes of this value once every symbol has a size."""
        return math.prod(resolve_dim(dim, sizes) for dim in self.shape) * DTYPE_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(str(dim) for dim in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Arg:
    """One tensor argument. Names in `shape` bind to sizes across arguments; "..." binds to any number of dimensions."""

    shape: tuple[Dim, ...]
    dtype: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Out:
    """One output. `dtype` is a name, or "=arg" for the dtype of an argument, or "@attr" for the one an attribute names.

    A dimension is a bound name, a number, or two of them joined by "*", "//" or "+" (the latter two for numbers only).
    """

    shape: tuple[Dim, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest accepted error against the reference: |a - b| <= abs + rel * |b| per element, and 1 - cosine <= cos."""

    abs: float
    rel: float
    cos: float


EXACT = Tolerance(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class OpSpec:
    """Contract of one operator. The text of the contract is the docstring of the operator's package."""

    name: str
    args: Mapping[str, Arg]
    outs: Mapping[str, Out]
    source: str
    """Where the semantics come from."""
    attrs: Mapping[str, str] = field(default_factory=dict)
    """Attribute name → type as a torch schema spells it: int, float, bool, str, int[2], str?. No defaults."""
    mutates: tuple[str, ...] = ()
    """Arguments written in place: always caches."""
    tol: Mapping[tuple[str, str], Tolerance] = field(default_factory=dict)
    """(output or mutated argument, dtype) → tolerance. Integers are always exact."""
    choices: Mapping[str, float] = field(default_factory=dict)
    """Integer output whose rows are sets of chosen numbers → how far apart two scores may be, relative to the largest score of
    the row, that an implementation may rank either way."""
    rounds_inside: bool = False
    """Whether the contract rounds to a 16-bit compute dtype in mid-operator, so that unrounded float64 is another answer."""

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Sort a call's arguments into tensors, in contract order, and attributes.

        Raises ShapeError for an unknown, missing or doubly given argument.
        """
        names = (*self.args, *self.attrs)
        if len(args) > len(names):
            raise ShapeError(f"{self.name}: got {len(args)} positional arguments, takes {len(names)}: {', '.join(names)}")
        given = dict(zip(names, args, strict=False))
        for key, value in kwargs.items():
            if key in given:
                raise ShapeError(f"{self.name}: argument {key!r} given twice")
            if key not in names:
                raise ShapeError(f"{self.name}: unknown argument {key!r}; takes {', '.join(names)}")
            given[key] = value
        missing = [n for n in names if n not in given and not (n in self.args and self.args[n].optional)]
        if missing:
            raise ShapeError(f"{self.name}: missing {', '.join(missing)}")
        return [given.get(name) for name in self.args], {name: given[name] for name in self.attrs}

    def check_call(self, types: Sequence[TensorType | None], attrs: Mapping[str, Any]) -> dict[str, Any]:
        """Bind every symbolic size. Raises ShapeError that names argument, expected and actual."""
        sizes: dict[str, Any] = {key: value for key, value in attrs.items() if isinstance(value, int)}
        for (name, arg), tensor in zip(self.args.items(), types, strict=True):
            if tensor is None:
                if not arg.optional:
                    raise ShapeError(f"{self.name}: argument {name!r} is None but not optional")
            elif tensor.dtype not in arg.dtype:
                raise ShapeError(f"{self.name}: {name} has dtype {tensor.dtype}, expected one of {', '.join(arg.dtype)}")
            else:
                self._bind_shape(name, arg.shape, tensor.shape, sizes)
        return sizes

    def infer(self, types: Sequence[TensorType | None], attrs: Mapping[str, Any]) -> tuple[TensorType, ...]:
        """Types of the outputs for these argument types."""
        sizes = self.check_call(types, attrs)
        by_name = dict(zip(self.args, types, strict=True))
        return tuple(
            TensorType(tuple(_out_dims(out.shape, sizes)), self._out_dtype(out.dtype, by_name, attrs))
            for out in self.outs.values()
        )

    def _bind_shape(self, name: str, pattern: tuple[Dim, ...], shape: tuple[Dim, ...], sizes: dict[str, Any]) -> None:
        parts: list[tuple[Dim, Any]]
        if REST in pattern:
            at, tail = pattern.index(REST), len(pattern) - pattern.index(REST) - 1
            end = len(shape) - tail
            fits = len(shape) >= len(pattern) - 1
            parts = [*zip(pattern[:at], shape[:at], strict=False), (REST, shape[at:end])]
            parts += zip(pattern[at + 1 :], shape[end:], strict=False)
        else:
            fits = len(shape) == len(pattern)
            parts = list(zip(pattern, shape, strict=False))
        for symbol, size in parts if fits else ():
            known = symbol if isinstance(symbol, int) else sizes.setdefault(symbol, size)
            if known != size:
                fits = False
        if not fits:
            expected = ", ".join(f"{s}={sizes[s]}" if s in sizes and s != REST else str(s) for s in pattern)
            raise ShapeError(f"{self.name}: {name} has shape {list(shape)}, expected [{expected}]")

    def _out_dtype(self, rule: str, types: Mapping[str, TensorType | None], attrs: Mapping[str, Any]) -> str:
        if rule.startswith("@"):
            return str(attrs[rule[1:]])
        if rule.startswith("="):
            source = types[rule[1:]]
            assert source is not None, f"{self.name}: output dtype follows an optional argument"
            return source.dtype
        return rule


def resolve_dim(dim: Dim, sizes: Mapping[str, Any]) -> int:
    """A dimension as a number, given the sizes of its symbols."""
    if isinstance(dim, int):
        return dim
    if dim in sizes:
        return int(sizes[dim])
    return math.prod(int(part) if part.isdigit() else int(sizes[part]) for part in dim.split("*"))


def multiply_dims(left: Dim, right: Dim) -> Dim:
    """Product of two sizes; symbols stay symbols."""
    if not isinstance(left, str) and not isinstance(right, str):
        return left * right
    if isinstance(left, str):
        left, right = right, left
    return right if left == 1 else f"{left}*{right}"


def _out_dims(shape: tuple[Dim, ...], sizes: Mapping[str, Any]) -> list[Dim]:
    dims: list[Dim] = []
    for dim in shape:
        if dim == REST:
            dims.extend(sizes[REST])
        elif isinstance(dim, str) and dim not in sizes and "//" in dim:
            left, right = (sizes.get(part, part) for part in dim.split("//"))
            dims.append(int(left) // int(right))
        elif isinstance(dim, str) and dim not in sizes and "+" in dim:
            dims.append(sum(int(sizes.get(part, part)) for part in dim.split("+")))
        elif isinstance(dim, str) and dim not in sizes and "*" in dim:
            left, right = (sizes.get(part, part) for part in dim.split("*"))
            dims.append(multiply_dims(*(int(p) if isinstance(p, str) and p.isdigit() else p for p in (left, right))))
        else:
            dims.append(sizes.get(dim, dim) if isinstance(dim, str) else dim)
    return dims


Implementation = Callable[..., Any]
"""Called with the tensors in contract order and the attributes by name; returns the outputs (one, or a tuple), or None if
the operator only writes caches."""
