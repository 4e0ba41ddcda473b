# SPDX-License-Identifier: Apache-2.0
"""What the cases of `moe_dispatch` leave out: many tokens, experts and columns."""

from __future__ import annotations

import pytest
import torch

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.moe_dispatch.ascendc import dispatch_rows, moe_dispatch, regroup_rows
from ascend_dsv4.ops.moe_dispatch.reference import moe_dispatch as reference
from ascend_dsv4.twin.kernel_library import settings

SHAPES = [(1, 6, 256, 4096), (2, 1, 1, 7), (63, 6, 1024, 20), (65, 16, 512, 8), (300, 3, 9, 5)]


def drawn(num_tokens, topk, num_experts, hidden_size, dtype=torch.float32):
    """Experts may repeat within a token; one choice in about ten sends nothing."""
    generator = torch.Generator().manual_seed(num_tokens)
    ids = torch.randint(0, num_experts, (num_tokens, topk), generator=generator).int()
    ids[torch.rand(ids.shape, generator=generator) < 0.1] = -1
    return torch.randn(num_tokens, hidden_size, generator=generator).to(dtype), ids, torch.rand(ids.shape, generator=generator)


def assert_same(actual, wanted):
    """Exact, but for rows past the last one."""
    sent = int(wanted[2].sum())
    for index, (left, right) in enumerate(zip(actual, wanted, strict=True)):
        keep = slice(sent if index < 2 else None)
        torch.testing.assert_close(left[keep], right[keep], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cores_and_schedules_do_not_matter(dtype, shape):
    x, ids, weights = drawn(*shape, dtype)
    wanted = reference(x, ids, weights, num_experts=shape[2])
    for seed, cores in enumerate((1, 3, 20, 24, 40)):
        with settings(seed=seed, vector_cores=cores):
            assert_same(moe_dispatch(x, ids, weights, num_experts=shape[2]), wanted)


def test_experts_that_do_not_exist_get_nothing():
    x, ids, weights = drawn(9, 2, 5, 16)
    wanted = reference(x, torch.where(ids == 4, -1, ids), weights, num_experts=4)
    assert_same(moe_dispatch(x, ids, weights, num_experts=4), wanted)


def test_refuses_what_the_kernel_does_not_have():
    x, ids, weights = drawn(3, 2, 5, 16)
    with pytest.raises(UnsupportedError, match="1025 experts"):
        moe_dispatch(x, ids, weights, num_experts=1025)
    with pytest.raises(UnsupportedError, match="float64"):
        moe_dispatch(x.double(), ids, weights, num_experts=5)


def quantized(values):
    """Rows of float32 → int8 and scales."""
    amax = values.abs().amax(1)
    factor = torch.where(amax > 0, torch.tensor(127.0) / amax, 0)  # 127 / amax would be 127 times a reciprocal
    return torch.round(values * factor[:, None]).nan_to_num(0).to(torch.int8), amax / 127


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("shape", [(7, 3, 6, 20), (66, 6, 256, 64), (2, 2, 3, 8192)], ids=str)
def test_quantized_rows(dtype, smoothed, shape):
    """The same bits as the rounding of the rows that moe_dispatch sends, times the factors of their experts."""
    x, ids, weights = drawn(*shape, dtype)
    x[0] = 0
    num_experts = shape[2]
    smooth = torch.rand(num_experts, shape[3]) + 0.5 if smoothed else None
    rows, *others = reference(x, ids, weights, num_experts=num_experts)
    sent = int(others[1].sum())
    values = rows[:sent].float()
    if smooth is not None:
        values = values * smooth.repeat_interleave(others[1], 0)
    wanted_rows, wanted_scales = quantized(values)
    for seed, cores in enumerate((1, 3, 24)):
        with settings(seed=seed, vector_cores=cores):
            done = dispatch_rows(x, ids, weights, num_experts=num_experts, quantize=True, smooth=smooth)
        assert torch.equal(done.rows[:sent], wanted_rows)
        assert torch.equal(done.scales[:sent], wanted_scales)
        assert_same((rows, *done[1:4]), (rows, *others))


def test_ties_are_rounded_to_even():
    """Halves between two steps: with amax 127 a step is 1."""
    x = torch.tensor([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 126.5]])
    done = dispatch_rows(x, torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1), num_experts=1, quantize=True)
    assert done.rows.tolist() == [[127, 0, 2, 2, 0, -2, -126, 126]]
    assert done.scales.tolist() == [1.0]


def test_inf_and_nan_show_in_the_scale():
    x = torch.ones(3, 8)
    x[1, 3], x[2, 5] = torch.inf, torch.nan
    done = dispatch_rows(x, torch.zeros(3, 1, dtype=torch.int32), torch.ones(3, 1), num_experts=1, quantize=True)
    assert done.scales[0] == torch.tensor(1 / 127)
    assert done.scales[1].isinf()
    assert done.scales[2].isnan()


