# SPDX-License-Identifier: Apache-2.0
"""Reports with everything that one may hold, for the tests of what is made of them."""

from __future__ import annotations

import dataclasses
import math
import random

from ascend_dsv4.accuracy.results import (
    BINS,
    PARTS,
    BarResult,
    CaseError,
    EndMetrics,
    MutantResult,
    NodeElement,
    NodeResult,
    OutputResult,
    Report,
    Status,
    SweepResult,
    Worst,
)

OPS = (
    "adjust_logits", "compress_kv", "concat", "embed", "engram_gate", "engram_rows", "expert_mlp", "gelu", "grouped_linear",
    "hc_collapse", "hc_head", "hc_post", "hc_pre", "index_topk", "layer_norm", "linear", "linear_bias", "logits",
    "merge_patches", "mla_attention", "moe_combine", "moe_dispatch", "place_rows", "pool_kv", "rms_norm", "rope", "route",
    "sample", "sparse_attention", "step_metadata", "store_kv", "store_state", "swiglu", "vision_block",
)  # fmt: skip
DTYPES = ("float32", "float16", "bfloat16")
ENVIRONMENT = {
    "ascend-dsv4": "0.9.0", "torch": "2.13.0", "numpy": "2.1.0", "python": "3.11.9",
    "machine": "Linux 6.1 x86_64, 2 CPUs",
}  # fmt: skip
FIGURES = ("max_abs", "mean_abs", "max_rel", "mean_rel", "mare", "mere", "rmse", "ulp_max", "ulp_mean", "cosine_distance")


def output_result(
    rng: random.Random, op: str, implementation: str, dtype: str, case: str, ratio: float, **changes: object
) -> OutputResult:
    """A result as a comparison makes it, whose histogram and positions fit its ratio."""
    status: Status = "pass" if ratio <= 1 else "fail"
    edges = (0, 1e-3, 1e-2, 0.1, 0.5, 1, 2, 10, math.inf)
    top = 8 if math.isnan(ratio) else next(i for i, edge in enumerate(edges) if ratio <= edge)
    peak = max(top - 2, 0)
    counts = [0] * len(BINS)
    for i in range(top + 1):
        counts[i] = max(1, int(rng.randint(500, 4000) / 9 ** abs(i - peak)))
    finite = ratio if math.isfinite(ratio) else 40.0
    profile = [finite * rng.uniform(0.2, 0.6) * (0.3 + 0.7 * i / PARTS) for i in range(PARTS)]
    profile[rng.randrange(PARTS)] = ratio
    golden = rng.gauss(0, 1)
    command = f"ascend-dsv4 compare ops --op {op} --impl {implementation} --dtype {dtype} --case {case}"
    result = OutputResult(
        op=op, implementation=implementation, dtype=dtype, case=case, kind=rng.choice(("typical", "boundary", "hostile")),
        output="out", golden="specified", standard="tolerance", status=status,
        reason="" if ratio <= 1 else f"{counts[-1] + counts[-2]:,} of {sum(counts):,} elements beyond the tolerance",
        check="" if ratio <= 1 else "elementwise", ratio=ratio, num_elements=sum(counts),
        figures={name: finite * rng.uniform(0.1, 2) * 10.0 ** -(i % 5) for i, name in enumerate(FIGURES)},
        worst=Worst((rng.randrange(8), rng.randrange(64)), golden + finite * 1e-3, golden),
        histogram=tuple(counts), by_position=tuple(profile), command=command,
    )  # fmt: skip
    return dataclasses.replace(result, **changes)  # type: ignore[arg-type]


