"""Work that a signal handler or a finalizer asks for in the midst of the cache, where nothing may be waited for.

It takes effect in this process at once, as far as that only removes something; the rest is left for the background
loop, which does it as soon as it can. An invalidation so made is complete for this process when the call returns, and
for Redis and the other processes soon after: nothing tells the caller, so nothing is counted.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Any

from magnus_cache.addresses import Address
from magnus_cache.clears import Clears
from magnus_cache.errors import CacheError
from magnus_cache.state import State
from magnus_cache.writes import Writes

__all__ = ["Deferred"]


class Deferred:
    """The deferred work of one cache. Its methods return at once, in whatever place they are called."""

    def __init__(self, state: State, writes: Writes, clears: Clears) -> None:
        self._state = state
        self._writes = writes
        self._clears = clears
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def writes(self) -> bool:
        """Whether this thread's writes are to be left to the background loop, as it must not wait for them."""
        return self._state.portal.engaged

    @property
    def invalidations(self) -> bool:
        """Whether its invalidations are: also those of a finalizer on the background loop's own thread."""
        portal = self._state.portal
        return portal.engaged or portal.inside

    def write(self, address: Address, value: Any, payload: bytes, ttl: float, tags: tuple[str, ...]) -> None:
        """Store a value soon, and forget the present one now; see `Writes.overwrite`."""
        self._forget((address,))
        self._later(partial(self._writes.overwrite, address, value, payload, ttl, tags))

    def remove(self, addresses: Sequence[Address]) -> int:
        """Forget values now and remove them everywhere soon; return how many this process had."""
        held = sum(self._state.memory.peek(address.name) is not None for address in addresses)
        self._forget(addresses)
        self._later(partial(self._writes.remove, addresses))
        return held

    def clear(self, target: str) -> None:
        """Forget a namespace, or what matches a glob, now, and clear it everywhere soon.

        :raises CacheArgumentError: for a name that is neither.
        """
        scope = self._state.keyspace.scope(target)
        flights = self._state.flights
        flights.detach_matching(scope.covers)
        self._state.memory.clear_matching(scope.prefix if scope.glob is None else scope.glob)
        # Again, as for every clear: a load that began in between may have found here what is gone now.
        flights.detach_matching(scope.covers)
        self._later(partial(self._clears.clear, target))

    def invalidate(self, tags: Sequence[str]) -> None:
        """Forget the values with one of these tags now, and invalidate them everywhere soon."""
        epochs = self._state.epochs
        for name in [epochs.tag_name(tag) for tag in tags]:
            self._state.outdated(name)
        self._later(partial(self._clears.invalidate, tags))

    def _forget(self, addresses: Sequence[Address]) -> None:
        for address in addresses:
            self._state.flights.detach(address.name)
            self._state.memory.invalidate(address.name)
            # Again, as in `clear`.
            self._state.flights.detach(address.name)

    def _later(self, work: Callable[[], Awaitable[object]]) -> None:
        self._state.check_open()
        self._state.portal.defer(self._begin, work)

    # -- on the background loop -------------------------------------------------------------------------------

    def _begin(self, work: Callable[[], Awaitable[object]]) -> None:
        task = asyncio.get_running_loop().create_task(self._run(work), context=Context())
        if not task.done():  # an eager task may have ended at once
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except CacheError as error:
            self._state.notices.warn("deferred", f"a call of a signal handler or finalizer came to nothing: {error}")
