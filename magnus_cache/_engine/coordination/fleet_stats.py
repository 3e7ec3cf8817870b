"""Fleet statistics: each process publishes what it has counted, and any of them reads the sums of all.

A process publishes every `stats_interval` seconds while it is in use, and once more at the end of its use and when its
cache is closed; an idle process publishes nothing. A report has two parts. What the process is and has now is a key of
its own that expires soon, so that a process that has died vanishes. What it has counted since its last report is added
to the sums of the hour, so that it stays when the process has died.

Nothing of this is on a hot path: reports are made by a timer of an event loop that has a connection, and compare the
counts with those that Redis has taken. A report without an answer is sent again under its number, and Redis counts it
once. It is given up when the key that shows its number may have expired: rather too few than twice.
"""

import asyncio
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgpack

from magnus_cache._engine.codec.versions import first_version, is_of
from magnus_cache._engine.redis.exchange import Callback
from magnus_cache._engine.redis.fleet_keys import FleetNames, Report
from magnus_cache._engine.runtime.audit_counts import AuditCounts
from magnus_cache._engine.runtime.clock import MICROSECONDS, Clock
from magnus_cache._engine.runtime.critical import section
from magnus_cache._engine.runtime.fleet_totals import (
    Counts,
    FleetProcess,
    counts_from,
    fields_of,
    figures_from,
    minute_from,
)
from magnus_cache._engine.runtime.stats import CacheStats, Stats
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client import Client
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["FleetStats"]

_LIVES: Final = 3
"""Intervals for which a report counts: two may be lost or late."""

_SHORTEST_LIFE: Final = 15
"""Seconds that it counts at least."""

_MOST_FIELDS: Final = 2_000
"""Counts of one report; further ones go with the next."""

_NOW: Final = ("in_memory_keys", "in_memory_bytes", "flights", "unattended")
"""Figures of a process as a whole that rise and fall."""


