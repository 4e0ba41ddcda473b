# SPDX-License-Identifier: Apache-2.0
"""Drafts of the checkpoint's block drafter: several tokens out of one pass through its stages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.runner.batch import StepRequest
from ascend_dsv4.runner.runner import Forward, ModelRunner
from ascend_dsv4.spec_decode.draft import Draft
from ascend_dsv4.spec_decode.drafter import Committed, Draw, Wanted
from ascend_dsv4.spec_decode.pace import ROW_COST


class DSparkDrafter:
    """See `drafter.Drafter`. The runner has its block drafter attached.

    The stages' keys of final positions are written out of the backbone's taps. A block stands behind them: its keys take the
    slots of positions that are not final, and true ones overwrite them before anything final sees them.
    """

    def __init__(self, runner: ModelRunner) -> None:
        config = runner.config
        assert config.dspark is not None
        self._runner, self._config = runner, config.dspark
        self._threshold = runner.engine.speculative_threshold
        self.cost = ROW_COST + config.num_draft_stages / config.num_hidden_layers / config.dspark.block_size

    def observe(self, forward: Forward, rows: Sequence[Committed], manager: CacheManager) -> None:
        """Write context keys of the final positions."""
        steps: list[StepRequest] = []
        sources: list[int] = []
        for one in rows:
            ids = one.request.tokens(one.start, one.end)
            steps.append(StepRequest(one.request.request_id, one.start, ids, one.end))
            sources += range(one.first_row, one.first_row + one.count)
        if steps:
            self._runner.write_dspark_context(steps, forward, sources, manager)

    def propose(self, wanted: Sequence[Wanted], manager: CacheManager, draw: Draw) -> list[Draft]:
        """As many drafts as each wants and the block has, and as are confident enough."""
        size = self._config.block_size
        drafts: list[list[int]] = [[] for _ in wanted]
        survival = np.ones(len(wanted))
        going = [i for i, one in enumerate(wanted) if one.num_drafts > 0 and self._make_room(one, manager)]
        if not going:
            return [Draft(()) for _ in wanted]
        rows, logits = self._runner.run_dspark_block([self._block(wanted[i]) for i in going], manager)
        first = {i: at * size for at, i in enumerate(going)}
        for j in range(size):
            going = [i for i in going if len(drafts[i]) == j < wanted[i].num_drafts]
            if not going:
                break
            at = [first[i] + j for i in going]
            before = [drafts[i][-1] if drafts[i] else _last_token(wanted[i]) for i in going]
            corrected, confidence = self._runner.run_dspark_markov(rows[at], logits[at], before)
            if self._threshold > 0:
                survival[going] *= _chance(self._runner.backend.to_host(confidence)[:, 0])
            ids = draw(corrected, [wanted[i].request for i in going], [drafts[i] for i in going]).tolist()
            for i, token in zip(going, ids, strict=True):
                if token >= 0 and survival[i] >= self._threshold:
                    drafts[i].append(token)
        return [Draft(tuple(ids)) for ids in drafts]

    def forget(self, request_id: int) -> None:
        """Nothing is kept per request."""

    def _block(self, one: Wanted) -> StepRequest:
        """The last token, which no row exists of, and places for what may follow it."""
        position = one.request.num_tokens - 1
        ids = [_last_token(one), *[self._config.noise_token_id] * (self._config.block_size - 1)]
        return StepRequest(one.request.request_id, position, ids, position)

    def _make_room(self, one: Wanted, manager: CacheManager) -> bool:
        """Take blocks for the block's positions; False if there are none, and nobody is preempted for a draft."""
        start = one.request.num_tokens - 1
        end = start + self._config.block_size
        has_room = end <= manager.plan.max_model_len and manager.can_grow(one.request.request_id, end)
        if has_room:
            manager.begin_step(one.request.request_id, start, end)
        return has_room


def _chance(confidences: np.ndarray) -> np.ndarray:
    """Logits to probabilities, float64."""
    return 0.5 + 0.5 * np.tanh(0.5 * confidences.astype(np.float64))


def _last_token(one: Wanted) -> int:
    return one.request.tokens(one.request.num_tokens - 1, one.request.num_tokens)[0]
