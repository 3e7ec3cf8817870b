"""The commands about figures: `stats` and `top`."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from magnus_cache import CacheManager, FleetProcess, WarmJob, __version__
from magnus_cache._engine.api.totals import fleet_totals
from magnus_cache._engine.runtime.ledger import money_text
from magnus_cache._engine.store.explanation import duration_text
from magnus_cache.cli.common import Json, Prefix, Url, console, opened, print_json

__all__ = ["add_to", "stats", "top"]

_LEAST: Final = 0.2
_MOST_ROWS: Final = 15
_WINDOW: Final = 30.0
"""Seconds over which `top` averages calls. Processes publish every 10 seconds, so a short one would show nothing, and
then the calls of 10 seconds at once."""

_SHORTEST: Final = 10.0
"""Seconds after which it shows the first average."""

_NARROW: Final = 78
"""Columns of a terminal below which some figures are left out."""

_MEDIUM: Final = 100
"""Columns from which there is room for loads beside money."""

_WIDE: Final = 124
"""Columns from which there is room for all figures of money."""

_ALONE: Final = (
    "Counts are those of this command alone, which called nothing. Those of your programs: magnus-cache stats --fleet"
)


_MOST_JOBS: Final = 10
"""Jobs of `keep_warm` that `top` shows."""


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(stats)
    app.command()(top)


_Every = Annotated[float, typer.Option("--every", min=_LEAST, metavar="S", help="Seconds between two looks.")]


def stats(
    fleet: Annotated[bool, typer.Option("--fleet", help="Of all processes, over the last day.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")] = False,
    every: _Every = 2.0,
    url: Url = None,
    prefix: Prefix = None,
    json: Json = False,
) -> None:
    """Print statistics. Without --fleet they are those of this command itself: mostly what Redis has."""
    with opened(url, prefix) as cache:

        def look() -> Mapping[str, Any]:
            return cache.get_stats("fleet" if fleet else "process")

        def shown() -> RenderableType:
            figures = _summary(look(), cache._state.settings.currency)
            remark = _other_versions(cache.get_processes()) if fleet else _ALONE
            return Group(figures, Text(), Text(remark)) if remark else figures

        if json:
            _repeat(lambda: print_json(look()), every, watch=watch)
        elif watch and console().is_terminal:
            _live(shown, every)
        else:
            _repeat(lambda: console().print(shown()), every, watch=watch)


def top(
    once: Annotated[bool, typer.Option("--once", help="Print once, and end.")] = False,
    every: _Every = 2.0,
    url: Url = None,
    prefix: Prefix = None,
    json: Json = False,
) -> None:
    """Show the hottest namespaces and functions of the fleet, live."""
    with opened(url, prefix) as cache:
        rates, currency = _Rates(cache), cache._state.settings.currency
        if json:
            print_json(rates.look())
        elif once or not console().is_terminal:
            console().print(_hottest(rates.look(), currency, cache.warm_jobs()))
        else:
            _live(lambda: _hottest(rates.look(), currency, cache.warm_jobs()), every)


def _repeat(show: Callable[[], object], every: float, *, watch: bool) -> None:
    show()
    while watch:
        time.sleep(every)
        show()


def _live(make: Callable[[], RenderableType], every: float) -> None:
    with Live(make(), console=console(), auto_refresh=False, screen=False) as live:
        while True:
            time.sleep(every)
            live.update(make(), refresh=True)


class _Rates:
    """The figures of the fleet, with what happened in the last half minute."""

    def __init__(self, cache: CacheManager) -> None:
        self._cache = cache
        self._looks: deque[tuple[float, dict[tuple[str, ...], int]]] = deque()

    def look(self) -> dict[str, Any]:
        """Return the figures of now; each namespace and function has `calls_per_second`, None in the first seconds."""
        figures, now = dict(self._cache.get_stats("fleet")), time.monotonic()
        rate = self._rates(now)
        for part in ("namespaces", "functions"):
            rows = {name: dict(row) for name, row in figures[part].items()}
            for name, row in rows.items():
                row["calls"] = row["hit_count"] + row["miss_count"]
                row["calls_per_second"] = rate((name,) if part == "namespaces" else (row["namespace"], name))
            figures[part] = rows
        return figures

    def _rates(self, now: float) -> Callable[[tuple[str, ...]], float | None]:
        """Return a function that tells the calls per second, by namespace, or namespace and function."""
        # Not the figures of the day: they shrink when an hour leaves it.
        counts = fleet_totals(self._cache._engine.state).counts
        some: list[tuple[tuple[str, ...], Any]] = [((name,), each) for name, each in counts.namespaces.items()]
        some += counts.functions.items()
        calls = {key: counters.l1_hits + counters.l2_hits + counters.misses for key, counters in some}
        while self._looks and now - self._looks[0][0] > _WINDOW:
            self._looks.popleft()
        self._looks.append((now, calls))
        at, before = self._looks[0]

        def rate(key: tuple[str, ...]) -> float | None:
            # Less than before: Redis has lost its data in between.
            grown = max(0, calls.get(key, 0) - before.get(key, 0))
            return round(grown / (now - at), 1) if now - at >= _SHORTEST else None

        return rate


def _hottest(figures: Mapping[str, Any], currency: str, jobs: Sequence[WarmJob]) -> RenderableType:
    head = Text.assemble(
        (f"{figures['processes']}", "bold"), " processes   hit rate ", (f"{figures['hit_rate_percent']:g} %", "bold"),
        f"   {figures['total_requests']:,} calls in the last day   Redis ",
        ("up", "green") if figures["redis_available"] else ("away", "red"),
    )  # fmt: skip
    width = max((len(name) for part in ("namespaces", "functions") for name in figures[part]), default=0)
    tables = (_table(title, figures[f"{title}s"], currency, width) for title in ("namespace", "function"))
    return Group(head, *map(_warm, jobs[:_MOST_JOBS]), *tables)


def _warm(job: WarmJob) -> RenderableType:
    """Return a line about a job of `keep_warm`."""
    if job.process is None:
        return Text.assemble(("keep_warm ", "dim"), job.name, ("   no process has it", "yellow"))
    parts = [f"   {job.keys:,} keys   {job.refreshed:,} loaded"]
    parts += [f"   {job.held_back:,} held back by limits"] if job.held_back else []
    failed = f"   {job.failed:,} failed, the last one with {job.error}" if job.failed else ""
    return Text.assemble(("keep_warm ", "dim"), job.name, "".join(parts), (failed, "red"), f"   by {job.process}")


def _table(title: str, rows: Mapping[str, Mapping[str, Any]], currency: str, width: int = 0) -> Table:
    """Return the rows, hottest first.

    :param rows: with `calls_per_second` if they are looked at again and again; a single look has no such column.
    :param currency: of the columns of money, which are there if anything cost money.
    :param width: of the first column at least, if there is room; so that the columns of two tables are aligned.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    width_here = console().width
    columns: tuple[str, ...] = ("calls/s", "calls", "hits", "loads", "mean load", "time saved")
    if any(row["spent"] or row["saved"] for row in rows.values()):
        # Where there is less room, money takes the place of other figures; the names must stay readable.
        loads = () if width_here < _MEDIUM else ("loads", "mean load")
        columns = (
            "calls/s",
            "calls",
            "hits",
            *loads,
            "time saved",
            "money saved",
            *(("spent",) if width_here >= _WIDE else ()),
        )
    shown = columns if width_here >= _NARROW else columns[:3]
    if not any("calls_per_second" in row for row in rows.values()):
        shown = tuple(name for name in shown if name != "calls/s")
    most = max(8, width_here - 11 * len(shown) - (4 if "money saved" in shown else 0))
    table.add_column(title, overflow="ellipsis", no_wrap=True, min_width=min(width, most), max_width=most)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True, min_width=9)

    def money(amount: float, row: Mapping[str, Any]) -> str:
        return money_text(amount, currency) if row["spent"] or row["saved"] else ""

    def heat(row: Mapping[str, Any]) -> tuple[float, float]:
        return row.get("calls_per_second") or 0.0, row["calls"]

    for name, row in sorted(rows.items(), key=lambda item: heat(item[1]), reverse=True)[:_MOST_ROWS]:
        rate = row.get("calls_per_second")
        mean = duration_text(row["load_seconds"] / row["loads"]) if row["loads"] else ""
        cells = {
            "calls/s": "" if rate is None else f"{rate:,.1f}", "calls": f"{row['calls']:,}",
            "hits": f"{row['hit_rate_percent']:g} %", "loads": f"{row['loads']:,}", "mean load": mean,
            "time saved": duration_text(row["saved_seconds"]), "money saved": money(row["saved"], row),
            "spent": money(row["spent"], row),
        }  # fmt: skip
        # No markup: the name of a function may have brackets.
        table.add_row(Text(name), *(Text(cells[column]) for column in shown))
    if not rows:
        table.add_row("none yet")
    return table


