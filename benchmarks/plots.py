"""The pictures of a run: throughput by concurrency, the distribution of latencies, the guide before and after."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.guide import BEFORE, FIRST
from benchmarks.tables import OURS, Table, quartiles
from benchmarks.thread_peers import L1_ON

__all__ = ["plots"]

_OURS_COLOUR: Final = "#c0392b"
_COLOURS: Final = {
    "aiocache": "#2ca02c", "cashews": "#9467bd", "dogpile.cache": "#2ca02c", "django-cachex": "#e377c2",
    "redis.asyncio": "#8c564b", "redis-py": "#8c564b", "valkey-glide": "#17becf", "valkey-glide-sync": "#17becf",
    "raw + msgpack": "#bcbd22", "raw": "#7f7f7f",
}  # fmt: skip
"""The same in all pictures; two that never meet may share one."""

_OTHER_COLOUR: Final = "#1f77b4"
_DOTS: Final = 130
_BEYOND: Final = (50.0, 90.0, 99.0, 99.9, 99.99)
"""Percentiles at which the axis of latencies has a mark."""


def plots(tables: Mapping[str, Table], directory: Path) -> list[Path]:
    """Write the pictures of the tables that there are and return their paths.

    :raises ImportError: if matplotlib is not installed.
    """
    # Without pyplot: no window, no state of the process.
    from matplotlib.figure import Figure

    kinds: Sequence[tuple[str, str, Callable[[Any, Table], None]]] = (
        ("throughput", "l2-async", _throughput),
        ("threads", "l2-threads", _threads),
        ("latency", "latency", _latency),
        ("guide", "guide", _guide),
    )
    written = []
    directory.mkdir(parents=True, exist_ok=True)
    for name, table, draw in kinds:
        if table not in tables:
            continue
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        axes = figure.add_subplot()
        draw(axes, tables[table])
        path = directory / f"{name}.png"
        # Without the date and the version: the same figures give the same file.
        figure.savefig(path, dpi=_DOTS, metadata={"Software": None})
        written.append(path)
    return written


def _style(name: str) -> dict[str, Any]:
    if name == OURS:
        return {"color": _OURS_COLOUR, "linewidth": 2.6, "zorder": 3}
    if name == L1_ON:
        return {"color": _OURS_COLOUR, "linewidth": 1.6, "linestyle": "--", "zorder": 3}
    line = {"linestyle": ":"} if name.startswith("raw") else {}
    return {"color": _COLOURS.get(name, _OTHER_COLOUR), "linewidth": 1.5, **line}


def _throughput(axes: Any, table: Table) -> None:
    _rates(axes, table, "concurrent tasks")
    axes.set_title("Hits in Redis from coroutines: median, with the middle half of the rounds")


def _threads(axes: Any, table: Table) -> None:
    _rates(axes, table, "threads")
    axes.set_title("Hits in Redis from threads: median, with the middle half of the rounds")


def _rates(axes: Any, table: Table, unit: str) -> None:
    """Draw a line for each contender over the columns that are numbers."""
    columns = [column for column in table.samples if column.isdigit()]
    for name in table.contenders:
        there = [column for column in columns if table.samples[column].get(name)]
        if not there:
            continue
        xs = [int(column) for column in there]
        bands = [quartiles(table.samples[column][name]) for column in there]
        style = _style(name)
        axes.plot(xs, [table.median(column, name) for column in there], marker="o", markersize=4, label=name, **style)
        axes.fill_between(
            xs, [low for low, _ in bands], [high for _, high in bands], color=style["color"], alpha=0.15, linewidth=0
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([int(column) for column in columns], columns)
    axes.minorticks_off()
    low, high = axes.get_ylim()
    ticks = [step * 10**power for power in range(-1, 5) for step in (1, 2, 5) if low <= step * 10**power <= high]
    axes.set_yticks(ticks, [f"{tick:,.10g}k" for tick in ticks])
    axes.set_xlabel(f"{unit} (logarithmic)")
    axes.set_ylabel("gets a second (logarithmic)")
    _frame(axes)


def _latency(axes: Any, table: Table) -> None:
    """Draw latency over the share of gets that take longer: the right is the tail."""
    for name, points in table.distributions.items():
        shown = [(percent, value) for percent, value in points if percent < 100]
        xs = [1 / (1 - percent / 100) for percent, _ in shown]
        axes.plot(xs, [value / 1000 for _, value in shown], label=name, **_style(name))
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    last = max((point for points in table.distributions.values() for point, _ in points), default=50.0)
    marks = [mark for mark in _BEYOND if mark <= last]
    axes.set_xticks([1, *(1 / (1 - mark / 100) for mark in marks)], ["fastest", *(f"p{mark:g}" for mark in marks)])
    axes.minorticks_off()
    axes.set_xlabel("percentile of gets (logarithmic towards the slowest)")
    axes.set_ylabel("milliseconds from when a get was due")
    axes.set_title(table.title)
    _frame(axes)


def _guide(axes: Any, table: Table) -> None:
    """Draw three dots for each workload: bars would begin at a value of no meaning, as the axis has no zero."""
    features = list(table.samples)
    marks = {
        BEFORE: ("without the cache", "#555555", "s"),
        FIRST: ("first call, which loads", "#1f77b4", "x"),
        OURS: ("later calls", _OURS_COLOUR, "o"),
    }
    found = {name: [table.median(feature, name) or 0.0 for feature in features] for name in marks}
    rows = range(len(features))
    axes.hlines(rows, found[OURS], found[BEFORE], color="#cccccc", linewidth=2, zorder=1)
    for name, (label, colour, marker) in marks.items():
        axes.scatter(found[name], rows, color=colour, marker=marker, s=46, label=label, zorder=3)
    for name in (OURS, BEFORE):
        for row, value in zip(rows, found[name], strict=True):
            axes.annotate(
                _duration(value), (value, row), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8
            )
    axes.set_xscale("log")
    low, high = min(found[OURS]), max(found[BEFORE])
    ticks = [10.0**power for power in range(-4, 6) if low / 10 <= 10.0**power <= high * 10]
    axes.set_xticks(ticks, [_duration(tick) for tick in ticks])
    axes.set_xlim(low / 3, high * 3)
    axes.minorticks_off()
    axes.set_yticks(rows, features)
    axes.set_ylim(len(features) - 0.4, -0.7)
    axes.set_xlabel("time of a call (logarithmic)")
    axes.set_title("The guide's six workloads before and after the cache")
    axes.grid(visible=True, axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)


def _duration(milliseconds: float) -> str:
    """Return a time with the unit in which it is easiest to read."""
    for factor, unit in ((1e-3, "s"), (1.0, "ms")):
        if milliseconds * factor >= 1:
            return f"{milliseconds * factor:.3g} {unit}"
    return f"{milliseconds * 1e3:.3g} µs"


def _frame(axes: Any) -> None:
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
