"""The schedule of a job that keeps values warm: which value is due next, and which loads wait for a later attempt."""

import heapq
import math
from collections.abc import Collection
from typing import NamedTuple

from magnus_cache._engine.policy.refreshes import Due, due, retry_after
from magnus_cache._engine.store.lifetimes import Look

__all__ = ["WarmSchedule"]

_SAME_END: float = 0.1
"""Seconds by which two ends differ at most that are the same: they come from an estimate of Redis' clock."""


class _Known(NamedTuple):
    """What is known of one value.

    :ivar span: seconds from when it was stored to when it is due.
    :ivar version: the version that was seen last; None without a value.
    :ivar failures: how often its load has failed since that version was seen first.
    :ivar end: its end, in monotonic seconds, if loading it again did not move that.
    :ivar took: seconds that its load took here: its age is counted from when that began.
    :ivar held_until: until when its load may not begin, in monotonic seconds.
    """

    span: float
    version: int | None = None
    failures: int = 0
    end: float = -math.inf
    took: float = 0.0
    held_until: float = -math.inf


class WarmSchedule:
    """When each value is to be loaded, by its name. Times are monotonic seconds.

    :param every: seconds between two loads; None to go by the values' own lives.
    :param fixed: whether all values have the same TTL.
    :param span: seconds between two loads of a value of which nothing is known.
    """

    def __init__(self, every: float | None, span: float, *, fixed: bool) -> None:
        self._every = every
        self._span = span
        self._fixed = fixed
        self._due: dict[bytes, float] = {}
        self._heap: list[tuple[float, int, bytes]] = []
        self._known: dict[bytes, _Known] = {}
        self._entered = 0

    def keep(self, names: Collection[bytes]) -> None:
        """Forget all values but these."""
        for some in (self._due, self._known):
            for name in [name for name in some if name not in names]:
                del some[name]

    def set(self, name: bytes, at: float) -> None:
        """Have a value be due at a time."""
        if self._due.get(name) != at:
            self._due[name] = at
            self._entered += 1
            # In order of entry if they are due together: the first keys first.
            heapq.heappush(self._heap, (at, self._entered, name))

    @property
    def next(self) -> float:
        """When the next value is due; infinity without any."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def take(self, until: float, most: int) -> list[bytes]:
        """Return the values that are due up to a time, the earliest first, and take them out of the schedule."""
        taken: list[bytes] = []
        while len(taken) < most and self.next <= until:
            name = heapq.heappop(self._heap)[2]
            del self._due[name]
            taken.append(name)
        return taken

    def is_known(self, name: bytes, look: Look | None) -> bool:
        """Return whether a value is the one by which it was entered: no one has loaded it since."""
        known = self._known.get(name)
        return known is not None and known.version == _version(look)

    def judge(self, name: bytes, look: Look | None, now: float) -> tuple[float, bool]:
        """Return when a value is due, and whether it may be loaded earlier, to spread the loads.

        :param look: what was seen of it; None without a value.
        """
        known = self._known.get(name, _Known(self._span))
        if (known.failures or now < known.held_until) and known.version == _version(look):
            # Its next attempt is due when its last one said.
            return self._due.get(name, now), False
        took = known.took if known.version == _version(look) else 0.0
        known = known._replace(version=_version(look), failures=0, took=took, held_until=-math.inf)
        at, may_move = now, False
        if look is not None:
            age, left = max(0.0, look.lifetime.age - took), look.lifetime.left
            found = Due(left, age + left) if look.negative else due(self._every, age, left, fixed=self._fixed)
            known = known._replace(span=found.span)
            is_pinned = look.negative or abs(known.end - (now + left)) < _SAME_END
            at, may_move = now + (left if is_pinned else found.after), not is_pinned
        self._known[name] = known
        return at, may_move

    def loaded(self, name: bytes, before: Look | None, after: Look | None, now: float) -> bool:
        """Note that a value was loaded, and enter when it is due again; return whether it is stored.

        :param before: what was there before.
        :param after: what is there now.
        """
        if after is None or after.version == _version(before):
            # The function returned something that is not stored.
            self.failed(name, after, now)
            return False
        known = self._known.get(name, _Known(self._span))
        stayed = before is not None and after.lifetime.left <= before.lifetime.left + _SAME_END
        end = now + after.lifetime.left if stayed else -math.inf
        self._known[name] = known._replace(version=after.version, failures=0, end=end, took=after.lifetime.age)
        self.set(name, self.judge(name, after, now)[0])
        return True

    def failed(self, name: bytes, look: Look | None, now: float, pause: float | None = None) -> None:
        """Note that the load of a value failed, and enter when it is due again.

        :param look: what is there.
        :param pause: seconds, if the function has said so.
        """
        known = self._known.get(name, _Known(self._span))
        failures = known.failures + 1
        self._known[name] = known._replace(failures=failures, version=_version(look))
        self.set(name, now + (retry_after(failures, known.span or self._span) if pause is None else pause))

    def held_back(self, name: bytes, look: Look | None, now: float, pause: float) -> None:
        """Note that the load of a value could not begin, and enter when it may; nothing has failed.

        :param look: what is there.
        :param pause: seconds after which it may begin.
        """
        known = self._known.get(name, _Known(self._span))
        if known.version != _version(look):
            # Someone else has loaded it meanwhile.
            self.set(name, self.judge(name, look, now)[0])
            return
        self._known[name] = known._replace(held_until=now + pause)
        self.set(name, now + pause)

    def gap(self, count: int) -> float:
        """Return the seconds between the loads of two values that follow each other, of so many values."""
        spans = [known.span for known in self._known.values() if known.span > 0]
        return min(spans, default=self._span) / (2 * max(1, count))


def _version(look: Look | None) -> int | None:
    return None if look is None else look.version
