# SPDX-License-Identifier: Apache-2.0
"""N-gram rows in the engine: fetched ahead, the same whoever asks, refused when damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.engram.convert import convert_table, table_file_name
from ascend_dsv4.engram.hashing import look_back
from ascend_dsv4.errors import CheckpointError
from ascend_dsv4.model.checkpoint import Checkpoint
from ascend_dsv4.server.metrics import _memory_metrics

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
CHUNK = 32


@pytest.fixture(scope="module")
def prompt(golden_v41: Path) -> list[int]:
    ids: list[int] = load_file(golden_v41 / "logits.safetensors")["len130.input_ids"].tolist()
    return ids


@pytest.fixture
def llm(golden_v41: Path) -> Iterator[LLM]:
    yield LLM(golden_v41 / "fp8_fp4", max_num_batched_tokens=CHUNK, max_model_len=512, progress=False)


def test_chunks_and_tokens_are_fetched_ahead(llm: LLM, prompt: list[int]) -> None:
    """All but the first chunk, which nobody could know of, and the last, which is shorter than was guessed or just right."""
    llm.generate(prompt, GREEDY)
    memory = llm.runner.memory
    assert memory is not None
    steps = -(-len(prompt) // CHUNK) + GREEDY.max_tokens - 1
    layers = len(memory.tables)
    ahead = memory.metrics.taken_ready + memory.metrics.taken_late
    assert ahead + memory.metrics.taken_unasked == steps * layers
    assert memory.metrics.taken_unasked == layers
    assert [tier.rows_read for tier in memory.metrics.tiers] == [
        (len(prompt) + GREEDY.max_tokens - 1) * memory.hash.num_columns
    ] * layers


def test_rows_of_a_step_are_those_of_the_whole_prompt(llm: LLM, prompt: list[int]) -> None:
    """What reaches the model under names engram0, engram1, cut anywhere, against one hash over everything."""
    memory = llm.runner.memory
    assert memory is not None
    ids = memory.ids_for(np.asarray(prompt, np.int32), look_back(prompt, 0, memory.hash.history_len))
    whole = memory.rows(ids)
    seen: list[dict[str, np.ndarray]] = []
    rows_of = llm.runner._memory_rows

    def spy(*args: object) -> dict[str, np.ndarray]:
        seen.append(rows_of(*args))  # type: ignore[arg-type]
        return seen[-1]

    llm.runner._memory_rows = spy  # type: ignore[method-assign, assignment]
    llm.logits(prompt, chunk_size=7)
    for layer in range(len(memory.tables)):
        assert np.array_equal(np.concatenate([rows[f"engram{layer}"] for rows in seen]), whole[:, layer])


def test_metrics(llm: LLM, prompt: list[int]) -> None:
    llm.generate(prompt, GREEDY)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in _memory_metrics(llm.engine)
        for sample in family.samples
    }
    assert llm.runner.memory is not None
    assert found["ascend_dsv4_engram_rows_read_total", "1"] == llm.runner.memory.metrics.tiers[0].rows_read > 0
    assert found["ascend_dsv4_engram_fetches_total", "unasked"] == 2
    assert found["ascend_dsv4_engram_wait_seconds_total",] > 0
    assert list(_memory_metrics(SimpleNamespace(runner=SimpleNamespace(memory=None)))) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("tier", ["mmap", "disk"])
def test_a_damaged_block_fails_the_step_and_not_the_engine(
    tier: str, golden_v41: Path, prompt: list[int], tmp_path: Path
) -> None:
    """The error names the file; other prompts, whose rows are sound, are served afterwards."""
    folder = golden_v41 / "fp8_fp4"
    checkpoint = Checkpoint.open(folder)
    for layer in (1, 4):
        convert_table(checkpoint, layer, tmp_path / table_file_name(layer, "fp8"), "fp8")
    options = {"engram_tier": tier, "engram_tables": str(tmp_path), "max_model_len": 512, "progress": False}
    sound = LLM(folder, **options)  # type: ignore[arg-type]
    expected = sound.generate([5, 6], GREEDY)[0].token_ids
    assert sound.runner.memory is not None
    sound.runner.memory.close()
    path = tmp_path / table_file_name(4, "fp8")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    damaged = LLM(folder, **options)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=f"{path.name}.*block"):
        damaged.logits(prompt * 3)
    assert not damaged.engine.has_work
    try:
        assert damaged.generate([5, 6], GREEDY)[0].token_ids == expected
    except CheckpointError as error:  # its own rows may lie in the damaged block
        assert path.name in str(error)


def test_nothing_stays_pending(llm: LLM, prompt: list[int]) -> None:
    """What was fetched ahead for a request that ends before its next step is forgotten."""
    memory = llm.runner.memory
    assert memory is not None
    for chunk_size in (20, None):  # in the middle of the prompt; behind the first token
        request = llm.engine.submit(prompt[: 90 if chunk_size else 20], GREEDY, chunk_size=chunk_size)
        llm.engine.step()
        assert len(memory._pending) == 1
        llm.engine.finish(request)
        assert not memory._pending
    llm.generate([prompt, prompt[:5]], GREEDY)
    assert not memory._pending


def test_every_sequence_finds_its_rows(golden_v41: Path) -> None:
    """As many decodes in a step as options allow, more than a store keeps of itself."""
    llm = LLM(golden_v41 / "fp8_fp4", max_num_seqs=70, max_model_len=256, max_total_tokens=1 << 15, progress=False)
    llm.generate([[5 + i] for i in range(70)], SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    assert llm.runner.memory is not None
    metrics = llm.runner.memory.metrics
    assert (metrics.taken_ready + metrics.taken_late, metrics.taken_unasked) == (140, 140)