class FleetStats:
    """Publishes the counts of one cache, and reads those of the fleet. Thread-safe.

    :param process: returns the figures of the process as a whole, with `COUNTED` and those that rise and fall.
    :param interval: seconds between two reports; 0 for none.
    """

    def __init__(
        self, stats: Stats, process: Callable[[], Mapping[str, Any]], client: "Client", names: FleetNames,
        interval: float, clock: Clock,
    ) -> None:  # fmt: skip
        self._stats = stats
        self._process = process
        self._client = client
        self._names = names
        self.interval = interval
        self._clock = clock
        self.life = max(_SHORTEST_LIFE, int(_LIVES * interval + 0.5))
        self.reset()

    def reset(self) -> None:
        """Begin anew, as in a forked child: it is a process of its own, and its counts begin at 0."""
        self._lock = section()
        self.instance = secrets.token_hex(8)
        self._began = self._clock()
        self._taken: dict[str, int] = {}
        self._open: Report | None = None
        self._number = 0
        self._next = 0.0
        self._timer: tuple[asyncio.TimerHandle, asyncio.AbstractEventLoop] | None = None

    # -- publishing -----------------------------------------------------------------------------------------

    def beat(self, connection: "Connection") -> None:
        """See to it that a report is made when it is due; called several times a second on a busy connection."""
        if not self.interval:
            return
        timer = self._timer
        if timer is not None and not timer[1].is_closed():
            return
        now = self._clock()
        # The first one not at once: most of it is not counted yet.
        self._next = max(self._next, now) if self._next else now + self.interval
        self._timer = connection.loop.call_later(self._next - now, self._due, connection), connection.loop

    def _due(self, connection: "Connection") -> None:
        self._timer, self._next = None, self._clock() + self.interval
        if connection.up:
            self.publish(connection)

    def publish(
        self, connection: "Connection", ended: Callable[[], object] | None = None, *, last: bool = False
    ) -> bool:  # fmt: skip
        """Send a report through the running loop's connection, if there is anything to tell; return whether there is.

        :param ended: called when Redis has answered, or will not.
        :param last: whether the process ends.
        """
        second = connection.time.at(self._clock()) / MICROSECONDS
        with self._lock:
            if self._open is not None and second - self._open.second > self.life / 2:
                # Perhaps Redis has taken it, and the key that says so is about to expire.
                self._took(self._open)
                self._open = None
            if self._open is None:
                self._open = self._report(second, last=last)
            elif last:
                self._open = self._open._replace(life=0)
            report = self._open
        if report is None:
            return False
        waiter = Callback(partial(self._answered, report, ended), partial(self._unanswered, report, ended))
        try:
            self._client.publish(self._names, self.instance, report, second - self.life, waiter)
        except CacheUnavailableError as error:
            waiter.set_exception(error)
        return True

    def _report(self, second: float, *, last: bool) -> Report | None:
        process = self._process()
        counted = fields_of(self._stats, process)
        grown = {name: count - self._taken.get(name, 0) for name, count in counted.items()}
        fields = {name: count for name, count in grown.items() if count > 0}
        if not fields and not (last and self._number):
            return None
        if len(fields) > _MOST_FIELDS and not last:
            fields = dict(list(fields.items())[:_MOST_FIELDS])
        self._number += 1
        about = {
            "host": socket.gethostname(), "pid": os.getpid(), "at": round(second),
            "started": round(second - (self._clock() - self._began)),
            "instance": self.instance, "versions": first_version(),
            # Not an import: the package imports the engine, and is there before any part of it.
            "library": sys.modules["magnus_cache"].__version__,
            **{name: process[name] for name in _NOW},
        }  # fmt: skip
        packed, life = msgpack.packb(about), 0 if last else self.life
        assert packed is not None
        return Report(self._number, second, packed, life, fields, _totals(fields))

    def _took(self, report: Report) -> None:
        for name, count in report.fields.items():
            self._taken[name] = self._taken.get(name, 0) + count

    def _answered(self, report: Report, ended: Callable[[], object] | None, _: object) -> None:
        with self._lock:
            if self._open is not None and self._open.number == report.number:
                self._took(report)
                self._open = None
        if ended is not None:
            ended()

    def _unanswered(self, report: Report, ended: Callable[[], object] | None, error: BaseException) -> None:
        with self._lock:
            # A refused one, or one that never left, has changed nothing: its counts go with the next.
            if (
                self._open is not None
                and self._open.number == report.number
                and isinstance(error, CacheUnavailableError)
                and error.refused
            ):
                self._open = None
        if isinstance(error, CacheUnavailableError):
            self._stats.failed(error.reason)
        if ended is not None:
            ended()

    async def published(self, connection: "Connection", *, last: bool = False) -> None:
        """Return when what was counted up to now is in the sums, or cannot be.

        :param last: whether the process ends, and is to be counted no longer.
        """
        done = asyncio.Event()
        if self.interval and self.publish(connection, done.set, last=last):
            await done.wait()

    # -- reading --------------------------------------------------------------------------------------------

    async def figures(self, connection: "Connection") -> CacheStats:
        """Return the statistics of all processes: counts of the last day, and what those that run have now.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        second = await self._now(connection)
        await self.published(connection)
        found = await self._client.published(self._names, second, self.life)
        figures = figures_from(_counted(*found.sums))
        figures |= _summed(found.processes)
        return figures

    async def history(self, connection: "Connection", minutes: int) -> list[CacheStats]:
        """Return the statistics of the last minutes, the present one last.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        await self._now(connection)
        await self.published(connection)
        # Read now: a connection that was renewed has another idea of the time, and publishing takes some.
        second = await self._now(connection)
        found = await self._client.minutes(self._names, second, minutes)
        present = int(second // 60)
        began = [60 * (present - back) for back in range(len(found) - 1, -1, -1)]
        passed = max(1, round(second - 60 * present))
        return [
            minute_from(at, passed if at == began[-1] else 60, _counted(totals))
            for at, totals in zip(began, found, strict=True)
        ]

    async def ledger(self, connection: "Connection", days: int) -> "list[tuple[int, Counts]]":
        """Return what was counted on each of the last days: the day's number since the epoch, in UTC, and its counts.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        await self._now(connection)
        await self.published(connection)
        second = await self._now(connection)
        found = await self._client.days(self._names, second, days)
        first = int(second // 86_400) - len(found) + 1
        return [(first + place, counts_from(_counted(sums))) for place, sums in enumerate(found)]

    async def audits(self, connection: "Connection") -> AuditCounts:
        """Return what the audits of all processes have found in the last day.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        second = await self._now(connection)
        await self.published(connection)
        found = await self._client.published(self._names, second, self.life)
        return AuditCounts.from_fields(_counted(*found.sums))

    async def processes(self, connection: "Connection") -> list[FleetProcess]:
        """Return the processes that run, the one that has run longest first.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        await self._now(connection)
        await self.published(connection)
        second = await self._now(connection)
        found = _read(await self._client.processes(self._names, second, self.life))
        listed = [_process(about, second) for about in found]
        return sorted(listed, key=lambda process: (-process.age, process.host, process.pid))

    async def total(self, connection: "Connection") -> "tuple[Counts, dict[str, int]]":
        """Return all that the fleet has counted, which never shrinks, and what the processes that run have now.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        second = await self._now(connection)
        await self.published(connection)
        running = await self._client.processes(self._names, second, self.life)
        return counts_from(_counted(*await self._client.total(self._names, second))), _summed(running)

    def own(self) -> "tuple[Counts, dict[str, int]]":
        """Return the same of this process alone, as if it were the only one of its fleet."""
        process = self._process()
        counts = counts_from(fields_of(self._stats, process).items())
        return counts, {**{name: int(process[name]) for name in _NOW}, "processes": 1}

    async def writer(self, connection: "Connection", version: int) -> str | None:
        """Return which of the processes that run has written a value: its host, process id and instance.

        :param version: that of the value.
        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        found = await self._client.processes(self._names, await self._now(connection), self.life)
        for about in map(_about, found):
            if about is not None and is_of(_number(about.get("versions")), version):
                return f"{about.get('host')}:{about.get('pid')}:{about.get('instance')}"
        return None

    async def key_names(self, connection: "Connection") -> list[bytes]:
        """Return the names of all keys of fleet statistics, some of which need not exist.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        second = await self._now(connection)
        return [*self._names.shared(second), *await self._client.reporting(self._names, second, self.life)]

    async def _now(self, connection: "Connection") -> float:
        """Return the second of the epoch, in Redis' time, which only a connection that stands knows."""
        if not connection.up:
            await connection.renew()
        return connection.time.at(self._clock()) / MICROSECONDS


def _totals(fields: Mapping[str, int]) -> dict[str, int]:
    """Return counts without namespaces and functions: those of all namespaces together."""
    totals: dict[str, int] = {}
    for name, count in fields.items():
        kind, _, rest = name.partition(":")
        if kind in {"f", "a"}:
            continue
        total = f"n:{rest.partition(':')[0]}:" if kind == "n" else name
        totals[total] = totals.get(total, 0) + count
    return totals


def _counted(*sums: Mapping[bytes, bytes]) -> Iterator[tuple[str, int]]:
    """Yield the fields of some sums."""
    for each in sums:
        for name, count in each.items():
            yield name.decode("utf-8", "replace"), _number(count)


def _summed(processes: Sequence[bytes]) -> dict[str, int]:
    """Return what some processes have now, together, and how many they are."""
    told = _read(processes)
    return {**{name: sum(_number(about.get(name)) for about in told) for name in _NOW}, "processes": len(told)}


def _number(count: Any) -> int:
    """Return a count that another process has stored; 0 for nonsense."""
    try:
        return int(count)
    except (TypeError, ValueError, OverflowError):
        return 0


def _read(reports: Iterable[bytes]) -> list[dict[str, Any]]:
    return [about for about in map(_about, reports) if about is not None]


def _process(about: Mapping[str, Any], second: float) -> FleetProcess:
    """Return a process by what it has published, in which figures of a later or earlier version may be missing."""
    since = {
        name: max(0.0, round(second - _number(about[name]), 1)) if name in about else 0.0 for name in ("started", "at")
    }
    return FleetProcess(
        str(about.get("host", "?")), _number(about.get("pid")), since["started"], since["at"],
        **{name: _number(about.get(name)) for name in _NOW}, version=str(about.get("library", "")),
    )  # fmt: skip


def _about(raw: bytes) -> dict[str, Any] | None:
    try:
        about = msgpack.unpackb(raw)
    except Exception:  # noqa: BLE001  # whatever msgpack raises for what another program has stored there
        return None
    return about if isinstance(about, dict) else None
