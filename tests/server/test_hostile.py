# SPDX-License-Identifier: Apache-2.0
"""Requests that are wrong or absurd: each is refused soon, in its protocol's words, and leaves no trace."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from ascend_dsv4.server.bodies import Body
from ascend_dsv4.server.documentation import BODIES as BODY_CLASSES
from tests.server.conftest import LiveServer
from tests.server.in_process import BODIES, OTHER_BODIES, TALK, check_error

ALL_BODIES = {path: dict(body) for path, body in {**BODIES, **OTHER_BODIES}.items()}
PATHS = tuple(ALL_BODIES)
GENERATING = tuple(BODIES)
CHAT, COMPLETIONS, RESPONSES, MESSAGES = GENERATING
CLASSES: dict[str, type[Body]] = dict(zip((*GENERATING, *OTHER_BODIES), BODY_CLASSES, strict=True))
JSON = {"Content-Type": "application/json"}
SECONDS = 10
"""That a refusal may take on a busy machine; usual are milliseconds."""
Post = Callable[..., httpx.Response]


def tiny(path: str, **fields: Any) -> dict[str, Any]:
    """A body whose answer has one token, with these fields."""
    length = {RESPONSES: {"max_output_tokens": 1}}.get(path, {"max_tokens": 1}) if path in GENERATING else {}
    return {**ALL_BODIES[path], **length, **fields}


@pytest.fixture(scope="module")
def client(live: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=120) as client:
        yield client


@pytest.fixture(autouse=True)
def _unharmed(live: LiveServer, client: httpx.Client) -> Iterator[None]:
    """Whatever happened: the same process serves, does nothing, holds no block, and had nothing to complain about."""
    start = len(live.log)
    yield
    end = time.monotonic() + SECONDS
    while (status := client.get("/status").json())["requests"]["running"] and time.monotonic() < end:
        time.sleep(0.01)
    assert status["state"] == "serving"
    assert status["requests"]["running"] == status["requests"]["waiting"] == 0
    assert {cache["group"]: cache["used_blocks"] for cache in status["caches"]} == dict.fromkeys(
        ("window", "state", "cmp4", "cmp128"), 0
    )
    assert client.post(COMPLETIONS, json=tiny(COMPLETIONS)).status_code == 200
    assert live.process.poll() is None
    assert not [line for line in live.log[start:] if "Traceback" in line]


@pytest.fixture
def post(client: httpx.Client) -> Post:
    """Sends bytes or data, as a client that does not think."""

    def send(path: str, body: Any, *, seconds: float = SECONDS, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        start = time.monotonic()
        answer = client.post(path, content=content, headers={**JSON, **headers})
        assert time.monotonic() - start < seconds
        return answer

    return send


def refused(path: str, answer: httpx.Response, status: int = 400) -> str:
    """The message of a refusal."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/json"
    return check_error(path, status, answer.json())


def with_raw(path: str, name: str, raw: str) -> bytes:
    """A right body with one more member, whose value is this text."""
    return f'{json.dumps(ALL_BODIES[path])[:-1]}, "{name}": {raw}}}'.encode()


NO_JSON: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n",
    "cut": b'{"model": "demo", "messages": [{"role": "us',
    "two": b"{} {}",
    "python": b"{'model': 'demo'}",
    "comment": b'{"model": "demo" /* the only one */}',
    "comma": b'{"model": "demo",}',
    "array": b"[]",
    "null": b"null",
    "number": b"12",
    "text": b'"demo"',
    "deep arrays": b'{"model": ' + b"[" * 100_000,
    "deep objects": b'{"model":' * 100_000,
    "deep and whole": b'{"model": ' + b"[" * 65 + b"]" * 65 + b"}",
    "NaN": b'{"temperature": NaN}',
    "infinity": b'{"temperature": -Infinity}',
    "long number": b'{"max_tokens": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "overlong UTF-8": b'{"model": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"model": "\xed\xa0\x80"}',
    "UTF-16": '{"model": "demo"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"model": "demo"}',
    "lone surrogate": b'{"model": "\\ud800"}',
    "swapped surrogates": b'{"model": "\\udc00\\ud800"}',
    "lone surrogate in a key": b'{"\\uDFFF": 1}',
    "repeated key": b'{"model": "demo", "model": "demo"}',
    "repeated key inside": b'{"model": "demo", "messages": [{"role": "user", "role": "user"}]}',
    "raw control character": b'{"model": "de\x00mo"}',
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "form": b"model=demo&prompt=x",
}


