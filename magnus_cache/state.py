"""The one state behind both faces of a cache: settings, near cache, flights, figures, and the wires to Redis.

`CacheManager` and `AsyncCacheManager` are views of one `State`. It owns what has a life: one wire per event loop,
the background loop for blocking callers, and the duty to tell Redis what it missed. What is done with all this
is in `paths`.
"""

import asyncio
import contextlib
import math
import os
import threading
import weakref
from collections.abc import Generator
from contextvars import Context, ContextVar
from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from magnus_cache.breaker import Breaker
from magnus_cache.clock import monotonic
from magnus_cache.codec import envelope
from magnus_cache.errors import CacheClosedError, CacheUnavailableError
from magnus_cache.flights import Flights
from magnus_cache.keys import Keyspace
from magnus_cache.memory import Memory, Trust
from magnus_cache.namespaces import default_registry
from magnus_cache.notices import Notices, logger
from magnus_cache.portal import Portal
from magnus_cache.redis.reclaim import remove_matching, remove_names
from magnus_cache.redis.recovery import Recovery
from magnus_cache.stats import CacheStats, Stats

if TYPE_CHECKING:
    from magnus_cache.redis.wire import Wire
    from magnus_cache.settings import CacheSettings

__all__ = ["Mode", "State", "make_state"]


class Mode(Enum):
    """How calls in the present context treat the cache."""

    NORMAL = "normal"
    BYPASS = "bypass"
    """Read nothing from the cache, but store what is loaded: a one-off fresh read."""
    DISABLED = "disabled"
    """As if there were no cache at all."""


_REPLAY_PAUSE: Final = 1.0
"""Seconds until a replay that Redis refused is tried again."""

_MODE: Final[ContextVar[Mode]] = ContextVar("magnus_cache_mode", default=Mode.NORMAL)

_STATES: Final[weakref.WeakSet["State"]] = weakref.WeakSet()
_FORKS: Final = threading.Lock()
_abandoned: Final[list[object]] = []
_watching_forks = False


def make_state(settings: "CacheSettings | None", overrides: dict[str, Any]) -> "State":
    """Return a new state; settings come from the environment where neither argument gives them.

    :raises CacheSettingsError: for a wrong setting, naming it and its environment variable.
    """
    # Deferred: pydantic-settings and redis-py take longer to import than all the rest of this package. Here, so that
    # neither is imported by the first call, on somebody's event loop.
    from magnus_cache.settings import CacheSettings

    import_module("magnus_cache.redis.wire")
    if settings is None:
        settings = CacheSettings(**overrides)
    elif overrides:
        settings = settings.changed(overrides)
    return State(settings)


