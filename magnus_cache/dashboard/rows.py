"""What metrics, charts and tables show, made of the figures of a fleet. Nothing here draws."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Final, NamedTuple

from magnus_cache import CacheStats, FleetProcess, LedgerRow
from magnus_cache._engine.api.spend_report import SpendUse
from magnus_cache._engine.runtime.ledger import money_text
from magnus_cache.dashboard.texts import (
    NOTHING,
    bytes_text,
    count_text,
    duration_text,
    milliseconds_text,
    percent_text,
    plain_text,
)
from magnus_cache.dashboard.watch import View

__all__ = [
    "Columns",
    "Metric",
    "days",
    "decimals",
    "failures",
    "groups",
    "hit_rates",
    "latencies",
    "limits",
    "metrics",
    "outages",
    "priced",
    "processes",
    "saved_unit",
    "shown_minutes",
    "traffic",
]

Columns = dict[str, list[Any]]
"""A table: the values of each column by its name."""

_MEMORY: Final = re.compile(r"([\d.]+)([KMGTP]?)B?")
"""What Redis says of its memory, such as ``1.20M``."""

_LARGEST: Final = 2**63 - 1
"""The largest whole number of a table in the browser."""


class Metric(NamedTuple):
    """A figure with its name, and a second one that puts it in proportion."""

    label: str
    value: str
    note: str | None


def metrics(view: View) -> list[Metric]:
    """Return the figures that come first."""
    figures = view.figures or CacheStats()
    total, hits = figures.get("total_requests", 0), figures.get("hit_count", 0)
    spaces = list(figures.get("namespaces", {}).values())
    loads, seconds = sum(row["loads"] for row in spaces), sum(row["load_seconds"] for row in spaces)
    near = sum(row["l1_hits"] for row in spaces)
    spent, kept = (float(sum(row[name] for row in spaces)) for name in ("spent", "saved"))
    bill = f"{percent_text(kept, spent + kept)} of the bill"
    money = [Metric("Money saved", money_text(kept, view.currency), bill)] if spent or kept else []
    mean = f"{milliseconds_text(1_000 * seconds / loads)} a load" if loads else None
    return [
        Metric(
            "Hit rate", percent_text(hits, total), f"{percent_text(near, total)} from memory" if total else None
        ),
        Metric("Calls", count_text(total) if view.figures else NOTHING, _rate(view.minutes)),
        Metric("Time saved", duration_text(_saved(spaces)) if loads else NOTHING, mean),
        *money,
        Metric("Keys in Redis", _count(figures.get("redis_total_keys")), _memory(figures.get("redis_used_memory"))),
        Metric(
            "Processes", _count(figures.get("processes")),
            f"{bytes_text(figures['in_memory_bytes'])} in memory" if figures.get("processes") else None,
        ),
    ]  # fmt: skip


def _count(count: object) -> str:
    return count_text(count) if isinstance(count, int) else NOTHING


def _memory(text: object) -> str | None:
    found = _MEMORY.fullmatch(str(text))
    return None if found is None else f"server uses {found[1]} {found[2].replace('K', 'k')}B"


def _rate(minutes: Sequence[CacheStats]) -> str | None:
    """Return the calls per second in the last full minute."""
    if len(minutes) < 2 or not any(map(_busy, minutes)):
        return None
    rate = minutes[-2]["total_requests"] / 60
    return f"{rate:.1f} per second" if rate < 10 else f"{count_text(rate)} per second"


def _saved(rows: Iterable[Mapping[str, Any]]) -> float:
    return float(sum(row["saved_seconds"] for row in rows))


# -- charts -----------------------------------------------------------------------------------------------------


def shown_minutes(minutes: Sequence[CacheStats], count: int) -> Sequence[CacheStats]:
    """Return the last full minutes. The present one is left out, unless nothing happened before: it is not complete."""
    full = minutes[:-1][-count:]
    return full if any(map(_busy, full)) else minutes[-count:]


def _busy(minute: CacheStats) -> bool:
    return bool(minute["total_requests"] or minute["levels"]["load"]["count"])


def _times(minutes: Sequence[CacheStats]) -> Columns:
    return {"at": [datetime.fromtimestamp(minute["at"], UTC) for minute in minutes]}


def hit_rates(minutes: Sequence[CacheStats]) -> Columns:
    """Return the hit rate of each minute, None without calls, and how many processes lost Redis in it."""
    rates = [minute["hit_rate_percent"] if minute["total_requests"] else None for minute in minutes]
    return _times(minutes) | {
        "rate": rates,
        "calls": [_whole(minute["total_requests"]) for minute in minutes],
        "outages": [_whole(minute["outages"]) for minute in minutes],
    }


def traffic(minutes: Sequence[CacheStats]) -> Columns:
    """Return the calls per second of each minute, a row for each way in which they ended."""
    rows: Columns = {"at": [], "result": [], "rate": [], "order": []}
    for order, (result, name) in enumerate((("memory", "l1_hits"), ("Redis", "l2_hits"), ("miss", "miss_count"))):
        for minute in minutes:
            rows["at"].append(datetime.fromtimestamp(minute["at"], UTC))
            rows["result"].append(result)
            rows["rate"].append(minute[name] / minute["seconds"])
            rows["order"].append(order)
    return rows


def latencies(minutes: Sequence[CacheStats]) -> Columns:
    """Return the median and the 99th percentile of each minute, in milliseconds; None for what did not happen."""
    rows: Columns = {"at": [], "kind": [], "median": [], "slow": []}
    for kind, level in (("load", "load"), ("read of Redis", "l2")):
        for minute in minutes:
            found = minute["levels"][level]
            rows["at"].append(datetime.fromtimestamp(minute["at"], UTC))
            rows["kind"].append(kind)
            for column, name in (("median", "p50_ms"), ("slow", "p99_ms")):
                # The axis is logarithmic, and has no place for 0.
                rows[column].append(found[name] if found["count"] > 0 and found[name] > 0 else None)
    return rows


# -- tables -----------------------------------------------------------------------------------------------------

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def decimals(column: Iterable[float | None]) -> int:
    """Return how many decimals the numbers of a column need, so that the largest has three digits."""
    most = max((abs(number) for number in column if number is not None), default=0.0)
    return next((places for places, limit in ((0, 100), (1, 10), (2, 1)) if most >= limit), 3)


def saved_unit(rows: Iterable[Mapping[str, Any]]) -> tuple[int, str]:
    """Return the unit in which the times saved of a table are shown, in seconds and as text."""
    most = max((row["saved_seconds"] for row in rows), default=0.0)
    return next(((span, unit) for span, unit in _UNITS if most >= 10 * span), _UNITS[-1])


def groups(title: str, rows: Mapping[str, Mapping[str, Any]], currency: str = "") -> Columns:
    """Return a table of namespaces or functions, the one with most calls first.

    It has columns of money if anything in it cost money.
    """
    span, unit = saved_unit(rows.values())
    calls = {name: row["hit_count"] + row["miss_count"] for name, row in rows.items()}
    names = sorted(rows, key=lambda name: (-calls[name], name))
    sorted_rows = [rows[name] for name in names]
    table: Columns = {title: [plain_text(name) for name in names]}
    if title != "Namespace":
        table["Namespace"] = [plain_text(str(row["namespace"])) for row in sorted_rows]
    table["Calls"] = [_whole(calls[name]) for name in names]
    table["Hit rate"] = [
        row["hit_rate_percent"] if calls[name] else None for name, row in zip(names, sorted_rows, strict=True)
    ]
    table["From memory"] = [
        100.0 * row["l1_hits"] / calls[name] if calls[name] else None
        for name, row in zip(names, sorted_rows, strict=True)
    ]
    table["Loads"] = [_whole(row["loads"]) for row in sorted_rows]
    table["Failed loads"] = [_whole(row["load_errors"]) for row in sorted_rows]
    table["Mean load, ms"] = [
        1_000 * row["load_seconds"] / row["loads"] if row["loads"] else None for row in sorted_rows
    ]
    table[f"Time saved, {unit}"] = [row["saved_seconds"] / span if row["loads"] else None for row in sorted_rows]
    if any(map(priced, sorted_rows)):
        for column, name in (("Money saved", "saved"), ("Money spent", "spent")):
            table[column] = [money_text(row[name], currency) if priced(row) else NOTHING for row in sorted_rows]
    return table


def priced(row: Mapping[str, Any]) -> bool:
    """Return whether the loads of a namespace or function cost money."""
    return bool(row["spent"] or row["saved"])


def days(ledger: Sequence[LedgerRow], currency: str) -> Columns:
    """Return a table of the bill by day, the last day first."""
    found: dict[date, list[LedgerRow]] = {}
    for row in ledger:
        found.setdefault(row.day, []).append(row)
    rows = [(day, found[day]) for day in sorted(found, reverse=True)]
    spent = [sum(row.spent for row in some) for _, some in rows]
    kept = [sum(row.saved for row in some) for _, some in rows]
    return {
        "Day (UTC)": [day.isoformat() for day, _ in rows],
        "Calls": [_whole(sum(row.hits + row.misses for row in some)) for _, some in rows],
        "Loads": [_whole(sum(row.loads for row in some)) for _, some in rows],
        "Time saved": [duration_text(sum(row.saved_seconds for row in some)) for _, some in rows],
        "Money spent": [money_text(amount, currency) for amount in spent],
        "Money saved": [money_text(amount, currency) for amount in kept],
        "Of the bill": [100.0 * less / (less + paid) if less + paid else None
                        for less, paid in zip(kept, spent, strict=True)],
    }  # fmt: skip


def limits(uses: Sequence[SpendUse], currency: str) -> Columns:
    """Return a table of the limits of spending, and of what is spent of them."""
    return {
        "Limit of": [use.namespace for use in uses],
        "spend_limit": [f"{money_text(use.limit, currency)}/{use.period}" for use in uses],
        "Spent of it": [money_text(use.spent, currency) for use in uses],
        "Used": [use.percent for use in uses],
    }


def _whole(count: int) -> int:
    """Return a count that a table can hold: another program may have stored any number of digits."""
    return max(-_LARGEST, min(count, _LARGEST))


def processes(listed: Sequence[FleetProcess]) -> Columns:
    """Return a table of the processes that run."""
    return {
        "Host": [plain_text(process.host) for process in listed],
        "Process": [str(process.pid) if process.pid else NOTHING for process in listed],
        "Runs for": [duration_text(process.age) for process in listed],
        "Last report": [f"{process.reported:.0f} s ago" for process in listed],
        "Version": [plain_text(process.version) or "older" for process in listed],
        "Values in memory": [_whole(process.in_memory_keys) for process in listed],
        "Memory, MB": [process.in_memory_bytes / 1e6 for process in listed],
        "Loads under way": [_whole(process.flights) for process in listed],
    }


def failures(figures: Mapping[str, Any]) -> Columns:
    """Return a table of failed exchanges with Redis, by reason."""
    errors = sorted(figures.get("errors", {}).items(), key=lambda item: (-item[1], item[0]))
    return {"Reason": [plain_text(reason) for reason, _ in errors], "Exchanges": [_whole(count) for _, count in errors]}


def outages(view: View) -> Columns:
    """Return a table of the outages that were seen while the fleet was watched."""
    return {
        "Ended": [f"{duration_text(outage.ago)} ago" if outage.ago else "lasts" for outage in view.outages],
        "Took": [duration_text(outage.seconds) for outage in view.outages],
        "Reason": [plain_text(outage.reason.partition(":")[0]) for outage in view.outages],
    }
