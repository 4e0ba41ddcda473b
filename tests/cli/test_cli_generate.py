# SPDX-License-Identifier: Apache-2.0
"""`generate`: completions against goldens and the library, graphs without weights, every way to get it wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ascend_dsv4 import LLM, EngineConfig, SamplingParams
from ascend_dsv4.config import ModelConfig
from ascend_dsv4.demo.checkpoint import CONFIG, write_checkpoint
from ascend_dsv4.graph import format_graph
from ascend_dsv4.llm import draft_graphs, model_graphs
from ascend_dsv4.tokenizer import Tokenizer
from tests.cli.conftest import Run

MODELS = Path(__file__).parents[2] / "configs" / "models"
SHORT = ("--max-model-len", 256, "--max-num-seqs", 2)


@pytest.fixture
def golden(golden_v4: Path) -> Path:
    return golden_v4 / "fp8_fp4"


@pytest.fixture
def greedy(golden_v4: Path) -> dict[str, np.ndarray]:
    data = load_file(golden_v4 / "logits.safetensors")
    return {name.removeprefix("len5."): tensor for name, tensor in data.items() if name.startswith("len5.")}


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """A copy of the golden checkpoint that may be changed."""
    copy = shutil.copytree(golden, tmp_path / "model", copy_function=shutil.copyfile)
    copy.chmod(0o755)
    return copy


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_greedy_tokens_are_those_of_the_goldens(run: Run, golden: Path, greedy: dict[str, np.ndarray]) -> None:
    ids = ",".join(map(str, greedy["input_ids"].tolist()))
    args = ("--token-ids", ids, "--temperature", 0, "--ignore-eos", "--max-tokens", 6, "--cache-rounding", "off")
    result = run("generate", "--model", golden, *args, *SHORT, "--logprobs", 2, "--json")
    assert result.code == 0
    report = json.loads(result.out)
    (output,) = report["outputs"]
    assert output["token_ids"] == greedy["greedy_ids"][:6].tolist()
    assert output["prompt_token_ids"] == greedy["input_ids"].tolist()
    assert output["finish_reason"] == "length"
    logits = greedy["greedy_logits"].astype(np.float64)
    expected = logits[np.arange(6), greedy["greedy_ids"][:6]] - np.log(np.exp(logits[:6]).sum(-1))
    drawn = [row[str(token)] for row, token in zip(output["logprobs"], output["token_ids"], strict=True)]
    assert np.allclose(drawn, expected, atol=1e-4)
    assert [len(row) for row in output["logprobs"]] == [2] * 6
    assert report["num_output_tokens"] == 6
    assert report["tokens_per_second"] == pytest.approx(6 / report["seconds"])
    assert report["engine"]["cache_rounding"] == "off"
    assert report["implementation"] == "reference"


def test_one_prompt_is_streamed_as_text(run: Run, golden: Path) -> None:
    params = SamplingParams(max_tokens=4, temperature=0.7)
    text = LLM(golden, max_model_len=256, max_num_seqs=2, seed=5).generate("Hello", params)[0].text
    common = ("generate", "--model", golden, *SHORT, "--max-tokens", 4, "--temperature", 0.7, "--seed", 5)
    result = run(*common, "--prompt", "Hello")
    assert (result.code, result.out) == (0, text + "\n" * (not text.endswith("\n")))
    assert "ops auto = reference" in result.err
    assert "loaded in" in result.err
    assert "4 tokens, ended by length" in result.err
    assert "tokens/s" in result.err
    file = golden.parent / "never-written"
    assert run(*common, "--prompt-file", file).code == 2
    assert run(*common, "--prompt-file", "-", stdin="Hello").out == result.out


def test_the_end_token_is_no_text(run: Run, folder: Path) -> None:
    args = ("generate", "--model", folder, *SHORT, "--max-tokens", 5, "--temperature", 0, "--token-ids", "5,6,7")
    ids = json.loads(run(*args, "--json").out)["outputs"][0]["token_ids"]
    edit_config(folder, eos_token_id=[ids[3], 1])
    result = run(*args)
    (output,) = json.loads(run(*args, "--json").out)["outputs"]
    assert output["token_ids"] == ids[: ids.index(ids[3]) + 1]
    assert output["finish_reason"] == "stop" and "ended by stop" in result.err
    assert result.out == output["text"] + "\n" * (not output["text"].endswith("\n"))
    assert result.out.rstrip("\n") == Tokenizer.from_folder(folder).decode(output["token_ids"][:-1]).rstrip("\n")


def test_several_prompts(run: Run, golden: Path, tmp_path: Path) -> None:
    args = ("generate", "--model", golden, *SHORT, "--max-tokens", 2, "--temperature", 0)
    both = json.loads(run(*args, "--prompt", "Hello", "World", "--json").out)["outputs"]
    result = run(*args, "--prompt", "Hello", "--prompt", "World", "--logprobs", 1)
    assert result.out.startswith(f"--- 1: Hello\n{both[0]['text']}")
    assert f"--- 2: World\n{both[1]['text']}" in result.out
    assert "2 prompts, 4 tokens" in result.err
    file = tmp_path / "prompt.txt"
    file.write_text("World", encoding="utf-8")
    assert run(*args, "--prompt-file", file).out.strip("\n") == both[1]["text"].strip("\n")


def test_without_a_tokenizer_ids_are_printed(run: Run, folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    args = ("generate", "--model", folder, *SHORT, "--max-tokens", 3, "--temperature", 0)
    ids = json.loads(run(*args, "--token-ids", "5,6,7", "--json").out)["outputs"][0]["token_ids"]
    assert run(*args, "--token-ids", "5,6,7", "--logprobs", 0).out == ",".join(map(str, ids)) + "\n"
    assert "no tokenizer.json" in run(*args, "--prompt", "x").err


@pytest.mark.parametrize("where", ["folder", "file", "name"])
def test_graphs_need_no_weights(where: str, run: Run, golden: Path, tmp_path: Path) -> None:
    model = {"folder": golden, "file": MODELS / "v4_flash.json", "name": "v4_flash"}[where]
    config = ModelConfig.from_file(golden if where == "folder" else MODELS / "v4_flash.json")
    engine = EngineConfig(dtype="bfloat16", max_model_len=512)
    drafts = draft_graphs(config, engine)
    assert [draft.name for draft in drafts] == ["mtp"]
    graphs = [*model_graphs(config, engine).all(), *drafts]
    args = ("generate", "--model", model, "--dtype", "bfloat16", "--max-model-len", 512)
    result = run(*args, "--dump-graph")
    assert (result.code, result.out) == (0, "\n\n".join(map(format_graph, graphs)) + "\n")
    assert run(*args, "--dump-graph", tmp_path / "graph.txt").out == ""
    assert (tmp_path / "graph.txt").read_text(encoding="utf-8") == result.out
    content = json.loads(run(*args, "--dump-graph", "--json").out)["graphs"]
    assert [(graph["name"], len(graph["nodes"])) for graph in content] == [(g.name, len(g.nodes)) for g in graphs]
    assert "cannot be written" in run(*args, "--dump-graph", tmp_path / "no" / "folder").err


def test_graphs_of_every_family(run: Run) -> None:
    """One graph per layer type, the format of the tables' rows included; the draft layer of V3.2 does not run."""
    expected = {
        "v41_flash": ("layer reindex:1/moe/candidates:use", "layer full:2/moe/engram1", "dspark_context", "dspark_markov"),
        "v32": ("layer mla_dense/dense", "layer mla_moe/moe", "head"),
    }
    for model, names in expected.items():
        args = ("generate", "--model", model, "--max-model-len", 512, "--dump-graph", "--json")
        graphs = {graph["name"]: graph for graph in json.loads(run(*args).out)["graphs"]}
        assert graphs.keys() >= set(names)
        assert ("mtp" in graphs) is False
        if model == "v41_flash":
            assert "uint8[num_tokens, 24, 264]" in run(*args[:-1]).out.replace("'", "")  # 256 codes, 8 scales
            assert len(graphs) == 4 + 11 + 2


