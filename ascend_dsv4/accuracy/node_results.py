# SPDX-License-Identifier: Apache-2.0
"""What two models in step show at each node, judged: error introduced here, error handed down, or none.

Only what the contracts define is compared: rows of padding, rows beyond the counts of a dispatch and cache rows that no token
of the step writes are left out. Chosen sets are compared as sets.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ascend_dsv4.accuracy.choices import PAIRED, choice_scores, pair_with
from ascend_dsv4.accuracy.figures import FIGURES
from ascend_dsv4.accuracy.grids import GRIDS, grid_figures
from ascend_dsv4.accuracy.judging import OutputContext, judge_output
from ascend_dsv4.accuracy.lockstep import Override, Shown, Visit
from ascend_dsv4.accuracy.results import BINS, PARTS, NodeElement, NodeResult, OutputResult
from ascend_dsv4.ops.compare import Question, compare
from ascend_dsv4.ops.registry import get_spec
from ascend_dsv4.ops.spec import EXACT, Tolerance

Array = NDArray[Any]
CODES_DIFFER = 0.01
"""Share of the codes of rounded entries that may be the neighbours of the right ones."""
ROUNDED_APART = 1e-3
ROUNDED_RATIO = 4.0
"""Share of the elements behind a 16-bit rounding that may be beyond their limits, and by which factor."""


class NodeRecorder:
    """A watch for `LockstepRunner`: keeps a result per output of every node, and the worst elements of the nodes asked for."""

    def __init__(
        self,
        implementations: Mapping[str, str],
        nodes: Sequence[str] = (),
        num_elements: int = 20,
        standard: str = "tolerance",
        command: str = "",
        overrides: Sequence[Override] = (),
    ) -> None:
        self.prompt = ""
        """What results call the tokens that run."""
        self._command = command
        self._implementations = implementations
        self._overrides = tuple(overrides)
        self._standard = standard
        self._wanted = set(nodes)
        self._num_elements = num_elements
        self._rows: dict[str, NDArray[np.bool_]] = {}
        self._nonzero: dict[str, bool] = {}
        self.nodes: list[NodeResult] = []
        self.elements: list[NodeElement] = []
        self.seen: set[str] = set()
        """Every node that ran, as layer3/hc_pre.0."""

    def __call__(self, visit: Visit) -> None:
        place = f"{visit.graph}/{visit.label}"
        self.seen.add(place)
        for shown in visit.outputs:
            rows = self._defined(visit, shown)
            if rows is not None and not len(rows):
                continue
            cut = _Cut(visit, shown, rows)
            if cut.golden.size == 0:
                continue
            self._note_zeros(f"{place} {shown.name}", cut.golden, visit)
            introduced = self._judge(visit, shown, cut, (cut.introduced, cut.golden), _scores(visit, shown, cut))
            if visit.overwritten:
                reason = f"it overwrote {', '.join(visit.overwritten)}, which it may only read"
                introduced = dataclasses.replace(introduced, status="fail", reason=reason, check="arguments", ratio=math.inf)
            total = self._judge(visit, shown, cut, (cut.candidate, cut.reference), None)
            self.nodes.append(_node_result(visit, shown, introduced, total, _same_bits(cut.candidate, cut.reference)))
            if place in self._wanted:
                self._keep_worst(_elements(visit, shown, cut))

    def zeros(self) -> list[str]:
        """Outputs that were zero at every step on the reference, so that nothing could have differed."""
        return [name for name, nonzero in self._nonzero.items() if not nonzero]

    def _note_zeros(self, name: str, golden: Array, visit: Visit) -> None:
        if golden.dtype.kind != "f":
            return
        nonzero = bool(golden.any())
        if visit.node.op == "pool_kv" and not nonzero:
            positions = visit.host("positions")
            nonzero = not ((positions >= 0) & ((positions + 1) % visit.node.attrs["ratio"] == 0)).any()
        self._nonzero[name] = self._nonzero.get(name, False) or nonzero

    def _keep_worst(self, found: Iterable[NodeElement]) -> None:
        self.elements = sorted([*self.elements, *found], key=lambda e: -e.ratio)[: self._num_elements]

    def _judge(self, visit: Visit, shown: Shown, cut: _Cut, pair: tuple[Array, Array], scores: Array | None) -> OutputResult:
        actual, golden = pair
        context = OutputContext(
            op=visit.node.op, implementation=self._name_of(visit), dtype=shown.dtype,
            case=f"{self.prompt} step {visit.step}".lstrip(), kind="recorded", output=shown.name, golden="reference",
            actual=actual, expected=golden,
            output_dtype=shown.dtype if golden.dtype.kind == "f" else str(golden.dtype), tolerance=cut.tolerance,
            allow_constant=True, choice_gap=get_spec(visit.node.op).choices.get(shown.name), scores=scores,
        )  # fmt: skip
        result = _equal(context, self._standard) if _same_bits(*pair) else judge_output(context, standard=self._standard)
        if result.check == "elements" and (visit.node.op, shown.name) == ("compress_kv", "cache"):
            result = _on_grid(result, visit, context)
        if result.check == "elements" and get_spec(visit.node.op).rounds_inside and shown.dtype in ("bfloat16", "float16"):
            result = _after_rounding(result)
        worst = None if result.worst is None else dataclasses.replace(result.worst, index=cut.index(result.worst.index))
        place, command = f"{visit.graph}/{visit.label}", self._command
        if command and place not in command:
            command += f" --node {place}"
        return dataclasses.replace(result, worst=worst, command=command)

    def _name_of(self, visit: Visit) -> str:
        """Which implementation the candidate runs at a node."""
        fitting = [override.name for override in self._overrides if override.replaces(visit.node.op, visit.layer)]
        return fitting[-1] if fitting else self._implementations[visit.node.op]

    def _defined(self, visit: Visit, shown: Shown) -> NDArray[np.intp] | None:
        """Numbers of the rows that say something; None for all of them."""
        op, shape = visit.node.op, shown.value.type.shape
        if shown.name in get_spec(op).mutates:
            written = _written_rows(visit, shown)
            # What only one side touched differs, wherever it is.
            differ = (_rowwise(shown.golden) != _rowwise(shown.introduced)).any(1)
            return np.union1d(written, np.flatnonzero(differ))
        requests = visit.batch("req_idx")
        if requests is None or not shape:
            return None
        if shape[0] == "num_tokens":
            return None if (requests >= 0).all() else np.flatnonzero(requests >= 0)
        if op == "moe_dispatch" and shown.name in ("rows", "row_weights"):
            row_of = next(other.golden for other in visit.outputs if other.name == "row_of")[requests >= 0]
            defined = np.zeros(len(shown.golden), bool)
            defined[row_of[row_of >= 0]] = True
            self._rows[shown.value.name] = defined
            return np.flatnonzero(defined)
        if op == "expert_mlp":
            defined = np.arange(len(shown.golden)) < int(visit.host("counts").sum())
            source = self._rows.get(visit.args["rows"].name)
            return np.flatnonzero(defined if source is None else defined & source)
        return None


class _Cut:
    """The defined rows of one output, ordered where order says nothing, and the limit that holds for them."""

    def __init__(self, visit: Visit, shown: Shown, rows: NDArray[np.intp] | None) -> None:
        op = visit.node.op
        self.rows = rows
        self.is_cache = shown.name in get_spec(op).mutates
        arrays = shown.golden, shown.introduced, shown.reference, shown.candidate
        if (choice := PAIRED.get((op, shown.name))) is not None:
            ids = next(other for other in visit.outputs if other.name == choice)
            # Weights stand beside choices whose order says nothing.
            arrays = (arrays[0], pair_with(ids.introduced, ids.golden, arrays[1], arrays[0]),
                      arrays[2], pair_with(ids.candidate, ids.reference, arrays[3], arrays[2]))  # fmt: skip
        self.golden, self.introduced, self.reference, self.candidate = (self.taken(array) for array in arrays)
        exact = self.golden.dtype.kind != "f"
        self.tolerance: Tolerance = EXACT if exact else get_spec(op).tol.get((shown.name, shown.dtype), EXACT)

    def taken(self, array: Array) -> Array:
        """The defined rows of an array that goes with the output."""
        array = _rowwise(array) if self.is_cache else array
        return array if self.rows is None else array[self.rows]

    def index(self, index: tuple[int, ...]) -> tuple[int, ...]:
        """Where an element of the cut stands in the whole output; in caches by row of the cache."""
        if self.rows is None or not index:
            return index
        return (int(self.rows[index[0]]), *index[1:])


def _scores(visit: Visit, shown: Shown, cut: _Cut) -> Array | None:
    """What choices that differ were ranked by; None where nothing differs, or nothing is ranked."""
    if shown.name not in get_spec(visit.node.op).choices or np.array_equal(cut.introduced, cut.golden):
        return None
    given = {name: torch.from_numpy(visit.host(name)) if name in visit.args else None for name in get_spec(visit.node.op).args}
    found = choice_scores(visit.node.op, given, visit.node.attrs).get(shown.name)
    return None if found is None else cut.taken(found)


def _rowwise(cache: Array) -> Array:
    """A cache as rows: [blocks · block_rows, width]; states as [slots · state_rows, 2 · width]."""
    return cache.reshape(cache.shape[0] * cache.shape[1], -1)


def _written_rows(visit: Visit, shown: Shown) -> NDArray[np.intp]:
    """Rows of a cache that the step's tokens write."""
    if shown.name == "cache":
        slots = visit.host("slots")
        return np.unique(slots[slots >= 0]).astype(np.intp)
    positions, requests, state_slots = visit.host("positions"), visit.host("req_idx"), visit.host("state_slots")
    num_rows = shown.golden.shape[1]
    held = requests >= 0
    ends = {request: int(positions[requests == request].max()) for request in np.unique(requests[held])}
    rows = [
        int(state_slots[request]) * num_rows + position % num_rows
        for request, position in zip(requests[held].tolist(), positions[held].tolist(), strict=True)
        if position > ends[request] - num_rows
    ]
    return np.unique(np.asarray(rows, np.intp))


