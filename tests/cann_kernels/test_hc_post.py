# SPDX-License-Identifier: Apache-2.0
"""The kernel of `hc_post` in the twin: every case of the operator, any number of cores, any schedule."""

from __future__ import annotations

import pytest
import torch

from ascend_dsv4.accuracy.calls import call_case, load_cases, load_expected, make_inputs, same_bits
from ascend_dsv4.ops.hc_post.ascendc import hc_post
from ascend_dsv4.ops.hc_post.reference import hc_post as reference
from ascend_dsv4.twin.kernel_library import settings

CASES = [pytest.param(case, dtype, id=f"{case.name}-{dtype}") for case in load_cases("hc_post") for dtype in case.dtypes]


@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_case(case, dtype):
    """float32 multiplications and additions in the order of the reference: the same bits."""
    actual = call_case("hc_post", hc_post, make_inputs("hc_post", case), dtype)["y"]
    wanted = call_case("hc_post", "reference", make_inputs("hc_post", case), dtype)["y"]
    torch.testing.assert_close(actual, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("expected", load_expected("hc_post"), ids=lambda expected: expected.name)
def test_expected(expected):
    actual = call_case("hc_post", hc_post, expected.inputs(), "float32")["y"]
    assert actual.numpy().tolist() == expected.outs["y"].tolist()


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
