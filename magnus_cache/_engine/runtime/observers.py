"""Observers: functions of the program that a cache calls with a record of each thing that happens.

An observer is called at once, in the thread or on the event loop where the thing happens, and in its context. So it
sees the caller's context variables (a span, a request), and none of it is lost when the process dies. The price is that
a call of the cache waits for its observers: they count, or put the record into a queue, and return.

- What an observer raises is logged, at most once a minute, and changes nothing else. One that takes long is logged.
- What an observer does with a cache is not reported: it would be called within itself, without end.
- No event is delivered within a critical section, where user code must not run: what a signal handler or a finalizer
  does there is told with the next event.
- An observer that unsubscribes, also within its own call, is not called again, not even for an event that other
  threads are delivering.

While there is no observer, `active` is False, and that is all that a path asks. The compiled hits do not even ask that:
while someone observes hits, the set `special` has a member, and then they leave each hit to the readable path, as they
do while the cache is disabled or bypassed.

A recording of accesses (`access_log`) is told in the same places, but not as an observer: it needs each key, also of
batches, and what a value was stored with; and it must cost little, so no event is made for it.
"""

import asyncio
import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Final, Literal, Protocol, Self, TypeVar

from magnus_cache._engine.runtime.access_log import AccessLog, StoredValue
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.critical import engaged, section
from magnus_cache._engine.runtime.log import RateLimitedLog
from magnus_cache.events import (
    BudgetExceeded,
    CacheEvent,
    Cleared,
    Deleted,
    ErrorServed,
    Evicted,
    FillRefused,
    Hit,
    LoadEnded,
    LoadStarted,
    Miss,
    OutageBegan,
    OutageEnded,
    PeerInvalidated,
    SourcePaused,
    StaleServed,
    Stored,
    TagsInvalidated,
    Touched,
    Unreadable,
    Unstorable,
    WaitExpired,
    WarmJobLost,
    WarmJobTaken,
    WarmRound,
    WriteRefused,
)

__all__ = [
    # The events too: what tells one imports it from here, with what it is told to.
    "NO_SPAN",
    "BudgetExceeded",
    "CacheEvent",
    "Cleared",
    "Deleted",
    "ErrorServed",
    "Evicted",
    "FillRefused",
    "Hit",
    "LoadSpan",
    "Miss",
    "Observation",
    "Observers",
    "OutageBegan",
    "OutageEnded",
    "PeerInvalidated",
    "SourcePaused",
    "StaleServed",
    "Stored",
    "StoredValue",
    "TagsInvalidated",
    "Touched",
    "Unreadable",
    "Unstorable",
    "WaitExpired",
    "WarmJobLost",
    "WarmJobTaken",
    "WarmRound",
    "WriteRefused",
    "text",
    "texts",
]

_Event = TypeVar("_Event", bound=CacheEvent)

_SHOWN: Final = 100
"""Keys that an event has at most."""

_SLOW: Final = 0.1
"""Seconds that an observer may take without a warning."""

_MOST_LATE: Final = 1_000
"""Events that wait for the end of a critical section at most."""

_numbers: Final = itertools.count(1)
"""The numbers of loads. The next one is taken in a single step, whatever the thread."""

_here: Final = threading.local()
"""Whether this thread runs an observer."""


class _Ref(Protocol):
    """A reference of a value."""

    @property
    def namespace(self) -> str:
        """Its namespace."""
        ...

    @property
    def name(self) -> bytes:
        """Its full name in Redis."""
        ...


