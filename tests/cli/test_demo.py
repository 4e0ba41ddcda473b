# SPDX-License-Identifier: Apache-2.0
"""The demo checkpoint: the same bytes everywhere, readable by others, repaired when damaged; the command that uses it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from safetensors import safe_open

from ascend_dsv4 import LLM
from ascend_dsv4.config import ModelConfig
from ascend_dsv4.config.layers import layer_specs
from ascend_dsv4.demo import demo_model
from ascend_dsv4.demo.cache import MANIFEST, cache_folder, is_intact
from ascend_dsv4.demo.text import TEXT
from ascend_dsv4.engram.hashing import compressed_token_map
from ascend_dsv4.errors import ConfigError
from ascend_dsv4.model.checkpoint import Checkpoint
from ascend_dsv4.model.inventory import inventory
from ascend_dsv4.server.conversation import ChatFormat
from ascend_dsv4.tokenizer import Tokenizer
from tests.cli.conftest import Run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_folder: Path) -> Path:
    """The folder of an empty user cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().parent == tmp_path / "ascend-dsv4"
    return cache_folder()


@pytest.fixture
def filled_cache(cache: Path, demo_folder: Path) -> Path:
    """The same with the demo in it."""
    shutil.copytree(demo_folder, cache)
    return cache


def test_the_bytes_are_always_the_same(cache: Path, demo_folder: Path) -> None:
    assert demo_model() == cache
    assert contents(cache) == contents(demo_folder)
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    assert sum(map(len, contents(cache).values())) < 12_000_000


def test_the_configuration_has_everything(demo_folder: Path) -> None:
    config = ModelConfig.from_file(demo_folder)
    specs = set(map(str, layer_specs(config)))
    assert {spec.split("/")[0] for spec in specs} == {"sliding", "csa", "hca"}
    assert {spec.split("/")[1] for spec in specs} == {"hash_moe", "moe"}
    assert (config.draft_method, config.num_draft_stages, config.max_position_embeddings) == ("mtp", 1, 16384)
    assert config.weight_block_size == (128, 128) and config.expert_dtype == "fp4"


def test_another_reader_sees_the_inventory(demo_folder: Path) -> None:
    stored = {}
    shards = sorted(demo_folder.glob("*.safetensors"))
    assert len(shards) > 1
    index = json.loads((demo_folder / "model.safetensors.index.json").read_text())
    for shard in shards:
        with safe_open(shard, "pt") as file:
            names = list(file.keys())
            for name in names:
                view = file.get_slice(name)
                stored[name] = (view.get_dtype(), tuple(view.get_shape()))
                assert index["weight_map"][name] == shard.name
            for name in (name for name in names if name.endswith("tid2eid")):
                experts = file.get_tensor(name).numpy()
                assert experts.min() == 0 and experts.max() == 15
                assert (np.diff(np.sort(experts, axis=1), axis=1) > 0).all()
    specs = inventory(ModelConfig.from_file(demo_folder))
    assert stored == {spec.name: (spec.dtype, spec.shape) for spec in specs}
    assert index["metadata"]["total_size"] == sum(spec.num_bytes for spec in specs)


