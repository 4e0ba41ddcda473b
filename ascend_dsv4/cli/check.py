# SPDX-License-Identifier: Apache-2.0
"""`ascend-dsv4 check`: what is installed, what runs, and what a model would take. Exit 1 if it could not run as asked.

The report is a dict of plain values (`--json` prints it); `report.py` draws it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args, get_type_hints

from ascend_dsv4 import __version__
from ascend_dsv4.cli.options import add_engine_options, engine_config, model_path
from ascend_dsv4.config import EngineConfig, ModelConfig
from ascend_dsv4.errors import CheckpointError, ConfigError, UnsupportedError

if TYPE_CHECKING:
    from ascend_dsv4.model.checkpoint import Checkpoint

PACKAGES: Final = ("torch", "numpy", "deepseek-recipe", "tokenizers", "safetensors")
OPTIONAL_PACKAGES: Final = {"torch-npu": "torch_npu", "mindspore": "mindspore"}
"""Distribution → module. They are looked for, never imported: importing one needs its device software."""

Report = dict[str, Any]


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "check",
        allow_abbrev=False,
        help="versions, operators, and what a model takes",
        description="Print versions, machine, backends and the resolved operators; with --model also what the model is, "
        "whether its files are right, and where cache memory goes. Exits with 1 if it could not run with these options; "
        "a bare configuration is only described.",
    )
    parser.add_argument("--model", metavar="DIR", help="checkpoint folder, a config.json, or a shipped configuration's name")
    parser.add_argument(
        "--probe", action="store_true",
        help="report on the files of a checkpoint folder: headers, some decoded blocks, statistics of layer 0, hashes",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document")
    add_engine_options(parser, max_num_seqs=1)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect and print the report."""
    from ascend_dsv4.cli import report as drawing
    from ascend_dsv4.cli.terminal import print_json

    engine = engine_config(args)
    if args.probe and (args.model is None or not model_path(args.model).is_dir()):
        raise ConfigError(f"--probe: got --model {args.model}; expected a checkpoint folder, whose files it reports on.")
    report: Report = {"versions": versions(), "machine": machine(engine), "backends": backends(engine)}
    report |= {"engine": dataclasses.asdict(engine), "operators": operators(engine)}
    report |= {"problems": [], "notes": []}
    if reason := report["backends"][engine.backend]:
        report["problems"].append(reason)
    if args.model is not None:
        add_model(report, model_path(args.model), engine, with_probe=args.probe)
    if args.json:
        print_json(report)
    else:
        drawing.draw(report)
    return 1 if report["problems"] else 0


def versions() -> dict[str, str | None]:
    """Version by package; None where an optional one is not installed."""
    found: dict[str, str | None] = {"ascend-dsv4": __version__, "python": platform.python_version()}
    found |= {name: _version(name) for name in PACKAGES}
    return found | {name: _version(name) if util.find_spec(module) else None for name, module in OPTIONAL_PACKAGES.items()}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown version"


def machine(engine: EngineConfig) -> dict[str, Any]:
    """Processor and memory. Sizes in bytes."""
    from ascend_dsv4.backend import make_backend

    free, total = make_backend(EngineConfig(ops=engine.ops)).memory()
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "memory_bytes": total,
        "free_memory_bytes": free,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def backends(engine: EngineConfig) -> dict[str, str | None]:
    """Every backend: None if it runs here, else why not."""
    from ascend_dsv4.backend import make_backend

    names = get_args(get_type_hints(EngineConfig)["backend"])
    return {name: _refusal(partial(make_backend, EngineConfig(backend=name, ops=engine.ops))) for name in names}


