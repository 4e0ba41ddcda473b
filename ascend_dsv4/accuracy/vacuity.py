# SPDX-License-Identifier: Apache-2.0
"""Comparisons that must be refused, each beside one of its kind that must not be: what calls anything clean finds nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ascend_dsv4.accuracy.environment import environment
from ascend_dsv4.accuracy.figures import Array
from ascend_dsv4.accuracy.matrix import Selection, compare_ops
from ascend_dsv4.accuracy.msprobe.importing import import_msprobe
from ascend_dsv4.accuracy.results import OutputResult, Report
from ascend_dsv4.errors import ConfigError, DumpError
from ascend_dsv4.ops.compare import compare, compare_sets
from ascend_dsv4.ops.spec import Tolerance

Answer = tuple[float, str]
"""Metric over limit, ∞ where refused; and the check that says so, empty if none does."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A comparison that says nothing, and a sound one of its kind."""

    name: str
    what: str
    sound: Callable[[Collection[str]], Answer]
    """Given the checks that are left out."""
    vacuous: Callable[[Collection[str]], Answer]


LIMIT = Tolerance(1e-3, 1e-3, 1e-6)
VALUES = np.linspace(-2, 2, 64).astype(np.float32)
NEAR = (VALUES * np.float32(1 + 1e-4)).astype(np.float32)
ZEROS = np.zeros(64, dtype=np.float32)
GELU = "Functional.gelu.0.forward"


def arrays(actual: Array, expected: Array, tolerance: Tolerance = LIMIT) -> Callable[[Collection[str]], Answer]:
    """A comparison of two arrays."""

    def answer(without: Collection[str]) -> Answer:
        result = compare(actual, expected, tolerance, without=without)
        return result.ratio, result.check

    return answer


def sets(actual: Array, expected: Array, scores: Array) -> Callable[[Collection[str]], Answer]:
    """A comparison of chosen indices."""

    def answer(without: Collection[str]) -> Answer:
        result = compare_sets(actual, expected, scores)
        return (0.0, "") if result.passed else (math.inf, "sets")

    return answer


def run(**selection: object) -> Callable[[Collection[str]], Answer]:
    """A run of `compare ops`."""

    def answer(without: Collection[str]) -> Answer:
        try:
            report = compare_ops(Selection(**selection))  # type: ignore[arg-type]
        except ConfigError:
            return math.inf, "selection"
        return _of_report(report)

    return answer


def report(*results: OutputResult) -> Callable[[Collection[str]], Answer]:
    """What a run with these results says in the end."""
    made = Report("", "", environment(), "tolerance", results=results)
    return lambda without: _of_report(made)


def dumps(actual: Mapping[str, float], expected: Mapping[str, float]) -> Callable[[Collection[str]], Answer]:
    """A comparison of two msprobe dumps of statistics: record name → factor of the numbers in it."""

    def answer(without: Collection[str]) -> Answer:
        with TemporaryDirectory() as folder:
            files = []
            for name, records in (("actual", actual), ("expected", expected)):
                data = {record: {"input_args": [], "output": [_statistics(factor)]} for record, factor in records.items()}
                files.append(Path(folder) / name / "dump.json")
                files[-1].parent.mkdir()
                files[-1].write_text(json.dumps({"task": "statistics", "level": "L1", "dump_data_dir": name, "data": data}))
            try:
                return _of_report(import_msprobe(*files))
            except DumpError:
                return math.inf, "dump"

    return answer


def _statistics(factor: float) -> dict[str, Any]:
    figures = {"Max": 2 * factor, "Min": -2 * factor, "Mean": factor / 4, "Norm": 8 * factor}
    return {"type": "torch.Tensor", "dtype": "torch.float32", "shape": [4, 16], **figures, "requires_grad": False}


def _of_report(made: Report) -> Answer:
    top = max((result.ratio for result in made.results if result.status != "noted"), default=0.0)
    return (top, "") if made.exit_code == 0 else (math.inf, "exit code")


_ONE = OutputResult("gelu", "reference", "float32", "", "typical", "y", "specified", "tolerance", "pass", num_elements=64)

