# SPDX-License-Identifier: Apache-2.0
"""Images through a live process and the SDKs: replies of the offline API, and what is refused, within bounded memory."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anthropic
import httpx
import jsonschema
import openai
import pytest
from PIL import Image

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.server.images import NUM_SLOTS
from tests.server.clients import MODEL, Traffic
from tests.server.conftest import LiveServer
from tests.server.image_models import BAD_FILES, BAD_URLS, IMAGE_ID, SPELLED, data_url, picture, saved, v41_chat_model
from tests.server.in_process import InProcess, RawClient, check_error, wait_until

BOS, USER, ASSISTANT, THINK_END = 0, 498, 499, 501
MAX_BYTES = 400_000
MEMORY_SLACK = 300 << 20
"""Bytes by which refusing files may raise the peak: one bomb unpacked would take gigabytes."""
RED, NOISE = picture(1), picture(2, 90, 120)


class Site(BaseHTTPRequestHandler):
    """A host of images that may be asked, and that redirects to hosts that may not."""

    def do_GET(self) -> None:
        if self.path == "/red.png":
            self.send_response(200)
            self.send_header("Content-Length", str(len(saved(RED))))
            self.end_headers()
            self.wfile.write(saved(RED))
        else:
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """On an address of loopback that the server may reach, unlike all others."""
    server = ThreadingHTTPServer(("127.0.0.2", 0), Site)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.2:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def checkpoint(golden_v41: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return v41_chat_model(golden_v41 / "fp8_fp4", tmp_path_factory.mktemp("v41") / MODEL)


@pytest.fixture(scope="module")
def live(checkpoint: Path, site: str) -> Iterator[LiveServer]:
    """Steps of 24 tokens cut images anywhere."""
    port = site.rpartition(":")[2]
    server = LiveServer(
        checkpoint, "--weights", "fp32", "--max-model-len", "512", "--max-num-seqs", "4", "--max-num-batched-tokens", "24",
        "--max-image-bytes", str(MAX_BYTES), "--max-images-per-prompt", "3", "--allow-remote-images",
        "--allowed-image-networks", "127.0.0.2/32", "--allowed-image-ports", f"80,443,{port}", "--image-timeout-s", "5",
    )  # fmt: skip
    yield server
    server.stop()


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> LLM:
    return LLM(checkpoint, weights="fp32", max_model_len=512, max_num_seqs=1, progress=False)


@pytest.fixture
def client(traffic: Traffic, live: LiveServer) -> openai.OpenAI:
    return traffic.openai(live.url)


Part = str | Image.Image
NO_CONTROL = dict.fromkeys((0, 1, 2, *range(498, 512)), -100.0)
"""Control tokens, which random weights like to draw, and which are no text."""
BIAS = {"temperature": 0, "logit_bias": {str(token): bias for token, bias in NO_CONTROL.items()}}
OPTIONS: dict[str, Any] = {
    "model": MODEL, "max_tokens": 6, "logprobs": True, "extra_body": {"thinking": {"type": "disabled"}, **BIAS},
}  # fmt: skip


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def chat_parts(parts: Sequence[Part]) -> list[Any]:
    return [{"type": "text", "text": p} if isinstance(p, str) else image_part(data_url(saved(p))) for p in parts]


def user(*parts: Part) -> dict[str, Any]:
    return {"role": "user", "content": chat_parts(parts)}


def spell(llm: LLM, parts: Sequence[Part]) -> list[int]:
    """Token ids of a message's parts: a blank line between two, text in one piece from image to image."""
    assert llm.tokenizer is not None
    ids: list[int] = []
    text = ""
    for number, part in enumerate(parts):
        text += "\n\n" if number else ""
        if isinstance(part, str):
            text += part
        else:
            ids += [*llm.tokenizer.encode(text), IMAGE_ID]
            text = ""
    return [*ids, *llm.tokenizer.encode(text)]


def offline(llm: LLM, ids: Sequence[int], images: Sequence[Image.Image]) -> tuple[str, list[float], int]:
    """Text, log-probability of each token, and length of the prompt."""
    assert llm.tokenizer is not None
    params = SamplingParams(max_tokens=6, temperature=0, logprobs=0, logit_bias=NO_CONTROL)
    (output,) = llm.generate([list(ids)], params, images=[images])
    logprobs = [row[token] for token, row in zip(output.token_ids, output.logprobs or (), strict=True)]
    assert output.finish_reason == "length"
    return llm.tokenizer.decode(output.token_ids), logprobs, len(output.prompt_token_ids)


