"""Threads for loaders that block.

anyio provides the threads. The limit is our own, because it has to hold where anyio's does not. A thread counts until
its loader has returned, even if no caller waits for it any more: a thread cannot be stopped, and uncounted ones would
accumulate. It does not count while its loader waits for another load of the cache: otherwise forty loaders that need
forty others would wait forever for their own slots. See `loader_slots` for the limits.
"""

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, copy_context
from functools import partial
from types import FunctionType
from typing import Any, Final, TypeVar, cast

from anyio import CapacityLimiter, to_thread

from magnus_cache._engine.runtime.loader_slots import MOST, MOST_OF_ALL, LoaderSlots

__all__ = ["JOB", "Job", "LoaderThreads", "is_async"]

T = TypeVar("T")


class Job:
    """A loader in a thread."""

    __slots__ = ("_left", "_loop", "_namespace", "_slots")

    def __init__(self, slots: LoaderSlots, loop: asyncio.AbstractEventLoop, namespace: str) -> None:
        self._slots = slots
        self._loop = loop
        self._namespace = namespace
        self._left = [None]

    def begin(self) -> bool:
        """Return whether this is the first call: the thread calls it, and so does a caller that gives up earlier."""
        try:
            self._left.pop()
        except IndexError:
            return False
        return True

    @property
    def begun(self) -> bool:
        """Whether `begin` was called."""
        return not self._left

    def end(self) -> None:
        """Release the slot; from any thread."""
        self._slots.release(self._loop, self._namespace)

    def yield_slot(self) -> None:
        """Release the slot while this loader waits; from any thread."""
        self._slots.release(self._loop, self._namespace)

    def take_slot(self) -> None:
        """Take the slot back at once: for a moment there may be more threads than slots. From any thread."""
        self._slots.acquire_now(self._loop, self._namespace)


JOB: Final[ContextVar[Job | None]] = ContextVar("magnus_cache_job", default=None)
"""The thread that the running code is part of, or that waits for it."""


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether calling this gives a coroutine: for functions, partials, and objects with async `__call__`."""
    if type(function) is FunctionType and function.__code__.co_flags & inspect.CO_COROUTINE:
        return True  # what most of them are; `inspect` takes longer to say so
    while isinstance(function, partial):
        # `inspect` unwraps partials of functions only, not of objects with an async `__call__`.
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004  # asked of its type, not whether it is callable


class LoaderThreads:
    """The threads of one cache.

    :param most: how many of one namespace run at a time, for each event loop.
    :param most_of_all: how many run at a time.
    :param run: awaits a caller's coroutine function on the loop that should run it; None for the running loop.
    """

    def __init__(
        self, most: int = MOST, most_of_all: int = MOST_OF_ALL,
        run: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]] | None = None,
    ) -> None:  # fmt: skip
        self._run = run or _here
        self.slots = LoaderSlots(most, most_of_all)

    def reset(self) -> None:
        """Start empty, as in a forked child."""
        self.slots.reset()

    def call(self, loader: Callable[[], T] | Callable[[], Awaitable[T]], namespace: str) -> Awaitable[T]:
        """Return the result of a loader, to be awaited at once: of a coroutine function, or else run in a thread.

        :raises Exception: whatever the loader raises.
        """
        if is_async(loader):
            return self._run(cast("Callable[[], Awaitable[T]]", loader))
        return self._call_in_thread(loader, namespace)

    async def _call_in_thread(self, loader: Callable[[], Any], namespace: str) -> Any:
        outer = JOB.get()
        if outer is not None:
            outer.yield_slot()
        try:
            value: Any = await self._in_thread(loader, namespace)
        finally:
            if outer is not None:
                outer.take_slot()
        # A lambda around a coroutine function does not look like one until it is called.
        return await self._run(lambda: value) if inspect.isawaitable(value) else value

    async def _in_thread(self, loader: Callable[[], Any], namespace: str) -> Any:
        job = Job(self.slots, asyncio.get_running_loop(), namespace)

        def work() -> Any:
            if not job.begin():
                return None
            JOB.set(job)  # in this call's own context
            try:
                return loader()
            finally:
                job.end()

        await self.slots.acquire(namespace)
        try:
            # Our own slots are the limit.
            unlimited = CapacityLimiter(math.inf)
            return await to_thread.run_sync(work, abandon_on_cancel=True, limiter=unlimited)
        except RuntimeError:
            if job.begun:
                raise
            # No thread can be started, at a system limit or as the interpreter ends. Then the loop has to wait.
            return copy_context().run(work)
        except BaseException:
            if job.begin():
                # Cancelled before its thread started the loader; the thread will skip it.
                job.end()
            raise


def _here(loader: Callable[[], Awaitable[T]]) -> Awaitable[T]:
    return loader()
