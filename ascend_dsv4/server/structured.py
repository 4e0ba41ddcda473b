# SPDX-License-Identifier: Apache-2.0
"""Replies that must be JSON, match a regular expression, or call tools: which tokens may come next.

The grammars are those of the library `xgrammar`; the form of tool calls is its `deepseek_v4`. Three things are added.

Control tokens never stand for their spelling. Readers of a reply tell `｜DSML｜` and `</think>` from text by token id, so
a grammar allows `｜DSML｜` by id where the markup needs it, and no control token inside a value.

Grammars are compiled in a process of their own. Compiling takes native code from microseconds to hours and gigabytes
(`.?` a hundred times is enough), and can be stopped only from outside.

Schemas are checked first. The library passes over some keywords (`not`, `uniqueItems`, ...) and over whatever stands
beside `anyOf`; a reply would then break the schema it was promised to follow.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

import deepseek_recipe as recipe
import numpy as np

from ascend_dsv4.errors import CapacityError, RequestError, UnsupportedError
from ascend_dsv4.server.schemas import checked_schema, checked_tool, explicit_dots, refusal
from ascend_dsv4.tokenizer import Tokenizer

if TYPE_CHECKING:
    import xgrammar

LOGGER = logging.getLogger("ascend_dsv4.server")

MAX_SCHEMA_CHARS: Final = 512 << 10
"""Of a schema, an expression or all tools together. Clients send a few thousand; each becomes several in the grammar."""
MAX_GRAMMAR_BYTES: Final = 64 << 20
"""Of one compiled grammar. 100 000 literal characters need 20 MB, ordinary schemas less than 5 MB."""
CACHE_BYTES: Final = 256 << 20
_ENTRY_BYTES: Final = 1000  # of the cache's own, per entry
REFUSAL_SECONDS: Final = 300.0
"""For which a refusal is remembered. It may have taken long to find out, but may also be due to a busy machine."""
COMPILE_SECONDS: Final = 10.0
"""Ordinary schemas take less than 1 s; what takes longer than this rarely ends."""
COMPILE_MEMORY_BYTES: Final = 2 << 30
"""Address space a compile may add to that of the process it runs in."""
START_SECONDS: Final = 120.0
"""For that process to start: it imports torch, which xgrammar needs."""
TRIAL_TOKENS: Final = 256
TRIAL_SECONDS: Final = 0.5
"""A new grammar is tried with random tokens: one that takes 2 ms per token already will hold up every other request."""
MATCH_SECONDS: Final = 1.0
MATCH_SECONDS_PER_TOKEN: Final = 0.002
"""Processor time a reply may spend in its grammar; usual is 0.00004 per token. Ambiguous expressions as `(a*)*b` take
time that grows with the square of the reply, on the thread that all requests share."""
PREFIX_CHARS: Final = 64
"""Of a reply's given beginning, between two looks at the clock."""
MAX_WHITESPACE: Final = 32
"""Between JSON tokens, in a row: enough to indent, and a model that would write blanks for ever gets on."""

DSML: Final = "｜DSML｜"
_MARKER_BYTES: Final = b"\xff"
"""What the grammar believes `｜DSML｜` to be: bytes of no UTF-8 text, so only its id can match."""

_READY: Final = "ready"

_Kind = Literal["json", "regex", "calls", "text with calls"]


class _Job(NamedTuple):
    """What to compile: a schema, an expression, or tools as JSON."""

    kind: _Kind
    source: str


class _Refusal(NamedTuple):
    """Why a job cannot be compiled, as a clause."""

    reason: str


