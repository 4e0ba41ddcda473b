# SPDX-License-Identifier: Apache-2.0
"""What two models in step show at each node, judged: error introduced here, error handed down, or none.

Only what the contracts define is compared: rows of padding, rows beyond the counts of a dispatch and cache rows that no token
of the step writes are left out. Chosen sets are compared as sets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.accuracy.lockstep import Shown, Visit
from ascend_dsv4.accuracy.results import BINS, PARTS, NodeElement, NodeResult, OutputResult, Worst
from ascend_dsv4.ops.compare import Question, compare
from ascend_dsv4.ops.registry import get_spec
from ascend_dsv4.ops.spec import EXACT, Tolerance

Array = NDArray[Any]
SETS = {("index_topk", "entries"), ("index_topk", "blocks"), ("route", "ids")}
"""Outputs whose order within a row says nothing."""
_EDGES = (0.0, 1e-3, 1e-2, 1e-1, 0.5, 1.0, 2.0, 10.0)


class NodeRecorder:
    """A watch for `LockstepRunner`: keeps a result per output of every node, and the worst elements of the nodes asked for."""

    def __init__(self, implementation: str, nodes: Sequence[str] = (), num_elements: int = 20) -> None:
        self._implementation = implementation
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
            introduced = self._judge(visit, shown, cut, cut.introduced, cut.golden)
            total = self._judge(visit, shown, cut, cut.candidate, cut.reference)
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

    def _judge(self, visit: Visit, shown: Shown, cut: _Cut, actual: Array, golden: Array) -> OutputResult:
        spec = get_spec(visit.node.op)
        result = compare(actual, golden, cut.tolerance, allow_constant=True)
        asked = Question(actual, golden, cut.tolerance, True)
        ratios = _ratios(asked) if actual.shape == golden.shape else np.full(1, math.inf)
        return OutputResult(
            op=spec.name,
            implementation=self._implementation,
            dtype=shown.dtype,
            case=f"step {visit.step}",
            kind="recorded",
            output=shown.name,
            golden="reference",
            standard="operator",
            status="pass" if result.passed else "fail",
            reason=result.reason,
            check=result.check,
            ratio=result.ratio,
            num_elements=result.num_elements,
            figures={"max_abs": result.max_abs, "max_rel": result.max_rel, "cosine_distance": result.cosine_distance},
            worst=_worst(result.worst_index, result.worst_actual, result.worst_expected, cut),
            histogram=_histogram(ratios),
            by_position=tuple(float(part.max()) for part in np.array_split(ratios, min(PARTS, len(ratios)))),
        )

    def _defined(self, visit: Visit, shown: Shown) -> NDArray[np.intp] | None:
        """Numbers of the rows that say something; None for all of them."""
        op, shape = visit.node.op, shown.value.type.shape
        if shown.name in get_spec(op).mutates:
            written = _written_rows(visit, shown)
            # What only one side touched differs, wherever it is.
            differ = (_rowwise(shown.golden, shown.name) != _rowwise(shown.introduced, shown.name)).any(1)
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
        order = _expert_order(visit) if (op, shown.name) == ("route", "weights") else None
        names = ("golden", "introduced", "reference", "candidate")
        arrays = {name: getattr(shown, name) for name in names}
        if order is not None:
            arrays = {name: np.take_along_axis(array, order[name], 1) for name, array in arrays.items()}
        if (op, shown.name) in SETS:
            arrays = {name: np.sort(array, 1) for name, array in arrays.items()}
        self.golden, self.introduced, self.reference, self.candidate = (self._taken(arrays[name], shown.name) for name in names)
        exact = self.golden.dtype.kind != "f"
        self.tolerance: Tolerance = EXACT if exact else get_spec(op).tol.get((shown.name, shown.dtype), EXACT)

    def _taken(self, array: Array, name: str) -> Array:
        array = _rowwise(array, name) if self.is_cache else array
        return array if self.rows is None else array[self.rows]

    def index(self, index: tuple[int, ...]) -> tuple[int, ...]:
        """Where an element of the cut stands in the whole output; in caches by row of the cache."""
        if self.rows is None or not index:
            return index
        return (int(self.rows[index[0]]), *index[1:])


def _expert_order(visit: Visit) -> dict[str, NDArray[np.intp]]:
    ids = next(shown for shown in visit.outputs if shown.name == "ids")
    names = ("golden", "introduced", "reference", "candidate")
    return {name: np.argsort(getattr(ids, name), 1, kind="stable") for name in names}


def _rowwise(cache: Array, name: str) -> Array:
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


def _node_result(visit: Visit, shown: Shown, introduced: OutputResult, total: OutputResult, same: bool) -> NodeResult:
    passed = introduced.status == "pass"
    state = "introduced" if not passed else "same" if same else "within" if total.status == "pass" else "inherited"
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


def _worst(index: tuple[int, ...], actual: float, golden: float, cut: _Cut) -> Worst | None:
    return Worst(cut.index(index), actual, golden) if index else None


def _histogram(ratios: Array) -> tuple[int, ...]:
    """Elements by BINS."""
    bins = np.searchsorted(np.asarray(_EDGES), ratios.ravel(), side="left")
    return tuple(np.bincount(np.minimum(bins, len(BINS) - 1), minlength=len(BINS)).tolist())


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


def first_introduced(nodes: Iterable[NodeResult]) -> NodeResult | None:
    """Where the candidate first errs by itself."""
    return next((node for node in nodes if node.state == "introduced"), None)


def ranked(nodes: Iterable[NodeResult]) -> list[NodeResult]:
    """Largest introduced error first; each output of a node once, at its worst step."""
    worst: dict[tuple[str, str, str], NodeResult] = {}
    for node in nodes:
        place = (node.graph, node.node, node.output)
        if place not in worst or node.introduced.ratio > worst[place].introduced.ratio:
            worst[place] = node
    return sorted(worst.values(), key=lambda node: (-node.introduced.ratio, node.number))
