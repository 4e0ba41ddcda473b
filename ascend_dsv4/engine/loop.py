# SPDX-License-Identifier: Apache-2.0
"""The engine on a thread of its own: other threads put requests in, outputs come out by a callback."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from ascend_dsv4.engine.engine import Engine, Output
from ascend_dsv4.engine.request import FinishReason, Request
from ascend_dsv4.errors import CapacityError, RequestError

LOGGER = logging.getLogger("ascend_dsv4.engine")
MAX_FAILED_STEPS = 3
"""Steps in a row that may fail before the loop gives up."""

Deliver = Callable[[list[Output]], None]


class EngineLoop:
    """Steps the engine while there is work. `deliver` gets the outputs of every step on the engine's thread and must not wait.

    A step that raises fails the requests under way, each with an error, and the loop goes on with an empty engine; after
    `MAX_FAILED_STEPS` in a row it stops for good and refuses what comes.
    """

    def __init__(self, engine: Engine, deliver: Deliver) -> None:
        self.engine = engine
        self._deliver = deliver
        self._inbox: deque[tuple[Literal["add", "abort"], Request]] = deque()
        self._wake = threading.Condition()
        self._is_stopping = False
        self._num_failed_steps = 0
        self._last_words: tuple[FinishReason, str] = ("abort", "the server is shutting down")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Abort what is left and wait for the thread to end."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread.ident is not None:  # it may never have been started
            self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether requests are served."""
        return self._thread.is_alive() and not self._is_stopping

    @property
    def num_waiting(self) -> int:
        """Requests that no step has taken on yet, or that were preempted."""
        return len(self.engine.scheduler.waiting) + sum(kind == "add" for kind, _ in tuple(self._inbox))

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests that `Engine.make_request` made: all or none. From any thread.

        Raises CapacityError if the queue is full or the loop has stopped, RequestError if the requests can never fit together.
        """
        with self._wake:
            if not self.is_running:
                raise CapacityError("the engine has stopped, so no request can be taken. Restart the server; its log says why.")
            limit = self.engine.engine.max_num_waiting
            if limit is not None and len(requests) > limit + self.engine.engine.max_num_seqs:
                raise RequestError(
                    f"{len(requests)} completions in one request: expected at most {limit + self.engine.engine.max_num_seqs}, "
                    "which is all that can run and wait here at once. Send several requests."
                )
            seats = self.engine.engine.max_num_seqs - len(self.engine.scheduler.running)
            if limit is not None and self.num_waiting + len(requests) > limit + seats:
                raise CapacityError(
                    f"the queue is full: no room for {len(requests)} more, because at most {limit} may wait "
                    "(max_num_waiting). Try again later, or raise it."
                )
            self._inbox.extend(("add", request) for request in requests)
            self._wake.notify()

    def abort(self, requests: Sequence[Request]) -> None:
        """Give requests up before the next step, without an output. From any thread."""
        with self._wake:
            self._inbox.extend(("abort", request) for request in requests)
            self._wake.notify()

    def _run(self) -> None:
        while self._receive():
            num_steps = self.engine.stats.num_steps
            try:
                outputs = self.engine.step()
                if self.engine.stats.num_steps > num_steps:  # one without work says nothing about the engine's health
                    self._num_failed_steps = 0
            except Exception as error:
                LOGGER.exception("an engine step failed")
                outputs = self._fail(error)
            if outputs:
                self._deliver(outputs)
        if outputs := self.engine.reset(*self._last_words):
            self._deliver(outputs)

    def _receive(self) -> bool:
        """Take what other threads have sent, waiting while there is nothing to do. False when the loop shall end."""
        with self._wake:
            while not (self._inbox or self.engine.has_work or self._is_stopping):
                self._wake.wait()
            while self._inbox:
                kind, request = self._inbox.popleft()
                if kind == "abort":
                    self.engine.finish(request)
                elif not request.is_finished:
                    self.engine.add(request)  # also when stopping: it ends with the others
            return not self._is_stopping

    def _fail(self, error: Exception) -> list[Output]:
        """Outputs that end all requests with this error, after which the engine is empty."""
        self._num_failed_steps += 1
        reason = f"the engine failed while it processed this request ({type(error).__name__}: {error}); the log has the details"
        outputs = self.engine.reset("error", reason)
        if self._num_failed_steps >= MAX_FAILED_STEPS:
            LOGGER.critical("%d steps in a row failed: the engine stops", self._num_failed_steps)
            self._is_stopping = True
            self._last_words = ("error", reason)
        return outputs
