# SPDX-License-Identifier: Apache-2.0
"""Capsules: what goes in comes out bit for bit, also out of a server and in another process."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.accuracy.capsule import CapsuleWriter
from ascend_dsv4.accuracy.capsule_reading import open_capsule
from ascend_dsv4.accuracy.replay import replay
from ascend_dsv4.accuracy.results import Report
from ascend_dsv4.accuracy.stored_tensors import (
    CHUNK_BYTES,
    PAGE_BYTES,
    Bytes,
    blob_name,
    changed_parts,
    restore_tensor,
    store_tensor,
)
from ascend_dsv4.cli import main
from ascend_dsv4.errors import CapsuleError, ConfigError, UnsupportedError
from ascend_dsv4.ops.rms_norm.reference import rms_norm
from ascend_dsv4.ops.sparse_attention.reference import sparse_attention
from ascend_dsv4.ops.store_kv.reference import store_kv
from ascend_dsv4.server.process import HttpServer
from tests.server.conftest import LiveServer

GREEDY = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
PROMPT = list(range(10, 30))
PROMPT_TEXT = ",".join(map(str, PROMPT))


@pytest.fixture(scope="module")
def llm(golden_v4: Path) -> LLM:
    return LLM(golden_v4 / "fp8_fp4", max_model_len=256, max_num_batched_tokens=16, progress=False)


@pytest.fixture(scope="module")
def recorded(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every operator of two layers and of what is around them: a prompt in two chunks, then two tokens."""
    folder = tmp_path_factory.mktemp("recorded") / "capsule"
    with llm.capture(folder, layers=[1, 2, "embed", "head", "step_tables"]):
        llm.generate(PROMPT, GREEDY)
    return folder