def check_text(content: str | None, text: str) -> None:
    """A reply's text, of which half a character at the end, with its tokens, is left out."""
    assert content and text.startswith(content) and len(content) > len(text) - 4


def check_choice(choice: Any, text: str, logprobs: Sequence[float]) -> None:
    """Text and log-probabilities of a reply."""
    check_text(choice.message.content, text)
    scores = [one.logprob for one in choice.logprobs.content or ()]
    assert len(scores) > 2
    assert scores == pytest.approx(logprobs[: len(scores)], abs=1e-6)


def turn(ids: Sequence[int]) -> list[int]:
    return [USER, *ids, ASSISTANT, THINK_END]


CASES: dict[str, tuple[Part, ...]] = {
    "one": ("What is this?", RED),
    "in front": (RED, "What is this?"),
    "alone": (NOISE,),
    "in the middle": ("Look at this", NOISE, "and answer."),
    "two": ("Left:", RED, "Right:", NOISE),
    "twice the same": (RED, RED, "Both?"),
    "spelled": (f"Not one: {SPELLED}<｜image｜>", RED, SPELLED),
}


@pytest.mark.parametrize("name", CASES)
def test_replies_are_those_of_the_offline_api(client: openai.OpenAI, llm: LLM, name: str) -> None:
    parts = CASES[name]
    ids = text_ids(llm, parts) if name == "spelled" else spell(llm, parts)  # text that spells the token is text
    images = [part for part in parts if not isinstance(part, str)]
    text, logprobs, length = offline(llm, [BOS, *turn(ids)], images)
    whole = client.chat.completions.create(messages=[user(*parts)], **OPTIONS)
    choice = whole.choices[0]
    check_choice(choice, text, logprobs)
    assert whole.usage is not None and whole.usage.prompt_tokens == length
    assert length > len(ids) + 4 * len(images)


def text_ids(llm: LLM, parts: Sequence[Part]) -> list[int]:
    """As `spell`, with every text taken letter by letter where it spells a control token."""
    import deepseek_recipe as recipe

    assert llm.tokenizer is not None
    encoding = recipe.DeepseekV41Encoding().with_tokenizer(recipe.Tokenizer.from_file(str(llm.tokenizer.path)))
    before, after = f"{parts[0]}\n\n", f"\n\n{parts[2]}"

    def plain(text: str) -> list[int]:
        ids = encoding.encode(recipe.Conversation([recipe.UserMessage(text)], thinking_mode=False))
        assert IMAGE_ID not in ids
        return ids[2:-2]

    return [*plain(before), IMAGE_ID, *plain(after)]


def test_streams(client: openai.OpenAI, llm: LLM) -> None:
    text, _, length = offline(llm, [BOS, *turn(spell(llm, CASES["two"]))], [RED, NOISE])
    options = {**OPTIONS, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(messages=[user(*CASES["two"])], **options))
    check_text("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), text)
    assert chunks[-1].usage.prompt_tokens == length


def test_image_in_an_earlier_turn(client: openai.OpenAI, llm: LLM) -> None:
    assert llm.tokenizer is not None
    earlier = [*turn(spell(llm, ("What is this?", NOISE))), *llm.tokenizer.encode("Noise."), 1]
    text, logprobs, _ = offline(llm, [BOS, *earlier, *turn(llm.tokenizer.encode("Sure?"))], [NOISE])
    messages: list[Any] = [user("What is this?", NOISE), {"role": "assistant", "content": "Noise."}, user("Sure?")]
    choice = client.chat.completions.create(messages=messages, **OPTIONS).choices[0]
    check_choice(choice, text, logprobs)


def test_tool_results_come_in_the_order_of_the_calls(client: openai.OpenAI, llm: LLM) -> None:
    """So do their images: the second message's is the first of the prompt."""
    calls = [{"id": f"c{i}", "type": "function", "function": {"name": "see", "arguments": "{}"}} for i in (0, 1)]
    head: list[Any] = [user("x"), {"role": "assistant", "content": "", "tool_calls": calls}]
    results: list[Any] = [
        {"role": "tool", "tool_call_id": f"c{i}", "content": chat_parts([f"seen {i}", image])}
        for i, image in enumerate([RED, NOISE])
    ]

    def scores(messages: list[Any]) -> list[float]:
        choice = client.chat.completions.create(messages=messages, **{**OPTIONS, "max_tokens": 2}).choices[0]
        assert choice.logprobs is not None
        return [one.logprob for one in choice.logprobs.content or ()]

    assert scores([*head, *results]) == scores([*head, *results[::-1]])
    exchanged = [{**one, "tool_call_id": f"c{1 - i}"} for i, one in enumerate(results)]
    assert scores([*head, *results]) != scores([*head, *exchanged])


def test_several_choices_and_remote_images(client: openai.OpenAI, llm: LLM, site: str) -> None:
    text, _, length = offline(llm, [BOS, *turn(spell(llm, CASES["one"]))], [RED])
    content: list[Any] = [{"type": "text", "text": "What is this?"}, image_part(f"{site}/red.png")]
    whole = client.chat.completions.create(messages=[{"role": "user", "content": content}], n=2, **OPTIONS)
    for choice in whole.choices:
        check_text(choice.message.content, text)
    assert whole.usage is not None and whole.usage.prompt_tokens == length


def test_responses(client: openai.OpenAI, llm: LLM) -> None:
    text, _, length = offline(llm, [BOS, *turn(spell(llm, CASES["one"]))], [RED])
    content: list[Any] = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": data_url(saved(RED)), "detail": "auto"},
    ]
    response = client.responses.create(
        model=MODEL, input=[{"role": "user", "content": content}], max_output_tokens=6, reasoning={"effort": "none"},
        extra_body=BIAS,
    )  # fmt: skip
    check_text(response.output_text, text)
    assert response.usage is not None and response.usage.input_tokens == length


