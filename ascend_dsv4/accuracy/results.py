# SPDX-License-Identifier: Apache-2.0
"""What a comparison found, as plain data: what tables, receipts and pages are made of. Framework-free."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["pass", "fail", "refused", "noted"]
"""refused: nothing could have failed. noted: figures without a verdict, because another golden decides."""
PARTS = 32
"""Parts of an output's first axis in `OutputResult.by_position`."""
BINS = ("0", "<= 1/1000", "<= 1/100", "<= 1/10", "<= 1/2", "<= 1", "<= 2", "<= 10", "> 10")
"""Bins of `OutputResult.histogram`: an element's error over its limit; what has no limit, such as NaN on one side, is last."""


@dataclass(frozen=True, slots=True)
class Worst:
    """The element furthest beyond, or least within, its limit."""

    index: tuple[int, ...]
    actual: float
    golden: float


@dataclass(frozen=True, slots=True)
class OutputResult:
    """One output of one call, held against one golden by one standard."""

    op: str
    implementation: str
    dtype: str
    """Compute dtype of the call."""
    case: str
    kind: str
    """Of the case: typical, boundary, hostile; expected for an answer from elsewhere; recorded for a capsule or dump."""
    output: str
    golden: str
    """float64, specified, expected, recorded, or the name of an implementation."""
    standard: str
    status: Status
    reason: str = ""
    """Why it failed or was refused; empty if it passed."""
    check: str = ""
    """Which check said so."""
    ratio: float = 0.0
    """Largest metric over its limit; ∞ where a check without a limit failed, 0 where nothing differs."""
    num_elements: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    """By the names of `accuracy.figures.FIGURES`."""
    worst: Worst | None = None
    histogram: tuple[int, ...] = ()
    """Elements by BINS."""
    by_position: tuple[float, ...] = ()
    """Largest error over its limit in each of up to PARTS equal parts of the first axis."""
    command: str = ""
    """Reproduces this one case."""
    seconds: float = 0.0
    """Of the whole case, goldens and other outputs included; 0 if it was not measured."""

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against it."""
        return self.status in ("pass", "noted")


@dataclass(frozen=True, slots=True)
class CaseError:
    """A case that did not come to an end."""

    op: str
    implementation: str
    dtype: str
    case: str
    message: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class NodeResult:
    """One output of one node of the model, in two runs over the same tokens."""

    number: int
    """In order of execution, over all graphs of a step."""
    step: int
    graph: str
    """layer3, embed, head, …"""
    layer: int | None
    node: str
    """Operator and how many of its kind came before in this graph: hc_pre.0."""
    op: str
    scope: str
    """Path of model functions."""
    where: str
    """File and line of the call in the model."""
    output: str
    state: Literal["same", "introduced", "inherited", "within"]
    """same: equal bits. introduced: the candidate's operator errs beyond its limit on the reference's inputs. inherited: it
    does not, and differs because its inputs do. within: it differs within its limit."""
    introduced: OutputResult
    """The candidate's operator on the reference's inputs, against the reference's output."""
    total: OutputResult
    """The candidate's own run against the reference's."""


@dataclass(frozen=True, slots=True)
class NodeElement:
    """One element of a node's output, looked at closely."""

    node: str
    """layer3/hc_pre.0"""
    output: str
    step: int
    index: tuple[int, ...]
    """In a cache: its row (block · rows per block + row), then the channel."""
    position: int | None
    """Of the token whose row it is in; None for outputs that have no row per token."""
    golden: float
    """The reference's operator on the reference's inputs, in the candidate's number format."""
    introduced: float
    """The candidate's operator on them."""
    reference: float
    """In the reference's run."""
    candidate: float
    """In the candidate's own run."""
    ratio: float
    """|introduced − golden| over its limit."""
    row_over: int
    """How many elements of its row are beyond their limits."""
    row_elements: int


