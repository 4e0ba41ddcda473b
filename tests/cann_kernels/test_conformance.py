# SPDX-License-Identifier: Apache-2.0
"""Instructions of the twin against what the API's documentation says of them, on numbers worked out here."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from ascend_dsv4.twin.kernel_library import build

X = np.arange(128, dtype=np.float32)
OLD = np.float32(-7)
"""What the destination held."""


def kept(values: dict[int, float]) -> np.ndarray:
    """The destination with some lanes written."""
    y = np.full(128, OLD)
    for lane, value in values.items():
        y[lane] = value
    return y


CASES = {
    "muls_tail": (X, kept({i: 2 * i for i in range(5)})),
    "muls_none": (X, kept({})),
    "add_mask": (X, kept({i: 2 * i for i in (0, 1, 2, 64, 65, 66)})),
    "add_bitmap": (X, kept({i: 2 * i for i in (0, 2, 63)})),
    "add_repeat_zero": (X, kept({})),
    "mul_stride_zero": (X, np.array([i * (i % 8 + i // 64 * 8) for i in range(128)])),
    "max": (np.where(X == 5, np.nan, X), np.where(X == 5, np.nan, np.maximum(X, 3))),
    "select": (np.where(X == 5, np.nan, X), np.where((X > 3) & (X != 5), X, -1)),
    "brcb": (X, np.repeat(X[:16], 8)),
    "row_sums": (X, kept({0: 0 + 1 + 2, 1: 64 + 65 + 66})),
    "round_trip": (1 + X / 256, np.array([1 + 2 * round(i / 2) / 256 for i in range(128)])),
    "to_integer": (
        np.where(X == 5, 3e9, X - 0.5),
        np.where(X == 5, 2147483648.0, np.array([float(round(i - 0.5)) for i in range(128)])),
    ),
}


@pytest.fixture(scope="module")
def library():
    loaded = ctypes.CDLL(str(build([Path(__file__).with_name("conformance.cpp")])))
    loaded.twin_last_error.restype = ctypes.c_char_p
    return loaded


@pytest.mark.parametrize("name", CASES)
def test_instruction(library, name):
    given, wanted = CASES[name]
    x, y = given.astype(np.float32), np.empty(128, np.float32)
    failed = library.conformance_run(name.encode(), x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p))
    assert not failed, library.twin_last_error().decode()
    np.testing.assert_array_equal(y, wanted.astype(np.float32))
