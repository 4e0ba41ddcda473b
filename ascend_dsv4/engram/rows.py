# SPDX-License-Identifier: Apache-2.0
"""How one row of an Engram table is packed: codes, then one scale byte (E8M0) per 32 channels. Encoding and its error.

"fp8" is the released format. "int8" and "int4" hold integers under power-of-two scales and lose precision: E4M3 keeps the
relative precision of small values, integers do not. "bf16" has no scales and holds everything that "fp8" can, exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.errors import CheckpointError, ConfigError
from ascend_dsv4.quant import fp8_blockwise
from ascend_dsv4.quant.tables import E4M3FN, E8M0, E8M0_BIAS, E8M0_NAN

RowFormat = Literal["fp8", "bf16", "int8", "int4"]
FORMATS: Final[tuple[RowFormat, ...]] = get_args(RowFormat)
SCALE_GROUP: Final = 32
"""Channels per scale byte."""

_INT_RANGE: Final = {"int8": (-127, 127), "int4": (-8, 7)}
_MIN_EXPONENT: Final = -E8M0_BIAS


def row_bytes(format: RowFormat, head_dim: int) -> int:
    """Bytes of one row. raises ConfigError for an unknown format, or a head_dim that its scales do not divide."""
    if format not in FORMATS:
        raise ConfigError(
            f"Engram row format {format!r}: expected one of {', '.join(FORMATS)} (no other decoder exists). Choose one of them."
        )
    if format == "bf16" and head_dim > 0:
        return 2 * head_dim
    if head_dim <= 0 or head_dim % SCALE_GROUP:
        raise ConfigError(
            f"engram_head_dim={head_dim}: expected a multiple of {SCALE_GROUP} for rows in {format} (one scale covers "
            f"{SCALE_GROUP} channels). Use bf16 rows or correct the configuration."
        )
    return (head_dim // 2 if format == "int4" else head_dim) + head_dim // SCALE_GROUP


def decode_rows(rows: NDArray[np.uint8], format: RowFormat, head_dim: int) -> NDArray[np.float32]:
    """Values of packed rows: uint8 [n, row_bytes] → float32 [n, head_dim]. Exact."""
    if format == "bf16":
        bits = np.ascontiguousarray(rows).view("<u2").astype(np.uint32) << 16
        return bits.view(np.float32)
    num_codes = rows.shape[1] - head_dim // SCALE_GROUP
    codes, scales = rows[:, :num_codes], E8M0[rows[:, num_codes:]]
    if format == "fp8":
        values = E4M3FN[codes]
    elif format == "int8":
        values = codes.view(np.int8).astype(np.float32)
    else:
        nibbles = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(rows), head_dim).astype(np.float32)
        values = np.where(nibbles < 8, nibbles, nibbles - 16).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return values * np.repeat(scales, SCALE_GROUP, axis=1)


def has_nonfinite(rows: NDArray[np.uint8], format: RowFormat, head_dim: int) -> bool:
    """Whether a NaN or an infinity stands in packed rows, from the codes alone where that is possible."""
    if format != "fp8":
        return not np.isfinite(decode_rows(rows, format, head_dim)).all()
    return bool(((rows[:, :head_dim] & 0x7F) == 0x7F).any() or (rows[:, head_dim:] == E8M0_NAN).any())


def encode_rows(values: NDArray[np.float32], format: RowFormat) -> NDArray[np.uint8]:
    """Pack rows: float32 [n, head_dim] → uint8 [n, row_bytes]. Codes round to nearest, ties to even.

    fp8, int8  the smallest power-of-two scale that holds the largest magnitude of a group
    int4       that scale or half of it, which clips, whichever has the smaller squared error in its group
    raises     CheckpointError for a NaN or an infinity, ConfigError as `row_bytes`
    """
    row_bytes(format, values.shape[1])
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"Engram rows: got a NaN or an infinity, expected finite values, because a scale of {format} rows is taken from "
            "the largest magnitude. The table is damaged; download it again."
        )
    if format == "bf16":
        bits = values.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
        return rounded.astype("<u2").view(np.uint8)
    if format == "fp8":
        return np.concatenate(fp8_blockwise.encode_numpy(values, (1, SCALE_GROUP)), axis=1)
    codes, scales = _encode_integers(values, format)
    if format == "int4":
        nibbles = (codes & 15).astype(np.uint8)
        packed = (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).astype(np.uint8)
    else:
        packed = codes.view(np.uint8)
    return np.concatenate([packed, scales], axis=1)


def _encode_integers(values: NDArray[np.float32], format: RowFormat) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Codes int8 [n, head_dim] and scale bytes uint8 [n, head_dim / 32]."""
    low, high = _INT_RANGE[format]
    groups = values.reshape(len(values), -1, SCALE_GROUP).astype(np.float64)
    mantissa, exponent = np.frexp(np.abs(groups).max(axis=2) / high)
    # The smallest power of two that is not below the quotient; float64 divides a float32 by 7 or 127 closely enough.
    exponent = np.where(mantissa == 0, 0, np.maximum(exponent - (mantissa == 0.5), _MIN_EXPONENT))
    codes = np.clip(np.rint(np.ldexp(groups, -exponent[..., None])), low, high)
    if format == "int4":
        finer = np.maximum(exponent - 1, _MIN_EXPONENT)
        clipped = np.clip(np.rint(np.ldexp(groups, -finer[..., None])), low, high)
        wide_error = ((np.ldexp(codes, exponent[..., None]) - groups) ** 2).sum(axis=2)
        fine_error = ((np.ldexp(clipped, finer[..., None]) - groups) ** 2).sum(axis=2)
        is_finer = fine_error < wide_error
        codes, exponent = np.where(is_finer[..., None], clipped, codes), np.where(is_finer, finer, exponent)
    return codes.astype(np.int8).reshape(values.shape), (exponent + E8M0_BIAS).astype(np.uint8)


