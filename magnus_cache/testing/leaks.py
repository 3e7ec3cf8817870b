"""A check that a block of code leaves nothing behind: no thread, task, open file or socket.

Only what exists after the block and did not exist before it counts. What needs a moment to end gets one.
"""

import asyncio
import contextlib
import gc
import os
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from magnus_cache._engine.runtime.clock import monotonic

__all__ = ["LeakCheck", "no_leaks"]

_STEP: Final = 0.005
_FOLDERS: Final = ("/proc/self/fd", "/dev/fd")
_OF_THE_LOOP: Final = ("asyncio_", "uvloop_", "AnyIO worker thread")
"""Idle worker threads, which a running event loop keeps for later use. They end with the loop."""

_Identity = tuple[int, int, int]
"""An open file's kind, device and inode. Its descriptor is not enough: it is used again."""


def no_leaks(patience: float = 5.0, ignore_threads: Collection[str] | None = None) -> "LeakCheck":
    """Return a context manager that raises `AssertionError` if its block leaves something behind, and names it.

    Write ``with no_leaks():`` in functions, and ``async with no_leaks():`` in coroutines. The latter also checks the
    tasks of the running loop. The check waits for what is about to end, at most `patience` in all. It does not check a
    block that raises. It sees open files and sockets on Linux and macOS.

    :param patience: seconds.
    :param ignore_threads: threads whose names begin with one of these do not count. None ignores the worker threads of
        the running loop in coroutines, and no thread elsewhere.
    """
    return LeakCheck(patience, ignore_threads)


@dataclass(frozen=True)
class _Present:
    threads: frozenset[threading.Thread]
    tasks: frozenset[asyncio.Task[Any]]
    files: dict[int, _Identity]


class LeakCheck:
    """What `no_leaks` returns: compares what exists with what existed when the block began."""

    def __init__(self, patience: float, ignore_threads: Collection[str] | None) -> None:
        self._patience = patience
        self._ignored = ignore_threads
        self._before: _Present | None = None

    def left(self) -> list[str]:
        """Return a description of each thing that exists now and did not when the block began.

        :raises RuntimeError: outside the block.
        """
        if self._before is None:
            raise RuntimeError("the block of no_leaks has not begun")
        return [
            *(f"thread {thread.name!r}" for thread in _threads() - self._before.threads if not self._ignores(thread)),
            *(f"task {task.get_name()!r}: {task.get_coro()!r}" for task in _tasks() - self._before.tasks),
            *_new_files(self._before.files),
        ]

    def _ignores(self, thread: threading.Thread) -> bool:
        ignored = (_OF_THE_LOOP if _in_coroutine() else ()) if self._ignored is None else self._ignored
        return thread.name.startswith(tuple(ignored))

    def _begin(self) -> None:
        # Objects that are collected during the block would hide as many leaks.
        gc.collect()
        self._before = _Present(frozenset(_threads()), frozenset(_tasks()), _files())

    def _end(self, left: list[str]) -> None:
        self._before = None
        if left:
            raise AssertionError(f"left behind: {'; '.join(sorted(left))}")

    def __enter__(self) -> Self:
        if _in_coroutine():
            raise RuntimeError("in a coroutine write: async with no_leaks()")
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            gc.collect()
            deadline = monotonic() + self._patience
            while (left := self.left()) and monotonic() < deadline:
                time.sleep(_STEP)
            self._end(left)

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            gc.collect()
            deadline = monotonic() + self._patience
            while (left := self.left()) and monotonic() < deadline:  # noqa: ASYNC110  # no event says when a thread ends
                await asyncio.sleep(_STEP)
            self._end(left)


def _in_coroutine() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _threads() -> set[threading.Thread]:
    return set(threading.enumerate())


def _tasks() -> set[asyncio.Task[Any]]:
    if not _in_coroutine():
        return set()
    # The current task exists before and after the block, but with fixtures they may be two tasks.
    return asyncio.all_tasks() - {asyncio.current_task()}


def _files() -> dict[int, _Identity]:
    """Return the open files by descriptor; an empty dict if the system does not list them."""
    # libuv keeps one open to the null device, as a reserve for when descriptors run out.
    null = _identity(os.stat(os.devnull))
    found: dict[int, _Identity] = {}
    folder = next((folder for folder in _FOLDERS if os.path.isdir(folder)), None)
    for name in os.listdir(folder) if folder else ():
        # The descriptor of the listing itself is closed by now, and another thread may close others.
        with contextlib.suppress(OSError):
            identity = _identity(os.fstat(int(name)))
            if identity != null:
                found[int(name)] = identity
    return found


def _identity(status: os.stat_result) -> _Identity:
    return stat.S_IFMT(status.st_mode), status.st_dev, status.st_ino


def _new_files(before: dict[int, _Identity]) -> list[str]:
    files = _files()
    # Counted, because one file may be open many times, and descriptors may have been exchanged.
    new = Counter(files.values()) - Counter(before.values())
    found: list[str] = []
    for descriptor, identity in sorted(files.items(), key=lambda item: before.get(item[0]) == item[1]):
        if new[identity] > 0:
            new[identity] -= 1
            found.append(_described(descriptor))
    return found


def _described(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return f"socket {_ends(descriptor)} (descriptor {descriptor})"
        return f"file {Path(f'/proc/self/fd/{descriptor}').readlink()} (descriptor {descriptor})"
    return f"file (descriptor {descriptor})"


def _ends(descriptor: int) -> str:
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        own = copy.getsockname()
        try:
            return f"{own} to {copy.getpeername()}"
        except OSError:
            return f"{own}"
