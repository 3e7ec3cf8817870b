"""The cache that the whole process shares: when it is made, by which settings, and what follows it.

It is made by its first use, not by being asked for: programs ask for it when they are imported, and set it up, or have
a test set it up, after that. Closing it ends what there is, and the next use makes another. An isolation (for tests)
puts another cache in its place for some time.

All that was decorated through it follows: see `Follower`. So do the managers that it was reached through.
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
from magnus_cache._engine.runtime.switches import Presence
from magnus_cache.errors import CacheSettingsError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from magnus_cache._engine.settings.settings import CacheSettings

__all__ = ["PROCESS", "Isolation", "Opened", "ProcessCache"]


class Opened:
    """A cache that is in use, with its two managers, and their `get`, which most calls are."""

    __slots__ = ("awaited", "blocking", "engine", "get", "get_awaited")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.blocking = BlockingCache._over(engine)
        self.awaited = AsyncCache._over(engine)
        self.get, self.get_awaited = self.blocking.get, self.awaited.get


class Isolation:
    """Another cache in the place of the process-wide one, for some time; or the process-wide one itself.

    :param options: what `configure` was told, one call after the other.
    :param fixed: settings that count whatever `configure` is told.
    :ivar now: the cache, once it is used.
    """

    __slots__ = ("fixed", "now", "options")

    def __init__(self, options: tuple[Mapping[str, Any], ...], fixed: Mapping[str, Any]) -> None:
        self.options = options
        self.fixed = dict(fixed)
        self.now: Opened | None = None

    def settings(self, *more: Mapping[str, Any]) -> "CacheSettings":
        """Return the settings: the environment's, what `configure` was told and is told now, and what is fixed.

        :raises CacheSettingsError: for a wrong setting, naming it and its environment variable.
        """
        # Deferred: pydantic-settings takes longer to import than all the rest of this package.
        from magnus_cache._engine.settings.settings import CacheSettings

        settings: CacheSettings | None = None
        for options in filter(None, (*self.options, *more, self.fixed)):
            settings = CacheSettings(**options) if settings is None else settings.changed(options)
        return CacheSettings() if settings is None else settings


class ProcessCache:
    """One process-wide cache. Thread-safe.

    :ivar now: the cache as it is in use, or None.
    :ivar face: what callers have got as the manager, until it is closed.
    """

    def __init__(self) -> None:
        self.now: Opened | None = None
        self.face: Any = None
        self._places = [Isolation((), {})]
        self._bound: weakref.WeakSet[Follower] = weakref.WeakSet()
        self._decorating: tuple[Engine, AsyncCache] | None = None
        # Shared by all its caches: a test that disables the cache means whatever cache there is.
        self._special: set[object] = set()
        self._disabling: set[object] = set()

    # -- use ------------------------------------------------------------------------------------------------

    @property
    def blocking(self) -> BlockingCache:
        """The manager for blocking code of the cache in use, which is made now if need be.

        :raises CacheSettingsError: for a wrong setting, naming its environment variable.
        """
        now = self.now
        return (self.open() if now is None else now).blocking

    @property
    def awaited(self) -> AsyncCache:
        """The manager for coroutines of the cache in use, which is made now if need be.

        :raises CacheSettingsError: for a wrong setting, naming its environment variable.
        """
        now = self.now
        return (self.open() if now is None else now).awaited

    def open(self) -> Opened:
        """Return the cache in use, made now if need be.

        :raises CacheSettingsError: for a wrong setting, naming its environment variable.
        """
        while True:
            place = self._places[-1]
            # Made before it is known to be wanted: that imports modules and reads files, which is no step for a
            # section. One that comes too late was not used, and has nothing to end.
            made = Opened(self._made(place.settings()))
            with section():
                if self.now is None and self._places[-1] is place:
                    self.now = place.now = made
                if (now := self.now) is not None:
                    return now

    def _made(self, settings: "CacheSettings") -> Engine:
        import_driver()
        engine = Engine(State(settings))
        engine.state.special, engine.state.disabling = self._special, self._disabling
        return engine

    def check(self) -> None:
        """Import what the first use needs, and read the settings: a mistake in them is told before.

        :raises CacheSettingsError: for a wrong setting, naming its environment variable.
        """
        if self.now is None:
            self._places[-1].settings()
            import_driver()

    def configure(self, options: Mapping[str, Any]) -> None:
        """Set the cache up before its first use; what was not named keeps what an earlier call said.

        :raises CacheSettingsError: for a wrong setting; and when the cache is in use.
        """
        place = self._places[-1]
        place.settings(options)
        with section():
            if place.now is None:
                place.options = (*place.options, options)
                return
        raise CacheSettingsError(
            "the process-wide cache is in use already; call configure() before its first use, such as where the "
            "program starts, or close the cache first"
        )

    def describe(self) -> str:
        """Return what tells this cache from another, without secrets; it need not be in use."""
        now = self.now
        return f"process-wide, {'not in use' if now is None else now.engine.state.describe()}"

    def disabled(self) -> "AbstractContextManager[None]":
        """Disable the cache, and those that follow it, for all callers."""
        return Presence(self._disabling, self._special)

    # -- the end --------------------------------------------------------------------------------------------

    def close(self) -> Ending:
        """Close the cache in use, if there is one; the next use makes another.

        :raises CacheDeadlockError: in a signal handler or finalizer that has interrupted a critical section.
        """
        now = self._taken(self._places[-1])
        return Ending() if now is None else now.engine.state.close()

    async def aclose(self) -> None:
        """Do what `close` does without blocking the running event loop."""
        now = self._taken(self._places[-1])
        if now is not None:
            await now.engine.state.aclose()

    def _taken(self, place: Isolation) -> Opened | None:
        """Let what comes from now on use another cache, and return the present one of a place."""
        if place.now is not None:
            # Before anything is taken: what cannot be closed here stays in use.
            check_waiting()
        with section():
            now, place.now = place.now, None
            self._changed()
            self.face = None
        return now

    def _changed(self) -> None:
        """Let everything follow to what is in use now, or will be."""
        self.now = self._places[-1].now
        bound, self._bound = list(self._bound), weakref.WeakSet()
        for follower in bound:
            follower.unbind()

    # -- in its place ---------------------------------------------------------------------------------------

    def isolate(self, fixed: Mapping[str, Any]) -> Isolation:
        """Put another cache in the place of the present one, until `restore`.

        :param fixed: settings that it has whatever the environment and `configure` say.
        :raises CacheSettingsError: for a wrong setting.
        """
        place = Isolation(self._places[-1].options, fixed)
        place.settings()
        with section():
            self._places.append(place)
            self._changed()
        return place

    def restore(self, place: Isolation) -> Opened | None:
        """End an isolation, and return its cache, which is to be closed; None if it was not used."""
        with section():
            self._places.remove(place)
            self._changed()
            now, place.now = place.now, None
        return now

    def own_name(self, target: Any) -> Any:
        """Return the target of a clear by the prefix in use.

        Within an isolation the program that is tested clears what begins with the prefix that it has otherwise.
        """
        usual, place = self._places[0], self._places[-1]
        if place is usual or not isinstance(target, str) or ":" not in target:
            return target
        prefix = usual.now.engine.state.keyspace.prefix if usual.now else usual.settings().prefix
        if not target.startswith(f"{prefix}:"):
            return target
        return f"{self.blocking._state.keyspace.prefix}:{target[len(prefix) + 1 :]}"

    # -- what follows it ------------------------------------------------------------------------------------

    @property
    def decorating(self) -> AsyncCache:
        """The manager whose decorators make functions that follow this cache; it has no cache of its own."""
        if self._decorating is None:
            from magnus_cache._engine.settings.settings import CacheSettings

            engine = Engine(State(CacheSettings.model_construct(redis_enabled=False)))
            engine.state.closed = True
            engine.state.special, engine.state.disabling = self._special, self._disabling
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
        """Let a function go to the cache in use."""
        while True:
            engine = self.open().engine if self.now is None else self.now.engine
            function_cache = follower.make(engine)
            with section():
                if self.now is not None and self.now.engine is engine:
                    self._bound.add(follower)
                    follower.bind(function_cache)
                    return


PROCESS: Final = ProcessCache()
"""The cache of this process. Nothing is made, read or started before it is used."""