class StructuredOutput:
    """Grammars of the replies of one server. Any thread may ask; a compile may take `COMPILE_SECONDS`."""

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int], think_end_id: int | None,
        tools_format: str = "deepseek_v4",
    ) -> None:  # fmt: skip
        """Cheap: xgrammar is imported, and its process started, with the first constraint.

        vocab_size      of the model's logits; ids that have no token are never allowed
        eos_token_ids   allowed when a grammar is complete, and only then
        think_end_id    `</think>`, after which a reply that begins in reasoning is constrained; None without thinking
        tools_format    the library's name for the markup of tool calls
        """
        self._tools_format = tools_format
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._think_end_id = think_end_id
        self._cache = _GrammarCache(CACHE_BYTES)
        self._compile_lock = threading.Lock()
        self._compiler: _Compiler | None = None
        self._has_compiled = False

    def constraint(self, request: recipe.ConversationRequest, *, enforce_tools: bool) -> GrammarConstraint | None:
        """What the reply to `request` may hold, as a new `TokenConstraint`; None if anything.

        enforce_tools   whether calls follow their tools' schemas also where the model is free not to call
        raises          RequestError for a schema or an expression that cannot be enforced; UnsupportedError without
                        xgrammar or without the control tokens needed; CapacityError if other compiles take too long
        """
        wanted = request.inference_options.output_constraint
        if wanted is None or (wanted.kind == "tool_call" and not enforce_tools):
            return None
        grammar = self._compiled(_job(wanted.kind, wanted.schema))
        options = request.parsing_options
        stage = options.thinking_initial_stage
        reasons = stage is not None and stage.starts_in_reasoning() and not options.starts_in_tool_calls
        if reasons and self._think_end_id is None:
            raise _no_token("</think>", self._tokenizer, "the end of the reasoning cannot be seen. Turn thinking off.")
        constraint = GrammarConstraint(
            _import_xgrammar().GrammarMatcher(grammar),
            self._vocab_size,
            self._eos_token_ids,
            think_end_id=self._think_end_id if reasons else None,
        )
        messages = request.conversation.messages
        if not reasons and messages and messages[-1].prefix and not constraint.skip(messages[-1].content):
            raise refusal(
                f"messages[{len(messages) - 1}]",
                f"the prefix {messages[-1].content[:80]!r}",
                "the beginning of a reply that follows response_format",
                "the reply goes on where the prefix ends",
            )
        return constraint

    def _compiled(self, job: _Job) -> xgrammar.CompiledGrammar:
        """The job's grammar, from the cache or compiled now. Refusals are cached too: some take seconds to find out."""
        found = self._cache.get(job)
        if found is None:
            patience = COMPILE_SECONDS if self._has_compiled else START_SECONDS
            if not self._compile_lock.acquire(timeout=patience):
                raise CapacityError(
                    f"{_where(job)}: the grammars of other requests are being compiled since {patience:g} s, expected a turn "
                    "by now: they are compiled one at a time. Send the request again."
                )
            try:
                found = self._cache.get(job)
                if found is None:
                    found = self._compile(job)
                    self._cache.put(job, found)
                    self._has_compiled = True
            finally:
                self._compile_lock.release()
        if isinstance(found, _Refusal):
            raise RequestError(
                f"{_where(job)}: got {_excerpt(job)}, {found.reason}; expected a grammar that xgrammar can compile and "
                "follow in a short time: every token is held against it. Simplify it, or ask in the prompt instead."
            )
        return found

    def _compile(self, job: _Job) -> xgrammar.CompiledGrammar | _Refusal:
        dsml_id = self._tokenizer.token_id(DSML)
        if job.kind in ("calls", "text with calls") and dsml_id is None:
            raise _no_token(DSML, self._tokenizer, "tool calls cannot be told from text. Leave the tools out.")
        if self._compiler is None:
            self._compiler = _Compiler(self._vocabulary(dsml_id), self._eos_token_ids, _Markup(dsml_id, self._tools_format))
        return self._compiler.compile(job)

    def _vocabulary(self, dsml_id: int | None) -> list[bytes]:
        """Bytes of each id, empty for ids that are no text: control tokens, end tokens, ids without token.

        Fills whole words of the bitmask, since xgrammar allows what is behind the last token.
        """
        tokenizer = self._tokenizer
        added = json.loads(tokenizer.path.read_bytes()).get("added_tokens", ())
        no_text = {token["id"] for token in added} | set(self._eos_token_ids)
        texts = [
            b"" if token_id in no_text or token_id >= tokenizer.vocab_size else tokenizer.token_bytes(token_id)
            for token_id in range(self._vocab_size)
        ]
        if dsml_id is not None and dsml_id < self._vocab_size:
            texts[dsml_id] = _MARKER_BYTES
        return texts + [b""] * (-len(texts) % 32)


