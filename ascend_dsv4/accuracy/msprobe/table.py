# SPDX-License-Identifier: Apache-2.0
"""The table msprobe's own comparison writes, with its columns and its rules for `Result`.

Source of columns and rules: core/common/const.py and core/compare/indicator_analysis of msprobe, 2026. Where its manual and its
code differ (the share of elements within a thousandth below which an output is an error: 0.6 and 0.1), this follows the code.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ascend_dsv4.accuracy.msprobe.dump import STATISTICS, Leaf

BASIC = tuple(f"{side} {what}" for what in ("Name", "Dtype", "Tensor Shape", "Requires_grad") for side in ("NPU", "Bench"))
TENSOR = ("Cosine", "EucDist", "MaxAbsErr", "MaxRelativeErr", "One Thousandth Err Ratio", "Five Thousandths Err Ratio")
DIFFERENCES = ("Max diff", "Min diff", "Mean diff", "L2norm diff")
RELATIVE = ("MaxRelativeErr", "MinRelativeErr", "MeanRelativeErr", "NormRelativeErr")
CHECKSUMS = ("NPU MD5", "BENCH MD5")
SUMMARY = tuple(f"{side} {what}" for side in ("NPU", "Bench") for what in ("max", "min", "mean", "l2norm"))
VERDICT = ("Requires_grad Consistent", "Result", "Err_message")
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "tensor": (*BASIC, *TENSOR, *SUMMARY, *VERDICT),
    "statistics": (*BASIC, *DIFFERENCES, *RELATIVE, *SUMMARY, *VERDICT),
    "md5": (*BASIC, *CHECKSUMS, *VERDICT),
}
"""Mode → columns of the table. A stack, and in mode "tensor" the names of the two files, come behind them."""
STACK, DATA_NAME = "NPU_Stack_Info", "Data_name"
MISSING, UNSUPPORTED, NAN = "N/A", "unsupported", "Nan"
PASS, WARNING, ERROR = "pass", "warning", "error"
UNCHECKED_APIS = frozenset({
    "empty", "empty_like", "numpy", "to", "__setitem__", "empty_with_format", "new_empty_strided", "new_empty", "empty_strided",
})  # fmt: skip
"""What these return is not determined, or only moved."""
UNCHECKED_INPUT_APIS = frozenset({"_reduce_scatter_base", "_all_gather_base", "all_to_all_single", "batch_isend_irecv"})
"""Their inputs hold room for the result."""
Row = dict[str, Any]


def columns(mode: str, with_stack: bool) -> tuple[str, ...]:
    """The header of a table."""
    return (*COLUMNS[mode], *([STACK] if with_stack else []), *([DATA_NAME] if mode == "tensor" else []))


def make_row(mode: str, actual: Leaf | None, bench: Leaf | None, figures: Mapping[str, float], message: str = "") -> Row:
    """One pair of values, or one value without a partner, before `Result`.

    figures  of judging.figures or judging.judge_statistics; empty if there are none
    """
    row: Row = {}
    for side, leaf in (("NPU", actual), ("Bench", bench)):
        name, dtype, shape, statistics = _described(leaf)
        grad = MISSING if leaf is None else "" if leaf.requires_grad is None else str(leaf.requires_grad)
        row |= {f"{side} Name": name, f"{side} Dtype": dtype, f"{side} Tensor Shape": shape, f"{side} Requires_grad": grad}
        row |= {f"{side} {what}": value for what, value in zip(("max", "min", "mean", "l2norm"), statistics, strict=True)}
        row["NPU MD5" if side == "NPU" else "BENCH MD5"] = MISSING if leaf is None else leaf.checksum or str(leaf.value or "")
    paired = actual is not None and bench is not None
    if mode == "tensor":
        row |= {name: _figure(figures.get(name), paired) for name in TENSOR}
        row[DATA_NAME] = [MISSING if leaf is None else leaf.data_name or "-1" for leaf in (actual, bench)]
    elif mode == "statistics":
        row |= {name: _figure(figures.get(name), paired, MISSING) for name in DIFFERENCES}
        row |= {name: _percent(figures.get(name), paired) for name in RELATIVE}
    row["Requires_grad Consistent"] = row["NPU Requires_grad"] == row["Bench Requires_grad"] if paired else MISSING
    row["Result"], row["Err_message"] = "", message or ("" if bench is not None else "No bench data matched.")
    return row


def _described(leaf: Leaf | None) -> tuple[str, str, str, list[Any]]:
    """Name, dtype, shape and four statistics, which of plain values are the value."""
    if leaf is None:
        return MISSING, MISSING, MISSING, [MISSING] * 4
    if leaf.is_tensor:
        return leaf.name, leaf.recorded_dtype, str(list(leaf.shape)), [leaf.statistics.get(key) for key in STATISTICS]
    if leaf.type in ("torch.Size", "slice"):
        return leaf.name, leaf.type, str(leaf.value) if leaf.type == "torch.Size" else "(3,)", [None] * 4
    return leaf.name, f"<class '{leaf.type}'>", "[]", [leaf.value] * 4


def _figure(value: float | None, paired: bool, missing: str = UNSUPPORTED) -> Any:
    if value is None:
        return missing if paired else MISSING
    return NAN if math.isnan(value) else value


def _percent(value: float | None, paired: bool) -> str:
    """Shares are written as percent."""
    if value is None or not paired:
        return MISSING
    return "inf" if math.isinf(value) else NAN if math.isnan(value) else f"{100 * value}%" if value else "0"


def judge_rows(mode: str, rows: Sequence[Row]) -> None:
    """Fill in `Result` and `Err_message` of all rows of one record, by msprobe's rules for this mode."""
    found: list[list[tuple[str, str]]] = [[] for _ in rows]
    names = str(rows[0]["NPU Name"]).split(".") if rows else []
    api = names[1] if len(names) > 1 else ""
    outputs = [index for index, row in enumerate(rows) if ".output." in str(row["NPU Name"])]
    checked = [] if api in UNCHECKED_APIS else outputs if api in UNCHECKED_INPUT_APIS else list(range(len(rows)))
    for index in checked:
        found[index] += [(level, text) for level, text, holds in _ROW_RULES[mode] if holds(rows[index])]
    if outputs and checked == list(range(len(rows))) and mode in _CALL_RULES:
        inputs = [row for index, row in enumerate(rows) if index not in outputs]
        for level, text, holds in _CALL_RULES[mode]:
            for index in holds(inputs, [rows[index] for index in outputs]):
                found[outputs[index]].append((level, text))
    for row, marks in zip(rows, found, strict=True):
        levels = [level for level, _ in marks]
        row["Result"] = ERROR if ERROR in levels else WARNING if WARNING in levels else PASS
        texts = [row["Err_message"]] if row["Err_message"] else []
        row["Err_message"] = json.dumps([*texts, *(f"{level}: {text}" for level, text in marks)])


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _born_odd(row: Row) -> bool:
    return any(_is_odd(row[f"NPU {k}"]) for k in ("max", "min")) and not any(_is_odd(row[f"Bench {k}"]) for k in ("max", "min"))


