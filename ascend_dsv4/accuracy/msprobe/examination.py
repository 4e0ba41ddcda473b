# SPDX-License-Identifier: Apache-2.0
"""What speaks against a dump by itself: statistics that are bad news, or that contradict themselves or the stored tensors."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ascend_dsv4.accuracy.msprobe.dump import STATISTICS, Dump, Leaf, Record
from ascend_dsv4.accuracy.msprobe.tensor_files import dtype_of

MAX_NAMED = 3
"""How many names a finding gives."""
SUM_ERROR = 1e-4
"""Share by which a mean or a norm that was summed in float32 in any order may be off."""
PRECISION = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Distance of 1 to the next number."""
NPY_DTYPES = {"bfloat16": ("float32",), "float8_e4m3fn": ("float32",), "float8_e5m2": ("float32",)}
"""Recorded dtype → what a .npy file holds, which has no such type."""
TORCH_DTYPES = frozenset(str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype))
UNDETERMINED_APIS = frozenset({"empty", "empty_like", "empty_with_format", "empty_strided", "new_empty", "new_empty_strided"})
"""They return memory as it is."""
FILLING_APIS = frozenset(
    {"zeros", "zeros_like", "new_zeros", "zero_", "ones", "ones_like", "new_ones", "full", "full_like", "new_full", "fill_"}
)
"""They return one value throughout, and are meant to."""
HALF_MAX = 65504.0


@dataclass
class Tally:
    """Tensors with one thing wrong with them."""

    what: str
    first: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, name: str) -> None:
        """Count one; the first few are named."""
        self.count += 1
        if len(self.first) < MAX_NAMED:
            self.first.append(name)

    def sentence(self, total: int) -> str:
        """How many of how many, and the names of the first."""
        more = ", …" if self.count > len(self.first) else ""
        return f"{self.count} of {total} {self.what}: {', '.join(self.first)}{more}"


def api_name(record: Record) -> str:
    """The API without its kind: linear of Functional.linear."""
    return record.api.split(".", 1)[-1]


def _tallies() -> dict[str, Tally]:
    return {
        "nan": Tally("tensors contain NaN by their statistics"),
        "inf": Tally("tensors contain infinity by their statistics"),
        "born": Tally("outputs have NaN or infinity where no input of the call has"),
        "zero": Tally("floating-point outputs are all zero"),
        "constant": Tally("floating-point outputs hold one value throughout"),
        "impossible": Tally("tensors have statistics that no tensor has"),
        "missing": Tally(
            "tensors have no file, though one is named (msprobe saves none in NZ format, and a copy may have lost some)"
        ),
        "unsaved": Tally('tensors of a dump with task "tensor" name no file'),
        "type": Tally("stored tensors are not what dump.json says they are"),
        "contradiction": Tally("stored tensors contradict their recorded statistics"),
        "checksum": Tally("stored tensors contradict their recorded CRC-32"),
    }


class Examination:
    """Collects what speaks against a dump, record by record."""

    def __init__(self, title: str = "") -> None:
        self.title = title
        self.tallies = _tallies()
        self.num_tensors = 0
        self.num_float_outputs = 0
        self.num_stored = 0

    def record(self, dump: Dump, record: Record, tensors: Mapping[Leaf, Tensor | None]) -> None:
        """Examine one record.

        tensors  leaf → its stored values, or None if the named file is missing, for those leaves that name a file that could
                 be read
        """
        for leaf in record.leaves:
            if not leaf.is_tensor or (leaf.role == "output" and api_name(record) in UNDETERMINED_APIS):
                continue
            self.num_tensors += 1
            varies = leaf.role == "output" and leaf.is_float and leaf.num_elements > 1 and api_name(record) not in FILLING_APIS
            self.num_float_outputs += varies
            for kind, detail in self._of_leaf(dump, leaf, tensors, varies):
                name = dump.where(leaf.name)
                self.tallies[kind].add(f"{name} ({detail})" if detail else name)
        sick = {leaf: _nonfinite(leaf) for leaf in record.leaves if leaf.is_tensor}
        inputs = (kinds for leaf, kinds in sick.items() if leaf.role in ("input", "parameters"))
        if not any(inputs) and api_name(record) not in UNDETERMINED_APIS | FILLING_APIS:
            for leaf, kinds in sick.items():
                if leaf.role == "output" and kinds:
                    self.tallies["born"].add(dump.where(leaf.name))

    def _of_leaf(
        self, dump: Dump, leaf: Leaf, tensors: Mapping[Leaf, Tensor | None], varies: bool
    ) -> Iterator[tuple[str, str]]:
        for kind in _nonfinite(leaf):
            yield kind, ""
        if varies:
            top, bottom = leaf.statistics.get("Max"), leaf.statistics.get("Min")
            if top is not None and top == bottom:
                yield "zero" if top == 0 else "constant", "" if top == 0 else f"{top:g}"
        if impossible := contradiction(leaf):
            yield "impossible", impossible
        if not leaf.data_name:
            if dump.task == "tensor" and leaf.num_elements and leaf.type in ("torch.Tensor", "mindspore.Tensor"):
                yield "unsaved", ""
        elif leaf in tensors:
            tensor = tensors[leaf]
            if tensor is None:
                yield "missing", leaf.data_name
            else:
                self.num_stored += 1
                yield from against_stored(leaf, tensor)

    def findings(self) -> list[str]:
        """One sentence for each kind of trouble."""
        totals = dict.fromkeys(self.tallies, self.num_tensors)
        totals |= {"zero": self.num_float_outputs, "constant": self.num_float_outputs}
        totals |= {"type": self.num_stored, "contradiction": self.num_stored, "checksum": self.num_stored}
        found = [self.title + tally.sentence(totals[key]) for key, tally in self.tallies.items() if tally.count]
        if self.num_float_outputs and self.tallies["zero"].count == self.num_float_outputs:
            found.insert(0, f"{self.title}refused: every floating-point output is zero, so this dump says nothing")
        return found


