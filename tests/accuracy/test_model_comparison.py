# SPDX-License-Identifier: Apache-2.0
"""Two models in step: a wrong operator is named where it is, everything after it is told to have inherited its error."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ascend_dsv4 import LLM
from ascend_dsv4.accuracy.lockstep import Override, parse_override
from ascend_dsv4.accuracy.lockstep_runner import LockstepRunner
from ascend_dsv4.accuracy.model_comparison import Prompt, WalkOptions, compare_model
from ascend_dsv4.accuracy.node_results import NodeRecorder
from ascend_dsv4.accuracy.report.summary import first_introduced, ranking
from ascend_dsv4.accuracy.results import NodeResult, Report
from ascend_dsv4.backend.cpu import CpuBackend
from ascend_dsv4.engine.engine import Engine
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.errors import ConfigError, RequestError, UnsupportedError
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.registry import get_implementation

Wrong = Callable[..., Any]


def reference(name: str) -> Wrong:
    return get_implementation(name, "reference")


def transposed_mix(*tensors: Any, **attrs: Any) -> Any:
    """hc_pre with the streams mixed the other way round."""
    x, post, comb, pre = reference("hc_pre")(*tensors, **attrs)
    return x, post, comb.transpose(1, 2).contiguous(), pre


def without_sink(*tensors: Any, **attrs: Any) -> Any:
    """Attention whose softmax lacks the sink."""
    given = list(tensors)
    given[4] = torch.full_like(given[4], -math.inf)
    return reference("sparse_attention")(*given, **attrs)


def biased_weights(*tensors: Any, **attrs: Any) -> Any:
    """Routing weights from the second-best choice on."""
    ids, weights = reference("route")(*tensors, **attrs)
    return ids, weights.flip(1).contiguous()


def half_split(x: Any, cos: Any, sin: Any, **attrs: Any) -> Any:
    """Rotation by halves instead of neighbours."""
    return reference("rope")(x, cos, sin, **{**attrs, "layout": "halves"})


def shifted_slots(cache: Any, rows: Any, slots: Any, **attrs: Any) -> None:
    """Rows stored one slot on."""
    reference("store_kv")(cache, rows, torch.where(slots >= 0, (slots + 1) % (cache.shape[0] * cache.shape[1]), slots), **attrs)


def off_by_one_entries(*tensors: Any, **attrs: Any) -> Any:
    """An indexer that takes the neighbour of every entry."""
    entries, blocks = reference("index_topk")(*tensors, **attrs)
    return torch.where(entries > 0, entries - 1, entries), blocks


def broken(*tensors: Any, **attrs: Any) -> Any:
    """Any operator, where there is no device for it."""
    raise RuntimeError("no device")


PLANTED: dict[str, tuple[Wrong, str]] = {
    "hc_pre": (transposed_mix, "comb"),
    "sparse_attention": (without_sink, "o"),
    "route": (biased_weights, "weights"),
    "rope": (half_split, "y"),
    "store_kv": (shifted_slots, "cache"),
    "index_topk": (off_by_one_entries, "entries"),
}
"""Operator → a wrong one, and the output where it shows first."""


@pytest.fixture(scope="module")
def v4(golden_v4: Path) -> LLM:
    return LLM(golden_v4 / "fp8_fp4", ops="reference", weights="fp32", max_model_len=384, max_num_seqs=4, progress=False)


@pytest.fixture(scope="module")
def v41(golden_v41: Path) -> LLM:
    return LLM(golden_v41 / "fp8_fp4", ops="reference", weights="fp32", max_model_len=256, max_num_seqs=1, progress=False)


@pytest.fixture(scope="module")
def bf16(golden_v4: Path) -> LLM:
    return LLM(golden_v4 / "fp8_fp4", ops="reference", dtype="bfloat16", weights="bf16", kv_cache="bf16", max_model_len=384,
               max_num_seqs=4, progress=False)  # fmt: skip


@pytest.fixture(scope="module")
def prompt(golden_v4: Path) -> Prompt:
    return Prompt("len130", load_file(golden_v4 / "logits.safetensors")["len130.input_ids"][:70].tolist())


def compare(llm: LLM, prompt: Prompt, overrides: Sequence[Override], **options: Any) -> Report:
    return compare_model(llm.runner, None, [prompt], overrides, **{"greedy_tokens": 1, **options})


def check_planted(report: Report, op: str, output: str, num_layers: int) -> None:
    """The wrong operator of layer 3 is the first to err, nothing else errs, and later layers inherit."""
    first = first_introduced(report.nodes)
    assert first is not None
    assert (first.layer, first.op, first.output) == (3, op, output)
    assert {(node.layer, node.op) for node in report.nodes if node.state == "introduced"} == {(3, op)}
    assert ranking(report.nodes)[0].worst.op == op
    before = [node for node in report.nodes if node.step == 0 and node.number < first.number]
    assert before and {node.state for node in before} == {"same"}
    for layer in range(4, num_layers):
        states = [node.state for node in report.nodes if node.layer == layer and node.step == 0]
        assert states.count("inherited") > len(states) / 2, f"layer {layer}"
    assert report.exit_code == 1


@pytest.mark.parametrize("op", PLANTED)
def test_an_operator_wrong_in_layer_3_is_named(v4: LLM, prompt: Prompt, op: str) -> None:
    function, output = PLANTED[op]
    report = compare(v4, prompt, [Override(op, function, frozenset({3}), "mine")])
    names = {(node.layer, node.op): node.introduced.implementation for node in report.nodes}
    assert {place for place, name in names.items() if name == "mine"} == {(3, op)}
    check_planted(report, op, output, v4.config.num_hidden_layers)
    assert report.ends[0].kl_mean > 1e-5


@pytest.mark.parametrize("op", ["hc_pre", "sparse_attention", "route"])
def test_and_in_a_model_of_layers_that_share(golden_v41: Path, v41: LLM, op: str) -> None:
    ids = load_file(golden_v41 / "logits.safetensors")["len130.input_ids"][:24].tolist()
    function, output = PLANTED[op]
    report = compare(v41, Prompt("len130", ids), [Override(op, function, frozenset({3}))])
    check_planted(report, op, output, v41.config.num_hidden_layers)


def test_a_right_operator_is_not_accused(v4: LLM, prompt: Prompt) -> None:
    """A function of its own that computes the same: every node equal to the last bit, in chunks and decoding too."""
    same = Override("rope", lambda *a, **k: reference("rope")(*a, **k))
    report = compare(v4, prompt, [same], walk=WalkOptions(chunk_size=33), greedy_tokens=4)
    assert {node.state for node in report.nodes} == {"same"}
    assert {node.step for node in report.nodes} == {0, 1, 2, 3}  # three chunks and a decode step
    (end,) = report.ends
    assert (end.kl_max, end.top1_agreement, end.greedy_divergence, end.max_abs) == (0.0, 1.0, None, 0.0)
    assert report.exit_code == 0


def test_padding_is_not_compared(golden_v4: Path, prompt: Prompt) -> None:
    """What an operator leaves in padded rows is nobody's business."""
    llm = LLM(golden_v4 / "fp8_fp4", weights="fp32", max_model_len=128, max_num_seqs=1, batch_bucket=32, progress=False)

    def poisoned(name: str, *tensors: Any, **attrs: Any) -> Any:
        outs = reference(name)(*tensors, **attrs)
        rows = outs if isinstance(outs, tuple) else (outs,)
        for out in rows:
            out[70:] = math.nan if out.is_floating_point() else 7
        return outs

    for name in ("rms_norm", "hc_post"):
        report = compare(llm, prompt, [Override(name, lambda *a, name=name, **k: poisoned(name, *a, **k), frozenset({2}))],
                         walk=WalkOptions(prompts=["len130"]))  # fmt: skip
        assert [node for node in report.nodes if node.state == "introduced" and node.step == 0] == []


