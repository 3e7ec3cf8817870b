"""Which loads under way a call may join: checked before the call looks for one."""

import asyncio
import contextlib
from functools import partial
from typing import Any

from magnus_cache._engine.flights.callers import JoiningCaller
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.policy.calendars import CalendarTtl
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.store.lives import CalendarLife
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import KeyRef
from magnus_cache.errors import CacheUnavailableError

__all__ = ["JoinRules"]


class JoinRules:
    """The rules of one cache for joining loads that are under way."""

    def __init__(self, reads: Reads) -> None:
        self._state = reads.state
        self._epochs = reads.epoch_sync
        self._lives = reads.lives
        self.flights = reads.state.flights

    def caller(self, request: LoadRequest[Any], source: object = None) -> JoiningCaller:
        """Return the caller of a request that starts now; it decides which loads' outcomes it accepts.

        :param source: the batch loader of the call, see `JoiningCaller`.
        """
        ref, ttl = request.ref, request.options.ttl or request.ref.namespace.ttl
        detach = partial(self.detach_unjoinable, ref, calendar=ttl if isinstance(ttl, CalendarTtl) else None)
        caller = JoiningCaller(
            self._state.epochs, detach, fresh=request.fresh, source=source, local=ref.namespace.local
        )  # fmt: skip
        caller.max_wait, caller.blocks = request.max_wait, request.blocks
        return caller

    def must_confirm(self, request: LoadRequest[Any]) -> bool:
        """Whether `confirm` has to ask Redis."""
        return self._is_first(request.ref) or (not request.fresh and self._in_doubt(request.ref))

    async def confirm(self, request: LoadRequest[Any], caller: JoiningCaller) -> None:
        """Return once it is known whether announcements so far affect the load under way.

        Await it before joining. It takes at most the caller's `max_wait`, and reduces that by the time it took. Redis
        answers after this call began, so later announcements do not matter. Without an answer the load is detached,
        unless it looked after this call began: of many calls that get no answer, the first starts a load for all.
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
                if ref.epoch_names.control in doubts or ref.epoch_names.root in doubts:
                    await self._epochs.settled(wire, ref.epoch_names)
                if lease is not None:
                    waiter: asyncio.Future[None] = wire.loop.create_future()
                    lease.verify(waiter)
                    await waiter
        except (TimeoutError, CacheUnavailableError):
            flight = self.flights.current(ref.name)
            if flight is not None and not caller.began_before(flight.look):
                self.flights.detach_flight(flight)
        caller.waited_since(began)

    def detach_unjoinable(self, ref: KeyRef, fresh: bool, calendar: CalendarTtl | None = None) -> None:
        """Detach the load under way if its value would be invalid for a new caller, or if it hangs.

        :param fresh: whether to detach it in any case.
        :param calendar: the TTL of the caller's values, if it is a calendar.
        """
        state, flight = self._state, self.flights.current(ref.name)
        if flight is None:
            return
        if fresh or (calendar is not None and self._is_ended(ref, flight, calendar)):
            self.flights.detach(ref.name)
            return
        hung = self.flights.detach_hung(ref.name, state.settings.wait_timeout)
        if hung is not None:
            state.leases.release_hung(hung)
            state.notices.warn(
                f"hung:{ref.namespace}",
                f"loading a value for namespace {str(ref.namespace)!r} has taken {state.clock() - hung.began:.0f} "
                "s and is given up: the next caller starts a new load. Give the loader a time limit of its own, or set "
                "wait_timeout higher",
            )
        cut_off = state.cut_off(ref.namespace, ref.name)
        if cut_off or state.reaches(ref.name):
            self.flights.expire(ref.name)
            state.leases.check(ref.name, state.clock(), cut_off=cut_off)

    def _is_ended(self, ref: KeyRef, flight: Flight, calendar: CalendarTtl) -> bool:
        """Return whether a load's value ends before it is stored: the load began before, and this caller after it.

        If so, its lease is released, so that the next load need not wait for it.
        """
        state, now, time = self._state, self._state.clock(), self._lives.time_of(ref.name)
        leased = state.leases.is_held(flight)
        if not leased and state.reaches(ref.name):
            # It waits for another process's load, and begins after that.
            return False
        if not calendar.is_ready(time.at(flight.began)) or CalendarLife(calendar, flight.began).left(time, now) > 0:
            return False
        state.leases.release_hung(flight)
        return True

    def _in_doubt(self, ref: KeyRef) -> bool:
        """Whether an announcement whose meaning is not known yet may be about a load under way."""
        if self.flights.current(ref.name) is None:
            # A load that begins from here on looks after this call began.
            return False
        return self._state.leases.doubted(ref.name) is not None or self._state.doubts(ref.epoch_names)

    def _is_first(self, ref: KeyRef) -> bool:
        """Whether a load has to wait for a connection: connecting to a new server detaches all loads under way.

        Loads of other namespaces then start again and wait for the lease. A local namespace has no leases.
        """
        state = self._state
        return ref.namespace.local and state.endpoint is not None and not state.reaches(ref.name)
