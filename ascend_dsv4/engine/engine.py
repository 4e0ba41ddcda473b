# SPDX-License-Identifier: Apache-2.0
"""The step loop: schedule, run, sample, commit."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ascend_dsv4.backend.base import Tensor
from ascend_dsv4.config.engine_config import EngineConfig
from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.engine.constraint import TokenConstraint
from ascend_dsv4.engine.logit_changes import logit_changes
from ascend_dsv4.engine.request import FinishReason, Logprobs, Request, check_prompt
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.engine.scheduler import Scheduler
from ascend_dsv4.engine.speculation import Speculation, accepted
from ascend_dsv4.engine.stats import EngineStats
from ascend_dsv4.errors import RequestError
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.runner.batch import PlacedRows, StepRequest
from ascend_dsv4.runner.runner import Forward, LayerTap, ModelRunner
from ascend_dsv4.runner.sampler import LogitChanges, adjusted, sample
from ascend_dsv4.spec_decode.drafter import Drafter


@dataclass(frozen=True, slots=True)
class Output:
    """What a step did for one request: a new token, its end, or both. Tokens that came together have an output each."""

    request: Request
    token_ids: tuple[int, ...]
    """One, or none."""
    logprobs: tuple[Logprobs, ...]
    """One per token, if asked for; else empty."""
    finish_reason: FinishReason | None


class Engine:
    """Requests in, tokens out. One thread at a time; `make_request` may be called from any.

    `clock` gives seconds; deadlines are read on it. `drafter` is there if the options want speculation.
    """

    def __init__(
        self,
        config: ModelConfig,
        engine: EngineConfig,
        runner: ModelRunner,
        clock: Callable[[], float] = time.monotonic,
        drafter: Drafter | None = None,
    ) -> None:
        self.config = config
        self.engine = engine
        self.runner = runner
        self.clock = clock
        self.stats = EngineStats()
        self._numbers = itertools.count()
        self._outputs: list[Output] = []
        """What no step has returned yet; kept here so that a step that fails loses nothing."""
        self.manager = CacheManager(runner.plan)
        self.scheduler = Scheduler(self.manager, engine.max_num_seqs, engine.max_num_batched_tokens, self.stats)
        self._speculation = None if drafter is None else Speculation(drafter, engine.num_drafts, self.stats)

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    def make_request(
        self,
        prompt_ids: Iterable[Any],
        params: SamplingParams,
        *,
        sample_index: int = 0,
        deadline: float | None = None,
        constraint: TokenConstraint | None = None,
        keep_logits: bool = False,
        chunk_size: int | None = None,
        images: tuple[PlacedRows, ...] = (),
    ) -> Request:
        """A request for `add`.

        sample_index   which of the n completions of a prompt this is
        deadline       when to give up, in seconds on `clock`
        constraint     what tokens may be drawn; moves with this request alone
        keep_logits    keep the logits of every prompt token
        chunk_size     prompt tokens of a step at most
        images         what stands in the place of image tokens

        Raises RequestError for an empty or too long prompt, an id outside the vocabulary, or a bad chunk_size.
        """
        prompt_ids = self.check_prompt(prompt_ids)
        self.check_images(prompt_ids, images)
        if chunk_size is not None and chunk_size < 1:
            raise RequestError(f"chunk_size={chunk_size}: expected at least 1, or None for the scheduler's choice")
        room = self.runner.plan.max_model_len - len(prompt_ids)
        if params.max_tokens and room < 1:
            raise RequestError(
                f"prompt of {len(prompt_ids)} tokens leaves no room to generate: max_model_len="
                f"{self.runner.plan.max_model_len}. Shorten the prompt or raise max_model_len."
            )
        for token in (*params.stop_token_ids, *params.logit_bias):
            if not 0 <= token < self.config.vocab_size:
                raise RequestError(
                    f"stop_token_ids or logit_bias: token id {token} is outside the vocabulary of {self.config.vocab_size} "
                    "ids, so no token has it. Take ids from the model's tokenizer."
                )
        number = next(self._numbers)
        seed = (self.engine.seed, number + 1) if params.seed is None else (params.seed, sample_index << 32)
        return Request(
            request_id=number,
            prompt_ids=prompt_ids,
            params=params,
            max_tokens=min(params.max_tokens, room),
            seed=seed,
            end_ids=frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else self.config.eos_token_id),
            deadline=deadline,
            constraint=constraint,
            chunk_size=chunk_size,
            keep_logits=keep_logits,
            images=images,
        )

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.scheduler.add(request)

    def submit(self, prompt_ids: Iterable[Any], params: SamplingParams, **options: Any) -> Request:
        """`make_request` and `add`."""
        request = self.make_request(prompt_ids, params, **options)
        self.add(request)
        return request

    def step(self, tap: LayerTap | None = None) -> list[Output]:
        """Process one batch; returns what came of it. Does nothing if there is nothing to do."""
        self._expire()
        plan = self.scheduler.schedule()
        if not plan:
            return self._take_outputs()
        self._fetch_prompts_ahead(plan)
        forward = self.runner.run([step for _, step in plan], self.manager, tap)
        drawn = self._read_logits(plan, forward.logits)
        self.stats.num_steps += 1
        for request, step in plan:
            prefilled = max(request.num_prefilled, min(step.end, len(request.prompt_ids)))
            self.stats.num_prompt_tokens += prefilled - request.num_prefilled
            request.num_prefilled = prefilled
            if request.finish_reason is None:
                request.finish_reason = _ending(request)
            if request in drawn or request.is_finished:
                self._outputs += _outputs(request, drawn.get(request, 0))
        self.stats.num_output_tokens += sum(drawn.values())
        self._commit(plan, forward, drawn)
        return self._take_outputs()

    def _commit(self, plan: list[tuple[Request, StepRequest]], forward: Forward, drawn: dict[Request, int]) -> None:
        """Make the rows of a step final, but for those of rejected drafts; `drawn` are new tokens by request."""
        # A token of a draft and its row are final together, so the last new token is the one without a row.
        counts = [len(step.token_ids) - step.num_drafts + max(drawn.get(request, 0) - 1, 0) for request, step in plan]
        if self._speculation is not None:
            self._speculation.observe(forward, plan, counts, self.manager)
        for (request, _), count in zip(plan, counts, strict=True):
            self.scheduler.commit(request, count)
            if request.is_finished:
                self._forget(request)
        if self._speculation is not None:
            self._speculation.propose(list(drawn), self.manager, self._sample)
        self._fetch_tokens_ahead([request for request in drawn if not request.is_finished])

    def _fetch_prompts_ahead(self, plan: list[tuple[Request, StepRequest]]) -> None:
        """Fetch n-gram rows of the chunks that follow while the device computes these; a guess of where they will end."""
        if self.runner.memory is None:
            return
        for request, step in plan:
            end = min(step.end + len(step.token_ids), request.num_tokens)
            if step.end < end:
                self.runner.prefetch(self.scheduler.chunk(request, step.end, end))

    def _fetch_tokens_ahead(self, requests: Sequence[Request]) -> None:
        """Fetch n-gram rows of tokens just drawn, and of drafts behind them, while the next step is put together."""
        if self.runner.memory is None:
            return
        for request in requests:
            num_drafts = len(request.draft.ids) if request.draft is not None else 0
            end = request.num_tokens + num_drafts
            self.runner.prefetch(self.scheduler.chunk(request, request.num_computed, end))

    def _forget(self, request: Request) -> None:
        """Give back what others hold for a request that has ended."""
        self.runner.drop_prefetch(request.request_id, request.num_computed)
        if self._speculation is not None:
            self._speculation.forget(request)

    def finish(self, request: Request, reason: FinishReason = "abort", error: str | None = None) -> None:
        """End a request, wherever it is; what it held is free at once. Does nothing for a finished one."""
        if not request.is_finished:
            request.finish_reason, request.error = reason, error
            self.scheduler.remove(request)
            self._forget(request)

    def reset(self, reason: FinishReason = "abort", error: str | None = None) -> list[Output]:
        """End every request, and start with new block tables: the old ones may be half written after a step that failed."""
        requests = [*self.scheduler.running, *self.scheduler.waiting]
        self.manager = CacheManager(self.runner.plan)
        self.scheduler = Scheduler(self.manager, self.engine.max_num_seqs, self.engine.max_num_batched_tokens, self.stats)
        for request in requests:
            request.finish_reason, request.error = request.finish_reason or reason, request.error or error
            self._forget(request)
        return self._take_outputs() + [output for request in requests for output in _outputs(request, 0)]

    def check_prompt(self, prompt: Iterable[Any]) -> tuple[int, ...]:
        """The ids of a prompt. Raises RequestError if the model cannot process them."""
        return check_prompt(prompt, self.config, self.runner.plan.max_model_len)

    def check_images(self, prompt_ids: tuple[int, ...], images: tuple[PlacedRows, ...]) -> None:
        """Raises RequestError unless every image token has a row to stand for it, and nothing else has."""
        token, covered = self.config.image_token_id, set[int]()
        for image in images:
            covered.update(range(image.start, image.end))
        found = {position for position, token_id in enumerate(prompt_ids) if token_id == token}
        if covered != found:
            raise RequestError(
                f"image token {token} at position {min(covered ^ found)}: expected it exactly where an image stands, because "
                "its embedding is the image's. Send the image with the prompt, or take the token out."
            )

    def _expire(self) -> None:
        """End requests whose deadline has passed."""
        now = self.clock()
        late = [r for r in (*self.scheduler.running, *self.scheduler.waiting) if r.deadline is not None and r.deadline <= now]
        for request in late:
            self.finish(
                request, "timeout",
                f"the request's deadline passed after {len(request.output_ids)} tokens. Allow more time, ask for fewer tokens, "
                "or come back when fewer requests are under way.",
            )  # fmt: skip
            self._outputs += _outputs(request, 0)

    def _take_outputs(self) -> list[Output]:
        outputs, self._outputs = self._outputs, []
        return outputs

    def _read_logits(self, plan: list[tuple[Request, StepRequest]], logits: Tensor) -> dict[Request, int]:
        """Score prompts that want it, and draw tokens for every request whose known tokens are all processed.

        Returns the number of new tokens of each request that has any.
        """
        rows: list[int] = []
        drawing: list[tuple[Request, int]] = []
        start = 0
        for request, step in plan:
            count = step.num_logits
            if request.is_scored and step.start < len(request.prompt_ids):
                self._score(request, step, logits[start : start + count])
            if request.max_tokens and step.end - step.num_drafts == request.num_tokens:
                rows += range(start + count - 1 - step.num_drafts, start + count)
                drawing.append((request, step.num_drafts))
            start += count
        return self._draw(drawing, logits[rows]) if drawing else {}

    def _score(self, request: Request, step: StepRequest, logits: Tensor) -> None:
        """Keep logits, or log-probabilities, of the prompt tokens of a step."""
        first = step.end - step.num_logits
        # A recomputation after preemption may end in a row of the output.
        rows = self.runner.backend.to_host(logits)[: max(len(request.prompt_ids) - first, 0)]
        if request.keep_logits and len(rows):
            request.logits.append(rows)
        count = request.params.prompt_logprobs
        if count is None:
            return
        if not request.prompt_logprobs:
            request.prompt_logprobs.append(None)
        for row, follower in zip(rows, request.prompt_ids[first + 1 : step.end + 1], strict=False):
            request.prompt_logprobs.append(_logprobs(row, follower, count))

    def _draw(self, drawing: list[tuple[Request, int]], logits: Tensor) -> dict[Request, int]:
        """Draw for requests with so many drafts each: a row of logits for the last token and one behind each draft."""
        requests: list[Request] = []
        ahead: list[tuple[int, ...]] = []
        for request, num_drafts in drawing:
            ids = request.draft.ids if request.draft is not None else ()
            requests += [request] * (num_drafts + 1)
            ahead += [ids[:j] for j in range(num_drafts + 1)]
        ids = self._sample(logits, requests, ahead).tolist()
        drawn: dict[Request, int] = {}
        first = 0
        for request, num_drafts in drawing:
            end = first + num_drafts + 1
            targets = None
            if num_drafts and request.num_whole_drafts:
                changes = self._changes(requests[first:end], ahead[first:end])
                backend = self.runner.backend
                targets = backend.to_host(adjusted(backend, logits[first:end], changes))
            tokens = accepted(request, num_drafts, ids[first:end], targets)
            if count := self._append(request, tokens, logits[first:end]):
                drawn[request] = count
            if num_drafts and self._speculation is not None:
                self._speculation.record(request, num_drafts, min(count, len(tokens) - 1))
            first = end
        return drawn

    def _sample(self, logits: Tensor, requests: Sequence[Request], ahead: Sequence[Sequence[int]]) -> np.ndarray:
        """One id per row of logits, which follows the request's tokens and those in `ahead`; see `drafter.Draw`."""
        return sample(
            self.runner.backend,
            logits,
            [request.params for request in requests],
            [request.seed for request in requests],
            [request.num_tokens + len(ids) for request, ids in zip(requests, ahead, strict=True)],
            self._changes(requests, ahead),
        )

    def _changes(self, requests: Sequence[Request], ahead: Sequence[Sequence[int]]) -> LogitChanges | None:
        # A drawn image token would stand for an image that is not there.
        return logit_changes(requests, self.config.vocab_size, ahead, self.config.image_token_id)

    def _append(self, request: Request, tokens: Sequence[int], logits: Tensor) -> int:
        """Add new tokens to a request, up to one that ends it. Returns how many; -1 among them is an error."""
        for j, token in enumerate(tokens):
            if token < 0:
                request.finish_reason = "error"
                request.error = (
                    f"the logits of position {request.num_tokens} hold a NaN or an infinity, so no token can be drawn. "
                    "Check the weights (`ascend-dsv4 check --model DIR --probe`)."
                )
                return j
            request.output_ids.append(token)
            request.output_counts[token] += 1
            if request.constraint is not None:
                request.constraint.accept(token)
            if request.params.logprobs is not None:
                request.logprobs.append(_logprobs(self.runner.backend.to_host(logits[j]), token, request.params.logprobs))
            if token in request.end_ids:
                return j + 1
        return len(tokens)


