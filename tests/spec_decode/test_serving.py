# SPDX-License-Identifier: Apache-2.0
"""Speculation through the command line and over HTTP: the same answers, and figures that tell what it did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ascend_dsv4.cli import main
from ascend_dsv4.demo import demo_model
from tests.server.in_process import InProcess, in_process

BODY = {
    "model": "demo", "prompt": [5, 6, 7, 8], "max_tokens": 24, "temperature": 0.8, "seed": 4, "ignore_eos": True,
    "logit_bias": {"40": 60, "41": 60}, "logprobs": 1, "return_token_ids": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_model(tmp_path_factory.mktemp("demo") / "model")


def answers(server: InProcess) -> list[Any]:
    """Whole; cut by a stop text that stands in the middle; streamed."""
    whole = server.post("/v1/completions", BODY).json()["choices"][0]
    text = whole["text"]
    stop = text[len(text) // 2 :][:2]
    cut = server.post("/v1/completions", {**BODY, "stop": [stop]}).json()
    stream = server.post("/v1/completions", {**BODY, "stream": True}).text
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    pieces = [piece["choices"][0] for piece in events]
    assert "".join(piece["text"] for piece in pieces) == text
    assert [token for piece in pieces for token in piece["token_ids"]] == whole["token_ids"]
    return [whole, cut["choices"], cut["usage"]]


def test_a_server_gives_the_same_answers(demo_folder: Path) -> None:
    with in_process(demo_folder) as server:
        expected = answers(server)
        assert server.get("/status").json()["speculation"] == {
            "method": "none", "num_speculative_tokens": 0, "drafts": 0, "draft_tokens": 0, "accepted_tokens": 0,
        }  # fmt: skip
    with in_process(demo_folder, engine={"speculative": "ngram", "num_speculative_tokens": 3}) as server:
        assert answers(server) == expected
        stats, status = server.engine.stats, server.get("/status").json()["speculation"]
        metrics = server.get("/metrics").text
    assert stats.num_accepted_tokens > 5
    assert status == {
        "method": "ngram", "num_speculative_tokens": 3, "drafts": stats.num_drafts, "draft_tokens": stats.num_draft_tokens,
        "accepted_tokens": stats.num_accepted_tokens,
    }  # fmt: skip
    found = {
        (sample.name.removeprefix("ascend_dsv4_spec_decode_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if "spec_decode" in sample.name
    }
    assert found == {
        ("num_drafts_total",): stats.num_drafts,
        ("num_draft_tokens_total",): stats.num_draft_tokens,
        ("num_accepted_tokens_total",): stats.num_accepted_tokens,
        **{("num_accepted_tokens_per_pos_total", str(i)): stats.num_accepted_at[i] for i in range(3)},
    }
    assert sum(stats.num_accepted_at) == stats.num_accepted_tokens


@pytest.mark.parametrize("method", ["ngram", "mtp"])
def test_the_command(demo_folder: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    ids = ",".join(["5,6,7,8"] * 5)
    shared = ["generate", "--model", str(demo_folder), "--token-ids", ids, "--max-tokens", "12", "--json", "--temperature", "0"]
    results = []
    for options in ([], ["--speculative", method, "--num-speculative-tokens", "2"]):
        assert main([*shared, *options]) == 0
        captured = capsys.readouterr()
        results.append(json.loads(captured.out))
    assert results[0]["outputs"] == results[1]["outputs"]
    assert results[0]["num_draft_tokens"] == 0 <= results[1]["num_accepted_tokens"] <= results[1]["num_draft_tokens"]
    assert results[1]["engine"]["speculative"] == method
    assert f"speculative decoding: {method}, 2 tokens ahead" in captured.err
