# SPDX-License-Identifier: Apache-2.0
"""Conversations of the families: V4.1 has a format of its own, V3.2 has none and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_dsv4.config import ModelConfig, ServerConfig
from ascend_dsv4.demo import demo_model
from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.llm import LLM
from ascend_dsv4.server.conversation import V4, V41, ChatFormat, prompt_version
from ascend_dsv4.server.dialog import CHAT, DialogFormat
from ascend_dsv4.server.errors import HttpError
from ascend_dsv4.server.service import Service
from ascend_dsv4.server.structured import StructuredOutput
from ascend_dsv4.tokenizer import Tokenizer

MODELS = Path(__file__).parents[2] / "configs" / "models"
BOS = "<｜begin▁of▁sentence｜>"
EFFORT = "Reasoning Effort: {} (range 1-100, the higher the value, the more thorough the reasoning)\n\n"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {
    "type": "object", "properties": {"at": {"type": "string", "enum": ["sky"]}}, "required": ["at"],
    "additionalProperties": False,
}}}  # fmt: skip
QUESTION = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_model(tmp_path_factory.mktemp("demo") / "v41", "v41")


def test_which_format() -> None:
    versions = {name: ModelConfig.from_file(MODELS / f"{name}.json") for name in ("v4_flash", "v41_flash", "v32")}
    assert prompt_version(versions["v4_flash"]) is V4
    assert prompt_version(versions["v41_flash"]) is V41
    with pytest.raises(UnsupportedError, match="DeepseekV32ForCausalLM: got a model whose conversations"):
        prompt_version(versions["v32"])


@pytest.mark.parametrize(("effort", "number"), [(None, 75), ("low", 50), ("high", 75), ("xhigh", 75), ("max", 100)])
def test_v41_prompt(folder: Path, effort: str | None, number: int) -> None:
    """The published rules: a system turn with the effort in front of everything, in thinking mode only."""
    tokenizer = Tokenizer.from_folder(folder)
    chat = ChatFormat(tokenizer, preview_rules=False, version=V41)
    prompt = chat.render_chat(QUESTION, thinking=True, reasoning_effort=effort)
    expected = f"{BOS}<｜System｜>{EFFORT.format(number)}<｜User｜>hi<｜Assistant｜><think>"
    assert prompt.text == expected and list(prompt.token_ids) == tokenizer.encode(expected)
    plain = chat.render_chat(QUESTION, thinking=False, reasoning_effort=effort)
    assert plain.text == f"{BOS}<｜User｜>hi<｜Assistant｜></think>"
    dialogs = DialogFormat(
        tokenizer, "demo", preview_rules=False, default_thinking=True, max_tokens=100, version=V41
    )
    body: dict[str, Any] = {"model": "demo", "messages": QUESTION}
    opened = dialogs.open(CHAT, body if effort is None else body | {"reasoning_effort": effort})
    assert list(opened.prompt_ids) == tokenizer.encode(expected)


def test_v41_forced_tool_call(folder: Path) -> None:
    """A grammar for the markup with its spaces, and a reader that understands what it allows."""
    pytest.importorskip("xgrammar")
    tokenizer = Tokenizer.from_folder(folder)
    dialogs = DialogFormat(tokenizer, "demo", preview_rules=False, default_thinking=False, max_tokens=99, version=V41)
    body = {"model": "demo", "messages": QUESTION, "tools": [TOOL], "tool_choice": "required"}
    dialog = dialogs.open(CHAT, body)
    assert tokenizer.decode(dialog.prompt_ids).endswith("<｜DSML｜ calls>\n")
    think_end = tokenizer.token_id("</think>")
    ids = tokenizer.encode(
        '<｜DSML｜ invoke name="look">\n<｜DSML｜ parameter name="at" string="true">sky</｜DSML｜ parameter>\n'
        "</｜DSML｜ invoke>\n</｜DSML｜ calls>"
    )
    structured = StructuredOutput(tokenizer, tokenizer.vocab_size, (1,), think_end, V41.tools_format)
    ids_of_v4 = tokenizer.encode('<｜DSML｜invoke name="look">')
    for reply, fits in (([*ids, 1], True), (ids_of_v4, False), ([1], False)):
        constraint = structured.constraint(dialog.turn, enforce_tools=True)
        assert constraint is not None
        assert follows(constraint, reply, tokenizer.vocab_size) is fits


def follows(constraint: Any, ids: list[int], vocab_size: int) -> bool:
    """Whether every id is allowed where it stands."""
    for token_id in ids:
        bits = np.zeros(-(-vocab_size // 32), np.int32)
        assert constraint.fill(bits)
        if not bits[token_id // 32] >> (token_id % 32) & 1:
            return False
        constraint.accept(token_id)
    return True


def test_v32_serves_completions_only(tmp_path: Path) -> None:
    llm = LLM(demo_model(tmp_path / "v32", "v32"), max_model_len=64, progress=False)
    service = Service(llm.engine, llm.tokenizer, "demo", ServerConfig())
    assert service.text_tokenizer() is llm.tokenizer
    with pytest.raises(HttpError, match="conversations are not offered: DeepseekV32ForCausalLM.*/v1/completions") as caught:
        service.dialog_format()
    assert caught.value.status == 400
