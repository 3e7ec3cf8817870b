"""Drawings for the documentation: what a calendar makes of a TTL, a fleet within its budget, and a recorded day."""

import io
import math
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from magnus_cache import CacheManager, Namespace, market, until
from magnus_cache.testing import virtual_clock
from tests.support.programs import ROOT

__all__ = ["DRAWINGS", "drawn", "record_quotes"]

_BLUE, _RED, _GREY = "#1f77b4", "#c0392b", "#9aa0a8"
_DOTS: Final = 110

_NEW_YORK: Final = ZoneInfo("America/New_York")
_STEP: Final = timedelta(minutes=2)
_LIVES: Final = {1: "1 s", 15: "15 s", 60: "1 m", 3_600: "1 h", 86_400: "1 d", 3 * 86_400: "3 d"}

_PROCESSES: Final = 8
_BUDGET: Final = 20
_SECONDS: Final = 12

_WORKER: Final = """
import random, sys, time
from magnus_cache import CacheBudgetError, CacheManager, CacheTimeoutError, Namespace
quotes = Namespace("quotes", ttl="1m", budget=sys.argv[2], hard_timeout="50ms")
happened = []
with CacheManager(redis_url=sys.argv[1]) as cache:
    cache.get("quotes", "none")
    print("ready", flush=True)
    end = float(sys.stdin.readline())
    while (now := time.time()) < end:
        def load():
            happened.append(f"load {time.time()}")
            return 190.5
        try:
            cache.get_or_set(quotes, random.randrange(400), load)
        except (CacheBudgetError, CacheTimeoutError):
            pass
        happened.append(f"call {now}")
        time.sleep(random.uniform(0.01, 0.03))
print("\\n".join(happened))
"""


def _calendars(_: str) -> Any:
    """Return a drawing of how long values live that are loaded before Thanksgiving, and on the half day after it."""
    figure, axes = _figure()
    start, end = (datetime(2026, 11, day, hour, tzinfo=_NEW_YORK) for day, hour in ((25, 6), (28, 0)))
    moments = [start + number * _STEP for number in range((end - start) // _STEP)]
    for label, calendar, colour, style in (
        ('until("16:05", tz="America/New_York")', until("16:05", tz=_NEW_YORK), _GREY, "-"),
        ('market("XNYS", open="15s", closed="until open")', market("XNYS", open="15s"), _RED, "-"),
    ):
        lives = [(calendar.ends_at(moment) - moment).total_seconds() for moment in moments]
        axes.plot([moment.replace(tzinfo=None) for moment in moments], lives, style, color=colour, label=label, lw=2)
    for day, close in ((25, 16), (27, 13)):
        opens = datetime(2026, 11, day, 9, 30)  # as the axis shows them: in New York
        axes.axvspan(opens, opens.replace(hour=close, minute=0), color="#eaf3ea", zorder=0)
    axes.set_yscale("log")
    axes.set_yticks(list(_LIVES), list(_LIVES.values()))
    axes.minorticks_off()
    axes.set_ylim(8, 4 * 86_400)
    ticks = [datetime(2026, 11, day, hour) for day in (25, 26, 27) for hour in (9, 16)]  # likewise
    axes.set_xticks(ticks, [f"{tick:%a}\n{tick:%H}:00" for tick in ticks])
    axes.set_ylabel("a value that is loaded now lives for")
    axes.set_title("Thanksgiving 2026 in New York; the exchange is open in the green hours", fontsize=10)
    axes.legend(loc="lower center", fontsize=8, framealpha=1)
    return figure


def _budgets(url: str) -> Any:
    """Return a drawing of what eight processes ask for, and what their source gets."""
    command = [sys.executable, "-c", _WORKER, url, f"{_BUDGET}/s"]
    workers = [
        subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(_PROCESSES)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    # Not from the start: connections are made then.
    began = time.time() + 3
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(f"{began + _SECONDS}\n")
        worker.stdin.flush()
    lines = [line for worker in workers for line in worker.communicate()[0].splitlines()]
    counted = {kind: Counter[int]() for kind in ("call", "load")}
    for line in lines:
        kind, _, at = line.partition(" ")
        counted[kind][math.floor(float(at) - began)] += 1
    figure, axes = _figure()
    seconds = range(_SECONDS)
    for kind, label, colour in (
        ("call", f"calls of {_PROCESSES} processes", _GREY), ("load", "loads: what their source gets", _BLUE),
    ):  # fmt: skip
        axes.bar(seconds, [counted[kind][second] for second in seconds], color=colour, label=label)
    axes.axhline(_BUDGET, color=_RED, lw=1.5, ls="--", label=f'budget="{_BUDGET}/s"')
    axes.set_xlabel("second")
    axes.set_ylabel("in each second")
    axes.set_ylim(0, 1.3 * max(counted["call"].values()))
    axes.legend(loc="upper left", ncols=3, fontsize=8, framealpha=1)
    return figure


def _figure() -> tuple[Any, Any]:
    # Without pyplot: no window, no state of the process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained", dpi=_DOTS)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


DRAWINGS: Final[Mapping[str, Callable[[str], Any]]] = {"calendars": _calendars, "budgets": _budgets}
"""By the names of their files: functions that return a figure, given the URL of a Redis."""


def drawn(name: str, url: str) -> bytes:
    """Return a drawing as a PNG."""
    raw = io.BytesIO()
    DRAWINGS[name](url).savefig(raw, metadata={"Software": None})
    return raw.getvalue()


def record_quotes(folder: Path) -> None:
    """Record an hour of quotes, some of them asked for often, and all of them changed once in some minutes."""
    chance = random.Random(7)
    with virtual_clock() as clock, CacheManager(redis_enabled=False, l1_max_entries=2_000) as cache:
        quotes, changed = Namespace("quotes", ttl="1m"), dict[int, float]()
        with cache.record_accesses(folder):
            for _ in range(60_000):
                ticker = min(int(chance.paretovariate(0.4)), 3_000)

                def load(ticker: int = ticker) -> float:
                    return changed.setdefault(ticker, chance.random())

                cache.get_or_set(quotes, ticker, load)
                clock.advance(0.06)
                if chance.random() < 0.06 / 120:
                    changed.clear()
