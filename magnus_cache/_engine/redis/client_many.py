"""The operations of the client on many keys: one command, or one transaction, for some dozens of them.

The keys of one call are of one server, or of one slot of a cluster. Each key is treated by itself: one that is refused
stops no other one.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from magnus_cache._engine.codec.envelope import HEADER_BYTES, HEADER_FIELDS
from magnus_cache._engine.redis import commands, replies, scripts_many
from magnus_cache._engine.redis.budget_keys import BucketKeys
from magnus_cache._engine.redis.exchange import IGNORED, Callback, Connection, Receive, Waiter, as_it_is
from magnus_cache._engine.redis.fleet_keys import FleetKeys, gathered
from magnus_cache._engine.redis.job_keys import JobKeys
from magnus_cache._engine.redis.spend_keys import SpendKeys
from magnus_cache._engine.redis.topology import Topology
from magnus_cache.errors import CacheError, CacheUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from magnus_cache._engine.redis.wire import Wire

__all__ = ["End", "Filled", "LeasesReply", "ManyKeys", "Renewed", "Stored"]


class Stored(NamedTuple):
    """What became of the values of one transaction."""

    refused: Sequence[int]
    """The places of those that are not stored."""
    present: bool
    """Whether all are there, right after they were stored, and the server announces their next changes."""
    places: Sequence[int] | None = None
    """The places of those that this is about; None for all. In a cluster they are answered in several parts."""


class LeasesReply(NamedTuple):
    """The answer to a request for some leases."""

    granted: Sequence[int]
    """The places of the values whose leases are granted."""
    values: Sequence[bytes | None] | Mapping[int, bytes | None]
    """What was stored when the leases were requested, by place; empty if they were taken by force."""
    places: Sequence[int] | None = None
    """The places of those that this is about; None for all. In a cluster they are answered in several parts."""
    errors: Mapping[int, CacheError] = {}
    """Why there is no answer about some of them, by place."""


class Filled(NamedTuple):
    """What became of some loaded values."""

    stored: Sequence[int]
    """The places of those that are stored. Their leases have ended."""
    refused: Sequence[int]
    """The places of those that Redis refused, although their leases are still ours. The leases of all others are not,
    and they are not stored."""
    present: bool
    """Whether all stored ones are there, right after, and the server announces their next changes."""
    places: Sequence[int] | None = None
    """The places of those that this is about; None for all. In a cluster they are answered in several parts."""


class End(NamedTuple):
    """When a value ends."""

    fresh_until: int
    """Microseconds of Redis' clock."""
    life: float
    """Seconds that it was given; 0 if that is not known."""


class Renewed(NamedTuple):
    """What became of some leases."""

    ours: Sequence[bool]
    """For each, whether it is still ours."""
    places: Sequence[int] | None = None
    """The places of those that this is about; None for all. In a cluster they are answered in several parts."""


class _Asked(NamedTuple):
    keys: int
    token: bytes
    force: bool


