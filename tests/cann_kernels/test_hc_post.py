# SPDX-License-Identifier: Apache-2.0
"""What is special to the kernel of `hc_post`: widths beside its tiles, groups of tokens."""

from __future__ import annotations

import pytest
import torch

from ascend_dsv4.accuracy.calls import same_bits
from ascend_dsv4.ops.hc_post.ascendc import hc_post
from ascend_dsv4.ops.hc_post.reference import hc_post as reference
from ascend_dsv4.twin.kernel_library import settings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden_size", [1, 2048, 2051, 4104])
def test_cores_and_schedules_do_not_matter(dtype, hidden_size):
    generator = torch.Generator().manual_seed(hidden_size)
    x, streams = (torch.randn(shape, generator=generator).to(dtype) for shape in ((7, hidden_size), (7, 4, hidden_size)))
    post, comb = torch.rand(7, 4, generator=generator), torch.rand(7, 4, 4, generator=generator)
    wanted = reference(x, streams, post, comb)
    for seed, cores in enumerate((1, 3, 20, 40)):
        with settings(seed=seed, vector_cores=cores):
            assert same_bits(hc_post(x, streams, post, comb), wanted)


def test_more_tokens_than_one_group_of_weights():
    """One core reads the weights of 130 tokens in three groups, the last of two tokens."""
    generator = torch.Generator().manual_seed(5)
    tensors = [torch.rand(130, *shape, generator=generator) for shape in ((16,), (3, 16), (3,), (3, 3))]
    with settings(vector_cores=1):
        assert same_bits(hc_post(*tensors), reference(*tensors))