def _equal(context: OutputContext, standard: str) -> OutputResult:
    """What `judge_output` says of equal bits, without computing that every error is 0: most nodes of a walk are equal."""
    integers = context.expected.dtype.kind != "f"
    names = ("max_abs", "mean_abs", "differ") if integers else (*FIGURES, "max_ulp", "mean_ulp")
    count = context.expected.size
    return OutputResult(
        op=context.op, implementation=context.implementation, dtype=context.dtype, case=context.case, kind=context.kind,
        output=context.output, golden=context.golden, standard=standard, status="pass", num_elements=count,
        figures={name: float(name == "cosine") for name in names},
        histogram=(count, *(0,) * (len(BINS) - 1)), by_position=(0.0,) * min(PARTS, len(context.expected)),
    )  # fmt: skip


def _on_grid(result: OutputResult, visit: Visit, context: OutputContext) -> OutputResult:
    """The verdict on entries that were computed and then rounded to a grid of few values, as far as it excuses them.

    A last bit that lies differently before the rounding is a whole step behind it. So neighbouring codes are accepted in up to
    CODES_DIFFER of the elements; what the grid leaves as it is keeps its tolerance.
    """
    rounding = visit.node.attrs["rounding"]
    if rounding not in GRIDS:
        return result
    actual, golden = context.actual, context.expected
    rope_dim = 2 * int(visit.args["cos"].type.shape[1])
    found = grid_figures(actual, golden, rounding, rope_dim)
    ratio = max(found["code_distance"], found["scale_steps"], found["codes_differ"] / CODES_DIFFER)
    if GRIDS[rounding].rotary_tail:
        tail = compare(actual[:, -rope_dim:], golden[:, -rope_dim:], context.tolerance, allow_constant=True)
        ratio = max(ratio, tail.ratio)
    if not ratio <= 1 or not np.isfinite(actual).all():
        return dataclasses.replace(result, figures={**result.figures, **found})
    return dataclasses.replace(result, status="pass", reason="", check="", ratio=ratio, figures={**result.figures, **found})


