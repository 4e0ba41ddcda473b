# SPDX-License-Identifier: Apache-2.0
"""Random replies that take only allowed tokens follow the schema, the expression or the tools; hostile ones are refused.

What a reply should be is judged by others: `json`, `jsonschema`, `re`, and the reader of `deepseek_recipe`.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import deepseek_recipe as recipe
import jsonschema
import numpy as np
import pytest

from ascend_dsv4.errors import CapacityError, RequestError, UnsupportedError
from ascend_dsv4.server import structured as module
from ascend_dsv4.server.conversation import ChatEvent, ChatFormat, RenderedPrompt, TextEvent, ToolCallEvent
from ascend_dsv4.server.schemas import checked_schema
from ascend_dsv4.server.structured import DSML, GrammarConstraint, StructuredOutput
from ascend_dsv4.tokenizer import Tokenizer

EXTRA_IDS = 45  # of logits beyond the tokenizer; not a whole word of the bitmask
MAX_TOKENS = 3000
CLOSING = {b'"', b"}", b"]", b"<", b"/", b"</", b">", b">\n"}
OBJECT_SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture(scope="module")
def tokenizer(golden_v4: Path) -> Tokenizer:
    return Tokenizer.from_folder(golden_v4 / "fp8_fp4")


@pytest.fixture(scope="module")
def structured(tokenizer: Tokenizer) -> StructuredOutput:
    eos_token_id = tokenizer.token_id("<｜end▁of▁sentence｜>")
    assert eos_token_id is not None
    think_end_id = tokenizer.token_id("</think>")
    return StructuredOutput(tokenizer, tokenizer.vocab_size + EXTRA_IDS, (eos_token_id,), think_end_id)


class Replies:
    """Takes random tokens among those allowed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.texts = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        added = json.loads(tokenizer.path.read_bytes())["added_tokens"]
        self.control_ids = {token["id"] for token in added}
        self.eos = self.id("<｜end▁of▁sentence｜>")
        self.dsml = self.id(DSML)
        self.closing = {i for i, text in enumerate(self.texts) if text in CLOSING}

    def id(self, token: str) -> int:
        token_id = self.tokenizer.token_id(token)
        assert token_id is not None
        return token_id

    def allowed(self, constraint: GrammarConstraint) -> set[int]:
        """The ids allowed now; control tokens other than the end and the marker, and ids without token, never are."""
        bits = np.full(-(-(self.tokenizer.vocab_size + EXTRA_IDS) // 32), -1, np.int32)
        assert constraint.fill(bits)
        ids = set(np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist())
        assert ids
        assert max(ids) < self.tokenizer.vocab_size
        assert not ids & self.control_ids - {self.eos, self.dsml}
        return ids

    def walk(self, constraint: GrammarConstraint) -> list[int]:
        """A whole reply, without its end token."""
        reply: list[int] = []
        for _ in range(MAX_TOKENS):
            allowed = self.allowed(constraint)
            preferred = allowed & {self.eos, self.dsml}, allowed & self.closing
            choices = [ids for ids in preferred if ids and random.random() < 0.7]
            token_id = random.choice(sorted([*choices, allowed][0]))
            constraint.accept(token_id)
            if token_id == self.eos:
                assert self.allowed(constraint) == {self.eos}
                assert constraint.failure is None
                return reply
            reply.append(token_id)
        raise AssertionError(f"no end in {MAX_TOKENS} tokens: {self.text(reply)}")

    def text(self, ids: list[int]) -> str:
        return b"".join(self.texts[token_id] for token_id in ids).decode()

    def accept(self, constraint: GrammarConstraint, text: str) -> None:
        """Write `text`, in which the marker stands for its token; every token must be allowed."""
        for token_id in self.tokenizer.encode(text):
            assert token_id in self.allowed(constraint), f"{self.texts[token_id]!r} of {text!r}"
            constraint.accept(token_id)

    def can_end(self, constraint: GrammarConstraint) -> bool:
        return self.eos in self.allowed(constraint)


@pytest.fixture(scope="module")
def replies(tokenizer: Tokenizer) -> Replies:
    return Replies(tokenizer)


def request(*, thinking: bool = False, **fields: Any) -> recipe.ConversationRequest:
    body = {
        "model": "DeepSeek-V4-Pro",
        "messages": [{"role": "user", "content": "json"}],
        "thinking": {"type": "enabled" if thinking else "disabled"},
        **fields,
    }
    return recipe.ChatCompletionRequest(body).convert(recipe.ConversionOptions())


def schema_request(schema: Any, **fields: Any) -> recipe.ConversationRequest:
    return request(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}, **fields)


def regex_request(pattern: str, **fields: Any) -> recipe.ConversationRequest:
    return request(response_format={"type": "regex", "regex": pattern}, **fields)


def tool_request(
    *parameters: Any, choice: Any = "required", strict: bool | None = None, **fields: Any
) -> recipe.ConversationRequest:
    """Tools f0, f1, ... with these parameters."""
    functions = [{"name": f"f{i}", "parameters": schema, "strict": strict} for i, schema in enumerate(parameters)]
    tools = [{"type": "function", "function": function} for function in functions]
    return request(tools=tools, tool_choice=choice, **fields)


def constrained(structured: StructuredOutput, request: recipe.ConversationRequest) -> GrammarConstraint:
    constraint = structured.constraint(request, enforce_tools=True)
    assert constraint is not None
    return constraint


def read(tokenizer: Tokenizer, request: recipe.ConversationRequest, ids: list[int]) -> list[ChatEvent]:
    """The reply as the server reads it."""
    stream = ChatFormat(tokenizer, preview_rules=False).open_stream(RenderedPrompt("", (), request))
    return stream.push(ids) + stream.finish()


STRING = {"type": "string", "maxLength": 6}
SCHEMAS: dict[str, Any] = {
    "object": OBJECT_SCHEMA,
    "anything": True,
    "nested": {
        "type": "object",
        "properties": {
            "list": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
            "o": {"type": "object", "properties": {"b": {"type": "boolean"}, "s": STRING}, "required": ["b"]},
        },
        "required": ["list", "o"],
    },
    "range": {"type": "integer", "minimum": -3, "maximum": 17},
    "values": {"type": "string", "enum": ['a"b', "c\\d", "é\n", 5]},
    "values of a type": {"type": "integer", "enum": ['"', "a", 5, 17.5, True]},
    "constant": {"const": {"a": [1, None, True]}},
    "optional": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "title": "T", "description": "D"},
    "recursive": {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["v", "next"],
    },
    "keywords as names": {
        "properties": {"title": {"type": "integer"}, "enum": {"type": "null"}, "$ref": {"type": "boolean"}},
        "required": ["title", "enum", "$ref"],
    },
    "names with quotes": {
        "properties": {'"': {"type": "integer"}, "\\": {"type": "null"}, "名": {"type": "boolean"}},
        "required": ['"', "\\", "名"],
    },
    "pattern": {"type": "string", "pattern": "^(foo|ba[rz])-[0-9]{2,3}$"},
    "pattern at the start": {"type": "string", "pattern": "^[A-Z]{2}"},
    "no type": {"minLength": 2, "maxLength": 3},
    "required but not declared": {"type": "object", "properties": {"a": STRING}, "required": ["b"]},
    "items not declared": {"type": "array", "minItems": 2, "maxItems": 3},
    "type beside anyOf": {
        "type": "string",
        "anyOf": [{"type": "string", "maxLength": 2}, {"type": "string", "pattern": "^zzz$"}],
    },
    "exactly one": {
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}, {"type": "integer"}],
        "$defs": {
            kind: {"type": "object", "properties": {"kind": {"const": kind}, kind: STRING}, "required": ["kind", kind]}
            for kind in ("cat", "dog")
        },
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_replies_follow_the_schema(structured: StructuredOutput, replies: Replies, name: str) -> None:
    schema = SCHEMAS[name]
    for _ in range(6):
        ids = replies.walk(constrained(structured, schema_request(schema)))
        jsonschema.validate(json.loads(replies.text(ids)), schema, jsonschema.Draft202012Validator)