class State:
    """All that one cache knows and owns. Thread-safe; nothing is connected or started before the first call.

    :ivar offline: what entries written while Redis is away stand on; worthless once it is back.
    """

    def __init__(self, settings: "CacheSettings") -> None:
        self.settings = settings
        self.keyspace = Keyspace(settings.prefix)
        self.namespaces = default_registry
        self.memory = Memory(settings.l1_max_entries, settings.l1_max_bytes)
        self.flights = Flights()
        self.portal = Portal()
        self.stats = Stats()
        self.notices = Notices()
        self.breaker = Breaker()
        self.recovery = Recovery()
        self.offline = Trust(math.inf)
        self.endpoint = settings.endpoint() if settings.redis_enabled else None
        self.closed = False
        self.special = 0
        self._lock = threading.Lock()
        self._replay_at = 0.0
        self._wires: dict[asyncio.AbstractEventLoop, Wire] = {}
        self._replays: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        _watch_forks(self)

    # -- what the present context wants ---------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """How calls in this context treat the cache."""
        # The counter keeps the context variable off the hot path while nobody uses it.
        return _MODE.get() if self.special else Mode.NORMAL

    @contextlib.contextmanager
    def switched(self, mode: Mode) -> Generator[None]:
        """Treat the cache in another way within this context: this task or thread, and what it starts."""
        token = _MODE.set(mode)
        with self._lock:
            self.special += 1
        try:
            yield
        finally:
            with self._lock:
                self.special -= 1
            _MODE.reset(token)

    # -- wires ----------------------------------------------------------------------------------------------

    def wire(self) -> "Wire | None":
        """Return the running loop's wire, made now if need be; None when Redis is switched off.

        :raises CacheClosedError: after `aclose`.
        """
        loop = asyncio.get_running_loop()
        wire = self._wires.get(loop)
        if wire is not None and not wire.over:
            return wire
        self.check_open()
        return None if self.endpoint is None else self._new_wire(loop)

    def _new_wire(self, loop: asyncio.AbstractEventLoop) -> "Wire":
        from magnus_cache.redis.wire import Limits, Wire

        assert self.endpoint is not None
        settings = self.settings
        limits = Limits(settings.op_timeout, settings.max_staleness, settings.max_pending)
        wire = Wire(self.endpoint, limits, self.breaker, self)
        with self._lock:
            # Loops come and go with `asyncio.run`; a loop that ended without a word takes its trust with it.
            for old_loop, old in list(self._wires.items()):
                if old.closed:
                    old.trust.kill()
                    del self._wires[old_loop]
            self._wires[loop] = wire
        return wire

    @property
    def reachable(self) -> bool:
        """Whether some wire is connected to Redis now."""
        return any(wire.up for wire in list(self._wires.values()))

    @property
    def redis_available(self) -> bool:
        """Whether Redis answered when it was last asked; False before it ever was. No I/O."""
        return self.endpoint is not None and self.breaker.closed

    def local_trust(self) -> Trust:
        """Return what a value stands on that could be stored in this process alone.

        While Redis is away there is nobody to contradict it. While Redis is there but refused the write, or only
        this wire was lost, a peer's write would go unnoticed: then the staleness bound is its bound.
        """
        return Trust(monotonic() + self.settings.max_staleness) if self.reachable else self.offline

    def describe(self) -> str:
        """Return what tells this cache from another, without secrets."""
        where = self.endpoint.display if self.endpoint else "memory only"
        return f"{where} prefix={self.settings.prefix!r}{' closed' if self.closed else ''}"

    def local_figures(self) -> CacheStats:
        """Return the figures that take no exchange with Redis."""
        memory, figures = self.memory, self.stats.figures()
        memory.sweep()
        figures |= {
            "redis_available": self.redis_available,
            "in_memory_keys": len(memory),
            "in_memory_bytes": memory.bytes,
            "evictions": memory.evictions,
            "expirations": memory.expirations,
            "fenced_fills": memory.fenced,
            "flights": len(self.flights),
            "flights_joined": self.flights.joined,
            "unreplayed": self.recovery.pending,
        }
        return figures

    # -- what wires tell us ---------------------------------------------------------------------------------

    def invalidated(self, names: list[bytes]) -> None:
        """Drop what the server says has changed."""
        for name in names:
            self.memory.invalidate(name)

    def measured(self, sent: float, reads: int) -> None:
        """Note how long some reads took."""
        self.stats.l2_latency.add(monotonic() - sent, reads)

    def connected(self, wire: "Wire") -> None:
        """Distrust what was written meanwhile, and tell Redis what it missed."""
        self.offline.kill()
        self.offline = Trust(math.inf)
        if not wire.tracking:
            self.notices.warn("tracking", self._no_tracking())
        if self.notices.forget("redis"):
            logger.info("Redis at %s is back", self.endpoint.display if self.endpoint else "")
        if self.recovery.pending:
            self._replay_on(wire)

    def _no_tracking(self) -> str:
        seconds = self.settings.max_staleness
        return (
            "Redis refuses CLIENT TRACKING, so nothing announces changes made elsewhere; values are kept in this "
            f"process for {seconds:g} s at most. Grant the user '+client|tracking', or use a server that has it"
        )

    def disconnected(self, wire: "Wire", error: CacheUnavailableError) -> None:
        """Say once that Redis is away, and why."""
        self.stats.failed(error.reason)
        self.notices.warn("redis", f"{error}. Going on with this process's memory; Redis is tried again by itself")

    # -- what Redis missed ----------------------------------------------------------------------------------

    async def replayed(self, wire: "Wire") -> None:
        """Return once Redis has been told what it missed, or has just refused to hear it.

        In the latter case the record stays, and stands in the way of whatever value it covers.

        :raises CacheUnavailableError: when it went away again.
        """
        if monotonic() >= self._replay_at:
            await asyncio.shield(self._replay_on(wire))

    def _replay_on(self, wire: "Wire") -> asyncio.Task[None]:
        task = self._replays.get(wire.loop)
        if task is None or task.done():
            task = wire.loop.create_task(self._replay(wire), name="magnus-cache-replay", context=Context())
            task.add_done_callback(self._replay_ended)
            self._replays[wire.loop] = task
        return task

    def _replay_ended(self, task: asyncio.Task[None]) -> None:
        loop = task.get_loop()
        if self._replays.get(loop) is task:
            del self._replays[loop]
        # A failure is Redis going away again, which the wire reports; the record stays.
        if not task.cancelled():
            task.exception()

    async def _replay(self, wire: "Wire") -> None:
        # Nothing is dropped here before Redis is known to be there: in an outage it is all there is.
        if not wire.up:
            await wire.renew()
        names, prefixes = self.recovery.take()
        try:
            await remove_names(wire, names, self.invalidated)
            for prefix in prefixes:
                await remove_matching(wire, self.keyspace.prefix_pattern(prefix), _all, self.invalidated)
        except CacheUnavailableError as error:
            if not wire.up:
                raise
            # It is there and says no (an ACL, a replica): asking again with every read would not change its mind.
            self._replay_at = monotonic() + _REPLAY_PAUSE
            self.notices.warn("replay", f"{error}. Values that were invalidated meanwhile are not read from it")
            return
        self.recovery.settle(names, prefixes)

    # -- the end --------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """:raises CacheClosedError: after `close`."""
        if self.closed:
            raise CacheClosedError("this cache manager was closed; make a new one, or call get_cache_manager() again")

    async def aclose(self) -> None:
        """Close every wire, and the background loop with its thread; nothing of this cache is left running."""
        self.closed = True
        await self.flights.aclose()
        here = asyncio.get_running_loop()
        for loop, wire in self._taken_wires():
            if loop is here:
                await wire.aclose()
            elif loop is self.portal.loop and self.portal.running:
                # Waited for: cancelled again by the end of its loop, it would leave its transport half-closed.
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(wire.aclose(), loop))
            else:
                _stop_elsewhere(loop, wire)
        await self.portal.aclose()
        self._let_go()

    def close(self) -> None:
        """Do what `aclose` does, from a thread; wires of other running loops end as soon as those loops turn."""
        self.closed = True
        with contextlib.suppress(CacheClosedError):
            if self.portal.running:
                # Loads on it end with it anyway; this also tells those who wait on other loops.
                self.portal.call(self.flights.aclose)
        for loop, wire in self._taken_wires():
            if loop is self.portal.loop and self.portal.running:
                self.portal.call(wire.aclose)
            else:
                _stop_elsewhere(loop, wire)
        self.portal.close()
        self._let_go()

    def _taken_wires(self) -> "list[tuple[asyncio.AbstractEventLoop, Wire]]":
        with self._lock:
            wires, self._wires = self._wires, {}
        return list(wires.items())

    def _let_go(self) -> None:
        self.memory.reset()
        self.offline.kill()

    def after_fork(self) -> None:
        """Start anew in a forked child: its parent's sockets, threads and loads are not its own."""
        # Collected, a connection would warn and try to close a transport of a loop that lives in the parent.
        _abandoned.extend((self._wires, self._replays))
        self._lock = threading.Lock()
        self._wires, self._replays = {}, {}
        self.special = 0
        self.offline = Trust(math.inf)
        for part in (self.memory, self.flights, self.portal, self.stats, self.notices, self.breaker, self.recovery):
            part.reset()


def _stop_elsewhere(loop: asyncio.AbstractEventLoop, wire: "Wire") -> None:
    # A loop that ended meanwhile has taken its wire along.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(wire.stop)


def _all(_: bytes) -> bool:
    return True


def _watch_forks(state: State) -> None:
    global _watching_forks
    with _FORKS:
        _STATES.add(state)
        # Registered with the first state, not at import: importing this package has no side effect.
        if not _watching_forks and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_after_fork)
            _watching_forks = True


def _after_fork() -> None:
    envelope.reseed()
    for state in list(_STATES):
        state.after_fork()
