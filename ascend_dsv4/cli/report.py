# SPDX-License-Identifier: Apache-2.0
"""The report of `check` as tables of at most 80 columns."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ascend_dsv4.cli.terminal import printable


def draw(report: Mapping[str, Any]) -> None:
    """Print everything that the report holds."""
    console = Console(highlight=False)
    with console.capture() as captured:
        _draw_environment(console, report)
        if "model" in report:
            _draw_model(console, report["model"], report["inventory"])
            if report["tables"]:
                _draw_tables(console, report["tables"])
            _draw_caches(console, report["cache"], report["engine"])
            _draw_fit(console, report)
        if report.get("probe"):
            _draw_probe(console, report["probe"]["lines"])
        _draw_verdict(console, report)
    sys.stdout.write(re.sub(" +$", "", captured.get(), flags=re.MULTILINE))  # cells are padded to their column


def _draw_environment(console: Console, report: Mapping[str, Any]) -> None:
    _title(console, "environment")
    host = report["machine"]
    threads = f", OMP_NUM_THREADS={host['omp_num_threads']}" if host["omp_num_threads"] else ""
    pairs = [(name, version or "not installed") for name, version in report["versions"].items()]
    pairs.append(("machine", f"{host['platform']}, {host['cpu']}, {host['usable_cpus']} of {host['cpus']} CPUs{threads}"))
    pairs.append(("memory", f"{_size(host['memory_bytes'])}, {_size(host['free_memory_bytes'])} free"))
    _pairs(console, pairs)
    _title(console, "backends")
    _pairs(console, [(name, reason or "runs") for name, reason in report["backends"].items()])
    operators = report["operators"]
    _title(console, f"operators: {operators['ops']} = {operators['implementation']}")
    _pairs(console, operators["resolved"].items())


def _draw_model(console: Console, model: Mapping[str, Any], inventory: Mapping[str, Any]) -> None:
    parameters = model["parameters"]
    _title(console, f"model: {parameters['name']}")
    context = [f"{model['max_position_embeddings']:,} positions"]
    context += [f"window {model['sliding_window']}"] if model["sliding_window"] else []
    context += [f"{model['index_topk']} indexed entries"] if model["index_topk"] else []
    digits = len(f"{parameters['total']:,}")
    counts = [("backbone", "in the backbone"), ("active", "of them active per token"), ("draft", "in draft stages"),
              ("memory", "in n-gram tables"), ("vision", "for images"), ("total", "in all files")]  # fmt: skip
    pairs = [
        ("path", model["path"]),
        ("architecture", model["architecture"]),
        ("draft stages", f"{model['draft_stages']} {model['draft_method']}" if model["draft_stages"] else "none"),
        ("sizes", f"hidden {model['hidden_size']}, {model['attention_heads']} heads of {model['head_dim']}, "
                  f"{model['routed_experts']} experts, {model['experts_per_token']} per token"),
        ("context", ", ".join(context)),
        ("vocabulary", f"{model['vocab_size']:,} ids"),
        *([("images", _vision(model["vision"]))] if model["vision"] else []),
    ]  # fmt: skip
    shown = [f"{parameters[key]:>{digits},} {text}" for key, text in counts if parameters[key]]
    pairs += zip(["parameters", *[""] * len(shown)], shown, strict=False)
    _pairs(console, pairs)
    _title(console, f"layers: {model['layers']}")
    width = max(map(len, model["layers_by_type"]))
    _pairs(console, [(f"{kind:{width}} {len(layers):>4}", runs(layers)) for kind, layers in model["layers_by_type"].items()])
    _title(console, "checkpoint: tensors of the released layout, draft stages included")
    rows = [(name, f"{d['num_tensors']:,}", f"{d['num_bytes']:,}") for name, d in inventory["dtypes"].items()]
    rows.append(("all", f"{inventory['num_tensors']:,}", f"{inventory['num_bytes']:,}"))
    _table(console, ("dtype", "tensors", "bytes"), rows)


def _vision(vision: Mapping[str, Any]) -> str:
    return (
        f"{vision['num_hidden_layers']} blocks of {vision['hidden_size']}, patches of {vision['patch_size']} pixels, "
        f"{vision['downsample_ratio']}x{vision['downsample_ratio']} to a token, at most {vision['max_image_tokens']:,} an image"
    )


def runs(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: 0, 3-7, and 4, 6, …, 42 for what goes on in equal steps."""
    parts, start = [], 0
    while start < len(numbers):
        step = numbers[start + 1] - numbers[start] if start + 1 < len(numbers) else 1
        end = start + 1
        while end < len(numbers) and numbers[end] - numbers[end - 1] == step:
            end += 1
        if end - start < (2 if step == 1 else 4):
            end = start + 1
            parts.append(str(numbers[start]))
        elif step == 1:
            parts.append(f"{numbers[start]}-{numbers[end - 1]}")
        else:
            parts.append(f"{numbers[start]}, {numbers[start + 1]}, …, {numbers[end - 1]}")
        start = end
    return ", ".join(parts)


