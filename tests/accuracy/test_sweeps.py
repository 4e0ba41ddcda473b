# SPDX-License-Identifier: Apache-2.0
"""Ways of computing that should not matter: the reference has one output, an operator that looks at the batch has several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from ascend_dsv4 import LLM
from ascend_dsv4.accuracy.lockstep import Override
from ascend_dsv4.accuracy.model_comparison import Prompt, WalkOptions, compare_model
from ascend_dsv4.accuracy.results import SweepResult
from ascend_dsv4.accuracy.sweeps import SWEEPS, run_sweeps, shuffle_blocks
from ascend_dsv4.errors import RequestError
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.ops.registry import get_implementation


@pytest.fixture(scope="module")
def llm(golden_v4: Path) -> LLM:
    return LLM(golden_v4 / "fp8_fp4", ops="reference", weights="fp32", max_model_len=256, progress=False)


@pytest.fixture(scope="module")
def ids(golden_v4: Path) -> list[int]:
    return load_file(golden_v4 / "logits.safetensors")["len130.input_ids"][:40].tolist()  # type: ignore[no-any-return]


def swept(llm: LLM, ids: list[int], function: Any, name: str) -> SweepResult:
    """One sweep over a candidate with another rope."""
    (result,) = compare_model(
        llm.runner, None, [Prompt("p", ids)], [Override("rope", function)], walk=WalkOptions(prompts=()), sweeps=[name],
        greedy_tokens=1,
    ).sweeps  # fmt: skip
    return result


def test_the_reference_has_one_output(llm: LLM, ids: list[int]) -> None:
    results = run_sweeps(llm.runner, ids, promised=True)
    assert [result.name for result in results] == list(SWEEPS)
    for result in results:
        assert (result.num_distinct, result.max_abs, result.promised) == (1, 0.0, True)
        assert len(result.values) >= 3


@pytest.mark.parametrize("name", ["batch size", "chunk size", "padding"])
def test_an_operator_that_looks_at_the_batch(llm: LLM, ids: list[int], name: str) -> None:
    """Every row scaled by the number of rows."""

    def crowded(x: Any, cos: Any, sin: Any, **attrs: Any) -> Any:
        return get_implementation("rope", "reference")(x, cos, sin, **attrs) * (1 + 1e-4 * x.shape[0])

    result = swept(llm, ids, crowded, name)
    assert result.num_distinct > 1 and result.max_abs > 0
    assert not result.promised  # nobody promised anything for this function


def test_an_operator_that_keeps_count(llm: LLM, ids: list[int]) -> None:
    calls = []

    def counting(x: Any, cos: Any, sin: Any, **attrs: Any) -> Any:
        calls.append(1)
        return get_implementation("rope", "reference")(x, cos, sin, **attrs) * (1 + 1e-6 * len(calls))

    assert swept(llm, ids, counting, "repeats").num_distinct == 3


def test_an_attention_that_looks_at_block_numbers(llm: LLM, ids: list[int]) -> None:
    """What blocks a request got decides its output."""

    def numbered(*tensors: Any, **attrs: Any) -> Any:
        return get_implementation("sparse_attention", "reference")(*tensors, **attrs) * (1 + 1e-4 * tensors[7].max())

    (result,) = compare_model(
        llm.runner, None, [Prompt("p", ids)], [Override("sparse_attention", numbered)], walk=WalkOptions(prompts=()),
        sweeps=["block order"], greedy_tokens=1,
    ).sweeps  # fmt: skip
    assert result.num_distinct > 1


def test_shuffled_blocks_are_all_there(llm: LLM) -> None:
    manager = CacheManager(llm.runner.plan)
    shuffle_blocks(manager, 0)
    for pool in manager.pools.values():
        order = pool.allocate(pool.num_free)
        assert sorted(order) == list(range(pool.num_blocks))
    pool = CacheManager(llm.runner.plan).pools["window"]
    assert manager.pools["window"].num_blocks > 4
    assert pool.allocate(pool.num_free) == list(range(pool.num_blocks))


def test_a_sweep_of_one_way_is_refused(llm: LLM, ids: list[int]) -> None:
    with pytest.raises(RequestError, match="leaves one way"):
        run_sweeps(llm.runner, ids[:1], ["chunk size"], promised=True)
    assert run_sweeps(llm.runner, ids[:3], ["chunk size"], promised=True)[0].values == ("whole", "1")
    with pytest.raises(RequestError, match="expected some of repeats"):
        run_sweeps(llm.runner, ids, ["colour"], promised=True)
