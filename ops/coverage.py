# SPDX-License-Identifier: Apache-2.0
"""Which hostile inputs an operator must be tried on, and which of them a case really has. Framework-free.

`required` reads a contract, `shown` looks into the arrays of a case; neither believes a name. A property is a short text such
as "far win_kv"; `coverage` is the table of all properties of an operator and the cases that show each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ascend_dsv4.ops.cases import STALE, Array, Case, CaseInputs
from ascend_dsv4.ops.spec import OpSpec

LENGTHS = (1, 3, 4, 5, 127, 128, 129)
"""Numbers of rows in a call, and of tokens in a request: around the block, group and tile sizes in use."""
BLOCK_AXES = {"num_blocks", "num_window_blocks", "num_state_slots"}
"""First axes of caches."""
LARGE, FLOAT32_NORMAL = 1e10, 2.0**-126
HALF_LARGE, FLOAT16_LARGEST, FLOAT16_NORMAL, FLOAT16_LEAST = 1e4, 65504.0, 2.0**-14, 2.0**-24
MAY_BE_MINUS_ONE = {
    "slots", "positions", "req_idx", "entries", "candidates", "at", "row_of", "patch_ids", ("adjust_logits", "rows"),
    ("moe_dispatch", "ids"),
}  # fmt: skip
"""Arguments, some in one operator alone, where −1 says none."""
ROW_AXES = {"num_tokens", "num_rows", "num_patches", "..."}
"""First axes of arguments in which a row may be nobody's."""
WHOLE_CALL = {"vision_block"}
"""Their rows depend on each other, so none of them can be padding."""
NAN_SPEAKS = {"sample", "adjust_logits"}
"""A row with NaN has an answer of its own there."""


def required(spec: OpSpec) -> frozenset[str]:
    """Properties that this contract makes necessary."""
    floats = [
        name for name, arg in spec.args.items() if "float32" in arg.dtype and name not in ("scale", "w13_scale", "w2_scale")
    ]
    found = {f"rows {count}" for count in (0, *LENGTHS)} | {f"offset view {name}" for name in spec.args}
    found |= {f"-1 in {name}" for name in spec.args if name in MAY_BE_MINUS_ONE or (spec.name, name) in MAY_BE_MINUS_ONE}
    found |= {f"far {name}" for name in caches(spec)}
    if floats and spec.name != "step_metadata":
        found |= {"large", "subnormal"}
    if any(dtype == "float16" for _, dtype in spec.tol) and any("float16" in spec.args[name].dtype for name in floats):
        moves = all(tolerance.abs == tolerance.rel == 0 for tolerance in spec.tol.values())
        found |= {"half subnormal"} if moves else {"half subnormal", "half large"}
    if "req_idx" in spec.args:
        found |= {"NaN in padding"} | {f"length {count}" for count in LENGTHS}
    elif _row_floats(spec) and spec.name not in WHOLE_CALL | NAN_SPEAKS:
        found.add("NaN rows")
    if caches(spec):
        found |= {"several calls", "stale rows"}
    if "window" in spec.attrs:
        found |= {"length window-1", "length window", "length window+1"}
    if "ratio" in spec.attrs:
        found |= {"length ratio-1", "length ratio", "length ratio+1"}
    if "ratio" in spec.attrs and "state" in spec.args:
        found.add("group across steps")
    return frozenset(found | _OF_ONE_OPERATOR.get(spec.name, set()))


_OF_ONE_OPERATOR: Mapping[str, set[str]] = {
    "compress_kv": {"overlap across steps"},
    "index_topk": {"ties", "tied blocks", "top-k beyond"},
    "sparse_attention": {"top-k beyond"},
    "mla_attention": {"top-k beyond"},
    "sample": {"ties", "top-k beyond"},
    "route": {"ties", "empty expert", "one expert"},
    "moe_dispatch": {"empty expert", "one expert"},
    "expert_mlp": {"empty expert", "one expert"},
}


def caches(spec: OpSpec) -> tuple[str, ...]:
    """Arguments in blocks that ids lead to."""
    return tuple(name for name, arg in spec.args.items() if arg.shape[0] in BLOCK_AXES and "float32" in arg.dtype)


def coverage(spec: OpSpec, made: Iterable[tuple[Case, CaseInputs]]) -> dict[str, tuple[str, ...]]:
    """Every required property → names of the cases that show it, none where it is missing."""
    table: dict[str, list[str]] = {name: [] for name in sorted(required(spec))}
    for case, inputs in made:
        for name in shown(spec, case, inputs) & table.keys():
            table[name].append(case.name)
    return {name: tuple(cases) for name, cases in table.items()}