@pytest.mark.parametrize("name", NO_JSON)
def test_what_is_no_json(post: Post, name: str) -> None:
    for path in PATHS:
        assert len(refused(path, post(path, NO_JSON[name]))) < 500


@pytest.mark.parametrize("path", PATHS)
def test_numbers_beyond_all_bounds(post: Post, path: str) -> None:
    """Wherever the body has a number."""
    for name in CLASSES[path].model_fields:
        for raw in ("1e999", "-1e999", str(1 << 64), str(-(1 << 64)), str(10**4000), "1" + "0" * 400 + ".5"):
            refused(path, post(path, with_raw(path, name, raw)))


VALUES: tuple[Any, ...] = (
    True, 0, -1, 1.5, 1 << 40, "", "x", "\0", "0", [], [None], [1], ["x"], [[]], [{}], {}, {"type": None}, {"type": "x"},
    {"x": {"y": [1]}}, {"type": []}, {"effort": {}}, {"format": {}}, {"name": 1},
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_every_field_with_every_type(post: Post, path: str) -> None:
    """A value is either right or refused; that a type is wrong is said of the field."""
    num_refused = num_sent = 0
    for name in CLASSES[path].model_fields:
        for value in VALUES:
            answer = post(path, {**tiny(path), name: value, "stream": value if name == "stream" else None} if path in GENERATING
                          else {**tiny(path), name: value})  # fmt: skip
            num_sent += 1
            if answer.status_code != 200:
                num_refused += 1
                assert answer.status_code in (400, 404), (name, value, answer.text)
                check_error(path, answer.status_code, answer.json())
    assert num_refused > 0.6 * num_sent


@pytest.mark.parametrize("path", PATHS)
def test_every_element_with_every_type(post: Post, path: str) -> None:
    """The same, inside the fields that hold lists or objects."""
    lists = {"messages", "input", "prompt", "tools", "tokens", "stop", "stop_token_ids", "stop_sequences", "system", "include"}
    for name in sorted(lists & set(CLASSES[path].model_fields)):
        for value in (None, *VALUES):
            body = {**tiny(path), name: [value]}
            if name == "messages" and path == "/tokenize":
                body.pop("prompt")
            answer = post(path, body)
            if answer.status_code != 200:
                refused(path, answer)


@pytest.mark.parametrize("path", PATHS)
def test_unknown_fields(post: Post, path: str) -> None:
    """None is lost silently, and what was meant is suggested."""
    for name in CLASSES[path].model_fields:
        answer = post(path, {**tiny(path), f"{name}x": 1})
        assert f"Did you mean {name}?" in refused(path, answer)
        if not path.startswith("/v1/messages"):
            assert answer.json()["error"]["param"] == f"{name}x"
    for name in ("suffix", "functions", "previous_response_id", "container", "__class__", "model_config", "self", ""):
        refused(path, post(path, {**tiny(path), name: None}))
    message = refused(path, post(path, {**tiny(path), "q" * 100_000: 1}))
    assert len(message) < 300 and "/docs" in message
    refused(path, post(path, {**tiny(path), **{f"unknown{i}": i for i in range(100_000)}}))


@pytest.mark.parametrize("path", PATHS)
def test_unknown_models(post: Post, path: str) -> None:
    for name in ("gpt-5", "", "Demo", "demo ", "../demo", "d\0", "x" * 100_000, "{}", "<script>"):
        message = refused(path, post(path, {**tiny(path), "model": name}), 404)
        assert "'demo'" in message and len(message) < 400


OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "max_tokens": (-1, 1 << 31, 5000), "max_completion_tokens": (-1, 0, 5000), "max_output_tokens": (-1, 0, 5000),
    "temperature": (-0.1, 2.1), "top_p": (0, -1, 1.1), "top_k": (-2, 1 << 31), "min_p": (-0.1, 1.1), "n": (0, -1, 17, 129),
    "repetition_penalty": (0, -1, 101, 5e-324), "presence_penalty": (-2.1, 2.1), "frequency_penalty": (-2.1, 2.1),
    "min_tokens": (-1,), "seed": (-1, 1 << 63), "top_logprobs": (-1, 21), "logprobs": (-1, 21),
    "stop": ([""], ["x"] * 17, "", "x" * 1025), "stop_sequences": ([""], ["x"] * 17, ["x" * 1025]),
    "stop_token_ids": ([-1], [1 << 31], [1024], [1] * 129),
    "logit_bias": ({"-1": 1}, {"1024": 1}, {"x": 1}, {"٣": 1}, {"1e3": 1}, {"1": 101}, {"1": -101}, {"1": "1"},
                   {"9" * 400: 1}, {str(i): 1 for i in range(1025)}),
    "thinking": ({"type": "perhaps"},), "reasoning_effort": ("much", ""), "background": (True,),
    "response_format": ({"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": 5}}),
    "tool_choice": ({"type": "function", "function": {"name": "missing"}}, {"type": "tool", "name": "missing"}),
    "stream_options": ({"include_usage": True}, {"include_everything": True}),
    "chat_template_kwargs": ({"enable_thoughts": True},),
}  # fmt: skip


