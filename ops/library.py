# SPDX-License-Identifier: Apache-2.0
"""Every operator as `torch.ops.ascend_dsv4.<name>`: schema and fake kernel from the contract, the reference as its kernel.

Operators that write caches mutate them and return nothing, as `torch.compile` demands.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.registry import get_implementation, get_spec
from ascend_dsv4.ops.spec import OpSpec, TensorType

NAMESPACE = "ascend_dsv4"


def schema(spec: OpSpec) -> str:
    """The torch schema of an operator."""
    parts = []
    for name, arg in spec.args.items():
        alias = f"({chr(ord('a') + spec.mutates.index(name))}!)" if name in spec.mutates else ""
        parts.append(f"Tensor{alias}{'?' if arg.optional else ''} {name}")
    if spec.attrs:
        parts += ["*", *(f"{kind} {name}" for name, kind in spec.attrs.items())]
    outs = ["Tensor"] * len(spec.outs)
    return f"{spec.name}({', '.join(parts)}) -> {outs[0] if len(outs) == 1 else '(' + ', '.join(outs) + ')'}"


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 → "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def tensor_type(tensor: torch.Tensor) -> TensorType:
    """Shape and dtype of a torch tensor."""
    return TensorType(tuple(tensor.shape), dtype_name(tensor.dtype))


def _fake_kernel(spec: OpSpec) -> Callable[..., Any]:
    def fake(*tensors: torch.Tensor | None, **attrs: Any) -> Any:
        outs = spec.infer([None if t is None else tensor_type(t) for t in tensors], attrs)
        device = next(t.device for t in tensors if t is not None)
        made = tuple(torch.empty(out.shape, dtype=getattr(torch, out.dtype), device=device) for out in outs)
        return made[0] if len(made) == 1 else made or None

    return fake


@cache
def library() -> torch.library.Library:
    """Define all operators with torch, once per process."""
    lib = torch.library.Library(NAMESPACE, "DEF")
    for name in OP_NAMES:
        spec = get_spec(name)
        lib.define(schema(spec))
        lib.impl(name, get_implementation(name, "reference"), "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", _fake_kernel(spec), lib=lib)
    return lib


def overload(name: str) -> Any:
    """`torch.ops.ascend_dsv4.<name>.default`."""
    library()
    return getattr(torch.ops.ascend_dsv4, name).default