def test_json_object_is_any_object(structured: StructuredOutput, replies: Replies) -> None:
    wanted = request(response_format={"type": "json_object"})
    for _ in range(10):
        assert isinstance(json.loads(replies.text(replies.walk(constrained(structured, wanted)))), dict)
    replies.accept(constrained(structured, wanted), '{\n    "a": [1.5e3, {"b": "c\\n<｜é"}], "": null\n}')


def test_patterns_match_anywhere(structured: StructuredOutput, replies: Replies) -> None:
    """As JSON Schema says; matched with the whole string, the first would allow two letters and no more."""
    for pattern, value in (("^[A-Z]{2}", "ABc d"), ("b[0-9]", "ab0c"), (r"\$", "5 $ each"), ("[0-9]$", "No 5")):
        constraint = constrained(structured, schema_request({"type": "string", "pattern": pattern}))
        replies.accept(constraint, json.dumps(value))
        assert replies.can_end(constraint)


@pytest.mark.parametrize(
    "pattern", [r"(ab|c)+[0-9]{2}", r"[^a-z]{3,5}", r"x*y?\.\d{1,2}", r"-?\w{2,6}( \w{1,3})*!", r"...", ""]
)
def test_replies_match_the_expression(structured: StructuredOutput, replies: Replies, pattern: str) -> None:
    for _ in range(6):
        text = replies.text(replies.walk(constrained(structured, regex_request(pattern))))
        assert re.fullmatch(pattern, text, re.ASCII), text