@pytest.mark.parametrize("path", GENERATING)
def test_values_out_of_range(post: Post, path: str) -> None:
    num_tried = 0
    for name, values in OUT_OF_RANGE.items():
        if name not in CLASSES[path].model_fields:
            continue
        for value in values:
            if (path, name, value) == (RESPONSES, "stream_options", {"include_usage": True}):
                continue
            answer = post(path, {**tiny(path), name: value})
            assert answer.status_code == 400, (name, value, answer.text)
            refused(path, answer)
            num_tried += 1
    assert num_tried > 25


def test_no_tokens_are_asked_for(post: Post) -> None:
    """Nothing is generated then, so nothing can be answered, except scores of a prompt."""
    refused(CHAT, post(CHAT, {**tiny(CHAT), "max_tokens": 0}))
    refused(MESSAGES, post(MESSAGES, {**tiny(MESSAGES), "max_tokens": 0}))
    answer = post(COMPLETIONS, {**tiny(COMPLETIONS), "max_tokens": 0, "echo": True, "logprobs": 1})
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize(
    "prompt",
    ["", [], [""], [[]], ["a", ""], [[1], []], [-1], [1024], [1 << 31], [1 << 64], [1.5], ["a", 1], [[1], "a"], [True], [None],
     [[[1]]], {"text": "a"}, ["a"] * 257, [[1]] * 257, [5] * 4097, [[5] * 5000], "a " * 5000],
    ids=lambda prompt: repr(prompt)[:30],
)  # fmt: skip
def test_bad_prompts(post: Post, prompt: Any) -> None:
    refused(COMPLETIONS, post(COMPLETIONS, {**tiny(COMPLETIONS), "prompt": prompt}))


def test_a_prompt_that_leaves_no_room(post: Post) -> None:
    prompt = [5] * 4096
    refused(COMPLETIONS, post(COMPLETIONS, {**tiny(COMPLETIONS), "prompt": prompt}))
    refused(COMPLETIONS, post(COMPLETIONS, {**tiny(COMPLETIONS), "prompt": prompt[1:], "max_tokens": 2}))
    for path in (CHAT, MESSAGES, RESPONSES):
        body = {**tiny(path), "max_output_tokens" if path == RESPONSES else "max_tokens": 4093}
        assert "max_model_len=4096" in refused(path, post(path, body))


def test_bad_token_ids(post: Post) -> None:
    for tokens in ([-1], [1024], [1 << 31], [1 << 64], [1.5], ["5"], [None], [[5]], "5", 5, {"5": 5}, [True], [5, 1 << 20]):
        refused("/detokenize", post("/detokenize", {"tokens": tokens}))
    assert post("/detokenize", {"tokens": [1023, 0, 1]}).status_code == 200