def _refusal(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except UnsupportedError as error:
        return str(error)
    return None


def operators(engine: EngineConfig) -> dict[str, Any]:
    """The op set and the implementation of every operator. Raises UnsupportedError for a set that does not exist."""
    from ascend_dsv4.ops.registry import bind

    bound = bind(engine.ops)
    resolved = {name: _label(function) for name, function in sorted(bound.functions.items())}
    return {"ops": engine.ops, "implementation": bound.implementation, "resolved": resolved}


def _label(function: Callable[..., Any]) -> str:
    """Name of an implementation: "reference", or module:function for somebody's own."""
    module = getattr(function, "__module__", None) or "?"
    if module.startswith("ascend_dsv4.ops."):
        return module.rpartition(".")[2]
    return f"{module}:{getattr(function, '__qualname__', '?')}"


def add_model(report: Report, path: Path, engine: EngineConfig, *, with_probe: bool) -> None:
    """Put everything about the model into the report. Raises ConfigError or UnsupportedError for an unusable config.json
    unless the probe was asked for, which reports on the files all the same."""
    if with_probe:
        _add_probe(report, path)
    try:
        config = ModelConfig.from_file(path)
    except (ConfigError, UnsupportedError) as error:
        if not with_probe:
            raise
        report["problems"].append(str(error))
        return
    checkpoint, files = weight_files(config, path)
    report |= {"model": summary(config, path), "inventory": inventory_totals(config), "files": files}
    report |= {"cache": caches(config, engine), "tables": tables(config, engine)}
    if files is not None and files["error"] and files["error"] not in report["problems"]:
        report["problems"].append(files["error"])
    if path.is_dir():
        _check_tokenizer(report, path)
    # Without weights nothing is going to run, and the figures are what was asked for.
    obstacles = report["notes"] if files is None else report["problems"]
    obstacles += refused_formats(config, engine)
    report["memory"] = memory(config, engine, checkpoint, report)
    if report["memory"] and not report["memory"]["fits"]:
        obstacles.append("weights and caches do not fit into the memory of this machine")


def _check_tokenizer(report: Report, folder: Path) -> None:
    from ascend_dsv4.tokenizer import Tokenizer

    if not (folder / "tokenizer.json").exists():
        report["notes"].append("no tokenizer.json: prompts can only be token ids, and there is no chat")
        return
    try:
        Tokenizer.from_folder(folder)
    except CheckpointError as error:
        report["problems"].append(str(error))


def _add_probe(report: Report, folder: Path) -> None:
    from ascend_dsv4.model.probe import probe

    report["probe"] = None
    try:
        found = probe(folder)
    except CheckpointError as error:
        report["problems"].append(str(error))
        return
    report["probe"] = found.to_dict() | {"lines": found.lines()}


def summary(config: ModelConfig, path: Path) -> dict[str, Any]:
    """What the model is, and its parameters."""
    from ascend_dsv4.config.layers import layer_specs
    from ascend_dsv4.model.inventory import format_parameters, parameter_counts

    counts, layers = parameter_counts(config), [str(spec) for spec in layer_specs(config)]
    return {
        "path": str(path),
        "architecture": config.architecture,
        "layers": config.num_hidden_layers,
        "layer_types": dict(Counter(layers)),
        "layers_by_type": {kind: [i for i, other in enumerate(layers) if other == kind] for kind in dict.fromkeys(layers)},
        "draft_method": config.draft_method,
        "draft_stages": config.num_draft_stages,
        "hidden_size": config.hidden_size,
        "attention_heads": config.num_attention_heads,
        "head_dim": config.head_dim,
        "routed_experts": config.n_routed_experts,
        "experts_per_token": config.num_experts_per_tok,
        "sliding_window": config.sliding_window,
        "index_topk": config.index_topk,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "is_quantized": config.is_quantized,
        "vision": None if config.vision is None else dataclasses.asdict(config.vision),
        "parameters": {
            **dataclasses.asdict(counts),
            "total": counts.total,
            "name": f"{format_parameters(counts.backbone)} total, {format_parameters(counts.active)} active",
        },
    }


def inventory_totals(config: ModelConfig) -> dict[str, Any]:
    """Tensors and bytes of the released checkpoint, draft stages included."""
    from ascend_dsv4.model.inventory import inventory, summarize

    per_dtype = summarize(inventory(config))
    return {
        "num_tensors": sum(total.num_tensors for total in per_dtype.values()),
        "num_bytes": sum(total.num_bytes for total in per_dtype.values()),
        "dtypes": {name: dataclasses.asdict(total) for name, total in per_dtype.items()},
    }


def caches(config: ModelConfig, engine: EngineConfig) -> dict[str, Any]:
    """Cache memory for these options. Raises ConfigError or CapacityError for lengths the model or the caches lack."""
    from ascend_dsv4.kv_cache.accounting import account

    return account(config, engine).to_dict()


def tables(config: ModelConfig, engine: EngineConfig) -> dict[str, Any] | None:
    """The n-gram tables: where they are read from, their sizes, and how much of them is held in memory; None without any.

    raises   ConfigError for a folder of table files that has none, or of several formats
    """
    from ascend_dsv4.engram.opening import planned_format, resident_table_bytes
    from ascend_dsv4.engram.rows import row_bytes

    if config.engram is None:
        return None
    form = planned_format(config, engine)
    size = row_bytes(form, config.engram.head_dim)
    rows = config.engram.num_embeddings
    return {
        "tier": engine.engram_tier,
        "folder": engine.engram_tables,
        "format": form,
        "row_bytes": size,
        "rows_per_token": config.engram.num_columns,
        "layers": {layer: {"rows": count, "bytes": count * size}
                   for layer, count in zip(config.engram.layer_ids, rows, strict=True)},
        "num_bytes": sum(rows) * size,
        "resident_bytes": resident_table_bytes(config, engine),
    }  # fmt: skip


def weight_files(config: ModelConfig, path: Path) -> tuple[Checkpoint | None, dict[str, Any] | None]:
    """Whether the headers fit the model, for a checkpoint folder; reads no weights but stored aliases."""
    from ascend_dsv4.model.checkpoint import Checkpoint
    from ascend_dsv4.model.inventory import inventory, optional_aliases

    if not path.is_dir():
        return None, None
    try:
        checkpoint = Checkpoint.open(path)
        checkpoint.validate(inventory(config), optional_aliases(config))
    except CheckpointError as error:
        return None, {"valid": False, "error": str(error)}
    return checkpoint, {
        "valid": True,
        "error": None,
        "layout": checkpoint.layout,
        "num_shards": len(checkpoint.shards),
        "num_tensors": len(checkpoint.names()),
        "num_bytes": checkpoint.total_bytes,
        "has_draft": checkpoint.has_draft,
    }


def refused_formats(config: ModelConfig, engine: EngineConfig) -> list[str]:
    """Why this version does not run the weight or cache format that was asked for."""
    from ascend_dsv4.llm import forward_config
    from ascend_dsv4.model.weight_trees import model_weights

    attempts = (partial(forward_config, config, engine), partial(model_weights, config, engine.weights))
    return [reason for attempt in attempts if (reason := _refusal(attempt))]


def memory(
    config: ModelConfig, engine: EngineConfig, checkpoint: Checkpoint | None, report: Report
) -> dict[str, Any] | None:
    """Bytes of weights, tables and caches together, and whether this machine has them; None for unknown weight formats."""
    from ascend_dsv4.model.loader import as_stored, resident_bytes
    from ascend_dsv4.model.weight_trees import model_weights

    try:
        params = model_weights(config, engine.weights)
    except UnsupportedError:
        return None
    if checkpoint is not None and engine.weights == "released":
        params = as_stored(checkpoint, params)
    weights, table_bytes = resident_bytes(params), report["tables"]["resident_bytes"] if report["tables"] else 0
    needed = weights + table_bytes + report["cache"]["allocated_bytes"]
    total = report["machine"]["memory_bytes"]
    return {
        "weight_bytes": weights,
        "table_bytes": table_bytes,
        "needed_bytes": needed,
        "total_bytes": total,
        "fits": needed <= total,
    }