def ops_report(ops: int = 34, cases: int = 20, *, faults: bool = True) -> Report:
    """Operators × two implementations × three dtypes × cases; with faults some fail, are refused, infinite or break off."""
    rng = random.Random(7)
    results, errors = [], []
    scale = {"float32": 0.02, "float16": 0.2, "bfloat16": 0.35}
    for op in OPS[:ops]:
        level = rng.uniform(0.02, 1)
        for implementation in ("reference", "native"):
            for dtype in DTYPES:
                for i in range(cases):
                    case = f"{('typical', 'boundary', 'hostile')[i % 3]}_{i}"
                    ratio = (
                        0.0
                        if op in ("concat", "embed", "store_kv")
                        else min(0.97, scale[dtype] * level * rng.lognormvariate(0, 0.7))
                    )
                    changes: dict[str, object] = {}
                    broken = faults and implementation == "native"
                    if broken and op == "hc_pre" and dtype != "float32" and i % 4 == 1:
                        ratio = rng.uniform(2, 60)
                    if broken and op == "index_topk" and i == 7:
                        ratio, changes = math.inf, {"check": "set", "reason": "NaN at 3 positions where the golden is finite"}
                    if broken and op == "rope" and dtype == "float16" and i == 11:
                        ratio, changes = math.nan, {"status": "fail", "check": "cosine", "reason": "cosine is NaN"}
                    if broken and op == "gelu" and dtype == "bfloat16":
                        changes = {
                            "status": "refused",
                            "reason": "refused: the golden holds one value throughout",
                            "check": "constant",
                        }
                        ratio = 0.0
                    if broken and op == "swiglu" and dtype == "bfloat16" and i == 3:
                        ratio = 1.0004
                    results.append(output_result(rng, op, implementation, dtype, case, ratio, **changes))
    if faults:
        message = (
            "CapacityError: 2,147,483,648 bytes of address space needed, 1,073,741,824 free.\nRaise the limit (ulimit -v)."
        )
        command = "ascend-dsv4 compare ops --op store_kv --impl native --dtype bfloat16 --case beyond_2_gib"
        errors.append(CaseError("store_kv", "native", "bfloat16", "beyond_2_gib", message, command))
    return Report(
        "operators: reference, native",
        "ascend-dsv4 compare ops --impl reference --impl native --html report.html",
        ENVIRONMENT,
        "tolerance",
        tuple(results),
        tuple(errors),
        seconds=187.4,
    )


MODEL_OPS = (
    "hc_pre",
    "rms_norm",
    "linear",
    "rope",
    "compress_kv",
    "index_topk",
    "store_kv",
    "sparse_attention",
    "hc_post",
    "route",
)


def model_report(layers: int = 8, per_layer: int = 40, steps: int = 3, *, fault: bool = True) -> Report:
    """A walk through a model in which an operator of layer 3 errs: what came before is within limits, the rest inherits."""
    rng = random.Random(11)
    nodes = []
    for step in range(steps):
        total, number = 0.002, 0
        for graph in ("embed", *(f"layer{i}" for i in range(layers)), "head"):
            layer = int(graph[5:]) if graph.startswith("layer") else None
            for i in range(per_layer if layer is not None else 2):
                op = MODEL_OPS[i % len(MODEL_OPS)] if layer is not None else ("embed", "logits")[graph == "head"]
                wrong = fault and (graph, i) in {("layer3", 10), ("layer6", 27)}
                own = rng.uniform(8, 40) if wrong else rng.choice((0.0, rng.lognormvariate(-3.5, 1)))
                total = min(max(total * rng.uniform(0.8, 1.25), own, 1e-3), 400) if number else 0.0
                state = "introduced" if wrong else "same" if total == 0 else "inherited" if total > 1 else "within"
                details = output_result(rng, op, "native", "bfloat16", f"{graph}.{op}", min(own, 1.0) if not wrong else own)
                whole = output_result(rng, op, "native", "bfloat16", f"{graph}.{op}", total)
                nodes.append(
                    NodeResult(
                        number,
                        step,
                        graph,
                        layer,
                        f"{op}.{i // len(MODEL_OPS)}",
                        op,
                        "decoder_layer/attention",
                        f"ascend_dsv4/model/decoder.py:{80 + i}",
                        "out",
                        state,
                        details,
                        whole,  # type: ignore[arg-type]
                    )  # fmt: skip
                )
                number += 1
    ends = tuple(
        EndMetrics(name, 40 + 9 * i, 0.0013 * (i + 1), 0.21, 0.983, None if i == 0 else 12, 32, 7.21, 7.25, 0.4)
        for i, name in enumerate(("plain text", "code", "a table"))
    )
    sweeps = (
        SweepResult("repeats", ("1", "2", "3"), 1, 0.0, True),
        SweepResult("batch size", ("1", "2", "7"), 2, 3e-3, True),
        SweepResult("chunk size", ("1", "4", "127", "whole"), 3, 2e-2, False),
    )
    bars = (
        BarResult("v4", "transformers 5.23 in bfloat16", 3, 300, 0.0021, 0.0019, 0.00252, "pass"),
        BarResult("v4 planted", "transformers 5.23 in bfloat16", 3, 300, 0.0021, 0.31, 0.00252, "fail", "0.31 exceeds 0.00252"),
    )
    elements = (NodeElement("layer3/hc_pre.1", "out", 0, (5, 17), 5, 0.125, 0.75, 0.12500001, 0.7500002, 9.16, 3, 64),)
    command = "ascend-dsv4 compare model --model demo --candidate native --html report.html"
    return Report(
        "model: reference, native",
        command,
        ENVIRONMENT,
        "tolerance",
        nodes=tuple(nodes),
        elements=elements,
        bars=bars,
        ends=ends,
        sweeps=sweeps,
        seconds=48.2,
    )