def _draw_tables(console: Console, tables: Mapping[str, Any]) -> None:
    """N-gram tables and where they live."""
    where = {
        "checkpoint": "in the checkpoint as it lies, mapped", "host": "in memory", "mmap": "in table files, mapped",
        "disk": "in table files, read row by row",
    }[tables["tier"]]  # fmt: skip
    _title(console, f"n-gram tables: {tables['format']}, {where}")
    rows = [(f"layer {layer}", f"{table['rows']:,}", f"{tables['row_bytes']:,}", f"{table['bytes']:,}")
            for layer, table in tables["layers"].items()]  # fmt: skip
    rows.append(("all", f"{sum(table['rows'] for table in tables['layers'].values()):,}", "", f"{tables['num_bytes']:,}"))
    _table(console, ("table", "rows", "bytes/row", "bytes"), rows)
    console.print()
    pairs = [("folder", tables["folder"])] if tables["folder"] else []
    per_token = len(tables["layers"]) * tables["rows_per_token"] * tables["row_bytes"]
    pairs.append(("rows per token", f"{tables['rows_per_token']} of each table, {per_token:,} B together"))
    pairs.append(("held in memory", f"{tables['resident_bytes']:,} B"))
    _pairs(console, pairs)


def _draw_caches(console: Console, cache: Mapping[str, Any], engine: Mapping[str, Any]) -> None:
    tokens, sequences = cache["tokens"], engine["max_num_seqs"]
    _title(console, f"caches: {engine['kv_cache']}, {tokens:,} tokens, {sequences} sequence{'s' if sequences > 1 else ''}")
    needed = ("layers", "rows", "row_bytes", "needed_bytes")
    _table(console, ("cache", "layers", "rows", "bytes/row", "needed bytes"), _cache_rows(cache["caches"], needed))
    console.print()
    allocated = ("blocks", "block_rows", "allocated_bytes", "rounding_loss_bytes")
    header = ("cache", "blocks", "rows/block", "allocated bytes", "rounding loss")
    _table(console, header, _cache_rows(cache["caches"], allocated))
    console.print()
    sums = (("paged caches", "paged_bytes"), ("state", "state_bytes"), ("allocated", "allocated_bytes"))
    width = max(len(f"{cache[key]:,}") for _, key in sums)
    pairs = [(name, f"{cache[key]:>{width},} B = {_size(cache[key])}") for name, key in sums]
    pairs.append(("per token", f"{cache['bytes_per_token']:>{width},.10g} B that a sequence grows by"))
    if fixed := cache["bytes_per_sequence"]:
        what = ["windows", *(["draft stages"] if cache["draft"] else []), *(["open entries"] if cache["state_bytes"] else [])]
        pairs.append(("per sequence", f"{fixed:>{width},} B at any length: {', '.join(what)}"))
    if draft := cache["draft"]:
        needs, held = f"{draft['needed_bytes']:>{width},} B needed", f"{draft['allocated_bytes']:,} B allocated"
        pairs.append(("draft cache", f"{needs}, {held} by the first draft; in none of the sums"))
    _pairs(console, pairs)


def _cache_rows(uses: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> list[tuple[str, ...]]:
    names = [use["layer_type"] + (f":{use['ratio']}" if use["layer_type"] == "full" and use["ratio"] else "") for use in uses]
    return [(f"{use['name']} ({name})", *(f"{use[key]:,}" for key in keys)) for use, name in zip(uses, names, strict=True)]


def _draw_fit(console: Console, report: Mapping[str, Any]) -> None:
    _title(console, "this machine")
    files, memory = report["files"], report["memory"]
    if files is None:
        pairs = [("files", "a configuration without weights")]
    elif files["valid"]:
        drafts = "with" if files["has_draft"] else "without"
        held = f"{files['num_tensors']:,} tensors, {files['num_bytes']:,} bytes in {files['num_shards']} shards"
        pairs = [("files", f"valid: {held}, {files['layout']} names, {drafts} draft stages")]
    else:
        pairs = [("files", "INVALID, see below")]
    if memory is None:
        pairs.append(("memory", "not computed, see below"))
    else:
        parts = f"{_size(memory['weight_bytes'])} of weights, {_size(report['cache']['allocated_bytes'])} of caches"
        parts += f", {_size(memory['table_bytes'])} of tables" if memory["table_bytes"] else ""
        pairs.append(("memory", f"{'fits' if memory['fits'] else 'DOES NOT FIT'}: {parts}"))
    _pairs(console, pairs)


def _draw_probe(console: Console, lines: Iterable[str]) -> None:
    """One line per finding; a terminal gets them wrapped, a file keeps them whole."""
    _title(console, "probe")
    for line in lines:
        shown = f"  {printable(line)}"
        if console.is_terminal:
            shown = textwrap.fill(shown, console.width, subsequent_indent=" " * 6, break_on_hyphens=False)
        console.print(Text(shown), soft_wrap=True)


def _draw_verdict(console: Console, report: Mapping[str, Any]) -> None:
    console.print()
    for remark in report["notes"]:
        console.print(Text.assemble(("note: ", "yellow"), printable(remark)), soft_wrap=True)
    for problem in report["problems"]:
        console.print(Text.assemble(("problem: ", "bold red"), printable(problem)), soft_wrap=True)
    if not report["problems"]:
        console.print(Text("no problems found" if not report["notes"] else "no problems found beside the notes", "green"))


def _title(console: Console, text: str) -> None:
    console.print(Text("\n" + text, "bold"), soft_wrap=True)


def _pairs(console: Console, pairs: Iterable[tuple[str, str]]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row("  " + name, Text(printable(value)))
    console.print(table)


def _table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Names left, numbers right."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for i, column in enumerate(columns):
        table.add_column(column if i else "  " + column, justify="right" if i else "left")
    for name, *numbers in rows:
        table.add_row(Text("  " + name, "cyan"), *numbers)
    width, console.width = console.width, 200  # figures are never cut, however narrow the terminal
    console.print(table, crop=False)
    console.width = width


def _size(num_bytes: int) -> str:
    """Bytes in the largest unit that leaves at least 1."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if num_bytes >= 1 << power:
            return f"{num_bytes / (1 << power):.3f} {unit}"
    return f"{num_bytes} B"
