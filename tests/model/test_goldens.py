# SPDX-License-Identifier: Apache-2.0
"""The model against outputs of independent implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ascend_dsv4 import LLM
from tests.model.golden_report import MATH_ITEMS, VARIANTS, Item, greedy, math_logits, open_llm, qat_logits


@pytest.fixture(scope="module", params=VARIANTS)
def plain(request: pytest.FixtureRequest, full_golden_v4: Path) -> LLM:
    """Each variant in plain maths."""
    return open_llm(full_golden_v4 / request.param, "off")


@pytest.mark.parametrize("items", MATH_ITEMS.values(), ids=MATH_ITEMS)
def test_math(items: Callable[[LLM, Path], Iterator[Item]], plain: LLM, full_golden_v4: Path) -> None:
    missed = [str(item) for item in items(plain, full_golden_v4) if not item.passed]
    assert not missed, "\n".join(missed)


@pytest.mark.parametrize("variant", VARIANTS)
def test_storage_rounding(variant: str, full_golden_v4: Path) -> None:
    missed = [str(i) for i in qat_logits(open_llm(full_golden_v4 / variant, "released"), full_golden_v4) if not i.passed]
    assert not missed, "\n".join(missed)


def test_committed_goldens(golden_v4: Path) -> None:
    """What a plain clone carries is enough for prefill and greedy decoding."""
    llm = open_llm(golden_v4 / "fp8_fp4", "off")
    missed = [str(item) for part in (math_logits, greedy) for item in part(llm, golden_v4) if not item.passed]
    assert not missed, "\n".join(missed)


def test_weight_formats_hold_the_same_numbers(golden_v4: Path) -> None:
    """FP8 and FP4 bytes decoded on use, or while loading: the same bits come out."""
    ids = load_file(golden_v4 / "logits.safetensors")["len33.input_ids"].tolist()
    results = [LLM(golden_v4 / "fp8_fp4", weights=form, progress=False).logits(ids) for form in ("released", "fp32", "bf16")]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_bfloat16_compute_stays_near_float32(golden_v4: Path) -> None:
    """The README's order of magnitude for bf16 on random weights: rms 0.03 for five tokens."""
    data = load_file(golden_v4 / "logits.safetensors")
    llm = LLM(golden_v4 / "fp8_fp4", dtype="bfloat16", kv_cache="bf16", cache_rounding="off", progress=False)
    delta = llm.logits(data["len5.input_ids"].tolist()) - data["len5.logits"]
    assert 1e-3 < np.sqrt((delta**2).mean()) < 0.06
