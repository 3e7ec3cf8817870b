"""A process-wide cache for one test. All functions that follow the process-wide cache use it."""

import asyncio
import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Unpack
from uuid import uuid4

from magnus_cache._engine.api.managers import AsyncCacheManager, CacheManager, get_cache_manager
from magnus_cache._engine.api.process_wide import PROCESS, Isolation, Opened
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.runtime.portal import Portal
from magnus_cache._engine.settings.keywords import SettingsOptions
from magnus_cache.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from magnus_cache._engine.redis.endpoint import Endpoint

__all__ = ["isolated"]

_LONGEST: Final = 5.0
"""Seconds for removing what a test has stored. Values that are left then expire."""


class isolated:  # noqa: N801  # called like a function; the result is a context manager of both kinds
    """Within the block, the process-wide cache is another one: empty, with its own statistics and its own prefix.

    All functions decorated through `get_cache_manager()` use it, and so do managers that were obtained there. ``with``
    gives the manager for blocking code, and ``async with`` the manager for coroutines. After the block, the cache is
    closed, its values are removed from Redis, and the earlier cache is in use again. Blocks may be nested.

    :param settings: as those of `CacheManager`. They have precedence over `configure` within the block. By default they
        are the program's settings, except for the prefix and the `recovery_path`.
    :raises CacheSettingsError: for a wrong setting, naming it and its environment variable.
    """

    def __init__(self, **settings: Unpack[SettingsOptions]) -> None:
        self._own = {"prefix": f"magnus-test-{uuid4().hex[:12]}", "recovery_path": None}
        self._settings: dict[str, Any] = {**self._own, **settings}
        self._place: Isolation | None = None

    def _enter(self) -> CacheManager:
        if self._place is not None:
            raise RuntimeError("this block has been entered already; call isolated() for each block")
        self._place = PROCESS.isolate(self._settings)
        return get_cache_manager()

    def _leave(self) -> Opened | None:
        place, self._place = self._place, None
        return None if place is None else PROCESS.restore(place)

    def __enter__(self) -> CacheManager:
        return self._enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cache = self._leave()
        if cache is None:
            return
        state = cache.engine.state
        wipes = self._wipes(state)
        servers = state.topology.known_servers()
        state.close()
        if wipes:
            portal = Portal()
            try:
                with contextlib.suppress(CacheError, TimeoutError):
                    portal.call(_wiped, state, servers, timeout=_LONGEST)
            finally:
                portal.close()

    async def __aenter__(self) -> AsyncCacheManager:
        return self._enter().aio

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cache = self._leave()
        if cache is None:
            return
        state = cache.engine.state
        wipes = self._wipes(state)
        servers = state.topology.known_servers()
        await state.aclose()
        if wipes:
            with contextlib.suppress(CacheError, TimeoutError):
                async with asyncio.timeout(_LONGEST):
                    await _wiped(state, servers)

    def _wipes(self, state: State) -> bool:
        """Whether to remove values from Redis: only under our own prefix, and only while Redis is available."""
        return state.settings.prefix == self._own["prefix"] and not state.closed and state.redis_available


async def _wiped(state: State, servers: "Iterable[Endpoint]") -> None:
    # Not at the top: redis-py takes longer to import than all the rest of this package.
    from magnus_cache._engine.redis.single_connection import wipe

    for server in servers:
        await wipe(server, state.settings.op_timeout, state.keyspace.prefix.encode())
