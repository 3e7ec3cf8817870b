"""What an answer, or its absence, means for those who asked."""

import asyncio
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from magnus_cache._engine.redis.diagnosis import refused
from magnus_cache._engine.redis.exchange import Waiter
from magnus_cache.errors import CacheError, CacheUnavailableError

__all__ = ["check_values", "error_of", "fail_waiter", "no_answer"]

_VALUE_TYPES: Final = {bytes, type(None)}


def error_of(error: Exception, command: str) -> CacheError:
    """Return the error for those who asked: Redis' refusal, or that its answer makes no sense."""
    if isinstance(error, CacheError):
        return error
    if isinstance(error, ResponseError):
        return refused(error, command)
    return CacheUnavailableError("protocol", f"Redis gave an answer to {command} that makes no sense")


def fail_waiter(waiter: Waiter, error: CacheUnavailableError) -> None:
    """Tell a waiter that no answer will come, unless it has left."""
    if not waiter.done():
        try:
            waiter.set_exception(error.again())
        except RuntimeError:
            # A future of a closed loop: its task has ended, and cannot be woken.
            if not isinstance(waiter, asyncio.Future) or not waiter.get_loop().is_closed():
                raise


def check_values(reply: list[Any], count: int) -> None:
    """Check that a list answers an MGET of so many keys.

    :raises RedisConnectionError: if it does not: the connection is out of step.
    """
    if len(reply) != count or not set(map(type, reply)) <= _VALUE_TYPES:
        raise no_answer()


def no_answer() -> RedisConnectionError:
    """Return the error for what is no answer to an MGET."""
    return RedisConnectionError("Protocol error: what came is no answer to MGET")