def _after_rounding(result: OutputResult) -> OutputResult:
    """The verdict on an operator that rounds to 16 bits in mid-way, as far as that excuses it.

    Sums in another order may round a hidden value the other way, and an output that cancels feels that whole step. So a few
    elements, ROUNDED_APART of them, may be up to ROUNDED_RATIO limits away.
    """
    over = sum(result.histogram[BINS.index("<= 2") :])
    if over > ROUNDED_APART * result.num_elements or result.ratio > ROUNDED_RATIO:
        return result
    ratio = max(result.ratio / ROUNDED_RATIO, over / (ROUNDED_APART * result.num_elements))
    return dataclasses.replace(result, status="pass", reason="", check="", ratio=ratio)


def _node_result(visit: Visit, shown: Shown, introduced: OutputResult, total: OutputResult, same: bool) -> NodeResult:
    passed = introduced.passed
    state = "introduced" if not passed else "same" if same else "within" if total.passed else "inherited"
    return NodeResult(
        number=visit.number,
        step=visit.step,
        graph=visit.graph,
        layer=visit.layer,
        node=visit.label,
        op=visit.node.op,
        scope=visit.node.scope,
        where=visit.node.where,
        output=shown.name,
        state=state,  # type: ignore[arg-type]
        introduced=introduced,
        total=total,
    )


def _same_bits(left: Array, right: Array) -> bool:
    return left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes()


def _ratios(asked: Question) -> NDArray[np.float64]:
    """Error of every element over its limit; ∞ also where NaN or infinity stands on one side alone."""
    return np.where(asked.pair.nonfinite_differ, math.inf, asked.ratios)


def _elements(visit: Visit, shown: Shown, cut: _Cut) -> list[NodeElement]:
    """The elements of an output furthest beyond their limit."""
    if cut.introduced.shape != cut.golden.shape:
        return []
    asked = Question(cut.introduced, cut.golden, cut.tolerance, True)
    ratios = _ratios(asked)
    over = (ratios > 1).reshape(len(ratios), -1).sum(1)
    positions = visit.batch("positions")
    found = []
    for flat in np.argsort(-ratios, axis=None, kind="stable")[:100]:
        at = tuple(int(i) for i in np.unravel_index(int(flat), ratios.shape))
        index = cut.index(at)
        by_token = positions is not None and shown.value.type.shape[:1] == ("num_tokens",)
        found.append(
            NodeElement(
                node=f"{visit.graph}/{visit.label}",
                output=shown.name,
                step=visit.step,
                index=index,
                position=int(positions[index[0]]) if by_token and positions is not None else None,
                golden=float(cut.golden[at]),
                introduced=float(cut.introduced[at]),
                reference=float(cut.reference[at]),
                candidate=float(cut.candidate[at]),
                ratio=float(ratios[at]),
                row_over=int(over[at[0]]),
                row_elements=int(ratios[0].size),
            )
        )
    return found
