# SPDX-License-Identifier: Apache-2.0
"""Recorded calls of known operators, computed again by our references in float64 from the recorded inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ascend_dsv4.accuracy.choices import PAIRED, choice_scores, pair_with
from ascend_dsv4.accuracy.msprobe.dump import Dump, Leaf, Record
from ascend_dsv4.accuracy.msprobe.judging import judge_values, tolerance_for
from ascend_dsv4.accuracy.msprobe.known_apis import Call, KnownApi, NotOurs, arguments, compute, known_api
from ascend_dsv4.accuracy.msprobe.tensor_files import values
from ascend_dsv4.accuracy.results import OutputResult
from ascend_dsv4.ops.registry import get_spec


class Recomputation:
    """Collects verdicts on recorded calls."""

    def __init__(self, standard: str = "tolerance", command: str = "") -> None:
        self.standard = standard
        self.command = command
        self.results: list[OutputResult] = []
        self.unknown: Counter[str] = Counter()
        """APIs without a reference here → calls."""

    def record(self, dump: Dump, record: Record, tensors: Mapping[Leaf, Tensor | None]) -> None:
        """Compute one forward call again if we know how, and compare what it returned."""
        found = known_api(record, dump.framework)
        if found is None:
            self.unknown[record.api] += record.direction == "forward"
            return
        outputs = {leaf: tensor for leaf, tensor in tensors.items() if leaf.role == "output" and tensor is not None}
        if not outputs:
            return
        key, known = found
        identity = {
            "op": record.api, "implementation": "dump", "case": dump.where(record.name), "kind": "recorded",
            "golden": "float64",
            "command": f"{self.command} --name {record.name}" if self.command else "",
        }  # fmt: skip
        try:
            call = known.adapt(arguments(key, known, record, tensors))
            golden = compute(call)
        except NotOurs as reason:
            self._skip(outputs, identity, str(reason))
            return
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError) as error:
            # The arguments come from a file; what does not fit fails somewhere in torch.
            self._skip(outputs, identity, f"the recorded arguments do not fit: {type(error).__name__}: {error}"[:200])
            return
        self._judge(known, call, golden, outputs, identity)

    def _skip(self, outputs: Mapping[Leaf, Tensor], identity: Mapping[str, Any], reason: str) -> None:
        for leaf in outputs:
            text = f"not computed again: {reason}"
            self.results.append(OutputResult(
                **identity, dtype=leaf.dtype, output=leaf.position, standard=self.standard, status="noted", reason=text
            ))  # fmt: skip

    def _judge(
        self, known: KnownApi, call: Call, golden: Mapping[str, Tensor], outputs: Mapping[Leaf, Tensor],
        identity: Mapping[str, Any],
    ) -> None:  # fmt: skip
        spec = get_spec(call.op)
        scores = choice_scores(call.op, dict(call.tensors), call.attrs) if spec.choices else {}
        recorded = {name: (leaf, values(tensor)) for leaf, tensor in outputs.items() if (name := _output_name(known, leaf))}
        for name, (leaf, actual) in recorded.items():
            expected, chosen = values(golden[name]), recorded.get(PAIRED.get((call.op, name), ""))
            if chosen is not None and actual.shape == expected.shape == chosen[1].shape:
                actual = pair_with(chosen[1], values(golden[PAIRED[call.op, name]]), actual, expected)
            self.results.append(judge_values(
                actual, expected, leaf.dtype, tolerance_for((leaf.dtype,), call.op, name),
                {**identity, "dtype": leaf.dtype, "output": leaf.position}, standard=self.standard,
                choice_gap=spec.choices.get(name), scores=scores.get(name),
            ))  # fmt: skip


def _output_name(known: KnownApi, leaf: Leaf) -> str:
    """Our name of a recorded output; empty if we do not compute it."""
    index = int(leaf.path[0]) if len(leaf.path) == 1 and leaf.path[0].isdigit() else len(known.outputs)
    return known.outputs[index] if index < len(known.outputs) else ""
