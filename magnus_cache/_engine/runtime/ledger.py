"""The ledger: what loads have cost and hits have saved, by day and namespace or function."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final, Literal, TypeAlias

from magnus_cache._engine.runtime.fleet_totals import Counts
from magnus_cache._engine.runtime.stats import NANOS, Counters

__all__ = ["DAY", "LedgerBy", "LedgerRow", "ledger_rows", "money_text"]

DAY: Final = 86_400
"""Seconds."""

LedgerBy: TypeAlias = Literal["namespace", "function"]
"""What each row of the ledger is about."""


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What one namespace or function has cost and saved on one day, in the whole fleet.

    :ivar day: the day in UTC, by the clock of Redis.
    :ivar namespace: the namespace.
    :ivar function: the name of the decorated function; None for all of the namespace.
    :ivar hits: calls that found a value.
    :ivar misses: calls that did not.
    :ivar loads: loads that returned.
    :ivar load_seconds: what these took.
    :ivar saved_seconds: what the hits would have taken, had each been a load of average length.
    :ivar spent: money that the loads have cost, in the unit of `cost`.
    :ivar saved: money that the hits would have cost.
    """

    day: date
    namespace: str
    function: str | None
    hits: int
    misses: int
    loads: int
    load_seconds: float
    saved_seconds: float
    spent: float
    saved: float

    @property
    def saved_percent(self) -> float | None:
        """By how much the cache has lowered the bill, 0 to 100; None without money."""
        whole = self.spent + self.saved
        return 100.0 * self.saved / whole if whole else None


def ledger_rows(days: Iterable[tuple[int, Counts]], *, functions: bool) -> list[LedgerRow]:
    """Return the rows of some days, the earliest day first, then by namespace and function.

    :param days: each day's number since the epoch, and its counts.
    :param functions: whether there is a row for each function, rather than for each namespace.
    """
    found = [(day, key, counters) for day, counts in days for key, counters in _parts(counts, functions=functions)]
    lengths: dict[Any, Counters] = {}
    for _, key, counters in found:
        lengths.setdefault(key, Counters()).add(counters)
    rows = [_row(day, key, counters, lengths[key]) for day, key, counters in found]
    return sorted(rows, key=lambda row: (row.day, row.namespace, row.function or ""))


def _parts(counts: Counts, *, functions: bool) -> Iterator[tuple[tuple[str, str | None], Counters]]:
    if functions:
        yield from counts.functions.items()
    else:
        namespaces: Mapping[str, Counters] = counts.namespaces
        for name, counters in namespaces.items():
            yield (name, None), counters


def _row(day: int, key: tuple[str, str | None], counters: Counters, all_days: Counters) -> LedgerRow:
    """Return a row.

    :param all_days: the counts of all days, for a day that has hits and no loads.
    """
    hits, timed = counters.l1_hits + counters.l2_hits, counters if counters.loads else all_days
    mean = timed.load_micros / timed.loads / 1e6 if timed.loads else 0.0
    return LedgerRow(
        datetime.fromtimestamp(DAY * day, UTC).date(), *key, hits, counters.misses, counters.loads,
        round(counters.load_micros / 1e6, 6), round(hits * mean, 3),
        counters.spent_nanos / NANOS, counters.saved_nanos / NANOS,
    )  # fmt: skip


def money_text(amount: float, currency: str = "") -> str:
    """Return an amount of money as people read it: ``$12.40``, ``0.00042 EUR``, ``1,250``.

    :param currency: a sign, which goes in front, or a word.
    """
    places = 2
    if abs(amount) >= 1_000:
        places = 0
    elif 0 < abs(amount) < 1:
        # Three digits that say something: a token costs a millionth of what a call does.
        places = min(9, 2 - math.floor(math.log10(abs(amount))))
    number = f"{amount:,.{places}f}"
    if not currency:
        return number
    return f"{number} {currency}" if currency[-1].isalnum() else f"{currency}{number}"
