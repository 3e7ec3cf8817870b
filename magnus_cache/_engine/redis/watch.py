"""A watch: connections of its own to all primaries, on which Redis announces every change of some namespaces.

It is client tracking by prefix (``CLIENT TRACKING ON BCAST``), whatever the other connections ask for: by key, a server
tells a connection only of what that has read, and of each once. Without NOLOOP, so the writes of this process are told
as well. Nothing is read through these connections but epochs, and nothing is written.

When all is told
----------------
- A prefix counts as watched once each primary has answered that it announces it. What was changed and answered later
  is announced.
- A connection that was lost opens a gap, from the last answered heartbeat on. Heartbeats go on while it idles, so
  a connection that is silently cut is found within a third of `max_staleness` and `op_timeout`.
- So does any change of a cluster's map. A slot that moves between two watched primaries is announced by the one that
  has it; but a server of Redis 7 that gives a slot away with keys in it removes them silently, and a replica that has
  taken over was not watched before.
- A gap ends, and is told, when all primaries are watched again and values can be read again: whoever is told reads.
  Where other servers decide who is the primary, it is told a second time after `max_staleness`: until then, the
  connections that read values may lead to the old one.

Epochs
------
An epoch is announced when it is issued, prolonged, adopted, or expires. So it is read, and told if it has risen or is
gone: then what it covers is invalid.

- Those of namespaces are read when the watch begins. One that was missing covers nothing valid, so its first issue is
  no news. It may have been issued twice until it was read: then a second announcement follows, and is told.
- Those of tags are many, and are not. One that is not above the last one issued before the watch began, which the clock
  of epochs has, is no news. Any other may be that of a new tag; the guard has the last invalidation of each bucket of
  tags, and tells.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

from magnus_cache._engine.coherence.epochs import epoch_of
from magnus_cache._engine.outage.breaker import Breaker
from magnus_cache._engine.redis import commands
from magnus_cache._engine.redis.events import Arrival, WireLimits
from magnus_cache._engine.redis.exchange import Callback, Connection
from magnus_cache._engine.redis.orphans import OrphanedConnections
from magnus_cache._engine.redis.tracking import Tracking
from magnus_cache._engine.runtime.clock import MICROSECONDS, Clock
from magnus_cache._engine.runtime.loop_end import call_on_loop, connection_task
from magnus_cache.errors import CacheClosedError, CacheUnavailableError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from magnus_cache._engine.redis.topology import Topology
    from magnus_cache._engine.redis.wire import Wire

__all__ = ["GapReason", "Reports", "Watch"]

GapReason: TypeAlias = Literal["connection", "moved", "flushed"]

_AGAIN: Final = 0.5
"""Seconds until the next look at primaries that do not answer."""

_STEP: Final = 0.01
"""Seconds between two looks at whether values can be read again."""

_MOST_EPOCHS: Final = 10_000
"""Epochs remembered as told. When there are more, some may be told again."""

_UNWATCHABLE: Final = (
    "Redis announces no changes to this user (CLIENT TRACKING), so none can be told; grant +client|tracking, or use a "
    "server that has it"
)


class Reports(Protocol):
    """What is called with what a watch hears, on its loop."""

    def values_changed(self, names: list[bytes]) -> None:
        """Values of watched namespaces were changed."""

    def concerns(self, epoch: bytes) -> bool:
        """Whether the epoch with a name covers values of watched namespaces."""
        ...

    def rose(self, epoch: bytes) -> None:
        """A new epoch was issued."""

    def retry_now(self) -> bool:
        """Have lost connections to Redis tried now; return whether there are none."""
        ...

    def lost(self, reason: GapReason, since: float | None) -> None:
        """Changes may have been missed, since a second of Redis' clock; from now on, all are told again."""

    def paused(self) -> None:
        """No changes are heard at present; `lost` follows."""

    def failed(self, error: CacheUnavailableError) -> None:
        """Nothing can be told any more."""


class _NoOrphans(OrphanedConnections):
    """Remembers nothing: whatever a lost connection of a watch has asked for changes nothing."""

    def leave(self, run: bytes, client: int) -> None:
        """Remember nothing."""