@dataclass(slots=True)
class RowError:
    """What an encoding lost, summed up over any number of rows with `add`.

    num_rows     rows compared
    max_abs      largest error of a value
    worst_group  largest error of a group of 32 channels, as a share of the group's own norm
    """

    num_rows: int = 0
    num_values: int = 0
    max_abs: float = 0.0
    worst_group: float = 0.0
    _squared_error: float = 0.0
    _squared: float = 0.0
    _squared_decoded: float = 0.0
    _product: float = 0.0

    def add(self, values: NDArray[np.float32], decoded: NDArray[np.float32]) -> None:
        """Take in rows: what was encoded and what comes out, float32 [n, head_dim]."""
        true, got = values.astype(np.float64), decoded.astype(np.float64)
        error = got - true
        self.num_rows += len(values)
        self.num_values += values.size
        self.max_abs = max(self.max_abs, float(np.abs(error).max(initial=0.0)))
        if values.shape[1] % SCALE_GROUP == 0:
            shape = (-1, SCALE_GROUP)
            norms = np.linalg.norm(true.reshape(shape), axis=1)
            lost = np.linalg.norm(error.reshape(shape), axis=1)
            shares = np.divide(lost, norms, out=np.zeros_like(lost), where=norms > 0)
            self.worst_group = max(self.worst_group, float(shares.max(initial=0.0)))
        self._squared_error += float((error * error).sum())
        self._squared += float((true * true).sum())
        self._squared_decoded += float((got * got).sum())
        self._product += float((true * got).sum())

    def add_exact(self, num_rows: int, head_dim: int) -> None:
        """Take in rows that lost nothing, without a look at their values."""
        self.num_rows += num_rows
        self.num_values += num_rows * head_dim

    @property
    def rms(self) -> float:
        """Root mean square of the errors."""
        return math.sqrt(self._squared_error / self.num_values) if self.num_values else 0.0

    @property
    def relative_rms(self) -> float:
        """rms as a share of the root mean square of the values."""
        return math.sqrt(self._squared_error / self._squared) if self._squared else 0.0

    @property
    def cosine(self) -> float:
        """Cosine of the angle between all values and what comes out; 1 if nothing was lost."""
        norms = math.sqrt(self._squared * self._squared_decoded)
        return self._product / norms if norms else 1.0

    def as_dict(self) -> dict[str, float]:
        """The figures by name, for reports."""
        return {
            "num_rows": self.num_rows,
            "max_abs": self.max_abs,
            "rms": self.rms,
            "relative_rms": self.relative_rms,
            "worst_group": self.worst_group,
            "cosine": self.cosine,
        }