class ManyKeys(FleetKeys, JobKeys, BucketKeys, SpendKeys):
    """The operations of a `Client` on many keys.

    Each raises `CacheUnavailableError` at once when Redis is known to be away or the queue is full.
    """

    def __init__(self, topology: Topology, database: int) -> None:
        self._topology = topology
        self._database = database
        # Attributes, not methods: each request begins with this call.
        self._wire: Callable[[bytes], Wire] = topology.wire

    def store_many(
        self, keys: Sequence[bytes], raws: Iterable[bytes], milliseconds: Iterable[int], receive: Receive[Stored],
        waiter: Waiter,
    ) -> None:  # fmt: skip
        """Store some values, and void their leases.

        They are stored one after the other without other commands in between.
        """
        command = commands.store_many(keys, raws, milliseconds, database=self._database)
        self._wire(keys[0]).call(command, partial(_stored, len(keys), receive), waiter)

    def acquire_many(
        self, keys: Sequence[bytes], token: bytes, milliseconds: int, receive: Receive[LeasesReply], waiter: Waiter, *,
        force: bool = False,
    ) -> None:  # fmt: skip
        """Request the leases of some values, all under one token.

        A lease is granted even if a value is stored: the caller gets the value as well, and judges it.

        :param force: whether to take each lease from any holder.
        """
        command = commands.acquire_many(keys, token, milliseconds, database=self._database, force=force)
        self._wire(keys[0]).call(command, partial(_acquired, _Asked(len(keys), token, force), receive), waiter)

    def fill_many(
        self, keys: Sequence[bytes], token: bytes, raws: Iterable[bytes], milliseconds: Iterable[int],
        receive: Receive[Filled], waiter: Waiter,
    ) -> None:  # fmt: skip
        """Store each of some values if its lease still has the token, and end its lease."""
        command = scripts_many.fill_many(keys, token, raws, milliseconds, database=self._database)
        self._wire(keys[0]).call(command, partial(_filled, len(keys), receive), waiter)

    def renew_many(self, keys: Sequence[bytes], token: bytes, milliseconds: int, receive: Receive[Renewed]) -> None:
        """Renew the leases of some values; `receive` gets which are still ours."""
        command = scripts_many.renew_many(keys, token, milliseconds, database=self._database)
        self._wire(keys[0]).call(command, partial(_renewed, len(keys), receive), IGNORED)

    def release_many(
        self, keys: Sequence[bytes], token: bytes, on_result: "Callable[[Any], object]",
        on_error: "Callable[[Any], object]",
    ) -> None:  # fmt: skip
        """End the leases of some values, as far as they are still ours."""
        command = scripts_many.release_many(keys, token, database=self._database)
        self._wire(keys[0]).call(command, as_it_is, Callback(on_result, on_error))

    async def ends(self, keys: Sequence[bytes]) -> list[End | None]:
        """Return when values end, from their headers alone, read together; None for each that has none.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        return await gathered([self._wire(key).execute(commands.head(key, HEADER_BYTES), _ended) for key in keys])


# -- checks of the answers; all run inside the reader ---------------------------------------------------------------


def _stored(count: int, receive: Receive[Stored], reply: Any, connection: Connection, sent: float) -> Any:
    """Take the answer to a transaction that stores some values; each of its commands may have failed for itself."""
    leases, *done, found = _parts(reply, count + 2)
    if isinstance(leases, Exception):
        # Then loads that began before may store over all of the values.
        raise leases
    refused = [place for place, outcome in enumerate(done) if outcome != b"OK"]
    present = not isinstance(found, Exception) and replies.number(found, count) == count
    return receive(Stored(refused, present), connection, sent)


def _acquired(
    asked: _Asked, receive: Receive[LeasesReply], reply: Any, connection: Connection, sent: float
) -> Any:  # fmt: skip
    """Take the answer to a transaction that requests some leases.

    Only the tokens say what is granted: of a request that is repeated, because its answer was lost, the first one may
    have been granted.
    """
    count, token, force = asked
    parts = _parts(reply, count + (1 if force else 2))
    values = [] if force else _values(parts[0], count)
    tokens = _values(parts[-1], count)
    granted = [place for place, holder in enumerate(tokens) if holder == token]
    return receive(LeasesReply(granted, values), connection, sent)


def _filled(count: int, receive: Receive[Filled], reply: Any, connection: Connection, sent: float) -> Any:
    outcomes, found = _parts(reply, 2)
    outcomes = _numbers(outcomes, count)
    stored = [place for place, outcome in enumerate(outcomes) if outcome == scripts_many.FILLED]
    refused = [
        place
        for place, outcome in enumerate(outcomes)
        if outcome not in (scripts_many.FILLED, scripts_many.NOT_OURS)
    ]  # fmt: skip
    present = replies.number(found, count) == len(stored)
    return receive(Filled(stored, refused, present), connection, sent)


def _renewed(count: int, receive: Receive[Renewed], reply: Any, connection: Connection, sent: float) -> Any:
    return receive(Renewed([number == 1 for number in _numbers(reply, count)]), connection, sent)


def _ended(reply: Any, _connection: Connection, _sent: float) -> End | None:
    if type(reply) is not bytes or len(reply) != HEADER_BYTES:
        return None
    fields = HEADER_FIELDS.unpack(reply)
    return End(fields[3], fields[6])


def _parts(reply: Any, count: int) -> list[Any]:
    if isinstance(reply, Exception):
        raise reply
    if type(reply) is not list or len(reply) != count:
        raise CacheUnavailableError("protocol", "Redis gave an invalid answer about many keys")
    return reply


def _values(reply: Any, count: int) -> list[bytes | None]:
    values: list[bytes | None] = _parts(reply, count)
    if not {type(value) for value in values} <= {bytes, type(None)}:
        raise CacheUnavailableError("protocol", "Redis gave an invalid answer about many keys")
    return values


def _numbers(reply: Any, count: int) -> list[int]:
    return [replies.number(part, 2) for part in _parts(reply, count)]
