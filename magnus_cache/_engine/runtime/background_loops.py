"""Two background loops for blocking callers: one for the connection, one for their coroutine functions.

A loader is somebody else's code, and may hold up its loop for seconds. On the loop of the connection, it would hold up
every thread's read with it.
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
    """The loop of the connection, as a `Portal`, and the one of the loaders; each is started by its first call.

    Nothing that runs on either may block on the first.

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
        """Whether there was ever one of the two threads, in this process."""
        return super().started or self.loaders.started

    @property
    def inside(self) -> bool:
        """Whether this is one of the two loops' own thread."""
        return super().inside or self.loaders.inside

    @property
    def engaged(self) -> bool:
        """Whether this thread must not wait, as it has interrupted a step of the cache that others wait for."""
        return super().engaged or self.loaders.engaged

    async def run(self, loader: Callable[[], Awaitable[T]]) -> T:
        """Await a coroutine function of a caller's: on the loaders' loop, if this is the connection's.

        :raises Exception: whatever it raises.
        """
        if asyncio.get_running_loop() is not self.loop:
            return await loader()
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
        """Do what `Portal.close` does, for both loops.

        :raises TimeoutError: as there.
        :raises CacheDeadlockError: on either loop's own thread.
        """
        self.check_thread()
        try:
            self.loaders.close(timeout)
        finally:
            super().close(timeout)

    async def aclose(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Do what `Portal.aclose` does, for both loops.

        :raises TimeoutError: as there.
        :raises CacheDeadlockError: on either loop's own thread.
        """
        self.check_thread()
        try:
            await self.loaders.aclose(timeout)
        finally:
            await super().aclose(timeout)

    def end(self) -> None:
        """Begin to do what `close` does, without waiting. Idempotent."""
        self.loaders.end()
        super().end()

    def reset(self) -> None:
        """Forget both threads, in a forked child."""
        self.loaders.reset()
        super().reset()


class _Away:
    """A coroutine function that runs on another loop than the one that waits for it.

    :ivar answer: its error, if it raised one, and its value.
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
        except BaseException as error:  # noqa: BLE001  # the caller's: a SystemExit is not meant for this loop
            self._tell((error, None))
        else:
            self._tell((None, value))

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._tell((asyncio.CancelledError(), None))

    def _tell(self, outcome: tuple[BaseException | None, Any]) -> None:
        # On a closed loop nobody waits.
        call_on_loop(self._loop, self._answer, outcome)

    # -- on the loop that waits -------------------------------------------------------------------------------

    def _answer(self, outcome: tuple[BaseException | None, Any]) -> None:
        if not self.answer.done():
            self.answer.set_result(outcome)
