# SPDX-License-Identifier: Apache-2.0
"""`ascend-dsv4 bench serve`: load on a running server, and how it bears it."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin, get_type_hints

from ascend_dsv4 import __version__
from ascend_dsv4.bench import require
from ascend_dsv4.bench.config import PLOT_SUFFIXES, LoadConfig, check_output_file, check_plot_file, flag
from ascend_dsv4.errors import AscendDsv4Error, ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from ascend_dsv4.bench.load import Progress, Run

SOME_FAILED, INTERRUPTED = 1, 130
"""Exit codes beside 0; that nothing could be measured is an error of ours."""

_LATENCIES: Final = {
    "ttft": "TTFT to the first token",
    "tpot": "TPOT per token after it",
    "itl": "ITL  between chunks",
    "e2e": "E2E  whole request",
    "ttft_from_send": "TTFT once sent",
    "e2e_from_send": "E2E  once sent",
}
_COLUMNS: Final = ("mean", "p50", "p90", "p95", "p99", "max")


def add_parser(commands: Any) -> None:
    """Register the command group and what is in it."""
    bench = commands.add_parser(
        "bench", allow_abbrev=False, help="measure a running server", description="Measure a running server from outside."
    )
    parser = bench.add_subparsers(title="commands", dest="bench_command", metavar="COMMAND", required=True).add_parser(
        "serve",
        allow_abbrev=False,
        help="throughput and latency of any OpenAI-compatible server",
        description="Send requests to any OpenAI-compatible server and report throughput and latency: TTFT (time to first "
        "token), TPOT (time per output token after it), ITL (gaps between chunks), E2E (whole request). Connects directly, "
        "whatever proxies the environment names. Exits with 0 if every request succeeded, 1 if some failed.",
    )
    _add_config_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", nargs="?", const="-", metavar="FILE",
        help="write configuration, environment, figures and every request as one JSON document to FILE, or to stdout in "
        "place of the tables",
    )  # fmt: skip
    output.add_argument("--plot", metavar="FILE", help=f"draw latency and throughput ({' or '.join(PLOT_SUFFIXES)})")
    parser.set_defaults(run=run)


def _add_config_options(parser: argparse.ArgumentParser) -> None:
    """A flag for every field of `LoadConfig`."""
    groups: dict[str, Any] = {}
    hints = get_type_hints(LoadConfig)
    for option in dataclasses.fields(LoadConfig):
        title, hint = option.metadata["group"], hints[option.name]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        has_default = option.default is not None and option.default is not dataclasses.MISSING
        text = option.metadata["help"] + (f" (default: {option.default})" if has_default else "")
        common = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
        if hint is bool:
            groups[title].add_argument(flag(option.name), action=argparse.BooleanOptionalAction, **common)
            continue
        groups[title].add_argument(
            flag(option.name),
            type=_argument(option.metadata["parse"]),
            choices=get_args(hint) if get_origin(hint) is Literal else None,
            metavar=option.metadata["metavar"],
            **common,
        )


def _argument(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of option values whose own words argparse prints."""

    def checked(text: str) -> Any:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    checked.__name__ = parse.__name__  # argparse names the type of a number it cannot read
    return checked


def load_config(args: argparse.Namespace) -> LoadConfig:
    """The configuration of a command line. Raises ConfigError."""
    names = (option.name for option in dataclasses.fields(LoadConfig))
    return LoadConfig(**{name: getattr(args, name) for name in names if hasattr(args, name)})


def run(args: argparse.Namespace) -> int:
    """Measure, then report in the ways that were asked for."""
    config = load_config(args)
    require("httpx", "bench serve")
    if args.json not in (None, "-"):
        check_output_file("--json", args.json)
    if args.plot is not None:
        check_plot_file(args.plot)
        require("matplotlib", f"--plot {args.plot}")
    from ascend_dsv4.bench.summary import summarize
    from ascend_dsv4.cli.terminal import note

    started = datetime.now(timezone.utc)
    result = _measure(config)
    if result.is_interrupted and not result.records:
        note("interrupted before the measurement began")
        return INTERRUPTED
    summary = summarize(result, config)
    if args.json is not None:
        _write_json(args.json, config, result, summary, started)
    if args.json != "-":
        draw(config, result, summary)
    if args.plot is not None:
        from ascend_dsv4.bench.plot import save_plot

        save_plot(args.plot, result, f"{result.model} at {config.url}\n{_load_line(config, result)}")
        note(f"figure: {args.plot}")
    return _exit_code(config, result, summary)