PROBES = (
    Probe(
        "all-zero", "A golden of zeros and a candidate of zeros agree, and so would any tensor that was never filled.",
        arrays(NEAR, VALUES), arrays(ZEROS.copy(), ZEROS),
    ),
    Probe(
        "all-nan", "A golden of NaN throughout agrees with a candidate that computed nothing.",
        arrays(NEAR, VALUES), arrays(ZEROS * np.nan, ZEROS * np.nan),
    ),
    Probe(
        "zeros-for-small-numbers", "Zeros for numbers below the absolute tolerance: each is close enough, all are wrong.",
        arrays(NEAR * np.float32(1e-4), VALUES * np.float32(1e-4)), arrays(ZEROS, VALUES * np.float32(1e-4)),
    ),
    Probe(
        "no-elements", "A dump that was silently empty has no element that could differ.",
        arrays(NEAR, VALUES), arrays(ZEROS[:0].copy(), ZEROS[:0].copy()),
    ),
    Probe(
        "two-names-for-one-tensor", "The candidate is a view of its golden.",
        arrays(VALUES.copy(), VALUES), arrays(VALUES[:], VALUES),
    ),
    Probe(
        "infinite-tolerance", "A limit that everything meets.",
        arrays(NEAR, VALUES), arrays(NEAR[::-1].copy(), VALUES, Tolerance(math.inf, 0.0, 0.0)),
    ),
    Probe(
        "tolerance-of-all-of-it", "A relative limit of 1, which zeros meet.",
        arrays(NEAR, VALUES), arrays(ZEROS, VALUES, Tolerance(0.0, 1.0, 0.0)),
    ),
    Probe(
        "one-row-for-all", "A candidate of one row, which would be repeated to fit the golden.",
        arrays(np.stack([NEAR] * 3), np.stack([VALUES] * 3)), arrays(NEAR[None], np.stack([VALUES] * 3)),
    ),
    Probe(
        "codes-for-numbers", "A candidate of integers, equal to its golden of floats by value: codes that nothing has decoded.",
        arrays(np.arange(64, dtype=np.float32), np.arange(64, dtype=np.float32)),
        arrays(np.arange(64, dtype=np.int32), np.arange(64, dtype=np.float32)),
    ),
    Probe(
        "any-choice-would-do", "Chosen entries whose scores are all equal.",
        sets(np.array([[1, 0]]), np.array([[0, 1]]), np.array([[3.0, 2.0, 1.0]])),
        sets(np.array([[2, 0]]), np.array([[0, 1]]), np.array([[1.0, 1.0, 1.0]])),
    ),
    Probe("empty-report", "A comparison that compared nothing.", report(_ONE), report()),
    Probe(
        "no-such-case", "A run whose pattern matches no case.",
        run(ops=("gelu",), cases=("tokens-3",)), run(ops=("gelu",), cases=("token-3",)),
    ),
    Probe(
        "no-elements-in-the-case", "A run of a single case, which has no tokens.",
        run(ops=("gelu",), cases=("tokens-1",)), run(ops=("gelu",), cases=("tokens-0",)),
    ),
    Probe(
        "all-zero-dumps", "Two dumps whose tensors are zero throughout.",
        dumps({GELU: 1 + 1e-7}, {GELU: 1.0}), dumps({GELU: 0.0}, {GELU: 0.0}),
    ),
    Probe("empty-dumps", "Two dumps without a record.", dumps({GELU: 1 + 1e-7}, {GELU: 1.0}), dumps({}, {})),
    Probe(
        "unmatched-names", "A record of one dump that has no partner in the other.",
        dumps({GELU: 1 + 1e-7}, {GELU: 1.0}), dumps({GELU: 1 + 1e-7, "Functional.silu.0.forward": 1.0}, {GELU: 1.0}),
    ),
    Probe(
        "its-own-measure", "An implementation measured by its own errors.",
        run(ops=("gelu",), cases=("tokens-3",)),
        run(ops=("gelu",), cases=("tokens-3",), standard="opbase-double", baseline="reference"),
    ),
)  # fmt: skip
