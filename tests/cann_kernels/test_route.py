# SPDX-License-Identifier: Apache-2.0
"""What the cases of `route` leave out: all sizes of experts and groups, NaN among numbers, small scores."""

from __future__ import annotations

import pytest
import torch

from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.ops.route.ascendc import route
from ascend_dsv4.ops.route.reference import route as reference
from ascend_dsv4.twin.kernel_library import settings

PLAIN = {
    "topk": 6, "scoring": "sqrtsoftplus", "norm_topk_prob": True, "scaling": 1.5, "norm_eps": 1e-20,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip


def assert_close(actual, wanted):
    """Experts alike: the scores here differ by more than rounding, or are equal."""
    assert actual[0].tolist() == wanted[0].tolist()
    torch.testing.assert_close(actual[1], wanted[1], rtol=2e-6, atol=0)


def scored(num_tokens, num_experts, seed=1):
    """Distinct logits of a row are at least 1/64 apart; biases, a multiple of 4, order most of the choice."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.stack([torch.randperm(num_experts, generator=generator) for _ in range(num_tokens)]) / 64.0 - 3
    bias = torch.randint(-2, 3, (num_experts,), generator=generator) * 4.0
    return logits, bias, torch.zeros(num_tokens, dtype=torch.int32)


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "topk"),
    [(1, 1, 1), (2, 33, 32), (33, 256, 6), (70, 384, 8), (17, 512, 16), (40, 100, 1), (3, 160, 6)],
)
def test_cores_and_schedules_do_not_matter(num_tokens, num_experts, topk):
    """Several tiles on one core, the last one short, and runs that do not divide by four."""
    logits, bias, ids = scored(num_tokens, num_experts)
    attrs = {**PLAIN, "topk": topk}
    first = None
    for seed, cores in enumerate((1, 3, 20, 24, 40)):
        with settings(seed=seed, vector_cores=cores):
            actual = route(logits, bias, None, ids, None, None, **attrs)
        assert_close(actual, reference(logits, bias, None, ids, None, None, **attrs))
        first = first or actual
        assert torch.equal(actual[1], first[1])


@pytest.mark.parametrize(
    ("num_experts", "n_group", "topk_group"),
    [(256, 8, 4), (128, 2, 1), (256, 4, 3), (200, 5, 2), (512, 64, 40), (512, 2, 1), (96, 3, 2), (12, 6, 3), (120, 3, 2)],
)
def test_groups(num_experts, n_group, topk_group):
    """Groups of one run of 32, of several, of parts of one; more than 32 groups."""
    logits, bias, ids = scored(18, num_experts)
    attrs = {**PLAIN, "scoring": "sigmoid", "n_group": n_group, "topk_group": topk_group}
    with settings(vector_cores=1):
        actual = route(logits, bias, None, ids, None, None, **attrs)
    assert_close(actual, reference(logits, bias, None, ids, None, None, **attrs))


def test_nan_is_chosen_last_and_stays():
    """A row of NaN takes the first experts; a row with one takes it when nothing else is left."""
    logits = torch.tensor([[torch.nan] * 4, [1.0, torch.nan, 3.0, 2.0], [torch.nan, -torch.inf, 5.0, torch.inf]])
    attrs = {**PLAIN, "topk": 4, "norm_topk_prob": False}
    ids, weights = route(logits, None, None, torch.zeros(3, dtype=torch.int32), None, None, **attrs)
    assert ids.tolist() == [[0, 1, 2, 3], [2, 3, 0, 1], [3, 2, 1, 0]]
    assert weights.isnan().tolist() == [[True] * 4, [False, False, False, True], [False, False, False, True]]
    assert weights[2, 0].isinf()


@pytest.mark.parametrize("scoring", ["sqrtsoftplus", "sigmoid"])
def test_scores_keep_their_digits(scoring):
    """Against float64, from e^-80 to where softplus is the identity."""
    logits = torch.linspace(-80, 80, 512)[None]
    attrs = {**PLAIN, "topk": 32, "scoring": scoring, "norm_topk_prob": False, "scaling": 1.0}
    exact = torch.sigmoid(logits.double()) if scoring == "sigmoid" else torch.log1p(logits.double().exp()).sqrt()
    for start in range(0, 512, 32):
        bias = torch.zeros(512)
        bias[start : start + 32] = 100
        ids, weights = route(logits, bias, None, torch.zeros(1, dtype=torch.int32), None, None, **attrs)
        assert sorted(ids[0].tolist()) == list(range(start, start + 32))
        torch.testing.assert_close(weights.double(), exact[:, ids[0].long()], rtol=4e-7, atol=0)


def test_hash_table_of_many_tokens():
    """Ids repeat within a row and tokens within a tile; one core has several tiles."""
    logits, _, _ = scored(50, 64)
    generator = torch.Generator().manual_seed(2)
    table = torch.randint(0, 64, (1000, 6), generator=generator).int()
    tokens = torch.randint(0, 1000, (50,), generator=generator).int()
    wanted = reference(logits, None, table, tokens, None, None, **PLAIN)
    for cores in (1, 7):
        with settings(vector_cores=cores):
            assert_close(route(logits, None, table, tokens, None, None, **PLAIN), wanted)


def test_refuses_what_the_kernel_does_not_have():
    logits, bias, ids = scored(1, 513)
    with pytest.raises(UnsupportedError, match="513 experts"):
        route(logits, bias, None, ids, None, None, **PLAIN)
    with pytest.raises(ValueError, match="topk=6 of 4 experts"):
        route(logits[:, :4], bias[:4], None, ids, None, None, **PLAIN)
    with pytest.raises(ValueError, match="bias_vl and is_image"):
        route(logits[:, :9], bias[:9], None, ids, bias[:9], None, **PLAIN)
