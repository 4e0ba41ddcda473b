# SPDX-License-Identifier: Apache-2.0
"""The twin's vector instructions against answers from their documentation: by hand or by numpy, instruction by instruction.

Sorting is in test_sort.py, memory and queues in test_memory.py, the cube core in test_cube.py.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ascend_dsv4.twin.kernel_library import build

F32, F16, I16, I32, U32 = np.float32, np.float16, np.int16, np.int32, np.uint32
NONE, RINT, FLOOR, CEIL, ROUND, TRUNC, ODD = range(7)
LT, GT, EQ, LE, GE, NE = range(6)
INF, NAN = float("inf"), float("nan")
MAX32, MIN32 = 2**31 - 1, -(2**31)


class Case(NamedTuple):
    """One step of conformance.cpp. x, z, y: what its operands hold, 0 or `old` behind their end; `want`: y afterwards."""

    name: str
    want: np.ndarray
    x: np.ndarray | None = None
    z: np.ndarray | None = None
    y: np.ndarray | None = None
    bits: np.ndarray | None = None
    p: int = 0
    keeps: bool = True
    """Whether 16-bit results keep infinity and NaN: bit 48 of the control register."""


def buffer(values: np.ndarray | None, size: int = 1024, fill: int = 0) -> np.ndarray:
    out = np.full(size, fill, np.uint8)
    if values is not None:
        data = np.ascontiguousarray(values).view(np.uint8).ravel()[:size]
        out[: len(data)] = data
    return out


def old(dtype: type) -> np.ndarray:
    """What y holds unless a case says otherwise: 0x40 in every byte."""
    return np.full(1024, 0x40, np.uint8).view(dtype)


def changed(dtype: type, values: dict[int, object]) -> np.ndarray:
    out = old(dtype).copy()
    for index, value in values.items():
        out[index] = value
    return out


def placed(dtype: type, *runs: tuple[int, object]) -> np.ndarray:
    """y where each run of values has been written at its index."""
    out = old(dtype).copy()
    for first, values in runs:
        values = np.asarray(values, dtype)
        out[first : first + len(values)] = values
    return out


def bf16(values: object) -> np.ndarray:
    """Bits of numbers that bfloat16 holds exactly."""
    return (np.asarray(values, F32).view(U32) >> 16).astype(np.uint16)


def tree(values: np.ndarray) -> np.ndarray:
    """The sum of a power of two of neighbours along the last axis."""
    while values.shape[-1] > 1:
        values = values[..., 0::2] + values[..., 1::2]
    return values[..., 0]


def bitmap(flags: object) -> np.ndarray:
    return np.packbits(np.asarray(flags, bool), bitorder="little")


RNG = np.random.default_rng(6)
X, Z = RNG.standard_normal(256).astype(F32), RNG.standard_normal(256).astype(F32)
XH, ZH = RNG.standard_normal(512).astype(F16), RNG.standard_normal(512).astype(F16)
XI = RNG.integers(-1000, 1000, 256, I32)
XS, ZS = RNG.integers(-100, 100, 512, I16), RNG.integers(-100, 100, 512, I16)
RAMP = np.arange(256, dtype=F32)
ODDS = np.array([0.0, -0.0, INF, -INF, NAN, 1.0, -2.0, 1e-40], F32)
ONES = np.array([1.0, -1.0, 2.0, INF, 1.0, NAN, -2.0, -0.0], F32)
ROWS = X.reshape(4, 64)
LARGE = np.array([65504, -60000, 1], F16)

ARITHMETIC = [
    Case("add", placed(F32, (0, X[:5] + Z[:5])), X, Z, p=5),
    Case("add", X + Z, X, Z, p=256),
    Case("add", old(F32), X, Z, p=0),
    Case("add", np.array([1, -1, INF, NAN, NAN, NAN, -4, 1e-40], F32), ODDS, ONES, p=8),
    Case("add_half", placed(F16, (0, XH[:100] + ZH[:100])), XH, ZH, p=100),
    Case("add_half", placed(F16, (0, [INF, -INF, NAN])), LARGE, np.array([32, -6000, NAN], F16), p=3),
    Case("add_half", placed(F16, (0, [65504, -65504, 0])), LARGE, np.array([32, -6000, NAN], F16), p=3, keeps=False),
    Case("add_in_place", np.concatenate([X[:100] + Z[:100], Z[100:]]), X, y=Z),
    Case("add_mask", placed(F32, (0, (X + Z)[:3]), (64, (X + Z)[64:67])), X, Z),
    Case("add_bitmap", changed(F32, {i: X[i] + Z[i] for i in (0, 2, 63, 64, 66, 127)}), X, Z),
    Case("add_bitmap_half", changed(F16, {i: XH[i] + ZH[i] for i in (0, 127)}), XH, ZH),
    Case("add_repeat_zero", old(F32), X, Z),
    Case("add_spread", placed(F32, (0, (X + Z)[:8]), (16, (X + Z)[8:16]), (32, (X + Z)[16:24])), X, Z),
    Case("add_accumulate", np.concatenate([ROWS[3] + (ROWS[2] + (ROWS[1] + (ROWS[0] + Z[:64]))), Z[64:]]), X, y=Z),
    Case("mul_stride_zero", X * np.concatenate([np.tile(Z[8 * i : 8 * i + 8], 8) for i in range(4)]), X, Z),
    Case("mul_row_by_row", X * np.tile(Z[:64], 4), X, Z),
    Case("sub_int16", placed(I16, (0, (XS - ZS)[:100]), (128, (XS - ZS)[128:228])), XS, ZS),
    Case("mul_int32", placed(I32, (0, XI[:9] * XI[9:18])), XI, XI[9:]),
    Case("div", placed(F32, (0, X[:77] / Z[:77])), X, Z, p=77),
    Case("div", placed(F32, (0, [INF, -INF, NAN])), np.array([1, -1, 0], F32), np.zeros(3, F32), p=3),
    Case("div_half", placed(F16, (0, XH[:77] / ZH[:77])), XH, ZH, p=77),
    Case("max", placed(F32, (0, [1, -0.0, INF, INF, NAN, NAN, -2, 1e-40])), ODDS, ONES, p=8),
    Case("min", placed(F32, (0, [0, -1, 2, -INF, NAN, NAN, -2, -0.0])), ODDS, ONES, p=8),
    Case("min_int32", placed(I32, (0, np.minimum(XI, XI[::-1])[:70])), XI, XI[::-1]),
    Case("adds_int16", placed(I16, (0, XS[:100] - 300)), XS),
    Case("muls", placed(F32, (0, X[:7] * 2)), X, p=7),
    Case("muls", old(F32), X, p=0),
    Case("muls_mask", placed(F32, *((64 * i, X[:5] * 2) for i in range(3))), X),
    Case("maxs", placed(F32, (0, np.maximum(X[:128], 3))), X),
    Case("maxs", placed(F32, (0, [NAN] + [3.0] * 127)), np.array([NAN], F32)),
    Case("mins_half", placed(F16, (0, np.minimum(XH[:128] * 4, 3))), XH * 4),
    Case("sqrt", np.sqrt(np.abs(X)), np.abs(X), p=256),
    Case("sqrt", placed(F32, (0, [0, -0.0, INF, NAN, NAN, 1])), ODDS, p=6),
    Case("abs", placed(F32, (0, [0, 0, INF, INF, NAN, 1, 2, 1e-40])), ODDS, p=8),
    Case("relu", placed(F32, (0, np.maximum(X[:128], 0))), X),
    Case("relu_int32", placed(I32, (0, np.maximum(XI[:128], 0))), XI),
    Case("leaky_relu", placed(F32, (0, np.where(X < 0, X / 2, X)[:128])), X),
    # The product is rounded before it is added: a fused multiply-add would give other last bits.
    Case("axpy", np.concatenate([Z[:200] + X[:200] * F32(1 + 2**-12), Z[200:]]), X, y=Z),
    Case("axpy_half", np.concatenate([ZH[:200] + XH[:200] * F16(1 + 2**-6), ZH[200:]]), XH, y=ZH),
    Case("axpy_mixed", np.concatenate([Z[:128] + XH[:128].astype(F32) * 3, Z[128:]]), XH, y=Z),
    Case("mul_add_dst", np.concatenate([RAMP[:77] + X[:77] * Z[:77], RAMP[77:]]), X, Z, y=RAMP),
    Case("and", placed(np.uint16, (0, (XS & ZS)[:400].view(np.uint16))), XS, ZS),
    Case("or", XS | ZS, XS, ZS),
    Case("not", placed(I16, (0, ~XS[:33])), XS),
    Case("shift_left", placed(I32, (0, XI[:200] * 8)), XI),
    Case("shift_right", placed(I32, (0, np.floor(XI[:200] / 2))), XI),
    Case("shift_right_unsigned", placed(U32, (0, [2**28 - 1, 1] + [0] * 198)), np.array([2**32 - 1, 17], U32)),
    Case("shift_right_rounded", placed(I16, (0, [3, 2, -2, -1] + [0] * 124)), np.array([5, 4, -5, -3], I16)),
]

FILLING = [
    Case("duplicate", placed(F32, (0, [2.5] * 9)), p=9),
    Case("duplicate", old(F32), p=0),
    Case("duplicate_mask", placed(F32, (0, [2.5] * 8), (16, [2.5]), (128, [2.5] * 8), (144, [2.5]))),
    Case("duplicate_bitmap", changed(np.uint16, dict.fromkeys((1, 66, 129, 194), 0x3F80))),
    Case("index", placed(I32, (0, np.arange(21) - 3)), p=21),
    Case("index", np.arange(256, dtype=I32) - 3, p=256),
    Case("index", old(I32), p=0),
    Case("index_half", placed(F16, (0, np.arange(100) + 1)), p=100),
    Case("arange", placed(F32, (0, 1 - np.arange(70) / 2)), p=70),
    Case("brcb", np.repeat(X[:32], 8), X),
    Case("brcb_half", placed(F16, *((32 * i, [XH[i]] * 16) for i in range(8))), XH),
    Case("transpose", placed(F16, (0, XH[:256].reshape(16, 16).T.ravel())), XH),
    Case("copy", placed(I32, (0, XI[:8]), (8, XI[16:24]), (32, XI[64:72]), (40, XI[80:88])), XI),
    Case("copy_rows", placed(F32, *((48 * i, X[24 * i : 24 * i + 16]) for i in range(3))), X),
    Case("copy_local", placed(F32, (0, X[:24])), X),
    Case("atomic_add", np.concatenate([Z[:19] + X[:19], Z[19:]]), X, y=Z),
    Case("atomic_max", np.concatenate([np.maximum(Z, X)[:16], Z[16:]]), X, y=Z),
    Case("atomic_min", np.concatenate([np.minimum(Z, X)[:16], Z[16:]]), X, y=Z),
    Case("counter_mask", placed(F32, (0, (X + Z)[:100])), X, Z, p=100),
    Case("counter_mask", old(F32), X, Z, p=0),
    Case("normal_mask", placed(F32, *((64 * i + 4, X[64 * i + 4 : 64 * i + 8] + 1) for i in range(3))), X),
]

# Ties, saturation, NaN; 24 numbers are converted, what stands here first and zeros behind.
HALVES = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, -0.50000006]
INTEGRAL = {
    RINT: [0, 2, 2, 0, -2, -2, 0, -1],
    FLOOR: [0, 1, 2, -1, -2, -3, 0, -1],
    CEIL: [1, 2, 3, 0, -1, -2, 1, 0],
    ROUND: [1, 2, 3, -1, -2, -3, 0, -1],
    TRUNC: [0, 1, 2, 0, -1, -2, 0, 0],
}
WIDE = [70000.0, -70000.0, 3e9, -3e9, INF, -INF, NAN]
H, B = 2.0**-10, 2.0**-7  # last bits of half and of bfloat16 at 1
TO_HALF = [1 + H / 2, 1 + 1.5 * H, -1 - H / 2, 2.0**-25, 1e6, -1e6, INF, -INF, NAN, 0.1]
HALF_AND = {
    RINT: [1, 1 + 2 * H, -1, 0],
    FLOOR: [1, 1 + H, -1 - H, 0],
    CEIL: [1 + H, 1 + 2 * H, -1, 2.0**-24],
    ROUND: [1 + H, 1 + 2 * H, -1 - H, 2.0**-24],
    TRUNC: [1, 1 + H, -1, 0],
    ODD: [1 + H, 1 + H, -1 - H, 2.0**-24],
}
HALF_AND[NONE] = HALF_AND[RINT]
TENTH = dict.fromkeys((NONE, RINT, FLOOR, ROUND, TRUNC), 1638 * 2.0**-14) | {CEIL: 1639 * 2.0**-14, ODD: 1639 * 2.0**-14}
TO_BF16 = [1 + B / 2, 1 + 1.5 * B, -1 - B / 2, INF, -INF]
BF16_AND = {
    RINT: [1, 1 + 2 * B, -1],
    FLOOR: [1, 1 + B, -1 - B],
    CEIL: [1 + B, 1 + 2 * B, -1],
    ROUND: [1 + B, 1 + 2 * B, -1 - B],
    TRUNC: [1, 1 + B, -1],
}
BIG = [2**24 + 1, 2**24 + 3, -(2**24) - 1]
BIG_AND = {
    RINT: [2**24, 2**24 + 4, -(2**24)],
    FLOOR: [2**24, 2**24 + 2, -(2**24) - 2],
    CEIL: [2**24 + 2, 2**24 + 4, -(2**24)],
    ROUND: [2**24 + 2, 2**24 + 4, -(2**24) - 2],
    TRUNC: [2**24, 2**24 + 2, -(2**24)],
}
NARROW = [0.5, 1.5, -0.5, -2.5, 127.5, 128, -128.5, -129, INF, NAN]
INT8_AND = {
    RINT: [0, 2, 0, -2],
    FLOOR: [0, 1, -1, -3],
    CEIL: [1, 2, 0, -2],
    ROUND: [1, 2, -1, -3],
    TRUNC: [0, 1, 0, -2],
}
INT8_AND[NONE] = INT8_AND[RINT]


def cast(pair: str, given: np.ndarray, want: np.ndarray, mode: int, keeps: bool = True) -> Case:
    full = np.zeros(24, want.dtype)
    full[: len(want)] = want
    return Case(pair, placed(want.dtype.type, (0, full)), given, p=mode, keeps=keeps)


CASTS = [
    case
    for mode, small in INTEGRAL.items()
    for case in (
        cast("float->int16", np.array(HALVES + WIDE, F32), np.array(small + [32767, -32768] * 3 + [0], I16), mode),
        cast(
            "float->int32",
            np.array(HALVES + WIDE, F32),
            np.array(small + [70000, -70000, MAX32, MIN32, MAX32, MIN32, 0], I32),
            mode,
        ),
        cast(
            "float->int64",
            np.array(HALVES + WIDE, F32),
            np.array(small + [70000, -70000, 3000000000, -3000000000, 2**63 - 1, -(2**63), 0], np.int64),
            mode,
        ),
        cast(
            "float->float", np.array(HALVES + WIDE, F32), np.copysign(np.array(small + WIDE), HALVES + WIDE).astype(F32), mode
        ),
        cast("half->int32", np.array(HALVES[:6] + [INF, NAN], F16), np.array(small[:6] + [MAX32, 0], I32), mode),
        cast("half->int16", np.array(HALVES[:6] + [40000], F16), np.array(small[:6] + [32767], I16), mode),
        cast("bf16->int32", bf16(HALVES[:6] + [2**20, NAN]), np.array(small[:6] + [2**20, 0], I32), mode),
        cast("float->bf16", np.array(TO_BF16, F32), bf16(BF16_AND[mode] + [INF, -INF]), mode),
        cast("int32->float", np.array(BIG, I32), np.array(BIG_AND[mode], F32), mode),
        cast("int64->float", np.array(BIG, np.int64) << 20, np.array(BIG_AND[mode], F32) * 2**20, mode),
    )
]
CASTS += [
    cast(
        "float->half",
        np.array(TO_HALF, F32),
        np.array([*small, 65504, -65504, 65504, -65504, 0, TENTH[mode]], F16),
        mode,
        keeps=False,
    )
    for mode, small in HALF_AND.items()
]
CASTS += [
    cast("half->int8", np.array(NARROW, F16), np.array([*small, 127, 127, -128, -128, 127, 0], np.int8), mode)
    for mode, small in INT8_AND.items()
]
CASTS += [
    cast(
        "half->uint8", np.array([0.5, 1.5, -3, 255, 256, INF, NAN], F16), np.array([0, 2, 0, 255, 255, 255, 0], np.uint8), RINT
    ),
    cast(
        "half->float",
        np.array([2.0**-24, -0.0, 65504, INF, NAN, 0.1], F16),
        np.array([2.0**-24, -0.0, 65504, INF, NAN, F16(0.1)], F32),
        NONE,
    ),
    cast("bf16->float", bf16([1 + B, -INF, 2.0**-130]), np.array([1 + B, -INF, 2.0**-130], F32), NONE),
    cast("int8->half", np.array([-128, 127, -1], np.int8), np.array([-128, 127, -1], F16), NONE),
    cast("uint8->half", np.array([255, 1], np.uint8), np.array([255, 1], F16), NONE),
    cast("int16->float", np.array([-32768, 32767], I16), np.array([-32768, 32767], F32), NONE),
    cast("int16->half", np.array([2049, 2051, -2049], I16), np.array([2048, 2052, -2048], F16), RINT),
    cast("int16->half", np.array([2049, 2051, -2049], I16), np.array([2050, 2052, -2048], F16), CEIL),
    cast("int32->float", np.array(BIG, I32), np.array(BIG_AND[RINT], F32), NONE),
    cast("float->half", np.array([65519, 65520, -1e6, INF, NAN], F32), np.array([65504, INF, -INF, INF, NAN], F16), RINT),
    cast("float->bf16", np.array([3.4e38, -INF, NAN], F32), bf16([255 * 2.0**120, -255 * 2.0**120, 0]), RINT, keeps=False),
    cast("int32->half", np.array([3, -7, 127, 200000], I32), np.array([1.5, -3.5, 63.5, INF], F16), NONE),
    cast("int32->int16", np.array([40000, -40000, 7], I32), np.array([32767, -32768, 7], I16), NONE),
    cast("int32->int64", np.array([MIN32, 7], I32), np.array([MIN32, 7], np.int64), NONE),
    cast("int64->int32", np.array([2**31, -(2**31) - 1, 7], np.int64), np.array([MAX32, MIN32, 7], I32), NONE),
    Case("cast_mask", placed(F32, (0, XH[:20]), (64, XH[64:84])), XH),
]

C, D = np.tile([1, 2, 3, NAN, 0.0, INF, -INF, -1], 16).astype(F32), np.tile([2, 2, 2, NAN, -0.0, INF, INF, NAN], 16).astype(F32)
ORDERS = {LT: np.less, GT: np.greater, EQ: np.equal, LE: np.less_equal, GE: np.greater_equal, NE: np.not_equal}
CHOSEN = RNG.random(128) < 0.5
OFFSETS = RNG.integers(0, 200, 64).astype(U32)
CHOOSING = [
    case
    for mode, order in ORDERS.items()
    for case in (
        Case("compare", placed(np.uint8, (0, bitmap(order(C, D)[:64]))), C, D, p=mode),
        Case(
            "compare_half",
            placed(np.uint8, (0, np.tile(bitmap(order(C, D)), 2))),
            np.tile(C, 2).astype(F16),
            np.tile(D, 2).astype(F16),
            p=mode,
        ),
        Case("compare_scalar", placed(np.uint8, (0, bitmap(order(C, 2)))), C, p=mode),
        Case("compares", placed(np.uint8, (0, np.tile(bitmap(order(C, 2)[:64]), 4))), C, p=mode),
    )
]
CHOOSING += [
    Case("compare_int32", placed(np.uint8, (0, bitmap(XI[:64] % 4 == XI[64:128] % 4))), XI[:64] % 4, XI[64:128] % 4),
    Case("select", placed(F32, (0, np.where(CHOSEN, C, Z[:128])[:100])), C, Z, bits=bitmap(CHOSEN)),
    Case("select_scalar", placed(F32, (0, np.where(CHOSEN, C, F32(-1))[:100])), C, bits=bitmap(CHOSEN)),
    Case(
        "select_repeats",
        placed(F32, *((64 * i, np.where(CHOSEN, X[:128], Z[:128])[64 * i : 64 * i + 40]) for i in range(2))),
        X,
        Z,
        bits=bitmap(CHOSEN),
    ),
    Case("select_one_mask", placed(F32, (0, np.where(np.tile(CHOSEN[:64], 2), X[:128], Z[:128]))), X, Z, bits=bitmap(CHOSEN)),
    Case("gather", placed(F32, (0, X[OFFSETS[:50] + 2])), X, OFFSETS * 4),
    Case("gather_half", placed(F16, (0, XH[OFFSETS])), XH, OFFSETS * 2),
]

HROWS = XH.reshape(4, 128)
TIES = np.tile([3, 7, 7, -1, -1, 2, 0, 1], 32).astype(F32)
LATE = np.concatenate([TIES[:193], [9, 9], TIES[195:]]).astype(F32)
HOLED = np.where(RAMP == 70, NAN, LATE).astype(F32)


def extreme(value: float, index: int, dtype: type = F32) -> np.ndarray:
    """Value and the index's bits side by side."""
    bits = U32 if dtype is F32 else np.uint16
    return np.array([np.array(value, dtype).view(bits), index], bits).view(dtype)


