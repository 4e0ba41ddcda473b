# SPDX-License-Identifier: Apache-2.0
"""The block drafter: the released model's drafts, the same ones however they come about, and outputs that are those without."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.config import EngineConfig, ModelConfig
from ascend_dsv4.demo.checkpoint import CONFIG, write_checkpoint
from ascend_dsv4.engine.engine import Engine
from ascend_dsv4.errors import ConfigError, RequestError
from ascend_dsv4.kv_cache.accounting import account
from ascend_dsv4.kv_cache.layout import plan_caches
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.spec_decode.draft import Draft
from ascend_dsv4.spec_decode.drafter import Draw, Wanted
from ascend_dsv4.spec_decode.dspark import DSparkDrafter
from ascend_dsv4.spec_decode.stages import Drafts
from tests.engine.harness import check_empty, check_invariants

BLOCK = 5
WINDOW = 16
FEW = dict.fromkeys((17, 300), 60.0)
"""A bias that leaves two tokens, between which a random draft stage is right now and then."""
GREEDY = SamplingParams(max_tokens=36, temperature=0, ignore_eos=True, logit_bias=FEW, logprobs=1)
DRAWN = SamplingParams(max_tokens=24, seed=3, top_p=0.9, ignore_eos=True, logit_bias=FEW, frequency_penalty=0.3, logprobs=0)
PLAIN = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)


@functools.cache
def opened(folder: Path, **options: Any) -> LLM:
    """One for equal options: they leave nothing behind."""
    return LLM(folder, weights="fp32", ops="reference", progress=False, **options)


def make(golden_v41: Path, **options: Any) -> LLM:
    return opened(golden_v41 / "fp8_fp4", **options)


@pytest.fixture(scope="module")
def exact(golden_v41: Path) -> LLM:
    return make(golden_v41, cache_rounding="off")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(2, 500, length).tolist() for length in (3, 33, 61)]


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
    llm = exact if folder == "fp8_fp4" else opened(golden_v41 / folder, cache_rounding="off")
    worst = 0.0
    for step, golden, text in golden_texts(golden_v41, prompt):
        if folder == "bf16" and step % 7:
            continue  # the same numbers in other files
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


@pytest.fixture(scope="module")
def stages_alone(golden_v41: Path) -> Callable[[tuple[int, ...]], Drafts]:
    """Drafts behind a text that was processed in one step, by an engine that does not draft."""
    llm = make(golden_v41, window_block_size=64)
    return functools.cache(lambda text: llm.draft(text, "dspark"))


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 512},
        {"max_num_batched_tokens": 13, "window_block_size": 1, "batch_bucket": 4},
        {"max_num_batched_tokens": 40, "window_block_size": 3, "num_speculative_tokens": 1},
    ],
    ids=["one prefill", "small chunks", "one draft"],
)
def test_drafts_do_not_depend_on_the_schedule(
    golden_v41: Path, prompts: list[list[int]], stages_alone: Callable[..., Drafts], options: dict[str, int]
) -> None:
    """Beside others, over prompts in chunks, after accepted and rejected drafts, with windows given back long ago: to the bit
    those of the stages alone over the whole text, row by row as long as the drafts in front are the same."""
    llm = make(golden_v41, speculative="dspark", **options)
    drafter = Recorder(llm)
    engine = Engine(llm.config, llm.engine_config, llm.runner, drafter=drafter)
    each = [GREEDY, PLAIN, GREEDY]
    requests = [engine.submit(prompt, replace(one, logprobs=None)) for prompt, one in zip(prompts, each, strict=True)]
    held = []
    while engine.has_work:
        engine.step()
        check_invariants(engine)
        held += [len(blocks.window) for blocks in engine.manager.requests.values()]
    check_empty(engine)
    assert 0 < engine.stats.num_accepted_tokens < engine.stats.num_draft_tokens
    assert max(held[-20:]) <= -(-(WINDOW + BLOCK) // llm.engine_config.window_block_size) + 1, "windows are given back"
    bias = np.zeros(512, np.float32)
    bias[list(FEW)] = 60
    compared = 0
    for text, (ids, logits, confidences) in drafter.seen.items():
        is_plain = list(text[:33]) == prompts[1]
        if len(text) % 3 and not is_plain:
            continue
        best, expected, chances = stages_alone(text)
        assert chances is not None
        for j, token in enumerate(ids):
            assert np.array_equal(logits[j], expected[j]), f"{len(text)} tokens, row {j}"
            assert confidences[j] == chances[j]
            assert token == (logits[j] + (0 if is_plain else bias)).argmax()
            compared += 1
            if token != best[j]:
                break
    print("COMPARED", compared)
    lengths = {len(text) for text in drafter.seen}
    assert min(lengths) < WINDOW and max(lengths) > 61 + WINDOW
    assert [len(request.output_ids) for request in requests] == [one.max_tokens for one in each]


@pytest.fixture(scope="module")
def expected(golden_v41: Path, prompts: list[list[int]]) -> list[Any]:
    return make(golden_v41).generate(prompts, [GREEDY, DRAWN, PLAIN])


@pytest.mark.parametrize("num_drafts", [None, 2])
def test_outputs_are_those_without_drafts(
    golden_v41: Path, prompts: list[list[int]], expected: list[Any], num_drafts: int | None
) -> None:
    """Batched with strangers, tokens and log-probabilities to the bit."""
    llm = make(golden_v41, speculative="dspark", num_speculative_tokens=num_drafts)
    assert llm.generate(prompts, [GREEDY, DRAWN, PLAIN]) == expected
    stats = llm.engine.stats
    assert stats.num_accepted_tokens > 5, "a drafter that is never right shows nothing"
    assert stats.num_accepted_tokens < stats.num_draft_tokens, "nor does one that is never wrong"
    assert stats.num_steps < GREEDY.max_tokens
    check_empty(llm.engine)


def test_outputs_without_rounding(golden_v41: Path, exact: LLM, prompts: list[list[int]]) -> None:
    llm = make(golden_v41, cache_rounding="off", speculative="dspark")
    each = [DRAWN, GREEDY]
    prompts = prompts[:2]
    assert llm.generate(prompts, each) == exact.generate(prompts, each)
    assert llm.engine.stats.num_accepted_tokens > 5


def test_preemption(golden_v41: Path) -> None:
    """Both grow into the one block that is left; the younger one goes and comes back with keys made anew."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(2, 500, length).tolist() for length in (113, 120)]
    each = [replace(GREEDY, max_tokens=24), DRAWN]
    small = {"max_num_seqs": 2, "max_model_len": 256, "max_total_tokens": 256}
    llm = make(golden_v41, speculative="dspark", **small)
    outputs = llm.generate(prompts, each)
    assert llm.engine.stats.num_preemptions > 0
    assert llm.engine.stats.num_accepted_tokens > 5
    assert outputs == make(golden_v41).generate(prompts, each)
    check_empty(llm.engine)


