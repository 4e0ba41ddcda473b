# SPDX-License-Identifier: Apache-2.0
"""`chat`: conversations through a pipe and in a terminal, what is kept of them, and what ends an answer."""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.cli.chat import Conversation, converse
from ascend_dsv4.cli.terminal import Answer, printable
from ascend_dsv4.engine.request import Request
from ascend_dsv4.errors import RequestError
from ascend_dsv4.llm import NewToken
from ascend_dsv4.server.conversation import ChatFormat, ToolCallEvent
from ascend_dsv4.tokenizer import Tokenizer
from tests.cli.conftest import Run

EOS = "<｜end▁of▁sentence｜>"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = (
    '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="add">\n<｜DSML｜parameter name="a" string="false">1</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
)


class Scripted:
    """A model that gives the answers it was told to; records the prompts. `interrupt` presses Ctrl-C after so many tokens."""

    def __init__(self, folder: Path, answers: Sequence[str], interrupt: int | None = None) -> None:
        self.tokenizer = Tokenizer.from_folder(folder)
        self.runner = SimpleNamespace(plan=SimpleNamespace(max_model_len=1000))
        self.prompts: list[str] = []
        self._answers = iter(answers)
        self._interrupt = interrupt

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[NewToken]:
        self.prompts.append(self.tokenizer.decode(prompt))
        request = Request(0, tuple(prompt), params, params.max_tokens, (0, 0), frozenset())
        for count, token_id in enumerate(self.tokenizer.encode(next(self._answers))):
            if count == self._interrupt:
                self._interrupt = None
                raise KeyboardInterrupt
            request.output_ids.append(token_id)
            ended = token_id == self.tokenizer.eos_token_id
            request.finish_reason = "stop" if ended else "length" if count + 1 == params.max_tokens else None
            yield NewToken(request, token_id)
            if request.is_finished:
                return


class Talk:
    """A conversation with such a model; `say` sends a message."""

    def __init__(self, model: Any, folder: Path, **options: Any) -> None:
        args = argparse.Namespace(**{"thinking": False, "reasoning_effort": None, "system": None, **options})
        chat_format = ChatFormat(Tokenizer.from_folder(folder), preview_rules=True)
        params = SamplingParams(max_tokens=300)
        self.conversation = Conversation(model, chat_format, params, args, options.get("tools"))

    def say(self, text: str) -> list[ToolCallEvent]:
        return self.conversation.answer([{"role": "user", "content": text}])


def test_a_conversation_through_a_pipe(run: Run, demo_folder: Path) -> None:
    args = ("chat", "--model", demo_folder, "--no-thinking", "--max-tokens", 2, "--max-model-len", 256)
    result = run(*args, stdin="Hello\n\n/help\n/reset\nHello\n/nonsense\nWorld\n/exit\nnever\n")
    assert result.code == 0
    assert result.err.count("2 tokens in") == 3
    assert result.err.count("/reset   forget the conversation") == 2
    assert "forgotten" in result.err
    assert "\x1b" not in result.out + result.err
    used = [int(count) for count in re.findall(r"context (\d+) of 256", result.err)]
    assert used[0] == used[1] < used[2]  # the same after /reset, then growing
    assert run(*args, stdin="Hello").err.count("2 tokens in") == 1  # the input may end without a newline or /exit


def test_first_answer_is_that_of_the_library(run: Run, demo_folder: Path) -> None:
    llm = LLM(demo_folder, max_model_len=256, max_num_seqs=1)
    prompt = "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hello<｜Assistant｜></think>"
    text = llm.generate(prompt, SamplingParams(max_tokens=3))[0].text
    args = ("--no-thinking", "--system", "Be brief.", "--max-tokens", 3, "--max-model-len", 256)
    result = run("chat", "--model", demo_folder, *args, stdin="Hello\n")
    assert result.out.strip() == text.strip() != ""


def test_effort_follows_the_release(run: Run, demo_folder: Path) -> None:
    """A checkpoint without DSpark values is a preview: its effort `high` has no text."""
    lengths = []
    for effort in ("low", "high"):
        args = ("--reasoning-effort", effort, "--max-tokens", 1, "--max-model-len", 1024)
        result = run("chat", "--model", demo_folder, *args, stdin="Hello\n")
        lengths += [int(count) for count in re.findall(r"context (\d+) of", result.err)]
    assert lengths[0] == lengths[1]


