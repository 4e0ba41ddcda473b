# SPDX-License-Identifier: Apache-2.0
"""The step loop: schedule, run, sample, commit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ascend_dsv4.backend.base import Tensor
from ascend_dsv4.config.engine_config import EngineConfig
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.engine.request import Request, SamplingParams, check_prompt
from ascend_dsv4.engine.scheduler import Scheduler
from ascend_dsv4.errors import RequestError
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.runner.batch import StepRequest
from ascend_dsv4.runner.runner import LayerTap, ModelRunner
from ascend_dsv4.runner.sampler import sample


@dataclass(frozen=True, slots=True)
class NewToken:
    """What a step produced for one request."""

    request: Request
    token_id: int


class Engine:
    """Requests in, tokens out. One caller at a time."""

    def __init__(self, config: ModelConfig, engine: EngineConfig, runner: ModelRunner) -> None:
        self.config = config
        self.engine = engine
        self.runner = runner
        self.manager = CacheManager(runner.plan)
        self.scheduler = Scheduler(self.manager, engine.max_num_seqs, engine.max_num_batched_tokens)
        self._num_submitted = 0

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    def submit(
        self,
        prompt_ids: Iterable[Any],
        params: SamplingParams | None,
        *,
        keep_logits: bool = False,
        chunk_size: int | None = None,
    ) -> Request:
        """Queue a request; `params` None processes the prompt and generates nothing.

        Raises RequestError for an empty or too long prompt, or an id outside the vocabulary.
        """
        prompt_ids = self.check_prompt(prompt_ids)
        if chunk_size is not None and chunk_size < 1:
            raise RequestError(f"chunk_size={chunk_size}: expected at least 1, or None for the scheduler's choice")
        room = self.runner.plan.max_model_len - len(prompt_ids)
        if params is not None and room < 1:
            raise RequestError(
                f"prompt of {len(prompt_ids)} tokens leaves no room to generate: max_model_len="
                f"{self.runner.plan.max_model_len}. Shorten the prompt or raise max_model_len."
            )
        number = self._num_submitted
        self._num_submitted += 1
        seed = None if params is None else params.seed
        request = Request(
            request_id=number,
            prompt_ids=prompt_ids,
            params=params or SamplingParams(),
            max_tokens=0 if params is None else min(params.max_tokens, room),
            seed=(self.engine.seed, number + 1) if seed is None else (seed, 0),
            chunk_size=chunk_size,
            keep_logits=keep_logits,
        )
        self.scheduler.add(request)
        return request

    def step(self, tap: LayerTap | None = None) -> list[NewToken]:
        """Process one batch; returns the tokens it produced. Does nothing if there is nothing to do."""
        plan = self.scheduler.schedule()
        if not plan:
            return []
        logits = self.runner.run([step for _, step in plan], self.manager, tap)
        tokens = self._sample(plan, logits)
        for request, step in plan:
            self._finish(request, len(step.token_ids))
            self.scheduler.commit(request, len(step.token_ids))
        return tokens

    def abort(self, request: Request) -> None:
        """Drop a request, wherever it is; what it held is free at once. Does nothing for a finished one."""
        self.scheduler.abort(request)

    def abort_all(self) -> None:
        """Drop every request."""
        for request in [*self.scheduler.waiting, *self.scheduler.running]:
            self.scheduler.abort(request)

    def _sample(self, plan: list[tuple[Request, StepRequest]], logits: Tensor) -> list[NewToken]:
        """Draw a token for every request whose known tokens are all processed, and keep logits that were asked for."""
        rows: list[int] = []
        drawing: list[Request] = []
        start = 0
        for request, step in plan:
            count = {"none": 0, "last": 1, "all": len(step.token_ids)}[step.logits]
            if request.keep_logits:
                request.logits.append(self.runner.backend.to_host(logits[start : start + count]))
            elif count:
                rows.append(start)
                drawing.append(request)
            start += count
        if not drawing:
            return []
        chosen = logits[rows]
        ids = sample(
            self.runner.backend,
            chosen,
            [request.params for request in drawing],
            [request.seed for request in drawing],
            [request.num_tokens for request in drawing],
        )
        tokens = []
        for row, (request, token) in enumerate(zip(drawing, ids.tolist(), strict=True)):
            if token < 0:
                request.finish_reason = "error"
                request.error = (
                    f"the logits of position {request.num_tokens} hold a NaN or an infinity, so no token can be drawn. "
                    "Check the weights (`ascend-dsv4 check --model DIR --probe`)."
                )
                continue
            tokens.append(NewToken(request, token))
            request.output_ids.append(token)
            if request.params.logprobs is not None:
                request.logprobs.append(_logprobs(self.runner.backend.to_host(chosen[row]), token, request.params.logprobs))
        return tokens

    def _finish(self, request: Request, num_tokens: int) -> None:
        """Set the finish reason if this step, which processed `num_tokens` tokens of the request, was its last."""
        params = request.params
        if request.max_tokens == 0:
            if request.num_computed + num_tokens == len(request.prompt_ids):
                request.finish_reason = "length"
        elif request.output_ids and not request.is_finished:
            ends = params.stop_token_ids if params.ignore_eos else (*self.config.eos_token_id, *params.stop_token_ids)
            if request.output_ids[-1] in ends:
                request.finish_reason = "stop"
            elif len(request.output_ids) >= request.max_tokens:
                request.finish_reason = "length"

    def check_prompt(self, prompt: Iterable[Any]) -> tuple[int, ...]:
        """The ids of a prompt. Raises RequestError if the model cannot process them."""
        return check_prompt(prompt, self.config, self.runner.plan.max_model_len)


def _logprobs(logits: np.ndarray, token: int, count: int) -> dict[int, float]:
    """Log-probabilities of the drawn token and of the `count` best ones."""
    wide = logits.astype(np.float64)
    normal = wide - wide.max()
    normal -= np.log(np.exp(normal).sum())
    best = np.argsort(-normal, kind="stable")[:count].tolist()
    return {int(i): float(normal[i]) for i in dict.fromkeys([token, *best])}