def test_messages(traffic: Traffic, live: LiveServer, llm: LLM, site: str) -> None:
    client = traffic.anthropic(live.url)
    text, _, length = offline(llm, [BOS, *turn(spell(llm, CASES["one"]))], [RED])
    inline = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(saved(RED)).decode()}
    sources: list[Any] = [inline, {"type": "url", "url": f"{site}/red.png"}]
    for source in sources:
        content: list[Any] = [{"type": "text", "text": "What is this?"}, {"type": "image", "source": source}]
        messages: list[Any] = [{"role": "user", "content": content}]
        whole = client.messages.create(
            model=MODEL, messages=messages, max_tokens=6, thinking={"type": "disabled"}, extra_body=BIAS
        )
        check_text("".join(block.text for block in whole.content if block.type == "text"), text)
        assert whole.usage.input_tokens == length
    counted = client.messages.count_tokens(model=MODEL, messages=messages, thinking={"type": "disabled"})
    assert counted.input_tokens == length
    with pytest.raises(anthropic.BadRequestError, match="a loopback address"):
        content[1]["source"]["url"] = "http://127.0.0.1/x.png"
        client.messages.create(model=MODEL, messages=messages, max_tokens=6)


def test_tokenize_and_completions(traffic: Traffic, live: LiveServer, llm: LLM) -> None:
    with httpx.Client(verify=False, timeout=60) as http:
        found = http.post(f"{live.url}/tokenize", json={
            "messages": [user(*CASES["one"])], "chat_template_kwargs": {"thinking": False},
        }).json()  # fmt: skip
    assert found["count"] == offline(llm, [BOS, *turn(spell(llm, CASES["one"]))], [RED])[2]
    prompts: tuple[Any, ...] = (f"a{SPELLED}", [5, IMAGE_ID, 6])
    for prompt in prompts:
        with pytest.raises(openai.BadRequestError, match=rf"image token {IMAGE_ID} at position 1"):
            traffic.openai(live.url).completions.create(model=MODEL, prompt=prompt, max_tokens=2)


def refused(client: openai.OpenAI, *urls: str) -> str:
    """The message about images that are not taken."""
    content: list[Any] = [{"type": "text", "text": "x"}, *map(image_part, urls)]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=[{"role": "user", "content": content}], **OPTIONS)
    message: str = caught.value.body["message"]  # type: ignore[index, call-overload]
    assert len(message) < 700
    return message


