"""Two background loops for blocking callers: one for the connection, one for their coroutine functions.

A loader is user code, and may block its loop for seconds. On the loop of the connection, it would block the reads of
all threads.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from typing import Any, TypeVar

from magnus_cache._engine.runtime.loop_end import call_on_loop
from magnus_cache._engine.runtime.portal import CLOSE_TIMEOUT, Portal
from magnus_cache._engine.runtime.portal_thread import deadlock_error
from magnus_cache._engine.runtime.portal_waiter import Waiter
from magnus_cache.errors import CacheClosedError

__all__ = ["BackgroundLoops"]

T = TypeVar("T")


class BackgroundLoops(Portal):
    """The loop of the connection, as a `Portal`, and the loop of the loaders; the first call of each starts it.

    Code on either loop must not block on the connection's loop.

    :ivar loaders: the loop of the loaders.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loaders = Portal()

    def call(self, fn: Callable[..., Awaitable[T]], *args: Any, timeout: float | None = None) -> T:
        """Run ``await fn(*args)`` on the connection's loop; see `Portal.call`.

        :raises TimeoutError: as there.
        :raises CacheDeadlockError: on either loop's own thread.
        :raises CacheClosedError: as there.
        """
        self._check_loaders()
        return super().call(fn, *args, timeout=timeout)

    def request(self, start: Callable[[Waiter[T]], object], timeout: float | None = None) -> T:
        """Run ``start(waiter)`` on the connection's loop; see `Portal.request`.

        :raises TimeoutError: as there.
        :raises CacheDeadlockError: on either loop's own thread.
        :raises CacheClosedError: as there.
        """
        self._check_loaders()
        return super().request(start, timeout)

    def _check_loaders(self) -> None:
        if self.loaders.inside:
            raise deadlock_error()

    @property
    def started(self) -> bool:
        """Whether one of the two threads was ever started, in this process."""
        return super().started or self.loaders.started

    @property
    def inside(self) -> bool:
        """Whether this thread runs one of the two loops."""
        return super().inside or self.loaders.inside

    @property
    def engaged(self) -> bool:
        """Whether this thread must not wait, because it has interrupted a step of the cache that others wait for."""
        return super().engaged or self.loaders.engaged

    def run(self, loader: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        """Return the result of a caller's coroutine function, to be awaited at once.

        It runs on the loaders' loop if the running one is the connection's.

        :raises Exception: whatever the function raises.
        """
        # Else the function's own awaitable, without a coroutine around it: each step of a loader would pass that, too.
        session = self._session
        is_ours = session is not None and session.loop is asyncio.get_running_loop()
        return self._run_away(loader) if is_ours else loader()

    async def _run_away(self, loader: Callable[[], Awaitable[T]]) -> T:
        away = _Away(loader)
        self.loaders.submit(away.begin)
        try:
            error, value = await away.answer
        except asyncio.CancelledError:
            with contextlib.suppress(CacheClosedError):
                self.loaders.submit(away.cancel)
            raise
        if error is None:
            return value  # type: ignore[no-any-return]  # what the loader returned
        try:
            raise error
        finally:
            # The traceback refers to this frame: the two would keep each other alive.
            del error

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close both loops; see `Portal.close`.

        :raises TimeoutError: as there.
        :raises CacheDeadlockError: on either loop's own thread.
        """
        self.check_thread()
        try:
            self.loaders.close(timeout)
        finally:
            super().close(timeout)

    async def aclose(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close both loops without blocking the running one; see `Portal.aclose`.

        :raises TimeoutError: as there.
        :raises CacheDeadlockError: on either loop's own thread.
        """
        self.check_thread()
        try:
            await self.loaders.aclose(timeout)
        finally:
            await super().aclose(timeout)

    def end(self) -> None:
        """Start closing both loops, without waiting. Idempotent."""
        self.loaders.end()
        super().end()

    def reset(self) -> None:
        """Forget both threads, in a forked child."""
        self.loaders.reset()
        super().reset()


class _Away:
    """A coroutine function that runs on another loop than the one that waits for it.

    :ivar answer: a future of its error, or None, and its value.
    """

    def __init__(self, loader: Callable[[], Awaitable[Any]]) -> None:
        self._loader = loader
        self._loop = asyncio.get_running_loop()
        self._context: Context = copy_context()
        self._task: asyncio.Task[None] | None = None
        self.answer: asyncio.Future[tuple[BaseException | None, Any]] = self._loop.create_future()

    # -- on the loaders' loop ---------------------------------------------------------------------------------

    def begin(self) -> None:
        if not self.answer.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), context=self._context)
            # Also for a task that is cancelled before its first step, by the end of the loop.
            self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            value = await self._loader()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # for the caller: a SystemExit must not end this loop
            self._tell((error, None))
        else:
            self._tell((None, value))

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._tell((asyncio.CancelledError(), None))

    def _tell(self, outcome: tuple[BaseException | None, Any]) -> None:
        # No task waits on a closed loop.
        call_on_loop(self._loop, self._answer, outcome)

    # -- on the loop that waits -------------------------------------------------------------------------------

    def _answer(self, outcome: tuple[BaseException | None, Any]) -> None:
        if not self.answer.done():
            self.answer.set_result(outcome)
