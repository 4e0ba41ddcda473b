# SPDX-License-Identifier: Apache-2.0
"""Which recorded calls are operators of this package, and how their arguments become the operator's.

`KNOWN` is a table: API → its parameters in order, our operator, and the function that turns one call into the other. An entry
is there only if the semantics agree; a call whose arguments ask for something else (another approximation, weights of other
shapes) raises NotOurs with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ascend_dsv4.accuracy.msprobe.dump import Leaf, Record
from ascend_dsv4.ops.registry import get_implementation, get_spec

Arguments = Mapping[str, Any]


class NotOurs(Exception):
    """A call that no reference of ours computes. Its text is the reason, for the report."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operator's reference that should give what was recorded."""

    op: str
    tensors: Mapping[str, Tensor | None]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    restore: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """Undoes what was done to the shapes of the arguments."""


@dataclass(frozen=True, slots=True)
class KnownApi:
    """How a recorded API is computed here."""

    adapt: Callable[[Arguments], Call]
    parameters: Mapping[str, Any]
    """Name → default, in order; REQUIRED if there is none."""
    outputs: tuple[str, ...] = ("y",)
    """Our output that each recorded output is; a recorded output beyond these is not computed here."""


REQUIRED = object()


def _features(a: Arguments, weight: str = "weight") -> int:
    """Width of a norm over the last axis alone."""
    shape = a.get("normalized_shape")
    given = [shape] if isinstance(shape, int) else list(shape) if shape is not None else list(a[weight].shape)
    if given != [a["x"].shape[-1]]:
        raise NotOurs(f"normalises over {given} of {list(a['x'].shape)}, ours over the last axis")
    return int(given[0])


def _rms_norm(a: Arguments) -> Call:
    _features(a)
    if a["eps"] is None and a["dtype"] != torch.float32:
        raise NotOurs("eps left to torch, which does not say in which type it is taken")
    eps = a["eps"] if a["eps"] is not None else torch.finfo(torch.float32).eps
    return Call("rms_norm", {"x": a["x"], "weight": a["weight"]}, {"eps": float(eps)})


def _add_rms_norm(a: Arguments) -> Call:
    return _rms_norm({**a, "x": a["x"] + a["x2"]})


def _layer_norm(a: Arguments) -> Call:
    width = _features(a)
    weight = a["weight"] if a["weight"] is not None else torch.ones(width, dtype=torch.float64)
    bias = a["bias"] if a["bias"] is not None else torch.zeros(width, dtype=torch.float64)
    return Call("layer_norm", {"x": a["x"], "weight": weight, "bias": bias}, {"eps": float(a["eps"])})


def _swiglu(a: Arguments) -> Call:
    if a["x"].shape[a["dim"]] % 2:
        raise NotOurs(f"splits {a['x'].shape[a['dim']]} channels into two halves")
    gate, up = a["x"].chunk(2, dim=a["dim"])
    return Call("swiglu", {"gate": gate, "up": up}, {"limit": math.inf})


def _silu(a: Arguments) -> Call:
    return Call("swiglu", {"gate": a["x"], "up": torch.ones_like(a["x"])}, {"limit": math.inf})


def _gelu(a: Arguments) -> Call:
    if a["approximate"] != "none":
        raise NotOurs(f"approximate={a['approximate']!r}, ours is exact")
    return Call("gelu", {"x": a["x"]})


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Call:
    """x · weightᵀ + bias."""
    if weight.dim() != 2 or not x.dim():
        raise NotOurs(f"weight of shape {list(weight.shape)}, ours has two axes")
    if bias is None:
        tensors: dict[str, Tensor | None] = {"x": x, "weight": weight, "scale": None}
        return Call("linear", tensors, {"block": (1, 1), "out_dtype": "float64"})
    if tuple(bias.shape) != (weight.shape[0],):
        raise NotOurs(f"bias of shape {list(bias.shape)}, ours is one row")
    return Call("linear_bias", {"x": x, "weight": weight, "bias": bias}, {"out_dtype": "float64"})


def _linear(a: Arguments) -> Call:
    return _product(a["x"], a["weight"], a["bias"])


