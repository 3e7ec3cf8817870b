"""Writes and invalidations by signal handlers and finalizers that have interrupted the cache and must not wait.

The removal of the value from this process takes effect at once. The background loop does the rest as soon as it can.
An invalidation is therefore complete for this process when the call returns, and for Redis and the other processes soon
after. The call returns before Redis answers, so it does not count what Redis removes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Any, Final

from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.keys.globs import ClearScope
from magnus_cache._engine.outage.outbox import Outbox
from magnus_cache._engine.runtime.loop_end import end_with_loop
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.store.clears import Clears
from magnus_cache._engine.store.lives import Life
from magnus_cache._engine.store.local_writes import count_here
from magnus_cache._engine.store.records import Began, KeyRef
from magnus_cache._engine.store.writes_many import ManyWrites
from magnus_cache.errors import CacheError

__all__ = ["Deferred"]

_SHOWN: Final = 3
"""Names in a log line."""


class Deferred:
    """The deferred work of one cache. All methods return at once, wherever they are called."""

    def __init__(self, state: State, writes: ManyWrites, clears: Clears) -> None:
        self._state = state
        self._writes = writes
        self._clears = clears
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def writes(self) -> bool:
        """Whether this thread must leave its writes to the background loop, because it must not wait."""
        return self._state.portal.engaged

    @property
    def invalidations(self) -> bool:
        """Whether this thread must leave its invalidations to the background loop.

        This is also so for a finalizer on the background loop's own thread.
        """
        portal = self._state.portal
        return portal.engaged or portal.inside

    def write(
        self, ref: KeyRef, value: Any, payload: bytes, ttl: Life, tags: tuple[str, ...], began: Began
    ) -> None:  # fmt: skip
        """Store a value soon, and forget the old one now; see `Writes.overwrite`."""
        self._forget((ref,))
        self._later(f"set {_shown(ref)}", partial(self._writes.overwrite, ref, value, payload, ttl, tags, began))

    def remove(self, refs: Sequence[KeyRef]) -> int:
        """Forget values now and remove them everywhere soon; return how many this process had."""
        here = count_here(self._state.memory, [ref.name for ref in refs])
        self._forget(refs)
        names = ", ".join(map(_shown, refs[:_SHOWN])) + (", ..." if len(refs) > _SHOWN else "")
        self._later(f"delete {names}", partial(self._writes.remove, refs))
        return here

    def clear(self, target: str) -> None:
        """Forget a namespace or the values that match a glob now, and clear them everywhere soon.

        :raises CacheArgumentError: for an invalid name or glob.
        """
        self._forget_scope(self._state.keyspace.scope(target))
        self._later(f"clear {target}", partial(self._clears.clear, target))

    def _forget_scope(self, scope: ClearScope) -> None:
        flights = self._state.flights
        flights.detach_matching(scope.covers)
        self._state.memory.clear_matching(scope.prefix if scope.glob is None else scope.glob)
        # Again, as for every clear: a load that began in between may have read a value that is gone now.
        flights.detach_matching(scope.covers)

    def invalidate(self, tags: Sequence[str]) -> None:
        """Forget the values with one of these tags now, and invalidate them everywhere soon."""
        self._outdate([self._state.epochs.tag_name(tag) for tag in tags])
        self._later(f"invalidate the tags {', '.join(tags)}", partial(self._clears.invalidate, tags))

    def _outdate(self, names: Sequence[bytes]) -> None:
        for name in names:
            self._state.outdated(name)

    # -- without a background loop ----------------------------------------------------------------------------

    def removed(self, refs: Sequence[KeyRef]) -> int:
        """Remove values everywhere, now or soon; return how many there were, as far as this is known."""
        if self.invalidations:
            return self.remove(refs)
        try:
            return self._state.portal.call(self._writes.remove, refs)
        except NoThreadError as error:
            return self.record(refs, error)

    def record(self, refs: Sequence[KeyRef], error: NoThreadError) -> int:
        """Forget values and record them for the next connection; return how many this process had."""
        here = count_here(self._state.memory, [ref.name for ref in refs])
        self._missed(error, lambda outbox: outbox.record([ref.name for ref in refs]))
        self._forget(refs)
        return here

    def record_overwritten(self, ref: KeyRef, error: NoThreadError) -> bool:
        """Forget and record a value that a `set` cannot overwrite now, as `record` does; return False."""
        self.record((ref,), error)
        return False

    def record_clear(self, target: str, error: NoThreadError) -> int:
        """Forget a namespace or the values that match a glob, and record them for the next connection; return 0.

        :raises CacheArgumentError: for an invalid name or glob.
        """
        scope = self._state.keyspace.scope(target)
        self._missed(error, lambda outbox: outbox.record_prefix(scope.prefix))
        self._forget_scope(scope)
        return 0

    def record_tags(self, tags: Sequence[str], error: NoThreadError) -> None:
        """Forget the values with one of these tags, and record the tags for the next connection."""
        names = [self._state.epochs.tag_name(tag) for tag in tags]
        self._missed(error, lambda outbox: outbox.record_tags(names))
        self._outdate(names)

    def _missed(self, error: NoThreadError, record: Callable[[Outbox], int]) -> None:
        # Call this before the values are forgotten: a read that missed the record finds its placeholder void.
        self._state.without_loop(error)
        if self._state.endpoint is not None:
            self._state.record_missed(record)

    def _forget(self, refs: Sequence[KeyRef]) -> None:
        for ref in refs:
            self._state.flights.detach(ref.name)
            self._state.memory.invalidate(ref.name)
            # Again, for the reason in `_forget_scope`.
            self._state.flights.detach(ref.name)

    def _later(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        self._state.check_open()
        self._state.portal.defer(self._begin, what, work)

    # -- on the background loop -------------------------------------------------------------------------------

    def _begin(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        task = asyncio.get_running_loop().create_task(self._run(what, work), context=Context())
        if not task.done():  # an eager task may already have ended
            end_with_loop(task)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001  # no caller waits for the task
            why = error if isinstance(error, CacheError) else type(error).__name__
            self._state.notices.warn(
                "deferred", f"a deferred call of a signal handler or finalizer failed ({what}): {why}", error
            )


def _shown(ref: KeyRef) -> str:
    return ref.name.decode("utf-8", "replace")