def test_an_operator_that_writes_its_arguments_is_named(v4: LLM, prompt: Prompt) -> None:
    def in_place(x: Any, weight: Any, **attrs: Any) -> Any:
        y = reference("rms_norm")(x, weight, **attrs)
        x.copy_(y)
        return y

    report = compare(v4, prompt, [Override("rms_norm", in_place, frozenset({3}))])
    first = first_introduced(report.nodes)
    assert first is not None and (first.layer, first.op) == (3, "rms_norm")
    assert "overwrote x" in first.introduced.reason


def test_bfloat16_introduces_nothing_beyond_its_tolerances(v4: LLM, bf16: LLM, prompt: Prompt) -> None:
    """Another number format all over: goldens are computed in it, so its own rounding is within every limit."""
    short = Prompt("short", prompt.token_ids[:36])
    report = compare_model(v4.runner, bf16.runner, [short], greedy_tokens=1)
    assert first_introduced(report.nodes) is None
    assert sum(node.state == "inherited" for node in report.nodes) > len(report.nodes) / 2
    assert max(node.introduced.ratio for node in report.nodes) > 0.1
    assert 0 < report.ends[0].kl_mean < 0.1
    # And one that rounds twice is found among all that rounding.
    wrong = Override("hc_post", lambda *a: reference("hc_post")(*a) * 1.03, frozenset({3}))
    first = first_introduced(compare_model(v4.runner, bf16.runner, [short], [wrong], greedy_tokens=1).nodes)
    assert first is not None and (first.layer, first.op) == (3, "hc_post")