def test_a_dot_is_no_line_end(structured: StructuredOutput, replies: Replies) -> None:
    line_end = replies.texts.index(b"\n")
    for pattern, is_allowed in (("a.", False), (r"a\.[.\n]", False), (r"a[.\n]", True)):
        constraint = constrained(structured, regex_request(pattern))
        replies.accept(constraint, "a")
        assert (line_end in replies.allowed(constraint)) == is_allowed


def test_names_that_need_escapes_are_not_other_names(structured: StructuredOutput, replies: Replies) -> None:
    schema = {"type": "object", "properties": {'"q': {"type": "null"}}, "additionalProperties": True}
    constraint = constrained(structured, schema_request(schema))
    replies.accept(constraint, '{"')
    assert {replies.texts[token_id][:1] for token_id in replies.allowed(constraint)} == {b"\\"}


TOOL_SCHEMAS: dict[str, Any] = {
    "all kinds": {
        "type": "object",
        "properties": {
            "s": {"type": "string"},
            "maybe": {"type": ["string", "null"], "maxLength": 4},
            "e": {"enum": ["a\nb", "<", " x ", 1, None, [1]]},
            "list": {"type": "array", "items": STRING, "maxItems": 2},
            "o": {"type": "object", "properties": {'"': {"type": "integer"}}, "required": ['"']},
            "any": {},
        },
        "required": ["s", "maybe", "e", "list", "o"],
    },
    "long text": {
        "type": "object",
        "properties": {"s": {"type": "string", "minLength": 30, "maxLength": 60}},
        "required": ["s"],
    },
    "pattern": {"type": "object", "properties": {"p": {"type": "string", "pattern": "^.{20,25}$"}}, "required": ["p"]},
    "no parameters": {"type": "object", "properties": {}},
    "any parameters": {"type": "object", "additionalProperties": {"type": "integer"}},
    "odd names": {"type": "object", "properties": {"名<'>": {"type": "integer"}, "a-b.c": STRING}, "required": ["名<'>"]},
}


@pytest.mark.parametrize("name", TOOL_SCHEMAS)
def test_required_calls_follow_their_schema(
    structured: StructuredOutput, replies: Replies, tokenizer: Tokenizer, name: str
) -> None:
    validator = jsonschema.Draft202012Validator(TOOL_SCHEMAS[name])
    wanted = tool_request(TOOL_SCHEMAS[name], TOOL_SCHEMAS[name])
    for _ in range(6):
        events = read(tokenizer, wanted, replies.walk(constrained(structured, wanted)))
        assert events
        for event in events:
            assert isinstance(event, ToolCallEvent)
            assert event.name in ("f0", "f1")
            validator.validate(json.loads(event.arguments))


