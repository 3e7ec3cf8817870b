"""Coroutine functions of blocking callers: on the background loop for them, or on a loop of the caller's thread."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
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
    begun = False

    async def begin() -> T:
        nonlocal begun
        begun = True
        return await function(*args)

    try:
        return loaders.call(begin)
    except NoThreadError as error:
        if begun:
            # The function's own, from a blocking call to a cache within it.
            raise
        return _run_here(begin, error)


def _run_here(begin: Callable[[], Coroutine[Any, Any, T]], error: NoThreadError) -> T:
    if running_loop() is not None:
        raise error
    try:
        check_files()
    except OSError:
        raise error from None
    # With a factory: without one, a runner takes away the loop that the program has set for this thread.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(begin())
