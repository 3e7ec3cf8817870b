"""What the process does that holds a job: it asks for the keys, looks at their values, and loads those that are due.

Three kinds of tasks share the schedule. One makes a round now and then: it asks for the keys anew, which may take long,
and looks at all values, so that new keys, and values that were invalidated, are found. One waits for the next value
that is due, and looks at it once more: it may have been loaded by a caller. The others load, some at a time.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from magnus_cache._engine.flights.background import WaitExpiredError
from magnus_cache._engine.loading.loads import Loads
from magnus_cache._engine.loading.warm_schedule import WarmSchedule
from magnus_cache._engine.loading.warm_target import WarmItem, WarmPlan, WarmTarget
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.policy.refreshes import levelled, look_interval
from magnus_cache._engine.runtime.loop_end import loop_task
from magnus_cache._engine.runtime.observers import WarmRound
from magnus_cache._engine.runtime.turns import in_turns, turn
from magnus_cache._engine.store.lifetimes import Lifetimes, Look
from magnus_cache.errors import CacheBudgetError, CacheClosedError

__all__ = ["WarmRounds"]

_TOGETHER: Final = 250
"""Values that are looked at together: with their epochs, they are one MGET."""

_STEP: Final = 100
"""Keys whose names are made in one step of the loop."""

_TICK: Final = 0.25
"""Seconds that a task sleeps at a time: the clock may have been advanced meanwhile, or the machine may have slept."""

_PATIENCE: Final = 60.0
"""Seconds after which a load or a question for the keys is no longer waited for."""

_DAY: Final = 86_400.0
"""Seconds that an error may ask for at most."""

_SOON: Final = 0.01
"""Values that are due within so many seconds are due together."""

_BATCHED: Final = 0.125
"""The share of the interval within which values are due together, for a function of many keys."""


class WarmRounds:
    """The work of one job. All of it happens on one event loop.

    :param held: returns whether this process still has the job.
    :ivar keys: how many there are.
    :ivar rounds: how often all of them were looked at.
    :ivar last: when that was last, in monotonic seconds; None before the first time.
    :ivar refreshed: values that were loaded.
    :ivar failed: loads that failed.
    :ivar held_back: attempts that a budget, a limit of spending or a paused source held back.
    :ivar error: the class of the last error.
    """

    def __init__(
        self, loads: Loads, lifetimes: Lifetimes, target: WarmTarget, plan: WarmPlan, held: Callable[[], bool]
    ) -> None:
        self._loads = loads
        self._lifetimes = lifetimes
        self._state = loads.reads.state
        self._clock = loads.clock
        self._target = target
        self._plan = plan
        self._held = held
        self._items: dict[bytes, WarmItem] = {}
        self._generation = 0
        self._interval = look_interval(plan.every, plan.ttl)
        self._schedule = WarmSchedule(plan.every, plan.every or 2 * self._interval, fixed=plan.ttl is not None)
        self._ready: deque[tuple[WarmItem, Look | None]] = deque()
        self._busy: set[bytes] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._changed, self._anew = asyncio.Event(), asyncio.Event()
        self.job = ""
        self.rounds = self.refreshed = self.failed = self.held_back = 0
        self.last: float | None = None
        self.error: str | None = None

    @property
    def keys(self) -> int:
        """How many keys there are."""
        return len(self._items)

    @property
    def workers(self) -> "list[asyncio.Task[None]]":
        """The tasks that load values at the moment."""
        return list(self._workers)

    def forget(self) -> None:
        """Begin nothing that is due: another process has the job."""
        for item, _ in self._ready:
            self._busy.discard(item.ref.name)
        self._ready.clear()

    async def pause(self, seconds: float, event: asyncio.Event) -> None:
        """Return after some seconds of the cache's clock, or once the event is set."""
        end = self._clock() + seconds
        while not event.is_set() and (left := end - self._clock()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _TICK)):
                    await event.wait()
        event.clear()

    # -- rounds -------------------------------------------------------------------------------------------------

    async def look_around(self) -> None:
        """Ask for the keys and look at all values, again and again; what goes wrong is logged."""
        while True:
            began = self._clock()
            try:
                await self._round()
            except CacheClosedError:
                return
            except Exception as error:  # noqa: BLE001  # what the caller's function raises must not end the job
                self._problem("keys", "asking for its keys failed; it goes on with those that it has", error)
            await self.pause(began + self._interval - self._clock(), self._anew)

    async def _round(self) -> None:
        items = await self.items()
        self._items = {item.ref.name: item for item in items}
        self._schedule.keep(self._items.keys())
        names = [name for name in self._items if name not in self._busy]
        dues, movable = list[float](), list[int]()
        many = _TOGETHER * self._state.topology.spread
        for start in range(0, len(names), many):
            some = names[start : start + many]
            now, looks = self._clock(), await self._looks(some)
            for name, look in zip(some, looks, strict=True):
                at, may_move = self._schedule.judge(name, look, now)
                if may_move and self._target.together == 1:
                    movable.append(len(dues))
                dues.append(at)
            await turn()
        times = await in_turns(
            levelled([dues[place] for place in movable], self._schedule.gap(len(names)), self._clock())
        )
        for place, at in zip(movable, times, strict=True):
            dues[place] = at
        for count, (name, at) in enumerate(zip(names, dues, strict=True), 1):
            # Others may have begun since.
            if name not in self._busy:
                self._schedule.set(name, at)
            if count % _TOGETHER == 0:
                await turn()
        self.rounds += 1
        self.last = self._clock()
        self._changed.set()
        if self._state.observers.active:
            self._state.observers.tell(
                WarmRound, self.job, self._target.namespace, self.keys, self.refreshed, self.failed
            )

    async def items(self) -> list[WarmItem]:
        """Return the values for the present keys, each once, without those that cannot be used.

        :raises Exception: what the function of the keys raises.
        """
        generation = self._state.namespaces.generation
        if not callable(self._plan.keys) and self._items and generation == self._generation:
            return list(self._items.values())
        self._generation = generation
        keys, found = await self._asked(), dict[bytes, WarmItem]()
        problem: Exception | None = None
        for count, key in enumerate(keys, 1):
            try:
                item = self._target.item(key)
            except Exception as error:  # noqa: BLE001  # such as a key of a type that cannot be one
                problem = error
            else:
                found[item.ref.name] = item
            if count % _STEP == 0:
                await turn()
        if problem is not None:
            self._problem("items", f"some of its keys cannot be used ({problem})", problem)
        return list(found.values())

    async def _asked(self) -> Sequence[Any]:
        source = self._plan.keys
        if not callable(source):
            return list(source)
        async with asyncio.timeout(_PATIENCE):
            # A function may ask a database: it runs in a thread.
            asked: Any = await self._loads.call(source, self._target.namespace)
        if isinstance(asked, str | bytes):
            raise TypeError("an iterable of keys is needed, not a single text")
        return list(asked)

    async def _looks(self, names: Sequence[bytes]) -> list[Look | None]:
        return await self._lifetimes.look([self._items[name].ref for name in names])

    # -- loads --------------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Load what is due, again and again; what goes wrong is logged."""
        while True:
            room = self._plan.concurrency * max(2, self._target.together) - len(self._ready)
            now = self._clock()
            wait = self._schedule.next - now
            if room > 0 and wait <= _SOON and self._may_load():
                try:
                    await self._begin(now, room)
                except CacheClosedError:
                    return
                except Exception as error:  # noqa: BLE001  # the job must not end
                    self._problem("look", "looking at its values failed", error)
                    await self.pause(_TICK, asyncio.Event())
                await turn()
            else:
                await self.pause(_TICK if room <= 0 or wait <= _SOON else min(wait, _TICK), self._changed)

    def _may_load(self) -> bool:
        return self._held() and self._state.mode is not Mode.DISABLED

    async def _begin(self, now: float, room: int) -> None:
        """Begin the loads of values that are due, unless someone has loaded them meanwhile."""
        soon = _SOON if self._target.together == 1 else _BATCHED * 2 * self._interval
        names = [name for name in self._schedule.take(now + soon, min(room, _TOGETHER)) if name in self._items]
        waiting = {name: self._items[name] for name in names}
        self._busy.update(names)
        try:
            looks = await self._looks(names)
            for name, look in zip(names, looks, strict=True):
                if self._schedule.is_known(name, look):
                    self._ready.append((waiting.pop(name), look))
        finally:
            for name in waiting:
                self._busy.discard(name)
                self._schedule.set(name, now + _TICK)
        for name, look in zip(names, looks, strict=True):
            if name in waiting:
                self._schedule.set(name, self._schedule.judge(name, look, now)[0])
        self._hire()

    def _hire(self) -> None:
        more = min(self._plan.concurrency - len(self._workers), -(-len(self._ready) // self._target.together))
        for _ in range(more):
            task = loop_task(self._work())
            self._workers.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._workers.discard(task)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._problem("work", "loading a value failed in an unexpected way", error)

    async def _work(self) -> None:
        """Load what waits, one after the other."""
        while self._ready and self._may_load():
            count = min(self._target.together, len(self._ready))
            some = [self._ready.popleft() for _ in range(count)]
            try:
                if self._target.together == 1:
                    errors = await self._load(*some[0])
                else:
                    errors = await self._load_together(some)
                await self._note(some, errors)
            finally:
                self._busy.difference_update(item.ref.name for item, _ in some)

    async def _load(self, item: WarmItem, look: Look | None) -> dict[bytes, BaseException]:
        """Load a value unless it is another one by now; return the error, by its name."""
        allowed = _PATIENCE if item.ref.freshness.hard_timeout is None else item.ref.freshness.hard_timeout
        request = self._target.request(item)._replace(
            background=True, unwanted=None if look is None else look.version, max_wait=allowed
        )
        try:
            await self._loads.outcome(request)
        except WaitExpiredError as error:
            return {item.ref.name: self._loads.expired(item.ref, allowed, error)}
        except (Exception, asyncio.CancelledError, SystemExit) as error:  # logged
            if _is_cancelled(error):
                raise
            return {item.ref.name: error}
        return {}

    async def _load_together(self, some: Sequence[tuple[WarmItem, Look | None]]) -> dict[bytes, BaseException]:
        """Load values in one call; return the errors, by their names."""
        items = [item for item, _ in some]
        try:
            async with asyncio.timeout(_PATIENCE):
                return dict[bytes, BaseException](await self._target.load(items))
        except (Exception, asyncio.CancelledError, SystemExit) as error:  # logged
            if _is_cancelled(error):
                raise
            return dict.fromkeys((item.ref.name for item in items), error)

    async def _note(
        self, some: Sequence[tuple[WarmItem, Look | None]], errors: Mapping[bytes, BaseException]
    ) -> None:  # fmt: skip
        """Note what became of some loads, and enter when the values are due again."""
        looks, now = await self._lifetimes.look([item.ref for item, _ in some]), self._clock()
        for (item, before), after in zip(some, looks, strict=True):
            name = item.ref.name
            error = errors.get(name)
            if isinstance(error, CacheBudgetError):
                # Not begun: it waits for its turn, and the source is as well as before.
                self.held_back += 1
                self._schedule.held_back(name, after, now, max(_TICK, min(error.retry_after, _DAY)))
            elif error is not None:
                self.failed += 1
                self._schedule.failed(name, after, now, _pause_of(error))
            elif self._schedule.loaded(name, before, after, now):
                self.refreshed += 1
                item.ref.counters.early_refreshes += before is not None and before.lifetime.left > 0
        self._changed.set()
        failures = [error for error in errors.values() if not isinstance(error, CacheBudgetError)]
        if failures:
            what = f"{len(failures)} of its loads failed ({type(failures[0]).__name__})"
            self._problem("load", what, failures[0])

    def _problem(self, topic: str, what: str, error: BaseException) -> None:
        """Log what went wrong, once a minute at most."""
        self.error = type(error).__name__
        self._state.notices.warn(f"warm:{self.job}:{topic}", f"keeping {self.job} warm: {what}", error)


def _pause_of(error: BaseException) -> float | None:
    """Return the seconds after which the source may be asked again, if an error says so, as those of many clients."""
    pause: object = getattr(error, "retry_after", None)
    return min(float(pause), _DAY) if isinstance(pause, int | float) and pause > 0 else None


def _is_cancelled(error: BaseException) -> bool:
    """Whether this task is cancelled, and not a load that it waits for."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and (task is None or bool(task.cancelling()))