def test_a_named_tool_is_the_only_one(structured: StructuredOutput, replies: Replies, tokenizer: Tokenizer) -> None:
    wanted = tool_request(OBJECT_SCHEMA, OBJECT_SCHEMA, choice={"type": "function", "function": {"name": "f1"}})
    for _ in range(4):
        events = read(tokenizer, wanted, replies.walk(constrained(structured, wanted)))
        assert {event.name for event in events if isinstance(event, ToolCallEvent)} == {"f1"}


def test_not_strict_tools_keep_their_form_only(structured: StructuredOutput, replies: Replies) -> None:
    constraint = constrained(structured, tool_request(OBJECT_SCHEMA, strict=False))
    replies.accept(constraint, f'<{DSML}invoke name="f0">\n<{DSML}parameter name="other" string="true">x</{DSML}parameter>\n')


def test_the_marker_is_a_token_not_its_spelling(structured: StructuredOutput, replies: Replies) -> None:
    wanted = tool_request({"type": "object", "properties": {"s": {"type": "string"}}, "required": ["s"]})
    constraint = constrained(structured, wanted)
    assert replies.allowed(constraint) == {i for i, text in enumerate(replies.texts) if text == b"<"}
    replies.accept(constraint, f'<{DSML}invoke name="f0">\n<{DSML}parameter name="s" string="true">')
    spelled = [replies.texts.index(bytes([byte])) for byte in f"</{DSML}parameter>".encode()]
    for token_id in spelled:
        assert token_id in replies.allowed(constraint)
        constraint.accept(token_id)
    assert replies.dsml not in replies.allowed(constraint)
    replies.accept(constraint, "<")
    assert replies.dsml not in replies.allowed(constraint)
    replies.accept(constraint, f"/{DSML}parameter>\n</{DSML}invoke>\n</{DSML}tool_calls>")
    assert replies.allowed(constraint) == {replies.eos}


def test_a_free_choice_of_tools_is_enforced_on_demand(
    structured: StructuredOutput, replies: Replies, tokenizer: Tokenizer
) -> None:
    wanted = tool_request(OBJECT_SCHEMA, choice="auto", strict=True)
    assert structured.constraint(wanted, enforce_tools=False) is None
    constraint = constrained(structured, wanted)
    replies.accept(constraint, "a < b, </ é")
    assert replies.can_end(constraint)
    replies.accept(constraint, f"\n\n<{DSML}")
    assert not replies.can_end(constraint)
    replies.accept(constraint, f'tool_calls>\n<{DSML}invoke name="f0">\n<{DSML}parameter name="a" string="false">')
    assert all(replies.texts[token_id][:1] in b"-0123456789 \n\r\t" for token_id in replies.allowed(constraint))
    prefix = f'<{DSML}tool_calls>\n<{DSML}invoke name="f0">\n'
    for _ in range(4):
        constraint = constrained(structured, wanted)
        replies.accept(constraint, prefix)
        events = read(tokenizer, wanted, tokenizer.encode(prefix) + replies.walk(constraint))
        assert events
        for event in events:
            assert isinstance(event, ToolCallEvent)
            jsonschema.validate(json.loads(event.arguments), OBJECT_SCHEMA)


