# SPDX-License-Identifier: Apache-2.0
"""What the cases of `moe_combine` leave out: many tokens and columns, and the same bits as the reference."""

from __future__ import annotations

import pytest
import torch

from ascend_dsv4.accuracy.calls import same_bits
from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.moe_combine.ascendc import moe_combine
from ascend_dsv4.ops.moe_combine.reference import moe_combine as reference
from ascend_dsv4.twin.kernel_library import settings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_tokens", "topk", "hidden_size"), [(1, 1, 1), (7, 6, 4100), (130, 3, 33), (65, 8, 512)])
def test_cores_and_schedules_do_not_matter(dtype, num_tokens, topk, hidden_size):
    """Several chunks of choices on one core, tiles of all widths, rows that nobody names being NaN."""
    generator = torch.Generator().manual_seed(num_tokens)
    row_of = torch.randperm(num_tokens * topk, generator=generator).reshape(num_tokens, topk).int()
    rows = torch.randn(num_tokens * topk, hidden_size, generator=generator).to(dtype)
    if num_tokens > 1:
        rows[row_of[::3, -1]] = torch.nan
        row_of[::3, -1] = -1
        row_of[4] = -1
    wanted = reference(rows, row_of)
    for seed, cores in enumerate((1, 3, 20, 24, 40)):
        with settings(seed=seed, vector_cores=cores):
            assert same_bits(moe_combine(rows, row_of), wanted)


def test_refuses_what_the_kernel_does_not_have():
    with pytest.raises(UnsupportedError, match="65 choices"):
        moe_combine(torch.zeros(1, 8), torch.zeros(1, 65, dtype=torch.int32))
    with pytest.raises(UnsupportedError, match="float64"):
        moe_combine(torch.zeros(1, 8, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.int32))