def test_tokenize_takes_one_of_two(post: Post) -> None:
    both, none = {"prompt": "a", "messages": TALK}, {"prompt": None, "messages": None}
    bodies: tuple[dict[str, Any], ...] = ({}, both, {"messages": []}, none)
    for body in bodies:
        refused("/tokenize", post("/tokenize", body))


# --- conversations --------------------------------------------------------------------------------------------------

CONTROLS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "</think>", "｜DSML｜")


@pytest.mark.parametrize("control", CONTROLS)
def test_control_tokens_that_are_spelled_stay_text(post: Post, control: str) -> None:
    """Nobody can end a turn, or speak as somebody else, by writing the name of a token."""
    (token_id,) = post("/tokenize", {"prompt": control}).json()["tokens"]

    def prompt_ids(text: str) -> list[int]:
        ids: list[int] = post("/tokenize", {"messages": [{"role": "user", "content": text}]}).json()["tokens"]
        return ids

    plain, spelled = prompt_ids("a"), prompt_ids(f"a{control}")
    assert spelled.count(token_id) == plain.count(token_id)
    assert len(spelled) > len(plain) + 1
    for path in GENERATING:
        assert post(path, {**tiny(path), **({"prompt": control} if path == COMPLETIONS else {})}).status_code == 200


IMAGE_URL = {"url": "data:image/png;base64,iVBORw0KGgo="}
SOURCE = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
MEDIA: tuple[tuple[str, str, Any], ...] = (
    (CHAT, "messages", [{"role": "user", "content": [{"type": "image_url", "image_url": IMAGE_URL}]}]),
    (CHAT, "messages", [{"role": "user", "content": [{"type": "text", "text": ""}, {"type": "file", "file": {}}]}]),
    (CHAT, "messages", [*TALK, {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]),
    (CHAT, "messages", [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}]),
    (MESSAGES, "messages", [{"role": "user", "content": [{"type": "image", "source": SOURCE}]}]),
    (MESSAGES, "messages", [{"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": "file:///x"}}]}]),
    (MESSAGES, "messages", [
        *TALK,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image", "source": SOURCE}]}
        ]},
    ]),
    (RESPONSES, "input", [{"role": "user", "content": [{"type": "input_image", "image_url": IMAGE_URL["url"]}]}]),
    (RESPONSES, "input", [{"role": "user", "content": [{"type": "input_file", "file_data": "x"}]}]),
    (RESPONSES, "input", [
        {"role": "user", "content": "a"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": IMAGE_URL["url"]}]},
    ]),
)  # fmt: skip


@pytest.mark.parametrize("path, name, value", MEDIA)
def test_media(post: Post, path: str, name: str, value: Any) -> None:
    """They are not dropped behind the client's back."""
    message = refused(path, post(path, {**tiny(path), name: value}))
    assert "text" in message
    also = {CHAT: "/tokenize", MESSAGES: "/v1/messages/count_tokens"}.get(path)
    if also is not None:
        refused(also, post(also, {"model": "demo", name: value}))


def test_null_characters(post: Post) -> None:
    text = "a\0b"
    assert post(COMPLETIONS, {**tiny(COMPLETIONS), "prompt": text, "stop": ["\0x"]}).status_code == 200
    assert post(CHAT, {**tiny(CHAT), "messages": [{"role": "user", "content": text}]}).status_code == 200
    tokens = post("/tokenize", {"prompt": text}).json()["tokens"]
    assert post("/detokenize", {"tokens": tokens}).json() == {"prompt": text}
    tool = {"type": "function", "function": {"name": "f\0", "parameters": {}}}
    refused(CHAT, post(CHAT, {**tiny(CHAT), "tools": [tool]}))


