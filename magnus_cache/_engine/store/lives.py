"""How long values live: a number of seconds, or until a moment of a calendar.

A calendar is asked when the value is stored, in the step that computes the value's end, by the estimate of Redis' clock
on the connection that carries the write. Without an answer of Redis so far, or without Redis, the host's clock counts.
So all processes of a fleet end a value at the same moment, whatever their hosts' clocks say.

When the load began is known to within the error of that estimate. The earliest moment counts: a value that may have
been asked for before the close has ended at the close.
"""

import asyncio
import weakref
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from random import random
from typing import TYPE_CHECKING, Final, TypeAlias

from anyio import CapacityLimiter, to_thread

from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.policy.calendars import CalendarTtl
from magnus_cache._engine.redis.server_time import RedisTime, host_time
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.store.records import KeyRef
from magnus_cache.freshness import lifetime

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["CalendarLife", "Life", "Lives"]


_SAME: Final = 0.001
"""Seconds by which two estimates of one moment may differ for other reasons than their error."""


@dataclass(frozen=True, slots=True)
class CalendarLife:
    """The life of one value that a calendar ends.

    :ivar began: monotonic seconds when its load began, or when the caller gave it.
    :ivar share: the share of it that jitter leaves, up to 1.
    """

    calendar: CalendarTtl
    began: float
    share: float = 1.0

    def left(self, time: RedisTime, now: float) -> float:
        """Return the seconds that the value has left; zero or less if it has ended before it is stored.

        :param time: the server's clock.
        :param now: monotonic seconds at which the value is stored.
        """
        server = time.at(now)
        began = time.at(self.began) - ceil(time.error(now) * MICROSECONDS)
        left = (self.calendar.end(began, server) - server) / MICROSECONDS
        return left * self.share if left > 0 else left

    def left_from(self, time: RedisTime, now: float) -> float:
        """Return the seconds that a value has left if it is made when it is stored, as a number that is counted."""
        return replace(self, began=now).left(time, now)


Life: TypeAlias = float | CalendarLife
"""How long a value lives: seconds, or until a moment of a calendar."""


class Lives:
    """The lives of one cache's values that calendars end."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._limiters: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, CapacityLimiter] = (
            weakref.WeakKeyDictionary()
        )

    def beginning(self, ttl: CalendarTtl) -> CalendarLife:
        """Return the life of a value that a caller gives now."""
        return CalendarLife(ttl, self._state.clock())

    def time_of(self, name: bytes) -> RedisTime:
        """Return the clock that counts for a value, in any thread: Redis' as it is known, or else the host's."""
        state = self._state
        # The host's may be set meanwhile.
        return host_time(state.clock) if state.endpoint is None else state.topology.time_of(name)

    def left(self, life: CalendarLife, name: bytes, now: float) -> float:
        """Return the seconds that a value has left; see `CalendarLife.left`."""
        return life.left(self.time_of(name), now)

    def seconds(self, life: Life, name: bytes) -> float:
        """Return the seconds that a value has left now."""
        return self.left(life, name, self._state.clock()) if isinstance(life, CalendarLife) else life

    def gains(self, calendar: CalendarTtl, name: bytes, fresh_until: float) -> bool:
        """Return whether a value that is loaded now lives longer than one that is there: not if both end at the close.

        :param fresh_until: the end of the value that is there, in monotonic seconds.
        """
        now, time = self._state.clock(), self.time_of(name)
        life = CalendarLife(calendar, now)
        if not calendar.is_ready(time.at(now)):
            return True
        # The end that is known here is earlier than the true one, by the error of the estimate.
        return now + life.left(time, now) > fresh_until + _SAME + 2 * time.error(now)

    async def ready(self, life: CalendarLife, name: bytes, wire: "Connection | None" = None) -> CalendarLife:
        """Return a life once its calendar is built for the time of a value, which is done in a thread.

        :param wire: the connection whose clock counts; None for `time_of`.
        :raises CacheArgumentError: if there is no such calendar.
        """
        time = self.time_of(name) if wire is None else wire.time
        calendar, at = life.calendar, time.at(life.began)
        if not calendar.is_ready(at):
            loop = asyncio.get_running_loop()
            # One thread: the others would wait in theirs until the calendar is built.
            limiter = self._limiters.setdefault(loop, CapacityLimiter(1))
            await to_thread.run_sync(partial(calendar.prepare, at), limiter=limiter, abandon_on_cancel=True)
        if (problem := calendar.shortfall(at)) is not None:
            self._state.notices.warn(f"calendar:{calendar!r}", problem)
        return life

    async def shortened(self, life: Life, ref: KeyRef) -> Life:
        """Return a life that `ready` has seen, or seconds, shortened by the jitter of its namespace."""
        jitter = ref.freshness.jitter
        if not isinstance(life, CalendarLife):
            return lifetime(life, jitter, random)
        return replace(await self.ready(life, ref.name), share=lifetime(1.0, jitter, random))
