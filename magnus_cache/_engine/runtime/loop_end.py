"""Event loops as the cache finds them: closed by hand, never closed, or about to end with the program.

`asyncio.run` cancels all tasks before it closes its loop. A loop that is closed by hand (``new_event_loop``,
``run_until_complete``, ``close``), as older code and task queues do it, leaves its tasks pending. asyncio reports each
of them when it is collected ("Task was destroyed but it is pending!"), and the collector closes their coroutines at any
time, in any thread. So the cache ends its own tasks when their loop is closed.

A loop has no callback for closing, but it drops its timers then. The finalizer of a timer that is never due detects it.
"""

import asyncio
import atexit
import contextlib
import os
import weakref
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, TypeVar

from magnus_cache._engine.runtime.critical import section

__all__ = ["call_on_loop", "cancel", "connection_task", "end_with_loop", "loop_task"]

T = TypeVar("T")

_NEVER: Final = 1e9
"""Seconds until the timer would be due."""


def call_on_loop(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: Any) -> bool:
    """Schedule a callback on a loop, from any thread; return False if the loop is closed.

    :raises RuntimeError: for any other failure, such as a `RecursionError` of a caller deep in its stack.
    """
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise
        return False
    return True


def cancel(*futures: "asyncio.Future[Any]") -> None:
    """Cancel futures or tasks, on their own loop. If that is closed, their callbacks are not called any more.

    :raises RuntimeError: for anything else that goes wrong.
    """
    for future in futures:
        try:
            future.cancel()
        except RuntimeError:
            if not future.get_loop().is_closed():
                raise


class _LoopEnd:
    """The timer of one loop, which holds the only reference: when the loop drops its timers, this is finalized."""

    __slots__ = ("__weakref__", "_kept", "_process", "connections", "tasks")

    def __init__(self) -> None:
        self._process = os.getpid()
        self._kept: list[asyncio.Task[Any]] = []
        self.connections: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self.tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    def __call__(self) -> None:
        """Schedule the timer again, on a loop whose clock jumps to the next timer."""
        asyncio.get_running_loop().call_later(_NEVER, self, context=Context())

    def __del__(self) -> None:
        self.end()

    def end(self) -> None:
        """End the tasks, unless the loop still runs (a test may cancel all timers) or belongs to a parent process."""
        if self._process == os.getpid():
            # Connections first: then the other tasks record what they would send, for another connection.
            for task in self._all():
                _end(task)

    def keep(self) -> None:
        """Keep the tasks of a loop that runs while the interpreter shuts down, in a thread that stops where it is.

        That thread never releases its loop, and so this timer. All other references to the tasks may disappear. Then
        the collector would end the tasks when hardly anything works any more, and each would report its open
        connection.
        """
        self._kept = [task for task in self._all() if task.get_loop().is_running()]

    def _all(self) -> "list[asyncio.Task[Any]]":
        while True:
            # Another thread, in which the loop runs, may add one meanwhile.
            with contextlib.suppress(RuntimeError):
                return [*self.connections, *self.tasks]


def _end(task: "asyncio.Task[Any]") -> None:
    loop = task.get_loop()
    if task.done() or loop.is_running():
        return
    if not loop.is_closed():
        # It could run again, and wake a task whose coroutine has ended.
        task.add_done_callback(_looked_at)
    # A user's loader may await in its `finally`, or fail there. The collector would report it.
    with contextlib.suppress(Exception):
        task.get_coro().close()


def _looked_at(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()


_ends: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, "weakref.ref[_LoopEnd]"]] = (
    weakref.WeakKeyDictionary()
)
_registered = False


def loop_task(coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Start a task on the running loop, which ends with that, see `end_with_loop`."""
    task = asyncio.get_running_loop().create_task(coroutine)
    end_with_loop(task)
    return task


def connection_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], name: str, ended: Callable[[], object] = int
) -> "asyncio.Task[T]":
    """Start a task that holds a connection. It ends with its loop, before the tasks that use it.

    :param ended: called when the task is done, also if that was before its first step.
    """
    # In its own context: a connection outlives the call and the load that happened to start it.
    context = Context()
    task = loop.create_task(coroutine, name=name, context=context)
    task.add_done_callback(lambda _: ended(), context=context)
    end_with_loop(task, connection=True)
    return task


def end_with_loop(task: "asyncio.Task[Any]", *, connection: bool = False) -> None:
    """Close a task's coroutine silently if its loop is closed before the task is done.

    Also at the end of the program, if the loop does not run then. Call this on the loop.

    :param connection: whether it holds a connection that other tasks use.
    """
    # asyncio's own switch against the message about pending tasks; without it, only the message is different.
    with contextlib.suppress(AttributeError):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    end = _end_of(task.get_loop())
    (end.connections if connection else end.tasks).add(task)


def _end_of(loop: asyncio.AbstractEventLoop) -> _LoopEnd:
    global _registered
    known = _ends.get(loop)
    end = known() if known is not None else None
    if end is None:
        end = _LoopEnd()
        # Its own context: the timer outlives the call that happened to start it.
        loop.call_later(_NEVER, end, context=Context())
        with section():
            _ends[loop] = weakref.ref(end)
            if not _registered:
                # With the first one, not at import: importing this package has no side effect.
                atexit.register(_at_exit)
                _registered = True
    return end


def _at_exit() -> None:
    with section():
        ends = [known() for known in _ends.values()]
    for end in ends:
        if end is not None:
            end.end()
            end.keep()