def chat_format(**schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


ABSURD: dict[str, dict[str, Any]] = {
    "unknown type": chat_format(type="text"),
    "type of a number": chat_format(type=5),
    "loop": {**chat_format(**{"$ref": "#"})},
    "reference to nothing": chat_format(**{"$ref": "#/$defs/missing"}),
    "reference to elsewhere": chat_format(**{"$ref": "http://127.0.0.1:1/schema.json"}),
    "no value": chat_format(enum=[]),
    "nothing is right": chat_format(**{"not": {}}),
    "contradiction": chat_format(type="string", minLength=5, maxLength=4),
    "long text": chat_format(type="string", minLength=1_000_000_000),
    "many elements": chat_format(type="array", items={"type": "integer"}, minItems=1_000_000_000),
    "bad pattern": chat_format(type="string", pattern="((("),
    "bad regex": {"response_format": {"type": "regex", "regex": "[a-"}},
    "regex with null": {"response_format": {"type": "regex", "regex": "a\0"}},
    "back reference": {"response_format": {"type": "regex", "regex": r"(a)\1"}},
    "look ahead": {"response_format": {"type": "regex", "regex": r"(?=a)b"}},
    "many repetitions": {"response_format": {"type": "regex", "regex": "((a{1000}){1000}){1000}"}},
    "long regex": {"response_format": {"type": "regex", "regex": "a" * 1_000_000}},
    "long schema": chat_format(enum=["x" * 100] * 10_000),
    "deeper than JSON may be": chat_format(**nested(40)),
    "unspeakable property": {"tools": [{"type": "function", "function": {
        "name": "f", "strict": True, "parameters": {"type": "object", "properties": {'"': {"type": "string"}}}}}]},
    "tool without a schema": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 7}}}]},
    "tool without a name": {"tools": [{"type": "function", "function": {}}]},
    "tool of no kind": {"tools": [{"type": "teleport"}]},
    "same tool twice": {"tools": [{"type": "function", "function": {"name": "f"}}] * 2, "tool_choice": "required"},
}  # fmt: skip
MAY_BE_SERVED = {"long text", "many elements", "many repetitions"}
"""A reply that follows them only begins, and ends at max_tokens."""


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_schemas(post: Post, name: str) -> None:
    answer = post(CHAT, {**tiny(CHAT), **ABSURD[name]}, seconds=60)  # the first one waits for a process to start
    if answer.status_code != 200 or name not in MAY_BE_SERVED:
        refused(CHAT, answer)


@pytest.mark.slow
@pytest.mark.parametrize("regex", [".?" * 100, "(a*)*b", "(.*){50}x", "(a|b|ab)*" * 40], ids=lambda regex: regex[:9])
def test_expressions_that_take_for_ever(post: Post, client: httpx.Client, regex: str) -> None:
    """They are given up; a second request is told at once."""
    body = {**tiny(CHAT), "response_format": {"type": "regex", "regex": regex}, "max_tokens": 8}
    for seconds in (60, SECONDS):
        answer = post(CHAT, body, seconds=seconds)
        assert answer.status_code in (200, 400)
        if answer.status_code == 400:
            refused(CHAT, answer)


# --- size -----------------------------------------------------------------------------------------------------------