class GrammarConstraint:
    """A `TokenConstraint`: one reply's way through its grammar.

    `fill` and `accept` never raise: they run between the steps of an engine that serves other requests too. If the
    grammar has no way on, or takes too much time, only end tokens are allowed from then on, and `failure` says why.
    """

    def __init__(
        self, matcher: xgrammar.GrammarMatcher, vocab_size: int, eos_token_ids: Sequence[int], *, think_end_id: int | None
    ) -> None:
        self.failure: str | None = None
        self._matcher = matcher
        self._eos_token_ids = frozenset(eos_token_ids)
        self._think_end_id = think_end_id
        self._has_ended = False
        self._seconds = MATCH_SECONDS
        ends = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
        ends[list(eos_token_ids)] = 1
        self._only_ends = np.packbits(ends, bitorder="little").view("<i4").astype(np.int32)

    def skip(self, text: str) -> bool:
        """Go on behind `text`, which the prompt already holds. False if no reply begins with it."""
        for first in range(0, len(text), PREFIX_CHARS):
            start = time.thread_time()
            is_match = self._matcher.accept_string(text[first : first + PREFIX_CHARS])
            self._spend(time.thread_time() - start)
            if not is_match or self.failure is not None:
                return False
        return True

    def fill(self, bits: np.ndarray) -> bool:
        """Write the tokens that may come next; False, with `bits` untouched, while the reply is still reasoning.

        bits   int32 [ceil(vocab_size / 32)], contiguous; token i is allowed where bit i % 32 of word i // 32 is set
        """
        if self._think_end_id is not None:
            return False
        if not self._has_ended:
            start = time.thread_time()
            self._matcher.fill_next_token_bitmask(bits)
            self._spend(time.thread_time() - start)
            if not bits.any():
                self._give_up("no token leads on: the schema asks for something that has no end")
        if self._has_ended:
            bits[:] = self._only_ends
        return True

    def accept(self, token_id: int) -> None:
        """The request's next token is this one."""
        if self._think_end_id is not None:
            if token_id == self._think_end_id:
                self._think_end_id = None
            return
        if self._has_ended:
            return
        if token_id in self._eos_token_ids:
            self._has_ended = True
            return
        start = time.thread_time()
        is_match = self._matcher.accept_token(token_id)
        self._spend(time.thread_time() - start - MATCH_SECONDS_PER_TOKEN)
        if not is_match:
            self._give_up(f"token {token_id} was not among those allowed")

    def _spend(self, seconds: float) -> None:
        """Thread time, not wall time: a busy machine is not the grammar's fault."""
        self._seconds = min(MATCH_SECONDS, self._seconds - seconds)
        if self._seconds < 0:
            self._give_up(f"it takes more than {MATCH_SECONDS_PER_TOKEN * 1000:g} ms per token to follow")

    def _give_up(self, reason: str) -> None:
        self._has_ended = True
        if self.failure is None:
            self.failure = reason
            LOGGER.warning("a reply ends before its grammar does: %s", reason)


class _Cached(NamedTuple):
    entry: xgrammar.CompiledGrammar | _Refusal
    num_bytes: int
    expires: float
    """Of `time.monotonic()`."""


