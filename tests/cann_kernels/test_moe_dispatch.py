# SPDX-License-Identifier: Apache-2.0
"""What the cases of `moe_dispatch` leave out: many tokens, experts and columns."""

from __future__ import annotations

import pytest
import torch

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.moe_dispatch.ascendc import moe_dispatch
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