def test_reasoning_is_free_until_its_token(structured: StructuredOutput, replies: Replies, tokenizer: Tokenizer) -> None:
    wanted = schema_request(OBJECT_SCHEMA, thinking=True)
    constraint = constrained(structured, wanted)
    bits = np.full(-(-(tokenizer.vocab_size + EXTRA_IDS) // 32), 12345, np.int32)
    spelled = [replies.texts.index(bytes([byte])) for byte in b"</think>"]
    for token_id in [*tokenizer.encode("Hm, {"), *spelled]:
        assert not constraint.fill(bits)
        assert (bits == 12345).all()
        constraint.accept(token_id)
    constraint.accept(replies.id("</think>"))
    ids = replies.walk(constraint)
    jsonschema.validate(json.loads(replies.text(ids)), OBJECT_SCHEMA)
    events = read(tokenizer, wanted, [*tokenizer.encode("Hm"), replies.id("</think>"), *ids])
    assert "".join(event.text for event in events if isinstance(event, TextEvent) and event.kind == "content") == replies.text(
        ids
    )


def test_the_end_is_allowed_at_the_end_only(structured: StructuredOutput, replies: Replies) -> None:
    constraint = constrained(structured, schema_request(OBJECT_SCHEMA))
    for piece in '{"a": 15':
        assert not replies.can_end(constraint)
        replies.accept(constraint, piece)
    assert not replies.can_end(constraint)
    replies.accept(constraint, "}")
    for _ in range(2):
        assert replies.allowed(constraint) == {replies.eos}
        constraint.accept(replies.eos)


def test_blanks_come_to_an_end(structured: StructuredOutput, replies: Replies) -> None:
    constraint = constrained(structured, schema_request(OBJECT_SCHEMA))
    replies.accept(constraint, "{\n" + 31 * " ")
    assert {replies.texts[token_id][:1] for token_id in replies.allowed(constraint)} == {b'"'}


def test_a_reply_goes_on_behind_its_prefix(structured: StructuredOutput, replies: Replies) -> None:
    def with_prefix(content: str) -> recipe.ConversationRequest:
        prefix = {"role": "assistant", "content": content, "prefix": True}
        return schema_request(OBJECT_SCHEMA, messages=[{"role": "user", "content": "json"}, prefix])

    blanks = 30 * " "
    constraint = constrained(structured, with_prefix('{"a"' + blanks + ":" + blanks + "12"))
    replies.accept(constraint, "3}")
    assert replies.can_end(constraint)
    with pytest.raises(RequestError, match=re.escape("messages[1]: got the prefix")):
        structured.constraint(with_prefix('{"b": 12'), enforce_tools=False)


def nested(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


REFUSED_SCHEMAS: dict[str, tuple[Any, str]] = {
    "not": ({"not": {"type": "string"}}, "`not`"),
    "unique": ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, "`uniqueItems`"),
    "if": ({"type": "object", "if": {}, "then": {}}, "`if`"),
    "beside anyOf": ({"type": "object", "properties": {}, "anyOf": [{"required": ["a"]}]}, "beside `anyOf`"),
    "beside $ref": ({"$ref": "#/$defs/s", "maxLength": 2, "$defs": {"s": {"type": "string"}}}, "beside `$ref`"),
    "two families": ({"minLength": 2, "minimum": 3}, "no `type`"),
    "overlap": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "one value may follow together"),
    "all of two": ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, "allOf"),
    "pattern and length": ({"type": "string", "pattern": "^a*$", "maxLength": 3}, "minLength/maxLength"),
    "pattern with a quote": ({"type": "string", "pattern": '^a"$'}, "quotes"),
    "pattern with a backslash": ({"type": "string", "pattern": r"^a\\$"}, "backslashes"),
    "pattern looking ahead": ({"type": "string", "pattern": "^(?!a).*$"}, "Lookahead"),
    "no reference": ({"$ref": "#/$defs/b", "$defs": {"a/b": {"$ref": "#/$defs/a~1b"}, "b": {"$ref": "#/$defs/a~1b"}}}, "a~1b"),
    "endless reference": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "without end",
    ),
    "endless property": ({**OBJECT_SCHEMA, "properties": {"a": {"$ref": "#/properties/a"}}}, "without end"),
    "no value": ({"enum": []}, "must not be empty"),
    "zero byte": ({"enum": ["a\0b"]}, "U+0000"),
    "too long": ({"enum": ["x" * (1 << 20)]}, "expected at most"),
    "other names": ({"type": "object", "properties": {"a": {}}, "patternProperties": {"b": {}}}, "beside `properties`"),
}


