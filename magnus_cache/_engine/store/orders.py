"""What goes with a write of one value to Redis: how it is sent, and what is kept in memory when it is answered."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.store.records import KeyRef, Record

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["Order", "Send", "Sent"]

Send = Callable[[bytes, int, "Callable[[bool, Connection, float], bool]"], Awaitable[bool]]
"""Stores a value, given its bytes, their life in milliseconds, and the receiver of the answer."""


class Order(NamedTuple):
    """How a value is stored.

    :ivar send: stores it.
    :ivar since: the moment (see `Epochs.moment`) when the write, or the load of the value, began.
    """

    send: Send
    since: int


class Sent(NamedTuple):
    """A value on its way to Redis.

    :ivar times: its fresh-until in Redis' time, and its TTL in seconds.
    :ivar as_of: when its load or write began, in Redis' time.
    :ivar since: see `Order`.
    """

    ref: KeyRef
    placeholder: Placeholder | None
    record: Record
    times: tuple[int, float]
    since: int
    as_of: int = 0