def _nonfinite(leaf: Leaf) -> list[str]:
    """nan, inf, by the recorded statistics. A float16 norm of finite elements overflows by itself and does not count."""
    numbers = {key: value for key, value in leaf.statistics.items() if value is not None}
    bounds = [numbers[key] for key in ("Max", "Min") if key in numbers]
    if bounds and all(math.isfinite(value) for value in bounds):
        numbers = {key: value for key, value in numbers.items() if not (key in ("Norm", "Mean") and math.isinf(value))}
    found = ["nan"] if any(math.isnan(value) for value in numbers.values()) else []
    return [*found, "inf"] if any(math.isinf(value) for value in numbers.values()) else found


def contradiction(leaf: Leaf) -> str:
    """Why no tensor has these statistics; empty if one could."""
    top, bottom, mean, norm = (leaf.statistics.get(key) for key in STATISTICS)
    numbers = [value for value in (top, bottom) if value is not None and math.isfinite(value)]
    # Of a complex tensor they are those of the magnitudes; the norm of a tensor without axes is its value.
    if len(numbers) < 2 or leaf.dtype.startswith("complex") or not leaf.shape:
        return ""
    assert top is not None and bottom is not None
    slack = SUM_ERROR + 2 * PRECISION.get(leaf.dtype, 2.0**-23)
    largest = max(abs(top), abs(bottom))
    if bottom > top:
        return f"Min {bottom:g} above Max {top:g}"
    if mean is not None and math.isfinite(mean) and not bottom - slack * largest <= mean <= top + slack * largest:
        return f"Mean {mean:g} outside [{bottom:g}, {top:g}]"
    if norm is not None and math.isfinite(norm):
        most = largest * math.sqrt(leaf.num_elements)
        # Squares below the smallest number of the type are lost.
        if norm > most * (1 + slack) or (norm < largest * (1 - slack) and largest > 1e-3):
            return f"Norm {norm:g} outside [{largest:g}, {most:g}]"
    return ""


def summary(tensor: Tensor) -> dict[str, float | None]:
    """The statistics msprobe records, computed in float64 from the stored values."""
    if not tensor.numel() or tensor.dtype.is_complex:
        return dict.fromkeys(STATISTICS)
    wide = tensor.double()
    norm = float(wide) if not tensor.dim() else float(torch.linalg.vector_norm(wide))
    return {"Max": float(wide.max()), "Min": float(wide.min()), "Mean": float(wide.mean()), "Norm": norm}


def against_stored(leaf: Leaf, tensor: Tensor) -> Iterator[tuple[str, str]]:
    """(kind, detail) of every disagreement between a leaf and the tensor in its file."""
    stored = dtype_of(tensor)
    if tuple(tensor.shape) != leaf.shape:
        yield "type", f"stored {list(tensor.shape)}, recorded {list(leaf.shape)}"
        return
    may_be = (leaf.dtype, *NPY_DTYPES.get(leaf.dtype, ())) if leaf.data_name.endswith(".npy") else (leaf.dtype,)
    if stored not in may_be and leaf.dtype in TORCH_DTYPES:
        yield "type", f"stored {stored}, recorded {leaf.dtype}"
        return
    actual = summary(tensor)
    mean_abs = float(tensor.double().abs().mean()) if tensor.numel() and not tensor.dtype.is_complex else 0.0
    for key, recorded in leaf.statistics.items():
        right = actual[key]
        if recorded is not None and right is not None and not _agrees(key, recorded, right, leaf.dtype, mean_abs):
            yield "contradiction", f"{key} recorded {recorded:g}, stored {right:g}"
            break
    if len(leaf.checksum) == 8 and leaf.checksum not in crc32s(tensor):
        yield "checksum", f"recorded {leaf.checksum}"


def _agrees(key: str, recorded: float, right: float, dtype: str, mean_abs: float) -> bool:
    if math.isnan(right) or math.isnan(recorded):
        return math.isnan(right) == math.isnan(recorded)
    if math.isinf(recorded) and key in ("Mean", "Norm"):
        return math.isinf(right) or dtype == "float16" and (key == "Mean" or abs(right) > HALF_MAX / 2)
    if key in ("Max", "Min") or math.isinf(right) or math.isinf(recorded):
        return recorded == right or math.isclose(recorded, right, rel_tol=2.0**-23)
    precision = PRECISION.get(dtype, 2.0**-23)
    scale = mean_abs if key == "Mean" else abs(right)
    # Subnormal sums: absolute room of the smallest normal float16.
    return abs(recorded - right) <= SUM_ERROR * scale + 2 * precision * abs(right) + 1e-7


def crc32s(tensor: Tensor) -> set[str]:
    """Checksums msprobe may have recorded: of the bytes; earlier versions widened bfloat16 to float32 first."""
    plain = tensor.contiguous()
    wide = [plain.float()] if plain.dtype == torch.bfloat16 else []
    return {f"{zlib.crc32(one.reshape(-1).view(torch.uint8).numpy().tobytes()):08x}" for one in [plain, *wide]}
