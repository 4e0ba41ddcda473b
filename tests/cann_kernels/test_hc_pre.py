# SPDX-License-Identifier: Apache-2.0
"""What is special to the kernel of `hc_pre`: several chunks of a dot product, several tiles of tokens; neither shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ascend_dsv4.accuracy.calls import same_bits
from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.hc_pre.ascendc import hc_pre
from ascend_dsv4.ops.hc_pre.reference import hc_pre as reference
from ascend_dsv4.twin.kernel_library import settings

ATTRS = {"sinkhorn_iters": 4, "hc_eps": 1e-6, "norm_eps": 1e-6}


def inputs(num_tokens: int, hidden_size: int, hc_mult: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_tokens + hidden_size)
    num_coefficients, flat_size = (2 + hc_mult) * hc_mult, hc_mult * hidden_size
    streams = torch.randn(num_tokens, hc_mult, hidden_size, generator=generator).to(dtype)
    fn = torch.randn(num_coefficients, flat_size, generator=generator) * flat_size**-0.5
    return [streams, fn, torch.randn(num_coefficients, generator=generator), torch.tensor([0.7, 1.3, 0.9])]


def wanted(args: list[Tensor], mix: Tensor | None = None) -> tuple[Tensor, ...]:
    """The reference in float64."""
    return reference(*(arg.double() for arg in args), None if mix is None else mix.double(), **ATTRS)


@pytest.mark.parametrize(
    ("num_tokens", "hidden_size", "hc_mult"), [(2, 1, 4), (7, 513, 4), (63, 24, 3), (64, 130, 2), (65, 2051, 1), (1000, 3, 4)]
)
def test_awkward_sizes(num_tokens: int, hidden_size: int, hc_mult: int) -> None:
    args = inputs(num_tokens, hidden_size, hc_mult)
    for actual, golden in zip(hc_pre(*args, None, **ATTRS), wanted(args), strict=True):
        torch.testing.assert_close(actual.double(), golden.double(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cores_and_schedules_do_not_matter(dtype: torch.dtype) -> None:
    """2,800 flattened columns are six chunks, the last of 240."""
    args = inputs(11, 700, dtype=dtype)
    with settings(seed=7, vector_cores=2):
        first = hc_pre(*args, None, **ATTRS)
    for seed, cores in enumerate((1, 3, 20, 24, 40)):
        with settings(seed=seed, vector_cores=cores):
            assert all(map(same_bits, hc_pre(*args, None, **ATTRS), first))


def test_other_tokens_do_not_matter() -> None:
    """Each of 70 tokens alone, where the 70 are two tiles of lanes and nine groups of rows."""
    streams, *rest = inputs(70, 150)
    with settings(vector_cores=1):
        together = hc_pre(streams, *rest, None, **ATTRS)
        for token in (0, 1, 9, 63, 64, 69):
            alone = hc_pre(streams[token : token + 1], *rest, None, **ATTRS)
            assert all(same_bits(one, many[token : token + 1]) for one, many in zip(alone, together, strict=True))


def test_more_tokens_than_one_group_of_weights() -> None:
    args = inputs(130, 40)
    mix = torch.rand(130, 4, generator=torch.Generator().manual_seed(3))
    with settings(vector_cores=1):
        x, _, _, pre = hc_pre(*args, mix, **ATTRS)
    golden_x, _, _, golden_pre = wanted(args, mix)
    torch.testing.assert_close(x.double(), golden_x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pre, golden_pre, rtol=1e-5, atol=1e-6)


def test_more_streams_than_the_kernel_holds() -> None:
    with pytest.raises(UnsupportedError, match="hc_pre: streams has 5 streams; expected 1 to 4"):
        hc_pre(*inputs(2, 8, hc_mult=5), None, **ATTRS)
