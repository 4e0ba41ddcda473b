# SPDX-License-Identifier: Apache-2.0
"""Contracts and their registration: torch schemas, fake kernels, argument checks, and what the registry refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ascend_dsv4.accuracy.calls import arguments, load_cases, make_inputs, same_bits
from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops import OP_NAMES, registry
from ascend_dsv4.ops.cases import Case, resolve_attrs
from ascend_dsv4.ops.library import library, overload, schema, tensor_type
from ascend_dsv4.ops.registry import bind, define, dtypes_of, get_implementation, get_spec, has_implementation, implements
from ascend_dsv4.ops.spec import FLOAT, INT, Arg, OpSpec, Out, ShapeError, TensorType, multiply_dims, resolve_dim

SMALL = ("tokens-3", "tokens-1", "rows-3", "csa-length-4")
SMALLEST = {name: next(case for case in load_cases(name) if case.name in SMALL) for name in OP_NAMES}
LAYOUTS = [
    (name, case)
    for name in OP_NAMES
    for case in load_cases(name)
    if case.kind == "typical" or case.name in ("tokens-0", "rows-0", "views", "view", "transposed", "poisoned-padding")
]
"""Typical arguments, none at all, and such as are not contiguous."""


def names(value: object) -> str:
    return value.name if isinstance(value, Case) else str(value)


@pytest.mark.parametrize("name", OP_NAMES)
def test_opcheck(name: str) -> None:
    """torch's own check: mutation as declared, no aliasing, fake kernel equal to the real one, traceable with any size."""
    inputs = make_inputs(name, SMALLEST[name])
    for dtype in SMALLEST[name].dtypes:
        tensors = arguments(get_spec(name), inputs, dtype)
        torch.library.opcheck(overload(name), tuple(tensors.values()), resolve_attrs(inputs, dtype))


@pytest.mark.parametrize(("name", "case"), LAYOUTS, ids=names)
def test_fake_kernels_agree(name: str, case: Case) -> None:
    """In shapes, dtypes and strides. A compiler lays out memory by the fake outputs, which are contiguous."""
    inputs = make_inputs(name, case)
    for dtype in case.dtypes:
        tensors, attrs = arguments(get_spec(name), inputs, dtype), resolve_attrs(inputs, dtype)
        with FakeTensorMode() as mode:
            fake = [None if t is None else mode.from_tensor(t) for t in tensors.values()]
            promised = [(t.shape, t.dtype) for t in as_tuple(overload(name)(*fake, **attrs))]
        actual = as_tuple(overload(name)(*tensors.values(), **attrs))
        assert promised == [(t.shape, t.dtype) for t in actual]
        assert all(t.is_contiguous() for t in actual)


@pytest.mark.parametrize(("name", "case"), LAYOUTS, ids=names)
def test_outputs_are_fresh_memory(name: str, case: Case) -> None:
    """No output is an argument, or a view of one: whoever writes to it would change the other."""
    inputs = make_inputs(name, case)
    tensors = arguments(get_spec(name), inputs, "float32")
    outs = as_tuple(overload(name)(*tensors.values(), **resolve_attrs(inputs, "float32")))
    taken = {t.untyped_storage().data_ptr() for t in tensors.values() if t is not None and t.numel()}
    mine = [t.untyped_storage().data_ptr() for t in outs if t.numel()]
    assert not taken & set(mine)
    assert len(set(mine)) == len(mine)


def as_tuple(outs: Any) -> tuple[Any, ...]:
    return () if outs is None else outs if isinstance(outs, tuple) else (outs,)


@pytest.mark.parametrize("name", OP_NAMES)
def test_schema(name: str) -> None:
    """What torch registered is what the contract says: order, optional and written arguments, attributes by keyword."""
    spec, registered = get_spec(name), overload(name)._schema
    assert str(registered) == f"ascend_dsv4::{schema(spec)}"
    tensors = [a for a in registered.arguments if not a.kwarg_only]
    assert [a.name for a in tensors] == list(spec.args)
    assert [a.name for a in tensors if a.alias_info is not None and a.alias_info.is_write] == list(spec.mutates)
    assert [a.name for a in tensors if str(a.type) == "Optional[Tensor]"] == [n for n, arg in spec.args.items() if arg.optional]
    assert [a.name for a in registered.arguments if a.kwarg_only] == list(spec.attrs)
    assert not any(a.has_default_value() for a in registered.arguments), "the model supplies every value"
    assert len(registered.returns) == len(spec.outs)


def test_operators_that_write_return_nothing() -> None:
    writing = {name for name in OP_NAMES if get_spec(name).mutates}
    assert writing == {"store_kv", "store_state", "compress_kv"}
    for name in writing:
        assert schema(get_spec(name)).endswith("-> ()")
    assert schema(get_spec("store_kv")) == (
        "store_kv(Tensor(a!) cache, Tensor rows, Tensor slots, *, str rounding, int rope_dim) -> ()"
    )
    assert "Tensor(a!) cache, Tensor(b!) state, Tensor kv" in schema(get_spec("compress_kv"))