def peak_memory(live: LiveServer) -> int:
    """Bytes that the process has ever held at once."""
    status = Path(f"/proc/{live.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def test_bad_images(client: openai.OpenAI, live: LiveServer) -> None:
    assert len(BAD_FILES) + len(BAD_URLS) > 30
    client.chat.completions.create(messages=[user(RED)], **OPTIONS)
    before = peak_memory(live)
    for name, (make, words) in BAD_FILES.items():
        data = make()
        assert (len(data) > MAX_BYTES) == (name == "too many bytes"), name
        message = refused(client, data_url(data))
        assert words in message and message.startswith("messages[0], image 1 of 1: got"), (name, message)
    for name, (url, words) in BAD_URLS.items():
        assert words in refused(client, url), name
    assert refused(client, data_url(saved(RED)), data_url(b"x")).startswith("messages[0], image 2 of 2: got")
    assert peak_memory(live) - before < MEMORY_SLACK
    client.chat.completions.create(messages=[user(RED)], **OPTIONS)


def test_too_many(client: openai.OpenAI) -> None:
    assert "got 4, expected at most 3" in refused(client, *[data_url(saved(RED))] * 4)
    large = data_url(saved(Image.new("RGB", (3000, 3000))))
    room = {**OPTIONS, "max_tokens": 1}
    words: list[Any] = [{"type": "text", "text": "a " * 400}]
    with pytest.raises(openai.BadRequestError, match="up to image 2, but max_model_len=512"):
        content = [*words, image_part(large), image_part(large)]
        client.chat.completions.create(messages=[{"role": "user", "content": content}], **room)


def test_documents_are_still_refused(client: openai.OpenAI) -> None:
    content: list[Any] = [{"type": "file", "file": {"file_data": "data:application/pdf;base64,QUJD", "filename": "x.pdf"}}]
    with pytest.raises(openai.BadRequestError, match="this model reads text and images only"):
        client.chat.completions.create(messages=[{"role": "user", "content": content}], **OPTIONS)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("http://127.0.0.1/", "a loopback address"), ("http://127.1/", "a loopback address"),
        ("http://2130706433/", "a loopback address"), ("http://0x7f.0.0.1/", "a loopback address"),
        ("http://[::1]/", "a loopback address"), ("http://[::ffff:127.0.0.1]/", "a loopback address"),
        ("http://0.0.0.0/", "an address|a.* address"), ("http://169.254.169.254/latest/meta-data/", "a link-local address"),
        ("http://[fe80::1]/", "a link-local address"), ("http://10.0.0.1/", "a private address"),
        ("http://192.168.0.1/", "a private address"), ("http://100.64.0.1/", "a private address"),
        ("http://localhost/", "a loopback address"), ("http://user:pw@127.0.0.1/", "without user name"),
        ("http://127.0.0.2:22/", "expected port"),
    ],
)  # fmt: skip
def test_where_images_are_not_fetched_from(client: openai.OpenAI, site: str, target: str, words: str) -> None:
    assert re.search(words, refused(client, target))
    redirected = refused(client, f"{site}/to/{target}")
    assert re.search(words, redirected), redirected


def test_counters(client: openai.OpenAI, live: LiveServer) -> None:
    def counters() -> dict[str, float]:
        text = httpx.get(f"{live.url}/metrics", verify=False).text
        found = re.findall(r"^ascend_dsv4_(images_total|images_refused_total|image_encode_seconds_count) (\S+)$", text, re.M)
        return {name: float(value) for name, value in found}

    before = counters()
    client.chat.completions.create(messages=[user(RED, NOISE)], **OPTIONS)
    refused(client, data_url(b"x"))
    after = counters()
    grown = {name: after[name] - before[name] for name in after}
    assert grown == {"images_total": 2, "images_refused_total": 1, "image_encode_seconds_count": 2}


# In the test's process, where the resolver can be chosen and the tower be held.