def _other_versions(processes: Sequence[FleetProcess]) -> str:
    """Return a line about processes of other versions of this library; empty without any."""
    others = Counter(process.version or "an older version" for process in processes if process.version != __version__)
    if not others:
        return ""
    found = ", ".join(f"{version} ({count})" for version, count in sorted(others.items()))
    return (
        f"{others.total()} of {len(processes)} processes do not run {__version__}, as this command does: {found}. "
        "What they do not report is missing here; restart them with the same version."
    )


def _summary(figures: Mapping[str, Any], currency: str) -> RenderableType:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, value in figures.items():
        if not isinstance(value, dict):
            table.add_row(name, Text(f"{value:,}" if type(value) is int else str(value)))
    for level, found in figures["levels"].items():
        table.add_row(f"level {level}", ", ".join(f"{name} {value:,}" for name, value in found.items()))
    for reason, count in figures["errors"].items():
        table.add_row(f"error {reason}", f"{count:,}")
    parts: list[RenderableType] = [table]
    for title, part in (("namespace", "namespaces"), ("function", "functions")):
        rows = {name: {**row, "calls": row["hit_count"] + row["miss_count"]} for name, row in figures[part].items()}
        if rows:
            parts += [Text(), _table(title, rows, currency)]
    return Group(*parts)