class Watch:
    """See the module. Make it on the loop where its connections are to live; call its methods there, but for `stop`.

    :param make: makes the topology, from the limits, the breaker, the listener, the clock, and a function that raises
        `CacheClosedError` once no connection may be made any more.
    """

    def __init__(self, make: "Callable[..., Topology]", limits: WireLimits, reports: Reports, clock: Clock) -> None:
        self.loop = asyncio.get_running_loop()
        self.stopped = False
        self.abandoned: OrphanedConnections = _NoOrphans(lambda _topic, _problem: None)
        self._clock, self._controls, self._reports = clock, limits.controls, reports
        self._max_staleness, self._patience = limits.max_staleness, limits.op_timeout
        # A list, as it grows: each new connection asks for what is in it then.
        self._prefixes = [self._controls.root, self._controls.tags]
        self._epochs: dict[bytes, None] = {}
        self._values = self._controls.root.partition(b"!")[0] + b":"
        tracking = Tracking("prefix", self._prefixes)
        self._topology = make(
            limits._replace(tracking=tracking), Breaker(2 * limits.op_timeout), self, clock, self._check_open
        )
        self._watched: dict[Connection, set[bytes]] = {}
        self._primaries: set[Connection] = set()
        self._told: dict[bytes, int] = {}
        self._floor: int | None = None
        self._gap: tuple[GapReason, float | None] | None = None
        self._starting: dict[Callable[[bool], object], asyncio.TimerHandle] = {}
        self._again: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._task = connection_task(self.loop, self._keep(), "magnus-cache-watch", self._ended)

    def include(self, prefix: bytes, epochs: Iterable[bytes], begin: Callable[[bool], object]) -> None:
        """Watch the names with a prefix, too, and call a function once they are watched.

        :param prefix: no other one begins with it, nor it with another one.
        :param epochs: the names of all epochs that cover these values, but for those of tags.
        :param begin: called with False instead after `op_timeout`: then `Reports.lost` follows when they are watched.
        """
        if prefix not in self._prefixes:
            self._prefixes.append(prefix)
        self._epochs.update(dict.fromkeys(epochs))
        self._starting[begin] = self.loop.call_later(self._patience, self._begin_late, begin)
        self._wake.set()

    def stop(self) -> "list[tuple[asyncio.AbstractEventLoop, Future[None]]]":
        """Begin to close, from any thread; return the loop of each connection, and a future of its end."""
        self.stopped = True
        call_on_loop(self.loop, self._stop)
        return self._topology.stop()

    def reset(self) -> None:
        """Forget everything in a forked child: the sockets belong to its parent."""
        self.stopped = True
        self._topology.reset()

    def _stop(self) -> None:
        self._task.cancel()
        for timer in (*self._starting.values(), self._again):
            if timer is not None:
                timer.cancel()
        self._starting.clear()

    def _ended(self) -> None:
        if not self.stopped:
            self._reports.failed(CacheUnavailableError("closed", "the watch of changes has ended with its event loop"))

    def _check_open(self) -> None:
        """:raises CacheClosedError: after `stop`."""
        if self.stopped:
            raise CacheClosedError("the watch of changes was closed")

    # -- all primaries ------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            self._wake.clear()
            pause: float | None = None
            try:
                await self._watch_all()
            except CacheUnavailableError as error:
                if error.reason == "noperm":
                    self._reports.failed(error)
                    return
                pause = _AGAIN
            else:
                await self._readable()
                self._complete()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def _watch_all(self) -> None:
        """Watch all prefixes at all primaries.

        :raises CacheUnavailableError: if one does not answer, or refuses.
        """
        wires = await self._topology.primaries()
        self._primaries = set(wires)
        for outcome in await asyncio.gather(*map(self._watch_one, wires), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        told = self._told
        if self._floor is None:
            floor = await self._epoch(self._controls.clock)
            if self._told is told:
                self._floor = floor
        unknown = [name for name in self._epochs if name not in told]
        for name, epoch in zip(unknown, await asyncio.gather(*map(self._epoch, unknown)), strict=True):
            told.setdefault(name, epoch)

    async def _epoch(self, name: bytes) -> int:
        wire = self._topology.wire(name)
        return epoch_of(await wire.execute(commands.get(name)), wire.time.horizon)

    async def _watch_one(self, wire: "Wire") -> None:
        if not wire.up:
            await wire.renew()
        if wire.up and not wire.tracking:
            raise CacheUnavailableError("noperm", _UNWATCHABLE, refused=True)
        watched = self._watched.setdefault(wire, set())
        missing = [prefix for prefix in self._prefixes if prefix not in watched]
        await asyncio.gather(*(self._announce(wire, prefix) for prefix in missing))
        watched.update(missing)

    async def _announce(self, wire: "Wire", prefix: bytes) -> None:
        try:
            await wire.execute(commands.announce_more(prefix))
        except CacheUnavailableError as error:
            # Where the server announces names by prefix, it refuses only a prefix that it announces already: the
            # handshake has asked for it. No other one overlaps, as a name has no colon in its namespace.
            if not (error.refused and error.reason == "error"):
                raise

    async def _readable(self) -> None:
        """Before a gap is told: return once values can be read again, or after `op_timeout`."""
        until = self._clock() + self._patience
        while self._gap is not None and not self._reports.retry_now() and self._clock() < until:  # noqa: ASYNC110
            # The breakers of some connections, on several loops: none of them tells.
            await asyncio.sleep(_STEP)

    def _complete(self) -> None:
        """Tell that all is watched, if nothing has happened meanwhile that needs another look."""
        every = set(self._prefixes)
        is_known = self._floor is not None and self._epochs.keys() <= self._told.keys()
        if not is_known or any(self._watched.get(each) != every for each in self._primaries):
            self._wake.set()
            return
        gap, self._gap = self._gap, None
        if gap is not None:
            self._reports.lost(*gap)
            if self._topology.is_cluster or self._topology.mode is not None:
                if self._again is not None:
                    self._again.cancel()
                self._again = self.loop.call_later(self._max_staleness, self._reports.lost, *gap)
        starting, self._starting = self._starting, {}
        for begin, timer in starting.items():
            timer.cancel()
            begin(True)

    def _begin_late(self, begin: Callable[[bool], object]) -> None:
        del self._starting[begin]
        self._open_gap("connection", None)
        begin(False)

    def _open_gap(self, reason: GapReason, since: float | None) -> None:
        if self.stopped:
            return
        if self._gap is None:
            self._gap = reason, since
            self._reports.paused()
        self._forget_epochs()

    def _forget_epochs(self) -> None:
        # Another server, or one without its data, may issue lower ones.
        self._told, self._floor = {}, None
        self._wake.set()

    # -- what the connections tell, see `WireListener` ------------------------------------------------------------

    def invalidated(self, names: list[bytes], connection: Connection) -> None:
        """Tell of changed values, and read changed epochs."""
        values = [name for name in names if name.startswith(self._values)]
        if values:
            self._reports.values_changed(values)
        if len(values) < len(names):
            for name in names:
                if not name.startswith(self._values) and self._reports.concerns(name):
                    self._ask(name, connection)

    def _ask(self, name: bytes, connection: Any) -> None:
        # If it cannot be read, it counts as new.
        unanswered = Callback(on_error=lambda _: self._reports.rose(name))
        try:
            connection.call(commands.get(name), partial(self._read, name), unanswered)
        except CacheUnavailableError:
            self._reports.rose(name)

    def _read(self, name: bytes, reply: Any, connection: Any, _sent: float) -> None:
        epoch, before = epoch_of(reply, connection.time.horizon), self._told.get(name, self._floor or -1)
        if epoch == before or 0 < epoch < before:
            return
        is_tag = name.startswith(self._controls.tags)
        if len(self._told) >= _MOST_EPOCHS and is_tag:
            self._told = {known: self._told[known] for known in self._epochs if known in self._told}
        is_new = is_tag and name not in self._told
        if epoch and (is_new or not before):
            # Less: another announcement of the same epoch is of a later issue, or of a loss that another process has
            # mended before this answer.
            self._told[name] = epoch - 1
            if is_new:
                self._ask_guard(name, epoch, connection)
            return
        self._told[name] = epoch
        self._reports.rose(name)

    def _ask_guard(self, name: bytes, epoch: int, connection: Any) -> None:
        """Tell that a tag was invalidated, unless the guard tells that it is only new."""
        logical, brace, anchor = name.partition(b"{")

        def took(reply: Any, _connection: Connection, _sent: float) -> None:
            since, last = (epoch_of(each) for each in reply) if type(reply) is list else (0, 0)
            if not 0 < since <= epoch or last >= epoch:
                self._reports.rose(name)

        command = commands.guarded(self._controls.guard + brace + anchor, self._controls.bucket(logical))
        unanswered = Callback(on_error=lambda _: self._reports.rose(name))
        try:
            connection.call(command, took, unanswered)
        except CacheUnavailableError:
            self._reports.rose(name)

    def flushed(self, connection: Connection) -> None:
        """Tell that anything may have changed; the server goes on to announce what changes."""
        self._forget_epochs()
        self._reports.lost("flushed", _since(connection))

    def connected(self, connection: Connection) -> None:
        """Ask a new connection for the announcements."""
        self._wake.set()

    def cut(self, connection: Connection) -> None:
        """Open a gap if the connection was one to a primary, and watched."""
        if self._watched.pop(connection, None) is not None and connection in self._primaries:
            self._open_gap("connection", _since(connection))
        self._wake.set()

    def vanished(self, connection: Connection) -> None:
        """Do what `cut` does."""
        self.cut(connection)

    def remapped(self) -> None:
        """Open a gap: another node has some slots."""
        self._open_gap("moved", next(map(_since, self._watched), None))

    def beat(self, connection: Connection) -> None:
        """Have the heartbeat continue although nothing is read."""
        connection.trust.used = True

    def knows(self, identity: bytes) -> int | None:
        """Return None: the connections for values invalidate what a new server may lack."""
        return None

    def moved(self, covers: Callable[[bytes], bool], connection: Connection) -> None:
        """Do nothing: see `remapped`."""

    def exchanged(self, connection: Connection) -> None:
        """Do nothing: the connection ends."""

    def measured(self, sent: float, reads: int) -> None:
        """Do nothing."""

    def arrived(self, identity: bytes, arrival: Arrival) -> None:
        """Do nothing."""

    def warned(self, topic: str, problem: str) -> None:
        """Do nothing: the connections for values warn."""

    def disconnected(self, connection: Connection, error: CacheUnavailableError) -> None:
        """Do nothing: see `cut`."""


def _since(connection: Connection) -> float | None:
    """Return up to when a connection has told all, by the clock of its server; in seconds since 1970."""
    at = connection.known.confirmed
    return connection.time.at(at) / MICROSECONDS if connection.time.known else None
