# SPDX-License-Identifier: Apache-2.0
"""The result for a row is the same to the last bit whatever else is in the call: alone, behind other rows, in another order,
repeated, beside poisoned padding, at another address, with one thread or two.

Schedules may cut and batch requests anywhere only because this holds for every operator. Those that carry state from step to
step are tried in test_chunks.py and test_pooling.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ascend_dsv4.accuracy.calls import arguments, call, same_bits
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.cases import CaseInputs, Step, f32, i32, normal, random_factors, random_fp4, random_fp8, random_scales
from ascend_dsv4.ops.engram_gate.cases import inputs as gate_inputs
from ascend_dsv4.ops.engram_rows.cases import inputs as engram_inputs
from ascend_dsv4.ops.index_topk.cases import inputs as index_inputs
from ascend_dsv4.ops.index_topk.cases import restricted
from ascend_dsv4.ops.index_topk.reference import index_scores
from ascend_dsv4.ops.mla_attention.cases import inputs as mla_inputs
from ascend_dsv4.ops.registry import get_spec
from ascend_dsv4.ops.route.cases import ATTRS as ROUTE_ATTRS
from ascend_dsv4.ops.sparse_attention.cases import inputs as attention_inputs
from ascend_dsv4.ops.vision_block.cases import inputs as vision_inputs
from tests.ops.harness import Array, run

NUM_ROWS = 37
PADDING = {"positions": -1, "req_idx": -1, "slots": -1, "ids": -1, "input_ids": 0, "top_k": 0, "entries": -1, "candidates": -1}
"""What integer arguments hold in a padding row; floats hold NaN."""

Tensors = dict[str, Tensor]
RowFunction = Callable[[Tensors], Tensors]


@dataclass(frozen=True)
class Rows:
    """A function of rows: `function` maps tensors with one row per first index to outputs with one row per first index."""

    rows: Tensors
    function: RowFunction


def of_op(name: str, inputs: CaseInputs, row_args: tuple[str, ...], dtype: str = "float32") -> Rows:
    """An operator as a function of those of its arguments that have a row per token."""
    tensors = arguments(get_spec(name), inputs, dtype)
    rows = {arg: tensor for arg in row_args if (tensor := tensors[arg]) is not None}
    attrs = {key: dtype if value == "<compute dtype>" else value for key, value in inputs.attrs.items()}
    return Rows(rows, lambda selected: call(name, "reference", {**tensors, **selected}, attrs))


def random_rows(name: str, fixed: dict[str, Array | None], attrs: dict[str, Any] | None = None, **shapes: Any) -> Rows:
    """An operator on 37 random rows per given shape, with the other arguments fixed."""
    rng = np.random.default_rng(5)
    made = {arg: normal(rng, NUM_ROWS, *shape) for arg, shape in shapes.items()}
    weight = fixed.get("weight")
    dtypes = {"weight": "float8_e4m3fn"} if weight is not None and weight.dtype == np.uint8 else {}
    return of_op(name, CaseInputs({**made, **fixed}, attrs or {}, dtypes), tuple(made))


def linears() -> Iterator[tuple[str, Rows]]:
    rng = np.random.default_rng(1)
    attrs = {"block": (128, 128), "out_dtype": "float32"}
    for width, out in ((33, 3), (100, 1), (64, 513), (512, 4), (4096, 256), (7168, 24), (28672, 24)):
        fixed = {"weight": normal(rng, out, width), "scale": None}
        yield f"linear-{width}x{out}", random_rows("linear", fixed, attrs, x=(width,))
    fp8 = {"weight": random_fp8(rng, 130, 200), "scale": random_scales(rng, 2, 2)}
    yield "linear-fp8", random_rows("linear", fp8, attrs, x=(200,))
    factors = {"weight": random_fp8(rng, 130, 200), "scale": random_factors(rng, 2, 2)}
    yield "linear-float-scales", random_rows("linear", factors, attrs, x=(200,))
    fp4 = {"weight": random_fp4(rng, 40, 128), "scale": random_scales(rng, 40, 8)}
    yield "linear-fp4", random_rows("linear", fp4, attrs, x=(256,))
    grouped = {"weight": normal(rng, 3 * 7, 33), "scale": None}
    yield "grouped_linear-33", random_rows("grouped_linear", grouped, {"block": (1, 1)}, x=(3, 33))
    grouped = {"weight": normal(rng, 2 * 64, 4096), "scale": None}
    yield "grouped_linear-4096", random_rows("grouped_linear", grouped, {"block": (1, 1)}, x=(2, 4096))
    head = {"x": normal(rng, 50, 4096), "weight": normal(rng, 129, 4096)}
    chosen = CaseInputs({**head, "rows": i32(rng.permutation(50)[:NUM_ROWS])})
    yield "logits-4096", of_op("logits", chosen, ("rows",))
    yield "logits-4096-bf16", of_op("logits", chosen, ("rows",), "bfloat16")


def elementwise() -> Iterator[tuple[str, Rows]]:
    rng = np.random.default_rng(2)
    ids = CaseInputs(
        {"input_ids": i32(rng.integers(0, 50, NUM_ROWS)), "weight": normal(rng, 50, 24)}, {"hc_mult": 4, "out_dtype": "float32"}
    )
    yield "embed", of_op("embed", ids, ("input_ids",))
    for width in (1, 33, 512, 4096, 7168, 28672, 40000):  # from 32768 on torch splits a sum between threads
        yield f"rms_norm-{width}", random_rows("rms_norm", {"weight": normal(rng, width)}, {"eps": 1e-6}, x=(width,))
    yield "concat", random_rows("concat", {}, {}, x=(3, 33), y=(3, 7))
    yield "rms_norm-heads", random_rows("rms_norm", {"weight": None}, {"eps": 1e-6}, x=(3, 129))
    for width in (1, 33, 128, 40000):
        fixed = {"weight": normal(rng, width), "bias": normal(rng, width)}
        yield f"layer_norm-{width}", random_rows("layer_norm", fixed, {"eps": 1e-6}, x=(width,))
    for width in (1, 33, 2048):
        yield f"swiglu-{width}", random_rows("swiglu", {}, {"limit": 1.0}, gate=(width,), up=(width,))
    for layout in ("adjacent", "halves"):
        turn = {"inverse": False, "start": 29, "layout": layout}
        yield f"rope-{layout}", random_rows("rope", {}, turn, x=(5, 43), cos=(7,), sin=(7,))
    for width in (1, 7, 33, 2048, 40000):
        yield f"gelu-{width}", random_rows("gelu", {}, x=(width,))
    positions = i32(rng.integers(0, 1 << 20, NUM_ROWS))
    for half in (1, 3, 32):
        angles = CaseInputs({"positions": positions, "inv_freq": f32(rng.random(half))}, {"offset": -3})
        yield f"step_metadata-{half}", of_op("step_metadata", angles, ("positions",))


def vision() -> Iterator[tuple[str, Rows]]:
    rng = np.random.default_rng(10)
    for width, out in ((33, 3), (588, 1024), (9216, 40)):
        fixed = {"weight": normal(rng, out, width), "bias": normal(rng, out)}
        yield f"linear_bias-{width}x{out}", random_rows("linear_bias", fixed, {"out_dtype": "float32"}, x=(width,))
    blocks = {"x": normal(rng, 90, 33), "patch_ids": i32(rng.integers(-1, 90, (NUM_ROWS, 9)))}
    yield "merge_patches", of_op("merge_patches", CaseInputs(blocks), ("patch_ids",))


def hyper_connections() -> Iterator[tuple[str, Rows]]:
    rng = np.random.default_rng(3)
    eps = {"hc_eps": 1e-6, "norm_eps": 1e-6}
    attrs = {**eps, "sinkhorn_iters": 20}
    for hidden in (9, 4096, 7168):
        base, scale = normal(rng, 24), f32([0.7, 1.3, 0.9])
        fixed = {"fn": normal(rng, 24, 4 * hidden, scale=hidden**-0.5), "base": base, "scale": scale}
        yield f"hc_pre-{hidden}", random_rows("hc_pre", fixed, attrs, streams=(4, hidden))
        yield f"hc_pre-delayed-{hidden}", random_rows("hc_pre", fixed, attrs, streams=(4, hidden), mix=(4,))
        yield f"hc_collapse-{hidden}", random_rows("hc_collapse", {}, {}, streams=(4, hidden), mix=(4,))
        head = {"fn": fixed["fn"][:4], "base": base[:4], "scale": scale[:1]}
        yield f"hc_head-{hidden}", random_rows("hc_head", head, eps, streams=(4, hidden))
    yield "hc_post", random_rows("hc_post", {}, {}, x=(33,), streams=(4, 33), post=(4,), comb=(4, 4))


def engram() -> Iterator[tuple[str, Rows]]:
    for format, dim in (("fp8", 256), ("bf16", 9), ("int8", 64), ("int4", 32)):
        packed = engram_inputs(np.random.default_rng(14), NUM_ROWS, format, head_dim=dim)
        yield f"engram_rows-{format}", of_op("engram_rows", packed, ("rows",))
    for hidden in (9, 128, 5120):
        gated = gate_inputs(np.random.default_rng(15), NUM_ROWS, hidden_size=hidden)
        yield f"engram_gate-{hidden}", of_op("engram_gate", gated, ("streams", "kv", "is_image"))


def routing_and_sampling() -> Iterator[tuple[str, Rows]]:
    rng = np.random.default_rng(4)
    attrs = {**ROUTE_ATTRS, "topk": 6}
    for experts in (7, 256, 384):
        args = {"logits": normal(rng, NUM_ROWS, experts), "bias": normal(rng, experts), "input_ids": i32([0] * NUM_ROWS)}
        yield f"route-{experts}", of_op("route", CaseInputs(args, attrs), ("logits", "input_ids"))
    table = i32(rng.integers(0, 256, (50, 6)))
    hashed = {"logits": normal(rng, NUM_ROWS, 256), "tid2eid": table, "input_ids": i32(rng.integers(0, 50, NUM_ROWS))}
    yield "route-hashed", of_op("route", CaseInputs(hashed, attrs), ("logits", "input_ids"))
    images = {
        "logits": normal(rng, NUM_ROWS, 256), "bias": normal(rng, 256), "input_ids": i32([0] * NUM_ROWS),
        "bias_vl": normal(rng, 256), "is_image": i32(rng.integers(0, 2, NUM_ROWS)),
    }  # fmt: skip
    grouped = {**attrs, "scoring": "sigmoid", "norm_eps": 1e-20, "n_group": 8, "topk_group": 4}
    yield "route-groups", of_op("route", CaseInputs(images, grouped), ("logits", "input_ids", "is_image"))
    drawn = {
        "logits": normal(rng, NUM_ROWS, 1003), "temperature": f32(rng.choice([0, 0.5, 1], NUM_ROWS)),
        "top_k": i32(rng.choice([0, 9, 100], NUM_ROWS)), "top_p": f32(rng.choice([0.5, 1], NUM_ROWS)),
        "min_p": f32(rng.choice([0, 0.1], NUM_ROWS)), "uniform": rng.random(NUM_ROWS),
    }  # fmt: skip
    yield "sample", of_op("sample", CaseInputs(drawn), tuple(drawn))
    for vocab_size, count in ((1003, 40), (65, 65), (7, 1)):
        per_row = {
            "logits": normal(rng, NUM_ROWS, vocab_size),
            "allowed": i32(rng.integers(-1 << 31, 1 << 31, (NUM_ROWS, -(-vocab_size // 32)))),
            "ids": i32([rng.permutation(vocab_size)[:count] for _ in range(NUM_ROWS)]),
            "repetition": f32(rng.uniform(0.5, 2, (NUM_ROWS, count))), "bias": normal(rng, NUM_ROWS, count),
        }  # fmt: skip
        per_row["ids"][rng.random((NUM_ROWS, count)) < 0.2] = -1
        yield f"adjust_logits-{vocab_size}", Rows({k: torch.from_numpy(v) for k, v in per_row.items()}, adjusted_rows)


def adjusted_rows(selected: Tensors) -> Tensors:
    """adjust_logits as a function of rows: each brings as many adjustments (id -1 for none), which go in at random."""
    ids = selected["ids"]
    rows = torch.arange(len(ids), dtype=torch.int32)[:, None].expand(ids.shape)
    entries = {"rows": torch.where(ids < 0, -1, rows), **{name: selected[name] for name in ("ids", "repetition", "bias")}}
    order = torch.from_numpy(np.random.default_rng(ids.numel()).permutation(ids.numel()))
    shuffled = {name: tensor.reshape(-1)[order] for name, tensor in entries.items()}
    args: dict[str, Tensor | None] = {"logits": selected["logits"], **shuffled, "allowed": selected["allowed"]}
    return call("adjust_logits", "reference", args, {})


def experts() -> Iterator[tuple[str, Rows]]:
    """moe_dispatch, expert_mlp and moe_combine in a row: a token's position among its expert's rows must not matter."""
    rng = np.random.default_rng(6)
    for name, hidden, inter, quantised in (("plain", 33, 7, False), ("wide", 4096, 32, False), ("fp4", 64, 64, True)):
        fixed: dict[str, Array] = {"w13": normal(rng, 4, 2 * inter, hidden), "w2": normal(rng, 4, hidden, inter)}
        if quantised:
            fixed = {"w13": random_fp4(rng, 4, 2 * inter, hidden // 2), "w2": random_fp4(rng, 4, hidden, inter // 2)}
            fixed |= {"w13_scale": random_scales(rng, 4, 2 * inter, hidden // 32)}
            fixed |= {"w2_scale": random_scales(rng, 4, hidden, inter // 32)}
        ids = i32([rng.permutation(4)[:2] for _ in range(NUM_ROWS)])
        ids[3] = -1, 2
        rows = {"x": normal(rng, NUM_ROWS, hidden), "ids": ids, "weights": f32(rng.random((NUM_ROWS, 2)))}
        weights = {arg: torch.from_numpy(array) for arg, array in fixed.items()}
        yield f"experts-{name}", Rows({k: torch.from_numpy(v) for k, v in rows.items()}, expert_pipeline(weights))


def expert_pipeline(weights: Tensors) -> RowFunction:
    def function(selected: Tensors) -> Tensors:
        sent = call("moe_dispatch", "reference", {**selected}, {"num_experts": 4})
        total = int(sent["counts"].sum())
        for name in ("rows", "row_weights"):
            sent[name][total:] = torch.nan  # what lies past the last expert's rows must reach nothing
        args = {name: sent[name] for name in ("rows", "row_weights", "counts")}
        quantised = {name: weights.get(name) for name in ("w13", "w13_scale", "w2", "w2_scale")}
        y = call("expert_mlp", "reference", {**args, **quantised}, {"block": (1, 1), "limit": 1.0})["y"]
        y[total:] = torch.nan
        combined = call("moe_combine", "reference", {"rows": y, "row_of": sent["row_of"]}, {})["y"]
        at = sent["row_of"].clamp(min=0).long()
        present = sent["row_of"] >= 0
        copied = torch.where(present[..., None], sent["rows"][at], 0)
        return {"y": combined, "rows": copied, "weights": torch.where(present, sent["row_weights"][at], 0)}

    return function


def caches() -> Iterator[tuple[str, Rows]]:
    rng = np.random.default_rng(7)
    step = Step(((0, 12), (250, 20), (61, 5)))
    assert step.num_tokens == NUM_ROWS
    for rounding, width in (
        ("none", 33), ("fp8", 512), ("fp8", 100), ("hadamard_fp4", 128), ("fp8_b32", 512), ("fp4_b32", 128),
        ("fp4_b16_e4m3", 512), ("fp4_b16_e4m3", 100),
    ):  # fmt: skip
        stored = Rows({"rows": torch.from_numpy(normal(rng, NUM_ROWS, width))}, written_rows(rounding))
        yield f"store_kv-{rounding}-{width}", stored
    for heads, dim in ((64, 128), (3, 20), (1, 16)):
        scored = index_inputs(np.random.default_rng(8), step, heads=heads, head_dim=dim, topk=9)
        yield f"index_topk-{heads}x{dim}", of_op("index_topk", scored, ("q", "weights", "positions", "req_idx"))
        options = {"heads": heads, "head_dim": dim, "topk": 9, "ratio": 1, "candidate_block": 8}
        published = index_inputs(np.random.default_rng(8), step, num_candidates=5, **options)
        yield f"index_topk-publish-{heads}x{dim}", of_op("index_topk", published, ("q", "weights", "positions", "req_idx"))
        chosen = restricted(np.random.default_rng(8), step, 3, **options)
        row_args = ("q", "weights", "positions", "req_idx", "candidates")
        yield f"index_topk-restricted-{heads}x{dim}", of_op("index_topk", chosen, row_args)
    for heads, dim, topk in ((64, 512, 9), (3, 20, None), (1, 16, 9)):
        seen = attention_inputs(np.random.default_rng(9), step, heads=heads, head_dim=dim, topk=topk, window=128)
        row_args = ("q", "positions", "req_idx", *(["entries"] if topk else []))
        yield f"sparse_attention-{heads}x{dim}", of_op("sparse_attention", seen, row_args)
    for heads, width, topk in ((128, 576, 9), (64, 576, None), (3, 20, None), (1, 17, 9)):
        seen = mla_inputs(np.random.default_rng(10), step, heads=heads, width=width, value_dim=width * 8 // 9, topk=topk)
        row_args = ("q", "positions", "req_idx", *(["entries"] if topk else []))
        yield f"mla_attention-{heads}x{width}", of_op("mla_attention", seen, row_args)


def written_rows(rounding: str) -> RowFunction:
    """store_kv as a function of rows: each goes to a random slot and is read from there."""

    def function(selected: Tensors) -> Tensors:
        count, width = selected["rows"].shape
        slots = torch.from_numpy(np.random.default_rng(count).permutation(200)[:count]).int()
        cache = torch.full((25, 8, width), 7.0)
        attrs = {"rounding": rounding, "rope_dim": 16}
        call("store_kv", "reference", {"cache": cache, "rows": selected["rows"], "slots": slots}, attrs)
        assert int((cache == 7).all(-1).sum()) == 200 - count
        return {"cache": cache.view(200, width)[slots.long()]}

    return function


NO_ROWS = {"place_rows"}
"""Its rows are put where they belong one by one; nothing is computed."""
FAMILIES = (linears, elementwise, vision, hyper_connections, engram, routing_and_sampling, experts, caches)
ALL_ROWS = dict(pair for family in FAMILIES for pair in family())


def padded(rows: Tensors, count: int) -> Tensors:
    """The rows with `count` poisoned rows of padding behind them."""
    out = {}
    for name, tensor in rows.items():
        value = torch.nan if tensor.is_floating_point() else PADDING.get(name, 0)
        out[name] = torch.cat([tensor, torch.full((count, *tensor.shape[1:]), value, dtype=tensor.dtype)])
    return out


def elsewhere(tensor: Tensor) -> Tensor:
    """The same values in a view whose rows begin at odd addresses."""
    room = torch.zeros(len(tensor), tensor[0].numel() + 3, dtype=tensor.dtype)
    view = room[:, 1:-2]
    view[...] = tensor.reshape(view.shape)
    return view[:, 0] if tensor.dim() == 1 else view.reshape(tensor.shape)


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ALL_ROWS)
def test_rows_do_not_depend_on_each_other(name: str, threads: int) -> None:
    rows, function = ALL_ROWS[name].rows, ALL_ROWS[name].function
    whole = function(rows)
    order = torch.from_numpy(np.random.default_rng(11).permutation(NUM_ROWS))
    selections = {f"row {i} alone": torch.tensor([i]) for i in (0, 5, 36)}
    selections |= {f"from row {i}": torch.arange(i, NUM_ROWS) for i in (1, 15)}
    selections |= {"first 17": torch.arange(17), "two": torch.tensor([30, 2]), "permuted": order}
    selections |= {"repeated": torch.cat([order, order[:20]])}
    for what, index in selections.items():
        part = function({arg: tensor[index] for arg, tensor in rows.items()})
        for out, tensor in part.items():
            assert same_bits(tensor, whole[out][index]), f"{out} differs: {what}"
    for count in (1, 11):
        part = function(padded(rows, count))
        for out, tensor in part.items():
            assert same_bits(tensor[:NUM_ROWS], whole[out]), f"{out} differs: {count} rows of padding"
    part = function({arg: elsewhere(tensor) for arg, tensor in rows.items()})
    for out, tensor in part.items():
        assert same_bits(tensor, whole[out]), f"{out} differs: views at odd addresses"


def test_index_scores_do_not_depend_on_the_address(threads: int) -> None:
    """The chosen entries show a last bit only at a near tie, so the scores themselves are looked at."""
    rng = np.random.default_rng(13)
    for heads, dim, count in ((64, 128, 300), (3, 20, 70), (1, 16, 5)):
        queries, keys = torch.from_numpy(normal(rng, 4, heads, dim)), torch.from_numpy(normal(rng, 512, dim))
        weights = torch.from_numpy(normal(rng, heads))
        for q, moved in zip(queries, elsewhere(queries), strict=True):
            expected = index_scores(q.clone(), weights, keys, count)
            assert expected.shape == (count,)
            assert same_bits(index_scores(moved, weights, keys, count), expected)


def test_every_operator_is_tested() -> None:
    tested = {name.split("-")[0] for name in ALL_ROWS} - {"experts"}
    experts, in_chunks = {"moe_dispatch", "expert_mlp", "moe_combine"}, {"compress_kv", "pool_kv", "store_state"}
    assert tested | experts | in_chunks | WHOLE_IMAGE | NO_ROWS == set(OP_NAMES)


WHOLE_IMAGE = {"vision_block"}
"""Their rows do depend on each other: a call is one image."""


def test_an_image_does_not_depend_on_addresses_or_threads() -> None:
    """The same image gives the same bits wherever it lies in memory and however many threads there are."""
    made = vision_inputs(np.random.default_rng(14), 300, num_heads=2, head_dim=64, inter=100)
    spec = get_spec("vision_block")
    tensors = {name: tensor for name, tensor in arguments(spec, made, "float32").items() if tensor is not None}
    moved = {name: elsewhere(t) if name in ("x", "cos", "sin") else t for name, t in tensors.items()}
    before, results = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        results += [call("vision_block", "reference", {**given}, dict(made.attrs))["y"] for given in (tensors, moved)]
    torch.set_num_threads(before)
    assert all(same_bits(result, results[0]) for result in results)


class Request:
    """One request for the paged operators: its rows by position, whatever blocks they are put into."""

    def __init__(self, rng: np.random.Generator, position: int, width: int, heads: int, ratio: int, topk: int) -> None:
        self.position, visible = position, (position + 1) // ratio
        self.q, self.weights = normal(rng, 1, heads, width), normal(rng, 1, heads)
        self.window, self.entries = normal(rng, position + 1, width), normal(rng, max(visible, 1), width)
        self.chosen, self.chosen_rows = (self.choose(rng, count, topk) for count in (visible, position + 1))

    @staticmethod
    def choose(rng: np.random.Generator, count: int, topk: int) -> Array:
        """Some of `count` entries, ascending, then -1."""
        chosen = np.full((1, topk), -1, dtype=np.int32)
        chosen[0, : min(count, topk)] = np.sort(rng.permutation(count)[:topk])
        return chosen


def paged(rng: np.random.Generator, dense: list[Array], block_rows: int) -> tuple[Array, Array]:
    """A cache with these rows in randomly dealt blocks, NaN elsewhere, and the block table."""
    counts = [-(-len(rows) // block_rows) for rows in dense]
    ids = iter(rng.permutation(sum(counts) + 1).tolist())
    table = np.full((len(dense), max(counts)), -1, dtype=np.int32)
    cache = np.full((sum(counts) + 1, block_rows, dense[0].shape[1]), np.nan, dtype=np.float32)
    for i, rows in enumerate(dense):
        for block in range(counts[i]):
            table[i, block] = next(ids)
            part = rows[block * block_rows : (block + 1) * block_rows]
            cache[table[i, block], : len(part)] = part
    return cache, table


@pytest.mark.parametrize("chosen", [True, False], ids=["chosen", "all"])
def test_a_request_does_not_depend_on_its_blocks_or_company(chosen: bool, threads: int) -> None:
    """Each request decodes alone and in a batch, in other blocks of another size and under another number."""
    rng = np.random.default_rng(12)
    batch = [Request(rng, position, 48, 4, 4, 16) for position in (0, 2, 3, 17, 63, 127, 128, 300)]

    def decode(requests: list[Request], block_rows: int, window_rows: int) -> Tensors:
        window, window_table = paged(rng, [r.window for r in requests], window_rows)
        entries, table = paged(rng, [r.entries for r in requests], block_rows)
        common = {"positions": i32([r.position for r in requests]), "req_idx": i32(range(len(requests))), "block_table": table}
        q = np.concatenate([r.q for r in requests])
        attention = {
            **common, "q": q, "win_kv": window, "cmp_kv": entries, "window_table": window_table, "sink": f32([0, 1, -1, 2]),
            "entries": np.concatenate([r.chosen for r in requests]) if chosen else None,
        }  # fmt: skip
        index = {**common, "q": q, "weights": np.concatenate([r.weights for r in requests]), "idx_kv": entries}
        index_attrs = {"ratio": 4, "topk": 16, "rounding": "none"}
        rows, row_table = paged(rng, [r.window for r in requests], block_rows)
        chosen_rows = np.concatenate([r.chosen_rows for r in requests]) if chosen else None
        latent = {**common, "q": q, "mla_kv": rows, "block_table": row_table, "entries": chosen_rows}
        index_attrs = {"ratio": 4, "topk": 16, "rounding": "none", "candidate_block": 4, "num_candidates": 5}
        o = run("sparse_attention", CaseInputs(attention, {"window": 128, "ratio": 4, "scale": 0.2}), "float32")
        mla = run("mla_attention", CaseInputs(latent, {"value_dim": 40, "scale": 0.2}), "float32")
        return {**o, "mla": mla["o"], **run("index_topk", CaseInputs(index, index_attrs), "float32")}

    together = decode(batch, block_rows=8, window_rows=16)
    for i, request in enumerate(batch):
        alone = decode([request], block_rows=5, window_rows=32)
        with_other = decode([batch[-1 - i], request], block_rows=32, window_rows=4)
        for out, tensor in together.items():
            assert same_bits(alone[out], tensor[i : i + 1]), f"{out} of position {request.position} alone"
            assert same_bits(with_other[out][1:], tensor[i : i + 1]), f"{out} of position {request.position} beside another"