def _differ(what: str) -> Callable[[Row], bool]:
    def holds(row: Row) -> bool:
        pair = (row[f"NPU {what}"], row[f"Bench {what}"])
        return MISSING not in pair and "" not in pair and pair[0] != pair[1]

    return holds


def _scalars_differ(row: Row) -> bool:
    plain = all("class" in str(row[f"{side} Dtype"]) for side in ("NPU", "Bench")) and row["NPU Tensor Shape"] == "[]"
    return plain and ".output." not in str(row["NPU Name"]) and row["NPU max"] != row["Bench max"]


def _checksums_differ(row: Row) -> bool:
    return row["NPU MD5"] != row["BENCH MD5"] and not {row["NPU MD5"], row["BENCH MD5"]} & {MISSING, NAN, ""}


def _checksum_missing(row: Row) -> bool:
    return row["NPU MD5"] != row["BENCH MD5"] and not _checksums_differ(row)


def _numbers(rows: Iterable[Row], column: str) -> list[float]:
    """Figures of a column; percents as shares, what is no number left out."""
    found = []
    for row in rows:
        value = row[column]
        if isinstance(value, str) and value.endswith("%"):
            value = float(value[:-1]) / 100
        if isinstance(value, float | int):
            found.append(float(value))
    return found


def _lost_thousandth(inputs: Sequence[Row], outputs: Sequence[Row]) -> list[int]:
    column = "One Thousandth Err Ratio"
    lost = min([1.0, *_numbers(inputs, column)]) > 0.9 and min([1.0, *_numbers(outputs, column)]) < 0.1
    return [0] if lost else []


