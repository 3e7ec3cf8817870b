"""The process-wide cache: when it is opened, by which settings, and which functions follow it.

The first use opens the cache, not `get_cache_manager`. Modules call that when they are imported; the program, or a
test, calls `configure` after that. After `close`, the next use opens a new cache. An isolation (for tests) replaces the
cache for some time.

Functions decorated through the process-wide cache follow it: they always use the cache that is open (see `Follower`).
So do the managers that `get_cache_manager` returned.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from magnus_cache._engine.api.asynchronous import AsyncCache
from magnus_cache._engine.api.blocking import BlockingCache
from magnus_cache._engine.api.cached import FunctionCache
from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.api.following import Follower
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.redis.topology import import_driver
from magnus_cache._engine.runtime.closing import Ending
from magnus_cache._engine.runtime.critical import check_waiting, section
from magnus_cache._engine.runtime.observers import Observers
from magnus_cache._engine.runtime.switches import Presence
from magnus_cache.errors import CacheSettingsError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from magnus_cache._engine.settings.settings import CacheSettings

__all__ = ["PROCESS", "Isolation", "Opened", "ProcessCache"]


class Opened:
    """An open cache, with its two managers and their `get`, which is most of all calls."""

    __slots__ = ("awaited", "blocking", "engine", "get", "get_awaited")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.blocking = BlockingCache._over(engine)
        self.awaited = AsyncCache._over(engine)
        self.get, self.get_awaited = self.blocking.get, self.awaited.get


class Isolation:
    """A replacement for the process-wide cache, for some time; the first one is the process-wide cache itself.

    :param options: the settings of each call of `configure`, in order.
    :param fixed: settings that take precedence over those of `configure`.
    :ivar now: the open cache, or None before its first use.
    """

    __slots__ = ("fixed", "now", "options")

    def __init__(self, options: tuple[Mapping[str, Any], ...], fixed: Mapping[str, Any]) -> None:
        self.options = options
        self.fixed = dict(fixed)
        self.now: Opened | None = None

    def settings(self, *more: Mapping[str, Any]) -> "CacheSettings":
        """Return the settings of the environment, of `configure`, of `more`, and the fixed ones; later ones win.

        :raises CacheSettingsError: for a wrong setting, naming it and its environment variable.
        """
        # Not at the top: pydantic-settings takes longer to import than all the rest of this package.
        from magnus_cache._engine.settings.settings import CacheSettings

        settings: CacheSettings | None = None
        for options in filter(None, (*self.options, *more, self.fixed)):
            settings = CacheSettings(**options) if settings is None else settings.changed(options)
        return CacheSettings() if settings is None else settings


class ProcessCache:
    """One process-wide cache. Thread-safe.

    :ivar now: the open cache, or None.
    :ivar observers: the observers of the open cache, and of later ones in its place.
    :ivar face: the manager that `get_cache_manager` returns, until the cache is closed.
    """

    def __init__(self) -> None:
        self.now: Opened | None = None
        self.face: Any = None
        self._places = [Isolation((), {})]
        self._bound: weakref.WeakSet[Follower] = weakref.WeakSet()
        self._decorating: tuple[Engine, AsyncCache] | None = None
        # Shared by all caches in this place: to disable or observe the cache is to do so with each.
        self._special: set[object] = set()
        self._disabling: set[object] = set()
        self.observers = Observers(self._special)

    # -- use ------------------------------------------------------------------------------------------------

    @property
    def blocking(self) -> BlockingCache:
        """The blocking manager of the open cache; opens one if there is none.

        :raises CacheSettingsError: for a wrong setting, naming its environment variable.
        """
        now = self.now
        return (self.open() if now is None else now).blocking

    @property
    def awaited(self) -> AsyncCache:
        """The manager for coroutines of the open cache; opens one if there is none.

        :raises CacheSettingsError: for a wrong setting, naming its environment variable.
        """
        now = self.now
        return (self.open() if now is None else now).awaited

    def open(self) -> Opened:
        """Return the open cache; open one if there is none.

        :raises CacheSettingsError: for a wrong setting, naming its environment variable.
        """
        while True:
            place = self._places[-1]
            # Made outside the section, because this imports modules and reads files. If another thread was faster, the
            # new one is dropped: it was never used, so there is nothing to close.
            made = Opened(self._made(place.settings()))
            with section():
                if self.now is None and self._places[-1] is place:
                    self.now = place.now = made
                if (now := self.now) is not None:
                    return now

    def _made(self, settings: "CacheSettings") -> Engine:
        import_driver()
        engine = Engine(State(settings))
        self._share(engine.state)
        return engine

    def _share(self, state: State) -> None:
        state.special, state.disabling, state.observers = self._special, self._disabling, self.observers
        state.recordings.resume()

    def check(self) -> None:
        """Import what the first use needs, and check the settings, so that mistakes are reported early.

        :raises CacheSettingsError: for a wrong setting, naming its environment variable.
        """
        if self.now is None:
            self._places[-1].settings()
            import_driver()

    def configure(self, options: Mapping[str, Any]) -> None:
        """Set the cache up before its first use. A later call adds to an earlier one.

        :raises CacheSettingsError: for a wrong setting, and if the cache is in use.
        """
        place = self._places[-1]
        place.settings(options)
        with section():
            if place.now is None:
                place.options = (*place.options, options)
                return
        raise CacheSettingsError(
            "the process-wide cache is in use already; call configure() before its first use, such as at the start of "
            "the program, or close the cache first"
        )

    def describe(self) -> str:
        """Return a description of the cache without secrets, open or not."""
        now = self.now
        return f"process-wide, {'not in use' if now is None else now.engine.state.describe()}"

    def disabled(self) -> "AbstractContextManager[None]":
        """Return a context manager that disables the cache, and later ones in its place, for all callers."""
        return Presence(self._disabling, self._special)

    # -- the end --------------------------------------------------------------------------------------------

    def close(self) -> Ending:
        """Close the open cache, if there is one; the next use opens a new one.

        :raises CacheDeadlockError: in a signal handler or finalizer that has interrupted a critical section.
        """
        now = self._taken(self._places[-1])
        return Ending() if now is None else now.engine.state.close()

    async def aclose(self) -> None:
        """Close the open cache without blocking the running event loop."""
        now = self._taken(self._places[-1])
        if now is not None:
            await now.engine.state.aclose()

    def _taken(self, place: Isolation) -> Opened | None:
        """Detach and return the open cache of a place, so that later uses open a new one.

        :raises CacheDeadlockError: in a signal handler or finalizer that has interrupted a critical section.
        """
        if place.now is not None:
            # First: a cache that cannot be closed here stays in use.
            check_waiting()
        with section():
            now, place.now = place.now, None
            self._changed()
            self.face = None
        return now

    def _changed(self) -> None:
        """Make all followers bind again, to the cache that is open now or opens next."""
        self.now = self._places[-1].now
        bound, self._bound = list(self._bound), weakref.WeakSet()
        for follower in bound:
            follower.unbind()

    # -- isolation ------------------------------------------------------------------------------------------

    def isolate(self, fixed: Mapping[str, Any]) -> Isolation:
        """Replace the process-wide cache by another one until `restore`; return the replacement.

        :param fixed: settings that take precedence over the environment and `configure`.
        :raises CacheSettingsError: for a wrong setting.
        """
        place = Isolation(self._places[-1].options, fixed)
        place.settings()
        with section():
            self._places.append(place)
            self._changed()
        return place

    def restore(self, place: Isolation) -> Opened | None:
        """End an isolation and return its cache for the caller to close; None if it was never used."""
        with section():
            self._places.remove(place)
            self._changed()
            now, place.now = place.now, None
        return now

    def own_name(self, target: Any) -> Any:
        """Return the target of a clear with the prefix in use.

        Within an isolation, the tested program still names the usual prefix in its clears.
        """
        usual, place = self._places[0], self._places[-1]
        if place is usual or not isinstance(target, str) or ":" not in target:
            return target
        prefix = usual.now.engine.state.keyspace.prefix if usual.now else usual.settings().prefix
        if not target.startswith(f"{prefix}:"):
            return target
        return f"{self.blocking._state.keyspace.prefix}:{target[len(prefix) + 1 :]}"

    # -- followers ------------------------------------------------------------------------------------------

    @property
    def decorating(self) -> AsyncCache:
        """The manager whose decorators make functions that follow this cache. Its own cache is never open."""
        if self._decorating is None:
            from magnus_cache._engine.settings.settings import CacheSettings

            engine = Engine(State(CacheSettings.model_construct(redis_enabled=False)))
            engine.state.closed = True
            self._share(engine.state)
            engine.follow = self._follow
            made = (engine, AsyncCache._over(engine))
            with section():
                if self._decorating is None:
                    self._decorating = made
        return self._decorating[1]

    def _follow(self, make: Callable[[Engine], FunctionCache]) -> Any:
        assert self._decorating is not None
        return Follower(self._decorating[0], make, self._bind).function

    def _bind(self, follower: Follower) -> None:
        """Bind a function to the open cache; open one if there is none."""
        while True:
            engine = self.open().engine if self.now is None else self.now.engine
            function_cache = follower.make(engine)
            with section():
                if self.now is not None and self.now.engine is engine:
                    self._bound.add(follower)
                    follower.bind(function_cache)
                    return


PROCESS: Final = ProcessCache()
"""The cache of this process. Before its first use, nothing is read, connected or started."""
