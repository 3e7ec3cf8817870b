"""Threads for loaders that block.

anyio has the threads; the limit is our own, as it has to hold where anyio's does not. A thread counts until its loader
has returned, also when nobody waits for it any more: it cannot be stopped, and uncounted ones would add up without end.
It does not count while its loader waits for another load of the cache: forty loaders that need forty others would wait
for ever for their own places. `loader_places` tells how many may run.
"""

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, Final, TypeVar, cast

from anyio import CapacityLimiter, to_thread

from magnus_cache._engine.runtime.loader_slots import MOST, MOST_OF_ALL, LoaderPlaces

__all__ = ["JOB", "Job", "LoaderThreads", "is_async"]

T = TypeVar("T")


class Job:
    """A loader in a thread."""

    __slots__ = ("_left", "_loop", "_namespace", "_places")

    def __init__(self, places: LoaderPlaces, loop: asyncio.AbstractEventLoop, namespace: str) -> None:
        self._places = places
        self._loop = loop
        self._namespace = namespace
        self._left = [None]

    def begin(self) -> bool:
        """Return whether this is the first call. Its thread makes one, and so does a caller that gives up before."""
        try:
            self._left.pop()
        except IndexError:
            return False
        return True

    @property
    def begun(self) -> bool:
        """Whether there was a first call."""
        return not self._left

    def end(self) -> None:
        """Give its place to another; from any thread."""
        self._places.give(self._loop, self._namespace)

    def pause(self) -> None:
        """Let another loader run while this one waits; from any thread."""
        self._places.give(self._loop, self._namespace)

    def resume(self) -> None:
        """Count again, at once: for a moment there may be more threads than places. From any thread."""
        self._places.retake(self._loop, self._namespace)


JOB: Final[ContextVar[Job | None]] = ContextVar("magnus_cache_job", default=None)
"""The thread that the running code is part of, or that waits for it."""


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: for functions, partials, and objects with an async `__call__`."""
    while isinstance(function, partial):
        # `inspect` sees through those of functions alone, not of objects with an async `__call__`.
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004  # asked of its type, not whether it is callable


class LoaderThreads:
    """The threads of one cache.

    :param most: how many of one namespace run at a time, for each event loop.
    :param most_of_all: how many run at a time.
    :param run: awaits a coroutine function of a caller's, wherever it is to run; None for the running loop.
    """

    def __init__(
        self, most: int = MOST, most_of_all: int = MOST_OF_ALL,
        run: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]] | None = None,
    ) -> None:  # fmt: skip
        self._run = run or _here
        self.places = LoaderPlaces(most, most_of_all)

    def reset(self) -> None:
        """Begin anew, as in a forked child."""
        self.places.reset()

    async def call(self, loader: Callable[[], T] | Callable[[], Awaitable[T]], namespace: str) -> T:
        """Await a coroutine function; run any other in a thread, so that it holds up nobody else.

        :raises Exception: whatever the loader raises.
        """
        if is_async(loader):
            return cast("T", await self._run(cast("Callable[[], Awaitable[T]]", loader)))
        outer = JOB.get()
        if outer is not None:
            outer.pause()
        try:
            value: Any = await self._in_thread(loader, namespace)
        finally:
            if outer is not None:
                outer.resume()
        # A lambda around a coroutine function does not look like one until it is called.
        return cast("T", await self._run(lambda: value) if inspect.isawaitable(value) else value)

    async def _in_thread(self, loader: Callable[[], Any], namespace: str) -> Any:
        job = Job(self.places, asyncio.get_running_loop(), namespace)

        def work() -> Any:
            if not job.begin():
                return None
            JOB.set(job)  # in this call's own context
            try:
                return loader()
            finally:
                job.end()

        await self.places.acquire(namespace)
        try:
            # Those that anyio lets have a thread have a place of ours.
            unlimited = CapacityLimiter(math.inf)
            return await to_thread.run_sync(work, abandon_on_cancel=True, limiter=unlimited)
        except RuntimeError:
            if job.begun:
                raise
            # No thread can be started: at a limit of the system, or as the interpreter ends. The loop has to wait then.
            return copy_context().run(work)
        except BaseException:
            if job.begin():
                # Cancelled before its thread took it up, which will find that it need not.
                job.end()
            raise


async def _here(loader: Callable[[], Awaitable[T]]) -> T:
    return await loader()