def test_operators_that_round_in_mid_way_are_held_against_the_same_rounding(v4: LLM, bf16: LLM, prompt: Prompt) -> None:
    """A bfloat16 kernel of its own against a float32 model: its golden is the reference in bfloat16, to the last bit here."""
    short = Prompt("short", prompt.token_ids[:36])
    names = ("expert_mlp", "compress_kv", "index_topk", "store_kv")
    own = [Override(name, lambda *a, name=name, **k: reference(name)(*a, **k)) for name in names]
    options: dict[str, Any] = {"greedy_tokens": 1}
    report = compare_model(v4.runner, bf16.runner, [short], own, **options)
    ratios = {name: [node.introduced.ratio for node in report.nodes if node.op == name] for name in names}
    assert all(values and max(values) == 0 for values in ratios.values())
    wrong = Override("expert_mlp", lambda *a, **k: reference("expert_mlp")(*a, **{**k, "limit": 1.0}), frozenset({3}))
    first = first_introduced(compare_model(v4.runner, bf16.runner, [short], [wrong], **options).nodes)
    assert first is not None and (first.layer, first.op) == (3, "expert_mlp")


def test_a_last_bit_before_the_grid_is_no_error_behind_it(v4: LLM, prompt: Prompt) -> None:
    """Entries lie on the grids of the released model: a kernel that adds in another order lands on a neighbour now and then."""
    # Index keys lie on their grid whole; of the others the rotated channels do not, and keep their tolerance.
    width = 2 * v4.config.index_head_dim
    noise = 1 + 1e-3 * torch.randn(width)
    slightly, exactly = _unevenly(noise), reference("compress_kv")
    override = Override("compress_kv", lambda *a, **k: (slightly if a[2].shape[1] == width else exactly)(*a, **k))
    report = compare(v4, prompt, [override])
    caches = [node.introduced for node in report.nodes if (node.op, node.output) == ("compress_kv", "cache")]
    assert first_introduced(report.nodes) is None
    assert any(cache.figures.get("code_distance") == 1 and cache.figures["max_abs"] > 1e-2 for cache in caches)
    half = torch.ones(v4.config.head_dim * 2)
    half[::2] = 1.1
    first = first_introduced(compare(v4, prompt, [Override("compress_kv", _unevenly(half), frozenset({3}))]).nodes)
    assert first is not None and (first.layer, first.op, first.output) == (3, "compress_kv", "cache")


def _unevenly(factors: Any) -> Wrong:
    def call(cache: Any, state: Any, kv: Any, *rest: Any, **attrs: Any) -> None:
        kept = state.clone()
        reference("compress_kv")(cache, kept, kv * factors[: kv.shape[1]], *rest, **attrs)
        reference("compress_kv")(cache.clone(), state, kv, *rest, **attrs)

    return call


def test_weights_as_released_in_another_format(golden_v4: Path, prompt: Prompt) -> None:
    """FP8 and FP4 codes on both sides, activations in two formats."""
    options: dict[str, Any] = {"ops": "reference", "weights": "released", "max_model_len": 128, "max_num_seqs": 1}
    sides = [LLM(golden_v4 / "fp8_fp4", dtype=dtype, progress=False, **options) for dtype in ("float32", "bfloat16")]
    report = compare_model(sides[0].runner, sides[1].runner, [Prompt("p", prompt.token_ids[:20])], greedy_tokens=1)
    assert first_introduced(report.nodes) is None
    assert 0 < max(node.introduced.ratio for node in report.nodes if node.op == "expert_mlp") < 1


@pytest.mark.parametrize(("rows", "by", "accused"), [(1, 1.5, False), (1, 9.0, True), (40, 1.5, True)])
def test_a_few_elements_may_feel_a_rounding_in_mid_way(
    v4: LLM, bf16: LLM, prompt: Prompt, rows: int, by: float, accused: bool
) -> None:
    """One element in a thousand, up to a few limits; not more of them, and not further."""

    def off(*tensors: Any, **attrs: Any) -> Any:
        y = reference("expert_mlp")(*tensors, **attrs)
        y[:rows, 5] += by * (1e-3 + y[:rows, 5].abs() / 64)
        return y

    override = Override("expert_mlp", off, frozenset({3}))
    report = compare_model(v4.runner, bf16.runner, [Prompt("p", prompt.token_ids[:36])], [override], greedy_tokens=0)
    assert (first_introduced(report.nodes) is not None) == accused


