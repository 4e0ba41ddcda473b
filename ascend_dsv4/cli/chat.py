# SPDX-License-Identifier: Apache-2.0
"""`ascend-dsv4 chat`: a conversation in the terminal, or one line of stdin per message."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ascend_dsv4.cli.generate import open_model
from ascend_dsv4.cli.options import (
    add_engine_options,
    add_sampling_options,
    engine_config,
    model_path,
    sampling_params,
)
from ascend_dsv4.config import EngineConfig
from ascend_dsv4.config.checks import parse_json, read_text
from ascend_dsv4.errors import CapacityError, ConfigError, RequestError

if TYPE_CHECKING:
    from ascend_dsv4.engine.request import Request
    from ascend_dsv4.engine.sampling_params import SamplingParams
    from ascend_dsv4.llm import LLM
    from ascend_dsv4.server.conversation import ChatEvent, ChatFormat, ToolCallEvent

DEFAULT_MAX_TOKENS: Final = 1024
MAX_TOOLS_BYTES: Final = 1 << 20
Message = dict[str, Any]  # of a Chat Completions request
COMMANDS: Final = {"/reset": "forget the conversation", "/help": "this list", "/exit": "leave (as does Ctrl-D)"}


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "chat",
        allow_abbrev=False,
        help="talk to a model",
        description="Talk to a model in the terminal; without one, every line of stdin is a message. Ctrl-C stops an answer.",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint folder as published")
    add_chat_options(parser, thinking=True)
    add_sampling_options(parser, max_tokens=DEFAULT_MAX_TOKENS)
    add_engine_options(parser, max_num_seqs=1)
    parser.set_defaults(run=run)


def add_chat_options(parser: argparse.ArgumentParser, *, thinking: bool) -> None:
    """What belongs to a conversation."""
    group = parser.add_argument_group("chat options")
    group.add_argument(
        "--thinking", action=argparse.BooleanOptionalAction, default=thinking,
        help=f"let the model think before it answers (default: {'on' if thinking else 'off'})",
    )  # fmt: skip
    group.add_argument(
        "--reasoning-effort", metavar="LEVEL", help="how much to think: low, high or max; with thinking only"
    )
    group.add_argument("--system", metavar="TEXT", help="system message in front of the conversation")
    group.add_argument(
        "--tools", metavar="FILE",
        help="JSON list of tools as in a Chat Completions request; when the model calls one, you are asked for the result",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Hold the conversation."""
    model, engine, params = model_path(args.model), engine_config(args), sampling_params(args)
    return start(model, engine, params, args)


def start(model: Path, engine: EngineConfig, params: SamplingParams, args: argparse.Namespace) -> int:
    """Load a model and talk; returns the exit code. An unusable tokenizer or option is an error before the weights are read."""
    if not model.is_dir():
        raise ConfigError(f"--model {model}: no folder; expected one with a checkpoint, because only weights can talk.")
    tools = None if args.tools is None else _read_tools(Path(args.tools))
    chat_format = _open_format(model, args, tools)
    answered = converse(Conversation(open_model(model, engine), chat_format, params, args, tools))
    return 0 if answered or sys.stdin.isatty() else 2


def _read_tools(path: Path) -> list[Any]:
    tools = parse_json(read_text(path, MAX_TOOLS_BYTES), str(path), max_depth=64)
    if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools):
        return tools
    raise ConfigError(f"--tools {path}: expected a list of objects, as in a Chat Completions request. Correct the file.")


def _open_format(model: Path, args: argparse.Namespace, tools: Any) -> ChatFormat:
    """The conversation format of a checkpoint. Raises a typed error for files or options that do not allow one."""
    from ascend_dsv4.config import ModelConfig
    from ascend_dsv4.server.conversation import ChatFormat, effort_for_release, prompt_version
    from ascend_dsv4.tokenizer import Tokenizer

    config = ModelConfig.from_file(model)
    preview_rules, version = config.dspark is None, prompt_version(config)
    if args.reasoning_effort is not None:
        effort_for_release(args.reasoning_effort, preview_rules=preview_rules)
        if not args.thinking:
            raise RequestError("--reasoning-effort: got it with thinking off, where it changes nothing. Add --thinking.")
    chat_format = ChatFormat(Tokenizer.from_folder(model), preview_rules=preview_rules, version=version)
    chat_format.render_chat([{"role": "user", "content": ""}], thinking=args.thinking, tools=tools)  # refuses bad tools
    return chat_format