@pytest.mark.parametrize("name", REFUSED_SCHEMAS)
def test_schemas_that_cannot_be_enforced_are_refused(structured: StructuredOutput, name: str) -> None:
    schema, reason = REFUSED_SCHEMAS[name]
    with pytest.raises(RequestError, match=re.escape(reason)) as caught:
        structured.constraint(schema_request(schema), enforce_tools=False)
    assert re.match(r"response_format[^ ]*: got .+expected .+: .+\. \w+", str(caught.value), re.DOTALL)


def test_deep_schemas(structured: StructuredOutput) -> None:
    constrained(structured, schema_request(nested(60)))
    with pytest.raises(RequestError, match="nested too deeply"):
        checked_schema(nested(5000), "here")


@pytest.mark.parametrize(
    "pattern",
    ["(?=a)b", r"(a)\1", r"\bfoo", "((((", "a{5,2}", "[z-a]", "a\\", "a\0b", "((((a{0,1000}){0,1000}){0,1000}){0,1000})"],
)
def test_expressions_that_cannot_be_followed_are_refused(structured: StructuredOutput, pattern: str) -> None:
    with pytest.raises(RequestError, match="response_format: got .+; expected .+: .+"):
        structured.constraint(regex_request(pattern), enforce_tools=False)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "object", "properties": {"a b": {}}}, "the name 'a b'"),
        ({"type": "object", "properties": {"a": {"enum": [f"<{DSML}x"]}}}, "a value with"),
        ({"type": "object", "patternProperties": {"^.$": {}}}, "`patternProperties`"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "`not`"),
    ],
)
def test_tools_that_cannot_be_called_are_refused(structured: StructuredOutput, schema: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=rf"^tools.*{re.escape(reason)}"):
        structured.constraint(tool_request(schema), enforce_tools=True)


