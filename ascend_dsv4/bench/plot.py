# SPDX-License-Identifier: Apache-2.0
"""One figure of a measurement: latency by percentile, and throughput and concurrency over time."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ascend_dsv4.bench.load import Run
from ascend_dsv4.bench.record import Record
from ascend_dsv4.bench.summary import concurrency_steps
from ascend_dsv4.errors import ConfigError

_COLOURS: Final = {"TTFT": "#0072b2", "ITL": "#009e73", "E2E": "#d55e00"}  # told apart by colour-blind readers
_GREY: Final = "#555555"
_TICKS: Final = (0.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99)  # percent
_BIN_WIDTHS: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600)  # seconds
_MAX_BINS: Final = 80
_LEAST_MS: Final = 0.1  # a shorter gap is between chunks of one packet
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a model may be called $x$
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
}


def save_plot(file: str, run: Run, title: str) -> None:
    """Write the figure as .svg or .png. Raises ConfigError if the file cannot be written."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a model's name may need a font that is not there
        figure = Figure(figsize=(11, 5.2), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        panels = figure.subplot_mosaic([["latency", "throughput"], ["latency", "concurrency"]])
        panels["throughput"].sharex(panels["concurrency"])
        _draw_percentiles(panels["latency"], [record for record in run.records if record.status == "ok"])
        _draw_throughput(panels["throughput"], run)
        _draw_concurrency(panels["concurrency"], run)
        try:
            figure.savefig(Path(file), dpi=150, metadata={"Date": None} if file.lower().endswith(".svg") else None)
        except OSError as error:
            raise ConfigError(f"--plot {file}: cannot be written ({error.strerror}). Name another file.") from error


def _draw_percentiles(axes: Axes, good: Sequence[Record]) -> None:
    """Latency over percentile, whose axis stretches towards 100 so that the slow tail can be read."""
    series = {
        "TTFT": [record.ttft_ms for record in good if record.ttft_ms is not None],
        "ITL": [gap for record in good for gap in record.itl_ms],
        "E2E": [record.e2e_ms for record in good if record.e2e_ms is not None],
    }
    most = max([len(values) for values in series.values()] + [2])
    highest = max(1 - 1 / most, 0.9)
    for name, values in series.items():
        if values:
            # A percentile beyond the number of samples would only repeat the slowest one.
            shares = 1 - np.geomspace(1, max(1 / len(values), 1 - highest), 300)
            axes.plot(_stretched(shares), np.quantile(values, shares), color=_COLOURS[name], label=name, linewidth=1.8)
    ticks = [tick for tick in _TICKS if tick / 100 <= highest + 1e-9]
    axes.set_xticks([_stretched(tick / 100) for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.set_xlim(0, _stretched(highest) * 1.02)
    axes.set_yscale("log")
    if lowest := [np.quantile(values, 0.05) for values in series.values() if values]:
        axes.set_ylim(bottom=max(min(lowest) / 2, _LEAST_MS))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("percentile (%)")
    axes.set_ylabel("latency (ms, logarithmic)")
    axes.set_title("Latency by percentile", fontsize=10, loc="left")
    if any(series.values()):
        axes.legend(frameon=False, loc="best")


def _stretched(share: Any) -> Any:
    """0 → 0, 0.9 → 1, 0.99 → 2, …"""
    return -np.log10(1 - np.asarray(share))


def _draw_throughput(axes: Axes, run: Run) -> None:
    edges, rates = output_rate(run)
    axes.stairs(rates, edges, fill=True, color="#0072b2", alpha=0.35)
    axes.stairs(rates, edges, color="#0072b2", linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("tokens/s")
    axes.set_title(f"Output throughput (per {edges[1] - edges[0]:g} s)", fontsize=10, loc="left")


def _draw_concurrency(axes: Axes, run: Run) -> None:
    times, running = concurrency_steps(run)
    end = max(run.duration_s, 1e-3)
    axes.step([*times, end], [*running, running[-1]], where="post", color=_GREY, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, end)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.set_ylabel("requests")
    axes.set_xlabel("time since the start (s)")
    axes.set_title("Requests under way", fontsize=10, loc="left")


def output_rate(run: Run) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Bins of the run in seconds, [num_bins + 1], and the output tokens per second in each, [num_bins].

    A chunk counts as its share of the tokens of its answer. The last bin may be a part of one: its rate is of that part.
    """
    duration = max(run.duration_s, 1e-3)
    width = next((width for width in _BIN_WIDTHS if duration / width <= _MAX_BINS), duration / _MAX_BINS)
    edges = np.append(np.arange(0, duration, width), duration)
    if len(edges) > 2 and edges[-1] - edges[-2] < width / 2:  # too short for a rate
        edges = np.delete(edges, -2)
    arrivals = np.array([moment - run.started for record in run.records for moment in record.chunks])
    weights = np.array([weight for record in run.records for weight in _chunk_tokens(record)])
    tokens, _ = np.histogram(np.clip(arrivals, 0, edges[-1]), edges, weights=weights)
    return edges, tokens / np.diff(edges)


def _chunk_tokens(record: Record) -> Iterable[float]:
    count = len(record.chunks)
    return [record.output_tokens / count] * count if count else []