@dataclass(frozen=True, slots=True)
class EndMetrics:
    """Two models at the end of the same tokens."""

    name: str
    """Of the prompt."""
    num_tokens: int
    kl_mean: float
    """Mean over positions of KL(reference ‖ candidate), nats."""
    kl_max: float
    top1_agreement: float
    """Share of positions with the same most likely token."""
    greedy_divergence: int | None
    """How many greedy tokens were equal before the first different one; None if all were."""
    greedy_tokens: int
    perplexity_reference: float
    perplexity_candidate: float
    max_abs: float
    """Largest difference of logits."""


@dataclass(frozen=True, slots=True)
class BarResult:
    """A bfloat16 model beside another implementation's bfloat16, both measured from float32 over the same prompts."""

    name: str
    """Of the model."""
    baseline: str
    """The other implementation, and how it was measured."""
    num_prompts: int
    num_positions: int
    kl_baseline: float
    """Mean over all positions of KL(float32 ‖ bfloat16), nats, of the other implementation."""
    kl: float
    """The same of the candidate."""
    limit: float
    status: Status
    """noted: too few positions for a verdict."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The same tokens computed in several ways that should not matter."""

    name: str
    """repeats, batch size, chunk size, padding, block order."""
    values: tuple[str, ...]
    """The ways."""
    num_distinct: int
    """Different outputs among them, bit for bit."""
    max_abs: float
    """Largest difference of logits between any of them and the first."""
    promised: bool
    """Whether the implementation promises a single output."""


@dataclass(frozen=True, slots=True)
class MutantResult:
    """One mutant of an operator, or one comparison that must be refused."""

    name: str
    op: str
    what: str
    """What is wrong with it."""
    original: float
    """Largest metric over limit of the unchanged operator on the same cases."""
    mutant: float
    case: str
    """Where it was caught first, else where its ratio is largest: case, dtype and output."""
    check: str
    """The check that caught it; empty if none did."""
    caught: bool
    """Original below and mutant above their margins."""


@dataclass(frozen=True, slots=True)
class Report:
    """A whole comparison."""

    title: str
    command: str
    environment: Mapping[str, str]
    standard: str
    results: tuple[OutputResult, ...] = ()
    errors: tuple[CaseError, ...] = ()
    nodes: tuple[NodeResult, ...] = ()
    elements: tuple[NodeElement, ...] = ()
    """Of the nodes that were asked for, the worst first."""
    ends: tuple[EndMetrics, ...] = ()
    bars: tuple[BarResult, ...] = ()
    sweeps: tuple[SweepResult, ...] = ()
    mutants: tuple[MutantResult, ...] = ()
    findings: tuple[str, ...] = ()
    """What else speaks against it, as sentences; each makes the comparison fail."""
    omissions: tuple[str, ...] = ()
    """What was asked for and is not there to compare, a sentence each; no verdict on anything."""
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 2 could not run (nothing was compared, or decided, or a case broke off)."""
        if self.errors or not (self.results or self.nodes or self.ends or self.sweeps or self.mutants):
            return 2
        if not self.findings and not self.is_decided:
            return 2
        good = (
            all(result.passed for result in self.results)
            and all(node.state != "introduced" for node in self.nodes)
            and all(bar.status != "fail" for bar in self.bars)
            and all(sweep.num_distinct == 1 or not sweep.promised for sweep in self.sweeps)
            and all(mutant.caught for mutant in self.mutants)
            and not self.findings
        )
        return 0 if good else 1

    @property
    def is_decided(self) -> bool:
        """Whether anything gave a verdict. End metrics alone are figures, of which nothing says whether they are good."""
        statuses = {*(result.status for result in self.results), *(bar.status for bar in self.bars)}
        return bool(self.nodes or self.mutants or statuses - {"noted"} or any(sweep.promised for sweep in self.sweeps))

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`: numbers that JSON lacks as strings ("inf", "nan")."""
        content = _plain(dataclasses.asdict(self))
        assert isinstance(content, dict)
        return {"format": "ascend-dsv4 comparison", "version": 1, "exit_code": self.exit_code, **content}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