def test_images(golden_v41: Path) -> None:
    """In the middle of a prompt whose chunks cut them."""
    rng = np.random.default_rng(4)
    image = Image.fromarray(rng.integers(0, 255, (90, 120, 3), dtype=np.uint8))
    prompt = [5, 6, 511, *rng.integers(2, 500, 9).tolist(), 511, 7, 8]
    prompts, images = [prompt, prompt[:3]], [[image, image.rotate(90, expand=True)], [image]]
    each = [replace(GREEDY, max_tokens=20), replace(DRAWN, max_tokens=20)]
    plain = make(golden_v41).generate(prompts, each, images=images)
    llm = make(golden_v41, speculative="dspark", max_num_batched_tokens=16)
    assert llm.generate(prompts, each, images=images) == plain
    assert llm.engine.stats.num_accepted_tokens > 2
    assert len(plain[0].prompt_token_ids) > 16


def test_the_end_of_the_longest_sequence(golden_v41: Path) -> None:
    """A block that would not end within max_model_len is not run; the tokens there come one by one, and are the same."""
    prompt = np.random.default_rng(6).integers(2, 500, 40).tolist()
    params = replace(GREEDY, max_tokens=100)
    llm = make(golden_v41, speculative="dspark", max_model_len=64, window_block_size=1)
    (output,) = llm.generate(prompt, params)
    (plain,) = make(golden_v41, max_model_len=64).generate(prompt, params)
    assert output == plain
    assert len(output.token_ids) == 24
    ids, _, _ = llm.draft([*prompt, *output.token_ids][: 64 - BLOCK + 1], "dspark")
    assert len(ids) == BLOCK
    with pytest.raises(RequestError, match=r"got 61 tokens, expected at most 60, because a block of 5"):
        llm.draft([*prompt, *output.token_ids][:61], "dspark")


