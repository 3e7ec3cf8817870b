"""The operations of both managers on the cache as a whole: health checks and closing."""

import sys
from functools import partial
from types import TracebackType
from typing import Final, Self

from magnus_cache._engine.api.base import CacheBase
from magnus_cache._engine.coordination.health import Health, check_health, unhealthy
from magnus_cache._engine.runtime.closing import Ending
from magnus_cache._engine.runtime.loops import async_library

__all__ = ["AsyncLife", "BlockingLife"]

_SPARE: Final = 0.25
"""Seconds for a call to reach the background loop and return."""


class AsyncLife(CacheBase):
    """Health and closing of a cache, for coroutines."""

    async def ping(self) -> Health:
        """Ask Redis now, for `op_timeout` at most; return its latency, version and more, or why it does not answer.

        This never raises, not even on a closed cache: the result has the problem.
        """
        return await check_health(self._state)

    async def aclose(self) -> None:
        """Disconnect, and stop everything that this cache started. Idempotent; later calls raise `CacheClosedError`."""
        await self._state.aclose()

    async def close(self) -> None:
        """Close the cache, as `aclose` does."""
        await self.aclose()

    async def __aenter__(self) -> Self:
        self._state.check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class BlockingLife(CacheBase):
    """Health and closing of a cache, for blocking code."""

    @property
    def redis_available(self) -> bool:
        """Whether Redis answered when it was last asked.

        Before the first call, this asks Redis now, for `op_timeout` at most. In a thread that runs an event loop, which
        must not wait, the result is then False.
        """
        state = self._state
        if state.endpoint is not None and state.breaker.unknown and self._may_ask():
            self.ping()
        return state.redis_available

    def _may_ask(self) -> bool:
        state = self._state
        if state.closed or sys.is_finalizing() or state.portal.engaged or state.portal.inside:
            return False
        return async_library() is None

    def ping(self) -> Health:
        """Ask Redis now, for `op_timeout` at most; return its latency, version and more, or why it does not answer.

        This never raises, not even on a closed cache: the result has the problem.
        """
        state = self._state
        try:
            state.check_open()
            # The exchange has its own timeout. This longer one is for a background loop that is stalled.
            return state.portal.call(partial(check_health, state), timeout=state.settings.op_timeout + _SPARE)
        except Exception as error:  # noqa: BLE001  # any error is the answer
            return unhealthy(error, state)

    def close(self) -> Ending:
        """Disconnect, and stop everything that this cache started. Idempotent; later calls raise `CacheClosedError`.

        In a coroutine, `await` the result: the connection of the running event loop ends at the loop's next turn.
        """
        return self._state.close()

    async def aclose(self) -> None:
        """Close the cache without blocking the running event loop."""
        await self._state.aclose()

    def __enter__(self) -> Self:
        self._state.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