class Elsewhere:
    """A backend that holds its tensors somewhere else: only what the protocol has may be used on them."""

    name = "elsewhere"

    def __init__(self) -> None:
        self._inner = CpuBackend("reference")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_other_backends_are_met_through_their_protocol(golden_v4: Path, v4: LLM, prompt: Prompt) -> None:
    for dtype, weights, cache in (("float32", "fp32", "float32"), ("bfloat16", "bf16", "bf16")):
        other = LLM(golden_v4 / "fp8_fp4", dtype=dtype, weights=weights, kv_cache=cache, max_model_len=384, max_num_seqs=4,
                    progress=False)  # fmt: skip
        other.runner.backend = Elsewhere()  # type: ignore[assignment]
        report = compare_model(v4.runner, other.runner, [Prompt("short", prompt.token_ids[:20])], greedy_tokens=1)
        assert first_introduced(report.nodes) is None
        assert ({node.state for node in report.nodes} == {"same"}) == (dtype == "float32")


def test_worst_elements_of_a_node(v4: LLM, prompt: Prompt) -> None:
    """One wrong number in one row is found with index, position and both values."""

    def one_off(*tensors: Any, **attrs: Any) -> Any:
        x, *rest = reference("hc_pre")(*tensors, **attrs)
        if x.shape[0] > 50:
            x[50, 17] += 3.0
        return x, *rest

    walk = WalkOptions(nodes=["layer3/hc_pre.1"], num_elements=3)
    report = compare(v4, prompt, [Override("hc_pre", one_off, frozenset({3}))], walk=walk)
    assert len(report.elements) == 3
    worst = report.elements[0]
    assert (worst.node, worst.output, worst.index, worst.position) == ("layer3/hc_pre.1", "x", (50, 17), 50)
    assert abs(worst.introduced - worst.golden - 3) < 1e-5
    assert (worst.row_over, worst.row_elements) == (1, v4.config.hidden_size)
    assert report.elements[1].ratio < 1


@pytest.mark.parametrize(("node", "near"), [("layer3/hc_pre.9", "layer3/hc_pre.1"), ("layer9/rope.0", "layer5/…")])
def test_a_node_that_is_not_there(v4: LLM, prompt: Prompt, node: str, near: str) -> None:
    with pytest.raises(RequestError, match="expected one of") as error:
        compare(v4, prompt, [Override("rope", half_split)], walk=WalkOptions(nodes=[node]))
    assert near in str(error.value)


def test_a_thing_is_not_compared_with_itself(golden_v4: Path, v4: LLM, prompt: Prompt) -> None:
    with pytest.raises(ConfigError, match="same function on both sides"):
        compare(v4, prompt, [])
    with pytest.raises(ConfigError, match="the function that the reference runs"):
        compare(v4, prompt, [Override("rope", reference("rope"))])
    with pytest.raises(ConfigError, match="expected a layer below 6"):
        compare(v4, prompt, [Override("rope", half_split, frozenset({6}))])
    other = LLM(golden_v4 / "fp8_fp4", weights="fp32", max_model_len=128, max_num_seqs=2, progress=False)
    with pytest.raises(ConfigError, match="cache sizes"):
        compare_model(v4.runner, other.runner, [prompt])


@pytest.mark.parametrize(("op", "layers", "said"), [
    ("gelu", None, "this model does not call it"), ("gelu", {3}, "layer 3 does not call it"),
    ("index_topk", {0, 3}, "layer 0 does not call it"), ("logits", {3}, "only these do: head"),
])  # fmt: skip
def test_an_override_that_nothing_calls(v4: LLM, prompt: Prompt, op: str, layers: set[int] | None, said: str) -> None:
    override = Override(op, broken, None if layers is None else frozenset(layers))
    with pytest.raises(ConfigError, match=said):
        compare_model(v4.runner, None, [prompt], [override])


