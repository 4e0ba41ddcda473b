# SPDX-License-Identifier: Apache-2.0
"""The self-test of the comparison: every check is needed, bugs are caught, what is right is not, files of users are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ascend_dsv4.accuracy.mutants import Mutant, built_in
from ascend_dsv4.accuracy.mutants.loading import load_mutants, signature
from ascend_dsv4.accuracy.results import MutantResult, Report
from ascend_dsv4.accuracy.selftest import MUTANT_ABOVE, ORIGINAL_BELOW, SWITCHES, WITNESSES, selftest
from ascend_dsv4.accuracy.vacuity import PROBES
from ascend_dsv4.errors import ConfigError
from ascend_dsv4.ops import OP_NAMES
from ascend_dsv4.ops.engram_gate.reference import engram_gate
from ascend_dsv4.ops.expert_mlp.reference import expert_mlp
from ascend_dsv4.ops.rms_norm.reference import rms_norm
from ascend_dsv4.ops.swiglu.reference import swiglu

NAMED = (
    "index_topk/page-offset-int32",
    "compress_kv/used-lengths-missing",
    "hc_pre/mix-ignored",
    "vacuity/all-zero",
    "vacuity/no-elements",
    "index_topk/present-chunk-alone",
    "hc_pre/last-sinkhorn-step-on-rows",
    "hc_post/mix-transposed",
    "rope/half-split",
    "rope/inverse-missing",
    "sparse_attention/sink-missing",
    "step_metadata/entry-at-its-last-token",
    "compress_kv/overlap-dropped-at-chunk-edge",
    "route/bias-in-weights",
    "route/not-renormalised",
    "route/scale-missing",
    "swiglu/up-clamped-above-only",
    "linear/nibbles-swapped",
    "linear/scale-of-the-neighbour",
    "index_topk/causal-limit-late",
    "index_topk/causal-limit-early",
    "store_kv/rows-kept-after-rollback",
    "store_kv/hadamard-in-another-order",
    "moe_dispatch/counts-exclusive",
    "expert_mlp/last-expert-dropped",
    "engram_hash/look-back-not-blocked",
    "index_topk/candidate-blocks-off-by-one",
)
"""Bugs that reports from the field and the requirements name."""


def only(name: str, **options: Any) -> MutantResult:
    """The result of one mutant or probe of the package."""
    (result,) = selftest(names=(name,), **options).mutants
    return result


def mutants(**functions: Callable[..., Any]) -> dict[str, Mutant]:
    """Mutants by operator, of one each."""
    return {f"{op}/mine": Mutant(f"{op}/mine", function, "") for op, function in functions.items()}


def test_every_check_has_a_witness() -> None:
    assert WITNESSES.keys() == set(SWITCHES)


@pytest.fixture(scope="module")
def witnesses() -> Report:
    """All checks at work."""
    return selftest(names=tuple(WITNESSES.values()))


@pytest.mark.parametrize("check", SWITCHES)
def test_without_a_check_the_self_test_fails(witnesses: Report, check: str) -> None:
    """What only this check catches is caught with it, by it, and not without it."""
    name = WITNESSES[check]
    assert witnesses.exit_code == 0
    assert [mutant.check for mutant in witnesses.mutants if mutant.name == name] == [check]

    report = selftest(names=(name,), without=(check,))
    assert report.exit_code == 1 and not report.errors
    assert not report.mutants[0].caught


def test_every_named_bug_is_there() -> None:
    names = {*built_in(), *(f"vacuity/{probe.name}" for probe in PROBES)}
    assert names >= set(NAMED)
    assert len(names) >= 40


def test_mutants_take_what_operators_take() -> None:
    """And say what is wrong; nearly every operator has one."""
    for name, mutant in built_in().items():
        tensors, attrs = signature(mutant.op)
        inspect.signature(mutant.function).bind(*tensors, **dict.fromkeys(attrs))
        assert mutant.what.endswith("."), name
    assert set(OP_NAMES) <= {mutant.op for mutant in built_in().values()}


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_vacuous_comparisons_are_refused(probe: Any) -> None:
    result = only(f"vacuity/{probe.name}")
    assert result.caught
    assert result.original < ORIGINAL_BELOW and result.mutant > MUTANT_ABOVE


@pytest.mark.parametrize("name", [name for name in NAMED if name.split("/")[0] in ("hc_post", "rope", "route", "engram_hash")])
def test_named_bugs_are_caught(name: str) -> None:
    result = only(name)
    assert result.caught and result.check and result.case
    assert result.original < ORIGINAL_BELOW and result.mutant > MUTANT_ABOVE


@pytest.mark.slow
def test_everything_is_caught() -> None:
    report = selftest()
    assert [mutant.name for mutant in report.mutants if not mutant.caught] == []
    assert report.exit_code == 0


def test_the_reference_is_not_caught() -> None:
    report = selftest(mutants(rms_norm=rms_norm, swiglu=swiglu))
    assert report.exit_code == 1
    assert all(not mutant.caught and mutant.mutant == mutant.original < ORIGINAL_BELOW for mutant in report.mutants)


def gate_weights_exchanged(streams: Tensor, kv: Tensor, q_weight: Tensor, k_weight: Tensor, *rest: Any, **attrs: Any) -> Any:
    return engram_gate(streams, kv, k_weight, q_weight, *rest, **attrs)


def weighed_after_the_product(rows: Tensor, row_weights: Tensor, *rest: Any, **attrs: Any) -> Any:
    """In float32; what is rounded in between differs elsewhere."""
    if rows.dtype != torch.float32:
        return expert_mlp(rows, row_weights, *rest, **attrs)
    return row_weights[:, None] * expert_mlp(rows, torch.ones_like(row_weights), *rest, **attrs)


@pytest.mark.parametrize("mutant", [mutants(engram_gate=gate_weights_exchanged), mutants(expert_mlp=weighed_after_the_product)])
def test_equivalent_mutants_pass(mutant: dict[str, Mutant]) -> None:
    """What makes no difference is not called one."""
    (result,) = selftest(mutant).mutants
    assert result.mutant < 1 and not result.check and not result.caught


def test_an_unsteady_original_spoils_its_mutants(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant is caught beside an original that keeps away from its limit, not beside any."""
    monkeypatch.setattr("ascend_dsv4.accuracy.selftest.ORIGINAL_BELOW", 0.4)
    result = only("rope/half-split")
    assert result.mutant > MUTANT_ABOVE and result.original > 0.4
    assert not result.caught


