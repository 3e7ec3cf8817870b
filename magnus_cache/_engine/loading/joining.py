"""Which loads under way a call may join: what is to be known and put aside before it looks for one."""

import asyncio
import contextlib
from functools import partial
from typing import Any

from magnus_cache._engine.flights.callers import JoiningCaller
from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import KeyRef
from magnus_cache.errors import CacheUnavailableError

__all__ = ["JoinRules"]


class JoinRules:
    """The rules of one cache for joining loads that are under way."""

    def __init__(self, reads: Reads) -> None:
        self._state = reads.state
        self._epochs = reads.epoch_sync
        self.flights = reads.state.flights

    def caller(self, request: LoadRequest[Any], source: object = None) -> JoiningCaller:
        """Return the caller that a request begins to be from now on: it judges the loads that it joins.

        :param source: the batch loader of the call, see `JoiningCaller`.
        """
        caller = JoiningCaller(
            self._state.epochs, partial(self.detach_unjoinable, request.ref), fresh=request.fresh, source=source
        )
        caller.max_wait, caller.blocks = request.max_wait, request.blocks
        return caller

    def must_confirm(self, request: LoadRequest[Any]) -> bool:
        """Whether `confirm` has anything to ask."""
        return self._is_first(request.ref) or (not request.fresh and self._in_doubt(request.ref))

    async def confirm(self, request: LoadRequest[Any], caller: JoiningCaller) -> None:
        """Return once it is known what an announcement, if there was one, means for the load that is under way.

        To be awaited before joining, for as long as the caller waits at all; what is left of that is noted in it. The
        answer was given after this call began; what is announced later need not be waited for. Without an answer the
        load cannot be joined.
        """
        ref, wire = request.ref, self._state.client.connection(request.ref.name)
        if self._is_first(ref) and wire is not None:
            began = monotonic()
            with contextlib.suppress(TimeoutError, CacheUnavailableError):
                async with asyncio.timeout(caller.max_wait):
                    await wire.renew()
            caller.waited_since(began)
        if request.fresh or not self._in_doubt(ref) or wire is None or not wire.up:
            return
        began, lease, doubts = monotonic(), self._state.leases.doubted(ref.name), wire.known.doubts
        try:
            async with asyncio.timeout(caller.max_wait):
                if ref.epoch_names.control in doubts or self._state.epochs.root in doubts:
                    await self._epochs.settled(wire, ref.epoch_names)
                if lease is not None:
                    waiter: asyncio.Future[None] = wire.loop.create_future()
                    lease.verify(waiter)
                    await waiter
        except (TimeoutError, CacheUnavailableError):
            self.flights.detach(ref.name)
        caller.waited_since(began)

    def detach_unjoinable(self, ref: KeyRef, fresh: bool) -> None:
        """Put aside the load under way if its value is not good for a new caller, or if it hangs.

        :param fresh: whether the caller joins no load that is under way.
        """
        state = self._state
        if fresh:
            self.flights.detach(ref.name)
            return
        hung = self.flights.detach_hung(ref.name, state.settings.wait_timeout)
        if hung is not None:
            state.leases.release_hung(hung)
            state.notices.warn(
                f"hung:{ref.namespace}",
                f"loading a value for namespace {str(ref.namespace)!r} has taken {state.clock() - hung.began:.0f} "
                "s and is given up: the next caller begins anew. Give the loader a time limit of its own, or set "
                "wait_timeout higher",
            )
        cut_off = state.cut_off(ref.namespace)
        if cut_off or state.reachable:
            self.flights.expire(ref.name)
            state.leases.check(ref.name, state.clock(), cut_off=cut_off)

    def _in_doubt(self, ref: KeyRef) -> bool:
        return self._state.leases.doubted(ref.name) is not None or self._state.doubts(ref.epoch_names)

    def _is_first(self, ref: KeyRef) -> bool:
        """Whether a load has to wait for a connection: one to a new server ends all loads that can be joined by then.

        Other loads begin a second time then, and wait for the lease; a local one has none.
        """
        state = self._state
        return ref.namespace.local and state.endpoint is not None and not state.reachable
