# SPDX-License-Identifier: Apache-2.0
"""`index_topk` in the twin beyond the operator's cases: many chunks and segments, all sizes of blocks, int8 keys, the decode
shape of V4-Flash. Small integers make every sum exact, so that ties and their order must come out right to the entry."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from ascend_dsv4.ops.index_topk.ascendc import index_topk, index_topk_int8
from ascend_dsv4.ops.index_topk.reference import index_topk as reference
from ascend_dsv4.twin.kernel_library import KernelError, settings


def draw(
    counts: list[int],
    *,
    heads: int = 4,
    dim: int = 16,
    rows: int = 16,
    low: int = -3,
    high: int = 4,
    dtype: torch.dtype = torch.float32,
    given: int = 0,
    block: int = 1,
) -> dict[str, Tensor | None]:
    """One token a request, each with so many visible entries at ratio 1, in pages in any order. `given`: candidate blocks."""
    generator = torch.Generator().manual_seed(sum(counts) + heads + dim)
    pages = max(1, -(-max(counts) // rows))
    table = torch.randperm(len(counts) * pages, generator=generator, dtype=torch.int32).reshape(len(counts), pages)

    def integers(*shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator).to(dtype)

    candidates = None
    if given:
        candidates = torch.full((len(counts), given), -1, dtype=torch.int32)
        for row, count in zip(candidates, counts, strict=True):
            blocks = max(0, -(-count // block))
            chosen = torch.randperm(blocks, generator=generator)[:given].sort().values
            row[: len(chosen)] = chosen
    return {
        "q": integers(len(counts), heads, dim),
        "weights": integers(len(counts), heads),
        "idx_kv": integers(len(counts) * pages, rows, dim),
        "positions": torch.tensor(counts, dtype=torch.int32) - 1,
        "req_idx": torch.arange(len(counts), dtype=torch.int32),
        "block_table": table,
        "candidates": candidates,
    }


def attributes(**changes: int) -> dict[str, int]:
    return {"ratio": 1, "topk": 8, "candidate_block": 1, "num_candidates": 0, **changes}


def assert_exact(args: dict[str, Tensor | None], attrs: dict[str, int]) -> None:
    actual, wanted = index_topk(**args, **attrs, rounding="none"), reference(**args, **attrs, rounding="none")
    for name, ours, theirs in zip(("entries", "blocks"), actual, wanted, strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("counts", ([1023], [1024], [1025], [3000, 0, 130], [8192, 8193], [40000]))
@pytest.mark.parametrize("topk", (1, 33, 1024))
def test_chunks_and_segments(counts, topk):
    assert_exact(draw(counts, rows=64), attributes(topk=topk))


@pytest.mark.parametrize("block", (1, 3, 8, 24, 128, 1000))
@pytest.mark.parametrize(("num_candidates", "given"), ((7, 5), (2048, 60), (1, 1), (600, 0)))
def test_blocks_of_entries(block, num_candidates, given):
    args = draw([9000, 2500, 700, 1], rows=32, given=given, block=block)
    assert_exact(args, attributes(topk=100, candidate_block=block, num_candidates=num_candidates))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize(("heads", "dim"), ((1, 1), (17, 33), (64, 128), (65, 64), (128, 100), (16, 128)))
def test_heads_and_channels(heads, dim, dtype):
    assert_exact(draw([300, 129], heads=heads, dim=dim, dtype=dtype), attributes(topk=50))


def test_nan_and_infinite_scores_keep_their_order():
    args = draw([2500], rows=64, low=1, high=2)
    args["idx_kv"][args["block_table"][0, 1], 5] = torch.nan
    args["idx_kv"][args["block_table"][0, 2]] = torch.inf
    args["weights"] *= -1  # -inf is as low as NaN
    args["idx_kv"][args["block_table"][0, 30]] = -5.0
    for topk in (30, 100, 1024):
        assert_exact(args, attributes(topk=topk, candidate_block=4, num_candidates=600))


@pytest.mark.parametrize("block", (1, 2, 8))
@pytest.mark.parametrize("count", (700, 705, 1025))
def test_the_newest_block_is_not_ranked_even_if_it_is_the_best(count, block):
    args = draw([count], rows=32)
    args["idx_kv"][args["block_table"][0, (count - 1) // 32], (count - 1) % 32] = 9 * args["q"][0, 0]
    args["weights"].abs_()
    assert_exact(args, attributes(candidate_block=block, num_candidates=600 // block // 2 * 2))


def test_groups_of_tokens_follow_one_another():
    """So many tokens that the lists of all of them do not fit at once: 3 groups."""
    args = draw([1100] * 2 + [40, 0] * 40, heads=1, dim=4, rows=64)
    pages = args["block_table"].shape[1]
    args["block_table"] = torch.cat([args["block_table"], torch.zeros(82, (1 << 21) // 64 - pages, dtype=torch.int32)], dim=1)
    assert_exact(args, attributes(topk=300, num_candidates=200))


@pytest.mark.parametrize("cores", (1, 3, 20, 24, 40))
def test_every_number_of_cores(cores):
    args = draw([9000, 700, 0, 1025], given=40, block=8)
    with settings(vector_cores=cores, seed=cores, yield_one_in=4):
        assert_exact(args, attributes(topk=64, candidate_block=8, num_candidates=30))


def scaled(args: dict[str, Tensor | None]) -> tuple[Tensor, Tensor]:
    """Powers of two, which scale exactly."""
    generator = torch.Generator().manual_seed(5)
    shapes = args["q"].shape[:2], args["idx_kv"].shape[:2]
    return tuple(torch.exp2(torch.randint(-2, 3, shape, generator=generator).float()) for shape in shapes)


def test_a_short_chunk_behind_a_whole_one():
    """Of candidates; as short as one tile, so that the copies of its products wait for none of the chunk before."""
    args = draw([1500], given=140, block=8)
    assert_exact(args, attributes(topk=100, candidate_block=8))


@pytest.mark.parametrize(("given", "block", "num_candidates"), ((0, 1, 0), (9, 8, 20)))
@pytest.mark.parametrize("count", (1100, 1500))
def test_int8_keys_with_scales(count, given, block, num_candidates):
    """Of 1100 entries the second chunk is one tile."""
    args = draw([count, 100], heads=20, dim=48, low=-128, high=128, given=given, block=block)
    args["weights"] = torch.randint(-3, 4, args["weights"].shape, generator=torch.Generator().manual_seed(1)).float()
    q_scale, idx_scale = scaled(args)
    attrs = attributes(topk=50, candidate_block=block, num_candidates=num_candidates)
    # The reference multiplies the scales into q and the keys in float64, where products and sums of these are exact.
    exact = {**args, "q": args["q"].double() * q_scale[..., None], "idx_kv": args["idx_kv"].double() * idx_scale[..., None]}
    wanted = reference(**{**exact, "weights": args["weights"].double()}, **attrs, rounding="none")
    small = {**args, "q": args["q"].to(torch.int8), "idx_kv": args["idx_kv"].to(torch.int8)}
    actual = index_topk_int8(**small, q_scale=q_scale, idx_scale=idx_scale, **attrs)
    assert torch.equal(actual[0], wanted[0])
    assert torch.equal(actual[1], wanted[1])


def test_what_the_kernel_does_not_take_is_said():
    args = draw([10])
    for changes, message in (
        ({"topk": 1025}, "topk must be"),
        ({"candidate_block": 1025}, "candidateBlock must be"),
        ({"num_candidates": 2049}, "numCandidates must be"),
    ):
        with pytest.raises(KernelError, match=message):
            index_topk(**args, **attributes(**changes), rounding="none")


def test_decode_shape_of_v4_flash():
    """8 sequences at 128K tokens, 32,768 entries each: 64 heads of 128 channels, the best 512."""
    args = draw([32768] * 8, heads=64, dim=128, rows=128, dtype=torch.bfloat16)
    start = time.perf_counter()
    with settings(yield_one_in=0):
        actual = index_topk(**args, **attributes(topk=512), rounding="none")[0]
    assert time.perf_counter() - start < 60
    assert torch.equal(actual, reference(**args, **attributes(topk=512), rounding="none")[0])