def test_a_mutant_that_breaks_off_is_an_error() -> None:
    """Not a catch: nothing was compared."""

    def broken(x: Tensor) -> Tensor:
        return x.reshape(-1, 7, 11)

    report = selftest(mutants(gelu=broken))
    assert report.exit_code == 2
    assert report.errors[0].op == "gelu" and "RuntimeError" in report.errors[0].message


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="no such check; there are: misfit, empty"):
        selftest(without=("cosine",))
    with pytest.raises(ConfigError, match="matches none of"):
        selftest(names=("rope/nothing-like-it",))


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    only("vacuity/all-zero")
    assert torch.get_num_threads() == before


USERS = """
from ascend_dsv4.ops.gelu.reference import gelu


def halved(x):
    '''Only half of it.'''
    return gelu(x) / 2


MUTANTS = {"gelu/halved": halved, "gelu/right": (gelu, "Nothing.")}
"""


def test_mutants_of_a_file(tmp_path: Path) -> None:
    """They are tried in place of those of the package."""
    path = tmp_path / "mine.py"
    path.write_text(USERS)
    report = selftest(path)
    assert [(m.name, m.what, m.caught) for m in report.mutants] == [
        ("gelu/halved", "Only half of it.", True), ("gelu/right", "Nothing.", False),
    ]  # fmt: skip
    assert report.exit_code == 1
    assert selftest(path, names=("*/halved",)).exit_code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import no_such_module_anywhere", "cannot be imported: ModuleNotFoundError"),
        ("MUTANTS = {", "cannot be imported: SyntaxError"),
        ("pass", "MUTANTS is missing, expected MUTANTS = {"),
        ("MUTANTS = {}", "MUTANTS is {}"),
        ("MUTANTS = {'gulp/wrong': abs}", "mutant 'gulp/wrong', expected operator/bug with an operator of adjust_logits"),
        ("MUTANTS = {'gelu': abs}", "mutant 'gelu', expected operator/bug"),
        ("MUTANTS = {'gelu/wrong': 3}", "mutant 'gelu/wrong' is 3, expected a function"),
        ("MUTANTS = {'rope/wrong': lambda x, cos: x}", r"expected \(x, cos, sin, \*, inverse, start, layout\)"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_mutants(path)


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("none.py", "mine.txt"):
        with pytest.raises(ConfigError, match="no Python file"):
            load_mutants(tmp_path / name)
