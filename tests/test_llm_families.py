# SPDX-License-Identifier: Apache-2.0
"""The Python API on V4.1 and V3.2: n-gram tables wherever they lie, and files that do not belong together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.engram.convert import convert_table, table_file_name
from ascend_dsv4.engram.rows import RowFormat
from ascend_dsv4.errors import AscendDsv4Error, CheckpointError, ConfigError, RequestError
from ascend_dsv4.model.checkpoint import Checkpoint

GREEDY = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)


@pytest.fixture
def folder(golden_v41: Path, tmp_path: Path) -> Path:
    """A V4.1 checkpoint to spoil."""
    return shutil.copytree(golden_v41 / "fp8_fp4", tmp_path / "model")


@pytest.fixture(scope="module")
def prompt(golden_v41: Path) -> list[int]:
    """Crosses the window, so that n-gram rows are read in many steps."""
    return load_file(golden_v41 / "logits.safetensors")["len33.input_ids"].tolist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def expected(golden_v41: Path, prompt: list[int]) -> np.ndarray:
    """Logits with the tables where the checkpoint has them."""
    return LLM(golden_v41 / "fp8_fp4", progress=False).logits(prompt)


@pytest.fixture(scope="module")
def tables(golden_v41: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[RowFormat], Path]:
    """Format → a folder of table files in it."""

    def converted(format: RowFormat) -> Path:
        folder = tmp_path_factory.mktemp(format)
        checkpoint = Checkpoint.open(golden_v41 / "fp8_fp4")
        for layer in (1, 4):
            convert_table(checkpoint, layer, folder / table_file_name(layer, format), format)
        return folder

    return converted


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].update(values)
    (folder / "config.json").write_text(json.dumps(config))


def test_tables_in_memory(golden_v41: Path, prompt: list[int], expected: np.ndarray) -> None:
    llm = LLM(golden_v41 / "fp8_fp4", engram_tier="host", progress=False)
    assert np.array_equal(llm.logits(prompt, chunk_size=5), expected)


@pytest.mark.parametrize("format", ["fp8", "bf16"])
@pytest.mark.parametrize("tier", ["host", "mmap", "disk"])
def test_tables_in_files(
    golden_v41: Path, tables: Callable[[RowFormat], Path], prompt: list[int], expected: np.ndarray, tier: str, format: RowFormat
) -> None:
    """Formats that lose nothing give the same bits; a cache of a few rows is enough."""
    options = {"engram_tier": tier, "engram_tables": str(tables(format)), "engram_cache_rows": 16}
    llm = LLM(golden_v41 / "fp8_fp4", progress=False, **options)
    assert np.array_equal(llm.logits(prompt, chunk_size=5), expected)
    assert len(llm.generate([prompt], GREEDY)[0].token_ids) == 4


def test_tables_that_processes_share(
    golden_v41: Path, tables: Callable[[RowFormat], Path], prompt: list[int], expected: np.ndarray
) -> None:
    """The second model reads the copy that the first has made; with the first it is gone."""
    options: dict[str, Any] = {"engram_tier": "shared", "engram_tables": str(tables("fp8")), "progress": False}
    before = set(Path("/dev/shm").iterdir())
    first, second = LLM(golden_v41 / "fp8_fp4", **options), LLM(golden_v41 / "fp8_fp4", **options)
    made = set(Path("/dev/shm").iterdir()) - before
    assert len([path for path in made if path.name.startswith("ascend-dsv4-")]) == 2  # a table each for two layers
    for llm in (first, second):
        assert np.array_equal(llm.logits(prompt, chunk_size=5), expected)
        assert llm.runner.memory is not None
    assert first.runner.memory is not None and second.runner.memory is not None
    first.runner.memory.close()
    assert not made & set(Path("/dev/shm").iterdir())
    second.runner.memory.close()


def test_int8_tables_are_near(golden_v41: Path, tables: Callable[[RowFormat], Path], prompt: list[int]) -> None:
    """What the tables add to the streams is within 1 %; logits follow, barring rows where an expert or an entry changes."""
    options: dict[str, Any] = {"cache_rounding": "off", "progress": False}
    exact = LLM(golden_v41 / "fp8_fp4", **options)
    int8 = LLM(golden_v41 / "fp8_fp4", engram_tier="mmap", engram_tables=str(tables("int8")), **options)
    before, after = "layer1.engram.in_streams", "layer1.engram.out_streams"
    right, near = exact.trace(prompt), int8.trace(prompt)
    assert np.array_equal(right[before], near[before])
    assert 0 < rms(near[after] - right[after]) < 0.01 * rms(right[after] - right[before])
    delta = int8.logits(prompt) - exact.logits(prompt)
    assert np.median([rms(row) for row in delta]) < 0.25, "of logits with a standard deviation of 2"


def rms(x: np.ndarray) -> float:
    return float(np.sqrt((x**2).mean()))


@pytest.mark.parametrize("tier", ["mmap", "disk"])
def test_tiers_that_need_table_files(golden_v41: Path, tier: str) -> None:
    with pytest.raises(ConfigError, match=f"engram_tier='{tier}': expected engram_tables"):
        LLM(golden_v41 / "fp8_fp4", engram_tier=tier, progress=False)


def test_a_folder_without_table_files(golden_v41: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no table file for layer 1"):
        LLM(golden_v41 / "fp8_fp4", engram_tier="mmap", engram_tables=str(tmp_path), progress=False)


def test_hashing_needs_the_tokenizer(folder: Path, golden_v32: Path, tmp_path: Path) -> None:
    """Without tables a model runs on token ids alone."""
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be read .* the hashes of Engram follow from it"):
        LLM(folder, progress=False)
    plain = shutil.copytree(golden_v32 / "fp8", tmp_path / "plain", ignore=shutil.ignore_patterns("tokenizer*"))
    llm = LLM(plain, progress=False)
    assert len(llm.generate([[5, 6, 7]], GREEDY)[0].token_ids) == 4
    with pytest.raises(RequestError, match=r"no tokenizer\.json"):
        llm.generate("text", GREEDY)


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    """Two tokens become the same after compression: one less is left, and every hash would change."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    word, other = [token for token in sorted(vocab) if token.isascii() and token.islower() and len(token) > 2][:2]
    vocab[word.upper()] = vocab.pop(other)
    tokenizer["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="compressed tokens, expected engram_compressed_vocab_size=439"):
        LLM(folder, progress=False)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"engram_compressed_vocab_size": 440}, ConfigError, "439 compressed tokens, expected .*size=440"),
        ({"engram_num_embeddings": [1362, 1553]}, CheckpointError, r"layers\.4\.engram\.embed\.weight \(got \[1552, 32\]"),
        ({"engram_vocab_size": 220}, ConfigError, r"engram_num_embeddings=\[1362, 1552\]: expected \[.*sums of the primes"),
    ],
    ids=["compressed", "rows", "primes"],
)
def test_sizes_that_do_not_fit(folder: Path, values: dict[str, Any], error: type[AscendDsv4Error], message: str) -> None:
    change_config(folder, **values)
    with pytest.raises(error, match=message):
        LLM(folder, progress=False)