def lowest(row: np.ndarray) -> np.ndarray:
    return extreme(row.min(), int(row.argmin()), F16)


REDUCING = [
    Case("whole_sum", placed(F32, *((3 * i, [tree(ROWS)[i]]) for i in range(4))), X, p=64),
    Case("whole_sum", placed(F32, *((3 * i, [(X[64 * i] + X[64 * i + 1]) + X[64 * i + 2]]) for i in range(4))), X, p=3),
    Case("whole_sum_half", placed(F16, (0, tree(HROWS))), XH),
    Case(
        "whole_sum_strided", placed(F32, (0, tree(np.stack([np.append(X[i : i + 8], X[i + 16 : i + 24]) for i in (0, 64)])))), X
    ),
    Case("whole_sum_bitmap", placed(F32, (0, [X[0] + X[16], X[64] + X[80]])), X),
    Case("whole_sum_none", old(F32), X),
    Case("whole_max", placed(F32, (0, np.tile(extreme(7, 1), 3))), TIES, p=0),
    Case("whole_max", placed(F32, (0, np.tile(extreme(7, 1)[::-1], 3))), TIES, p=1),
    Case("whole_max", placed(F32, (0, [7, 7, 7])), TIES, p=2),
    Case("whole_max", placed(U32, (0, [1, 1, 1])), TIES, p=3),
    Case("whole_max", placed(F32, (0, [7, NAN, 7])), HOLED, p=2),
    Case("whole_min_half", placed(F16, *((4 * i, lowest(HROWS[i][:100])) for i in range(3))), XH),
    Case("block_sum", placed(F32, (0, tree(X[:192].reshape(24, 8)))), X),
    Case("block_max", placed(F16, *((16 * i, HROWS[i].reshape(8, 16).max(-1)) for i in range(2))), XH),
    Case("block_min", placed(F32, (0, X[:128].reshape(16, 8).min(-1))), X),
    Case("pair_sum", placed(F32, *((32 * i, tree(ROWS[i][:50].reshape(25, 2))) for i in range(2))), X),
    Case("repeat_sum", placed(F32, (0, tree(ROWS))), X),
    Case("sum", placed(F32, (0, [tree(np.append(tree(ROWS), np.zeros(60, F32)))])), X, p=256),
    Case("sum", placed(F32, (0, [(X[0] + X[1]) + X[2]])), X, p=3),
    Case("sum", old(F32), X, p=0),
    Case("sum_half", placed(F16, (0, [tree(np.append(tree(HROWS), np.zeros(124, F16)))])), XH, p=512),
    Case("sum_repeats", placed(F32, (0, [np.arange(10).sum() * 3 + 640 + 1280])), RAMP),
    Case("maximum", placed(F32, (0, extreme(7, 1))), TIES, p=256),
    Case("maximum", placed(F32, (0, extreme(9, 193))), LATE, p=256),
    Case("maximum", placed(F32, (0, extreme(7, 1))), LATE, p=193),
    Case("maximum", placed(F32, (0, extreme(NAN, 70))), HOLED, p=256),
    Case("maximum", placed(F32, (0, extreme(-INF, 0))), np.full(256, -INF, F32), p=100),
    Case("maximum_repeats", placed(F32, (0, extreme(137, 137))), RAMP),
    Case("minimum", placed(F16, (0, extreme(-1, 3, F16))), np.tile(TIES, 2).astype(F16), p=300),
]

