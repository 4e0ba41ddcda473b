# SPDX-License-Identifier: Apache-2.0
"""Whole models on the op set `ascendc-twin`: every operator that has a kernel runs it, the others are the reference's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ascend_dsv4 import LLM, SamplingParams
from ascend_dsv4.cli import main
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.registry import has_implementation
from ascend_dsv4.twin.kernel_library import KernelLibrary

KERNELS = {op for op in OP_NAMES if has_implementation(op, "ascendc-twin")}
BF16 = {"dtype": "bfloat16", "weights": "bf16", "kv_cache": "bf16", "cache_rounding": "off"}
PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Operators whose kernels have run."""
    seen: set[str] = set()
    launch = KernelLibrary.launch

    def watched(self: KernelLibrary, op: str, *arguments: object) -> None:
        seen.add(op)
        launch(self, op, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(KernelLibrary, "launch", watched)
    return seen


def test_the_model_generates_through_its_kernels(golden_v4: Path, launched: set[str]) -> None:
    """The tokens of the reference operators in float32, where no rounding takes other choices; every kernel called has run."""
    outputs = []
    for ops in ("reference", "ascendc-twin"):
        llm = LLM(golden_v4 / "fp8_fp4", ops=ops, weights="fp32", cache_rounding="off", max_model_len=128, progress=False)
        called = {node.op for graph in llm.runner.graphs.by_place(llm.config).values() for node in graph.nodes}
        (output,) = llm.generate(PROMPT, SamplingParams(max_tokens=2, temperature=0, logprobs=1, ignore_eos=True))
        assert output.logprobs is not None
        outputs.append((output.token_ids, [next(iter(row.values())) for row in output.logprobs]))
    assert launched == KERNELS & called and launched
    assert outputs[0][0] == outputs[1][0]
    np.testing.assert_allclose(outputs[1][1], outputs[0][1], atol=1e-3)


def test_the_command_says_what_runs_which_operator(golden_v4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(golden_v4 / "fp8_fp4"), "--ops", "ascendc-twin", "--max-model-len", "128",
                 "--dtype", "bfloat16", "--weights", "bf16", "--kv-cache", "bf16"]  # fmt: skip
    assert main(["generate", "--prompt", "Hello", "--max-tokens", "1", *arguments]) == 0
    assert "ops ascendc-twin = ascendc-twin (" in (said := capsys.readouterr().err) and "hc_post" in said
    assert main(["check", *arguments]) == 0
    assert f"operators: ascendc-twin = ascendc-twin ({', '.join(sorted(KERNELS))})" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.goldens(f"full_golden_{name}")) for name in ("v4", "v41")]
)
def test_the_bf16_bar(family: str, request: pytest.FixtureRequest, launched: set[str]) -> None:
    """The bar of the accuracy tool for bfloat16 models, with every kernel that there is."""
    model: Path = request.getfixturevalue(f"full_golden_{family}") / "bf16"
    candidate = [f"{name}={value}" for name, value in BF16.items() if name != "cache_rounding"]
    status = main(["compare", "model", "--model", str(model), "--bar", "--cache-rounding", "off", "--walk", "none",
                   "--max-model-len", "1024", "--greedy", "0", "--candidate", *candidate, "ops=ascendc-twin"])  # fmt: skip
    assert status == 0 and launched