def test_activations_stay_moderate(demo_folder: Path) -> None:
    llm = LLM(demo_folder, max_model_len=256, max_num_seqs=1)
    ids = llm.tokenizer.encode("When the ship came into the harbour, the captain counted the boxes twice. 他说他不知道。" * 4)
    logits = llm.logits(ids[:132])  # past a window, and past an entry of every ratio
    assert np.isfinite(logits).all()
    assert 1 < logits.std() < 5
    for streams in llm.hidden_states(ids[:16]):
        assert 0.3 < streams.std() < 5
    drafted = llm.draft(ids[:9], "mtp")[1]
    assert np.isfinite(drafted).all() and 1 < drafted.std() < 5


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The demo checkpoint of another family, written once."""
    root = tmp_path_factory.mktemp("families")
    return lambda family: demo_model(root / family, family)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["v41", "v32"])
def test_other_families(family: str, family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Valid files of every kind of layer, the same bytes every time, and values of ordinary size."""
    folder = family_folder(family)
    config = ModelConfig.from_file(folder)
    types = {"v41": {"sliding", "full", "reuse", "reindex"}, "v32": {"mla_dense", "mla_moe"}}[family]
    assert set(config.layer_types) == types and config.is_quantized and config.num_draft_stages
    assert sum(map(len, contents(folder).values())) < 20_000_000
    assert contents(demo_model(tmp_path / "again", family)) == contents(folder)  # type: ignore[arg-type]
    assert is_intact(folder, family) and not is_intact(folder)  # type: ignore[arg-type]
    llm = LLM(folder, weights="fp32", max_model_len=256, max_num_seqs=1, progress=False)
    ids = llm.tokenizer.encode(TEXT)[:130] if llm.tokenizer else []
    assert np.isfinite(logits := llm.logits(ids)).all() and 1 < logits.std() < 5
    for streams in llm.hidden_states(ids[:16]):
        assert 0.3 < streams.std() < 5
    if family == "v41":
        drafted = llm.draft(ids[:9], "dspark")
        assert np.isfinite(drafted[1]).all() and 1 < drafted[1].std() < 5
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.vocab_size == config.vocab_size
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_v41_has_everything(family_folder: Callable[[str], Path]) -> None:
    folder = family_folder("v41")
    config = ModelConfig.from_file(folder)
    assert {spec.candidates for spec in layer_specs(config)} == {None, "publish", "use"}
    assert {spec.ratio for spec in layer_specs(config)} == {0, 1, 2}
    assert config.vision is not None and config.dspark is not None and config.engram is not None
    token_map = compressed_token_map(folder / "tokenizer.json", config.vocab_size)
    assert config.engram.compressed_vocab_size == len(set(token_map.tolist())) < config.vocab_size
    tokenizer = Tokenizer.from_folder(folder)
    assert config.image_token_id == tokenizer.token_id("<｜image｜>") == config.vocab_size - 1
    assert config.dspark.noise_token_id == tokenizer.token_id("<｜dspark_noise｜>")
    assert Checkpoint.open(folder).has_draft


def test_families_in_a_named_folder(run: Run, tmp_path: Path) -> None:
    """The folder takes the family that is asked for, and is not mistaken for another one."""
    args = ("demo", "--keep-dir", tmp_path / "kept", "--max-tokens", 2, "--max-model-len", 128)
    for family, kind in (("v32", "deepseek_v32"), ("v41", "deepseek_v41")):
        result = run(*args, "--model", family, "--prompt", "Something")
        assert result.code == 0 and result.out.strip()
        assert json.loads((tmp_path / "kept" / "config.json").read_text())["model_type"] == kind
    chat = run(*args, "--model", "v41", "--chat", stdin="Hello\n")
    assert chat.code == 0 and "2 tokens in" in chat.err
    refused = run(*args, "--model", "v32", "--chat", stdin="Hello\n")
    assert (refused.code, refused.out) == (2, "")
    assert "DeepseekV32ForCausalLM: got a model whose conversations no installed encoder" in " ".join(refused.err.split())
    assert run("demo", "--model", "v5").code == 2