def shown(spec: OpSpec, case: Case, inputs: CaseInputs) -> set[str]:
    """Properties that the arrays of a case have."""
    args = {name: array for name, array in inputs.args.items() if array is not None}
    found = {f"rows {num_rows(spec, args)}"}
    found |= {f"offset view {name}" for name, array in args.items() if is_offset_view(array)}
    found |= {f"-1 in {name}" for name, array in args.items() if array.dtype == np.int32 and (array == -1).any()}
    found |= {f"far {name}" for name in inputs.far if is_far(spec, inputs, name)}
    found |= _magnitudes(spec, case, args)
    found |= _poison(spec, args)
    if "req_idx" in args:
        found |= _lengths(inputs, args)
    if inputs.later:
        found.add("several calls")
    if any((args[name] == STALE).any() for name in caches(spec) if name in args) or _goes_back(inputs):
        found.add("stale rows")
    return found | _choices(spec, inputs, args)


def num_rows(spec: OpSpec, args: Mapping[str, Array]) -> int:
    """Rows of the call: what its first output has, or what a cache is given."""
    axis = next((str(out.shape[0]).split("*")[0] for out in spec.outs.values()), "num_tokens")
    return next(len(args[name]) for name, arg in spec.args.items() if arg.shape[0] == axis and name in args)


def is_offset_view(array: Array) -> bool:
    """A view that begins inside its memory, and has something between its elements."""
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    begins = array.__array_interface__["data"][0] > base.__array_interface__["data"][0]
    return bool(array.size) and begins and (array.size == 1 or not array.flags.c_contiguous)


def is_far(spec: OpSpec, inputs: CaseInputs, name: str) -> bool:
    """Every block lies where neither 31 bits count elements nor 32 bits bytes, in the smallest dtype; slots fit int32."""
    place, cache = inputs.far[name], inputs.args[name]
    assert cache is not None
    item_bytes = 2 if "bfloat16" in spec.args[name].dtype else 4
    offsets = place.ids.astype(np.int64) * cache[0].size
    fits = not place.slots or place.num_blocks * cache.shape[1] < 2**31
    pointed = [*place.tables, *place.slots]
    used = all((np.asarray(inputs.args[arg]) >= 0).any() for arg in pointed)
    apart = len(set(place.ids.tolist())) == len(cache) and place.ids.max() < place.num_blocks
    return bool((offsets >= 2**31).all() and (offsets * item_bytes >= 2**32).all() and fits and pointed and used and apart)


def _magnitudes(spec: OpSpec, case: Case, args: Mapping[str, Array]) -> set[str]:
    found = set()
    for name, array in args.items():
        if array.dtype.kind != "f":
            continue
        size = np.abs(array[np.isfinite(array)]).astype(np.float64)
        found |= {"large"} if (size >= LARGE).any() else set()
        found |= {"subnormal"} if ((size > 0) & (size < FLOAT32_NORMAL)).any() else set()
        if "float16" in case.dtypes and "float16" in spec.args[name].dtype:
            found |= {"half subnormal"} if ((size >= FLOAT16_LEAST) & (size < FLOAT16_NORMAL)).any() else set()
            found |= {"half large"} if HALF_LARGE <= size.max(initial=0) <= FLOAT16_LARGEST else set()
    return found


def _row_floats(spec: OpSpec) -> list[str]:
    """Float arguments in rows of which some may be nobody's."""
    return [name for name, arg in spec.args.items() if arg.shape[0] in ROW_AXES and "float32" in arg.dtype]


def _poison(spec: OpSpec, args: Mapping[str, Array]) -> set[str]:
    """NaN throughout some rows of a float argument, and none in others."""
    given = {name: args[name] for name in _row_floats(spec) if name in args and args[name].size}
    rows = {name: np.isnan(array).reshape(len(array), -1) for name, array in given.items()}
    if "req_idx" not in args:
        return {"NaN rows"} if any(flags.all(1).any() and not flags.all(1).all() for flags in rows.values()) else set()
    padding = args["req_idx"] < 0
    poisoned = padding.any() and not padding.all() and all(flags[padding].all() for flags in rows.values())
    return {"NaN in padding"} if poisoned else set()