def _matmul(a: Arguments) -> Call:
    left, right = a["x"], a["other"]
    if right.dim() == 2:
        return _product(left, right.t(), None)
    if left.dim() == right.dim() == 3 and left.shape[0] == right.shape[0]:
        tensors = {"x": left.transpose(0, 1), "weight": right.transpose(1, 2).flatten(0, 1), "scale": None}
        return Call("grouped_linear", tensors, {"block": (1, 1)}, lambda y: y.transpose(0, 1))
    raise NotOurs(f"product of shapes {list(left.shape)} and {list(right.shape)}, ours have a matrix or one matrix a group")


def _addmm(a: Arguments) -> Call:
    if a["beta"] != 1 or a["alpha"] != 1:
        raise NotOurs(f"beta={a['beta']}, alpha={a['alpha']}, ours adds the bias as it is")
    return _product(a["x"], a["weight"].t(), a["bias"])


def _embedding(a: Arguments) -> Call:
    if a.get("max_norm") is not None:
        raise NotOurs("max_norm renormalises the table")
    shape, width = a["ids"].shape, a["weight"].shape[-1]
    tensors = {"input_ids": a["ids"].reshape(-1), "weight": a["weight"]}
    return Call("embed", tensors, {"hc_mult": 1, "out_dtype": "float64"}, lambda y: y.reshape(*shape, width))


def _concat(a: Arguments) -> Call:
    parts = a["tensors"]
    if not isinstance(parts, list) or len(parts) != 2 or a["dim"] not in (-1, parts[0].dim() - 1):
        raise NotOurs("joins other than two tensors along the last axis")
    return Call("concat", {"x": parts[0], "y": parts[1]})


def _rotary(a: Arguments) -> Call:
    x, layouts = a["x"], {"half": "halves", "interleave": "adjacent"}
    if a["rotate"] is not None or a["mode"] not in layouts:
        raise NotOurs(f"rotary_mode={a['mode']!r}, or a matrix to rotate with")
    tables = []
    for name in ("cos", "sin"):
        wide = a[name].expand(x.shape).reshape(-1, x.shape[-1])
        members = wide.chunk(2, dim=-1) if a["mode"] == "half" else (wide[:, 0::2], wide[:, 1::2])
        if x.shape[-1] % 2 or not torch.equal(*members):
            raise NotOurs(f"{name} differs between the two members of a pair, which is no rotation")
        tables.append(members[0])
    tensors = {"x": x.reshape(-1, x.shape[-1]), "cos": tables[0], "sin": tables[1]}
    attrs = {"inverse": False, "start": 0, "layout": layouts[a["mode"]]}
    return Call("rope", tensors, attrs, lambda y: y.reshape(x.shape))


def _gating(a: Arguments) -> Call:
    if a["norm_type"] != 1 or a["renorm"] != 0:
        raise NotOurs(f"norm_type={a['norm_type']}, renorm={a['renorm']}: ours is the sigmoid, normalised over the chosen")
    if a["group_count"] > 1 and a["group_select_mode"] != 1:
        raise NotOurs("groups ranked by their largest score, ours by the sum of the two largest")
    if a["tid2eid"] is not None or a["x"].dim() != 2:
        raise NotOurs("experts by token id, or scores that are no matrix")
    ids = torch.zeros(a["x"].shape[0], dtype=torch.int32)
    tensors = {"logits": a["x"], "bias": a["bias"], "tid2eid": None, "input_ids": ids, "bias_vl": None, "is_image": None}
    attrs = {
        "topk": a["k"], "scoring": "sigmoid", "norm_topk_prob": True, "scaling": float(a["scaling"]),
        "norm_eps": float(a["eps"]), "n_group": a["group_count"], "topk_group": a["k_group"],
    }  # fmt: skip
    return Call("route", tensors, attrs)