def test_history(demo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Scripted(demo_folder, [f"one{EOS}", f"two{EOS}", f"three{EOS}"])
    talk = Talk(model, demo_folder, system="S")
    talk.say("A")
    talk.say("B")
    begin = "<｜begin▁of▁sentence｜>S<｜User｜>A<｜Assistant｜></think>"
    assert model.prompts == [begin, f"{begin}one{EOS}<｜User｜>B<｜Assistant｜></think>"]
    talk.conversation.reset()
    talk.say("A")
    assert model.prompts[2] == begin
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_thinking_is_set_apart_and_not_repeated(demo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Scripted(demo_folder, [f"hm</think>yes{EOS}", f"</think>no{EOS}"])
    talk = Talk(model, demo_folder, thinking=True)
    talk.say("A")
    talk.say("B")
    assert capsys.readouterr().out == "<think>\nhm\n</think>\nyes\nno\n"
    assert model.prompts[1].endswith(f"</think>yes{EOS}<｜User｜>B<｜Assistant｜><think>")
    assert "hm" not in model.prompts[1]


def test_tools(demo_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A call is shown, its result is the next line of input, and both are part of what follows."""
    model = Scripted(demo_folder, [f"Let me see.\n\n{CALL}{EOS}", f"It is 42.{EOS}", f"bye{EOS}"])
    talk = Talk(model, demo_folder, tools=[TOOL])
    monkeypatch.setattr("sys.stdin", io.StringIO("add one\n42\nthanks\n"))
    converse(talk.conversation)
    out = capsys.readouterr().out
    assert out.startswith("Let me see.\n")
    (call,) = [line for line in out.splitlines() if line.startswith("[tool call] add ")]
    assert json.loads(call.removeprefix("[tool call] add ")) == {"a": 1}
    assert out.endswith("\nIt is 42.\nbye\n")
    assert "<tool_result>42</tool_result>" in model.prompts[1]
    assert "<tool_result>42</tool_result>" in model.prompts[2] and "It is 42." in model.prompts[2]
    assert model.prompts[2].count("<｜User｜>") == 3


def test_a_failed_turn_is_forgotten_whole(demo_folder: Path) -> None:
    model = Scripted(demo_folder, [f"one{EOS}", f"{CALL}{EOS}", f"two{EOS}"])
    talk = Talk(model, demo_folder, tools=[TOOL])
    talk.say("A")
    (call,) = talk.say("B")
    with pytest.raises(RequestError):
        talk.conversation.answer([{"role": "tool", "tool_call_id": "another", "content": "42"}])
    talk.say("C")
    assert model.prompts[2].startswith(model.prompts[0] + f"one{EOS}")
    assert "<｜User｜>C" in model.prompts[2] and "<｜User｜>B" not in model.prompts[2]


def test_a_call_that_was_cut_off_is_not_kept(demo_folder: Path) -> None:
    whole = len(Tokenizer.from_folder(demo_folder).encode(CALL))
    model = Scripted(demo_folder, [f"see {CALL}{EOS}", f"two{EOS}"], interrupt=whole - 3)
    talk = Talk(model, demo_folder, tools=[TOOL])
    assert talk.say("A") == []
    talk.say("B")
    assert "<｜User｜>B" in model.prompts[1] and "invoke name" not in model.prompts[1].split("<｜User｜>A")[1]


def test_ctrl_c_ends_an_answer_and_keeps_what_came(demo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Scripted(demo_folder, ["The captain counted the boxes twice.", f"fine{EOS}"], interrupt=3)
    talk = Talk(model, demo_folder)
    talk.say("A")
    captured = capsys.readouterr()
    kept = captured.out.strip("\n")
    assert kept and "The captain counted the boxes twice.".startswith(kept)
    assert "stopped" in captured.err
    talk.say("B")
    assert f"</think>{kept}{EOS}<｜User｜>B" in model.prompts[1]
    assert capsys.readouterr().out == "fine\n"


def test_a_cut_off_answer_says_so(demo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Talk(Scripted(demo_folder, ["a" * 500]), demo_folder).say("A")
    assert "cut off at --max-tokens 300" in capsys.readouterr().err


def test_a_full_context_keeps_the_session(run: Run, demo_folder: Path) -> None:
    args = ("chat", "--model", demo_folder, "--no-thinking", "--max-tokens", 40, "--max-model-len", 12, "--ignore-eos")
    long = "word " * 40
    result = run(*args, stdin=f"{long}\nHello\n{long}\n/reset\nHello\n")
    assert result.code == 2, "piped messages without an answer fail the run"
    assert result.err.count("error: prompt of") == 2
    assert "The message was not kept; /reset makes room" in " ".join(result.err.split())
    assert result.err.count("the context is full; /reset starts anew") == 2
    assert result.err.count("context 12 of 12") == 2


def test_bytes_that_are_no_text(run: Run, demo_folder: Path) -> None:
    result = run("chat", "--model", demo_folder, "--max-tokens", 2, "--max-model-len", 64, stdin=b"a\xffb\n")
    assert result.code == 0 and "2 tokens in" in result.err


def test_bad_options(run: Run, demo_folder: Path, tmp_path: Path) -> None:
    def error(*args: object, model: Path = demo_folder) -> str:
        result = run("chat", "--model", model, *args)
        assert (result.code, result.out) == (2, "")
        return result.err

    assert "expected one of minimal, low" in error("--reasoning-effort", "huge")
    assert "Add --thinking" in error("--reasoning-effort", "high", "--no-thinking")
    assert "--model" in error(model=tmp_path / "nope")
    tools = tmp_path / "tools.json"
    for content, words in (("[", "plain JSON"), ('[{"type": "function"}]', "missing field `function`"), ("3", "--tools")):
        tools.write_text(content)
        assert words in error("--tools", tools)
    assert "no such file" in error("--tools", tmp_path / "nope.json")
    (tmp_path / "config.json").write_bytes((demo_folder / "config.json").read_bytes())
    assert "no such file, expected a tokenizer file" in error(model=tmp_path)
    text = (demo_folder / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text.replace("｜DSML｜", "｜other｜"), encoding="utf-8")
    shutil.copy(demo_folder / "tokenizer_config.json", tmp_path)
    assert "no token '｜DSML｜'" in error(model=tmp_path)


class Pseudoterminal:
    """The user's end of a terminal in which a command runs."""

    def __init__(self, command: Sequence[str]) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self._unread = b""

    def read_until(self, end: bytes) -> bytes:
        """Everything up to and with the next `end`."""
        while end not in self._unread:
            assert select.select([self._ours], [], [], 60)[0], self._unread
            self._unread += os.read(self._ours, 4096)
        shown, _, self._unread = self._unread.partition(end)
        return shown + end

    def write(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def test_in_a_terminal(demo_folder: Path) -> None:
    """A prompt, thinking dimmed, and Ctrl-D to leave."""
    command = [sys.executable, "-m", "ascend_dsv4", "chat", "--model", str(demo_folder), "--max-tokens", "4",
               "--max-model-len", "64"]  # fmt: skip
    terminal = Pseudoterminal(command)
    try:
        terminal.read_until(b"\n> ")
        terminal.write(b"Hello\n")
        shown = terminal.read_until(b"\n> ")
        assert b"\x1b[2m" in shown and b"<think>" not in shown and b"tokens/s" in shown
        terminal.write(b"\x04")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.close()


def test_ctrl_c_in_a_terminal(demo_folder: Path) -> None:
    """It ends the answer, not the conversation; without an answer it only says how to leave."""
    command = [sys.executable, "-m", "ascend_dsv4", "demo", "--chat", "--keep-dir", str(demo_folder), "--max-tokens", "2000",
               "--ignore-eos"]  # fmt: skip
    terminal = Pseudoterminal(command)
    try:
        terminal.read_until(b"\n> ")
        terminal.write(b"Hello\n")
        terminal.read_until(b"Hello\r\n")
        terminal.read_until(b" ")  # the answer has begun
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until(b"stopped")
        terminal.read_until(b"\n> ")
        time.sleep(0.5)  # Python looks for signals before and after it waits for keys, but not in between
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until(b"/exit leaves")
        terminal.write(b"/exit\n")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_and_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    answer = Answer(out)
    answer.reasoning("why\x1b[31m")
    answer.content("so\r\n")
    answer.end()
    assert out.getvalue() == "\x1b[2mwhy␛[31m\x1b[0m\nso␍\n"
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    answer = Answer(plain)
    answer.reasoning("why")
    answer.tool_call("f", "{}")
    assert plain.getvalue() == "<think>\nwhy\n</think>\n[tool call] f {}\n"
    assert printable("a\tb\nc\x7f\x9bd｜") == "a\tb\nc␡\ufffdd｜"