BAD_REQUESTS: list[tuple[tuple[object, ...], str]] = [
    ((), "no prompt"),
    (("--prompt", ""), "the prompt is empty"),
    (("--prompt", "\udcff"), "not Unicode text"),
    (("--prompt", "x", "--token-ids", "1"), "not allowed with argument"),
    (("--token-ids", "1,two"), "'1,two' is no list of token ids"),
    (("--token-ids", "1,512"), "token id 512 at position 1 is outside the vocabulary"),
    (("--token-ids", ",".join(["7"] * 257)), "prompt of 257 tokens is longer than max_model_len=256"),
    (("--token-ids", ",".join(["7"] * 256)), "leaves no room to generate"),
    (("--prompt", "x", "--max-tokens", 0), "max_tokens=0: expected n=1 and at least 1 token"),
    (("--prompt", "x", "--temperature", -1), "temperature=-1.0"),
    (("--prompt", "x", "--temperature", "nan"), "temperature=nan"),
    (("--prompt", "x", "--top-p", 0), "top_p=0.0"),
    (("--prompt", "x", "--logprobs", 21), "logprobs=21"),
    (("--prompt", "x", "--backend", "npu"), "backend='npu'"),
    (("--prompt", "x", "--backend", "mindspore"), "backend='mindspore'"),
    (("--prompt", "x", "--weights", "w8a8"), "weights='w8a8'"),
    (("--prompt", "x", "--kv-cache", "packed"), "kv_cache='packed'"),
    (("--prompt", "x", "--ops", "fastest"), "ops='fastest': no such op set"),
    (("--prompt", "x", "--max-model-len", 2048), "the model allows at most 1024"),
    (("--prompt", "x", "--max-total-tokens", 128), "max_total_tokens"),
    (("--dump-graph", "--weights", "w4a8"), "weights='w4a8'"),
]


