# SPDX-License-Identifier: Apache-2.0
"""Two dumps record by record: what belongs together, what has no partner, where they first part."""

from __future__ import annotations

import dataclasses
import filecmp
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ascend_dsv4.accuracy.msprobe.dump import Dump, Leaf, Record
from ascend_dsv4.accuracy.msprobe.examination import FILLING_APIS, UNDETERMINED_APIS, Tally, api_name, crc32s
from ascend_dsv4.accuracy.msprobe.judging import (
    coarsest,
    figures,
    judge_statistics,
    judge_values,
    threshold_verdict,
    tolerance_for,
)
from ascend_dsv4.accuracy.msprobe.table import PASS, STACK, Row, judge_rows, make_row
from ascend_dsv4.accuracy.msprobe.tensor_files import same_tensor_file, values
from ascend_dsv4.accuracy.results import OutputResult
from ascend_dsv4.errors import DumpError

SAME = {
    "Cosine": 1.0, "EucDist": 0.0, "MaxAbsErr": 0.0, "MaxRelativeErr": 0.0, "One Thousandth Err Ratio": 1.0,
    "Five Thousandths Err Ratio": 1.0,
}  # fmt: skip
"""Figures of a tensor without NaN against an equal one: weights, mostly, so they are not computed."""
GROWTH = 10.0
"""An output's error over its limit, as a multiple of the same of its inputs, from which its call is suspected of its own."""
Tensors = Mapping[Leaf, Tensor | None]
_PROCESS = re.compile(r"(?<![^/])(?:proc|pid)\d+(?![^/])")


def pair_dumps(dumps: Sequence[Dump], benches: Sequence[Dump]) -> tuple[list[tuple[Dump, Dump]], list[str]]:
    """Dumps of the same step and rank, and a sentence for those without a partner.

    One dump on either side is a pair whatever its label. A process number stands for a rank where there is none, and differs
    from run to run, so it counts as the same. Raises DumpError if nothing belongs together, or a dump is its own partner.
    """
    if len(dumps) == len(benches) == 1:
        pairs, alone = [(dumps[0], benches[0])], []
    else:
        sides = [_by_place(side) for side in (dumps, benches)]
        pairs = [(dump, sides[1][place]) for place, dump in sides[0].items() if place in sides[1]]
        alone = [
            f"{len(only)} of {len(side)} dumps are {where}: {', '.join(only)}"
            for side, other, where in ((*sides, "in the first folder only"), (*sides[::-1], "in the bench only"))
            if (only := [place for place in side if place not in other])
        ]
    if not pairs:
        raise DumpError(
            f"no step and rank in both dumps: {_some(d.label for d in dumps)} against {_some(d.label for d in benches)}; "
            "expected the same folders, because records are paired by step, rank and name. Give the folders of one step, or of "
            "one rank, on both sides."
        )
    return pairs, alone


def _by_place(dumps: Sequence[Dump]) -> dict[str, Dump]:
    """By label, without process numbers where that is still unique."""
    plain = [_PROCESS.sub("proc", dump.label) for dump in dumps]
    return {name if plain.count(name) == 1 else dump.label: dump for name, dump in zip(plain, dumps, strict=True)}


def _some(labels: Iterator[str]) -> str:
    return ", ".join(label or "(one file)" for label in labels)


def refuse_same(dump: Dump, bench: Dump, identical: bool) -> None:
    """Raise DumpError if two dumps are one: the same file, or a copy of it.

    identical  two runs that should repeat to the bit: equal content is what is asked for, only the same file is refused
    """
    same = os.path.samefile(dump.file, bench.file)
    equal = same or not identical and _equal_content(dump, bench)
    if equal:
        hint = "If these are two runs that should repeat bit for bit, say that they may be identical." if not same else ""
        raise DumpError(
            f"refused: {dump.file} and {bench.file} are {'the same file' if same else 'equal byte for byte'}; expected dumps "
            f"of two runs, because a dump never differs from itself. Give the second run's folder as bench. {hint}".rstrip()
        )


def _equal_content(dump: Dump, bench: Dump) -> bool:
    """Whether dump.json and all tensor files are equal byte for byte. Equal statistics alone do not mean equal tensors."""
    if not filecmp.cmp(dump.file, bench.file, shallow=False):
        return False
    names = {leaf.data_name for record in dump.records.values() for leaf in record.leaves}
    plain = sorted(Path(name).name for name in names if name.isprintable() and Path(name).name)
    _, different, unreadable = filecmp.cmpfiles(dump.tensor_folder, bench.tensor_folder, plain, shallow=False)
    return not different and not unreadable


@dataclass(frozen=True, slots=True)
class Suspect:
    """A call whose output differs by more than its limit though its inputs do not."""

    name: str
    outputs: str
    before: float
    """Largest error of an input over its limit."""
    after: float
    """The same of the outputs."""

    @property
    def growth(self) -> float:
        """By how much the error grew. Inputs that agree to the bit count as a thousandth of their limit."""
        return self.after / max(self.before, 1e-3)

    def __str__(self) -> str:
        return f"{self.name} {self.outputs} (error over limit: inputs {self.before:.2g}, output {self.after:.2g})"


