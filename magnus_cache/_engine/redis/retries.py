"""One retry of a request whose connection was lost."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from magnus_cache.errors import CacheUnavailableError

__all__ = ["ATTEMPTS", "ask_twice"]

ATTEMPTS: Final = 2
"""A read is retried once if its connection was lost: a server that closed a connection is often back at once."""

T = TypeVar("T")


async def ask_twice(ask: Callable[[], Awaitable[T]]) -> T:
    """Return the answer of Redis, with one retry if the connection was lost.

    :raises CacheUnavailableError: when the retry fails as well.
    """
    try:
        return await ask()
    except CacheUnavailableError as error:
        if error.reason != "lost":
            raise
    return await ask()