class Observation:
    """An observer of a cache, until it is closed. It closes at the end of a ``with`` block, too.

    :ivar closed: whether the observer gets no further events.
    """

    __slots__ = ("_observers", "closed", "function", "kinds")

    def __init__(
        self, observers: "Observers", function: Callable[[Any], object], kinds: tuple[type[CacheEvent], ...]
    ) -> None:
        self._observers = observers
        self.function = function
        self.kinds = kinds
        self.closed = False

    def __repr__(self) -> str:
        kinds = ", ".join(kind.__name__ for kind in self.kinds)
        return f"<observation of {kinds} by {_name(self.function)}{', closed' if self.closed else ''}>"

    def close(self) -> None:
        """Call the observer no more. Idempotent; from any thread, and from the observer itself."""
        self.closed = True
        self._observers.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Observers:
    """The observers of one cache. Thread-safe; a forked child has those of its parent.

    :param special: has a member while someone observes hits, see `State.special`.
    :ivar active: whether there is an observer, or a recording.
    :ivar log: where accesses are recorded; None while they are not.
    """

    __slots__ = ("_all", "_by_kind", "_late", "_notices", "_special", "active", "log")

    def __init__(self, special: set[object]) -> None:
        self._special = special
        self._notices = RateLimitedLog(place="observers")
        self._late: deque[tuple[tuple[Observation, ...], CacheEvent]] = deque(maxlen=_MOST_LATE)
        self._all: tuple[Observation, ...] = ()
        self._by_kind: dict[type[CacheEvent], tuple[Observation, ...]] = {}
        self.log: AccessLog | None = None
        self.active = False

    def add(self, function: Callable[[Any], object], kinds: Iterable[type[CacheEvent]]) -> Observation:
        """Call a function with each event of some kinds from now on; of all kinds, if none is given."""
        observation = Observation(self, function, tuple(kinds) or (CacheEvent,))
        with section():
            self._set((*self._all, observation))
        return observation

    def remove(self, observation: Observation) -> None:
        """Call an observer no more."""
        with section():
            self._set(tuple(each for each in self._all if each is not observation))

    def record_in(self, log: AccessLog | None) -> None:
        """Note all accesses in a log from now on; in none with None."""
        with section():
            self.log = log
            self._set(self._all)

    def _set(self, every: tuple[Observation, ...]) -> None:
        self._all, self._by_kind = every, {}
        self.active = bool(every) or self.log is not None
        self._mark()

    def reset(self) -> None:
        """Continue in a forked child: its observers are those of its parent, which may have set them up for it."""
        self._notices.reset()
        self._mark()

    def _mark(self) -> None:
        """Have the compiled hits leave each hit to the readable path while someone observes hits, or records them."""
        if self.log is not None or self.wants(Hit):
            self._special.add(self)
        else:
            self._special.discard(self)

    def wants(self, kind: type[CacheEvent]) -> bool:
        """Return whether there is an observer of a kind of event."""
        return bool(self._of(kind))

    def _of(self, kind: type[CacheEvent]) -> tuple[Observation, ...]:
        # One look at the dictionary: it is another one once the observers have changed.
        by_kind = self._by_kind
        found = by_kind.get(kind)
        if found is None:
            found = by_kind[kind] = tuple(each for each in self._all if issubclass(kind, each.kinds))
        return found

    def tell(self, kind: type[_Event], *fields: Any) -> None:
        """Deliver an event, given its fields; the record is made only if there is an observer of its kind."""
        if not (observations := self._of(kind)) or getattr(_here, "inside", False):
            return
        event = kind(*fields)
        if engaged():
            # A signal handler or a finalizer has interrupted a critical section: later, with the next one.
            self._late.append((observations, event))
            return
        while self._late:
            with contextlib.suppress(IndexError):
                self._deliver(*self._late.popleft())
        self._deliver(observations, event)

    def _deliver(self, observations: tuple[Observation, ...], event: CacheEvent) -> None:
        _here.inside = True
        try:
            for observation in observations:
                if observation.closed:
                    continue
                began = monotonic()
                try:
                    observation.function(event)
                except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # not the caller's mistake
                    # A cancellation is not meant for this task: an observer awaits nothing.
                    problem = f"raised {type(error).__name__}; the cache continues, and will call it again"
                    self._warn(observation, event, problem, error)
                else:
                    if (took := monotonic() - began) > _SLOW:
                        self._warn(observation, event, f"took {took:.1f} s; a call of the cache waited for it")
        finally:
            _here.inside = False

    def _warn(
        self, observation: Observation, event: CacheEvent, problem: str, error: BaseException | None = None
    ) -> None:
        name, kind = _name(observation.function), type(event).__name__
        self._notices.warn(f"{name}:{problem[:4]}", f"the observer {name}, called with a {kind}, {problem}", error)

    # -- the events of paths that are taken often ---------------------------------------------------------------------

    def hit(self, ref: _Ref, level: Literal["l1", "l2"]) -> None:
        """Tell that a caller got a value."""
        if (log := self.log) is not None:
            log.found(ref, hit=True, near=level == "l1")
        if (wanted := self._by_kind.get(Hit)) or (wanted is None and self._of(Hit)):
            self.tell(Hit, str(ref.namespace), ref.name.decode("utf-8", "replace"), level)

    def miss(self, ref: _Ref) -> None:
        """Tell that a caller found no usable value."""
        if (log := self.log) is not None:
            log.found(ref, hit=False, near=False)
        if self.wants(Miss):
            self.tell(Miss, str(ref.namespace), text(ref.name))

    def found(self, ref: _Ref, *, hit: bool, near: bool) -> None:
        """Tell the outcome of one look-up, as `Counters.count` counts it."""
        if hit:
            self.hit(ref, "l1" if near else "l2")
        else:
            self.miss(ref)

    def looked(
        self, namespace: str, looks: int, hits: int, near_hits: int,
        each: Callable[[], Iterable[tuple[_Ref, bool, bool]]],
    ) -> None:  # fmt: skip
        """Tell what many look-ups have found, as `Counters.count_many` counts it.

        :param each: returns the reference of each, whether it was a hit, and whether in memory; asked if it matters.
        """
        if (log := self.log) is not None:
            for ref, hit, near in each():
                log.found(ref, hit=hit, near=near)
        for level, count in (("l1", near_hits), ("l2", hits - near_hits)):
            if count:
                self.tell(Hit, str(namespace), None, level, count)
        if looks > hits:
            self.tell(Miss, str(namespace), None, looks - hits)

    def evicted(self, count: int, told: int) -> None:
        """Tell that values were evicted.

        :param count: how many so far.
        :param told: how many of them were told.
        """
        if count > told:
            self.tell(Evicted, count - told)

    def about(self, kind: type[_Event], ref: _Ref, *fields: Any) -> None:
        """Tell an event whose first fields are the namespace and the key."""
        if (log := self.log) is not None:
            log.happened(kind.__name__, ref, fields)
        if self.wants(kind):
            self.tell(kind, str(ref.namespace), text(ref.name), *fields)

    def stored(self, ref: _Ref, place: Literal["redis", "memory"], value: StoredValue) -> None:
        """Tell that a value was stored."""
        if (log := self.log) is not None:
            log.stored(ref, value)
        self.about(Stored, ref, place, value.loaded)


