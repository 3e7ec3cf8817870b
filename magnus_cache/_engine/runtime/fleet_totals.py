r"""The counts of a process as flat fields, as they are added up in Redis for the whole fleet, and back.

A field is a short text, so that Redis can add to it, and the fields of one process have a few hundred bytes:

- ``n:<count>:<namespace>`` and ``f:<count>:<namespace>\0<function>``, with counts of `Counters` by their short names;
- ``a:<kind><bucket>:<namespace>`` for audits, see `AuditCounts`;
- ``e:<reason>`` for failed exchanges, ``p:<figure>`` for what the process counts as a whole;
- ``l2:<bucket>`` and ``load:<bucket>`` for latencies, by the bucket of `Histogram`, and ``l2:us`` and ``load:us`` for
  the microseconds of all.

A field that a later version has and this one does not know is left out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from magnus_cache._engine.runtime.stats import CacheStats, Counters, Histogram, Stats, figures_of

__all__ = ["COUNTED", "Counts", "FleetProcess", "counts_from", "fields_of", "figures_from", "minute_from"]

COUNTED: Final = ("evictions", "expirations", "fenced_fills", "flights_joined", "outages")
"""Figures of a process as a whole that only grow."""

_SHORT: Final = {
    "l1_hits": "h1", "l2_hits": "h2", "misses": "m", "loads": "l", "load_micros": "us", "load_errors": "x",
    "stores": "s", "stale_hits": "st", "negative_hits": "n", "early_refreshes": "er", "errors": "e", "overloads": "o",
    "refused": "r", "seal_failures": "sf", "timeouts": "t", "unreadable": "ur", "unstorable": "us!",
    "spent_nanos": "ms", "saved_nanos": "mv", "held_back": "hb", "pauses": "p",
}  # fmt: skip
_LONG: Final = {short: name for name, short in _SHORT.items()}


def fields_of(stats: Stats, process: Mapping[str, Any]) -> dict[str, int]:
    """Return all counts of a process that are not 0.

    :param process: its figures as a whole; those of `COUNTED` are taken.
    """
    fields = {f"p:{name}": int(process[name]) for name in COUNTED}
    for namespace, counters in stats.by_namespace().items():
        _add(fields, "n", namespace, counters)
    for (namespace, function), counters in stats.by_function().items():
        _add(fields, "f", f"{namespace}\0{function}", counters)
    fields |= stats.audits.fields()
    fields |= {f"e:{reason}": count for reason, count in dict(stats.errors).items()}
    for name, latency in (("l2", stats.l2_latency), ("load", stats.load_latency)):
        fields |= {f"{name}:{place}": count for place, count in latency.counts().items()}
        fields[f"{name}:us"] = latency.micros
    return {field: count for field, count in fields.items() if count}


def _add(fields: dict[str, int], kind: str, name: str, counters: Counters) -> None:
    for count, short in _SHORT.items():
        fields[f"{kind}:{short}:{name}"] = getattr(counters, count)


class Counts(NamedTuple):
    """What was counted, in its parts."""

    namespaces: dict[str, Counters]
    functions: dict[tuple[str, str], Counters]
    """By namespace and name."""
    l2_latency: Histogram
    load_latency: Histogram
    errors: dict[str, int]
    """By reason."""
    process: dict[str, int]
    """The figures of `COUNTED`."""


def figures_from(fields: Iterable[tuple[str, int]]) -> CacheStats:
    """Return the statistics of some fields; of two with the same name, the sum counts."""
    counts = counts_from(fields)
    figures = figures_of(*counts[:-1])
    figures.update(counts.process)
    return figures


def counts_from(fields: Iterable[tuple[str, int]]) -> Counts:
    """Return what some fields count; of two with the same name, the sum counts."""
    namespaces, functions = dict[str, Counters](), dict[tuple[str, str], Counters]()
    errors, process = dict[str, int](), dict[str, int](dict.fromkeys(COUNTED, 0))
    latencies = {"l2": Histogram(), "load": Histogram()}
    for field, count in fields:
        kind, _, rest = field.partition(":")
        if kind in {"n", "f"}:
            short, _, name = rest.partition(":")
            if (long := _LONG.get(short)) is None:
                continue
            if kind == "n":
                counters = namespaces.setdefault(name, Counters())
            else:
                namespace, _, function = name.partition("\0")
                counters = functions.setdefault((namespace, function), Counters())
            setattr(counters, long, getattr(counters, long) + count)
        elif kind == "e":
            errors[rest] = errors.get(rest, 0) + count
        elif kind == "p" and rest in process:
            process[rest] += count
        elif kind in latencies and rest == "us":
            latencies[kind].micros += count
        elif kind in latencies and rest.isascii() and rest.isdigit():
            latencies[kind].count_in(int(rest), count)
    return Counts(namespaces, functions, latencies["l2"], latencies["load"], errors, process)


def minute_from(at: int, seconds: int, fields: Iterable[tuple[str, int]]) -> CacheStats:
    """Return the statistics of a minute, of all namespaces together.

    :param at: second of the epoch at which it began.
    :param seconds: how much of it has passed, 1 to 60.
    :param fields: its totals, whose names end where that of a namespace would stand.
    """
    # Totals name no namespace. Whatever does is counted with them.
    figures = figures_from(
        (f"n:{name.split(':')[1]}:" if name.startswith("n:") else name, count) for name, count in fields
    )
    counts = figures.pop("namespaces").get("") or Counters().as_dict()
    del figures["functions"]
    return CacheStats(counts | figures | {"at": at, "seconds": seconds})


@dataclass(frozen=True, slots=True)
class FleetProcess:
    """What a process of the fleet has published last.

    :ivar host: the name of its host.
    :ivar pid: the number of the process there.
    :ivar age: seconds since its cache was created, or its process was forked.
    :ivar reported: seconds since it published this.
    :ivar in_memory_keys: values in its memory.
    :ivar in_memory_bytes: bytes that they take.
    :ivar flights: loads that run.
    :ivar unattended: those of them in the background, without a waiting caller.
    :ivar version: of this library; empty for one that is older than this field.
    """

    host: str
    pid: int
    age: float
    reported: float
    in_memory_keys: int
    in_memory_bytes: int
    flights: int
    unattended: int
    version: str = ""