def test_tokenizer(demo_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(demo_folder)
    config = ModelConfig.from_file(demo_folder)
    assert tokenizer.vocab_size == config.vocab_size == 1024
    assert (tokenizer.bos_token_id, (tokenizer.eos_token_id,)) == (config.bos_token_id, config.eos_token_id)
    assert len({tokenizer.token_bytes(i) for i in range(1024)}) == 1024
    for text in (TEXT, "naïve 😀\t\r\n  x \x00", "１２３ 12345678 don't <｜User｜>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(TEXT)) < len(TEXT.encode()) / 2.5
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12345")] == ["1", "2", "3", "4", "5"]
    assert tokenizer.encode("</think>") == [tokenizer.token_id("</think>")]
    prompt = ChatFormat(tokenizer, preview_rules=True).render_chat([{"role": "user", "content": "hi"}], thinking=True)
    assert list(prompt.token_ids) == tokenizer.encode("<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜><think>")


def test_text_is_cut_as_released_tokenizers_do(demo_folder: Path, golden_v4: Path) -> None:
    ours, theirs = (
        tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).pre_tokenizer
        for folder in (demo_folder, golden_v4 / "fp8_fp4")
    )
    texts = ["12345678 ²½ x=1_000.50", "a\tb\r\n\n  c   ", "日本語カタカナ한국어中文abc", "don't (x)[y] !?… naïve 😀\n"]
    for text in (TEXT, *texts):
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def test_it_is_written_once(filled_cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [filled_cache, *filled_cache.iterdir()]}
    assert demo_model() == filled_cache
    assert before == {path: path.stat().st_mtime_ns for path in [filled_cache, *filled_cache.iterdir()]}


@pytest.mark.parametrize("damage", ["files", "manifest", "other generator"])
def test_damage_is_repaired(damage: str, filled_cache: Path, demo_folder: Path) -> None:
    cache = filled_cache
    if damage == "files":
        flipped, truncated, missing = sorted(cache.glob("*.safetensors"))
        data = bytearray(flipped.read_bytes())
        data[-7] ^= 1
        flipped.write_bytes(data)
        os.truncate(truncated, 1000)
        missing.unlink()
    elif damage == "manifest":
        (cache / MANIFEST).write_text('{"files": [')
    else:
        manifest = json.loads((cache / MANIFEST).read_text())
        (cache / MANIFEST).write_text(json.dumps(manifest | {"generator": "0"}))
    assert demo_model() == cache
    assert contents(cache) == contents(demo_folder)


@pytest.mark.parametrize("part", ["config.json", "model-00003-of-00003.safetensors", MANIFEST])
def test_any_change_is_noticed(part: str, filled_cache: Path) -> None:
    assert is_intact(filled_cache)
    path = filled_cache / part
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    assert not is_intact(filled_cache)
    path.unlink()
    assert not is_intact(filled_cache)


def test_two_writers_at_once(tmp_path: Path, demo_folder: Path) -> None:
    code = "import sys, pathlib; from ascend_dsv4.demo import demo_model; demo_model(pathlib.Path(sys.argv[1]))"
    target = tmp_path / "demo"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(target)], stderr=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        _, err = writer.communicate(timeout=60)
        assert (writer.returncode, err) == (0, b"")
    assert contents(target) == contents(demo_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    for folder in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(ConfigError, match="holds something else"):
            demo_model(folder)
    assert contents(tmp_path) == {"config.json": b"mine"}
    with pytest.raises(ConfigError, match="cannot be written"):
        demo_model(tmp_path / "config.json" / "below")


def test_the_command(run: Run, filled_cache: Path) -> None:
    args = ("demo", "--prompt", "Something", "--max-tokens", 3, "--max-model-len", 512)
    first = run(*args)
    assert first.code == 0 and first.out.strip()
    assert str(filled_cache) in first.err.replace("\n", "")
    assert "the text means nothing" in " ".join(first.err.split())
    again = run(*args, "--json")
    (output,) = json.loads(again.out)["outputs"]
    assert output["text"].strip() == first.out.strip()
    assert run(*args, "--prompt", "Something else").out != first.out


def test_the_command_keeps_a_folder_and_chats(run: Run, tmp_path: Path, demo_folder: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()  # an empty folder will do
    result = run("demo", "--keep-dir", kept, "--chat", "--max-tokens", 2, "--max-model-len", 256, stdin="Hello\nWorld\n")
    assert result.code == 0 and result.out.strip()
    assert result.err.count("2 tokens in") == 2
    assert contents(kept) == contents(demo_folder)
    (tmp_path / "mine").write_text("x")
    refused = run("demo", "--keep-dir", tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert "holds something else" in refused.err


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    """A manifest of somebody else's, or files beside the demo's: nothing is overwritten."""
    (tmp_path / "demo.json").write_text("{}")
    (tmp_path / "config.json").write_text("precious")
    with pytest.raises(ConfigError, match="holds something else"):
        demo_model(tmp_path)
    assert (tmp_path / "config.json").read_text() == "precious"


def test_it_serves_and_shows_a_request_that_works(filled_cache: Path) -> None:
    command = [sys.executable, "-m", "ascend_dsv4", "demo", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        shown = ""
        while "max_tokens" not in shown:
            line = process.stderr.readline()
            assert line, shown
            shown += line
        words = shlex.split(shown[shown.index("curl ") :])
        url, header, data = words[1], words[words.index("-H") + 1], words[words.index("-d") + 1]
        request = urllib.request.Request(url, data.encode(), dict([header.split(": ")]))
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=60) as response:
            answer = json.load(response)
        assert answer["choices"][0]["message"]["content"], "an answer can be seen"
        assert answer["usage"]["completion_tokens"] <= 32
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
