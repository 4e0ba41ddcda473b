# SPDX-License-Identifier: Apache-2.0
"""Compare a checkpoint of the V4 goldens with the outputs of independent implementations, by the rules of their README.

python tests/model/golden_report.py GOLDENS/v4        # table of every item, exit code 1 on a miss
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from ascend_dsv4 import LLM, SamplingParams

LENGTHS = (5, 33, 130, 300, 700)
VARIANTS = ("bf16", "fp8_fp4")
NOISE_LIMIT = 1e-3
"""Rows above it sit on a near-tie of a discrete choice."""
MAX_SKIPPED = 0.02
MIN_QAT_ROWS = 0.8
MODULE_ATOL = {"comb": 1e-5, "post": 1e-5, "attn_in": 1e-5, "ffn_in": 1e-5, "attn_in_all": 1e-5, "ffn_in_all": 1e-5,
               "final_norm.out": 5e-5, "weights": 1e-5}  # fmt: skip
"""Where the README names a bound; other tensors carry the scale of the residual streams."""
STREAM_ATOL = 1e-4
SETS = ("indexer.topk", "gate.ids")


@dataclass(frozen=True, slots=True)
class Item:
    """One comparison."""

    name: str
    max_abs: float
    limit: float
    elements: int
    rows: int
    skipped: int
    passed: bool

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "MISS"
        figures = f"max|d| {self.max_abs:.2e} of {self.limit:.1e}"
        return f"{self.name:36s} {figures}  {self.elements:9,d} elements  {self.skipped}/{self.rows} rows skipped  {verdict}"


def open_llm(folder: Path, cache_rounding: str) -> LLM:
    """The reference set in float32, whole prompts in one step."""
    return LLM(folder, ops="reference", cache_rounding=cache_rounding, max_num_batched_tokens=1024, progress=False)


def math_logits(llm: LLM, goldens: Path) -> Iterator[Item]:
    """Prefill logits of every prompt."""
    data = load_file(goldens / "logits.safetensors")
    for n in LENGTHS:
        actual = llm.logits(data[f"len{n}.input_ids"].tolist())[data[f"len{n}.positions"]]
        expected, noise = data[f"len{n}.logits"], data[f"len{n}.noise"]
        kept = noise <= NOISE_LIMIT
        limit = np.maximum(3e-4, 20 * noise)
        delta = np.abs(actual - expected).max(-1)
        skipped = int((~kept).sum())
        passed = bool((delta[kept] <= limit[kept]).all()) and skipped <= MAX_SKIPPED * len(kept)
        yield Item(f"logits len{n}", delta[kept].max(), limit.min(), expected[kept].size, len(kept), skipped, passed)


def greedy(llm: LLM, goldens: Path) -> Iterator[Item]:
    """32 greedy steps of every prompt, up to the first step whose margin is too small to tell."""
    data = load_file(goldens / "logits.safetensors")
    prompts = [data[f"len{n}.input_ids"].tolist() for n in LENGTHS]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=32, temperature=0, ignore_eos=True))
    for n, prompt, output in zip(LENGTHS, prompts, outputs, strict=True):
        expected = data[f"len{n}.greedy_ids"]
        logits = llm.logits([*prompt, *output.token_ids[:-1]])[len(prompt) - 1 :]
        delta = np.abs(logits - data[f"len{n}.greedy_logits"]).max(-1)
        usable = data[f"len{n}.greedy_margin"] > 10 * delta
        steps = len(usable) if usable.all() else int(usable.argmin())
        worst = float(delta[:steps].max(initial=0.0))
        enough = steps >= (1 - MAX_SKIPPED) * len(usable)
        passed = enough and worst <= 3e-4 and output.token_ids[:steps] == expected[:steps].tolist()
        yield Item(f"greedy len{n}", worst, 3e-4, steps, len(usable), len(usable) - steps, passed)


def modules(llm: LLM, goldens: Path) -> Iterator[Item]:
    """Hidden states and module tensors of the 300-token prompt, all layers of one name together."""
    for file in ("hidden_len300.safetensors", "modules_len300.safetensors"):
        data = load_file(goldens / file)
        positions = data.pop("positions")
        traced = llm.trace(data.pop("input_ids").tolist())
        _order_by_expert(traced)
        _order_by_expert(data)
        groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for name, expected in data.items():
            actual = traced[name]
            rows = actual if len(actual) == len(expected) else actual[positions]
            groups.setdefault(name.split(".", 1)[1] if name.startswith("layer") else name, []).append((rows, expected))
        for name, pairs in groups.items():
            yield _module(name, pairs)


def _order_by_expert(tensors: dict[str, np.ndarray]) -> None:
    """Gate ids and weights are pairs in no particular order: sort each row's pairs by id."""
    for name in [name for name in tensors if name.endswith("gate.ids")]:
        order = np.argsort(tensors[name], axis=-1)
        for pair in (name, name.replace("gate.ids", "gate.weights")):
            tensors[pair] = np.take_along_axis(tensors[pair], order, axis=-1)