@dataclass
class Comparison:
    """Collects what comparing pairs of dumps found."""

    standard: str = "tolerance"
    command: str = ""
    results: list[OutputResult] = field(default_factory=list)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    """Step and rank → rows of msprobe's table."""
    modes: dict[str, str] = field(default_factory=dict)
    only_here: Tally = field(default_factory=lambda: Tally("values have no partner in the bench (unmatched names)"))
    only_bench: Tally = field(default_factory=lambda: Tally("values of the bench have no partner (unmatched names)"))
    lenient: Tally = field(
        default_factory=lambda: Tally("outputs beyond the tolerance of their dtype pass by msprobe's rules or thresholds")
    )
    suspects: list[Suspect] = field(default_factory=list)
    """Calls whose inputs agree and whose outputs do not, in order."""
    wrong: dict[str, set[tuple[float | None, ...]]] = field(default_factory=dict)
    """Step and rank → statistics of outputs that differ, by which inputs that are one of them are known."""
    num_matched: int = 0
    num_differ: int = 0
    """Outputs beyond the tolerance of their dtype."""

    def unmatched(self, dump: Dump, record: Record | None, bench: Record | None) -> None:
        """Count a record that one side lacks."""
        alone = record or bench
        assert alone is not None
        tally = self.only_here if record else self.only_bench
        mode = self.modes[dump.label]
        rows = [make_row(mode, leaf, None, {}) if record else make_row(mode, None, leaf, {}) for leaf in alone.leaves]
        for leaf in alone.leaves:
            tally.add(dump.where(leaf.name))
        judge_rows(mode, rows)
        self.rows.setdefault(dump.label, []).extend(rows)

    def record(
        self, dump: Dump, record: Record, bench_dump: Dump, bench: Record, tensors: Tensors, bench_tensors: Tensors
    ) -> None:
        """Compare one record with its partner."""
        mine, theirs = ({leaf.position: leaf for leaf in side.leaves} for side in (record, bench))
        mode = self.modes[dump.label]
        rows: list[Row] = []
        results: list[tuple[Leaf, OutputResult]] = []
        thresholds: dict[str, str] = {}
        for position in dict.fromkeys([*mine, *theirs]):
            leaf, other = mine.get(position), theirs.get(position)
            if leaf is None or other is None:
                tally, alone = (self.only_here, leaf) if leaf is not None else (self.only_bench, other)
                assert alone is not None
                tally.add(dump.where(alone.name))
                rows.append(make_row(mode, leaf, other, {}))
                continue
            self.num_matched += 1
            result, found = self._pair(dump, record, leaf, other, tensors.get(leaf), bench_tensors.get(other))
            if leaf in tensors and other in bench_tensors and same_tensor_file(dump, leaf, bench_dump, other):
                result = OutputResult(**self._identity(dump, record, leaf), standard=self.standard, status="refused",
                                      reason="both names lead to one file", check="same-memory", ratio=math.inf)  # fmt: skip
            rows.append(make_row(mode, leaf, other, found, result.reason if result and result.check == "misfit" else ""))
            if result:
                results.append((leaf, result))
                thresholds[leaf.name] = threshold_verdict(found) if "MaxAbsErr" in found else ""
        judge_rows(mode, rows)
        if rows and record.name in dump.stacks:
            rows[0][STACK] = dump.stacks[record.name]
        self.rows.setdefault(dump.label, []).extend(rows)
        self._conclude(dump, record, results, [thresholds, {row["NPU Name"]: row["Result"] for row in rows}])

    def _conclude(
        self, dump: Dump, record: Record, results: Sequence[tuple[Leaf, OutputResult]], verdicts: Sequence[Mapping[str, str]]
    ) -> None:
        """Tell errors of this call from those of its inputs, and add msprobe's verdicts: by thresholds, and by rules."""
        inputs = [result for leaf, result in results if leaf.role in ("input", "parameters")]
        tainted = any(result.status == "fail" for result in inputs)
        before = max((result.ratio for result in inputs), default=0.0)
        different = {leaf.position: result for leaf, result in results if leaf.role == "output" and result.status == "fail"}
        if different and not tainted:
            after = max(result.ratio for result in different.values())
            self.suspects.append(Suspect(dump.where(record.name), ", ".join(different), before, after))
        wrong = self.wrong.setdefault(dump.label, set())
        for leaf, result in results:
            statistics = tuple(leaf.statistics.values())
            if leaf.position in different:
                if leaf.statistics.get("Max") is not None:
                    wrong.add(statistics)
                self.num_differ += 1
                if any(verdict.get(leaf.name) == PASS for verdict in verdicts):
                    self.lenient.add(dump.where(leaf.name))
                said = ", ".join(verdict[leaf.name] for verdict in verdicts if verdict.get(leaf.name))
                result = dataclasses.replace(result, reason=f"{result.reason}; msprobe: {said}")
                result = _inherited(result, before) if tainted else result
            elif result.status == "fail" and leaf.role == "input" and statistics in wrong:
                reason = f"as the output it comes from: {result.reason}"
                result = dataclasses.replace(result, status="noted", reason=reason)
            self.results.append(result)

    def _pair(
        self, dump: Dump, record: Record, leaf: Leaf, other: Leaf, tensor: Tensor | None, bench: Tensor | None
    ) -> tuple[OutputResult | None, Mapping[str, float]]:
        """A verdict on two values, None for plain values that are equal; and figures for the table."""
        identity = self._identity(dump, record, leaf)
        if not (leaf.is_tensor and other.is_tensor):
            return _pair_plain(leaf, other, {**identity, "standard": self.standard}), {}
        if leaf.role == "output" and api_name(record) in UNDETERMINED_APIS:
            reason = "the API returns memory as it is"
            return OutputResult(**identity, standard=self.standard, status="noted", reason=reason), {}
        varies = leaf.role == "output" and leaf.num_elements > 1 and api_name(record) not in FILLING_APIS
        zero = "refused" if varies else "noted"
        dtypes = (leaf.dtype, other.dtype)
        limit = tolerance_for(dtypes)
        if tensor is not None and bench is not None and torch.equal(tensor, bench) and bool(tensor.any()):
            result = OutputResult(
                **identity, standard=self.standard, status="pass", num_elements=leaf.num_elements, figures={"max_abs": 0.0}
            )
            return result, SAME
        if tensor is not None and bench is not None:
            actual, expected = values(tensor), values(bench)
            result = judge_values(
                actual, expected, coarsest(dtypes), limit, identity, standard=self.standard, zero=zero
            )
            return result, figures(actual, expected) if actual.shape == expected.shape and actual.size else {}
        result = judge_statistics(leaf, other, limit, identity, zero)
        left, right = _checksum(leaf, tensor), _checksum(other, bench)
        if left and right and not result.check:
            result = _with_checksums(result, left, right)
        return result, result.figures

    def _identity(self, dump: Dump, record: Record, leaf: Leaf) -> dict[str, Any]:
        """What a result says it is about."""
        return {
            "op": record.api, "implementation": "dump", "dtype": leaf.dtype or leaf.type, "case": dump.where(record.name),
            "kind": "recorded", "output": leaf.position, "golden": "recorded",
            "command": f"{self.command} --name {record.name}" if self.command else "",
        }  # fmt: skip

    def findings(self) -> list[str]:
        """What the comparison found besides its results, most telling first."""
        found = []
        if self.suspects:
            first, most = self.suspects[0], max(self.suspects, key=lambda suspect: suspect.growth)
            found.append(f"first divergence of {len(self.suspects)}: {first}: its inputs agree, its output does not")
            if most is not first:
                found.append(f"largest growth of an error: {most}")
        elif self.num_differ:
            found.append("every call whose output differs has inputs that differ: what went wrong first is not recorded")
        for tally, total in ((self.only_here, self.only_here.count), (self.only_bench, self.only_bench.count)):
            if tally.count:
                found.append(tally.sentence(total + self.num_matched))
        if self.lenient.count:
            found.append(self.lenient.sentence(self.num_differ))
        return found