_NORM = {"x": REQUIRED, "normalized_shape": REQUIRED, "weight": None, "bias": None, "eps": 1e-5}
_LINEAR = KnownApi(_linear, {"x": REQUIRED, "weight": REQUIRED, "bias": None})
_SILU = KnownApi(_silu, {"x": REQUIRED, "inplace": False})
_GELU = KnownApi(_gelu, {"x": REQUIRED, "approximate": "none"})
_MATMUL = KnownApi(_matmul, {"x": REQUIRED, "other": REQUIRED})
_EMBEDDING = KnownApi(
    _embedding,
    {
        "ids": REQUIRED,
        "weight": REQUIRED,
        "padding_idx": None,
        "max_norm": None,
        "norm_type": 2.0,
        "scale_grad_by_freq": False,
        "sparse": False,
    },
)
_CONCAT = KnownApi(_concat, {"tensors": REQUIRED, "dim": 0}, ("z",))
_LAYER_NORM = KnownApi(_layer_norm, _NORM)

KNOWN: Mapping[str, KnownApi] = {
    "Functional.linear": _LINEAR,
    "Functional.silu": _SILU,
    "Functional.gelu": _GELU,
    "Functional.layer_norm": _LAYER_NORM,
    "Functional.rms_norm": KnownApi(_rms_norm, {"x": REQUIRED, "normalized_shape": REQUIRED, "weight": None, "eps": None}),
    "Functional.embedding": _EMBEDDING,
    "Torch.embedding": KnownApi(
        _embedding, {"weight": REQUIRED, "ids": REQUIRED, "padding_idx": -1, "scale_grad_by_freq": False, "sparse": False}
    ),
    "Torch.layer_norm": KnownApi(_layer_norm, {**_NORM, "cudnn_enable": True}),
    "Torch.linalg.matmul": _MATMUL,
    "Torch.matmul": _MATMUL,
    "Torch.mm": _MATMUL,
    "Torch.bmm": _MATMUL,
    "Torch.addmm": KnownApi(_addmm, {"bias": REQUIRED, "x": REQUIRED, "weight": REQUIRED, "beta": 1, "alpha": 1}),
    "Torch.cat": _CONCAT,
    "Tensor.matmul": _MATMUL,
    "Tensor.__matmul__": _MATMUL,
    "Aten.bmm": _MATMUL,
    "Aten.matmul": _MATMUL,
    "Aten.mm": _MATMUL,
    "Aten.silu": _SILU,
    "Tensor.mm": _MATMUL,
    "Tensor.bmm": _MATMUL,
    "NPU.npu_rms_norm": KnownApi(_rms_norm, {"x": REQUIRED, "weight": REQUIRED, "eps": 1e-6}),
    "NPU.npu_swiglu": KnownApi(_swiglu, {"x": REQUIRED, "dim": -1}),
    "NPU.npu_add_rms_norm": KnownApi(_add_rms_norm, {"x": REQUIRED, "x2": REQUIRED, "weight": REQUIRED, "eps": 1e-6}),
    "NPU.npu_linear": _LINEAR,
    "NPU.npu_silu": _SILU,
    "NPU.npu_rotary_mul": KnownApi(
        _rotary, {"x": REQUIRED, "cos": REQUIRED, "sin": REQUIRED, "mode": "half", "rotate": None}
    ),
    "NPU.npu_moe_gating_top_k": KnownApi(
        _gating,
        {
            "x": REQUIRED, "k": REQUIRED, "bias": None, "input_ids": None, "tid2eid": None, "k_group": 1, "group_count": 1,
            "group_select_mode": 0, "renorm": 0, "norm_type": 0, "out_flag": False, "scaling": 1.0, "eps": 1e-20,
        },
        ("weights", "ids"),
    ),
    # MindSpore's functions that follow those of torch by name and arguments.
    "MintFunctional.linear": _LINEAR,
    "MintFunctional.silu": _SILU,
    "MintFunctional.gelu": _GELU,
    "MintFunctional.layer_norm": _LAYER_NORM,
    "MintFunctional.embedding": _EMBEDDING,
    "Mint.matmul": _MATMUL,
    "Mint.bmm": _MATMUL,
    "Mint.cat": _CONCAT,
    # Modules of torch.nn, with what is recorded as their parameters.
    "Module Linear": _LINEAR,
    "Module SiLU": KnownApi(_silu, {"x": REQUIRED}),
    "Module Embedding": KnownApi(_embedding, {"ids": REQUIRED, "weight": REQUIRED, "max_norm": None}),
}  # fmt: skip
"""API, or Module and its class → how it is computed. Signatures: PyTorch's documentation, the catalogue of torch_npu."""
KEYWORDS = {
    "input": "x", "self": "x", "gamma": "weight", "epsilon": "eps", "r1": "cos", "r2": "sin", "rotary_mode": "mode",
    "routed_scaling_factor": "scaling", "axis": "dim", "mat2": "other", "x1": "x",
}  # fmt: skip
"""Keyword of an API → what the table calls it."""
SPECIAL_KEYWORDS = {
    "Functional.embedding": {"input": "ids"}, "MintFunctional.embedding": {"input": "ids"},
    "Torch.embedding": {"input": "ids"}, "Torch.addmm": {"input": "bias", "mat1": "x", "mat2": "weight"},
}  # fmt: skip