def _ending(request: Request) -> FinishReason | None:
    """Why the request has ended with what it has; None if it goes on."""
    if request.max_tokens == 0:
        return "length" if request.num_prefilled == len(request.prompt_ids) else None
    if not request.output_ids:
        return None
    if request.output_ids[-1] in request.end_ids:
        return "stop"
    return "length" if len(request.output_ids) >= request.max_tokens else None


def _outputs(request: Request, num_tokens: int) -> list[Output]:
    """The last `num_tokens` tokens of a request one by one, the last of them with its end if it has ended."""
    total = len(request.output_ids)
    if num_tokens == 0:
        return [Output(request, (), (), request.finish_reason)]
    return [
        Output(
            request,
            (request.output_ids[i],),
            tuple(request.logprobs[i : i + 1]),
            request.finish_reason if i + 1 == total else None,
        )
        for i in range(total - num_tokens, total)
    ]


def _best(values: np.ndarray, count: int) -> list[int]:
    """Indices of the `count` largest values, largest first, ties by index. Does not sort them all."""
    if count == 0:
        return []
    least = np.partition(values, max(len(values) - count, 0))[max(len(values) - count, 0)]
    candidates = np.flatnonzero(values >= least)
    order: list[int] = candidates[np.argsort(-values[candidates], kind="stable")][:count].tolist()
    return order


def _logprobs(logits: np.ndarray, token: int, count: int) -> Logprobs:
    """Log-probabilities of a token and of the `count` best ones."""
    wide = logits.astype(np.float64)
    normal = wide - wide.max()
    normal -= np.log(np.exp(normal).sum())
    best = _best(normal, count)
    return {int(i): float(normal[i]) for i in dict.fromkeys([token, *best])}
