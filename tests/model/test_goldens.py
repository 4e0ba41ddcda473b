# SPDX-License-Identifier: Apache-2.0
"""The models against outputs of independent implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ascend_dsv4 import LLM
from tests.model.golden_report import FAMILIES, MATH_ITEMS, Item, greedy, math_logits, open_llm, rounded_logits

VARIANTS = [(name, variant) for name, family in FAMILIES.items() for variant in family.variants]
PARTS = [(name, variant, part) for name, variant in VARIANTS for part in FAMILIES[name].parts]
ROUNDED = [(name, variant) for name, variant in VARIANTS if FAMILIES[name].rounded]


@pytest.fixture(scope="module")
def folders(full_golden_v4: Path, full_golden_v41: Path, full_golden_v32: Path) -> dict[str, Path]:
    """Family → its goldens."""
    return {folder.name: folder for folder in (full_golden_v4, full_golden_v41, full_golden_v32)}


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path]) -> Callable[[str, str], LLM]:
    """A variant in plain maths, opened once."""
    return cache(lambda name, variant: open_llm(folders[name] / variant, "off"))


@pytest.mark.parametrize(("name", "variant", "part"), PARTS)
def test_math(name: str, variant: str, part: str, plain: Callable[[str, str], LLM], folders: dict[str, Path]) -> None:
    assert_passed(MATH_ITEMS[part](plain(name, variant), folders[name]))


@pytest.mark.parametrize(("name", "variant"), ROUNDED)
def test_storage_rounding(name: str, variant: str, folders: dict[str, Path]) -> None:
    assert_passed(rounded_logits(open_llm(folders[name] / variant, "released"), folders[name]))


def test_rounding_changes_the_logits(full_golden_v41: Path) -> None:
    """The two kinds of goldens are far apart, so that passing both says something."""
    data = load_file(full_golden_v41 / "logits.safetensors")
    assert np.abs(data["len130.math.logits"] - data["len130.qat.logits"]).max() > 1


def test_committed_goldens(golden_v4: Path) -> None:
    """What a plain clone carries is enough for prefill and greedy decoding."""
    llm = open_llm(golden_v4 / "fp8_fp4", "off")
    assert_passed(item for part in (math_logits, greedy) for item in part(llm, golden_v4))


def assert_passed(items: Iterator[Item]) -> None:
    compared = list(items)
    assert compared
    assert all(item.passed for item in compared), "\n".join(str(item) for item in compared if not item.passed)


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
