"""The parts of one cache that both managers use: its state, reads, writes, clears and loads."""

from collections.abc import Callable, Sequence
from typing import Any

from magnus_cache._engine.api.get_memos import GetMemo
from magnus_cache._engine.coordination.dropped import drop
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.loading.audits import Auditor
from magnus_cache._engine.loading.loads import Loads
from magnus_cache._engine.loading.stale import StalePolicy
from magnus_cache._engine.redis.topology import import_driver
from magnus_cache._engine.settings.keywords import SettingsOptions
from magnus_cache._engine.store.atomic_writes import AtomicWrites
from magnus_cache._engine.store.clears import Clears
from magnus_cache._engine.store.deferred import Deferred
from magnus_cache._engine.store.lifetimes import Lifetimes
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import KeyRef
from magnus_cache.errors import CacheTypeError

__all__ = ["Engine"]


class Engine:
    """One cache, without a manager.

    :ivar gets: the entries that the managers' `get` had.
    :ivar follow: makes a function that always uses the process-wide cache, from a factory of the function for one
        engine; None for a cache whose functions stay with it.
    """

    __slots__ = (
        "auditor", "clears", "deferred", "follow", "gets", "lifetimes", "loads", "reads", "stale", "state", "writes",
    )  # fmt: skip

    def __init__(self, state: State) -> None:
        self.state = state
        self.gets = GetMemo(state.memory, state.namespaces)
        self.follow: Callable[[Callable[[Engine], Any]], Any] | None = None
        self.reads = Reads(state)
        self.writes = AtomicWrites(self.reads)
        self.lifetimes = Lifetimes(self.writes)
        self.clears = Clears(state)
        self.deferred = Deferred(state, self.writes, self.clears)
        self.loads = Loads(self.reads, self.writes)
        self.auditor = Auditor(self.loads)
        self.stale = StalePolicy(self.reads, self.loads, self.auditor)

    async def remove(self, refs: Sequence[KeyRef]) -> int:
        """Remove values everywhere, as the program asks for; see `ManyWrites.remove`."""
        names, acts = [ref.name for ref in refs], self.state.acts
        site = acts.deleting(names)
        removed = await self.writes.remove(refs)
        if refs:
            acts.deleted(refs[0].namespace, names, removed, site)
        return removed

    def remove_blocking(self, refs: Sequence[KeyRef]) -> int:
        """Do what `remove` does, in a thread; see `Deferred.removed`."""
        names, acts = [ref.name for ref in refs], self.state.acts
        self.state.check_open()
        site = acts.deleting(names)
        removed = self.deferred.removed(refs)
        if refs:
            acts.deleted(refs[0].namespace, names, removed, site)
        return removed

    async def clear(self, target: str) -> int:
        """Clear a namespace or what matches a glob, as the program asks for; see `Clears.clear`.

        :raises CacheArgumentError: as `Clears.clear` does.
        :raises CacheUnavailableError: as `Clears.clear` does.
        """
        scope = self.state.keyspace.scope(target)
        site = self.state.acts.clearing(target, scope)
        removed = await self.clears.clear(target)
        self.state.acts.cleared(target, scope, removed, site)
        return removed

    async def invalidate(self, tags: Sequence[str], function: str | None = None) -> None:
        """Invalidate tags, as the program asks for; see `Clears.invalidate`.

        :param function: the name of the function to clear, if the tag is that of a function.
        :raises CacheUnavailableError: as `Clears.invalidate` does.
        """
        site = self.state.acts.invalidating(tags, function)
        await self.clears.invalidate(tags)
        self.state.acts.invalidated(tags, site, function)

    def __del__(self) -> None:
        # Managers and decorated functions keep the engine alive. Background tasks refer to the state alone.
        drop(self.state)

    @classmethod
    def from_settings(cls, settings: Any, overrides: SettingsOptions) -> "Engine":
        """Return a new engine; settings that neither argument names come from the environment.

        :raises CacheTypeError: if `settings` is not a `CacheSettings`.
        :raises CacheSettingsError: for a wrong setting, naming it and its environment variable.
        """
        # Not at the top: pydantic-settings and redis-py take longer to import than all the rest of this package. And
        # not later: the first call may run on an event loop, which an import would stall.
        from magnus_cache._engine.settings.settings import CacheSettings

        import_driver()
        if settings is None:
            settings = CacheSettings(**overrides)
        elif not isinstance(settings, CacheSettings):
            problem = f"a CacheSettings is needed, not {type(settings).__name__}; single settings are keywords"
            raise CacheTypeError("settings", f"{problem}, such as redis_url='redis://localhost:6379/0'")
        elif overrides:
            settings = settings.changed(overrides)
        return cls(State(settings))
