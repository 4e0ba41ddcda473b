# SPDX-License-Identifier: Apache-2.0
"""What is special to the kernel of `sparse_attention`: ranges of keys, odd sizes, entries and sinks at the edge."""

from __future__ import annotations

import ctypes
import math
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from ascend_dsv4.accuracy.calls import same_bits, to_numpy
from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.compare import compare
from ascend_dsv4.ops.sparse_attention import SPEC
from ascend_dsv4.ops.sparse_attention.ascendc import Params, sparse_attention
from ascend_dsv4.ops.sparse_attention.reference import sparse_attention as reference
from ascend_dsv4.twin.kernel_library import KernelError, kernel_library, settings

Call = dict[str, Any]


def make_call(
    positions: list[int], *, heads: int = 4, head_dim: int = 32, window: int = 8, ratio: int = 4, topk: int | None = None,
    block_rows: int = 16, dtype: torch.dtype = torch.float32, seed: int = 0,
) -> Call:  # fmt: skip
    """One token at each position, each of a request of its own. topk None: every visible entry."""
    generator = torch.Generator().manual_seed(seed)
    count, window_columns = len(positions), -(-window // block_rows) + 1
    max_blocks = -(-(max(positions) + 1) // ratio // block_rows) + 1
    call: Call = {
        "q": torch.randn(count, heads, head_dim, generator=generator).to(dtype),
        "win_kv": torch.randn(count * window_columns, block_rows, head_dim, generator=generator).to(dtype),
        "cmp_kv": torch.randn(2 * max_blocks, block_rows, head_dim, generator=generator).to(dtype),
        "entries": None,
        "sink": torch.randn(heads, generator=generator),
        "positions": torch.tensor(positions, dtype=torch.int32),
        "req_idx": torch.arange(count, dtype=torch.int32),
        "window_table": torch.randperm(count * window_columns, generator=generator).view(count, -1).int(),
        "block_table": torch.randint(2 * max_blocks, (count, max_blocks), generator=generator, dtype=torch.int32),
        "window": window, "ratio": ratio, "scale": head_dim**-0.5,
    }  # fmt: skip
    if topk is not None:
        call["entries"] = torch.full((count, topk), -1, dtype=torch.int32)
        for t, position in enumerate(positions):
            visible = (position + 1) // ratio
            chosen = torch.randperm(visible, generator=generator)[:topk].int()
            call["entries"][t, : len(chosen)] = chosen
    return call


def assert_close(actual: Tensor, call: Call) -> None:
    expected = reference(**call)
    dtype = str(actual.dtype).removeprefix("torch.")
    result = compare(to_numpy(actual), to_numpy(expected), SPEC.tol["o", dtype])
    assert result.passed, result.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("topk", [None, 1500])
def test_ranges_give_the_same_bits_on_any_number_of_cores(dtype, topk):
    """Up to three ranges a token: one core takes them in turn, or as many cores as there are one each."""
    call = make_call([9000, 3, 4200, 5100], dtype=dtype, topk=topk)
    wanted = sparse_attention(**call)
    assert_close(wanted, call)
    for seed, cores in enumerate((1, 3, 6, 20, 24, 40)):
        with settings(seed=seed, vector_cores=cores, yield_one_in=(0, 4, 16)[seed % 3]):
            assert same_bits(sparse_attention(**call), wanted), f"{cores} cores"


def test_a_token_does_not_depend_on_its_neighbours():
    call = make_call([9000, 3, 4200], dtype=torch.bfloat16)
    together = sparse_attention(**call)
    for t in range(3):
        alone = {name: call[name][t : t + 1] for name in ("q", "positions", "req_idx")}
        assert same_bits(sparse_attention(**(call | alone)), together[t : t + 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 1), (2, 40), (3, 96), (17, 130), (64, 512), (128, 512)])
def test_sizes_beside_the_fractals(dtype, heads, head_dim):
    call = make_call([200, 70, 0], heads=heads, head_dim=head_dim, topk=40, dtype=dtype, window=20)
    assert_close(sparse_attention(**call), call)


def test_entries_that_are_not_visible_do_not_count():
    """-1 between entries, a whole range of -1, and entries that do not exist yet: the others alone are attended to."""
    call = make_call([4200], ratio=1, topk=2048, dtype=torch.bfloat16, block_rows=64)
    call["entries"][0, 5:900:7] = -1
    call["entries"][0, 1024:] = -1
    wanted = sparse_attention(**call)
    assert_close(wanted, call)
    later = call["entries"].clone()
    later[0, 5:900:7] = 4201
    later[0, 1024:] = 2**31 - 1
    assert same_bits(sparse_attention(**(call | {"entries": later})), wanted)


@pytest.mark.parametrize("topk", [None, 30])
def test_a_block_table_too_long_to_be_staged(topk):
    call = make_call([4400, 4500], ratio=1, block_rows=4, topk=topk)
    assert call["block_table"].shape[1] > 1024
    assert_close(sparse_attention(**call), call)


def test_sinks_at_the_edge():
    """-inf takes nothing, as does -1e30; inf and 1e30 take everything and overflow nowhere."""
    call = make_call([100, 30])
    call["sink"] = torch.tensor([-math.inf, -1e30, 1e30, math.inf])
    o = sparse_attention(**call)
    assert_close(o[:, :2], call | {"q": call["q"][:, :2], "sink": torch.full((2,), -1e30)})
    assert (o[:, 2:] == 0).all()


def test_scores_far_below_zero_still_sum_to_one():
    """Scores of about -1e30 and no sink: the largest of them gets the weight."""
    call = make_call([100], head_dim=16)
    call["q"], call["sink"] = call["q"].abs() * -1e15, torch.full((4,), -math.inf)
    call["win_kv"], call["cmp_kv"] = call["win_kv"].abs() * 1e15, call["cmp_kv"].abs() * 1e15
    assert_close(sparse_attention(**call), call)


@pytest.mark.parametrize("head_dim", [1, 40, 130])
@pytest.mark.parametrize("queries", [torch.float32, torch.float16])
@pytest.mark.parametrize("caches", [torch.bfloat16, torch.float16, torch.float32])
def test_queries_and_caches_of_different_dtypes_meet_in_float32(queries, caches, head_dim):
    call = make_call([100, 30], topk=10, dtype=caches, head_dim=head_dim)
    call["q"] = call["q"].to(queries)
    assert_close(sparse_attention(**call), call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_tiles_fit(dtype):
    """A whole range of keys for 128 heads of 512, and one of 16 keys."""
    call = make_call([5000], heads=128, head_dim=512, window=16, topk=1024, dtype=dtype)
    assert_close(sparse_attention(**call), call)


def test_the_decode_shape_of_v4_flash():
    """Eight sequences at 128K tokens, 64 heads of 512, 512 chosen entries and a window of 128."""
    positions = [131071 - t for t in range(8)]
    call = make_call(positions, heads=64, head_dim=512, window=128, topk=512, block_rows=128, dtype=torch.bfloat16)
    started = time.monotonic()
    with settings(vector_cores=16):
        o = sparse_attention(**call)
    assert time.monotonic() - started < 60
    assert_close(o, call)


def test_what_the_kernel_does_not_have():
    call = make_call([10], heads=129)
    with pytest.raises(UnsupportedError, match="129 heads"):
        sparse_attention(**call)
    with pytest.raises(KernelError, match="numHeads must be 1..128, got 0"):
        kernel_library().launch("sparse_attention", Params(num_tokens=1, num_cores=1), [None] * 9, [ctypes.addressof(Params())])
