# SPDX-License-Identifier: Apache-2.0
"""The block drafter: the released model's drafts, the same ones however they come about, and outputs that are those without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.config import EngineConfig, ModelConfig
from ascend_dsv4.engine.engine import Engine
from ascend_dsv4.errors import CapacityError, ConfigError, RequestError
from ascend_dsv4.kv_cache.accounting import account
from ascend_dsv4.kv_cache.layout import plan_caches
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.spec_decode.draft import Draft
from ascend_dsv4.spec_decode.drafter import Draw, Wanted
from ascend_dsv4.spec_decode.dspark import DSparkDrafter
from tests.engine.harness import check_empty, check_invariants

BLOCK = 5
WINDOW = 16
FEW = dict.fromkeys((17, 300), 60.0)
"""A bias that leaves two tokens, between which a random draft stage is right now and then."""
GREEDY = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, logit_bias=FEW, logprobs=1)
DRAWN = SamplingParams(max_tokens=30, seed=3, top_p=0.9, ignore_eos=True, logit_bias=FEW, frequency_penalty=0.3, logprobs=0)
PLAIN = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


def make(golden_v41: Path, **options: Any) -> LLM:
    return LLM(golden_v41 / "fp8_fp4", **{"weights": "fp32", "ops": "reference", "progress": False, **options})


@pytest.fixture(scope="module")
def exact(golden_v41: Path) -> LLM:
    return make(golden_v41, cache_rounding="off")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(2, 500, length).tolist() for length in (3, 61, 119)]


def golden_texts(golden_v41: Path, prompt: str) -> Iterator[tuple[int, dict[str, np.ndarray], list[int]]]:
    """Of every step: its number, the goldens of the prompt, and the text whose last token is the block's first."""
    data = load_file(golden_v41 / "dspark.safetensors")
    of_prompt = {name.removeprefix(f"{prompt}."): tensor for name, tensor in data.items() if name.startswith(f"{prompt}.")}
    for step, anchor in enumerate(of_prompt["anchor_ids"].tolist()):
        yield step, of_prompt, [*of_prompt["input_ids"].tolist(), *of_prompt["step_input"][: step + 1].tolist(), anchor]


@pytest.mark.parametrize("folder", ["fp8_fp4", "bf16"])
@pytest.mark.parametrize("prompt", ["len33", "len130", "len300"])
def test_drafts_of_the_released_model(golden_v41: Path, exact: LLM, prompt: str, folder: str) -> None:
    if folder == "bf16" and not (golden_v41 / folder / "model.safetensors").exists():
        pytest.skip("the committed goldens hold one of the two checkpoints")
    llm = exact if folder == "fp8_fp4" else LLM(golden_v41 / folder, cache_rounding="off", ops="reference", progress=False)
    worst = 0.0
    for step, golden, text in golden_texts(golden_v41, prompt):
        ids, logits, confidences = llm.draft(text, "dspark")
        assert ids.tolist() == golden["draft_ids"][step, 1:].tolist()
        assert golden["draft_ids"][step, 0] == text[-1]
        assert confidences is not None
        worst = max(worst, np.abs(logits - golden["draft_logits"][step]).max())
        worst = max(worst, np.abs(confidences - golden["confidence"][step]).max())
    assert step == 7
    assert worst < 1e-4


def taps(llm: LLM, token_ids: Sequence[int]) -> np.ndarray:
    """The inputs of the drafter side by side, [num_tokens, taps · hidden_size]."""
    found: list[np.ndarray] = []
    forward = llm.runner.forward

    def spy(batch: Any, num_tokens: int, tap: Any = None) -> Any:
        result = forward(batch, num_tokens, tap)
        names = sorted(name for name in result.carry if name.startswith("tap"))
        found.append(np.concatenate([llm.backend.to_host(result.carry[name])[:num_tokens] for name in names], -1))
        return result

    llm.runner.forward = spy  # type: ignore[method-assign]
    try:
        llm.logits(token_ids, chunk_size=64)
    finally:
        llm.runner.forward = forward  # type: ignore[method-assign]
    return np.concatenate(found)


