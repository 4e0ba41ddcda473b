# SPDX-License-Identifier: Apache-2.0
"""Row formats: sizes, exact decoding, encoding to the nearest code, and the report of what was lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ascend_dsv4.accuracy.calls import call
from ascend_dsv4.engram.rows import FORMATS, RowError, RowFormat, decode_rows, encode_rows, has_nonfinite, row_bytes
from ascend_dsv4.errors import CheckpointError, ConfigError


def values(n: int = 50, head_dim: int = 64) -> NDArray[np.float32]:
    rng = np.random.default_rng(3)
    return (rng.standard_normal((n, head_dim)) * np.exp(rng.normal(size=(n, 1)))).astype(np.float32)


def test_sizes() -> None:
    assert [row_bytes(format, 256) for format in ("fp8", "bf16", "int8", "int4")] == [264, 512, 264, 136]
    for format in ("fp8", "int8", "int4"):
        with pytest.raises(ConfigError, match="engram_head_dim=48: expected a multiple of 32"):
            row_bytes(format, 48)
    with pytest.raises(ConfigError, match="row format 'fp4': expected one of fp8, bf16, int8, int4"):
        row_bytes("fp4", 64)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
def test_decodes_as_the_operator(format: RowFormat) -> None:
    """All bytes: codes, scales at both ends, NaN."""
    rng = np.random.default_rng(4)
    rows = rng.integers(0, 256, (40, row_bytes(format, 64))).astype(np.uint8)
    attrs = {"format": format, "head_dim": 64, "out_dtype": "float32"}
    expected = call("engram_rows", "reference", {"rows": torch.from_numpy(rows[:, None])}, attrs)["e"].numpy()
    assert np.array_equal(decode_rows(rows, format, 64), expected, equal_nan=True)
    assert has_nonfinite(rows, format, 64) == (not np.isfinite(expected).all())
    finite = encode_rows(values(), format)
    assert not has_nonfinite(finite, format, 64)


@pytest.mark.parametrize("format", FORMATS)
def test_encoding_what_was_decoded_loses_nothing(format: RowFormat) -> None:
    packed = encode_rows(values(), format)
    assert packed.shape == (50, row_bytes(format, 64))
    once = decode_rows(packed, format, 64)
    assert np.array_equal(decode_rows(encode_rows(once, format), format, 64), once)


def test_bf16_rounds_as_torch() -> None:
    ties = np.array([[0x3F808000, 0x3F818000, 0xBF808000, 0x3F808001]], dtype=np.uint32).view(np.float32)
    for x in (values(), ties):
        expected = torch.from_numpy(x).bfloat16().float().numpy()
        assert np.array_equal(decode_rows(encode_rows(x, "bf16"), "bf16", x.shape[1]), expected)


def test_fp8_values_survive_bf16() -> None:
    exact = decode_rows(encode_rows(values(), "fp8"), "fp8", 64)
    assert np.array_equal(decode_rows(encode_rows(exact, "bf16"), "bf16", 64), exact)


@pytest.mark.parametrize(("format", "high"), [("int8", 127), ("int4", 7)])
def test_integers_by_brute_force(format: RowFormat, high: int) -> None:
    """No scale and codes have a smaller error, among scales that hold the largest value (int4: or half of that)."""
    x = values(30, 32).astype(np.float64)
    decoded = decode_rows(encode_rows(x.astype(np.float32), format), format, 32)
    for row, got in zip(x, decoded, strict=True):
        holding = min(2.0**e for e in range(-20, 20) if np.abs(row).max() <= high * 2.0**e)
        scales = [holding] if format == "int8" else [holding, holding / 2]
        low = -high if format == "int8" else -8
        errors = [((np.clip(np.round(row / s), low, high) * s - row) ** 2).sum() for s in scales]
        assert ((got - row) ** 2).sum() == pytest.approx(min(errors), rel=1e-6)


def test_largest_codes() -> None:
    """127 · 2^k needs no larger scale, the next float32 does; zeros have code 0 under scale 1."""
    x = np.zeros((3, 32), dtype=np.float32)
    x[0, 5] = 127 / 4
    x[1, 5] = np.nextafter(np.float32(127 / 4), np.float32(np.inf))
    rows = encode_rows(x, "int8")
    assert rows[:, 32].tolist() == [125, 126, 127]
    assert rows[0, 5] == 127
    assert decode_rows(rows, "int8", 32)[2].tolist() == [0.0] * 32


def test_tiny_values_keep_a_valid_scale() -> None:
    x = np.full((1, 32), 2.0**-140, dtype=np.float32)
    for format in ("int8", "int4"):
        rows = encode_rows(x, format)
        assert rows[0, -1] == 0
        assert np.isfinite(decode_rows(rows, format, 32)).all()


@pytest.mark.parametrize("format", FORMATS)
def test_refuses_what_no_scale_can_hold(format: RowFormat) -> None:
    for bad in (np.nan, np.inf):
        x = values()
        x[3, 7] = bad
        with pytest.raises(CheckpointError, match="got a NaN or an infinity"):
            encode_rows(x, format)


def test_report() -> None:
    """By hand: 64 ones, one of which comes out as 3."""
    report = RowError()
    x = np.ones((2, 32), dtype=np.float32)
    got = x.copy()
    got[1, 0] = 3
    report.add(x[:1], got[:1])
    report.add(x[1:], got[1:])
    assert report.as_dict() == pytest.approx(
        {
            "num_rows": 2,
            "max_abs": 2.0,
            "rms": (4 / 64) ** 0.5,
            "relative_rms": (4 / 64) ** 0.5,
            "worst_group": 2 / 32**0.5,
            "cosine": 66 / (64 * 72) ** 0.5,
        }
    )


def test_report_of_formats() -> None:
    """int8 loses about a hundredth, int4 about a tenth; bf16 of fp8 values nothing."""
    exact = decode_rows(encode_rows(values(400), "fp8"), "fp8", 64)
    reports = {format: RowError() for format in FORMATS}
    for format, report in reports.items():
        report.add(exact, decode_rows(encode_rows(exact, format), format, 64))
    assert reports["fp8"].max_abs == reports["bf16"].max_abs == 0
    assert reports["bf16"].cosine == pytest.approx(1, abs=1e-12)
    assert 0.002 < reports["int8"].relative_rms < 0.012
    assert 0.04 < reports["int4"].relative_rms < 0.15
    assert reports["int8"].cosine > 0.9999 > reports["int4"].cosine > 0.99
