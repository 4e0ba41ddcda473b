# SPDX-License-Identifier: Apache-2.0
"""The engine as the HTTP routes see it: requests in, outputs out on the event loop, whatever the clients do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from ascend_dsv4.config.model_config import ModelConfig
from ascend_dsv4.config.server_config import ServerConfig
from ascend_dsv4.engine.constraint import TokenConstraint
from ascend_dsv4.engine.engine import Engine, Output
from ascend_dsv4.engine.loop import EngineLoop
from ascend_dsv4.engine.request import Request
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.errors import CapacityError, RequestError, UnsupportedError
from ascend_dsv4.runner.batch import PlacedRows
from ascend_dsv4.runner.vision import VisionEncoder
from ascend_dsv4.server.bodies import IMAGE_PARTS
from ascend_dsv4.server.conversation import prompt_version
from ascend_dsv4.server.dialog import DialogFormat
from ascend_dsv4.server.errors import HttpError
from ascend_dsv4.server.images import ImageReader
from ascend_dsv4.server.metrics import Metrics
from ascend_dsv4.server.structured import StructuredOutput
from ascend_dsv4.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt and how it is completed: n requests."""

    token_ids: Sequence[int]
    params: SamplingParams
    images: tuple[PlacedRows, ...] = ()
    constraint: Callable[[], TokenConstraint | None] | None = None
    """Makes the grammar of one completion; may take seconds."""


class Generation:
    """The completions of one HTTP request, in the order of prompts and of choices."""

    def __init__(self, requests: Sequence[Request], service: Service) -> None:
        self.requests = tuple(requests)
        self._open = set(requests)
        self._service = service
        self._inbox: asyncio.Queue[Output | None] = asyncio.Queue()

    async def outputs(self, idle_s: float | None = None) -> AsyncIterator[Output | None]:
        """What the engine does for these requests, until all have ended; None after every `idle_s` seconds without.

        Raises HttpError if a request ends in an error, at its deadline, or with the server.
        """
        loop = asyncio.get_running_loop()
        while self._open:
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with an output.
            timer = None if idle_s is None else loop.call_later(idle_s, self._inbox.put_nowait, None)
            try:
                output = await self._inbox.get()
            finally:
                if timer is not None:
                    timer.cancel()
            if output is None:
                yield None
                continue
            if output.request not in self._open:
                continue
            if output.finish_reason is not None:
                self._open.discard(output.request)
            _raise_if_failed(output)
            yield output

    def put(self, output: Output) -> None:
        """Called by the service."""
        self._inbox.put_nowait(output)

    def stop(self, request: Request) -> None:
        """A stop text has ended a request; nothing more comes of it."""
        if request in self._open:
            self._open.discard(request)
            self._service.metrics.stopped(request)
            self._service.loop.abort([request])

    def close(self) -> None:
        """Give up what has not ended."""
        still_open, self._open = list(self._open), set()
        if still_open:
            self._service.metrics.aborted(still_open)
            self._service.loop.abort(still_open)


def _num_chars(text: object) -> int:
    """Characters that may become text of a prompt; those of images do not."""
    if isinstance(text, str):
        return len(text)
    if isinstance(text, Mapping):
        is_image = text.get("type") in IMAGE_PARTS
        return sum(_num_chars(value) for name, value in text.items() if not (is_image and name in ("image_url", "source")))
    return sum(map(_num_chars, text)) if isinstance(text, list) else 0


def _raise_if_failed(output: Output) -> None:
    reason = output.request.error or "the request was given up"
    if output.finish_reason == "timeout":
        raise HttpError(504, reason, code="timeout")
    if output.finish_reason == "abort":
        raise HttpError(503, reason, code="shutting_down", retry_after=1)
    if output.finish_reason == "error":
        raise HttpError(500, reason, code="engine_error")