@pytest.mark.parametrize("num_ranks", [1, 4, 64, 256])
def test_counts_of_ranks(num_ranks):
    x, ids, weights = drawn(100, 6, 256, 16)
    counts = torch.bincount(ids[ids >= 0], minlength=256)
    done = dispatch_rows(x, ids, weights, num_experts=256, num_ranks=num_ranks)
    assert done.rank_counts.tolist() == counts.reshape(num_ranks, -1).sum(1).tolist()
    assert_same(done[:4], reference(x, ids, weights, num_experts=256))


@pytest.mark.parametrize("expert_range", [(0, 0), (3, 9), (0, 20), (19, 20)])
def test_local_experts(expert_range):
    """Choices of experts that are held elsewhere send nothing."""
    x, ids, weights = drawn(50, 4, 20, 24)
    first, end = expert_range
    wanted = reference(x, torch.where((ids >= first) & (ids < end), ids, -1), weights, num_experts=20)
    assert_same(dispatch_rows(x, ids, weights, num_experts=20, expert_range=expert_range)[:4], wanted)


def test_decode_of_v4_flash():
    """64 tokens, 6 of 256 experts, 4096 columns, in int8, on the 48 vector cores of a chip."""
    x, ids, weights = drawn(64, 6, 256, 4096, torch.bfloat16)
    with settings(vector_cores=48):
        done = dispatch_rows(x, ids, weights, num_experts=256, num_ranks=8, quantize=True)
    sent = int((ids >= 0).sum())
    assert torch.equal(done.rows[:sent], quantized(reference(x, ids, weights, num_experts=256)[0][:sent].float())[0])


def test_refuses_arguments_that_do_not_fit():
    x, ids, weights = drawn(3, 2, 5, 16)
    with pytest.raises(ValueError, match="3 ranks"):
        dispatch_rows(x, ids, weights, num_experts=5, num_ranks=3)
    with pytest.raises(ValueError, match="experts 4 to 2"):
        dispatch_rows(x, ids, weights, num_experts=5, expert_range=(4, 2))
    with pytest.raises(ValueError, match="without quantize"):
        dispatch_rows(x, ids, weights, num_experts=5, smooth=torch.ones(5, 16))
    with pytest.raises(UnsupportedError, match="8200 columns"):
        dispatch_rows(torch.zeros(3, 8200), ids, weights, num_experts=5, quantize=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(("num_ranks", "num_experts", "hidden_size"), [(1, 1, 5), (4, 3, 2100), (8, 32, 16), (2, 1, 30000)])
def test_regrouped_rows(dtype, num_ranks, num_experts, hidden_size):
    """A stable sort by expert; empty segments, rows that nobody sent at the end."""
    generator = torch.Generator().manual_seed(num_ranks)
    counts = torch.randint(0, 4, (num_ranks, num_experts), generator=generator).int()
    sent = int(counts.sum())
    rows = torch.randint(-100, 100, (sent + 2, hidden_size), generator=generator).to(dtype)
    weights = torch.rand(sent + 2, generator=generator)
    expert = torch.arange(num_experts).repeat(num_ranks).repeat_interleave(counts.flatten())
    order = torch.sort(expert, stable=True).indices
    for seed, cores in enumerate((1, 3, 40)):
        with settings(seed=seed, vector_cores=cores):
            done = regroup_rows(rows, weights, counts)
        assert torch.equal(done.rows[:sent], rows[order])
        assert torch.equal(done.row_weights[:sent], weights[order])
        assert done.counts.tolist() == counts.sum(0).tolist()
        assert torch.equal(done.rows[done.row_of[:sent]], rows[:sent])


def test_many_rows_of_one_expert():
    """More than one chunk of weights and places."""
    counts = torch.tensor([[5000, 1], [3, 0]], dtype=torch.int32)
    rows = torch.arange(5004)[:, None]
    done = regroup_rows(rows, torch.rand(5004), counts)
    assert done.rows.flatten().tolist() == [*range(5000), 5001, 5002, 5003, 5000]
    assert done.row_of.tolist() == [*range(5000), 5003, 5000, 5001, 5002]


def test_regroup_refuses_counts_of_more_rows():
    with pytest.raises(ValueError, match="at most 3 in all"):
        regroup_rows(torch.zeros(3, 8), torch.zeros(3), torch.tensor([[4]], dtype=torch.int32))
    with pytest.raises(UnsupportedError, match="5000 experts"):
        regroup_rows(torch.zeros(3, 8), torch.zeros(3), torch.zeros(1, 5000, dtype=torch.int32))