@pytest.mark.parametrize("prompt", ["len33", "len130", "len300"])
def test_inputs_of_the_drafter(golden_v41: Path, exact: LLM, prompt: str) -> None:
    *_, (_, golden, text) = golden_texts(golden_v41, prompt)
    found, length = taps(exact, text[:-1]), len(golden["input_ids"])
    assert np.abs(found[length:] - golden["step_main_hidden"]).max() < 1e-4
    before = golden["prefill_main_hidden"]
    assert np.abs(found[length - len(before) : length] - before).max() < 1e-4
    assert before.std() > 0.1


class Recorder(DSparkDrafter):
    """Keeps what it proposes, by tokens before, with logits and confidences."""

    def __init__(self, llm: LLM) -> None:
        super().__init__(llm.runner)
        self._host = llm.backend.to_host
        self.seen: dict[tuple[int, ...], tuple[tuple[int, ...], list[np.ndarray], list[float]]] = {}
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []
        run = llm.runner.run_dspark_markov

        def spy(*args: Any) -> Any:
            corrected, confidence = run(*args)
            self._rows.append((self._host(corrected), self._host(confidence)))
            return corrected, confidence

        self._markov = spy

    def propose(self, wanted: Sequence[Wanted], manager: CacheManager, draw: Draw) -> list[Draft]:
        self._rows = []
        runner = self._runner
        before, runner.run_dspark_markov = runner.run_dspark_markov, self._markov  # type: ignore[method-assign]
        drafts = super().propose(wanted, manager, draw)
        runner.run_dspark_markov = before  # type: ignore[method-assign]
        going = [i for i, draft in enumerate(drafts) if draft.ids]
        logits: dict[int, list[np.ndarray]] = {i: [] for i in going}
        confidences: dict[int, list[float]] = {i: [] for i in going}
        for j, (rows, chances) in enumerate(self._rows):
            here = [i for i in going if len(drafts[i].ids) > j]
            for at, i in enumerate(here):
                logits[i].append(rows[at])
                confidences[i].append(float(chances[at, 0]))
        for i in going:
            request = wanted[i].request
            self.seen[tuple(request.tokens(0, request.num_tokens))] = (drafts[i].ids, logits[i], confidences[i])
        return drafts


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 512},
        {"max_num_batched_tokens": 13, "window_block_size": 1, "batch_bucket": 4},
        {"max_num_batched_tokens": 40, "window_block_size": 3, "num_speculative_tokens": 1},
    ],
    ids=["one prefill", "small chunks", "one draft"],
)
def test_drafts_do_not_depend_on_the_schedule(golden_v41: Path, prompts: list[list[int]], options: dict[str, int]) -> None:
    """Beside others, over prompts in chunks, after accepted and rejected drafts, with windows given back long ago: to the bit
    those of the stages alone over the whole text in one step, whose logits the block's first row and, where the drafts before
    it were the best ones, its further rows have."""
    llm = make(golden_v41, speculative="dspark", **options)
    drafter = Recorder(llm)
    engine = Engine(llm.config, llm.engine_config, llm.runner, drafter=drafter)
    requests = [engine.submit(prompt, replace(GREEDY, logprobs=None)) for prompt in prompts]
    held = []
    while engine.has_work:
        engine.step()
        check_invariants(engine)
        held += [len(blocks.window) for blocks in engine.manager.requests.values()]
    check_empty(engine)
    size = llm.engine_config.window_block_size
    assert max(held[-20:]) * size <= WINDOW + 1 + BLOCK + 2 * size, "windows are given back"
    assert 0 < engine.stats.num_accepted_tokens < engine.stats.num_draft_tokens
    alone = make(golden_v41, max_num_batched_tokens=512, window_block_size=64)
    bias = np.zeros(512, np.float32)
    bias[list(FEW)] = 60
    compared = 0
    for text, (ids, logits, confidences) in [*drafter.seen.items()][::2]:
        best, expected, chances = alone.draft(text, "dspark")
        assert chances is not None
        for j, token in enumerate(ids):
            assert np.array_equal(logits[j], expected[j]), f"{len(text)} tokens, row {j}"
            assert confidences[j] == chances[j]
            assert token == (logits[j] + bias).argmax()
            compared += 1
            if token != best[j]:
                break
    assert compared >= len(drafter.seen) // 2 > 10
    lengths = {len(text) for text in drafter.seen}
    assert min(lengths) < WINDOW and max(lengths) > 119 + WINDOW
    assert len(requests[0].output_ids) == GREEDY.max_tokens > 2 * WINDOW