@pytest.fixture
def inside(llm: LLM) -> Iterator[Callable[..., InProcess]]:
    """Starts a server with options; it ends with the test."""
    servers: list[InProcess] = []

    def start(**options: Any) -> InProcess:
        servers.append(InProcess(llm, options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def body(url: str, **fields: Any) -> dict[str, Any]:
    return {"model": "demo", "max_tokens": 2, "messages": [{"role": "user", "content": [image_part(url)]}], **fields}


def test_remote_images_are_off_by_default(inside: Callable[..., InProcess], site: str) -> None:
    answer = inside().post("/v1/chat/completions", body(f"{site}/red.png"))
    assert "this server does not fetch images" in check_error("/v1/chat/completions", answer.status_code, answer.json())


def test_openapi(inside: Callable[..., InProcess]) -> None:
    """The schemas of bodies take parts with images, and other parts no more than before."""
    schemas = inside().get("/openapi.json").json()

    def check(name: str, content: Any) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": schemas["components"]}
        jsonschema.Draft202012Validator(schema).validate(content)

    image = image_part(data_url(saved(RED)))
    message = {"role": "user", "content": [image, {"type": "text", "text": "x"}]}
    check("ChatBody", {"model": "demo", "messages": [message]})
    check("TokenizeBody", {"messages": [message]})
    source = {"type": "base64", "media_type": "image/png", "data": "QUJD"}
    message = {"role": "user", "content": [{"type": "image", "source": source}]}
    check("MessagesBody", {"model": "demo", "messages": [message], "max_tokens": 1})
    part = {"type": "input_image", "image_url": "https://a.example/x.png"}
    check("ResponsesBody", {"model": "demo", "input": [{"role": "user", "content": [part]}]})
    with pytest.raises(jsonschema.ValidationError):
        part = {"type": "image_url"}
        check("ChatBody", {"model": "demo", "messages": [{"role": "user", "content": [part]}]})


def test_names_of_private_addresses_and_other_hosts(inside: Callable[..., InProcess]) -> None:
    server = inside(allow_remote_images=True, allowed_image_hosts="img.example,metadata.example")
    addresses = {"img.example": ["93.184.215.14", "10.0.0.7"], "metadata.example": ["169.254.169.254"]}
    assert server.service.images is not None
    server.service.images.source = replace(server.service.images.source, resolver=lambda host, port: addresses[host])
    for url, words in (
        ("https://img.example/x.png", "a private address"),
        ("http://metadata.example/latest", "a link-local address"),
        ("https://other.example/x.png", "a host on this server's list"),
    ):
        answer = server.post("/v1/chat/completions", body(url))
        assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_clients_that_go_away_and_slow_hosts(inside: Callable[..., InProcess]) -> None:
    """What waits for slow hosts holds up nobody whose images are in the request, and goes when its client does."""
    server = inside(allow_remote_images=True, image_timeout_s=20, max_n=1)
    reader, asked, go_on = server.service.images, threading.Semaphore(0), threading.Event()
    assert reader is not None

    def resolve(host: str, port: int) -> Sequence[str]:
        asked.release()
        go_on.wait(20)
        return ["10.0.0.1"]

    reader.source = replace(reader.source, resolver=resolve)
    slow = body("http://slow.example/x.png")
    clients = [RawClient(server.address) for _ in range(NUM_SLOTS + 1)]
    try:
        for client in clients:
            client.post("/v1/chat/completions", slow)
        for _ in range(NUM_SLOTS):
            assert asked.acquire(timeout=20)
        assert server.post("/v1/chat/completions", body(data_url(saved(RED)))).status_code == 200
        assert not asked.acquire(timeout=0.1), "more were fetched at once than there are slots"
        for client in clients:
            client.socket.close()
        wait_until(lambda: reader.num_open == 0)
        assert server.is_idle
    finally:
        go_on.set()
        for client in clients:
            client.socket.close()
    num_steps = server.engine.stats.num_steps
    assert "a private address" in server.post("/v1/chat/completions", slow).text
    assert server.engine.stats.num_steps == num_steps


def test_a_client_that_goes_while_the_tower_runs(inside: Callable[..., InProcess], llm: LLM) -> None:
    server, running, go_on = inside(), threading.Event(), threading.Event()
    encoder, encode = llm.vision_encoder(), llm.vision_encoder().encode_patches
    count = 0

    def held(*args: Any) -> Any:
        nonlocal count
        count += 1
        running.set()
        go_on.wait(20)
        return encode(*args)

    encoder.encode_patches = held  # type: ignore[method-assign]
    try:
        with RawClient(server.address) as client:
            parts = [image_part(data_url(saved(picture(seed)))) for seed in (11, 12)]
            client.post("/v1/chat/completions", {**body(""), "messages": [{"role": "user", "content": parts}]})
            assert running.wait(20)
            # Neither the event loop nor the engine waits for the tower.
            assert server.post("/v1/completions", {"model": "demo", "prompt": [5, 6], "max_tokens": 2}).status_code == 200
        assert server.service.images is not None
        reader, num_steps = server.service.images, server.engine.stats.num_steps
        wait_until(lambda: reader.num_open == 0)
        go_on.set()
        assert server.post("/v1/completions", {"model": "demo", "prompt": [5], "max_tokens": 1}).status_code == 200
        assert count == 1, "the second image was encoded for nobody"
        assert server.engine.stats.num_steps == num_steps + 1
    finally:
        go_on.set()
        del encoder.encode_patches


def test_no_more_wait_than_may(inside: Callable[..., InProcess]) -> None:
    server = inside(retry_after_s=7)
    assert server.service.images is not None
    server.service.images.num_open, server.service.images.max_num_waiting = 9 + NUM_SLOTS, 9
    answer = server.post("/v1/chat/completions", body(data_url(saved(RED))))
    check_error("/v1/chat/completions", answer.status_code, answer.json())
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