def test_hidden_states_without_hyper_connections(golden_v32: Path) -> None:
    """One residual stream, and the same numbers as in a trace."""
    ids = np.random.randint(3, 500, 30).tolist()
    llm = LLM(golden_v32 / "fp8", progress=False)
    states, modules = llm.hidden_states(ids), llm.trace(ids)
    assert len(states) == llm.config.num_hidden_layers + 1
    for layer, state in enumerate(states[1:]):
        assert state.shape == (30, llm.config.hidden_size)
        assert np.array_equal(state, modules[f"layer{layer}.out"])


@pytest.mark.parametrize(
    ("family", "variant"),
    [pytest.param(*case, marks=pytest.mark.goldens(f"golden_{case[0]}")) for case in (("v41", "fp8_fp4"), ("v32", "fp8"))],
)
def test_a_trace_in_chunks_is_the_trace(request: pytest.FixtureRequest, family: str, variant: str) -> None:
    """Also where an entry or a candidate block is closed by a later chunk."""
    folder = request.getfixturevalue(f"golden_{family}") / variant
    ids = np.random.randint(3, 500, 60).tolist()
    whole, cut = (LLM(folder, max_num_batched_tokens=size, progress=False).trace(ids) for size in (64, 13))
    assert whole.keys() == cut.keys()
    assert all(np.array_equal(whole[name], cut[name]) for name in whole)