CASES = {f"{case.name}-{case.p}-{i}": case for i, case in enumerate([*ARITHMETIC, *FILLING, *CASTS, *CHOOSING, *REDUCING])}


@pytest.fixture(scope="module")
def library():
    loaded = ctypes.CDLL(str(build([Path(__file__).with_name("conformance.cpp")])))
    loaded.twin_last_error.restype = ctypes.c_char_p
    return loaded


def run(library, case: Case) -> np.ndarray:
    """y afterwards, as bytes."""
    arrays = [buffer(case.x), buffer(case.z), buffer(case.bits, 64), buffer(case.y, fill=0x40)]
    pointers = (ctypes.c_void_p(array.ctypes.data) for array in arrays)
    failed = library.conformance_run(case.name.encode(), case.p, case.keeps, *pointers)
    assert not failed, library.twin_last_error().decode()
    return arrays[-1]


@pytest.mark.parametrize("key", CASES)
def test_instruction(library, key):
    """The answer bit by bit, but for the payload of a NaN; what the instruction should not touch is as it was."""
    case = CASES[key]
    got = run(library, case).view(case.want.dtype)
    want = buffer(case.want, fill=0x40).view(case.want.dtype)
    np.testing.assert_array_equal(got, want)
    if case.want.dtype.kind == "f":
        np.testing.assert_array_equal(np.signbit(got), np.signbit(want) | (np.isnan(want) & np.signbit(got)))