def test_an_ambiguous_expression_ends_the_reply_not_the_server(
    structured: StructuredOutput, replies: Replies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each `a` makes every further one dearer; without a limit the hundredth takes seconds."""
    monkeypatch.setattr(module, "MATCH_SECONDS", 0.05)
    constraint = constrained(structured, regex_request("(a*)*b"))
    letter = replies.texts.index(b"a")
    for _ in range(2000):
        if replies.allowed(constraint) == {replies.eos}:
            break
        constraint.accept(letter)
    assert constraint.failure is not None
    assert replies.allowed(constraint) == {replies.eos}


@pytest.mark.parametrize("step", ["fill", "accept"])
def test_every_step_is_timed(
    structured: StructuredOutput, replies: Replies, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    constraint = constrained(structured, regex_request("[ab]*"))
    monkeypatch.setattr(module, "MATCH_SECONDS", -1e-9)
    monkeypatch.setattr(module, "MATCH_SECONDS_PER_TOKEN", 0.0)
    if step == "fill":
        assert replies.allowed(constraint) == {replies.eos}
    else:
        constraint.accept(replies.texts.index(b"a"))
    assert constraint.failure is not None


@pytest.mark.parametrize("token_id", [0, 2])
def test_a_dead_end_ends_the_reply(token_id: int) -> None:
    """After `a` no token begins with `b`; and the token `c` is not allowed at all."""
    import xgrammar

    table = xgrammar.TokenizerInfo([b"a", b"", b"c"] + 29 * [b""], stop_token_ids=[1])
    grammar = xgrammar.GrammarCompiler(table, max_threads=1).compile_regex("ab")
    constraint = GrammarConstraint(xgrammar.GrammarMatcher(grammar), 32, [1], think_end_id=None)
    constraint.accept(token_id)
    bits = np.zeros(1, np.int32)
    assert constraint.fill(bits)
    assert bits.tolist() == [0b10]
    assert constraint.failure is not None


def test_grammars_are_compiled_once(structured: StructuredOutput, replies: Replies, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"type": "object", "properties": {"once": {"type": "integer"}}, "required": ["once"]}
    constrained(structured, schema_request(schema))
    with pytest.raises(RequestError):
        structured.constraint(regex_request("(?=once)"), enforce_tools=False)

    def fail(*_: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(module._Compiler, "compile", fail)
    first, second = (constrained(structured, schema_request(schema)) for _ in range(2))
    replies.accept(first, '{"once": 1}')
    assert not replies.can_end(second)
    with pytest.raises(RequestError):
        structured.constraint(regex_request("(?=once)"), enforce_tools=False)


def test_the_cache_keeps_what_was_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(name: str) -> module._Job:
        return module._Job("regex", name)

    cache = module._GrammarCache(3 * (module._ENTRY_BYTES + 10))
    for name in "abc":
        cache.put(job(name), module._Refusal(name))
    assert cache.get(job("a")) == module._Refusal("a")
    cache.put(job("d"), module._Refusal("d"))
    assert [cache.get(job(name)) is not None for name in "abcd"] == [True, False, True, True]
    cache.put(job("e"), module._Refusal(5000 * "e"))
    assert not any(cache.get(job(name)) for name in "abcde")
    monkeypatch.setattr(module, "REFUSAL_SECONDS", -1.0)
    cache.put(job("f"), module._Refusal("f"))
    assert cache.get(job("f")) is None


def test_threads_may_ask_together(structured: StructuredOutput, replies: Replies) -> None:
    constraints: list[GrammarConstraint] = []
    requests = [schema_request({"type": "object", "properties": {name: STRING}, "required": [name]}) for name in "xy"]

    def ask(index: int) -> None:
        constraints.append(constrained(structured, requests[index % 2]))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = [replies.text(replies.walk(constraint)) for constraint in constraints]
    assert sorted(name for text in texts for name in json.loads(text)) == [*"xxxxyyyy"]


def test_without_xgrammar(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing to start
    structured = StructuredOutput(tokenizer, tokenizer.vocab_size, (1,), None)
    for nothing_wanted in (request(), tool_request(OBJECT_SCHEMA, choice="none")):
        assert structured.constraint(nothing_wanted, enforce_tools=True) is None
    with pytest.raises(UnsupportedError, match=re.escape("pip install ascend-dsv4[serve]")):
        structured.constraint(regex_request("a"), enforce_tools=False)


def test_a_process_that_cannot_start(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(CapacityError, match="No such file"):
        StructuredOutput(tokenizer, tokenizer.vocab_size, (1,), None).constraint(regex_request("a"), enforce_tools=False)


@pytest.fixture
def without_control_tokens(tokenizer: Tokenizer, tmp_path: Path) -> Tokenizer:
    content = json.loads(tokenizer.path.read_bytes())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != DSML]
    content["model"]["vocab"].pop(DSML, None)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_tokenizers_without_the_control_tokens(structured: StructuredOutput, without_control_tokens: Tokenizer) -> None:
    other = StructuredOutput(without_control_tokens, 600, (1,), None)
    with pytest.raises(UnsupportedError, match=DSML):
        other.constraint(tool_request(OBJECT_SCHEMA), enforce_tools=True)
    other._compiled = structured._compiled  # type: ignore[method-assign]  # its own process would be slow to start
    with pytest.raises(UnsupportedError, match="</think>"):
        other.constraint(schema_request(OBJECT_SCHEMA, thinking=True), enforce_tools=False)


def test_endless_compiles_are_stopped(structured: StructuredOutput, replies: Replies, monkeypatch: pytest.MonkeyPatch) -> None:
    """Last, for the process has to start again, once after each of two ends."""
    constrained(structured, regex_request("warm"))
    assert structured._compiler is not None
    assert structured._compiler._stop is not None
    process = structured._compiler._stop.peek()[2][0]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    replies.accept(constrained(structured, regex_request("again")), "again")
    monkeypatch.setattr(module, "COMPILE_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(RequestError, match="takes more than 0.5 s to compile"):
        structured.constraint(regex_request(".?" * 1000), enforce_tools=False)
    assert time.monotonic() - start < 10
