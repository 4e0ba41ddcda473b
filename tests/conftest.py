# SPDX-License-Identifier: Apache-2.0
"""Where goldens are found, seeds per test, and what happens to tests whose goldens are missing."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ascend_dsv4  # noqa: F401  (sets OpenMP up before torch loads)

TESTS = Path(__file__).parent
COMMITTED = TESTS / "goldens"
NEEDED = {
    "golden_v4": ("v4",),
    "golden_v41_parts": ("v41/engram.safetensors", "v41/quant_units.safetensors", "v41/vision.safetensors"),
    "golden_v41": ("v41/fp8_fp4/model.safetensors.index.json", "v41/logits.safetensors"),
    "golden_v32": ("v32/fp8/model.safetensors.index.json", "v32/logits.safetensors"),
    "full_golden_v4": ("v4/bf16/model.safetensors",),
    "full_golden_v41": tuple(f"v41/{name}.safetensors" for name in ("bf16/model", "hidden_len300", "modules_len300")),
    "full_golden_v32": tuple(f"v32/{name}.safetensors" for name in ("bf16/model", "hidden_len130", "modules_len130")),
}
"""Fixture → what must be among the goldens for it. Committed are one checkpoint, that of V4, and those of V4.1 that need none:
two checkpoints with their logits are more than 10 MB."""


def _golden_root() -> Path:
    """$ASCEND_DSV4_GOLDENS, else goldens beside the checkout, else the committed part."""
    if named := os.environ.get("ASCEND_DSV4_GOLDENS"):
        if not Path(named).is_dir():
            raise pytest.UsageError(f"ASCEND_DSV4_GOLDENS={named} is not a folder; unset it or point it at the goldens")
        return Path(named)
    beside = TESTS.parent.parent / "shared" / "goldens"
    return beside if beside.is_dir() else COMMITTED


def _absent_fixtures() -> set[str]:
    """Golden fixtures that have nothing to return."""
    root = _golden_root()
    return {fixture for fixture, paths in NEEDED.items() if not all((root / path).exists() for path in paths)}


def pytest_configure() -> None:
    """In CI missing goldens are a failure."""
    if os.environ.get("CI") and (absent := _absent_fixtures()):
        raise pytest.UsageError(
            f"CI needs the full golden set, but {_golden_root()} lacks what {', '.join(sorted(absent))} need; set "
            "ASCEND_DSV4_GOLDENS to its folder"
        )


def _needed_fixtures(item: pytest.Item) -> set[str]:
    """Fixtures that a test asks for, and those its marks name: a parameter may choose one when it runs."""
    return {*getattr(item, "fixturenames", ()), *(name for mark in item.iter_markers("goldens") for name in mark.args)}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without all goldens the tests that need those missing are left out, and said so; in CI it does not come to that."""
    absent = _absent_fixtures()
    missing = [item for item in items if absent.intersection(_needed_fixtures(item))]
    if not missing:
        return
    config.hook.pytest_deselected(items=missing)
    left_out = set(missing)
    items[:] = [item for item in items if item not in left_out]
    config.stash[_LEFT_OUT] = len(missing)


_LEFT_OUT = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that runs tests for another one, which reports, hands on how many it left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(_LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """All of them collect the same tests."""
    if output := getattr(node, "workeroutput", None):
        node.config.stash[_LEFT_OUT] = output["left_out"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The one line about tests that were left out."""
    if count := config.stash.get(_LEFT_OUT, 0):
        terminalreporter.write_line(f"{count} tests deselected: they need the full golden set (ASCEND_DSV4_GOLDENS)")


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    """Every test draws its own reproducible random numbers, whichever tests run beside it."""
    import torch

    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny models spend their time waiting for a second thread; tests about threads set their own number."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_v4() -> Path:
    """The V4 goldens, at least the committed part: fp8_fp4/, logits.safetensors, tokenizer_cases.json."""
    return _golden_root() / "v4"


@pytest.fixture(scope="session")
def full_golden_v4() -> Path:
    """All V4 goldens: also bf16/, hidden states, module tensors, qat and MTP logits."""
    return _golden_root() / "v4"


@pytest.fixture(scope="session")
def golden_v41() -> Path:
    """The V4.1 goldens, at least fp8_fp4/, logits, Engram, vision, DSpark and quantiser vectors."""
    return _golden_root() / "v41"


@pytest.fixture(scope="session")
def golden_v41_parts() -> Path:
    """The V4.1 goldens, at least the committed part: Engram, vision and quantiser vectors, configuration and tokenizer."""
    return _golden_root() / "v41"


@pytest.fixture(scope="session")
def full_golden_v41() -> Path:
    """All V4.1 goldens: also bf16/, hidden states and module tensors."""
    return _golden_root() / "v41"


@pytest.fixture(scope="session")
def golden_v32() -> Path:
    """The V3.2 goldens, at least fp8/, logits.safetensors, tokenizer_cases.json."""
    return _golden_root() / "v32"


@pytest.fixture(scope="session")
def full_golden_v32() -> Path:
    """All V3.2 goldens: also bf16/, hidden states and module tensors."""
    return _golden_root() / "v32"
