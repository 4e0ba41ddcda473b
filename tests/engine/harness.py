# SPDX-License-Identifier: Apache-2.0
"""Engines on the null backend, which counts up from the last prompt token, and what must hold of them at any time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from ascend_dsv4.backend.null import NullBackend
from ascend_dsv4.config import EngineConfig, ModelConfig
from ascend_dsv4.engine.engine import Engine
from ascend_dsv4.engine.request import FinishReason, Request
from ascend_dsv4.kv_cache.layout import CachePlan, plan_caches
from ascend_dsv4.llm import model_graphs
from ascend_dsv4.model.weight_trees import model_weights
from ascend_dsv4.runner.graphs import ModelGraphs
from ascend_dsv4.runner.runner import ModelRunner
from ascend_dsv4.spec_decode.drafter import Drafter


@cache
def _graphs(config: ModelConfig) -> ModelGraphs:
    """Those of default options: the null backend reads nothing of them but the vocabulary."""
    return model_graphs(config, EngineConfig(backend="null"))


def make_engine(
    config: ModelConfig,
    clock: Callable[[], float] = time.monotonic,
    *,
    tokens_per_block: int | None = None,
    drafter: Drafter | None = None,
    **options: int | str | None,
) -> Engine:
    """`tokens_per_block`, a multiple of 4, overrides block_size, whose least value is too large for short sequences."""
    engine = EngineConfig.from_dict({"backend": "null", **options}, source="test")
    plan = plan_caches(config, engine)
    if tokens_per_block is not None:
        plan = _with_blocks_of(plan, tokens_per_block, engine)
    runner = ModelRunner(config, engine, plan, _graphs(config), model_weights(config, "released"), NullBackend())
    return Engine(config, engine, runner, clock, drafter)


def _with_blocks_of(plan: CachePlan, size: int, engine: EngineConfig) -> CachePlan:
    """The plan without the entries of 128 tokens, which do not fit such blocks."""
    blocks = -(-(engine.max_total_tokens or plan.max_model_len) // size) + engine.max_num_seqs - 1
    return replace(
        plan,
        layers=tuple(tuple(cache for cache in layer if cache.group != "cmp128") for layer in plan.layers),
        num_blocks={"window": plan.num_blocks["window"], "state": plan.num_blocks["state"], "cmp4": blocks},
        table_columns={"window": plan.table_columns["window"], "cmp4": -(-plan.max_model_len // size)},
        block_size=size,
    )


def check_invariants(engine: Engine) -> None:
    """No block is lost, held twice, or both held and free; requests stand in order of arrival, those that run first."""
    manager, scheduler = engine.manager, engine.scheduler
    held: dict[str, list[int]] = {group: [] for group in manager.pools}
    for blocks in manager.requests.values():
        if blocks.window:  # some models have none
            held["window"] += blocks.window.values()
        held["state"].append(blocks.state_slot)
        for ratio, table in blocks.tables.items():
            held[f"cmp{ratio}"] += table.tolist()
    for group, pool in manager.pools.items():
        assert len(held[group]) == len(set(held[group])), f"{group}: a block belongs to two requests"
        assert len(held[group]) + pool.num_free == pool.num_blocks, f"{group}: blocks lost"
    assert list(manager.requests) == [request.request_id for request in scheduler.running]
    assert len(scheduler.running) <= engine.engine.max_num_seqs
    arrivals = [request.request_id for request in (*scheduler.running, *scheduler.waiting)]
    assert arrivals == sorted(set(arrivals)), "somebody was overtaken"
    assert not any(request.is_finished for request in (*scheduler.running, *scheduler.waiting))


def check_empty(engine: Engine) -> None:
    """Nobody is left, and nothing is held."""
    assert not engine.has_work
    check_invariants(engine)
    assert all(pool.num_free == pool.num_blocks for pool in engine.manager.pools.values())


def run(engine: Engine, max_steps: int = 100_000) -> int:
    """Step until nothing is left. Returns the number of steps."""
    for steps in range(max_steps):
        check_invariants(engine)
        if not engine.has_work:
            return steps
        engine.step()
    raise AssertionError(f"{max_steps} steps did not finish the requests")


def alone(request: Request, vocab_size: int) -> tuple[list[int], FinishReason]:
    """What the null backend gives to a request that nothing changes the logits of."""
    tokens: list[int] = []
    last = request.prompt_ids[-1]
    while len(tokens) < request.max_tokens:
        last = (last + 1) % vocab_size
        tokens.append(last)
        if last in request.end_ids:
            return tokens, "stop"
    return tokens, "length"