def test_an_override_that_breaks_off(v4: LLM, prompt: Prompt) -> None:
    with pytest.raises(UnsupportedError, match=r"rms_norm\.0: RuntimeError: no device \(test_model_comparison\.py:\d+\)"):
        compare_model(v4.runner, None, [prompt], [Override("rms_norm", broken, frozenset({3}))])
    with pytest.raises(UnsupportedError, match=r"it is called as rms_norm\(x, weight, \*, eps\)"):
        compare_model(v4.runner, None, [prompt], [Override("rms_norm", lambda x: x)])


def test_zeros_on_both_sides_are_no_agreement(v4: LLM, prompt: Prompt) -> None:
    """A model whose attention is zero for a reason of its own passes no comparison."""
    broken = v4.runner.observed(lambda where: None, v4.engine_config)
    broken.backend = CpuBackend("reference")
    broken.backend.bound_ops().functions["sparse_attention"] = lambda *a, **k: torch.zeros_like(a[0])
    same = Override("rope", lambda *a, **k: reference("rope")(*a, **k))
    report = compare_model(broken, None, [prompt], [same], greedy_tokens=1)
    assert {node.state for node in report.nodes} == {"same"}
    assert report.exit_code == 1
    assert "layer0/sparse_attention.0 o" in report.findings[0]


def test_without_a_walk_only_ends_are_compared(v4: LLM, prompt: Prompt) -> None:
    report = compare(v4, prompt, [Override("rope", half_split, frozenset({3}))], walk=WalkOptions(prompts=()))
    assert report.nodes == () and report.ends[0].kl_mean > 0 and report.findings == ()


def test_what_cannot_be_walked(v4: LLM, prompt: Prompt) -> None:
    wrong = [Override("rope", half_split)]
    with pytest.raises(RequestError, match="at least one"):
        compare_model(v4.runner, None, [], wrong)
    with pytest.raises(RequestError, match="to be walked"):
        compare(v4, prompt, wrong, walk=WalkOptions(prompts=["other"]))
    with pytest.raises(UnsupportedError, match="opbase-double"):
        compare(v4, prompt, wrong, walk=WalkOptions(standard="opbase-double"))
    with pytest.raises(UnsupportedError, match="expected x float32"):
        compare(v4, prompt, [Override("hc_pre", lambda *a, **k: reference("hc_pre")(*a, **k)[0])])


def test_an_override_that_raises(v4: LLM, prompt: Prompt) -> None:
    def leaves(*tensors: Any, **attrs: Any) -> Any:
        raise SystemExit(0)

    with pytest.raises(UnsupportedError, match="override of rms_norm, node rms_norm.0: SystemExit"):
        compare(v4, prompt, [Override("rms_norm", leaves)])


def test_overrides_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("somebodys_kernels")
    module.rope = half_split  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys_kernels", module)
    assert parse_override("rope=somebodys_kernels:rope") == Override("rope", half_split, name="somebodys_kernels:rope")
    in_two = Override("rope", half_split, frozenset({3, 5}), "somebodys_kernels:rope")
    assert parse_override("rope@3,5=somebodys_kernels:rope") == in_two
    for text in ("rope", "rope=", "rope@=m:f", "rope@x=m:f", "rope=m", "=m:f"):
        with pytest.raises(ConfigError, match="op=module:function"):
            parse_override(text)
    with pytest.raises(UnsupportedError, match="no operator is called"):
        parse_override("ropes=somebodys_kernels:rope")
    with pytest.raises(UnsupportedError, match="expected a module that can be imported"):
        parse_override("rope=somebodys_kernels:nothing")


def test_nodes_of_batches_are_told_apart(v4: LLM, prompt: Prompt) -> None:
    """The runner over two others is an ordinary one: several requests in a step, the wrong operator found all the same."""
    recorder = NodeRecorder(dict.fromkeys(OP_NAMES, "test"))
    runner = LockstepRunner(v4.runner, v4.runner, [Override("route", biased_weights, frozenset({3}))], recorder)
    engine = Engine(runner.config, runner.engine, runner)
    requests = [engine.submit(ids, SamplingParams(max_tokens=2, temperature=0)) for ids in ([5, 6, 7], prompt.token_ids[:9])]
    while engine.has_work:
        engine.step()
    expected = [output.token_ids for output in v4.generate([[5, 6, 7], list(prompt.token_ids[:9])],
                                                           SamplingParams(max_tokens=2, temperature=0))]  # fmt: skip
    assert [request.output_ids for request in requests] == expected
    errors: list[NodeResult] = [node for node in recorder.nodes if node.state == "introduced"]
    assert {(node.layer, node.op) for node in errors} == {(3, "route")}
    assert np.isfinite([node.introduced.ratio for node in errors]).all()
