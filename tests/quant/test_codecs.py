# SPDX-License-Identifier: Apache-2.0
"""The number formats against tables, formulas and data that this package did not produce."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ascend_dsv4.errors import CheckpointError, ConfigError
from ascend_dsv4.model.checkpoint import Checkpoint
from ascend_dsv4.quant import fp4, fp8_blockwise, tables

E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def bits(x: np.ndarray | torch.Tensor) -> list[int]:
    """Bit patterns, so that -0 differs from 0 and NaN equals itself."""
    if isinstance(x, torch.Tensor):
        x = x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()
    return x.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[x.itemsize]).ravel().tolist()


def e4m3_magnitudes() -> list[Fraction]:
    """The 127 non-negative values by ascending code, from the definition of the format."""
    values = [Fraction(mantissa, 8) / 2**6 for mantissa in range(8)]
    values += [(1 + Fraction(mantissa, 8)) * Fraction(2) ** (e - 7) for e in range(1, 16) for mantissa in range(8)]
    return values[:127]  # the last pattern is the NaN


def nearest_even(value: Fraction, magnitudes: list[Fraction]) -> Fraction:
    """Nearest grid value by trying all; of two equally near ones the one with the even code."""
    distance = [abs(abs(value) - magnitude) for magnitude in magnitudes]
    best = [code for code, d in enumerate(distance) if d == min(distance)]
    code = next(c for c in best if len(best) == 1 or c % 2 == 0)
    return magnitudes[code] * (-1 if value < 0 else 1)


def rounded_group(
    values: list[float], maximum: int, floor: float, magnitudes: list[Fraction], e4m3_scale: bool = False
) -> list[Fraction]:
    """The specification for one group, in exact arithmetic but for the float32 product or quotient that defines the scale."""
    amax = max(*(abs(v) for v in values), float(np.float32(floor)))
    if e4m3_scale:
        quotient = Fraction(float(np.float32(amax) / np.float32(maximum)))
        scale = nearest_even(min(quotient, Fraction(448)), e4m3_magnitudes())
    else:
        product = np.float32(amax) * (np.float32(1) / np.float32(maximum))
        mantissa, exponent = math.frexp(float(product))
        scale = Fraction(2) ** (exponent - 1 if mantissa == 0.5 else exponent)
    clamped = [min(max(Fraction(v) / scale, Fraction(-maximum)), Fraction(maximum)) for v in values]
    return [nearest_even(v, magnitudes) * scale for v in clamped]


QUANTISERS = {
    "q8": (fp8_blockwise.round_to_grid, 448, 1e-4, e4m3_magnitudes(), False),
    "q4": (fp4.round_to_grid, 6, 6 * 2.0**-126, [Fraction(m) for m in E2M1_MAGNITUDES], False),
    "q4-e4m3": (fp4.round_to_e4m3_scaled_grid, 6, 6 * 2.0**-9, [Fraction(m) for m in E2M1_MAGNITUDES], True),
}


def awkward_rows() -> list[list[float]]:
    """Groups of eight: random at several sizes, ties, powers of two, floors, zeros, values at the limits."""
    rng = np.random.default_rng(7)
    rows = [(rng.standard_normal(8) * 10.0**e).astype(np.float32).tolist() for e in (-42, -30, -6, -4, -2, 0, 3, 20, 37)]
    rows += [[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0], [-0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5.0, -6.0]]
    rows += [[448.0, 1.0625, 1.1875, 17.0, 19.0, 2.0**-10, 3 * 2.0**-10, 432.0], [0.0] * 8, [-0.0] * 8]
    rows += [[2.0**k] * 8 for k in (-149, -126, -14, 0, 9, 127)] + [[6.0 * 2.0**k, 0.1] * 4 for k in (-126, 0, 40)]
    rows += [[6 * 2.0**-9, 2.0**-10, 3 * 2.0**-11, 0.0] * 2, [6.375, 6.376, 1.0, 5.3] * 2, [2688.0, 2790.0, -2e4, 672.0] * 2]
    rows += [[np.nextafter(np.float32(448), np.float32(999)).item(), 0.3] * 4, [2.5e38, -1.0, 2e37, 7e36] * 2]
    return rows


class TestTables:
    def test_e2m1_is_the_published_list(self) -> None:
        expected = [*E2M1_MAGNITUDES, *(-m for m in E2M1_MAGNITUDES)]
        assert bits(tables.E2M1) == bits(np.array(expected, dtype=np.float32))

    def test_e4m3_equals_torch_for_all_codes(self) -> None:
        codes = torch.arange(256, dtype=torch.uint8)
        expected = codes.view(torch.float8_e4m3fn).float().numpy()
        finite = ~np.isnan(expected)
        assert np.flatnonzero(~finite).tolist() == [0x7F, 0xFF]
        assert np.isnan(tables.E4M3FN[~finite]).all()
        assert bits(tables.E4M3FN[finite]) == bits(expected[finite])
        assert tables.E4M3FN[:127].tolist() == [float(m) for m in e4m3_magnitudes()]

    def test_e8m0_is_every_power_of_two(self) -> None:
        assert tables.E8M0[:255].tolist() == [2.0 ** (code - 127) for code in range(255)]
        assert np.isnan(tables.E8M0[255])
        assert tables.E8M0[0] == np.float32(5.877471754111438e-39)

    def test_tables_cannot_be_written(self) -> None:
        for table in (tables.E4M3FN, tables.E2M1, tables.E8M0, tables.E2M1_PAIRS):
            with pytest.raises(ValueError, match="read-only"):
                table[0] = 1.0

    def test_tables_equal_a_third_party_port(self, golden_v41_parts: Path) -> None:
        units = load_file(golden_v41_parts / "quant_units.safetensors")
        expected = units["codes.fp8_e4m3_all_bytes_as_f32"].numpy()
        finite = expected < 1e29  # NaN is written as 1e30 there
        assert finite.sum() == 254
        assert np.array_equal(tables.E4M3FN[finite], expected[finite])
        assert np.array_equal(tables.E2M1_PAIRS, units["codes.fp4_low_high_per_byte"].numpy())
        assert np.array_equal(tables.E8M0[100:151], units["codes.e8m0_bytes_100_150_as_f32"].numpy())


class TestFp8Decode:
    def test_every_code_under_every_scale(self) -> None:
        codes = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
        scales = np.arange(256, dtype=np.uint8)[:, None]
        got = fp8_blockwise.decode_numpy(codes, scales, (1, 256))
        magnitudes = [float(m) for m in e4m3_magnitudes()] + [math.nan]
        for scale in range(256):
            factor = 2.0 ** (scale - 127) if scale < 255 else math.nan
            with np.errstate(over="ignore"):
                row = np.array([m * factor for m in magnitudes]).astype(np.float32)
            np.testing.assert_array_equal(got[scale], np.concatenate([row, -row]))
        assert bits(fp8_blockwise.decode(torch.from_numpy(codes), torch.from_numpy(scales), (1, 256))) == bits(got)

    @pytest.mark.parametrize("block", [(128, 128), (32, 32), (1, 32), (128, 1)])
    @pytest.mark.parametrize("shape", [(1, 1), (127, 129), (128, 128), (129, 127), (300, 257), (0, 5)])
    def test_ragged_blocks(self, shape: tuple[int, int], block: tuple[int, int]) -> None:
        rng = np.random.default_rng(shape[0])
        grid = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
        codes = rng.integers(0, 127, shape, dtype=np.uint8)
        scales = rng.integers(100, 150, grid, dtype=np.uint8)
        rows, cols = np.indices(shape)
        expected = tables.E4M3FN[codes] * np.exp2(scales[rows // block[0], cols // block[1]].astype(np.float32) - 127)
        got = fp8_blockwise.decode_numpy(codes, scales, block)
        assert got.dtype == np.float32
        assert bits(got) == bits(expected)
        tensor = torch.from_numpy(codes).view(torch.float8_e4m3fn)
        assert bits(fp8_blockwise.decode(tensor, torch.from_numpy(scales).view(torch.float8_e8m0fnu), block)) == bits(got)

    def test_float32_scales_multiply(self) -> None:
        codes = np.arange(0, 120, dtype=np.uint8).reshape(4, 30)
        scales = np.array([[0.3, 7.0], [1e-3, 2.5]], dtype=np.float32)
        got = fp8_blockwise.decode_numpy(codes, scales, (3, 16))
        assert got[3, 29] == tables.E4M3FN[119] * np.float32(2.5)
        assert got[2, 15] == tables.E4M3FN[75] * np.float32(0.3)
        assert bits(fp8_blockwise.decode(torch.from_numpy(codes), torch.from_numpy(scales), (3, 16))) == bits(got)

    @pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 1), (2,)])
    def test_grid_that_does_not_fit(self, grid: tuple[int, ...]) -> None:
        with pytest.raises(CheckpointError, match=r"codes \(130, 100\)"):
            fp8_blockwise.decode_numpy(np.zeros((130, 100), np.uint8), np.zeros(grid, np.uint8), (128, 128))
        with pytest.raises(CheckpointError, match="weight_block_size"):
            fp8_blockwise.decode(torch.zeros(130, 100).byte(), torch.zeros(grid).byte(), (128, 128))


class TestFp4Decode:
    def test_nibble_order(self) -> None:
        packed = np.full((1, 16), 0x21, dtype=np.uint8)
        assert fp4.decode_numpy(packed, np.full((1, 1), 127, np.uint8))[0, :4].tolist() == [0.5, 1.0, 0.5, 1.0]

    @pytest.mark.parametrize("scale", [0, 1, 100, 127, 140, 254])
    def test_every_byte(self, scale: int) -> None:
        packed = np.arange(256, dtype=np.uint8).reshape(16, 16)
        scales = np.full((16, 1), scale, dtype=np.uint8)
        signed = [*E2M1_MAGNITUDES, *(-m for m in E2M1_MAGNITUDES)]
        factor = 2.0 ** (scale - 127)
        pairs = [(signed[byte & 15] * factor, signed[byte >> 4] * factor) for byte in range(256)]
        with np.errstate(over="ignore"):
            expected = np.array(pairs).astype(np.float32)
        got = fp4.decode_numpy(packed.view(np.int8), scales)
        assert bits(got) == bits(expected)
        assert bits(fp4.decode(torch.from_numpy(packed.view(np.int8)), torch.from_numpy(scales))) == bits(got)

    def test_nan_scale(self) -> None:
        packed, scales = np.zeros((2, 32), np.uint8), np.array([[127, 255], [127, 127]], dtype=np.uint8)
        assert np.isnan(fp4.decode_numpy(packed, scales)).sum() == 32
        assert np.isnan(fp4.decode_numpy(packed, scales)[0, 32:]).all()

    def test_stacked_experts_equal_each_expert(self) -> None:
        rng = np.random.default_rng(3)
        packed = rng.integers(0, 256, (3, 5, 48), dtype=np.uint8)
        scales = rng.integers(110, 140, (3, 5, 3), dtype=np.uint8)
        stacked = fp4.decode(torch.from_numpy(packed), torch.from_numpy(scales).view(torch.float8_e8m0fnu))
        assert stacked.shape == (3, 5, 96)
        for expert in range(3):
            assert bits(stacked[expert]) == bits(fp4.decode_numpy(packed[expert], scales[expert]))

    @pytest.mark.parametrize("scales", [(4, 3), (3, 2), (4,), ()])
    def test_scales_that_do_not_fit(self, scales: tuple[int, ...]) -> None:
        with pytest.raises(CheckpointError, match=r"packed bytes \(4, 32\)"):
            fp4.decode_numpy(np.zeros((4, 32), np.uint8), np.zeros(scales, np.uint8))
        with pytest.raises(CheckpointError, match=r"packed bytes \(4, 32\)"):
            fp4.decode(torch.zeros(4, 32).byte(), torch.zeros(scales).byte())


class TestEncode:
    def test_fp8_rounds_to_nearest_even(self) -> None:
        rows = np.array(awkward_rows(), dtype=np.float32)
        codes, scales = fp8_blockwise.encode_numpy(rows, (1, 8))
        got = fp8_blockwise.decode_numpy(codes, scales, (1, 8))
        for row, decoded in zip(rows.tolist(), got.tolist(), strict=True):
            assert [Fraction(v) for v in decoded] == rounded_group(row, 448, 448 * 2.0**-126, e4m3_magnitudes())

    def test_fp4_rounds_to_nearest_even(self) -> None:
        rows = np.array(awkward_rows(), dtype=np.float32).repeat(4, axis=1)
        packed, scales = fp4.encode_numpy(rows)
        assert packed.shape == (len(rows), 16)
        assert scales.shape == (len(rows), 1)
        magnitudes = [Fraction(m) for m in E2M1_MAGNITUDES]
        for row, decoded in zip(rows.tolist(), fp4.decode_numpy(packed, scales).tolist(), strict=True):
            assert [Fraction(v) for v in decoded] == rounded_group(row, 6, 6 * 2.0**-126, magnitudes)

    def test_zero_block_has_scale_one(self) -> None:
        assert fp8_blockwise.encode_numpy(np.zeros((3, 3), np.float32), (2, 2))[1].tolist() == [[127, 127], [127, 127]]
        assert fp4.encode_numpy(np.zeros((1, 32), np.float32))[1].tolist() == [[127]]

    def test_decoded_values_are_stored_without_loss(self) -> None:
        rng = np.random.default_rng(11)
        codes = rng.integers(0, 256, (70, 90), dtype=np.uint8)
        codes[codes & 0x7F == 0x7F] = 0
        values = fp8_blockwise.decode_numpy(codes, rng.integers(60, 200, (3, 3), dtype=np.uint8), (32, 32))
        assert bits(fp8_blockwise.decode_numpy(*fp8_blockwise.encode_numpy(values, (32, 32)), (32, 32))) == bits(values)
        packed = rng.integers(0, 256, (7, 3, 32), dtype=np.uint8)
        values = fp4.decode_numpy(packed, rng.integers(60, 200, (7, 3, 2), dtype=np.uint8))
        assert bits(fp4.decode_numpy(*fp4.encode_numpy(values))) == bits(values)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_non_finite_is_refused(self, bad: float) -> None:
        values = np.ones((32, 32), dtype=np.float32)
        values[3, 4] = bad
        with pytest.raises(CheckpointError, match="finite"):
            fp8_blockwise.encode_numpy(values, (32, 32))
        with pytest.raises(CheckpointError, match="finite"):
            fp4.encode_numpy(values)

    def test_fp4_width(self) -> None:
        with pytest.raises(CheckpointError, match="multiple of 32"):
            fp4.encode_numpy(np.ones((2, 33), np.float32))


class TestRoundToGrid:
    def test_published_vectors(self) -> None:
        q8 = fp8_blockwise.round_to_grid(torch.tensor([0.1, -0.37, 1.0, 3.3, -5.0, 0.0019]), 64)
        assert q8.tolist() == [0.1015625, -0.375, 1.0, 3.25, -5.0, 0.001953125]
        q4 = fp4.round_to_grid(torch.tensor([0.1, -0.37, 1.0, 3.3, -5.0, 0.25, 2.5]))
        assert q4.tolist() == [0.0, -0.5, 1.0, 3.0, -4.0, 0.0, 2.0]

    @pytest.mark.parametrize("name", QUANTISERS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_brute_force(self, name: str, dtype: torch.dtype) -> None:
        quantiser, *rule = QUANTISERS[name]
        rows = torch.tensor(awkward_rows(), dtype=torch.float64).to(dtype)
        got = quantiser(rows, 8)
        assert got.dtype == dtype
        for row, rounded in zip(rows.double().tolist(), got.double().tolist(), strict=True):
            assert [Fraction(v) for v in rounded] == rounded_group(row, *rule)

    @pytest.mark.parametrize(("amax", "exponent"), [(448.0, 0), (449.0, 1), (7.0, -6), (1.0, -8), (0.0, -22)])
    def test_published_fp8_exponents(self, amax: float, exponent: int) -> None:
        """Seen through the smallest number of the grid, 2^-9 scales: half of it, a tie, goes to zero."""
        smallest = 2.0 ** (exponent - 9)
        got = fp8_blockwise.round_to_grid(torch.tensor([amax, smallest, smallest / 2, -1.5 * smallest]), 32)
        assert got[1:].tolist() == [smallest, 0.0, -2 * smallest]

    @pytest.mark.parametrize("quantiser", [fp4.round_to_grid, fp4.round_to_e4m3_scaled_grid])
    def test_published_ties_of_e2m1(self, quantiser: Callable[[torch.Tensor], torch.Tensor]) -> None:
        ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])  # the last makes the scale 1
        assert quantiser(ties).tolist() == [0, 1, 1, 2, 2, 4, 4, 6]
        assert quantiser(-ties).tolist() == [0, -1, -1, -2, -2, -4, -4, -6]

    def test_float64_is_not_rounded_twice(self) -> None:
        above_tie = 1.0625 + 2.0**-40  # in float32 this is the tie between 1 and 1.125 and would go to the even 1
        assert fp8_blockwise.round_to_grid(torch.tensor([above_tie, 448.0], dtype=torch.float64), 2)[0] == 1.125
        for quantiser in (fp4.round_to_grid, fp4.round_to_e4m3_scaled_grid):
            assert quantiser(torch.tensor([0.25 + 2.0**-40, 6.0], dtype=torch.float64), 2)[0] == 0.5

    def test_float16(self) -> None:
        x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).half()
        assert torch.equal(fp8_blockwise.round_to_grid(x, 32), fp8_blockwise.round_to_grid(x.float(), 32).half())

    def test_equals_the_cast_of_torch(self) -> None:
        x = torch.randn(64, 512, generator=torch.Generator().manual_seed(2)) * torch.logspace(-4, 4, 64)[:, None]
        groups = x.reshape(64, 8, 64)
        amax = groups.abs().amax(-1, keepdim=True)
        scale = torch.exp2(torch.ceil(torch.log2(amax.double() / 448))).float()
        codes = (groups / scale).to(torch.float8_e4m3fn)
        assert torch.equal(fp8_blockwise.round_to_grid(x, 64), (codes.float() * scale).flatten(-2))

    @pytest.mark.parametrize("kind", ["f32", "bf16"])
    def test_third_party_quantisers(self, golden_v41_parts: Path, kind: str) -> None:
        units = load_file(golden_v41_parts / "quant_units.safetensors")
        x = units["x" if kind == "f32" else "x_bf16"]
        assert bits(fp8_blockwise.round_to_grid(x, 32)) == bits(units[f"{kind}.fp8_b32.fake"])
        assert bits(fp4.round_to_grid(x)) == bits(units[f"{kind}.fp4_b32_e8m0.fake"])
        assert bits(fp4.round_to_e4m3_scaled_grid(x)) == bits(units[f"{kind}.fp4_b16_e4m3.fake"])
        for group in (32, 64):
            codes, scales = units[f"{kind}.fp8_b{group}.q"], units[f"{kind}.fp8_b{group}.scale"]
            stored = fp8_blockwise.decode(codes, scales, (1, group))
            assert bits(fp8_blockwise.round_to_grid(x, group).float()) == bits(stored)

    def test_third_party_vectors_reach_the_limits(self, golden_v41_parts: Path) -> None:
        """The largest row of the vectors exceeds 6 · 448, so that the limit of E4M3 scales is among what they confirm."""
        x = load_file(golden_v41_parts / "quant_units.safetensors")["x"]
        assert float(x.abs().max()) > 6 * 448
        assert float(fp4.round_to_e4m3_scaled_grid(x).abs().max()) == 6 * 448

    def test_third_party_products(self, golden_v41_parts: Path) -> None:
        """Products of activations on the FP8 grid with stored weights: the exact sum, rounded once to bfloat16."""
        units = load_file(golden_v41_parts / "quant_units.safetensors")
        x = fp8_blockwise.round_to_grid(units["x_bf16"], 32).double()
        fp8_weight = fp8_blockwise.decode(units["gemm.fp8.weight"], units["gemm.fp8.scale"], (32, 32))
        fp4_weight = fp4.decode(units["gemm.fp4.weight"], units["gemm.fp4.scale"])
        for name, weight in (("fp8", fp8_weight), ("fp4", fp4_weight)):
            product = x @ weight.double().T
            assert bits(product.float().bfloat16()) == bits(units[f"gemm.{name}.out_bf16"])

    @pytest.mark.parametrize("name", QUANTISERS)
    @pytest.mark.parametrize("width", [1, 63, 65, 448])
    def test_partial_last_group(self, name: str, width: int) -> None:
        quantiser = QUANTISERS[name][0]
        x = torch.randn(3, width, generator=torch.Generator().manual_seed(width))
        whole = torch.cat([quantiser(x[:, start : start + 64], 64) for start in range(0, width, 64)], dim=-1)
        assert bits(quantiser(x, 64)) == bits(whole)

    @pytest.mark.parametrize("name", [*QUANTISERS, "hadamard"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_row_does_not_depend_on_other_rows(self, name: str, dtype: torch.dtype) -> None:
        function = fp4.hadamard if name == "hadamard" else lambda x: QUANTISERS[name][0](x, 32)
        x = torch.randn(37, 128, generator=torch.Generator().manual_seed(5)).to(dtype)
        x[11, 3] = math.nan
        together = function(x).float()
        order = torch.randperm(37, generator=torch.Generator().manual_seed(6))
        assert bits(function(x[order]).float()) == bits(together[order])
        assert bits(function(x.reshape(1, 37, 2, 64).flatten(-2)).float()) == bits(together)
        for row in range(37):
            assert bits(function(x[row]).float()) == bits(together[row])
            assert bits(function(x[row : row + 3])[0].float()) == bits(together[row])

    @pytest.mark.parametrize("name", QUANTISERS)
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_non_finite_poisons_its_group_only(self, name: str, bad: float) -> None:
        x = torch.full((2, 64), 6.0)  # on every grid
        x[0, 5] = bad
        got = QUANTISERS[name][0](x, 32)
        assert torch.isnan(got[0, :32]).all()
        assert torch.equal(got[0, 32:], x[0, 32:])
        assert torch.equal(got[1], x[1])

    @pytest.mark.parametrize("name", QUANTISERS)
    def test_what_rounds_past_the_largest_number_is_infinite(self, name: str) -> None:
        largest = torch.tensor([torch.finfo(torch.float32).max, 1.0])
        limit = 6.0 * 448 if name == "q4-e4m3" else math.inf  # an E4M3 scale ends long before float32 does
        assert QUANTISERS[name][0](largest, 2).tolist() == [limit, 0.0]

    @pytest.mark.parametrize("name", QUANTISERS)
    def test_no_rows_and_the_input_is_left_alone(self, name: str) -> None:
        quantiser = QUANTISERS[name][0]
        assert quantiser(torch.empty(0, 64), 32).shape == (0, 64)
        x = torch.full((2, 32), 0.3)
        quantiser(x, 32)
        assert torch.equal(x, torch.full((2, 32), 0.3))


class TestHadamard:
    @pytest.mark.parametrize("n", [1, 2, 64, 128])
    def test_equals_the_sylvester_matrix(self, n: int) -> None:
        matrix = np.ones((1, 1))
        while len(matrix) < n:
            matrix = np.kron(np.array([[1, 1], [1, -1]]), matrix)
        x = np.random.default_rng(n).integers(-1000, 1000, (7, n))
        sums = (x @ matrix).astype(np.float32)  # exact: integers below 2^24
        expected = sums * np.float32(n**-0.5)
        assert np.array_equal(fp4.hadamard(torch.from_numpy(x).float()).numpy(), expected)

    def test_normalisation_is_the_published_constant(self) -> None:
        unit = torch.zeros(128)
        unit[0] = 1.0
        assert bits(fp4.hadamard(unit)) == [0x3DB504F3] * 128

    def test_bfloat16_is_rounded_once(self) -> None:
        x = torch.randn(9, 128, generator=torch.Generator().manual_seed(8)).bfloat16()
        assert torch.equal(fp4.hadamard(x), fp4.hadamard(x.float()).bfloat16())

    def test_twice_is_the_identity_in_float64(self) -> None:
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        assert (fp4.hadamard(fp4.hadamard(x)) - x).abs().max() < 1e-14

    @pytest.mark.parametrize("n", [0, 3, 96])
    def test_other_widths_are_refused(self, n: int) -> None:
        with pytest.raises(ConfigError, match=f"last axis of {n}"):
            fp4.hadamard(torch.zeros(2, n))


def test_v4_storage_decodes_to_the_plain_copy(full_golden_v4: Path) -> None:
    assert_decodes_to_the_plain_copy(full_golden_v4 / "fp8_fp4", (128, 128))


def test_v41_storage_decodes_to_the_plain_copy(full_golden_v41: Path) -> None:
    assert_decodes_to_the_plain_copy(full_golden_v41 / "fp8_fp4", (32, 32))


def test_v32_storage_decodes_to_the_plain_copy(full_golden_v32: Path) -> None:
    assert_decodes_to_the_plain_copy(full_golden_v32 / "fp8", (128, 128))


def assert_decodes_to_the_plain_copy(quantised: Path, block: tuple[int, int]) -> None:
    stored, expected = Checkpoint.open(quantised), Checkpoint.open(quantised.parent / "bf16")
    num_decoded = 0
    for name in expected.names():
        scale = stored.scale_name(name)
        if scale is None:
            assert np.array_equal(stored.bytes(name), expected.bytes(name)), name
            continue
        num_decoded += 1
        own_block = (1, 32) if name.endswith("engram.embed.weight") else block
        values = bits(expected.read_float32(name))
        assert bits(stored.read_float32(name, own_block)) == values, name
        codes, scales = torch.from_numpy(stored.array(name)), torch.from_numpy(stored.array(scale))
        is_fp4 = stored.entry(name).dtype == "I8"
        assert bits(fp4.decode(codes, scales) if is_fp4 else fp8_blockwise.decode(codes, scales, own_block)) == values
    assert num_decoded + len(expected.names()) == len(stored.names())
    assert num_decoded > 100