class _GrammarCache:
    """Grammars and refusals by job; the least recently used go when they hold more than `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[_Job, _Cached] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, job: _Job) -> xgrammar.CompiledGrammar | _Refusal | None:
        with self._lock:
            cached = self._entries.get(job)
            if cached is None or time.monotonic() > cached.expires:
                return None
            self._entries.move_to_end(job)
            return cached.entry

    def put(self, job: _Job, entry: xgrammar.CompiledGrammar | _Refusal) -> None:
        if isinstance(entry, _Refusal):
            new = _Cached(entry, len(entry.reason), time.monotonic() + REFUSAL_SECONDS)
        else:
            new = _Cached(entry, entry.memory_size_bytes, math.inf)
        with self._lock:
            self._drop(job)
            self._entries[job] = new
            self._num_bytes += self._size(job, new)
            while self._num_bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def _drop(self, job: _Job) -> None:
        if (cached := self._entries.pop(job, None)) is not None:
            self._num_bytes -= self._size(job, cached)

    @staticmethod
    def _size(job: _Job, cached: _Cached) -> int:
        return cached.num_bytes + 4 * len(job.source) + _ENTRY_BYTES


def _job(kind: str, source: str) -> _Job:
    """The job of an output constraint of `deepseek_recipe`, its schemas checked.

    raises   RequestError
    """
    where = "tools" if kind.startswith("tool") else "response_format"
    if len(source) > MAX_SCHEMA_CHARS:
        raise refusal(where, f"{len(source)} characters", f"at most {MAX_SCHEMA_CHARS}", "longer ones take too long to compile")
    if kind == "regex":
        return _Job("regex", explicit_dots(source))
    if kind == "json":
        schema = checked_schema(json.loads(source), where) if source else {"type": "object"}
        return _Job("json", _dumped(schema, where))
    tools = [checked_tool(tool["function"], f"tools[{i}].parameters") for i, tool in enumerate(json.loads(source))]
    return _Job("calls" if kind == "tool_call_required" else "text with calls", _dumped(tools, where))


def _dumped(schema: Any, where: str) -> str:
    text = json.dumps(schema, ensure_ascii=False)
    for part, name in ((DSML, DSML), ("\\u0000", "U+0000")):
        if part in text:
            raise refusal(where, f"a value with {name}", "one without it", "no reply can hold it")
    return text


def _no_token(token: str, tokenizer: Tokenizer, consequence: str) -> UnsupportedError:
    return UnsupportedError(f"{tokenizer.path}: no token {token!r}, expected it in the vocabulary: without it {consequence}")


def _where(job: _Job) -> str:
    return "tools" if "calls" in job.kind else "response_format"


def _excerpt(job: _Job) -> str:
    return job.source if len(job.source) <= 100 else f"{job.source[:100]}… ({len(job.source)} characters)"


def _import_xgrammar() -> Any:
    try:
        import xgrammar
    except ImportError as error:
        raise UnsupportedError(
            f"response_format, tools: xgrammar cannot be imported ({error}), expected it to be installed: it holds replies "
            "to a grammar. Run `pip install ascend-dsv4[serve]`."
        ) from error
    return xgrammar


class _Markup(NamedTuple):
    """How tool calls are written."""

    dsml_id: int | None
    tools_format: str


class _Compiler:
    """The compiling process, seen from the server: killed when it takes too long, started again when needed.

    One thread at a time may use it.
    """

    def __init__(self, vocabulary: list[bytes], eos_token_ids: Sequence[int], markup: _Markup) -> None:
        """Raises UnsupportedError if xgrammar is not installed."""
        self._setup = vocabulary, tuple(eos_token_ids), markup
        self._connection: Connection | None = None
        self._is_ready = False
        self._stop: weakref.finalize[..., Any] | None = None
        if find_spec("xgrammar") is not None:
            self._start()  # it imports while this process does
        self._xgrammar = _import_xgrammar()
        self._tokens = _token_table(self._xgrammar, vocabulary, eos_token_ids)

    def compile(self, job: _Job) -> xgrammar.CompiledGrammar | _Refusal:
        """Raises CapacityError if the process does not start."""
        try:
            connection = self._ready()
            connection.send(job)
        except OSError:  # somebody has killed it since its last job
            self._end()
            connection = self._ready()
            connection.send(job)
        try:
            if connection.poll(COMPILE_SECONDS):
                answer = connection.recv()
                if isinstance(answer, str):
                    answer = self._xgrammar.CompiledGrammar.deserialize_json(answer, self._tokens)
                return cast("xgrammar.CompiledGrammar | _Refusal", answer)
            reason = f"which takes more than {COMPILE_SECONDS:g} s to compile"
        except (EOFError, OSError):
            reason = f"which takes more than {COMPILE_MEMORY_BYTES >> 20} MB to compile, or makes xgrammar crash"
        self._end()
        return _Refusal(reason)

    def _start(self) -> Connection:
        ours, theirs = multiprocessing.Pipe()
        # A program of its own, since a fork would copy the locks of the server's other threads.
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import compile_jobs; compile_jobs({theirs.fileno()})"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the server
                # xgrammar imports torch there; the device belongs to the server.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
            )
        except OSError as error:
            ours.close()
            raise _no_start(str(error)) from error
        finally:
            theirs.close()
        self._stop = weakref.finalize(self, _kill, process, ours)
        self._connection = ours
        self._is_ready = False
        return ours

    def _ready(self) -> Connection:
        """The connection to the process once it waits for jobs."""
        connection = self._connection or self._start()
        if self._is_ready:
            return connection
        problem = f"no answer in {START_SECONDS:g} s"
        try:
            connection.send(self._setup)
            self._is_ready = connection.poll(START_SECONDS) and connection.recv() == _READY
        except (EOFError, OSError):
            problem = "its end instead of an answer"
        if not self._is_ready:
            self._end()
            raise _no_start(problem)
        return connection

    def _end(self) -> None:
        self._connection = None
        if self._stop is not None:
            self._stop()


def _no_start(got: str) -> CapacityError:
    return CapacityError(
        f"response_format, tools: got {got} from the process that compiles grammars, expected it to start in a few seconds: "
        "it may lack memory or processor time. See the server's log, and send the request again."
    )


def _kill(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    process.kill()
    process.wait()


def _token_table(library: Any, vocabulary: list[bytes], eos_token_ids: Sequence[int]) -> xgrammar.TokenizerInfo:
    table: xgrammar.TokenizerInfo = library.TokenizerInfo(
        vocabulary, library.VocabType.RAW, vocab_size=len(vocabulary), stop_token_ids=list(eos_token_ids)
    )
    return table


def compile_jobs(descriptor: int) -> None:
    """The other process: answers jobs with a serialized grammar or a refusal until the server closes the connection."""
    library = _import_xgrammar()
    with Connection(descriptor) as connection, suppress(EOFError):
        vocabulary, eos_token_ids, markup = connection.recv()
        tokens = _token_table(library, vocabulary, eos_token_ids)
        compiler = library.GrammarCompiler(tokens, max_threads=4, cache_enabled=False)
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        hard_limit = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = used + COMPILE_MEMORY_BYTES
        if hard_limit == resource.RLIM_INFINITY or limit < hard_limit:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard_limit))
        os.dup2(os.memfd_create("stderr"), 2)  # xgrammar says there, and nowhere else, what it overlooks
        connection.send(_READY)
        while True:
            job = connection.recv()
            signal.alarm(2 * round(COMPILE_SECONDS))  # ends this process too if the server was killed and cannot do it
            os.ftruncate(2, 0)
            os.lseek(2, 0, os.SEEK_SET)
            try:
                answer = _compile_and_try(library, compiler, job, len(vocabulary), eos_token_ids, markup)
            except (RuntimeError, ValueError, MemoryError) as error:
                answer = _Refusal(f"which xgrammar refuses: {_plain(str(error)) or type(error).__name__}")
            os.lseek(2, 0, os.SEEK_SET)
            warning = re.search(r"Warning: (.*)", os.read(2, 1 << 16).decode(errors="replace"))
            signal.alarm(0)
            connection.send(_Refusal(f"of which xgrammar says: {_plain(warning[1])}") if warning else answer)


def _plain(message: str) -> str:
    """A message of xgrammar without the places in its sources."""
    message = re.sub(r"\[\d\d:\d\d:\d\d\] \S+: |Check failed: \(.*?\) is false: ", "", message)
    return " ".join(message.split()).rstrip(".")[:300]


def _compile_and_try(
    library: Any, compiler: Any, job: _Job, vocab_size: int, eos_token_ids: Sequence[int], markup: _Markup
) -> str | _Refusal:
    if job.kind == "regex":
        grammar = compiler.compile_regex(job.source)
    else:
        if job.kind == "json":
            draft = library.Grammar.from_json_schema(job.source, max_whitespace_cnt=MAX_WHITESPACE)
        else:
            tools = json.loads(job.source)
            draft = _calls_grammar(library, markup.tools_format, tools, with_text=job.kind == "text with calls")
        grammar = compiler.compile_grammar(_corrected(str(draft), markup.dsml_id))
    if grammar.memory_size_bytes > MAX_GRAMMAR_BYTES:
        return _Refusal(f"which becomes a grammar of {grammar.memory_size_bytes >> 20} MB, more than {MAX_GRAMMAR_BYTES >> 20}")
    refusal = _tried(library, grammar, vocab_size, eos_token_ids)
    return refusal if refusal is not None else str(grammar.serialize_json())


def _tried(library: Any, grammar: Any, vocab_size: int, eos_token_ids: Sequence[int]) -> _Refusal | None:
    """Follow the grammar along random tokens; what goes wrong here would go wrong with a client's reply."""
    random = np.random.default_rng(0)
    bits = np.zeros(-(-vocab_size // 32), np.int32)
    matcher = library.GrammarMatcher(grammar)
    seconds = 0.0
    for _ in range(TRIAL_TOKENS):
        start = time.thread_time()
        matcher.fill_next_token_bitmask(bits)
        seconds += time.thread_time() - start
        if not bits.any():
            return _Refusal("which no finite reply can follow: it refers to itself without end")
        word = int(random.choice(np.flatnonzero(bits)))
        token_id = 32 * word + int(random.choice([bit for bit in range(32) if bits[word] >> bit & 1]))
        start = time.thread_time()
        if token_id in eos_token_ids:
            matcher.reset()
        else:
            matcher.accept_token(token_id)
        seconds += time.thread_time() - start
        if seconds > TRIAL_SECONDS:
            return _Refusal("which takes too long to follow, token by token")
    return None


def _calls_grammar(library: Any, tools_format: str, tools: list[dict[str, Any]], *, with_text: bool) -> Any:
    """The library's grammar of a block of tool calls: behind any text, or from its first call on."""
    tag = library.get_model_structural_tag(tools_format, tools=tools, reasoning="disabled", max_whitespace_cnt=MAX_WHITESPACE)
    block = tag.format.tags[0]
    formats = library.structural_tag
    if with_text:
        form = formats.SequenceFormat(elements=[formats.AnyTextFormat(), formats.OptionalFormat(content=block)])
    else:
        form = formats.SequenceFormat(elements=[block.content, formats.ConstStringFormat(value=block.end)])
    return library.Grammar.from_structural_tag(formats.StructuralTag(format=form))


_SPELLED_DSML: Final = r"\uff5cDSML\uff5c"
_TEXT_OF_PARAMETER: Final = re.compile(
    rf'TagDispatch\(\s*loop_after_dispatch=false,\s*excludes=\("</{re.escape(_SPELLED_DSML)} ?parameter>"\)\s*\)'
)
_LITERAL_OR_CLASS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]')
_CHARACTERS: Final = r"[^\"\\\r\n]"


def _corrected(ebnf: str, dsml_id: int | None) -> str:
    """A grammar as the library prints it, with three things put right.

    `｜DSML｜` is its token, not its spelling. Then no value can hold it, and a parameter's text, which the library ends
    at the spelled closing tag, may be any characters. In JSON strings of limited length only U+000A and U+000D were kept
    out, and the other control characters are no JSON either.
    """

    def correct(found: re.Match[str]) -> str:
        if found[0] == _CHARACTERS:
            return r"[^\0-\x1f\"\\]"
        return found[0].replace(_SPELLED_DSML, f'" Token({dsml_id}) "') if found[0][0] == '"' else found[0]

    return _LITERAL_OR_CLASS.sub(correct, _TEXT_OF_PARAMETER.sub(lambda _: r"[\0-\U0010ffff]*", ebnf))
