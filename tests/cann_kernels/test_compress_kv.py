# SPDX-License-Identifier: Apache-2.0
"""What is special to the kernel of `compress_kv`: rows pooled in batches, widths beside a block, and that neither shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ascend_dsv4.accuracy.calls import same_bits
from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.cases import CaseInputs, Step
from ascend_dsv4.ops.compress_kv.ascendc import compress_kv
from ascend_dsv4.ops.compress_kv.cases import inputs
from ascend_dsv4.ops.compress_kv.reference import compress_kv as reference
from ascend_dsv4.twin.kernel_library import settings

WIDE = ("cache", "state", "kv", "gate", "ape", "norm", "cos", "sin")


def made(requests: tuple[tuple[int, int], ...], ratio: int, **options: int) -> CaseInputs:
    return inputs(np.random.default_rng(len(requests) + ratio), Step(requests, 2), ratio, **options)


def tensors(case: CaseInputs) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in case.args.items()}


def assert_close(case: CaseInputs) -> None:
    """Against the reference in float64; what neither writes is the same anyway."""
    actual, attrs = tensors(case), {**case.attrs, "entry_dtype": "float32"}
    golden = {name: tensor.double() if name in WIDE else tensor for name, tensor in tensors(case).items()}
    compress_kv(**actual, **attrs)
    reference(**golden, **{**attrs, "entry_dtype": "float64"})
    for name in ("cache", "state"):
        torch.testing.assert_close(actual[name].double(), golden[name], rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("requests", "ratio", "options"),
    [
        (((0, 9), (6, 7)), 4, {"head_dim": 1024, "half": 128}),
        (((0, 9), (6, 7)), 4, {"head_dim": 20, "half": 3}),
        (((0, 9), (6, 7)), 4, {"head_dim": 18, "half": 9}),
        (((120, 20),), 128, {"head_dim": 512, "half": 32}),
        (((0, 7), (3, 2)), 2, {"head_dim": 72}),
        (((5, 3), (0, 1)), 1, {"head_dim": 130, "state_rows": 4}),
        (((5, 8),), 3, {"head_dim": 16, "half": 0}),
    ],
    ids=["batches", "odd-width", "rotated-throughout", "ratio-128", "ratio-2", "ratio-1", "not-rotated"],
)
def test_awkward_sizes(requests: tuple[tuple[int, int], ...], ratio: int, options: dict[str, int]) -> None:
    assert_close(made(requests, ratio, **options))


def test_more_requests_and_tokens_than_the_staged_tables() -> None:
    """130 requests of one token each, then 130 tokens of one request. Of two cores the first stores no row of the 64th request,
    so that its copy of the next whole table follows a look at this one."""
    for cores in (1, 2):
        with settings(vector_cores=cores):
            assert_close(made(tuple((position, 1) for position in range(130)), 4))
            assert_close(made(((0, 130),), 4))


def test_cores_and_schedules_do_not_matter() -> None:
    case = made(((3, 40), (126, 3), (7, 1)), 4, head_dim=24)
    results = []
    for seed, cores in enumerate((2, 1, 3, 20, 24, 40)):
        args = tensors(case)
        with settings(seed=seed, vector_cores=cores):
            compress_kv(**args, **{**case.attrs, "entry_dtype": "bfloat16"})
        results.append(args)
    assert all(same_bits(args[name], results[0][name]) for args in results for name in ("cache", "state"))


def test_a_chunked_prompt_gives_the_same_entries() -> None:
    """Rows from the state and rows of the step are the same rows: 22 tokens at once, and in chunks of 5."""
    whole = made(((0, 22),), 4)
    attrs = {**whole.attrs, "entry_dtype": "float32"}
    together, apart = tensors(whole), tensors(whole)
    compress_kv(**together, **attrs)
    for start in range(0, 22, 5):
        count = min(5, 22 - start)
        rows = {
            name: apart[name][start : start + count] for name in ("kv", "gate", "cos", "sin", "positions", "req_idx", "slots")
        }
        compress_kv(**{**apart, **rows, "cu_query_lens": torch.tensor([0, count], dtype=torch.int32)}, **attrs)
    assert all(same_bits(together[name], apart[name]) for name in ("cache", "state"))


def test_more_channels_than_the_kernel_holds() -> None:
    case = made(((0, 4),), 4, head_dim=1032)
    with pytest.raises(UnsupportedError, match="compress_kv: head_dim is 1032 with 4 rotated pairs; expected at most 1024"):
        compress_kv(**tensors(case), **{**case.attrs, "entry_dtype": "float32"})
