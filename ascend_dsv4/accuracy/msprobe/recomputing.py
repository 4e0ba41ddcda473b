# SPDX-License-Identifier: Apache-2.0
"""Recorded calls of known operators, computed again by our references in float64 from the recorded inputs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ascend_dsv4.accuracy.msprobe.dump import Dump, Leaf, Record
from ascend_dsv4.accuracy.msprobe.judging import judge_values, tolerance_for
from ascend_dsv4.accuracy.msprobe.known_apis import Call, KnownApi, NotOurs, arguments, compute, known_api
from ascend_dsv4.accuracy.msprobe.tensor_files import values
from ascend_dsv4.accuracy.results import OutputResult
from ascend_dsv4.ops.compare import compare_sets
from ascend_dsv4.ops.route.reference import add_bias, expert_scores

STANDARD = "op"
SCORE_TIE = 1e-6
"""Scores this close may be ranked either way by a float32 computation."""


class Recomputation:
    """Collects verdicts on recorded calls."""

    def __init__(self, command: str = "") -> None:
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
            "golden": "float64", "standard": STANDARD,
            "command": f"{self.command} --names {record.name}" if self.command else "",
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
        self._judge(record, known, call, golden, outputs, identity)

    def _skip(self, outputs: Mapping[Leaf, Tensor], identity: Mapping[str, Any], reason: str) -> None:
        for leaf in outputs:
            text = f"not computed again: {reason}"
            self.results.append(OutputResult(**identity, dtype=leaf.dtype, output=leaf.position, status="noted", reason=text))

    def _judge(
        self, record: Record, known: KnownApi, call: Call, golden: dict[str, Tensor], outputs: Mapping[Leaf, Tensor],
        identity: Mapping[str, Any],
    ) -> None:  # fmt: skip
        recorded = {name: (leaf, tensor) for leaf, tensor in outputs.items() if (name := _output_name(known, leaf))}
        if call.op == "route":
            self._judge_choice(call, golden, recorded, identity)
            return
        for name, (leaf, tensor) in recorded.items():
            labels = {**identity, "dtype": leaf.dtype, "output": leaf.position}
            limit = tolerance_for((leaf.dtype,), call.op, name)
            self.results.append(judge_values(values(tensor), values(golden[name]), limit, labels, "refused"))

    def _judge_choice(
        self, call: Call, golden: dict[str, Tensor], recorded: Mapping[str, tuple[Leaf, Tensor]], identity: Mapping[str, Any]
    ) -> None:
        """Chosen experts as sets, ties apart; weights by expert, in rows that chose alike."""
        if "ids" not in recorded:
            return
        leaf, ids = recorded["ids"]
        logits = call.tensors["logits"]
        assert logits is not None
        scores = add_bias(expert_scores(logits, "sigmoid"), call.tensors["bias"], None, None)
        labels = {**identity, "dtype": leaf.dtype, "output": leaf.position}
        # Scores of experts in dropped groups rank nowhere, so with groups the sets must be equal.
        ranked = values(scores) if call.attrs["n_group"] == 1 else None
        found = compare_sets(values(ids.long()), values(golden["ids"].long()), ranked, tie=SCORE_TIE)
        refused = found.reason.startswith("refused")
        self.results.append(OutputResult(
            **labels, status="pass" if found.passed else "refused" if refused else "fail", reason=found.reason, check="" if
            found.passed else "set", ratio=0.0 if found.passed else math.inf, num_elements=ids.numel(),
            figures={"num_tied": found.num_tied, "num_wrong": found.num_wrong},
        ))  # fmt: skip
        if "weights" not in recorded or ids.shape != golden["ids"].shape:
            return
        leaf, weights = recorded["weights"]
        order, right = torch.sort(ids.long(), dim=-1), torch.sort(golden["ids"].long(), dim=-1)
        alike = (order.values == right.values).all(-1)
        actual, expected = (
            torch.gather(side.double(), -1, chosen.indices)[alike]
            for side, chosen in ((weights, order), (golden["weights"], right))
        )
        limit = tolerance_for((leaf.dtype,), "route", "weights")
        labels = {**identity, "dtype": leaf.dtype, "output": leaf.position}
        self.results.append(judge_values(values(actual), values(expected), limit, labels, "refused"))


def _output_name(known: KnownApi, leaf: Leaf) -> str:
    """Our name of a recorded output; empty if we do not compute it."""
    index = int(leaf.path[0]) if len(leaf.path) == 1 and leaf.path[0].isdigit() else len(known.outputs)
    return known.outputs[index] if index < len(known.outputs) else ""