def _pair_plain(leaf: Leaf, other: Leaf, labels: Mapping[str, Any]) -> OutputResult | None:
    """A verdict on values that are not both tensors; None if they are equal."""
    if (leaf.is_tensor, leaf.type, leaf.value) == (other.is_tensor, other.type, other.value):
        return None
    reason = f"is {leaf.type} {leaf.value!r}, expected {other.type} {other.value!r}"
    return OutputResult(**labels, status="fail", reason=reason[:200], check="value", ratio=math.inf)


def _inherited(result: OutputResult, before: float) -> OutputResult:
    """An output that differs, of a call whose inputs differ too: no verdict on the call, unless the error grew by far."""
    if math.isfinite(result.ratio) and result.ratio > GROWTH * before:
        reason = f"its inputs differ, but its error is {result.ratio / before:.2g} times theirs: {result.reason}"
        return dataclasses.replace(result, reason=reason)
    return dataclasses.replace(result, status="noted", reason=f"inherited, its inputs differ: {result.reason}")


def _with_checksums(result: OutputResult, left: str, right: str) -> OutputResult:
    """A verdict on statistics that found nothing, once checksums are known: equal ones settle it, and different ones do where
    there are no statistics."""
    if left == right:
        return dataclasses.replace(result, status="pass", reason="", standard="checksum")
    if result.status == "noted":
        reason = f"checksums differ: {left}, expected {right}"
        return dataclasses.replace(result, status="fail", reason=reason, check="checksum", ratio=math.inf, standard="checksum")
    return result


def _checksum(leaf: Leaf, tensor: Tensor | None) -> str:
    """As recorded, or of the stored bytes."""
    return leaf.checksum or (min(crc32s(tensor)) if tensor is not None else "")


def mode_of(dump: Dump, bench: Dump) -> str:
    """Which of msprobe's tables two dumps make."""
    if dump.task == bench.task == "tensor":
        return "tensor"
    checked = [any(leaf.checksum for record in side.records.values() for leaf in record.leaves) for side in (dump, bench)]
    return "md5" if all(checked) else "statistics"
