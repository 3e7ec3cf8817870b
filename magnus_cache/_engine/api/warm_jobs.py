"""`keep_warm` and `warm_jobs` of both managers, and the handles of jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import wait
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from magnus_cache._engine.api.base import CacheBase
from magnus_cache._engine.api.documented import documented_by
from magnus_cache._engine.api.keep_warm import checked
from magnus_cache._engine.loading.warm_target import KeySource
from magnus_cache._engine.runtime.annotations import readable
from magnus_cache._engine.runtime.durations import Duration
from magnus_cache._engine.runtime.loops import check_loop
from magnus_cache._engine.runtime.portal import CLOSE_TIMEOUT
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache._engine.runtime.warm_figures import WarmJob, read
from magnus_cache.errors import CacheDeadlockError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.coordination.state import State
    from magnus_cache._engine.loading.keep_warm import WarmRunner

__all__ = ["AsyncKeepWarm", "AsyncWarmJobs", "BlockingWarmJobs", "KeepWarm", "warm_jobs"]


class _Handle:
    """A job of this process."""

    def __init__(self, runner: WarmRunner) -> None:
        self._runner = runner

    def __repr__(self) -> str:
        state = "stopped" if not self.running else "refreshing here" if self._runner.holds else "waiting"
        return f"<{type(self).__name__} {self._runner.job or 'about to begin'}, {state}>"

    @property
    def running(self) -> bool:
        """Whether the job has not ended, here or in another process."""
        return not self._runner.ended.done()

    @property
    def holds(self) -> bool:
        """Whether it is this process that refreshes the values at the moment."""
        return self._runner.holds

    @property
    def figures(self) -> WarmJob:
        """What the job has done in this process."""
        return self._runner.figures()

    def stop(self) -> None:
        """Ask the job to end, without waiting; another process takes over. From any thread. Idempotent."""
        self._runner.stop()


@readable
class AsyncKeepWarm(_Handle):
    """A job of `AsyncCacheManager.keep_warm`. Leaving its ``async with`` block ends it."""

    async def aclose(self) -> None:
        """End the job, and return when another process can take over. Idempotent."""
        self.stop()
        if not self._runner.ended.done() and self._runner.loop.is_running():
            await asyncio.wait([asyncio.wrap_future(self._runner.ended)], timeout=CLOSE_TIMEOUT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


@readable
class KeepWarm(_Handle):
    """A job of `CacheManager.keep_warm`. Leaving its ``with`` block ends it."""

    def close(self) -> None:
        """End the job, and return when another process can take over. Idempotent.

        On the event loop that runs the job, it does not wait.
        """
        self.stop()
        if running_loop() is not self._runner.loop and self._runner.loop.is_running():
            wait([self._runner.ended], CLOSE_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@readable
class AsyncWarmJobs(CacheBase):
    """The operations on jobs, for coroutines."""

    def keep_warm(
        self, function: Callable[..., Any], keys: KeySource, every: Duration | None = None, *, concurrency: int = 8,
        name: str | None = None,
    ) -> AsyncKeepWarm:  # fmt: skip
        """Load the values of a cached function again before they expire, from now on; return the job.

        One process of the fleet does it for all; another takes over when it ends. Without Redis, each process does it
        for itself. The job ends with its ``async with`` block, with its `aclose` or `stop`, with the running event
        loop, and with the cache.

        Example::

            async with cache.keep_warm(quote, ["AAPL", ("MSFT", "USD"), {"ticker": "TSLA"}], every="30s"):
                ...

        :param function: a function, coroutine function or method that is decorated with `cached` or `cached_many` of
            this cache.
        :param keys: the arguments of the calls: a tuple, a dict of keyword arguments, or any other object, which is
            the only argument. For a function of many keys, each stands for one key. Or a function, which runs in a
            worker thread, or a coroutine function that returns these: it is called again after each `every`, and once a
            minute at least.
        :param every: seconds between two loads of a value, a timedelta or text such as ``"30s"``, less than the TTL.
            None loads a value when four fifths of its life have passed.
        :param concurrency: how many loads run at a time, 1 or more.
        :param name: tells the job from others of the same function in the fleet; by default, its keys do, or what
            function returns them.
        :raises CacheArgumentError: naming the argument that cannot be used.
        """
        check_loop()
        return AsyncKeepWarm(checked(self._engine, function, keys, every, concurrency, name).start())

    async def warm_jobs(self) -> list[WarmJob]:
        """Return the jobs of `keep_warm` in the fleet, by name, each with the process that refreshes its values.

        A job that waits in this process alone is among them, without a process. While Redis does not answer, they are
        those of this process.
        """
        check_loop()
        return await warm_jobs(self._state)


@readable
@documented_by(AsyncWarmJobs)
class BlockingWarmJobs(CacheBase):
    """The operations on jobs, for blocking code."""

    def keep_warm(
        self, function: Callable[..., Any], keys: KeySource, every: Duration | None = None, *, concurrency: int = 8,
        name: str | None = None,
    ) -> KeepWarm:  # fmt: skip
        """Do what `AsyncWarmJobs.keep_warm` does, in blocking code.

        The job runs in the background: a function in worker threads, a coroutine function on the background loop.

        Example::

            with cache.keep_warm(quote, watchlist.tickers, every="30s"):
                ...

        :raises CacheArgumentError: naming the argument that cannot be used.
        :raises CacheUnavailableError: if no background thread can be started.
        """
        job, state = checked(self._engine, function, keys, every, concurrency, name), self._state
        if state.portal.inside:
            raise CacheDeadlockError("the cache's own event loop cannot start a job of blocking code; use `cache.aio`")

        async def start() -> WarmRunner:
            return job.start()

        return KeepWarm(state.portal.call(start))

    def warm_jobs(self) -> list[WarmJob]:
        """Do what `AsyncWarmJobs.warm_jobs` does, in blocking code."""
        self._state.check_open()
        return self._state.portal.call(warm_jobs, self._state)


async def warm_jobs(state: State) -> list[WarmJob]:
    """Return the jobs of the fleet; see `AsyncWarmJobs.warm_jobs`."""
    state.check_open()
    found = {job.name: job for job in state.jobs.figures() if job.name}
    if state.endpoint is not None:
        try:
            held = {job.name: read(job.about) for job in await state.jobs.held()}
        except CacheUnavailableError as error:
            state.stats.failed(error.reason)
        else:
            for name, job in held.items():
                if job is not None and not (name in found and found[name].here):
                    found[name] = job
    return [found[name] for name in sorted(found)]
