# SPDX-License-Identifier: Apache-2.0
"""The drafters that ship: what they propose, and that they change nothing but the number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.demo.checkpoint import CONFIG, write_checkpoint
from ascend_dsv4.engine.engine import Engine
from ascend_dsv4.errors import UnsupportedError
from ascend_dsv4.kv_cache.manager import CacheManager
from ascend_dsv4.spec_decode.draft import Draft
from ascend_dsv4.spec_decode.drafter import Draw, Wanted
from ascend_dsv4.spec_decode.mtp import MtpDrafter
from ascend_dsv4.spec_decode.ngram import lookup
from ascend_dsv4.spec_decode.pace import PAUSE, Pace
from tests.engine.harness import check_empty

FEW = dict.fromkeys((17, 300), 60.0)
"""A bias that leaves two tokens: a random model repeats itself, and its draft stage is right now and then."""
GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, logit_bias=FEW, logprobs=1)
DRAWN = SamplingParams(max_tokens=24, seed=3, top_p=0.9, ignore_eos=True, logit_bias=FEW, frequency_penalty=0.3)
PLAIN = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


@pytest.mark.parametrize(
    ("text", "count", "ids"),
    [
        ([], 4, []), ([5], 4, []), ([5, 5], 4, []), ([5, 6, 7], 4, []),
        ([1, 9, 2, 9], 4, []),  # one token alone is no match
        ([1, 2, 3, 4, 1, 2], 2, [3, 4]),
        ([1, 2, 3, 4, 1, 2], 4, [3, 4, 1, 2]),
        ([1, 2, 3, 1, 2, 4, 1, 2], 1, [4]),  # the most recent of equals
        ([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 1, [3]),  # the longer match wins over the more recent one
        ([9, 8, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 6, 9, 8, 1, 2, 3, 4], 1, [6]),  # four are enough
        ([5, 5, 5], 3, [5, 5, 5]),
        ([1, 2, 1, 2], 5, [1, 2, 1, 2, 1]),  # the match reaches the end, so its period goes on
    ],
)
def test_lookup(text: list[int], count: int, ids: list[int]) -> None:
    assert lookup(np.asarray(text, np.int32), count) == ids


def test_lookup_of_random_texts() -> None:
    """Against a search that tries every length and place."""

    def slow(text: list[int], count: int) -> list[int]:
        for length in range(min(4, len(text) - 1), 1, -1):
            for end in range(len(text) - 1, length - 1, -1):
                if text[end - length : end] == text[-length:]:
                    longer = [*text]
                    for i in range(count):
                        longer.append(longer[end + i])
                    return longer[len(text) :]
        return []

    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        text = rng.integers(0, 4, rng.integers(1, 25)).tolist()
        count = int(rng.integers(1, 6))
        expected = slow(text, count)
        assert lookup(np.asarray(text, np.int32), count) == expected
        hits += bool(expected)
    assert 100 < hits < 400


def test_pace() -> None:
    """Drafts that are never accepted pause, one attempt decides after that, and a single success goes on."""
    pace = Pace(cost=0.1)
    rounds = 0
    while pace.allows(rounds):
        pace.record(4, 0, rounds + 1)
        rounds += 1
    assert rounds == 9, "0.75 ** 9 < 0.1"
    assert not pace.allows(rounds + PAUSE - 1) and pace.allows(rounds + PAUSE)
    pace.record(4, 0, 50)
    assert not pace.allows(50 + PAUSE - 1)
    pace.record(4, 1, 90)
    assert pace.allows(90) and pace.share > 0.1


def test_pace_of_good_drafts() -> None:
    """Half of a single draft each time pays at a quarter of a step each, and does not at three quarters."""
    cheap, dear = Pace(cost=0.25), Pace(cost=0.75)
    for length in range(100):
        cheap.record(1, length % 2, length)
        dear.record(1, length % 2, length)
        assert cheap.allows(length)
    assert not dear.allows(99)


def make(golden_v4: Path, **options: Any) -> LLM:
    return LLM(golden_v4 / "fp8_fp4", weights="fp32", ops="reference", progress=False, **options)


@pytest.fixture(scope="module")
def plain(golden_v4: Path) -> LLM:
    return make(golden_v4)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(2)
    return [rng.integers(2, 512, length).tolist() for length in (3, 119, 60)]


@pytest.fixture(scope="module")
def expected(plain: LLM, prompts: list[list[int]]) -> list[Any]:
    return plain.generate(prompts, [GREEDY, DRAWN, PLAIN])


@pytest.mark.parametrize("options", [("ngram", None), ("ngram", 16), ("mtp", None), ("mtp", 3)], ids=str)
def test_outputs_are_those_without_drafts(
    golden_v4: Path, prompts: list[list[int]], expected: list[Any], options: tuple[str, int | None]
) -> None:
    llm = make(golden_v4, speculative=options[0], num_speculative_tokens=options[1])
    assert llm.generate(prompts, [GREEDY, DRAWN, PLAIN]) == expected
    stats = llm.engine.stats
    assert stats.num_accepted_tokens > 5, "a drafter that is never right shows nothing"
    assert stats.num_accepted_tokens < stats.num_draft_tokens, "nor does one that is never wrong"
    assert stats.num_steps < GREEDY.max_tokens
    check_empty(llm.engine)


class Recorder(MtpDrafter):
    """Keeps what it proposes, by tokens before."""

    def __init__(self, llm: LLM) -> None:
        super().__init__(llm.runner)
        self.seen: dict[tuple[int, ...], tuple[int, ...]] = {}
        self.logits: dict[tuple[int, ...], np.ndarray] = {}
        """Of the first draft."""

    def propose(self, wanted: Sequence[Wanted], manager: CacheManager, draw: Draw) -> list[Draft]:
        drafts = super().propose(wanted, manager, draw)
        for one, draft in zip(wanted, drafts, strict=True):
            text = tuple(one.request.tokens(0, one.request.num_tokens))
            self.seen[text] = draft.ids
            row, _ = self._last_rows[one.request.request_id]
            self.logits[text] = self._runner.backend.to_host(self._logits[row])
        return drafts


def test_mtp_drafts_are_those_of_the_stage_alone(golden_v4: Path) -> None:
    """After accepted and rejected drafts, beside others and with leftovers of further drafts in its cache, the first draft is
    that of the stage run over the whole text; the further ones do not depend on how the text came about."""
    llm = make(golden_v4, speculative="mtp", num_speculative_tokens=3)
    rng = np.random.default_rng(7)
    prompts = [rng.integers(2, 512, length).tolist() for length in (30, 9)]
    params = replace(GREEDY, max_tokens=20, logprobs=None)
    bias = np.zeros(512, np.float32)
    bias[list(FEW)] = 60

    drafter = Recorder(llm)
    engine = Engine(llm.config, llm.engine_config.replace(max_num_batched_tokens=16), llm.runner, drafter=drafter)
    requests = [engine.submit(prompt, params) for prompt in prompts]
    while engine.has_work:
        engine.step()
    assert engine.stats.num_accepted_at[0] > 2
    assert engine.stats.num_accepted_tokens < engine.stats.num_draft_tokens - 5
    seen = drafter.seen
    assert len(seen) > 15

    for text, ids in [*seen.items()][::2]:
        _, logits, _ = llm.draft(text, "mtp")
        assert np.array_equal(drafter.logits[text], logits[-1])
        assert ids[0] == (logits[-1] + bias).argmax()
        again = Recorder(llm)
        fresh = Engine(llm.config, llm.engine_config, llm.runner, drafter=again)
        left = requests[0].max_tokens - (len(text) - next(len(p) for p in prompts if text[: len(p)] == tuple(p)))
        fresh.submit(text[:-1], replace(params, max_tokens=left + 1))
        while tuple(text) not in again.seen:
            fresh.step()
        assert again.seen[text] == ids
        fresh.reset()


def test_methods_that_cannot_run(golden_v4: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="carries mtp draft stages"):
        make(golden_v4, speculative="dspark")
    ratios = list(CONFIG["compress_ratios"])[: CONFIG["num_hidden_layers"]]
    without = {key: value for key, value in CONFIG.items() if key not in ("n_mtp_layers", "num_nextn_predict_layers")}
    write_checkpoint(tmp_path, {**without, "compress_ratios": ratios})
    with pytest.raises(UnsupportedError, match="carries no draft stages"):
        LLM(tmp_path, speculative="mtp", progress=False)
