"""Running a blocking caller's coroutine function: on the background loop, or on a new loop in the caller's thread."""

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

    :param loaders: the background loop. If it cannot be started, this thread runs a loop for this one call.
    :raises NoThreadError: if this thread cannot run one, because it runs a loop already or can open no file.
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
            # Raised by the function itself, from a blocking call to a cache.
            raise
        return _run_here(begin, error)


def _run_here(begin: Callable[[], Coroutine[Any, Any, T]], error: NoThreadError) -> T:
    if running_loop() is not None:
        raise error
    try:
        check_files()
    except OSError:
        raise error from None
    # With a factory: without one, a runner removes the loop that the program has set for this thread.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(begin())