def test_drafting_with_an_engine_that_does_not(golden_v41: Path, prompts: list[list[int]]) -> None:
    """Whose tables are made for the rows of a small step."""
    one, other = (make(golden_v41, max_num_batched_tokens=size, window_block_size=size) for size in (1, 64))
    for mine, expected in zip(one.draft(prompts[1], "dspark"), other.draft(prompts[1], "dspark"), strict=True):
        assert mine is not None and expected is not None and np.array_equal(mine, expected)


def test_more_drafts_than_a_block_has(golden_v41: Path) -> None:
    with pytest.raises(ConfigError, match="num_speculative_tokens=6: expected at most 5"):
        make(golden_v41, speculative="dspark", num_speculative_tokens=6)


@pytest.mark.parametrize(("window_block_size", "num_drafts"), [(1, 1), (1, 5), (4, 1), (32, 5)])
def test_window_blocks_cover_the_block(golden_v41: Path, window_block_size: int, num_drafts: int) -> None:
    """All sequences at once: a window of final rows, and a block behind them, however few of its drafts are used."""
    config = ModelConfig.from_file(golden_v41 / "fp8_fp4")
    engine = EngineConfig(
        speculative="dspark", num_speculative_tokens=num_drafts, max_num_seqs=3, max_num_batched_tokens=12,
        window_block_size=window_block_size,
    )  # fmt: skip
    manager = CacheManager(plan_caches(config, engine))
    for number in range(3):
        manager.admit(number, 40)
        for end in range(1, 40):
            manager.begin_step(number, end - 1, end)
            manager.commit(number, end)
    for start in range(39, 90):
        for number in range(3):
            manager.begin_step(number, start, start + BLOCK)
            seen = np.arange(start - WINDOW, start + BLOCK)
            table, size = manager.window_table(number), window_block_size
            slots = table[seen // size % len(table)] * size + seen % size
            assert np.array_equal(slots, manager.window_slots(number, seen))
        for number in range(3):
            manager.commit(number, start + 1)


def test_caches_of_the_stages_are_counted(golden_v41: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three stages with a window each: 17 blocks of 32 rows of 96 float32 numbers for two sequences."""
    llm = make(golden_v41, speculative="dspark", max_num_seqs=2, max_num_batched_tokens=32)
    blocks = llm.runner.plan.num_blocks["window"]
    assert blocks == 2 * (1 + 2) + 1
    counted = account(llm.config, llm.engine_config).draft
    assert counted is not None
    assert (counted.layers, counted.allocated_bytes) == (3, 3 * blocks * 32 * 96 * 4)
    assert (counted.row_bytes, counted.needed_bytes) == (96 * 4, 3 * 2 * (WINDOW + 1) * 96 * 4)
    weights, caches = llm._stages.num_bytes(llm.runner.weights, llm.runner.plan.num_blocks)
    assert caches == counted.allocated_bytes


def test_stages_that_read_the_outputs_of_layers(tmp_path: Path) -> None:
    """As V4-Flash-0731 does, with plain hyper-connections and a head of their own."""
    changes = {
        "compress_ratios": [0, 4, 128, 4, 0, 0], "dspark_block_size": 3, "dspark_noise_token_id": 2,
        "dspark_target_layer_ids": [1, 3], "dspark_markov_rank": 32, "num_nextn_predict_layers": 1,
    }  # fmt: skip
    write_checkpoint(tmp_path, {**CONFIG, **changes})
    llm = opened(tmp_path, speculative="dspark", num_speculative_tokens=3, max_model_len=256)
    ids = np.random.default_rng(3).integers(3, 256, 50).tolist()
    states = llm.hidden_states(ids)
    expected = np.concatenate([states[layer + 1].mean(1) for layer in (1, 3)], -1)
    np.testing.assert_allclose(taps(llm, ids), expected, rtol=1e-5, atol=1e-5)
    params = replace(GREEDY, max_tokens=20, logit_bias=dict.fromkeys((17, 40), 60.0))
    assert llm.generate([ids, ids[:5]], params) == opened(tmp_path).generate([ids, ids[:5]], params)
    assert llm.engine.stats.num_accepted_tokens > 5