def mutants_report(number: int = 45) -> Report:
    """Mutants of which one is caught by nothing."""
    rng = random.Random(13)
    whats = ("transposed mHC mix", "half-split instead of interleaved RoPE", "missing sink", "neighbour's block scale")
    mutants = []
    for i in range(number):
        ratio = 0.7 if i == 17 else math.inf if i % 6 == 0 else rng.lognormvariate(3, 1.5) + 2
        check = "" if i == 17 else rng.choice(("elementwise", "cosine", "set", "nonfinite"))
        what, op = whats[i % 4], OPS[i % len(OPS)]
        case = f"typical_{i % 5}, bfloat16, out"
        mutants.append(MutantResult(f"{op}_mutant_{i}", op, what, rng.uniform(0, 0.45), ratio, case, check, i != 17))
    return Report("self-test", "ascend-dsv4 compare selftest", ENVIRONMENT, "tolerance", mutants=tuple(mutants), seconds=31.0)


EMPTY = Report("nothing", "ascend-dsv4 compare ops --case none", ENVIRONMENT, "tolerance")
HOSTILE = "</script><img src=x onerror=alert(1)>&amp;\"'[red]\x1b[31m\x00\x9b\ud800\u202e"


def hostile_report() -> Report:
    """Every text of a report is one that does harm where it is not escaped."""
    rng = random.Random(3)
    worst = output_result(rng, HOSTILE, HOSTILE, HOSTILE, HOSTILE, 7.0)
    texts = dict.fromkeys(("kind", "output", "golden", "standard", "reason", "check", "command"), HOSTILE)
    worst = dataclasses.replace(worst, **texts, figures={HOSTILE: math.nan})
    refused = dataclasses.replace(worst, status="refused", worst=None)
    node = NodeResult(0, 0, HOSTILE, 3, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, "introduced", worst, worst)
    return Report(
        title=HOSTILE,
        command=HOSTILE,
        environment={HOSTILE: HOSTILE},
        standard=HOSTILE,
        results=(worst, refused),
        errors=(CaseError(*[HOSTILE] * 6),),
        nodes=(node,),
        elements=(NodeElement(HOSTILE, HOSTILE, 0, (0,), None, math.nan, math.inf, 0.0, 0.0, math.inf, 1, 1),),
        ends=(EndMetrics(HOSTILE, 1, math.nan, math.inf, 0.5, None, 1, math.inf, math.nan, math.inf),),
        bars=(BarResult(HOSTILE, HOSTILE, 1, 1, math.nan, math.inf, math.nan, "fail", HOSTILE),),
        sweeps=(SweepResult(HOSTILE, (HOSTILE, HOSTILE), 2, math.inf, True),),
        mutants=(MutantResult(HOSTILE, HOSTILE, HOSTILE, math.nan, math.inf, HOSTILE, "", False),),
        findings=(HOSTILE,),
        seconds=math.nan,
    )


def first_objections(report: Report) -> list[OutputResult]:
    return [result for result in report.results if not result.passed]