def test_schema_examples() -> None:
    assert schema(get_spec("linear")) == (
        "linear(Tensor x, Tensor weight, Tensor? scale, *, int[2] block, str out_dtype) -> Tensor"
    )
    assert schema(get_spec("hc_post")) == "hc_post(Tensor x, Tensor streams, Tensor post, Tensor comb) -> Tensor"
    assert schema(get_spec("route")).endswith("-> (Tensor, Tensor)")
    assert library() is library()


def test_the_registered_kernel_is_the_reference() -> None:
    x, weight = torch.randn(5, 8), torch.randn(8)
    expected = get_implementation("rms_norm", "reference")(x, weight, eps=1e-6)
    assert same_bits(torch.ops.ascend_dsv4.rms_norm(x, weight, eps=1e-6), expected)


def test_survives_torch_compile() -> None:
    """A mutating operator keeps its place between two readers of the cache it writes."""

    def step(cache: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        before = cache.sum()
        torch.ops.ascend_dsv4.store_kv(cache, rows, slots, rounding="none", rope_dim=0)
        return before, cache.sum()

    library()
    cache, slots = torch.zeros(2, 2, 4), torch.tensor([1, -1], dtype=torch.int32)
    before, after = torch.compile(step, backend="aot_eager", fullgraph=True)(cache, torch.ones(2, 4), slots)
    assert (before.item(), after.item()) == (0.0, 4.0)
    assert cache[0, 1].tolist() == [1.0] * 4


DOT = OpSpec(
    "dot",
    args={"x": Arg(("rows", "...", "width"), FLOAT), "y": Arg(("width", 3), INT, optional=True)},
    outs={"sums": Out(("rows", "...", "2*count"), "=x"), "ids": Out(("rows//parts", 3), "@out_dtype")},
    attrs={"count": "int", "parts": "int", "out_dtype": "str"},
    source="made up",
)
ATTRS = {"count": 5, "parts": 2, "out_dtype": "int8"}
X, Y = TensorType((8, 4, 6, 7), "bfloat16"), TensorType((7, 3), "int32")


class TestSpec:
    def test_infer(self) -> None:
        assert DOT.infer([X, Y], ATTRS) == (TensorType((8, 4, 6, 10), "bfloat16"), TensorType((4, 3), "int8"))
        assert DOT.infer([TensorType((8, 7), "float32"), None], ATTRS)[0] == TensorType((8, 10), "float32")

    def test_infer_keeps_symbols(self) -> None:
        symbolic = TensorType(("num_tokens", 7), "float32")
        sums, _ = OpSpec("s", {"x": DOT.args["x"]}, {"y": Out(("rows*width",), "=x"), "z": Out(("rows",), "int32")}, "").infer(
            [symbolic], {}
        )
        assert sums.shape == ("7*num_tokens",)
        assert sums.num_bytes(num_tokens=10) == 280

    def test_dimensions(self) -> None:
        assert [multiply_dims(*pair) for pair in ((3, 4), ("n", 2), (2, "n"), (1, "n"), ("n", 1))] == [
            12,
            "2*n",
            "2*n",
            "n",
            "n",
        ]
        assert [resolve_dim(dim, {"n": 5}) for dim in (3, "n", "2*n")] == [3, 5, 10]

    @pytest.mark.parametrize(
        ("types", "message"),
        [
            ([None, Y], "dot: argument 'x' is None but not optional"),
            ([TensorType((8, 7), "int32"), Y], "dot: x has dtype int32, expected one of float32, bfloat16, float16, float64"),
            ([X, TensorType((6, 3), "int32")], r"dot: y has shape \[6, 3\], expected \[width=7, 3\]"),
            ([X, TensorType((7, 4), "int32")], r"dot: y has shape \[7, 4\], expected \[width=7, 3\]"),
            ([X, TensorType((7,), "int32")], r"dot: y has shape \[7\], expected \[width=7, 3\]"),
            ([TensorType((8,), "float32"), Y], r"dot: x has shape \[8\], expected \[rows, ..., width\]"),
        ],
    )
    def test_check_call_refuses(self, types: list[TensorType | None], message: str) -> None:
        with pytest.raises(ShapeError, match=f"^{message}$"):
            DOT.check_call(types, ATTRS)

    def test_bind(self) -> None:
        assert DOT.bind(["x"], ATTRS) == (["x", None], ATTRS)
        assert DOT.bind(["x", "y", 5, 2, "int8"], {}) == (["x", "y"], ATTRS)
        assert DOT.bind([], {**ATTRS, "y": "y", "x": "x"}) == (["x", "y"], ATTRS)

    @pytest.mark.parametrize(
        ("args", "kwargs", "message"),
        [
            ([1, 2, 3, 4, 5, 6], {}, "dot: got 6 positional arguments, takes 5: x, y, count, parts, out_dtype"),
            ([1], {**ATTRS, "x": 2}, "dot: argument 'x' given twice"),
            ([1], {**ATTRS, "z": 2}, "dot: unknown argument 'z'; takes x, y, count, parts, out_dtype"),
            ([], {"count": 1}, "dot: missing x, parts, out_dtype"),
        ],
    )
    def test_bind_refuses(self, args: list[Any], kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
            DOT.bind(args, kwargs)

    @pytest.mark.parametrize("name", OP_NAMES)
    def test_a_wrong_rank_is_refused(self, name: str) -> None:
        """Every tensor of every operator: one axis more than its contract has, and a dtype that no contract has."""
        spec, case = get_spec(name), next(case for case in load_cases(name) if case.kind == "typical")
        inputs = make_inputs(name, case)
        types = [None if t is None else tensor_type(t) for t in arguments(spec, inputs, "float32").values()]
        attrs = resolve_attrs(inputs, "float32")
        spec.check_call(types, attrs)
        for i, (arg, found) in enumerate(zip(spec.args, types, strict=True)):
            if found is None:
                continue
            bad = [TensorType(found.shape, "bool")]
            bad += [] if "..." in spec.args[arg].shape else [TensorType((1, *found.shape), found.dtype)]
            for wrong in bad:
                with pytest.raises(ShapeError, match=f"^{name}: {arg} has "):
                    spec.check_call([*types[:i], wrong, *types[i + 1 :]], attrs)


class TestRegistry:
    def test_duplicates(self) -> None:
        with pytest.raises(ValueError, match="operator 'rms_norm' is defined twice"):
            define(get_spec("rms_norm"))
        get_implementation("rms_norm", "reference")
        with pytest.raises(ValueError, match="operator 'rms_norm' has two implementations called 'reference'"):
            implements(get_spec("rms_norm"), "reference")(lambda: None)

    def test_unknown_names(self) -> None:
        with pytest.raises(UnsupportedError, match=r"called .rmsnorm. \(did you mean rms_norm\?\), expected"):
            get_spec("rmsnorm")
        with pytest.raises(UnsupportedError, match="unknown implementation 'fast', expected reference.*module:function"):
            get_implementation("embed", "fast")
        with pytest.raises(UnsupportedError, match="ops='quick': no such op set; choose one of auto, reference"):
            bind("quick")

    def test_bind_names_everything_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(registry.OP_SETS, "half", ("half",))
        monkeypatch.setitem(registry.IMPLEMENTATION_MODULES, "half", "no_such_file")
        with pytest.raises(UnsupportedError, match="ops='half': no 'half' implementation of embed, rope"):
            bind("half", ["embed", "rope"])

    def test_a_set_takes_the_first_implementation_that_there_is(self) -> None:
        bound = bind("ascendc-twin", ["embed", "hc_post", "rope"])
        assert bound.implementations == {"embed": "reference", "hc_post": "ascendc-twin", "rope": "reference"}
        assert bound.implementation == "ascendc-twin (hc_post), reference (all others)"
        assert bound.functions["hc_post"] is get_implementation("hc_post", "ascendc-twin")
        assert bound.functions["rope"] is get_implementation("rope", "reference")

    @pytest.mark.parametrize("op", OP_NAMES)
    def test_implementations_that_an_operator_lacks(self, op: str) -> None:
        if has_implementation(op, "ascendc-twin"):
            assert dtypes_of(op, "ascendc-twin") <= dtypes_of(op, "reference")
            return
        with pytest.raises(UnsupportedError, match=f"'{op}': it has no implementation 'ascendc-twin', expected one"):
            get_implementation(op, "ascendc-twin")

    def test_without_a_compiler_no_kernels_are_bound(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        assert bind("ascendc-twin", ["rope"]).implementation == "reference"
        with pytest.raises(UnsupportedError, match=r"no C\+\+ compiler; expected g\+\+ or clang\+\+.*because.*install"):
            bind("ascendc-twin")

    def test_anybodys_function(self) -> None:
        assert get_implementation("rms_norm", "math:hypot")(3.0, 4.0) == 5.0

    def test_bound_operators(self) -> None:
        """By name; those that write return the handles they were given."""
        ops = bind("reference")
        assert ops.implementation == "reference"
        x = torch.ones(2, 4)
        assert torch.equal(ops.rms_norm(x, weight=None, eps=0.0), x)
        cache = torch.zeros(1, 2, 4)
        assert ops.store_kv(cache, x, torch.tensor([0, 1], dtype=torch.int32), rounding="none", rope_dim=0) is cache
        with pytest.raises(ShapeError, match="rms_norm: missing eps"):
            ops.rms_norm(x, None)
        with pytest.raises(AttributeError, match="operator 'softmax' is not bound"):
            ops.softmax(x)
