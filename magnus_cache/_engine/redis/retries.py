"""One retry of a request whose connection was lost."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from magnus_cache.errors import CacheUnavailableError

__all__ = ["ATTEMPTS", "ask_again", "ask_twice"]

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


async def ask_again(
    attempt: Callable[[], Awaitable[None]], error: CacheUnavailableError
) -> CacheUnavailableError | None:  # fmt: skip
    """Repeat an attempt whose connection was cut, as `ask_twice`; return the error that remains, or None."""
    if error.reason != "lost":
        return error
    try:
        await attempt()
    except CacheUnavailableError as second:
        return second
    return None