@pytest.mark.parametrize(("name", "given", "exact"), [("exp", X * 20, np.exp), ("ln", np.abs(X), np.log)])
def test_transcendental_within_two_ulp(library, name, given, exact):
    got = run(library, Case(name, X, given, p=256)).view(F32)
    want = exact(given.astype(np.float64))
    assert (np.abs(got - want) <= 2 * np.spacing(np.abs(want).astype(F32))).all()


@pytest.mark.parametrize(
    ("name", "want"), [("exp", [1, 1, INF, 0, NAN]), ("ln", [-INF, -INF, INF, NAN, NAN])], ids=("exp", "ln")
)
def test_transcendental_of_odd_numbers(library, name, want):
    np.testing.assert_array_equal(run(library, Case(name, X, ODDS, p=5)).view(F32)[:5], np.array(want, F32))


@pytest.mark.parametrize(("name", "exact"), [("rsqrt", lambda x: x**-0.5), ("reciprocal", lambda x: 1 / x)])
def test_estimates_are_rough(library, name, exact):
    """Errors of up to 2^-11, really there, and drawn anew with another seed."""
    given = np.abs(X) + F32(0.1)
    want = exact(given.astype(np.float64))
    results = []
    for seed in (1, 1, 2):
        library.twin_configure(ctypes.c_uint64(seed), ctypes.c_uint32(0))
        results.append(run(library, Case(name, X, given)).view(F32))
    error = np.abs(results[0] - want) / want
    assert 2.0**-13 < error.max() < 2.0**-10.9
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()


def test_result_may_lie_in_the_working_space(library):
    """ReduceMax with dst and sharedTmpBuffer the same: only the result is worth anything afterwards."""
    library.twin_configure(ctypes.c_uint64(1), ctypes.c_uint32(0))
    with pytest.raises(AssertionError, match="reads poison"):
        run(library, Case("maximum_in_tmp", X, TIES, p=256))