class Probe:
    """Asks for the version all the time, and notes how long that takes at most."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._started = 0.0
        self.longest = 0.0
        self.seconds = 0.0
        """How long it all took."""

    @property
    def has_stalled(self) -> bool:
        """Whether somebody waited for much of the time that the huge request took; a busy machine makes both longer."""
        return self.longest > max(STALL_SECONDS, self.seconds / 3)

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=120) as client:
            while not self._has_ended.wait(0.02):
                start = time.monotonic()
                assert client.get("/version").status_code == 200
                self.longest = max(self.longest, time.monotonic() - start)

    def __enter__(self) -> Probe:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._started
        self._has_ended.set()
        self._thread.join()


STALL_SECONDS = 3
"""That others may have to wait for while a huge request is looked at; two cores shared with other work need some."""


def huge(path: str, text: str) -> dict[str, Any]:
    field: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
    if path in (COMPLETIONS, "/tokenize"):
        field = {"prompt": text}
    return {**tiny(path), **({"input": text} if path == RESPONSES else field)}


@pytest.mark.parametrize("path", [*GENERATING, "/v1/messages/count_tokens"])
def test_a_prompt_of_ten_megabytes(live: LiveServer, post: Post, path: str) -> None:
    """It is refused before it is cut into millions of tokens, and keeps nobody waiting."""
    with Probe(live.url) as probe:
        assert "max_model_len" in refused(path, post(path, huge(path, "a bc " * 2_000_000), seconds=SECONDS))
    assert not probe.has_stalled


@pytest.mark.slow
def test_tokens_of_ten_megabytes(live: LiveServer, post: Post) -> None:
    """They take their time, but not that of others."""
    with Probe(live.url) as probe:
        answer = post("/tokenize", huge("/tokenize", "a bc " * 2_000_000), seconds=90)
        assert answer.status_code == 200 and answer.json()["count"] > 2_000_000
    assert not probe.has_stalled


@pytest.mark.parametrize("path, name, element", [
    (CHAT, "messages", {"role": "user", "content": "a"}), (CHAT, "messages", 5), (CHAT, "messages", {"role": "x"}),
    (MESSAGES, "messages", {"role": "user", "content": "a"}), (MESSAGES, "messages", {"role": "user", "content": [5] * 9}),
    (RESPONSES, "input", {"role": "user", "content": "a"}), (RESPONSES, "input", {"type": "nothing"}),
    (COMPLETIONS, "prompt", "a"), (COMPLETIONS, "prompt", "5"), (COMPLETIONS, "prompt", [5]), (COMPLETIONS, "prompt", 5),
    (COMPLETIONS, "prompt", -5), (CHAT, "stop", "a"), (CHAT, "stop", 5), (CHAT, "stop_token_ids", 5),
    (MESSAGES, "stop_sequences", "a"), (RESPONSES, "include", "a"), (RESPONSES, "include", 5),
])  # fmt: skip
def test_a_hundred_thousand_elements(live: LiveServer, post: Post, path: str, name: str, element: Any) -> None:
    with Probe(live.url) as probe:
        refused(path, post(path, {**tiny(path), name: [element] * 100_000}))
    assert not probe.has_stalled


@pytest.mark.parametrize("path", [CHAT, pytest.param(MESSAGES, marks=pytest.mark.slow), RESPONSES])
def test_a_hundred_thousand_tools(live: LiveServer, post: Post, path: str) -> None:
    def tool(index: int) -> dict[str, Any]:
        function = {"name": f"f{index}", "parameters": {}, "description": "-"}
        if path == MESSAGES:
            return {"name": f"f{index}", "input_schema": {"type": "object"}}
        return {"type": "function", "function": function} if path == CHAT else {"type": "function", **function}

    with Probe(live.url) as probe:
        refused(path, post(path, {**tiny(path), "tools": [tool(i) for i in range(100_000)]}, seconds=30))
    assert not probe.has_stalled


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_a_body_beyond_the_limit(client: httpx.Client, is_chunked: bool) -> None:
    """It is refused once too much has come, not once all has; the connection goes on."""
    block = b" " * (1 << 20)
    content = (block for _ in range(20)) if is_chunked else block * 20
    assert "max_body_bytes" in refused(MESSAGES, client.post(MESSAGES, content=content, headers=JSON), 413)


NOT_JSON = (
    "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "application/jsonx",
    "text/json", "application/json-seq", "application/+", "\u00e4",
)  # fmt: skip


@pytest.mark.parametrize("kind", NOT_JSON)
def test_bodies_declared_as_something_else(client: httpx.Client, kind: str) -> None:
    for path in PATHS:
        answer = client.post(path, content=json.dumps(tiny(path)), headers=[(b"Content-Type", kind.encode("latin-1"))])
        assert "application/json" in refused(path, answer, 415)


def test_bodies_declared_as_json(client: httpx.Client) -> None:
    for kind in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json", "application/json;q=1"):
        answer = client.post(COMPLETIONS, content=json.dumps(tiny(COMPLETIONS)), headers={"Content-Type": kind})
        assert answer.status_code == 200