def _lost_cosine(inputs: Sequence[Row], outputs: Sequence[Row]) -> list[int]:
    before, after = min([1.0, *_numbers(inputs, "Cosine")]), min([1.0, *_numbers(outputs, "Cosine")])
    return [0] if before > 0.9 and before - after > 0.1 else []


def _lost_norm(inputs: Sequence[Row], outputs: Sequence[Row]) -> list[int]:
    if max([0.0, *_numbers(inputs, "NormRelativeErr")]) >= 0.1:
        return []
    return [index for index, row in enumerate(outputs) if max([0.0, *_numbers([row], "NormRelativeErr")]) > 0.5]


def _grown_norm(inputs: Sequence[Row], outputs: Sequence[Row]) -> list[int]:
    before = max([0.0, *_numbers(inputs, "NormRelativeErr")])
    after = max([0.0, *_numbers(outputs, "NormRelativeErr")])
    return [0] if (after > 0.1 if before == 0 else after / before > 10) else []


_COMMON: tuple[tuple[str, str, Callable[[Row], bool]], ...] = (
    (ERROR, "NaN or infinity in the largest or smallest value of the NPU alone", _born_odd),
    (ERROR, "requires_grad differs", _differ("Requires_grad")),
    (ERROR, "a plain argument differs", _scalars_differ),
    (ERROR, "the dtypes differ", _differ("Dtype")),
    (ERROR, "the shapes differ", _differ("Tensor Shape")),
)
_ROW_RULES: Mapping[str, tuple[tuple[str, str, Callable[[Row], bool]], ...]] = {
    "tensor": _COMMON,
    "statistics": _COMMON,
    "md5": ((ERROR, "the checksums differ", _checksums_differ), (WARNING, "no checksum to compare with", _checksum_missing)),
}
_CALL_RULES: Mapping[str, tuple[tuple[str, str, Callable[[Sequence[Row], Sequence[Row]], list[int]]], ...]] = {
    "tensor": (
        (ERROR, "of the inputs more than 0.9 are within a thousandth, of the outputs fewer than 0.1", _lost_thousandth),
        (WARNING, "the cosine falls by more than 0.1 from the inputs to the outputs", _lost_cosine),
    ),
    "statistics": (
        (ERROR, "the norm is off by more than half, that of the inputs by less than a tenth", _lost_norm),
        (WARNING, "the norm is off by ten times as much as that of the inputs", _grown_norm),
    ),
}


def write_table(file: str | Path, mode: str, rows: Sequence[Row]) -> None:
    """Write the rows as CSV. ∞ gets a blank in front, as msprobe writes it, so that spreadsheets keep it."""
    header = columns(mode, with_stack=any(row.get(STACK) for row in rows))
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows([_cell(row.get(name, "")) for name in header] for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return f" {value}"
    # A text of the dump that a spreadsheet would take for a formula stays a text.
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") and not _is_number(value):
        return f"'{value}"
    return "None" if value is None else value


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%"))
    except ValueError:
        return False
    return True