class Service:
    """A loaded model that answers. `start` and everything else run on the event loop's thread."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer | None, model_name: str, server: ServerConfig,
        encoder: Callable[[], VisionEncoder] | None = None,
    ) -> None:  # fmt: skip
        """`encoder` returns the vision tower of a model that has one."""
        self.engine = engine
        self.config: ModelConfig = engine.config
        self.tokenizer = tokenizer
        self.model_name = model_name
        self.server = server
        self.loop = EngineLoop(engine, self._deliver)
        self.metrics = Metrics(engine, self.loop)
        self.started_at = time.time()
        self.is_draining = False
        self.dialogs: DialogFormat | None = None
        self.no_dialogs = "this checkpoint has no tokenizer.json. Send token ids to /v1/completions."
        self.images: ImageReader | None = None
        self._structured: StructuredOutput | None = None
        self._generations: dict[Request, Generation] = {}
        self._grammar_workers = ThreadPoolExecutor(2, thread_name_prefix="grammar")
        self._event_loop: asyncio.AbstractEventLoop | None = None
        if tokenizer is not None:
            self._open_dialogs(tokenizer, encoder)

    def _open_dialogs(self, tokenizer: Tokenizer, encoder: Callable[[], VisionEncoder] | None) -> None:
        image_token_id = self.config.image_token_id
        image_token = None
        if encoder is not None and image_token_id is not None and image_token_id < tokenizer.vocab_size:
            image_token = tokenizer.id_to_token(image_token_id)
        try:
            version = prompt_version(self.config)
            self.dialogs = DialogFormat(
                tokenizer,
                self.model_name,
                preview_rules=self.config.dspark is None,
                default_thinking=self.server.default_thinking == "on",
                max_tokens=self.max_model_len,
                version=version,
                image_token=image_token,
            )
        except UnsupportedError as error:
            self.no_dialogs = str(error)
            return
        self._structured = StructuredOutput(
            tokenizer, self.config.vocab_size, self.config.eos_token_id, self.dialogs.think_end_id, version.tools_format
        )
        if image_token is not None:
            assert encoder is not None and image_token_id is not None and self.config.vision is not None
            self.images = ImageReader(
                self.config.vision, image_token_id, encoder, self.server, self.metrics,
                max_model_len=self.max_model_len, max_num_waiting=self.engine.engine.max_num_waiting,
            )  # fmt: skip

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest sequence, prompt and output."""
        return self.engine.runner.plan.max_model_len

    def check_length(self, text: object) -> None:
        """Refuse text that cannot fit, whatever its tokens are, before time is spent on them. Raises HttpError.

        text   a string, or lists and objects with strings
        """
        if self.tokenizer is not None and (length := _num_chars(text)) > self.max_model_len * self.tokenizer.longest_token:
            raise HttpError(
                400, f"the prompt has {length} characters, which are more than {self.max_model_len} tokens (max_model_len), "
                f"because no token has more than {self.tokenizer.longest_token}. Shorten it.", code="context_length_exceeded",
            )  # fmt: skip

    @property
    def structured(self) -> StructuredOutput:
        """Grammars for replies of conversations."""
        assert self._structured is not None, "routes ask for dialogs first"
        return self._structured

    def dialog_format(self) -> DialogFormat:
        """Raises HttpError if this checkpoint cannot hold conversations."""
        if self.dialogs is None:
            raise HttpError(400, f"conversations are not offered: {self.no_dialogs}", code="unsupported")
        return self.dialogs

    def text_tokenizer(self) -> Tokenizer:
        """Raises HttpError if this checkpoint has none."""
        if self.tokenizer is None:
            raise HttpError(400, "this checkpoint has no tokenizer.json to read text with. Send token ids.", code="unsupported")
        return self.tokenizer

    def check_model(self, name: str | None) -> None:
        """Raises HttpError for a model that is not served here."""
        if name is not None and name != self.model_name:
            raise HttpError(
                404, f"model: got {name[:200]!r}, expected {self.model_name!r}, the only model here. See /v1/models.",
                param="model", code="model_not_found",
            )  # fmt: skip

    @property
    def num_unfinished(self) -> int:
        """Requests whose clients still wait."""
        return len(self._generations)

    def start(self) -> None:
        """Begin to serve."""
        self._event_loop = asyncio.get_running_loop()
        self.loop.start()

    async def close(self) -> None:
        """End what is still under way, and the engine's thread."""
        if self.images is not None:
            self.images.close()
        await asyncio.to_thread(self.loop.stop)

    @asynccontextmanager
    async def generate(self, prompts: Sequence[Prompt]) -> AsyncIterator[Generation]:
        """Complete prompts; leaving the context gives up what is not finished.

        Raises RequestError for a prompt or parameter that cannot be served, CapacityError if the queue is full; then
        nothing runs.
        """
        deadline = None if self.server.request_timeout_s is None else self.engine.clock() + self.server.request_timeout_s
        # Grammars have workers of their own: some take long to compile, and plain prompts must not wait for those.
        workers = self._grammar_workers if any(prompt.constraint is not None for prompt in prompts) else None
        make = partial(self._make_requests, prompts, deadline)
        requests = await asyncio.get_running_loop().run_in_executor(workers, make)
        generation = Generation(requests, self)
        self._generations.update(dict.fromkeys(requests, generation))
        try:
            self._submit(requests)
            try:
                yield generation
            finally:
                generation.close()
        finally:
            for request in requests:
                del self._generations[request]

    def _make_requests(self, prompts: Sequence[Prompt], deadline: float | None) -> list[Request]:
        return [
            self.engine.make_request(
                prompt.token_ids,
                prompt.params,
                sample_index=i,
                deadline=deadline,
                constraint=None if prompt.constraint is None else prompt.constraint(),
                images=prompt.images,
            )
            for prompt in prompts
            for i in range(prompt.params.n)
        ]

    def _submit(self, requests: Sequence[Request]) -> None:
        if not self.loop.is_running:
            if self.is_draining:
                raise HttpError(503, "the server is shutting down. Try again later.", code="shutting_down", retry_after=1)
            raise HttpError(503, "the engine has stopped; the server's log says why. Restart it.", code="engine_error")
        self.metrics.submitted(requests, time.perf_counter())
        try:
            self.loop.submit(requests)
        except (CapacityError, RequestError):
            self.metrics.refused(requests)
            raise

    def _deliver(self, outputs: list[Output]) -> None:
        """On the engine's thread: hand outputs to the event loop. Never waits for a client."""
        assert self._event_loop is not None
        with suppress(RuntimeError):  # the event loop is closed: the process ends without waiting for anybody
            self._event_loop.call_soon_threadsafe(self._dispatch, outputs, time.perf_counter())

    def _dispatch(self, outputs: list[Output], produced_at: float) -> None:
        for output in outputs:
            self.metrics.produced(output, produced_at)
            if (generation := self._generations.get(output.request)) is not None:
                generation.put(output)