def _module(name: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Item:
    elements, rows = sum(e.size for _, e in pairs), sum(len(e) for _, e in pairs)
    if name in SETS:
        wrong = sum(set(a[a >= 0]) != set(e[e >= 0]) for act, exp in pairs for a, e in zip(act, exp, strict=True))
        return Item(name, wrong, 0, elements, rows, 0, wrong == 0)
    worst = 0.0
    for actual, expected in pairs:
        finite = np.isfinite(expected)
        if not (np.isfinite(actual) == finite).all():
            return Item(name, np.inf, 0, elements, rows, 0, passed=False)
        worst = max(worst, float(np.abs(actual[finite] - expected[finite]).max()))
    limit = MODULE_ATOL.get(name, MODULE_ATOL.get(name.rpartition(".")[2], STREAM_ATOL))
    return Item(name, worst, limit, elements, rows, 0, worst <= limit)


def layer_outputs(llm: LLM, goldens: Path) -> Iterator[Item]:
    """`hidden_states` against the golden streams after each layer."""
    data = load_file(goldens / "hidden_len300.safetensors")
    states = llm.hidden_states(data["input_ids"].tolist())
    for layer in range(llm.config.num_hidden_layers):
        expected = data[f"layer{layer}.out_streams"]
        worst = float(np.abs(states[layer + 1][data["positions"]] - expected).max())
        yield Item(f"hidden_states[{layer + 1}]", worst, STREAM_ATOL, expected.size, len(expected), 0, worst <= STREAM_ATOL)


def mtp_logits(llm: LLM, goldens: Path) -> Iterator[Item]:
    """Drafts of the MTP stage."""
    data = load_file(goldens / "mtp.safetensors")
    for n in (130, 300, 700):
        _, logits, _ = llm.draft(data[f"len{n}.input_ids"].tolist(), "mtp")
        expected = data[f"len{n}.mtp_logits"]
        worst = float(np.abs(logits[data[f"len{n}.positions"]] - expected).max())
        yield Item(f"mtp len{n}", worst, 3e-4, expected.size, len(expected), 0, worst <= 3e-4)


def qat_logits(llm: LLM, goldens: Path) -> Iterator[Item]:
    """Logits with the released storage rounding: most rows, and all rows of the two short prompts."""
    data = load_file(goldens / "logits_qat.safetensors")
    for n in LENGTHS:
        actual = llm.logits(data[f"len{n}.input_ids"].tolist())[data[f"len{n}.positions"]]
        expected, noise = data[f"len{n}.logits"], data[f"len{n}.noise"]
        kept = noise <= NOISE_LIMIT
        delta = np.abs(actual - expected).max(-1)
        within = (delta <= np.maximum(3e-4, 20 * noise))[kept]
        passed = bool(within.all()) if n in (5, 33) else float(within.mean()) >= MIN_QAT_ROWS
        name = f"qat len{n}, {within.mean():.0%} of rows"
        yield Item(name, delta[kept].max(), 3e-4, expected[kept].size, len(kept), int((~kept).sum()), passed)


MATH_ITEMS = {"math": math_logits, "greedy": greedy, "modules": modules, "layers": layer_outputs, "mtp": mtp_logits}


def main(goldens: Path) -> int:
    items = []
    for variant in VARIANTS:
        print(f"--- {variant}")
        llm = open_llm(goldens / variant, "off")
        rounded = open_llm(goldens / variant, "released")
        for item in (*(i for part in MATH_ITEMS.values() for i in part(llm, goldens)), *qat_logits(rounded, goldens)):
            print(item, flush=True)
            items.append(item)
    return 0 if all(item.passed for item in items) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
