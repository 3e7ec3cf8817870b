"""Asking Redis once more where a connection was cut."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from magnus_cache.errors import CacheUnavailableError

__all__ = ["ATTEMPTS", "ask_twice"]

ATTEMPTS: Final = 2
"""A read whose connection was cut is asked once more: a peer that hung up is often back at once."""

T = TypeVar("T")


async def ask_twice(ask: Callable[[], Awaitable[T]]) -> T:
    """Return what Redis answers, asked a second time if the connection was cut.

    :raises CacheUnavailableError: when that fails as well.
    """
    try:
        return await ask()
    except CacheUnavailableError as error:
        if error.reason != "lost":
            raise
    return await ask()
