"""A job that keeps values warm: in the process that has its lease, or, without Redis, in each process for itself."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextvars import Context
from dataclasses import replace
from random import random
from typing import Final

from magnus_cache._engine.coordination.jobs import JobLease
from magnus_cache._engine.loading.loads import Loads
from magnus_cache._engine.loading.warm_rounds import WarmRounds
from magnus_cache._engine.loading.warm_target import WarmItem, WarmPlan, WarmTarget
from magnus_cache._engine.policy.refreshes import lease_seconds
from magnus_cache._engine.runtime.loop_end import call_on_loop, cancel, end_with_loop, loop_task
from magnus_cache._engine.runtime.observers import WarmJobLost, WarmJobTaken
from magnus_cache._engine.runtime.portal import CLOSE_TIMEOUT
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache._engine.runtime.warm_figures import WarmJob, packed
from magnus_cache._engine.store.lifetimes import Lifetimes
from magnus_cache.errors import CacheClosedError, CacheUnavailableError

__all__ = ["WarmRunner"]

_RENEWALS: Final = 3
"""A lease is renewed so many times within its duration."""

_LATER: Final = 0.1
"""How much longer than another's lease a process waits at most, as a share of that: not all ask at once."""


class WarmRunner:
    """One job. It is made and runs on one event loop, in a task of its own.

    :param name: returns the name of the job in the fleet, given its values at the beginning.
    :param held_anyway: whether this process needs no lease: without Redis, and in a local namespace.
    :ivar loop: the event loop.
    :ivar ended: done when the job has ended and has given up its lease.
    """

    def __init__(
        self, loads: Loads, lifetimes: Lifetimes, target: WarmTarget, plan: WarmPlan,
        name: Callable[[list[WarmItem]], str], *, held_anyway: bool,
    ) -> None:  # fmt: skip
        self._state = loads.reads.state
        self._clock = loads.clock
        self._target = target
        self._plan = plan
        self._name = name
        self._lease: JobLease | None = None
        self._held_anyway = held_anyway
        self._rounds = WarmRounds(loads, lifetimes, target, plan, lambda: self.holds)
        self._tasks: list[asyncio.Task[None]] = []
        self._sooner = asyncio.Event()
        self._since = 0.0
        self._over = False
        self.loop = asyncio.get_running_loop()
        self.ended: Future[None] = Future()
        # Those who wait for it may be cancelled; the end itself may not.
        self.ended.set_running_or_notify_cancel()
        # In a context of its own: the job outlives the call and the load that happened to start it.
        context = Context()
        self._task = self.loop.create_task(self._run(), context=context)
        self._task.add_done_callback(self._finish, context=context)
        end_with_loop(self._task)
        self._state.jobs.add(self)

    @property
    def job(self) -> str:
        """The name of the job in the fleet; empty before its first values are known."""
        return self._rounds.job

    @property
    def holds(self) -> bool:
        """Whether this process refreshes the values at the moment."""
        is_held = self._held_anyway if self._lease is None else self._lease.held
        return is_held and bool(self._tasks) and not self._over

    def figures(self) -> WarmJob:
        """Return what the job has done in this process."""
        rounds, holds, now = self._rounds, self.holds, self._clock()
        return WarmJob(
            self.job, self._target.namespace, self._target.function, _process() if holds else None, holds, rounds.keys,
            self._plan.every, round(now - self._since, 3) if holds else 0.0,
            None if rounds.last is None else round(now - rounds.last, 3), rounds.rounds, rounds.refreshed,
            rounds.failed, rounds.error, rounds.held_back,
        )  # fmt: skip

    # -- its end ------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask it to end, from any thread. Idempotent."""
        if running_loop() is self.loop:
            cancel(self._task)
        elif not call_on_loop(self.loop, cancel, self._task):
            self._settle()

    def forget(self) -> None:
        """Count as ended, in a forked child: the job is its parent's."""
        self._over = True
        self._settle()

    def _settle(self) -> None:
        self._over = True
        self._state.jobs.discard(self)
        with contextlib.suppress(InvalidStateError):
            self.ended.set_result(None)

    def _finish(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            task.exception()
        self._lose("stopped")
        if self._lease is None or self._over:
            self._settle()
        else:
            self._over = True
            self._lease.give_up(self._settle)

    # -- the task -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._start()
            if self._lease is None:
                self._take()
                await asyncio.wait(self._tasks)
            else:
                while True:
                    await self._rounds.pause(await self._keep(self._lease), self._sooner)
        except CacheClosedError:
            return
        finally:
            if running_loop() is not self.loop:
                # The loop was closed by hand: no callback is called any more.
                self._settle()
            else:
                children = [*self._tasks, *self._rounds.workers]
                cancel(*children)
                if children:
                    await asyncio.wait(children, timeout=CLOSE_TIMEOUT)

    async def _start(self) -> None:
        """Find the name of the job."""
        items = [] if callable(self._plan.keys) else await self._rounds.items()
        self._rounds.job = self._name(items)
        if not self._held_anyway:
            self._lease = self._state.jobs.lease(self.job, lease_seconds(self._plan.every, self._plan.ttl))

    async def _keep(self, lease: JobLease) -> float:
        """Take or renew the lease, and begin or stop the work; return the seconds until the next time."""
        try:
            left = await lease.request(packed(replace(self.figures(), process=_process())))
        except CacheUnavailableError:
            if not lease.held:
                self._lose("outage")
            return lease.seconds / _RENEWALS
        if left:
            self._lose("taken")
            return left * (1 + _LATER * random())
        self._take()
        return lease.seconds / _RENEWALS

    def _take(self) -> None:
        if not self._tasks:
            self._since = self._clock()
            self._tasks = [loop_task(self._rounds.look_around()), loop_task(self._rounds.refresh())]
            self._tell(WarmJobTaken)

    def _lose(self, reason: str) -> None:
        """Stop the work. Loads that have begun go on."""
        if self._tasks:
            cancel(*self._tasks)
            self._tasks = []
            self._rounds.forget()
            self._tell(WarmJobLost, reason)

    def _tell(self, kind: "type[WarmJobTaken | WarmJobLost]", *fields: str) -> None:
        if self._state.observers.active:
            self._state.observers.tell(kind, self.job, self._target.namespace, *fields)


def _process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
