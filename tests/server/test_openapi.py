# SPDX-License-Identifier: Apache-2.0
"""/openapi.json says what the server does: schemathesis makes requests of it, right and wrong ones, and judges the answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from ascend_dsv4.server import bodies
from ascend_dsv4.server.documentation import BODIES
from ascend_dsv4.server.shapes import SHAPES
from tests.server.conftest import LiveServer
from tests.server.in_process import in_process

MIN_CASES = 2000
OPERATIONS = 12
SMALL = ("--max-num-seqs", "32", "--max-model-len", "1024", "--max-total-tokens", "4096", "--default-max-tokens", "4")
"""Replies are short, so that a request that is right costs little."""
Document = dict[str, Any]


@pytest.fixture(scope="module")
def small(start_server: Callable[..., LiveServer]) -> LiveServer:
    return start_server(*SMALL)


def fuzz(server: LiveServer, folder: Path, *options: str) -> Document:
    """Run schemathesis; returns its report. All of its checks apply but one: it would have the server accept whatever follows
    the schema, and there are rules that JSON Schema cannot say (a prompt and max_tokens fit max_model_len, 1.0 is no integer,
    a tool call is followed by its result)."""
    report = folder / "report.json"
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--seed", "1",
        "--generation-deterministic", "--exclude-checks", "positive_data_acceptance", "--request-timeout", "60",
        "--warnings", "off", "--no-color", "--report", "json", "--report-json-path", str(report), *options,
    ]  # fmt: skip
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    content: Document = json.loads(report.read_text(encoding="utf-8"))
    assert content["operations"]["tested"] == OPERATIONS
    return content


def assert_serves(server: LiveServer) -> None:
    """The process that was started still does what it is there for, and nothing else."""
    assert server.process.poll() is None
    status = httpx.get(f"{server.url}/status").json()
    assert status["requests"]["running"] == status["requests"]["waiting"] == 0
    assert [cache["used_blocks"] for cache in status["caches"]] == [0] * len(status["caches"])
    answer = httpx.post(f"{server.url}/v1/completions", json={"model": "demo", "prompt": "a", "max_tokens": 1}, timeout=60)
    assert answer.status_code == 200


def test_a_few_requests_of_every_operation(small: LiveServer, tmp_path: Path) -> None:
    report = fuzz(small, tmp_path, "--phases", "fuzzing", "--max-examples", "8")
    assert report["test_cases"]["generated"] >= 4 * OPERATIONS
    assert_serves(small)


@pytest.mark.slow
def test_thousands_of_requests(small: LiveServer, tmp_path: Path) -> None:
    """Every keyword of every schema kept and broken, then requests at random."""
    report = fuzz(small, tmp_path, "--phases", "coverage,fuzzing", "--max-examples", "40")
    assert report["test_cases"]["generated"] >= MIN_CASES
    # Otherwise nothing but refusals would have been looked at.
    for operation, phases in report["valid_rates"].items():
        assert sum(phase["accepted"] for phase in phases.values()) > 0, operation
    assert_serves(small)


@pytest.fixture(scope="module")
def document(live: LiveServer) -> Document:
    content: Document = httpx.get(f"{live.url}/openapi.json").json()
    return content


def test_every_reference_leads_somewhere(document: Document) -> None:
    found = 0

    def walk(value: Any) -> None:
        nonlocal found
        if isinstance(value, dict):
            if isinstance(reference := value.get("$ref"), str):
                assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"], reference
                found += 1
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(document)
    assert found > 50


def test_bodies_list_all_fields_and_no_others(document: Document) -> None:
    schemas = document["components"]["schemas"]
    for body in BODIES:
        assert set(schemas[body.__name__]["properties"]) == {*body.model_fields, *body.IGNORED}
        assert schemas[body.__name__]["additionalProperties"] is False
    for name, shapes in SHAPES.items():
        assert set(shapes) <= set(getattr(bodies, name).model_fields), name


def test_errors_are_described(document: Document) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            statuses = set(operation["responses"])
            assert {"200", "500", "503"} <= statuses and "422" not in statuses
            if "requestBody" in operation:
                assert {"400", "404", "408", "413", "415"} <= statuses, path
            if "text/event-stream" in operation["responses"]["200"]["content"]:
                assert {"429", "504"} <= statuses, path


def test_answers_follow_their_description(document: Document, live: LiveServer) -> None:
    """With everything on that adds to an answer."""
    talk = [{"role": "user", "content": "hi"}]
    asked: list[tuple[str, Any]] = [
        ("/v1/chat/completions", {"messages": talk, "max_tokens": 3, "n": 2, "logprobs": True, "top_logprobs": 2}),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2, "logprobs": 2, "echo": True, "return_token_ids": True}),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 3}),
        ("/v1/messages", {"messages": talk, "max_tokens": 3}),
        ("/v1/messages/count_tokens", {"messages": talk}),
        ("/tokenize", {"prompt": "hi", "return_token_strs": True}),
        ("/detokenize", {"tokens": [5, 6]}),
        ("/v1/models", None), ("/health", None), ("/version", None), ("/status", None),
    ]  # fmt: skip
    for path, body in asked:
        if body is None:
            answer, operation = httpx.get(live.url + path), document["paths"][path]["get"]
        else:
            answer = httpx.post(live.url + path, json={"model": "demo", **body}, timeout=60)
            operation = document["paths"][path]["post"]
        assert answer.status_code == 200, answer.text
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json(), {**schema, "components": document["components"]})


def test_keys_are_described_where_they_are_asked_for(demo_checkpoint: Path, document: Document, tmp_path: Path) -> None:
    assert "security" not in document and "401" not in document["paths"]["/v1/models"]["get"]["responses"]
    keys = tmp_path / "keys"
    keys.write_text("key-of-a-test\n", encoding="utf-8")
    with in_process(demo_checkpoint, api_keys_file=str(keys)) as server:
        described = server.get("/openapi.json").json()
        assert [set(one) for one in described["security"]] == [{"bearer"}, {"x-api-key"}]
        assert set(described["components"]["securitySchemes"]) == {"bearer", "x-api-key"}
        for path, operations in described["paths"].items():
            for method, operation in operations.items():
                answer = server.client.request(method, path, headers={"content-type": "application/json"}, content=b"{}")
                is_locked = operation.get("security") != []
                assert (answer.status_code == 401) == ("401" in operation["responses"]) == is_locked, path
