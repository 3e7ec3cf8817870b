"""The statistics of a cache: counters for each namespace and level, and latency percentiles.

A hit in memory adds one to a plain attribute. With the GIL, CPython 3.10 and later cannot switch threads between
that load and store, so counts are exact without a lock; elsewhere they may, at worst, miss a few.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from magnus_cache._engine.runtime.audit_counts import AuditCounts

__all__ = ["NANOS", "CacheStats", "Counters", "Histogram", "Stats", "figures_of"]

NANOS: Final = 1_000_000_000
"""Parts of one unit of money: the price of a single token is a few hundred of them."""

_NAMESPACES: Final = 1_000
_CHILDREN: Final = 10_000
_OTHER: Final = "(other)"
_UNDER_OTHER_NAMES: Final = frozenset({"misses", "load_micros", "saved_nanos", "spent_nanos"})


class CacheStats(dict[str, Any]):
    """The statistics of `get_stats`, as a mapping.

    Always present: ``redis_available`` (bool), ``hit_rate_percent`` (0 to 100), ``total_requests``, ``hit_count``,
    ``miss_count``, ``unstorable`` (results that were returned but could not be stored), ``in_memory_keys``,
    ``in_memory_bytes``, ``evictions``, ``expirations``,
    ``fenced_fills`` (values that were overtaken while they were read or loaded, and so not stored),
    ``flights``, ``flights_joined``, ``unattended`` (background loads without a waiting caller),
    ``outages`` (how often the process lost Redis),
    ``unreplayed`` (whether invalidations wait that Redis has not confirmed),
    ``errors`` (count by reason, see `Reason`), ``levels`` (``l1``, ``l2`` and ``load``, each
    with its count, and for the last two ``p50_ms``, ``p90_ms``, ``p99_ms``), ``namespaces`` (the figures of each, see
    `Counters`), ``functions`` (the same of each decorated function, with its ``namespace``)
    and ``breaker`` (``state``: ``"unknown"`` before the first call, ``"closed"``, ``"open"`` or
    ``"half-open"``; ``outages``; the last one's ``reason``, ``seconds_ago`` and ``attempts``; ``events``).
    With a namespace that has `l1_max_entries`: ``l1_limits``, by namespace: its ``entries`` in memory, at ``most``, and
    the ``evictions`` that kept the limit. With a `recovery_path`: ``journal`` (``rows`` that Redis has not confirmed,
    ``restored`` ones, ``failures`` of the disk). On a cluster: ``nodes``, by the address of each primary: its
    ``slots``, the ``connections`` of this process to it, and its ``breaker``; while it answers, also its ``keys`` and
    its ``used_memory``.
    Only while Redis answers: ``redis_total_keys`` and ``redis_used_memory`` (Redis' own text, such as
    ``"1.2M"``). While it does not answer, looking them up gives ``"N/A"``.

    With ``scope="fleet"`` they are those of all processes, summed over the last day (`levels`, `namespaces`,
    `functions`, `errors` and all counts), or over the processes that run now (``in_memory_keys``, ``in_memory_bytes``,
    ``flights``, ``unattended``); ``processes`` is the number of these, and ``breaker``, ``journal``, ``l1_limits``,
    ``nodes`` and ``unreplayed`` are missing. While Redis does not answer, they are those of this process.

    Those of a minute, from `get_history`, have the counts of all namespaces together in place of ``namespaces`` and
    ``functions``, such as ``loads``; ``at``, the second of the epoch at which the minute began, by the clock of Redis;
    and ``seconds``, 60, or how many of the present minute have passed. They have no figures that rise and fall.
    """

    def __missing__(self, key: str) -> str:
        if key in {"redis_total_keys", "redis_used_memory"}:
            return "N/A"
        raise KeyError(key)


class Counters:
    """The counts of one namespace, or of one decorated function within it."""

    __slots__ = (
        "early_refreshes", "errors", "held_back", "l1_hits", "l2_hits", "load_errors", "load_micros", "loads", "misses",
        "negative_hits", "overloads", "pauses", "refused", "saved_nanos", "seal_failures", "spent_nanos",
        "stale_hits", "stores", "timeouts", "unreadable", "unstorable",
    )  # fmt: skip

    early_refreshes: int
    """Loads that were started before a value expired."""
    errors: int
    """Exchanges with Redis that failed."""
    held_back: int
    """Loads that waited for the budget of their source, or for the end of its pause, or were refused by it."""
    l1_hits: int
    """Values found in memory."""
    l2_hits: int
    """Values found in Redis."""
    load_errors: int
    """Loads that raised."""
    load_micros: int
    """Microseconds that loads took which returned. In the statistics: ``load_seconds``."""
    loads: int
    """Loads that returned."""
    misses: int
    """In the statistics: ``miss_count``."""
    negative_hits: int
    """Errors that were raised again from memory or Redis."""
    overloads: int
    """Loads that were not started, or were given up, because too many ran in the background."""
    pauses: int
    """Loads that raised `RetryLater`, and so paused their source."""
    refused: int
    """Writes that Redis refused."""
    saved_nanos: int
    """Billionths of the money that hits have saved. In the statistics: ``saved``."""
    seal_failures: int
    """Values of sealed namespaces that could not be opened, or were not sealed; they are `unreadable`, too."""
    spent_nanos: int
    """Billionths of the money that loads have cost. In the statistics: ``spent``."""
    stale_hits: int
    """Expired values that were served."""
    stores: int
    """Values that were stored, in Redis or in this process alone."""
    timeouts: int
    """Callers that stopped waiting for a load."""
    unreadable: int
    """Stored values that could not be read, and counted as misses."""
    unstorable: int
    """Results that were returned but could not be stored. The next call loads again."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Count from zero; in place, because many keep a reference."""
        for name in self.__slots__:
            setattr(self, name, 0)

    def count(self, *, hit: bool, near: bool) -> None:
        """Count the outcome of one look-up."""
        if not hit:
            self.misses += 1
        elif near:
            self.l1_hits += 1
        else:
            self.l2_hits += 1

    def count_many(self, looks: int, hits: int, near_hits: int) -> None:
        """Count the outcome of many look-ups: how many were hits, and how many of these in memory."""
        self.misses += looks - hits
        self.l1_hits += near_hits
        self.l2_hits += hits - near_hits

    def add(self, other: "Counters") -> None:
        """Add other counts to these."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_dict(self) -> dict[str, float]:
        """Return the counts, with their usual sums.

        ``saved_seconds``: what the hits would have taken, had each been a load of average length. ``spent`` and
        ``saved``: money, by the ``cost`` of loads and by `count_cost`.
        """
        hits, seconds = self.l1_hits + self.l2_hits, self.load_micros / 1e6
        return {
            "hit_count": hits,
            "miss_count": self.misses,
            "hit_rate_percent": _percent(hits, hits + self.misses),
            **{name: getattr(self, name) for name in self.__slots__ if name not in _UNDER_OTHER_NAMES},
            "load_seconds": round(seconds, 6),
            "spent": self.spent_nanos / NANOS,
            "saved": self.saved_nanos / NANOS,
            "saved_seconds": round(hits * seconds / self.loads, 3) if self.loads else 0.0,
        }


class Histogram:
    """Durations in buckets a quarter of an octave wide: percentiles within 19 percent, in constant memory."""

    __slots__ = ("_buckets", "count", "micros")

    _FINEST: Final = 1e-6
    _PER_OCTAVE: Final = 4

    def __init__(self) -> None:
        self.count = 0
        self.micros = 0
        self._buckets = [0] * (40 * self._PER_OCTAVE)

    def add(self, duration: float, times: int = 1) -> None:
        """Count a duration, in seconds, `times` times."""
        octaves = math.log2(max(duration, self._FINEST) / self._FINEST)
        self._buckets[min(int(octaves * self._PER_OCTAVE), len(self._buckets) - 1)] += times
        self.count += times
        self.micros += int(duration * 1e6) * times

    def counts(self) -> dict[int, int]:
        """Return the buckets in use: their places, and their counts."""
        return {place: count for place, count in enumerate(self._buckets) if count}

    def count_in(self, place: int, times: int) -> None:
        """Count durations of a bucket, as `counts` of another histogram shows it."""
        self._buckets[min(place, len(self._buckets) - 1)] += times
        self.count += times

    def up_to(self, octave: int) -> int:
        """Return how many durations were below ``2 ** octave`` microseconds."""
        return sum(self._buckets[: octave * self._PER_OCTAVE])

    def percentile(self, share: float) -> float:
        """Return the duration in seconds that `share` (0 to 1) of all did not exceed; 0 without any."""
        left = share * self.count
        for index, count in enumerate(self._buckets):
            left -= count
            if count and left <= 0:
                return self._FINEST * math.exp2((index + 1) / self._PER_OCTAVE)
        return 0.0

    def as_dict(self) -> dict[str, float]:
        """Return the count and the percentiles, in milliseconds."""
        shares = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99}
        return {"count": self.count, **{name: round(self.percentile(at) * 1000, 4) for name, at in shares.items()}}


class Stats:
    """The statistics of one cache, shared by its blocking and its async manager."""

    def __init__(self) -> None:
        self.audits = AuditCounts()
        self._namespaces: dict[str, Counters] = {}
        self._children: list[tuple[str, str, Counters, int]] = []
        self.reset()

    def reset(self) -> None:
        """Count from zero, as in a forked child."""
        for counters in (*self._namespaces.values(), *(child[2] for child in self._children)):
            counters.reset()
        self.errors: dict[str, int] = {}
        self.audits.reset()
        self.fenced_loads = 0
        self.l2_latency = Histogram()
        self.load_latency = Histogram()

    def of(self, namespace: str) -> Counters:
        """Return the counters of a namespace; past a thousand namespaces, those of all the others together."""
        counters = self._namespaces.get(namespace)
        if counters is None:
            name = str(namespace) if len(self._namespaces) < _NAMESPACES else _OTHER
            counters = self._namespaces.setdefault(name, Counters())
        return counters

    def child(self, namespace: str, function: str, price: int = 0) -> Counters:
        """Return separate counters that also count for the namespace; past ten thousand, the namespace's own.

        :param function: the name of the decorated function.
        :param price: billionths of money that each of its hits saves. They are counted when someone reads the counts:
            so a hit costs nothing more. Past ten thousand functions they are not counted.
        """
        if len(self._children) >= _CHILDREN:
            return self.of(namespace)
        counters = Counters()
        self._children.append((str(namespace), function, counters, price))
        return counters

    def function_of(self, counters: Counters) -> str | None:
        """Return the name of the decorated function that has these counters; None for those of a namespace."""
        return next((name for _, name, its, *_ in list(self._children) if its is counters), None)

    def by_namespace(self) -> dict[str, Counters]:
        """Return the counts of each namespace, those of its functions included."""
        sums: dict[str, Counters] = {}
        for name, counters in list(self._namespaces.items()):
            sums.setdefault(name, Counters()).add(counters)
        for name, _, counters, price in list(self._children):
            _add_priced(sums.setdefault(name, Counters()), counters, price)
        return sums

    def by_function(self) -> dict[tuple[str, str], Counters]:
        """Return the counts of each decorated function, by its namespace and its name."""
        sums: dict[tuple[str, str], Counters] = {}
        for namespace, function, counters, price in list(self._children):
            _add_priced(sums.setdefault((namespace, function), Counters()), counters, price)
        return sums

    def failed(self, reason: str) -> None:
        """Count a failure by its one-word reason."""
        self.errors[reason] = self.errors.get(reason, 0) + 1

    def as_dict(self) -> CacheStats:
        """Return the statistics that need neither Redis nor the memory."""
        return figures_of(self.by_namespace(), self.by_function(), self.l2_latency, self.load_latency, self.errors)


def figures_of(
    namespaces: Mapping[str, Counters], functions: Mapping[tuple[str, str], Counters], l2_latency: Histogram,
    load_latency: Histogram, errors: Mapping[str, int],
) -> CacheStats:  # fmt: skip
    """Return counts and latencies as statistics, with their sums.

    :param functions: by namespace and name.
    :param errors: counts by reason.
    """
    total = Counters()
    for counters in namespaces.values():
        total.add(counters)
    l1, l2, misses = total.l1_hits, total.l2_hits, total.misses
    return CacheStats(
        hit_rate_percent=_percent(l1 + l2, l1 + l2 + misses),
        total_requests=l1 + l2 + misses,
        hit_count=l1 + l2,
        miss_count=misses,
        unstorable=total.unstorable,
        levels={"l1": {"count": l1}, "l2": l2_latency.as_dict(), "load": load_latency.as_dict()},
        namespaces={name: counters.as_dict() for name, counters in namespaces.items()},
        functions={
            name: {"namespace": namespace, **counters.as_dict()} for (namespace, name), counters in functions.items()
        },
        errors=dict(errors),
    )


def _add_priced(total: Counters, counters: Counters, price: int) -> None:
    total.add(counters)
    if price:
        total.saved_nanos += price * (counters.l1_hits + counters.l2_hits)


def _percent(part: int, whole: int) -> float:
    return round(100.0 * part / whole, 2) if whole else 0.0