def fresh_process(folder: Path) -> dict[str, Any]:
    """The report of a replay in a process of its own, which has another number of threads to begin with."""
    code = (
        "import json, sys, torch; from ascend_dsv4.accuracy.replay import replay; torch.set_num_threads(3);"
        "print(json.dumps(replay(sys.argv[1]).to_json()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def assert_same_bits(report: dict[str, Any]) -> None:
    assert report["exit_code"] == 0 and not report["errors"] and len(report["results"]) > 0
    verdicts = {(r["status"], r["standard"], r["kind"], r["golden"]) for r in report["results"]}
    assert verdicts == {("pass", "bits", "recorded", "recorded")}


def failures(report: Report) -> set[str]:
    return {f"{result.op}.{result.output} against {result.golden}" for result in report.results if not result.passed}


# Tensors as bytes


def strange_tensors() -> Iterator[tuple[str, Tensor]]:
    base = torch.arange(600, dtype=torch.float32).reshape(20, 30) * 0.37
    codes = torch.arange(256, dtype=torch.int16)
    large = torch.zeros(1 << 18)
    large[70_000:70_010], large[-1] = 1.5, -0.0
    yield "plain", base
    yield "transposed", base.T
    yield "every second column of a part", base[3:11, 5:25:2]
    yield "expanded", base[4:5].expand(7, 30)
    yield "scalar", torch.tensor(3.5)
    yield "no elements", base[3:3]
    yield "no columns", torch.empty(4, 0, dtype=torch.int32)
    yield "nan payloads", torch.tensor([0x7FC01234, -1, 0x7F800001], dtype=torch.int32).view(torch.float32)
    yield "bfloat16", base.to(torch.bfloat16)[1:, ::3]
    yield "float8", codes.to(torch.uint8).view(torch.float8_e4m3fn).reshape(16, 16)[2:]
    yield "float16", base.half()
    yield "float64", base.double()
    yield "int8", (codes - 128).to(torch.int8)
    yield "bool", torch.tensor([True, False, True])[1:]
    yield "mostly zeros", large
    yield "off the chunks", torch.cat([torch.zeros(50_001), torch.ones(3)])[1:]


@pytest.mark.parametrize(("name", "tensor"), list(strange_tensors()), ids=[name for name, _ in strange_tensors()])
def test_tensors_come_back_as_they_were(name: str, tensor: Tensor) -> None:
    blobs: dict[str, Bytes] = {}

    def add(dtype: str, data: Bytes, is_constant: bool) -> str:
        blobs[str(len(blobs))] = data.copy()
        return str(len(blobs) - 1)

    back = restore_tensor(store_tensor(tensor, "x", add), blobs.__getitem__)
    assert (back.dtype, back.shape, back.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
    left, right = (t.contiguous().view(-1).view(torch.uint8).tolist() for t in (back, tensor))
    assert left == right
    if tensor.numel():
        assert back.storage_offset() == tensor.storage_offset()
        assert back.untyped_storage().data_ptr() % PAGE_BYTES == tensor.untyped_storage().data_ptr() % PAGE_BYTES
    if name == "mostly zeros":  # the chunk of the ten numbers and that of -0, which is no zero
        assert [data.size for data in blobs.values()] == [CHUNK_BYTES, CHUNK_BYTES]


def test_changes_of_a_memory_are_what_became_another() -> None:
    stored: dict[str, Bytes] = {}

    def add(dtype: str, data: Bytes, is_constant: bool) -> str:
        stored[name := blob_name(dtype, data)] = data.copy()
        return name

    tensor = torch.zeros(5 * CHUNK_BYTES // 4)
    tensor[:: CHUNK_BYTES // 4][:3] = 7.0
    before = store_tensor(tensor, "x", add)
    tensor[0], tensor[-1] = 0.0, 9.0  # a chunk that becomes zero, and one that no longer is
    changes = changed_parts(before, store_tensor(tensor, "x", add))
    assert [(part.at // CHUNK_BYTES, bool(part.blob)) for part in changes] == [(0, False), (4, True)]
    assert torch.equal(restore_tensor(before, stored.__getitem__, changes), tensor)


HUGE = """
import mmap, resource, sys, numpy, torch
from pathlib import Path
from ascend_dsv4.accuracy.capture import Capture
from ascend_dsv4.accuracy.replay import replay
from ascend_dsv4.accuracy.selection import Selection
from ascend_dsv4.backend.cpu import CpuPlan
from ascend_dsv4.graph.trace import trace
from ascend_dsv4.ops.registry import bind
from ascend_dsv4.ops.spec import TensorType

def write(ops, cfg, w, streams, carry, batch, caches):
    caches["kv"] = ops.store_kv(caches["kv"], streams, batch["slots"], rounding="none", rope_dim=0)
    return streams, {}

shape = (1 << 15, 768, 32)
rows, slots = TensorType(("n", 32), "float32"), TensorType(("n",), "int32")
kinds = {"streams": rows, "carry": {}, "batch": {"slots": slots}, "caches": {"kv": TensorType(shape, "float32")}}
graph = trace("write", write, None, w={}, **kinds)
capture = Capture(Path(sys.argv[1]), Selection(), {"model": {}, "engine": {}}, bind("reference").implementations, 1 << 20)
memory = mmap.mmap(-1, 3 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # untouched
cache = torch.from_numpy(numpy.frombuffer(memory, numpy.float32)).reshape(shape)
plan = CpuPlan(graph, {"caches.kv": cache}, bind("reference"), capture.observer(0))
capture.begin([])
plan(torch.randn(3, 32), {}, {"slots": torch.tensor([5, 24 * 2**20 - 1, -1], dtype=torch.int32)})
capture.end()
capture.close()
report = replay(sys.argv[1])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
print(report.exit_code, *[(r.output, r.num_elements) for r in report.results], peak, sep="; ")
"""


def test_a_cache_of_gigabytes_costs_what_was_written_to_it(tmp_path: Path) -> None:
    """3 GiB of which two rows are written: neither the files nor the two processes hold the rest."""
    done = subprocess.run([sys.executable, "-c", HUGE, str(tmp_path / "c")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    exit_code, result, megabytes = done.stdout.split("; ")
    assert (exit_code, result) == ("0", f"('cache', {2 * 768 * 32})")
    assert int(megabytes) < 1000
    assert sum(file.stat().st_size for file in (tmp_path / "c").iterdir()) < 1 << 18


# Recording


def test_a_recording_replays_bit_for_bit(recorded: Path) -> None:
    capsule = open_capsule(recorded)
    assert {call.layer for call in capsule.calls} == {None, 1, 2} and {call.step for call in capsule.calls} == {0, 1, 2}
    assert [step.requests[0][1:] for step in capsule.steps.values()] == [(0, 16), (16, 4), (20, 1)]
    assert len({call.op for call in capsule.calls}) > 15 and capsule.is_complete
    assert any("sparse_attention" in call.node and call.where.startswith("attention.py:") for call in capsule.calls)
    report = replay(recorded).to_json()
    assert_same_bits(report)
    assert report["results"][-1]["command"] == f"ascend-dsv4 compare replay {recorded} --call {len(capsule.calls) - 1}"
    assert report["environment"]["capsule"] == f"complete, {len(capsule.calls)} calls"


def test_arguments_are_recorded_before_they_are_written(recorded: Path) -> None:
    capsule = open_capsule(recorded)
    written = [call for call in capsule.calls if any(call.written.values())]
    assert {"store_kv", "compress_kv"} <= {call.op for call in written}
    first = next(call for call in written if call.op == "store_kv")
    before, after = capsule.arguments(first)["cache"], capsule.results(first)["cache"]
    assert before is not None and not before.any() and after.any()


def test_weights_and_unchanged_blocks_are_stored_once(recorded: Path) -> None:
    capsule = open_capsule(recorded)
    named = [part.blob for call in capsule.calls for arg in call.args.values() if arg is not None for part in arg.parts]
    stored = [name for file in capsule.files.values() for name in file.tensors]
    assert len(stored) == len(set(stored)) and len(set(named)) < len(named) / 2
    weights = [arg for call in capsule.calls for arg in call.args.values() if arg is not None and arg.source.startswith("w.")]
    assert len({arg.parts for arg in weights}) * 2 < len(weights), "steps share them"


def test_recording_changes_nothing_and_ends(llm: LLM, tmp_path: Path) -> None:
    plain = llm.logits(PROMPT)
    with llm.capture(tmp_path / "c", ops=["hc_pre"], layers="0", steps="1") as capture:
        recorded = llm.logits(PROMPT)
        assert open_capsule(tmp_path / "c").is_complete, "complete after its last step, while the run goes on"
        llm.logits(PROMPT)
    assert capture.num_calls == 2 and capture.num_steps == 4
    assert (plain == recorded).all() and (llm.logits(PROMPT) == plain).all()
    assert [(call.step, call.op) for call in open_capsule(tmp_path / "c").calls] == [(1, "hc_pre")] * 2


def test_an_error_inside_keeps_what_was_recorded(llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), llm.capture(tmp_path / "c", ops="rms_norm", steps="0-"):
        llm.logits(PROMPT)
        raise KeyboardInterrupt
    assert open_capsule(tmp_path / "c").is_complete
    with pytest.raises(KeyboardInterrupt), llm.capture(tmp_path / "none", ops="rms_norm"):
        raise KeyboardInterrupt  # and not an error about an empty recording
    assert not (tmp_path / "none").exists()


def test_the_limit_ends_a_recording_and_not_the_run(llm: LLM, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with llm.capture(tmp_path / "c", limit=400_000) as capture:
        llm.logits(PROMPT)
    assert "the limit of 400,000 B is reached before" in caplog.text and "raise --capture-limit" in capture.summary
    assert sum(file.stat().st_size for file in (tmp_path / "c").iterdir()) < 440_000
    report = replay(tmp_path / "c")
    assert report.exit_code == 0 and "limit of 400,000 B" in report.environment["capsule"]
    with pytest.raises(CapsuleError, match=r"nothing was recorded.*the limit of 100 B"), llm.capture(tmp_path / "d", limit=100):
        llm.logits(PROMPT)
    assert not (tmp_path / "d").exists()


def test_a_full_disk_ends_a_recording_and_not_the_run(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = llm.logits(PROMPT)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "data-00001.safetensors")

    with pytest.raises(CapsuleError, match="No space left on device"), llm.capture(tmp_path / "c"):
        llm.logits(PROMPT)  # two steps, the first of which is put on the disk
        monkeypatch.setattr(CapsuleWriter, "_flush", full)
        assert (llm.logits(PROMPT) == expected).all()
    monkeypatch.undo()
    capsule = open_capsule(tmp_path / "c")
    assert not capsule.is_complete and replay(tmp_path / "c", call=0).exit_code == 0


def test_what_would_be_empty_is_refused(llm: LLM, tmp_path: Path) -> None:
    cases = {
        "expected layers 0 to 5, or step_tables, embed, head": {"layers": "4,17"},
        "--capture-layers: got 'first'": {"layers": "first"},
        "expected operators among adjust_logits": {"ops": "rms_norn"},
        "only these do: head. Choose among them": {"ops": "hc_head", "layers": "0-2"},
        "no graph of this model's steps has it": {"ops": ["sample"]},
        "--capture-steps: got '9-3'": {"steps": "9-3"},
    }
    for words, options in cases.items():
        with pytest.raises(ConfigError, match=words), llm.capture(tmp_path / "c", **options):  # type: ignore[arg-type]
            raise AssertionError("it began")
    with (
        pytest.raises(CapsuleError, match=r"nothing was recorded.*steps 7-.*steps 0 to 1"),
        llm.capture(tmp_path / "c", steps="7-"),
    ):
        llm.logits(PROMPT)
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ConfigError, match="there is something already"), llm.capture(tmp_path):
        raise AssertionError("it began")
    null = LLM.__new__(LLM)
    null.engine_config, null.config, null.graphs = llm.engine_config.replace(backend="null"), llm.config, llm.graphs
    with pytest.raises(UnsupportedError, match="backend 'null' computes nothing"), null.capture(tmp_path / "c"):
        raise AssertionError("it began")


# The command line


def generate(folder: Path, model: Path, *options: str) -> int:
    fixed = ["--token-ids", PROMPT_TEXT, "--max-tokens", "2", "--temperature", "0", "--max-model-len", "256"]
    return main(["generate", "--model", str(model), *fixed, "--capture", str(folder), *options])


def test_generate_records(golden_v4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = golden_v4 / "fp8_fp4"
    assert generate(tmp_path / "c", model, "--capture-ops", "linear,sparse_attention", "--capture-layers", "1,3-4") == 0
    calls = open_capsule(tmp_path / "c").calls
    assert {call.op for call in calls} == {"linear", "sparse_attention"} and {call.layer for call in calls} == {1, 3, 4}
    assert f"captured {len(calls)} calls" in capsys.readouterr().err
    assert replay(tmp_path / "c").exit_code == 0


def test_generate_refuses_before_it_loads(golden_v4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "config.json"  # there are no weights that could be loaded
    bare.write_text((golden_v4 / "fp8_fp4" / "config.json").read_text())
    cases = {
        "expected operators among": ["--capture-ops", "linaer"],
        "expected layers 0 to": ["--capture-layers", "99"],
        "expected bytes such as 500M": ["--capture-limit", "0"],
        "computes nothing": ["--backend", "null"],
    }
    for words, options in cases.items():
        assert generate(tmp_path / "c", bare, *options) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert main(["generate", "--model", str(bare), "--token-ids", "5", "--capture-steps", "0"]) == 2
    assert "without --capture" in capsys.readouterr().err
    assert generate(tmp_path / "c", bare, "--dump-graph") == 2
    assert "printing runs nothing" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_an_empty_recording_is_an_error_of_generate(
    golden_v4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tmp_path / "c", golden_v4 / "fp8_fp4", "--capture-steps", "50-") == 2
    captured = capsys.readouterr()
    assert captured.out.strip(), "the text was printed all the same"
    assert "nothing was recorded" in captured.err and "steps 0 to 1" in " ".join(captured.err.split())


def test_a_running_server_is_recorded(demo_folder: Path, tmp_path: Path) -> None:
    """Requests that come together share steps, and each call replays bit for bit elsewhere."""
    server = LiveServer(demo_folder, "--weights", "fp32", "--max-model-len", "512", "--capture", str(tmp_path / "c"),
                        "--capture-layers", "2,head", "--capture-steps", "0-5")  # fmt: skip

    def ask(text: str) -> int:
        body = {"model": server_model, "prompt": text, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
        return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code

    server_model = httpx.get(f"{server.url}/v1/models", timeout=60).json()["data"][0]["id"]
    try:
        with ThreadPoolExecutor(3) as clients:
            assert list(clients.map(ask, ["Hello", "one two three four " * 9, "How are you?"])) == [200] * 3
    finally:
        assert server.stop() == 0, "".join(server.log)
    capsule = open_capsule(tmp_path / "c")
    assert max(len(step.requests) for step in capsule.steps.values()) > 1, "no step had two requests"
    assert capsule.is_complete and {call.graph for call in capsule.calls} == {"layer2", "head"}
    report = fresh_process(tmp_path / "c")
    assert_same_bits(report)
    assert len({result["op"] for result in report["results"]}) > 12


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """`serve` in this process sends all log lines to a stream that ends with the test."""
    names = (None, "ascend_dsv4", "uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access")
    kept = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).level) for name in names}
    yield
    for name, (handlers, level) in kept.items():
        logging.getLogger(name).handlers[:] = handlers
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.usefixtures("logging_as_before")
def test_a_server_that_recorded_nothing_says_so(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(HttpServer, "run_on", lambda self, listener, listening: None)  # stopped before a request came
    options = ["--port", "0", "--weights", "fp32", "--max-model-len", "512", "--capture", str(tmp_path / "c")]
    assert main(["serve", "--model", str(demo_folder), *options]) == 2
    log = capfd.readouterr().err
    assert "nothing was recorded" in log and "the run had no step" in log and not (tmp_path / "c").exists()


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ascend_dsv4.demo import demo_model

    return demo_model(tmp_path_factory.mktemp("served") / "demo")


# Judging others


def norm_without_eps(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    return rms_norm(x, weight, eps=0.01)


def norm_in_float64(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    wide = x.double()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (scaled if weight is None else scaled * weight.double()).to(x.dtype)


def norm_in_place(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    y = rms_norm(x, weight, eps=eps)
    x.zero_()
    return y


def write_one_too_many(cache: Tensor, rows: Tensor, slots: Tensor, *, rounding: str, rope_dim: int) -> None:
    store_kv(cache, rows, slots, rounding=rounding, rope_dim=rope_dim)
    cache[-1, -1] = 1.0


def attention_without_sink(*tensors: Tensor, **attrs: Any) -> Tensor:
    names = list(tensors)
    names[4] = torch.full_like(names[4], -torch.inf)
    return sparse_attention(*names, **attrs)


def raising(*tensors: Tensor, **attrs: Any) -> Tensor:
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("op", "function", "wrong"),
    [
        ("rms_norm", norm_in_float64, set()),
        ("rms_norm", norm_without_eps, {"rms_norm.y against recorded", "rms_norm.y against float64"}),
        ("rms_norm", norm_in_place, {"rms_norm.x against recorded"}),
        ("store_kv", write_one_too_many, {"store_kv.cache against recorded", "store_kv.cache against float64"}),
        ("sparse_attention", attention_without_sink,
         {"sparse_attention.o against recorded", "sparse_attention.o against float64"}),
    ],
)  # fmt: skip
def test_another_implementation_is_judged_by_the_tolerance(recorded: Path, op: str, function: Any, wrong: set[str]) -> None:
    report = replay(recorded, f"{__name__}:{function.__name__}", ops=[op])
    assert failures(report) == wrong and report.exit_code == (1 if wrong else 0)
    assert {result.standard for result in report.results} == {"tolerance"}
    assert f"--impl {__name__}:{function.__name__}" in report.results[0].command


def test_an_implementation_that_raises_is_an_error(recorded: Path) -> None:
    report = replay(recorded, f"{__name__}:raising", ops=["rms_norm"])
    assert report.exit_code == 2 and "no such kernel" in report.errors[0].message


def test_one_call_and_what_is_not_there(recorded: Path) -> None:
    report = replay(recorded, call=3)
    assert report.exit_code == 0 and {result.case.partition(":")[0] for result in report.results} == {"call 3"}
    for words, arguments in {
        "--call 99999: expected 0 to": {"call": 99999},
        "--op gelu: expected operators among": {"ops": ["gelu"]},
        "expected one, because a function implements one": {"implementation": f"{__name__}:raising"},
        "expected an implementation of": {"implementation": "tests.no_such:thing", "ops": ["rms_norm"]},
    }.items():
        with pytest.raises(ConfigError, match=words):
            replay(recorded, **arguments)  # type: ignore[arg-type]


def test_the_tolerance_is_the_users_choice(recorded: Path) -> None:
    report = replay(recorded, ops=["compress_kv", "rms_norm", "route", "index_topk"], tolerance=True)
    assert report.exit_code == 0 and {result.standard for result in report.results} == {"tolerance"}
    assert {result.golden for result in report.results} == {"recorded", "float64"}
    noted = {result.op for result in report.results if result.status == "noted"}
    assert noted == {"compress_kv"}, "where the contract rounds, float64 is another answer"
