"""Coroutine functions of blocking callers: on the background loop for them, or on a loop of the caller's thread."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from magnus_cache._engine.runtime.portal import NoThreadError, Portal
from magnus_cache._engine.runtime.portal_thread import check_files
from magnus_cache._engine.runtime.waiters import running_loop

__all__ = ["wait_for"]

T = TypeVar("T")


def wait_for(loaders: Portal, function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Return what ``await function(*args)`` returns.

    :param loaders: the background loop; where it cannot be started, this thread makes a loop for the one call.
    :raises NoThreadError: if it cannot either, as it runs a loop already or no file can be opened.
    :raises Exception: whatever the function raises.
    """
    try:
        return loaders.call(function, *args)
    except NoThreadError as error:
        # It was not called yet.
        return _run_here(function, args, error)


def _run_here(function: Callable[..., Awaitable[T]], args: tuple[Any, ...], error: NoThreadError) -> T:
    if running_loop() is not None:
        raise error
    try:
        check_files()
    except OSError:
        raise error from None
    with asyncio.Runner() as runner:
        return runner.run(_awaited(function, args))


async def _awaited(function: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> T:
    return await function(*args)