@pytest.mark.parametrize(("args", "words"), BAD_REQUESTS, ids=[words for _, words in BAD_REQUESTS])
def test_bad_requests(args: tuple[object, ...], words: str, run: Run, golden: Path) -> None:
    result = run("generate", "--model", golden, *SHORT, *args)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert "error: " in result.err and "Traceback" not in result.err


def test_input_that_is_no_text(run: Run, golden: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_bytes(b"ab\xff")
    for result in (
        run("generate", "--model", golden, "--prompt-file", file),
        run("generate", "--model", golden, "--prompt-file", "-", stdin=b"ab\xff"),
    ):
        assert (result.code, result.out) == (2, "")
        assert "byte 2 is not UTF-8" in result.err


def test_bad_models(run: Run, folder: Path, tmp_path: Path) -> None:
    def error(model: object) -> str:
        result = run("generate", "--model", model, "--prompt", "x")
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("error: ")
        return result.err

    assert "v4_flash, v4_flash_0731, v4_pro, v4_pro_0813" in error(tmp_path / "nope")
    assert "expected a checkpoint folder" in error("v4_flash")
    assert "no such file" in error(tmp_path)
    edit_config(folder, hidden_sise=3)
    assert "hidden_sise (did you mean hidden_size?)" in error(folder)
    edit_config(folder, architectures=["LlamaForCausalLM"], model_type="llama")
    assert "DeepseekV4ForCausalLM" in error(folder)


def test_dspark_checkpoints_run_their_backbone(run: Run, tmp_path: Path) -> None:
    changes = {
        "compress_ratios": [0, 4, 128, 4, 0, 0], "dspark_block_size": 3, "dspark_noise_token_id": 2,
        "dspark_target_layer_ids": [1, 3], "dspark_markov_rank": 32, "num_nextn_predict_layers": 1,
    }  # fmt: skip
    write_checkpoint(tmp_path, {**CONFIG, **changes})
    args = ("--model", tmp_path, "--max-model-len", 128)
    result = run("generate", *args, "--prompt", "Hello", "--max-tokens", 2)
    assert result.code == 0 and result.out
    assert "--speculative dspark" in " ".join(result.err.split())
    checked = json.loads(run("check", *args, "--json").out)
    assert checked["files"]["valid"]
    assert (checked["model"]["draft_method"], checked["model"]["draft_stages"]) == ("dspark", 2)
    stages = draft_graphs(ModelConfig.from_file(tmp_path), EngineConfig())
    assert [graph.name for graph in stages] == ["dspark_context", "dspark_block", "dspark_markov"]


def test_ctrl_c(demo_folder: Path) -> None:
    """Exit code 130 and no traceback, in the middle of a completion."""
    command = [sys.executable, "-m", "ascend_dsv4", "generate", "--model", str(demo_folder), "--prompt", "x",
               "--max-tokens", "10000", "--ignore-eos"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"tokens/s" not in err


def test_a_reader_that_goes_away(demo_folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ascend_dsv4", "generate", "--model", "v4_flash", "--dump-graph"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_step_that_was_cut_off_leaves_a_usable_model(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(golden, max_model_len=128, max_num_seqs=1)
    params = SamplingParams(max_tokens=3, temperature=0)
    expected = llm.generate("Hello", params)[0].token_ids
    commit = llm.engine.manager.commit

    def cut(request_id: int, num_tokens: int) -> None:
        commit(request_id, num_tokens)
        raise KeyboardInterrupt

    for attempt in (lambda: llm.generate("World", params), lambda: list(llm.stream("World", params))):
        monkeypatch.setattr(llm.engine.manager, "commit", cut)
        with pytest.raises(KeyboardInterrupt):
            attempt()
        assert not llm.engine.has_work
        assert llm.generate("Hello", params)[0].token_ids == expected
        commit = llm.engine.manager.commit
