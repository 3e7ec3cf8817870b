"""Loaders of the tests that wait at a gate, and errors that loaders fail with."""

import asyncio
import threading
from typing import Any, Self

from tests.support.wait import wait_until_async


class SourceError(Exception):
    """The source failed, which is no fault of the cache."""


class PickyError(LookupError):
    """An error that is not made of just anything."""

    def __new__(cls, code: Any = None) -> Self:
        if not isinstance(code, int):
            raise TypeError("code must be int")
        return super().__new__(cls, code)

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")


class Gated:
    """A loader whose calls all wait for `open`; counts them and returns the number of each."""

    def __init__(self) -> None:
        self.calls = 0
        self.open = asyncio.Event()

    async def __call__(self) -> int:
        self.calls += 1
        number = self.calls
        await self.open.wait()
        return number


class Slow:
    """A loader whose calls a test finishes one by one, on whatever loop they run; returns the number of its call."""

    def __init__(self) -> None:
        self.calls = 0
        self._lock = threading.Lock()
        self._finished: set[int] = set()
        self._waiting: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Event]] = {}

    async def __call__(self) -> int:
        gate = asyncio.Event()
        with self._lock:
            self.calls += 1
            number = self.calls
            if number in self._finished:
                return number
            self._waiting[number] = (asyncio.get_running_loop(), gate)
        await gate.wait()
        return number

    async def begun(self, number: int = 1) -> None:
        """Wait until so many calls have begun."""
        await wait_until_async(lambda: self.calls >= number)

    def finish(self, number: int = 1) -> None:
        """Let one call return, also one that has not begun yet."""
        with self._lock:
            self._finished.add(number)
            loop, gate = self._waiting.get(number, (None, None))
        if loop is not None and gate is not None:
            loop.call_soon_threadsafe(gate.set)
