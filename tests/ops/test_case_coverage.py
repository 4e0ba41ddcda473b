# SPDX-License-Identifier: Apache-2.0
"""Every operator has the hostile inputs that its contract calls for, and they are what they are taken for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ascend_dsv4.accuracy.calls import arguments, load_cases, make_inputs, to_numpy
from ascend_dsv4.accuracy.operators import judge_case, prepare
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.cases import Case, CaseInputs, Rng, changed, f32, i32, strided
from ascend_dsv4.ops.coverage import caches, coverage, required, shown
from ascend_dsv4.ops.registry import get_implementation, get_spec

Break = Callable[[CaseInputs], CaseInputs]


def table(name: str, spoil: Break = lambda made: made) -> dict[str, tuple[str, ...]]:
    """Property → cases that show it, after something has been taken out of all of them."""
    return coverage(get_spec(name), [(case, spoil(make_inputs(name, case))) for case in load_cases(name)])


@pytest.mark.parametrize("name", OP_NAMES)
def test_nothing_is_missing(name: str) -> None:
    missing = [prop for prop, cases in table(name).items() if not cases]
    assert not missing, f"{name} has no case with {', '.join(missing)}"


def test_what_contracts_call_for() -> None:
    """The requirements follow the contracts: caches, request numbers, slots, floats."""
    assert {name: caches(get_spec(name)) for name in OP_NAMES if caches(get_spec(name))} == {
        "compress_kv": ("cache", "state"), "index_topk": ("idx_kv",), "mla_attention": ("mla_kv",), "pool_kv": ("state",),
        "sparse_attention": ("win_kv", "cmp_kv"), "store_kv": ("cache",), "store_state": ("state",),
    }  # fmt: skip
    assert {
        "far win_kv",
        "far cmp_kv",
        "NaN in padding",
        "-1 in entries",
        "length window+1",
        "half subnormal",
        "rows 0",
    } <= required(get_spec("sparse_attention"))
    assert {"-1 in slots", "stale rows", "several calls", "overlap across steps"} <= required(get_spec("compress_kv"))
    assert {"empty expert", "one expert", "-1 in ids", "offset view weights"} <= required(get_spec("moe_dispatch"))
    assert required(get_spec("engram_rows")) == {"offset view rows", *(f"rows {n}" for n in (0, 1, 3, 4, 5, 127, 128, 129))}


def every_float(change: Callable[[np.ndarray], np.ndarray]) -> Break:
    """Every float array of a case changed."""

    def spoil(made: CaseInputs) -> CaseInputs:
        floats = {name: f32(change(a)) for name, a in made.args.items() if a is not None and a.dtype.kind == "f"}
        return changed(made, **floats)

    return spoil


def near(made: CaseInputs) -> CaseInputs:
    """Blocks that 31 bits still reach."""
    return replace(made, far={name: replace(place, ids=place.ids // 4) for name, place in made.far.items()})


def contiguous(made: CaseInputs) -> CaseInputs:
    return changed(made, **{name: None if a is None else a.copy() for name, a in made.args.items()})


def without_minus_one(made: CaseInputs) -> CaseInputs:
    return changed(made, **{n: np.maximum(a, 0) for n, a in made.args.items() if a is not None and a.dtype == np.int32})


SPOILED: list[tuple[str, Break, set[str]]] = [
    ("sparse_attention", near, {"far win_kv", "far cmp_kv"}),
    ("store_kv", lambda made: replace(made, far={}), {"far cache"}),
    ("compress_kv", lambda made: replace(made, later=()), {"several calls"}),
    ("linear", contiguous, {"offset view x", "offset view weight", "offset view scale"}),
    ("store_kv", without_minus_one, {"-1 in slots"}),
    ("rms_norm", every_float(lambda a: np.where(np.abs(a) < 1e-3, 1, a)), {"subnormal", "half subnormal"}),
    ("rms_norm", every_float(lambda a: np.clip(a, -9, 9)), {"large", "half large"}),
    ("rms_norm", every_float(np.nan_to_num), {"NaN rows"}),
    ("mla_attention", every_float(np.nan_to_num), {"NaN in padding"}),
    ("mla_attention", every_float(lambda a: np.clip(a, -99, 99)), {"large", "stale rows"}),
    ("route", every_float(lambda a: np.clip(a + np.arange(a.size).reshape(a.shape) / 999, -99, 99)), {"ties", "one expert"}),
    ("index_topk", every_float(lambda a: a + np.arange(a.size).reshape(a.shape) / 999), {"ties", "tied blocks"}),
    ("expert_mlp", lambda made: changed(made, counts=i32(made.args["counts"]) + 1), {"empty expert", "one expert"}),
]


@pytest.mark.parametrize(("name", "spoil", "lost"), SPOILED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_property_is_read_from_the_arrays(name: str, spoil: Break, lost: set[str]) -> None:
    """Taken out of the arrays it is missing, whatever the cases are called."""
    assert lost <= {prop for prop, cases in table(name, spoil).items() if not cases}


@pytest.mark.parametrize("name", OP_NAMES)
def test_properties_reach_the_implementation(name: str) -> None:
    """Subnormals are still subnormal, and views still begin inside their memory, in the tensors of each compute dtype."""
    spec = get_spec(name)
    for case in load_cases(name):
        inputs = make_inputs(name, case)
        properties = shown(spec, case, inputs)
        for dtype in case.dtypes:
            tensors = {arg: t for arg, t in arguments(spec, inputs, dtype).items() if t is not None}
            for arg, tensor in tensors.items():
                if f"offset view {arg}" in properties:
                    assert tensor.storage_offset() > 0 and (tensor.numel() == 1 or not tensor.is_contiguous())
            floats = [t for t in tensors.values() if t.is_floating_point() and t.dtype != torch.float8_e4m3fn]
            if f"{'half ' * (dtype == 'float16')}subnormal" in properties:
                assert any(has_subnormal(t) for t in floats), f"{case.name} in {dtype}"


def has_subnormal(tensor: torch.Tensor) -> bool:
    size = tensor.double().abs()
    return bool(((size > 0) & (size < torch.finfo(tensor.dtype).smallest_normal)).any())


def flushed(tensor: torch.Tensor) -> torch.Tensor:
    """What a kernel sees that takes subnormal numbers for 0."""
    if not tensor.is_floating_point() or tensor.dtype == torch.float8_e4m3fn:
        return tensor
    return torch.where(tensor.abs() < torch.finfo(tensor.dtype).smallest_normal, 0, tensor)


def without_strides(tensor: torch.Tensor) -> torch.Tensor:
    """What a kernel reads that takes a view for a dense tensor."""
    return tensor.as_strided(tensor.shape, torch.empty(tensor.shape, device="meta").stride())


def without_offset(tensor: torch.Tensor) -> torch.Tensor:
    """What a kernel reads that begins where the memory begins."""
    return tensor.as_strided(tensor.shape, tensor.stride(), 0)


def notices(name: str, case: Case, dtype: str, seen: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Whether the comparison fails the reference behind this change of its arguments; written ones are changed in place."""
    spec, reference = get_spec(name), get_implementation(name, "reference")

    def implementation(*tensors: torch.Tensor | None, **attrs: Any) -> Any:
        given = {arg: None if t is None else seen(t) for arg, t in zip(spec.args, tensors, strict=True)}
        for (arg, before), tensor in zip(given.items(), tensors, strict=True):
            if arg in spec.mutates and seen is flushed and before is not None and tensor is not None:
                given[arg] = tensor.copy_(before)
        return reference(*given.values(), **attrs)

    try:
        return any(result.status == "fail" for result in judge_case(prepare(name, case, dtype), "changed", implementation))
    except (IndexError, RuntimeError, ValueError):
        return True  # a table full of what lay beside it