NO_SPAN: Final[AbstractContextManager[None]] = nullcontext()
"""In place of a `LoadSpan` while no one observes."""


class LoadSpan:
    """A load while it runs: a context manager around the call of its loader, which tells its begin and its end.

    :param name: of its one value in Redis; None for several.
    :param function: the name of the loader.
    :param count: the keys that are loaded.
    """

    __slots__ = ("_background", "_began", "_count", "_function", "_key", "_load", "_name", "_namespace", "_observers")

    def __init__(
        self, observers: Observers, namespace: str, name: bytes | None, function: str, *, background: bool = False,
        count: int = 1,
    ) -> None:  # fmt: skip
        self._observers = observers
        self._namespace = str(namespace)
        self._name = name
        self._key = None if name is None else text(name)
        self._function = function
        self._background = background
        self._count = count

    def __enter__(self) -> None:
        self._load, self._began = next(_numbers), monotonic()
        self._observers.tell(
            LoadStarted, self._namespace, self._key, self._load, self._function, self._background, self._count
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        duration = monotonic() - self._began
        if self._name is not None and (log := self._observers.log) is not None:
            log.loaded(self._name, duration, failed=error is not None)
        self._observers.tell(
            LoadEnded, self._namespace, self._key, self._load, self._function, duration, error,
            self._background, self._count,
        )  # fmt: skip


def text(name: bytes) -> str:
    """Return the name of a value as people see it."""
    return name.decode("utf-8", "replace")


def texts(names: Sequence[bytes]) -> tuple[str, ...]:
    """Return the names of values as people see them: the first hundred."""
    return tuple(map(text, names[:_SHOWN]))


def _name(function: Callable[..., Any]) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", type(function).__qualname__)
    return f"{module}.{name}" if module else name