def _lengths(inputs: CaseInputs, args: Mapping[str, Array]) -> set[str]:
    """Tokens that a request has after the call, and where its groups lie to the step."""
    found = set()
    ratio, window = inputs.attrs.get("ratio", 0), inputs.attrs.get("window", 0)
    for request in np.unique(args["req_idx"][args["req_idx"] >= 0]):
        positions = args["positions"][args["req_idx"] == request]
        first, length = int(positions[0]), int(positions[-1]) + 1
        found.add(f"length {length}")
        for name, size in (("window", window), ("ratio", ratio)):
            if size > 1:
                found |= {f"length {name}{text}" for text, by in (("-1", -1), ("", 0), ("+1", 1)) if length == size + by}
        if "state" in args and ratio > 1:
            closes = (first // ratio + 1) * ratio <= length
            found |= {"group across steps"} if first % ratio and closes else set()
            overlaps = "cache" in args and args["kv"].shape[1] == 2 * args["cache"].shape[2]
            found |= {"overlap across steps"} if overlaps and first and first % ratio == 0 and closes else set()
    return found


def _goes_back(inputs: CaseInputs) -> bool:
    """A later call writes a place again, with other numbers: what a rejected draft calls for."""
    before = inputs.args
    for changed in inputs.later:
        where = next((name for name in ("slots", "positions") if name in changed), None)
        what = next((name for name in ("rows", "kv") if name in changed), None)
        if where and what:
            old, new = np.asarray(before[where]), np.asarray(changed[where])
            again = set(old[old >= 0].tolist()) & set(new[new >= 0].tolist())
            old_rows, new_rows = np.asarray(before[what]), np.asarray(changed[what])
            if any(not np.array_equal(old_rows[old == place][0], new_rows[new == place][0]) for place in again):
                return True
        before = {**before, **changed}
    return False


def _choices(spec: OpSpec, inputs: CaseInputs, args: Mapping[str, Array]) -> set[str]:
    """Ties, choices larger than what there is, and how experts are loaded."""
    found: set[str] = set()
    if spec.name == "index_topk":
        return _index_choices(inputs, args)
    if spec.name in ("sparse_attention", "mla_attention") and "entries" in args and len(args["positions"]):
        visible = (args["positions"].max() + 1) // inputs.attrs.get("ratio", 1)
        return {"top-k beyond"} if args["entries"].shape[1] > visible > 0 else found
    if spec.name == "sample":
        ranked = -np.sort(-args["logits"], axis=1)
        for row, k, temperature in zip(ranked, args["top_k"], args["temperature"], strict=True):
            found |= {"top-k beyond"} if k > len(row) else set()
            found |= {"ties"} if temperature > 0 and 0 < k < len(row) and row[k - 1] == row[k] else set()
    elif spec.name == "route" and args["logits"].size and "tid2eid" not in args:
        k, bias = inputs.attrs["topk"], args.get("bias", np.zeros(1))
        ranked = -np.sort(-args["logits"], axis=1)
        if "bias" not in args and ranked.shape[1] > k:
            found |= {"ties"} if (ranked[:, k - 1] == ranked[:, k]).any() else set()
        # A bias of hundreds decides alone: scores are square roots or at most 1.
        found |= {"one expert"} if bias.max() > 500 else set()
        found |= {"empty expert"} if bias.min() < -500 else set()
    elif spec.name in ("moe_dispatch", "expert_mlp"):
        ids = args.get("ids", np.zeros(0))
        counts = args["counts"] if "counts" in args else np.bincount(ids[ids >= 0], minlength=inputs.attrs["num_experts"])
        found |= {"empty expert"} if (counts == 0).any() and counts.any() else set()
        found |= {"one expert"} if counts.max(initial=0) == counts.sum() > 1 and len(counts) > 1 else set()
    return found


def _index_choices(inputs: CaseInputs, args: Mapping[str, Array]) -> set[str]:
    if not len(args["positions"]):
        return set()
    visible = int((args["positions"].max() + 1) // inputs.attrs["ratio"])
    found = {"top-k beyond"} if inputs.attrs["topk"] > visible > 0 else set()
    keys = args["idx_kv"].reshape(-1, args["idx_kv"].shape[2])
    keys = keys[np.isfinite(keys).all(1)]
    if len(keys) and (keys == keys[0]).all():  # every score of a token is the same
        found |= {"ties"} if 0 < inputs.attrs["topk"] < visible else set()
        blocks = -(-visible // inputs.attrs["candidate_block"])
        found |= {"tied blocks"} if 0 < inputs.attrs["num_candidates"] < blocks else set()
    return found