@pytest.mark.parametrize("name", [name for name in OP_NAMES if "subnormal" in required(get_spec(name)) and name != "route"])
def test_subnormals_count(name: str) -> None:
    """Whoever flushes them is found out, in each format. Scores of `route` do not feel them: only NaN could come of it."""
    for case in load_cases(name):
        if case.name in ("subnormal", "half-subnormal"):
            dtype = "float16" if case.name == "half-subnormal" else "float32"
            assert notices(name, case, dtype, flushed), case.name
            assert not notices(name, case, dtype, lambda tensor: tensor)


@pytest.mark.parametrize("seen", [without_strides, without_offset])
@pytest.mark.parametrize("name", OP_NAMES)
def test_views_count(name: str, seen: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Whoever ignores strides or offset is found out."""
    spec = get_spec(name)
    made = [(case, shown(spec, case, make_inputs(name, case))) for case in load_cases(name)]
    views = [case for case, properties in made if any(prop.startswith("offset view") for prop in properties)]
    assert all(notices(name, case, "float32", seen) for case in views)


def test_views_keep_their_neighbours(rng: Rng) -> None:
    """Between, before and behind the elements of a view lies NaN, in memory that is nobody else's."""
    x = f32(rng.standard_normal((3, 5)))
    for dtype in ("float32", "bfloat16", "float16"):
        view = arguments(get_spec("gelu"), CaseInputs({"x": strided(x)}), dtype)["x"]
        assert view is not None
        room = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage())
        assert room.numel() == 5 * 12 and int(room.isnan().sum()) == 60 - 15
        assert (view.storage_offset(), view.stride()) == (13, (12, 2))
        assert np.array_equal(to_numpy(view), torch.from_numpy(x).to(view.dtype).float().numpy())


def test_codes_in_a_view() -> None:
    """FP8 codes keep their bytes."""
    codes = np.arange(12, dtype=np.uint8).reshape(3, 4)
    made = CaseInputs({"x": f32(np.ones((1, 4))), "weight": strided(codes)}, {}, {"weight": "float8_e4m3fn"})
    weight = arguments(get_spec("linear"), made, "float32")["weight"]
    assert weight is not None and weight.dtype == torch.float8_e4m3fn
    assert weight.storage_offset() == 11 and not weight.is_contiguous()
    assert np.array_equal(to_numpy(weight), codes)


def test_half_subnormals_need_the_dtype() -> None:
    """In float32 a number of 2^-15 is nothing special."""
    made = CaseInputs({"x": f32([[2.0**-15]])})
    half, single = (Case("x", "hostile", lambda rng: made, (dtype,)) for dtype in ("float16", "float32"))
    assert "half subnormal" in shown(get_spec("gelu"), half, made)
    assert not {"half subnormal", "subnormal"} & shown(get_spec("gelu"), single, made)
