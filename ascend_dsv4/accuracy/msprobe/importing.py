# SPDX-License-Identifier: Apache-2.0
"""`compare import-msprobe`: examine a dump of msprobe, compute it again where it can be, or compare it with a second one."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from ascend_dsv4.accuracy.environment import environment
from ascend_dsv4.accuracy.msprobe.dump import Dump, Leaf, Record, find_dumps, read_dump
from ascend_dsv4.accuracy.msprobe.examination import Examination
from ascend_dsv4.accuracy.msprobe.pairing import Comparison, mode_of, pair_dumps, refuse_same
from ascend_dsv4.accuracy.msprobe.recomputing import Recomputation
from ascend_dsv4.accuracy.msprobe.table import write_table
from ascend_dsv4.accuracy.msprobe.tensor_files import load_tensor
from ascend_dsv4.accuracy.results import CaseError, Report
from ascend_dsv4.errors import ConfigError, DumpError

STANDARDS = ("tolerance", "opbase-single", "mixed", "msprobe")
COMMAND = "ascend-dsv4 compare import-msprobe"
MAX_ERRORS = 100
"""Damaged files that are reported one by one."""


def import_msprobe(
    directory: str | Path,
    bench: str | Path | None = None,
    *,
    standard: str = "tolerance",
    names: Sequence[str] = (),
    csv: str | Path | None = None,
    identical: bool = False,
) -> Report:
    """Read an msprobe dump and hold it against something that can disagree.

    directory  a dump.json, or a folder of one rank, step or run
    bench      a second dump, the golden one: records are paired by step, rank, name and position. Without it, recorded calls
               of operators we know are computed again in float64 from their stored inputs
    standard   one of STANDARDS, for verdicts on stored tensors: by default the operator's own tolerance, or the dtype's
    names      patterns (Functional.linear.*) of the records to look at; all if empty
    csv        where to write msprobe's own table, with a bench only; several steps or ranks make several files beside it
    identical  the two dumps may be equal byte for byte, being two runs that should repeat exactly

    Returns a report: `results` are comparisons, `errors` are files that could not be read, `findings` is everything else that
    speaks against the dump. Nothing compared means exit code 2. Raises DumpError if there is no dump, if two dumps are one, or
    have nothing in common; ConfigError for options that do not go together.
    """
    start = time.perf_counter()
    if csv is not None and bench is None:
        raise ConfigError("csv without bench: msprobe's table compares two dumps. Give a bench, or leave out csv.")
    if standard not in STANDARDS:
        raise ConfigError(f"standard={standard!r}: expected one of {', '.join(STANDARDS)}, because a dump has no baseline.")
    command = f"{COMMAND} {shlex.join([str(directory), *(['--bench', str(bench)] if bench is not None else [])])}"
    errors: list[CaseError] = []
    dumps = _read_all(directory, names, errors)
    if bench is None:
        examination, recomputation = Examination(), Recomputation(standard, command)
        for dump in dumps:
            for record in dump.records.values():
                tensors = _load(dump, record, errors, command)
                examination.record(dump, record, tensors)
                recomputation.record(dump, record, tensors)
        results, findings = recomputation.results, examination.findings()
    else:
        comparison = Comparison(standard, command)
        findings = _compare(dumps, _read_all(bench, names, errors), comparison, identical, errors)
        results = comparison.results
        for label, rows in comparison.rows.items() if csv is not None else ():
            write_table(_table_file(Path(str(csv)), label, len(comparison.rows)), comparison.modes[label], rows)
    if not any(result.status in ("pass", "fail", "refused") for result in results):
        results = []
        findings.append(_nothing(dumps, bench is not None))
    return Report(
        f"msprobe dump {directory}" + (f" against {bench}" if bench is not None else ""),
        command, {**environment(), **_contents(dumps)}, standard, tuple(results), tuple(errors),
        findings=tuple(findings), seconds=time.perf_counter() - start,
    )  # fmt: skip


def _read_all(source: str | Path, names: Sequence[str], errors: list[CaseError]) -> list[Dump]:
    """The dumps of a folder with the chosen records. Damaged ones become errors; DumpError if none is left."""
    dumps: list[Dump] = []
    broken: list[DumpError] = []
    for label, file in find_dumps(source).items():
        try:
            dumps.append(_select(read_dump(file, label), names))
        except DumpError as error:
            broken.append(error)
            errors.append(CaseError("", "dump", "", label or file.name, str(error)))
    if not dumps:
        raise broken[0]
    if names and not any(dump.records for dump in dumps):
        raise DumpError(
            f"{source}: no record is called {' or '.join(names)}; expected a pattern such as Functional.linear.*, which fits "
            "names in dump.json. Look at those names, or leave the pattern out."
        )
    return dumps


def _select(dump: Dump, names: Sequence[str]) -> Dump:
    if not names:
        return dump
    kept = {name: record for name, record in dump.records.items() if any(fnmatchcase(name, pattern) for pattern in names)}
    return dataclasses.replace(dump, records=kept)


def _load(dump: Dump, record: Record, errors: list[CaseError], command: str) -> dict[Leaf, Tensor | None]:
    """Stored values of a record; None for a missing file. A file that cannot be read is an error and left out."""
    tensors: dict[Leaf, Tensor | None] = {}
    for leaf in record.leaves:
        if not leaf.is_tensor or not leaf.data_name:
            continue
        try:
            tensors[leaf] = load_tensor(dump, leaf)
        except DumpError as error:
            if len(errors) < MAX_ERRORS:
                errors.append(CaseError(record.api, "dump", leaf.dtype, dump.where(record.name), str(error), command))
    return tensors


def _compare(
    dumps: Sequence[Dump], benches: Sequence[Dump], comparison: Comparison, identical: bool, errors: list[CaseError]
) -> list[str]:
    """Compare all pairs. Returns findings."""
    pairs, alone = pair_dumps(dumps, benches)
    mine, theirs = Examination(), Examination("bench: ")
    for dump, bench in pairs:
        refuse_same(dump, bench, identical)
        comparison.modes[dump.label] = mode_of(dump, bench)
        for name in dict.fromkeys([*dump.records, *bench.records]):
            record, other = dump.records.get(name), bench.records.get(name)
            tensors = _load(dump, record, errors, comparison.command) if record else {}
            bench_tensors = _load(bench, other, errors, comparison.command) if other else {}
            if record:
                mine.record(dump, record, tensors)
            if other:
                theirs.record(bench, other, bench_tensors)
            if record and other:
                comparison.record(dump, record, bench, other, tensors, bench_tensors)
            else:
                comparison.unmatched(dump, record, other)
    if not comparison.num_matched:
        raise DumpError(
            f"no value is in both dumps: {_first(d for d, _ in pairs)} against {_first(b for _, b in pairs)}; expected "
            "the same names, because values are paired by name. Record both with the same level and the same model code."
        )
    return [*comparison.findings(), *alone, *mine.findings(), *theirs.findings()]


def _first(dumps: Iterable[Dump]) -> str:
    return ", ".join(next(iter(dump.records), "nothing") for dump in list(dumps)[:1])


def _nothing(dumps: Sequence[Dump], paired: bool) -> str:
    """Why there is no result."""
    if paired:
        return "nothing was decided: no pair of values could have differed"
    tasks = " and ".join(sorted({dump.task or "unnamed" for dump in dumps}))
    return (
        f"nothing was compared: with task {tasks}, no call of a known operator has its inputs and outputs stored. Give a "
        'second dump as bench, or record with task "tensor"'
    )


def _table_file(file: Path, label: str, count: int) -> Path:
    """compare.csv, or compare_step0_rank1.csv if there are several."""
    return file if count == 1 else file.with_name(f"{file.stem}_{label.replace('/', '_')}{file.suffix}")


def _contents(dumps: Sequence[Dump]) -> Mapping[str, str]:
    kinds = sorted({f"{dump.framework} {dump.level} {dump.task}".strip() for dump in dumps})
    records = sum(len(dump.records) for dump in dumps)
    return {"dumps": f"{len(dumps)} ({', '.join(kinds)})", "records": str(records)}
