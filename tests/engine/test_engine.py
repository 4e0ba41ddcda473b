# SPDX-License-Identifier: Apache-2.0
"""Engine, scheduler and cache manager without a model: the null backend counts up from the last prompt token."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from ascend_dsv4.config import EngineConfig, ModelConfig
from ascend_dsv4.engine.request import Request
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.errors import CapacityError, ConfigError, RequestError
from ascend_dsv4.kv_cache.block_pool import BlockPool
from ascend_dsv4.kv_cache.layout import plan_caches
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.runner.batch import StepRequest, build_batch
from tests.engine.harness import check_invariants, make_engine, run

NEVER_STOP = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)


def counting(request: Request) -> list[int]:
    first = request.prompt_ids[-1] + 1
    return list(range(first, first + len(request.output_ids)))


def test_requests_of_all_lengths_finish_and_give_everything_back(config: ModelConfig) -> None:
    engine = make_engine(config, max_num_seqs=4, max_num_batched_tokens=96, max_model_len=512, max_total_tokens=1024)
    lengths = [1, 3, 15, 16, 17, 95, 96, 97, 127, 128, 129, 300, *(random.randint(1, 400) for _ in range(20))]
    requests = [engine.submit([7] * (n - 1) + [random.randint(2, 300)], NEVER_STOP) for n in lengths]
    run(engine)
    for request in requests:
        assert request.finish_reason == "length"
        assert request.output_ids == counting(request)
    for pool in engine.manager.pools.values():
        assert pool.num_free == pool.num_blocks


def test_decodes_never_wait_for_prefills(config: ModelConfig) -> None:
    engine = make_engine(config, max_num_seqs=4, max_num_batched_tokens=32, max_model_len=512, max_total_tokens=1024)
    short = engine.submit([5], SamplingParams(max_tokens=8, temperature=0, ignore_eos=True))
    engine.step()
    engine.submit([5] * 400, NEVER_STOP)
    for done in range(2, 9):
        engine.step()
        assert len(short.output_ids) == done, "a running request draws a token in every step"


def test_steps_stay_under_the_token_budget(config: ModelConfig) -> None:
    engine = make_engine(config, max_num_seqs=8, max_num_batched_tokens=40, max_model_len=256, max_total_tokens=2048)
    for n in (200, 3, 57, 120, 1, 77):
        engine.submit([5] * n, NEVER_STOP)
    while engine.has_work:
        plan = engine.scheduler.schedule()
        assert 0 < sum(len(step.token_ids) for _, step in plan) <= 40
        engine.step()


def test_a_budget_below_the_number_of_decodes_starves_nobody(config: ModelConfig) -> None:
    engine = make_engine(config, max_num_seqs=4, max_num_batched_tokens=2, max_model_len=256, max_total_tokens=1024)
    requests = [engine.submit([5], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)) for _ in range(4)]
    for _ in range(20):
        engine.step()
    counts = [len(request.output_ids) for request in requests]
    assert max(counts) - min(counts) <= 1
    run(engine)


def test_a_prompt_alone_generates_nothing(config: ModelConfig) -> None:
    engine = make_engine(config, max_model_len=64)
    request = engine.submit([5] * 64, SamplingParams(max_tokens=0))
    run(engine)
    assert (request.output_ids, request.logits, request.num_computed) == ([], [], 64)


def test_an_idle_step_does_nothing(config: ModelConfig) -> None:
    assert make_engine(config).step() == []


def test_eos_stops_and_counts_as_output(config: ModelConfig) -> None:
    engine = make_engine(config)
    end = config.eos_token_id[0]
    request = engine.submit([end - 1 if end else config.vocab_size - 1], SamplingParams(temperature=0))
    run(engine)
    assert (request.output_ids, request.finish_reason) == ([end], "stop")


def test_stop_ids(config: ModelConfig) -> None:
    engine = make_engine(config)
    request = engine.submit([10], SamplingParams(temperature=0, stop_token_ids=(13,)))
    run(engine)
    assert (request.output_ids, request.finish_reason) == ([11, 12, 13], "stop")


def test_generation_ends_at_max_model_len(config: ModelConfig) -> None:
    engine = make_engine(config, max_model_len=16)
    request = engine.submit([10] * 13, SamplingParams(max_tokens=100, temperature=0))
    run(engine)
    assert (len(request.output_ids), request.finish_reason) == (3, "length")


def test_waiting_requests_are_admitted_in_order(config: ModelConfig) -> None:
    engine = make_engine(config, max_num_seqs=2, max_model_len=256, max_total_tokens=256)
    requests = [engine.submit([5] * 100, NEVER_STOP) for _ in range(4)]
    finished: list[int] = []
    while engine.has_work:
        engine.step()
        finished += [r.request_id for r in requests if r.is_finished and r.request_id not in finished]
    assert finished == sorted(finished)


def test_abort_frees_at_once(config: ModelConfig) -> None:
    engine = make_engine(config, max_num_seqs=1, max_num_batched_tokens=16)
    running, waiting = (engine.submit([5] * 100, NEVER_STOP) for _ in range(2))
    engine.step()
    engine.finish(running)
    engine.finish(waiting)
    assert not engine.has_work
    assert running.finish_reason == waiting.finish_reason == "abort"
    check_invariants(engine)
    assert all(pool.num_free == pool.num_blocks for pool in engine.manager.pools.values())


def test_window_blocks_return_when_the_window_has_passed(config: ModelConfig) -> None:
    engine = make_engine(config, max_num_batched_tokens=64, window_block_size=16, max_model_len=1024)
    request = engine.submit([5] * 900, NEVER_STOP)
    while engine.has_work:
        engine.step()
        if engine.manager.requests:
            live = engine.manager.requests[request.request_id].window
            oldest_visible = request.num_computed - config.sliding_window + 1
            assert min(live) * 16 + 15 >= oldest_visible, "a block nobody can see is still held"
            assert min(live) * 16 <= max(oldest_visible, 0), "a block that is still visible was returned"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt is empty"),
        ([5] * 65, "65 tokens is longer than max_model_len=64"),
        ([5] * 64, "leaves no room to generate"),
        ([5, 512], "token id 512 at position 1 is outside the vocabulary of 512"),
        ([-1], "token id -1 at position 0"),
    ],
)
def test_prompts_that_cannot_be_served(config: ModelConfig, prompt: list[int], message: str) -> None:
    engine = make_engine(config, max_model_len=64)
    with pytest.raises(RequestError, match=message):
        engine.submit(prompt, NEVER_STOP)
    assert not engine.has_work


def test_cache_too_small_for_one_sequence(config: ModelConfig) -> None:
    with pytest.raises(CapacityError, match="max_total_tokens=128 holds no sequence of max_model_len=1024"):
        plan_caches(config, EngineConfig(max_total_tokens=128))


def test_sequences_longer_than_the_model_allows(config: ModelConfig) -> None:
    with pytest.raises(ConfigError, match="max_model_len=1025: the model allows at most 1024 positions"):
        plan_caches(config, EngineConfig(max_model_len=1025))


def test_block_pool_refuses_more_than_it_has() -> None:
    pool = BlockPool("cmp4", 3)
    taken = pool.allocate(2)
    with pytest.raises(CapacityError, match="'cmp4': 2 blocks wanted, 1 of 3 free"):
        pool.allocate(2)
    pool.free(taken)
    assert pool.num_free == 3
    with pytest.raises(AssertionError, match="not in use"):
        pool.free(taken)


def test_batch_arrays(config: ModelConfig) -> None:
    """Slots and tables of a step, against a walk over positions."""
    plan = plan_caches(config, EngineConfig(max_model_len=1024, max_num_seqs=3, window_block_size=16))
    manager = CacheManager(plan)
    for request_id in (0, 1):
        manager.admit(request_id, 400)
    manager.begin_step(0, 0, 250)
    manager.commit(0, 250)
    manager.begin_step(0, 250, 270)
    manager.begin_step(1, 0, 3)
    steps = [StepRequest(0, 250, [9] * 20, logits_from=269), StepRequest(1, 0, [4, 5, 6], logits_from=0)]
    batch = build_batch(steps, manager, bucket=8)
    assert batch["cu_query_lens"].tolist() == [0, 20, 23]
    assert batch["logits_rows"].tolist() == [19, 20, 21, 22]
    assert batch["positions"].tolist() == [*range(250, 270), 0, 1, 2, -1]
    assert batch["req_idx"].tolist() == [0] * 20 + [1] * 3 + [-1]
    assert all(array.dtype == np.int32 for array in batch.values())
    for row in range(23):
        position, request = int(batch["positions"][row]), int(batch["req_idx"][row])
        table = batch["window_table"][request]
        assert batch["window_slots"][row] == table[(position // 16) % len(table)] * 16 + position % 16
        for ratio in (4, 128):
            rows = 128 // ratio
            entry = position // ratio
            slot = batch[f"cmp{ratio}_table"][request][entry // rows] * rows + entry % rows
            assert batch[f"cmp{ratio}_slots"][row] == (slot if (position + 1) % ratio == 0 else -1)
    assert batch["window_slots"][23] == batch["cmp4_slots"][23] == -1


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [-1, 101, float("nan"), "1", True]),
        ("top_p", [-1, 0, 1.5, float("nan")]),
        ("min_p", [-1, 2]),
        ("top_k", [-1, 0.5, 1 << 31, None]),
        ("max_tokens", [-1, 2.5, True, None]),
        ("logprobs", [-1, 21, 1.0]),
        ("seed", [-1, 1 << 64, 0.5]),
    ],
)
def test_sampling_parameters_out_of_range(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(RequestError, match=f"sampling parameter {field}="):
            SamplingParams(**{field: value})


@pytest.mark.parametrize("prompt", [[5.7], "text", [[5]], [None]])
def test_prompts_that_are_not_ids(config: ModelConfig, prompt: Any) -> None:
    with pytest.raises(RequestError, match="expected whole-number token ids"):
        make_engine(config).submit(prompt, NEVER_STOP)
