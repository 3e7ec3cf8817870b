"""Checks that a call runs on an asyncio event loop; otherwise an error names the alternative."""

import sys

from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache.errors import CacheLoopError

__all__ = ["async_library", "check_loop", "loop_error"]


def async_library() -> str | None:
    """Return the async library whose event loop this thread is running, such as ``"asyncio"`` or ``"trio"``, if any."""
    if running_loop() is not None:
        return "asyncio"
    # Every other library imports it before its loop runs, to announce itself.
    sniffio = sys.modules.get("sniffio")
    if sniffio is None:
        return None
    try:
        name: str = sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        return None
    return name


def loop_error() -> CacheLoopError:
    """Return the error of an awaited call in a thread that runs no event loop of asyncio."""
    library = async_library()
    if library is None:
        return CacheLoopError(
            "AsyncCacheManager needs a running asyncio event loop; await it within asyncio.run(), or use CacheManager, "
            "which blocks (`cache.sync`)"
        )
    return CacheLoopError(
        f"AsyncCacheManager runs on asyncio, and this is {library}; under {library} call the blocking manager "
        f"(`cache.sync`, a CacheManager) in a worker thread, as with {library}.to_thread.run_sync"
    )


def check_loop() -> None:
    """Check that asyncio runs here.

    :raises CacheLoopError: if it does not.
    """
    if running_loop() is None:
        raise loop_error()