def known_api(record: Record, framework: str) -> tuple[str, KnownApi] | None:
    """Key and entry of a recorded forward call, or None."""
    if record.direction != "forward":
        return None
    key = f"Module {record.api.rsplit('.', 1)[-1]}" if record.api.startswith("Module.") else record.api
    # ops.rms_norm of MindSpore takes other arguments than torch's under the same name.
    if framework == "mindspore" and key.startswith(("Functional.", "Tensor.")):
        return None
    return (key, KNOWN[key]) if key in KNOWN else None


def arguments(key: str, known: KnownApi, record: Record, tensors: Mapping[Leaf, Tensor | None]) -> dict[str, Any]:
    """The values of a call by the table's parameter names; float tensors in float64.

    Raises NotOurs if something is not stored, or a parameter is unknown.
    """
    by_position = {leaf.position: leaf for leaf in record.leaves}

    def value(content: Any, position: str) -> Any:
        leaf = by_position.get(position)
        if leaf is not None and leaf.is_tensor:
            tensor = tensors.get(leaf)
            if tensor is None:
                raise NotOurs(f"{position} is not stored")
            return tensor.double() if tensor.dtype.is_floating_point else tensor
        if leaf is not None:
            return leaf.value
        if isinstance(content, list):
            return [value(item, f"{position}.{index}") for index, item in enumerate(content)]
        raise NotOurs(f"{position} is of no known type")

    given = record.content.get("input_args") or []
    names = list(known.parameters)
    if not isinstance(given, list) or len(given) > len(names):
        raise NotOurs(f"called with {len(given)} positional arguments, known are {len(names)}")
    bound: dict[str, Any] = {name: value(item, f"input.{i}") for i, (name, item) in enumerate(zip(names, given, strict=False))}
    words = {**KEYWORDS, **SPECIAL_KEYWORDS.get(key, {})}
    for section, role in (("input_kwargs", "input"), ("parameters", "parameters")):
        for name, item in (record.content.get(section) or {}).items():
            target = words.get(name, name)
            if target in names:
                bound[target] = value(item, f"{role}.{name}")
            elif (other := value(item, f"{role}.{name}")) is not None and other is not False:
                raise NotOurs(f"argument {name} is not known here")
    for name, default in known.parameters.items():
        if name not in bound:
            if default is REQUIRED:
                raise NotOurs(f"argument {name} is missing")
            bound[name] = default
    first = next((leaf for leaf in record.leaves if leaf.is_tensor and leaf.is_float), None)
    if first is not None:
        bound["dtype"] = getattr(torch, first.dtype, torch.float32)
    return bound


def compute(call: Call) -> dict[str, Tensor]:
    """Outputs of our reference in float64, in the shapes that were recorded."""
    spec = get_spec(call.op)
    outputs = get_implementation(call.op, "reference")(*(call.tensors.get(name) for name in spec.args), **call.attrs)
    given = outputs if isinstance(outputs, tuple) else (outputs,)
    return {name: call.restore(output) for name, output in zip(spec.outs, given, strict=True)}
