# SPDX-License-Identifier: Apache-2.0
"""`compare model`: two backends, operator sets or number formats over one checkpoint and the same prompts.

The prompt is walked node by node (`lockstep`), then the reference goes on greedily while the candidate is teacher-forced on its
tokens; the first of those steps is walked too, since decoding takes other paths than a prompt.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ascend_dsv4.accuracy.bf16_bar import bf16_bar, find_bar, prompt_hash, runner_fingerprint
from ascend_dsv4.accuracy.end_metrics import EndTally
from ascend_dsv4.accuracy.environment import environment
from ascend_dsv4.accuracy.lockstep import Array, Override
from ascend_dsv4.accuracy.lockstep_runner import LockstepRunner, check_comparable, node_names
from ascend_dsv4.accuracy.node_results import NodeRecorder
from ascend_dsv4.accuracy.results import BarResult, Report, SweepResult
from ascend_dsv4.accuracy.sweeps import run_sweeps
from ascend_dsv4.engine.engine import Engine
from ascend_dsv4.engine.sampling_params import SamplingParams
from ascend_dsv4.errors import RequestError, UnsupportedError
from ascend_dsv4.runner.batch import PlacedRows
from ascend_dsv4.runner.runner import ModelRunner

WALKED_DECODES = 1
"""Steps after the prompt whose nodes are compared."""
_LISTED = 5
"""Outputs that a finding names."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens that both sides process."""

    name: str
    token_ids: Sequence[int]
    images: tuple[PlacedRows, ...] = ()


@dataclass(frozen=True, slots=True)
class WalkOptions:
    """How nodes are compared."""

    prompts: Sequence[str] | None = None
    """Names of the prompts whose nodes are compared; None for the first alone, () for none."""
    chunk_size: int | None = None
    """Prompt tokens of a step at most; None leaves it to the scheduler."""
    nodes: Sequence[str] = ()
    """Nodes whose worst elements are kept, as layer3/hc_pre.0."""
    num_elements: int = 20
    """How many of them."""
    standard: str = "tolerance"
    """Of accuracy.standards; opbase-double needs a third implementation and cannot be walked with."""


def compare_model(
    reference: ModelRunner,
    candidate: ModelRunner | None,
    prompts: Sequence[Prompt],
    overrides: Sequence[Override] = (),
    *,
    walk: WalkOptions = WalkOptions(),  # noqa: B008 (frozen)
    greedy_tokens: int = 32,
    sweeps: Sequence[str] = (),
    command: str = "",
) -> Report:
    """Compare two models that were opened from one checkpoint; `LLM.runner` is one.

    candidate      None for the reference's own, with overrides: weights are then held once
    overrides      functions in the place of the candidate's operators, see `lockstep.parse_override`
    greedy_tokens  how many tokens the reference goes on by, behind every prompt
    sweeps         some of `sweeps.SWEEPS`, run on the candidate with the first prompt that is walked
    command        what a user types to get this; stands in the report, and in reproduction commands

    Raises ConfigError if the two cannot be compared or are the same, RequestError for a prompt, node or sweep that cannot be
    served, UnsupportedError for a standard that needs more than two sides.
    """
    started = time.monotonic()
    _check(prompts, walk)
    candidate = reference if candidate is None else candidate
    check_comparable(reference, candidate, overrides)
    run = _Run(reference, candidate, overrides, walk, command)
    walked = [prompts[0].name] if walk.prompts is None else walk.prompts
    tallies = [run.process(prompt, greedy_tokens, prompt.name in walked) for prompt in prompts]
    return Report(
        title="compare model",
        command=command,
        environment=_environment(reference, candidate, overrides, prompts),
        standard=walk.standard,
        nodes=tuple(run.recorder.nodes),
        elements=tuple(run.recorder.elements),
        ends=tuple(tally.result() for tally in tallies),
        bars=_bars(reference, candidate, prompts, tallies),
        sweeps=_sweeps(run, next((prompt for prompt in prompts if prompt.name in walked), prompts[0]), sweeps),
        findings=(*run.findings(bool(walked)), *(text for tally in tallies for text in _end_findings(tally))),
        seconds=time.monotonic() - started,
    )


class _Run:
    """The two sides in step, and what watches them."""

    def __init__(
        self,
        reference: ModelRunner,
        candidate: ModelRunner,
        overrides: Sequence[Override],
        walk: WalkOptions,
        command: str,
    ) -> None:
        self.candidate = candidate
        self.overrides = overrides
        self._walk = walk
        self._tally: EndTally | None = None
        _check_nodes(walk.nodes, reference)
        names = candidate.backend.bound_ops().implementations
        self.recorder = NodeRecorder(names, walk.nodes, walk.num_elements, walk.standard, command, overrides)
        self.runner = LockstepRunner(reference, candidate, overrides, self.recorder, self._take)

    def _take(self, reference: Array, candidate: Array) -> None:
        if self._tally is not None:
            self._tally.take(reference, candidate)

    def process(self, prompt: Prompt, greedy_tokens: int, walked: bool) -> EndTally:
        """Both sides through a prompt and the reference's greedy tokens after it."""
        self._tally = EndTally(prompt.name, prompt.token_ids)
        self.recorder.prompt = prompt.name
        clock = self.runner.clock
        room = self.runner.plan.max_model_len - len(prompt.token_ids)
        # Log-probabilities are asked for so that every row of the prompt has logits; none are kept.
        params = SamplingParams(max_tokens=max(min(greedy_tokens, room), 0), temperature=0, ignore_eos=True, prompt_logprobs=0)
        engine = Engine(self.runner.config, self.runner.engine, self.runner)
        request = engine.submit(prompt.token_ids, params, chunk_size=self._walk.chunk_size, images=prompt.images)
        while not request.is_finished:
            clock.quiet = not walked or len(request.output_ids) > WALKED_DECODES
            engine.step()
        if request.error is not None:
            raise RequestError(f"compare model, prompt {prompt.name!r}: {request.error}")
        return self._tally

    def findings(self, walked: bool) -> list[str]:
        """What speaks against the walk itself."""
        found = []
        if walked and not self.recorder.nodes:
            found.append("no node was compared, so nothing could have differed; walk a prompt of this run")
        if zeros := self.recorder.zeros():
            more = f" and {len(zeros) - _LISTED} more" if len(zeros) > _LISTED else ""
            found.append(
                f"the reference is zero throughout in {', '.join(zeros[:_LISTED])}{more}, so nothing could have differed "
                "there; check the weights, or use a longer prompt"
            )
        return found