def _measure(config: LoadConfig) -> Run:
    """Run the event loop. Ctrl-C ends the measurement, not the program."""
    from ascend_dsv4.bench.load import measure

    line = _ProgressLine()

    async def until_stopped() -> Run:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        takes_signals = threading.current_thread() is threading.main_thread()
        if takes_signals:
            loop.add_signal_handler(signal.SIGINT, stop.set)
        try:
            return await measure(config, stop, line.show)
        finally:
            if takes_signals:
                loop.remove_signal_handler(signal.SIGINT)

    try:
        return asyncio.run(until_stopped())
    finally:
        line.clear()


class _ProgressLine:
    """One line on stderr that is written over; nothing outside a terminal."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._columns = os.get_terminal_size(sys.stderr.fileno()).columns if self._is_shown else 0

    def show(self, progress: Progress) -> None:
        """Where the measurement is."""
        text = progress.phase
        if progress.total:
            seconds = max(time.perf_counter() - progress.started, 1e-9)
            failed = f", {progress.failed} failed" if progress.failed else ""
            text = (
                f"{progress.succeeded + progress.failed}/{progress.total} requests{failed}, {progress.running} running, "
                f"{progress.chunks / seconds:.1f} chunks/s, {seconds:.0f} s"
            )
        self._write(text[: max(self._columns - 1, 0)])

    def clear(self) -> None:
        """Leave an empty line."""
        self._write("")

    def _write(self, text: str) -> None:
        if self._is_shown:
            sys.stderr.write(f"\r{text}\x1b[K")
            sys.stderr.flush()


def _write_json(target: str, config: LoadConfig, result: Run, summary: Mapping[str, Any], started: datetime) -> None:
    content = {
        "config": config.to_dict() | {"model": result.model},
        "environment": {
            "started": started.isoformat(timespec="seconds"),
            "ascend_dsv4": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "httpx": metadata.version("httpx"),
            "numpy": metadata.version("numpy"),
        },
        "word_count": dataclasses.asdict(result.word_count),
        "summary": summary,
        "requests": [record.to_dict(result.started) for record in result.records],
    }
    if target == "-":
        from ascend_dsv4.cli.terminal import print_json

        print_json(content)
        return
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1)
    try:
        Path(target).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"--json {target}: cannot be written ({error.strerror}). Name another file.") from error


def _exit_code(config: LoadConfig, result: Run, summary: Mapping[str, Any]) -> int:
    """Raises AscendDsv4Error if no request succeeded."""
    if result.is_interrupted:
        return INTERRUPTED
    counts = summary["requests"]
    if counts["succeeded"]:
        return SOME_FAILED if counts["failed"] else 0
    kind, first = next(iter(summary["errors"].items()))
    advice = "Look at the server's log."
    if kind in ("http_400", "http_422"):
        advice = "If it refuses a field, take that out: --no-ignore-eos, or a null in --extra-body. Else lower the lengths."
    if kind in ("http_401", "http_403"):
        advice = "Pass a key with --api-key-env."
    raise AscendDsv4Error(
        f"bench serve {config.url}: none of {counts['total']} requests succeeded; expected at least one, because failed ones "
        f"have no latency. Most frequent: {kind}, {first['example'].rstrip('.')}. {advice}"
    )


def draw(config: LoadConfig, result: Run, summary: Mapping[str, Any]) -> None:
    """Print the figures as tables of at most 80 columns."""
    from rich.console import Console
    from rich.text import Text

    from ascend_dsv4.cli.terminal import printable

    console = Console(highlight=False, width=80)
    with console.capture() as captured:
        _draw_pairs(console, "measurement", _overview(config, result, summary))
        _draw_pairs(console, "throughput", _throughput(summary))
        _draw_latencies(console, summary["latency_ms"])
        if summary["errors"]:
            errors = ((f"{kind} × {entry['count']}", entry["example"]) for kind, entry in summary["errors"].items())
            _draw_pairs(console, "failed requests, and what the first of each kind said", errors)
        if summary["notes"]:
            console.print()
        for remark in summary["notes"]:
            console.print(Text.assemble(("note: ", "yellow"), printable(remark)))
    sys.stdout.write(re.sub(" +$", "", captured.get(), flags=re.MULTILINE))  # cells are padded to their column


def _overview(config: LoadConfig, result: Run, summary: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    counts, tokens, concurrency = summary["requests"], summary["tokens"], summary["concurrency"]
    others = "".join(f", {counts[name]} {name}" for name in ("failed", "interrupted") if counts[name])
    reasons = ", ".join(f"{name} {count}" for name, count in summary["finish_reasons"].items())
    sent = "unknown" if tokens["input"] is None else f"{tokens['input']:,}"
    yield "server", f"{config.url} {config.endpoint}"
    yield "model", result.model
    yield "load", _load_line(config, result)
    yield "requests", f"{counts['succeeded']} succeeded{others} in {summary['duration_s']:.2f} s"
    yield "under way", f"{concurrency['peak']} at most, {concurrency['mean']:.1f} on average"
    yield "tokens", f"{sent} input, {tokens['output']:,} output"
    yield "finished by", reasons or "none"
    if "goodput" in summary:
        goodput = summary["goodput"]
        limits = (("ttft", goodput["slo_ttft_ms"]), ("tpot", goodput["slo_tpot_ms"]))
        wanted = ", ".join(f"{name.upper()} ≤ {limit:g} ms" for name, limit in limits if limit is not None)
        yield "objectives", f"{goodput['met']} requests met {wanted} ({goodput['fraction'] or 0:.1%})"


def _load_line(config: LoadConfig, result: Run) -> str:
    """The load in words."""
    lengths = "prompts of a file" if config.prompt_file else f"{config.input_len} input"
    sizes = f"{len(result.records)} requests, {lengths}, {config.output_len} output tokens"
    if config.request_rate is None:
        return f"{sizes}; closed loop, {config.in_flight} at a time"
    bound = f", at most {config.max_concurrency} at a time" if config.max_concurrency else ""
    return f"{sizes}; open loop, {config.request_rate:g} per second, burstiness {config.burstiness:g}{bound}"


def _throughput(summary: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    rates = summary["throughput"]
    units = {"requests": "requests/s", "input_tokens": "tokens/s", "output_tokens": "tokens/s", "total_tokens": "tokens/s"}
    for name, unit in units.items():
        rate = rates[f"{name}_per_s"]
        yield name.replace("_", " "), "unknown" if rate is None else f"{rate:,.2f} {unit}"
    if "goodput" in summary:
        yield "goodput", f"{summary['goodput']['requests_per_s']:,.2f} requests/s"


def _draw_pairs(console: Console, title: str, pairs: Iterable[tuple[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ascend_dsv4.cli.terminal import printable

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row("  " + name, Text(printable(value)))
    console.print(Text("\n" + title, "bold"))
    console.print(table)


def _draw_latencies(console: Console, latencies: Mapping[str, Mapping[str, float | None]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("  ", no_wrap=True, style="cyan")
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for name, figures in latencies.items():
        table.add_row("  " + _LATENCIES[name], *_cells([figures[column] for column in _COLUMNS]))
    console.print(Text("\nlatency (ms)", "bold"))
    width, console.width = console.width, 200  # figures are never cut, however long
    console.print(table, crop=False)
    console.width = width


def _cells(values: Sequence[float | None]) -> list[str]:
    """Milliseconds, with decimals while they are small."""
    return ["-" if value is None else f"{value:,.2f}" if value < 1000 else f"{value:,.0f}" for value in values]