class Conversation:
    """Messages so far, and how the next answer is made."""

    def __init__(
        self, llm: LLM, chat_format: ChatFormat, params: SamplingParams, args: argparse.Namespace, tools: Any = None
    ) -> None:
        self._llm = llm
        self._format = chat_format
        self._params = params
        self._how: dict[str, Any] = {"thinking": args.thinking, "reasoning_effort": args.reasoning_effort, "tools": tools}
        self._system = args.system
        self._messages: list[Message] = []
        self._open_turn: list[Message] = []
        """Messages since the last finished answer, while a tool call waits for its result."""
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._messages = [{"role": "system", "content": self._system}] if self._system else []
        self._open_turn = []

    def answer(self, new: Sequence[Message]) -> list[ToolCallEvent]:
        """Put messages to the model and print its answer; returns calls whose results are the next messages.

        Ctrl-C ends the answer; what came of it is kept, but for calls.
        raises   RequestError or CapacityError if the conversation does not fit; everything since the last finished answer
                 is then forgotten
        """
        turn, self._open_turn = [*self._open_turn, *new], []
        prompt = self._format.render_chat([*self._messages, *turn], **self._how)
        stream, reply = self._format.open_stream(prompt), _Reply()
        start, request = time.perf_counter(), None
        try:
            with closing(self._llm.stream(prompt.token_ids, self._params)) as tokens:
                for token in tokens:
                    request = token.request
                    reply.show(stream.push(token.token_id))
            assert request is not None
            reply.show(stream.finish("stop" if request.finish_reason == "stop" else "length"))
        except KeyboardInterrupt:
            reply.show(stream.finish())
            reply.end("stopped")
        else:
            reply.end(self._ending(request, time.perf_counter() - start))
            if stream.finish_reason == "tool_calls":
                self._open_turn = [*turn, reply.message(with_calls=True)]
                return reply.calls
        # A call without its result cannot be part of a prompt, so one that was cut off is not kept.
        self._messages += [*turn, reply.message(with_calls=False)]
        return []

    def _ending(self, request: Request, seconds: float) -> str:
        used, room = request.num_tokens, self._llm.runner.plan.max_model_len
        remark = ""
        if request.finish_reason == "length":
            cut = f"cut off at --max-tokens {request.max_tokens}\n"
            remark = "the context is full; /reset starts anew\n" if used >= room else cut
        count = len(request.output_ids)
        return f"{remark}{count} tokens in {seconds:.1f} s, {count / seconds:.1f} tokens/s; context {used:,} of {room:,}"


class _Reply:
    """An answer while it comes: printed, and collected for the history."""

    def __init__(self) -> None:
        from ascend_dsv4.cli.terminal import Answer

        self._shown = Answer()
        self._parts: dict[str, list[str]] = {"reasoning": [], "content": []}
        self.calls: list[ToolCallEvent] = []

    def show(self, events: Sequence[ChatEvent]) -> None:
        from ascend_dsv4.server.conversation import ToolCallEvent

        for event in events:
            if isinstance(event, ToolCallEvent):
                self.calls.append(event)
                self._shown.tool_call(event.name, event.arguments)
                continue
            self._parts[event.kind].append(event.text)
            (self._shown.reasoning if event.kind == "reasoning" else self._shown.content)(event.text)

    def end(self, remark: str) -> None:
        from ascend_dsv4.cli.terminal import note

        self._shown.end()
        note(remark)

    def message(self, *, with_calls: bool) -> Message:
        """The assistant message of a Chat Completions request."""
        message: Message = {
            "role": "assistant",
            "content": "".join(self._parts["content"]),
            "reasoning_content": "".join(self._parts["reasoning"]),
        }
        if with_calls:
            functions = [(call.id, {"name": call.name, "arguments": call.arguments}) for call in self.calls]
            message["tool_calls"] = [{"id": number, "type": "function", "function": f} for number, f in functions]
        return message


def converse(conversation: Conversation) -> bool:
    """Read messages and commands until the input ends. Returns whether every message was answered."""
    from ascend_dsv4.cli.terminal import note, print_error

    if hasattr(sys.stdin, "reconfigure"):  # bytes that are no text must not end a conversation
        sys.stdin.reconfigure(errors="replace")
    if sys.stdin.isatty():
        with suppress(ImportError):  # line editing, where Python has it
            import readline  # noqa: F401
        note("Ctrl-C stops an answer, Ctrl-D leaves, /help lists commands")
    answered = True
    while (line := _read_line("> ")) is not None:
        text = line.strip()
        if text == "/exit":
            break
        if text == "/reset":
            conversation.reset()
            note("forgotten")
        elif text == "/help" or (text.startswith("/") and text[1:].isalpha()):
            note("\n".join(f"{name:8s} {meaning}" for name, meaning in COMMANDS.items()))
        elif text:
            try:
                _take_turn(conversation, text)
            except (RequestError, CapacityError) as error:
                answered = False
                print_error(f"{error} The message was not kept; /reset makes room for a new conversation.")
    return answered


def _take_turn(conversation: Conversation, text: str) -> None:
    """Answer a message; where the model calls tools, the user gives their results."""
    messages: list[Message] = [{"role": "user", "content": text}]
    while messages:
        calls = conversation.answer(messages)
        messages = []
        for call in calls:
            result = _read_line(f"result of {call.name}> ") or ""
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result.strip()})


def _read_line(prompt: str) -> str | None:
    """A line of input, None at its end."""
    from ascend_dsv4.cli.terminal import note

    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    try:
        return input(prompt)
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        note("\nCtrl-D or /exit leaves")
        return ""