def _check(prompts: Sequence[Prompt], walk: WalkOptions) -> None:
    names = [prompt.name for prompt in prompts]
    if not names or len(set(names)) < len(names):
        raise RequestError(
            f"compare model: got prompts named {names}, expected at least one, each with a name of its own, because results go "
            "by it. Give prompts."
        )
    if unknown := [name for name in walk.prompts or () if name not in names]:
        raise RequestError(
            f"compare model: prompt {unknown[0]!r} is to be walked, expected one of {', '.join(names)}, because there are no "
            "others. Correct the name."
        )
    if walk.standard == "opbase-double":
        raise UnsupportedError(
            "compare model: standard opbase-double, expected one that needs no baseline, because a walk has two sides and no "
            "third. Use tolerance, or opbase-double in `compare ops`."
        )


def _check_nodes(wanted: Sequence[str], runner: ModelRunner) -> None:
    """Raises RequestError for a node that is not there."""
    names = node_names(runner)
    for name in wanted:
        if name not in names:
            graph = name.partition("/")[0]
            near = [other for other in names if other.startswith(f"{graph}/")]
            near = near or list(dict.fromkeys(f"{other.partition('/')[0]}/…" for other in names))
            raise RequestError(
                f"compare model: got node {name!r}, expected one of {', '.join(near)}, because the model has no other there. "
                "Take a name from the list."
            )


def _end_findings(tally: EndTally) -> list[str]:
    end = tally.result()
    if tally.constant:
        return [f"prompt {end.name}: every row of the reference's logits holds a single value; check the weights"]
    if np.isnan(end.kl_mean):
        return [f"prompt {end.name}: KL is not a number: logits hold NaN or infinity; look at the first introduced divergence"]
    return []


def _bars(
    reference: ModelRunner, candidate: ModelRunner, prompts: Sequence[Prompt], tallies: Sequence[EndTally]
) -> tuple[BarResult, ...]:
    """The bf16 bar, where one holds: it was measured without images and without storage rounding."""
    formats = (reference.engine.dtype, candidate.engine.dtype)
    if formats != ("float32", "bfloat16") or {r.engine.cache_rounding for r in (reference, candidate)} != {"off"}:
        return ()
    divergences: dict[str, NDArray[np.float64]] = {
        prompt_hash(prompt.token_ids): tally.kl for prompt, tally in zip(prompts, tallies, strict=True) if not prompt.images
    }
    bar = bf16_bar(runner_fingerprint(reference), divergences)
    return () if bar is None else (bar,)


def bar_prompts(runner: ModelRunner) -> list[Prompt]:
    """The prompts of the bf16 bar for the model of a runner; none for a model that was not measured."""
    model = find_bar(runner_fingerprint(runner))
    return [] if model is None else [Prompt(prompt.name, prompt.token_ids) for prompt in model.prompts]


def _sweeps(run: _Run, prompt: Prompt, names: Sequence[str]) -> tuple[SweepResult, ...]:
    if not names:
        return ()
    runner: ModelRunner = run.candidate
    if run.overrides:
        runner = LockstepRunner(*run.runner.sides, run.overrides, shows="candidate")
    promised = run.candidate.backend.bound_ops().implementation == "reference" and not run.overrides
    return tuple(run_sweeps(runner, prompt.token_ids, names, images=prompt.images, promised=promised))


def _environment(
    reference: ModelRunner, candidate: ModelRunner, overrides: Sequence[Override], prompts: Sequence[Prompt]
) -> Mapping[str, str]:
    """What the comparison ran on."""
    replaced = [override.op + _layers(override) for override in overrides]
    return {
        "reference": _side(reference),
        "candidate": _side(candidate) + (f", overrides {', '.join(replaced)}" if replaced else ""),
        "model": f"{reference.config.model_type}, {reference.config.num_hidden_layers} layers",
        "prompts": ", ".join(f"{prompt.name} ({len(prompt.token_ids)} tokens)" for prompt in prompts),
        **environment(),
    }


def _layers(override: Override) -> str:
    return "" if override.layers is None else f"@{','.join(map(str, sorted(override.layers)))}"


def _side(runner: ModelRunner) -> str:
    engine = runner.engine
    return (
        f"backend {runner.backend.name}, ops {runner.backend.bound_ops().implementation}, dtype {engine.dtype}, weights "
        f"{engine.weights}, kv_cache {engine.kv_cache}, cache_rounding {engine.cache_rounding}"
    )
