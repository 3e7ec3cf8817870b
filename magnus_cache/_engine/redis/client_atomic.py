"""The operations of the client that read a value and write it in one step of the server."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from magnus_cache._engine.keys.names import lease_name
from magnus_cache._engine.redis import replies, scripts_atomic
from magnus_cache._engine.redis.client_many import ManyKeys
from magnus_cache._engine.redis.commands import Command
from magnus_cache._engine.redis.exchange import Connection, Receive

__all__ = ["AtomicKeys", "Attempt", "Increment", "Swap"]


class Increment(NamedTuple):
    """A change of a counter."""

    reject: bytes
    """The header of a stored value that counts as nothing; empty for none."""
    created: bytes
    """The value to store if there is none; empty to store nothing then."""
    milliseconds: int
    """The life of that value in Redis."""
    lowest: int
    """The lowest epoch of a valid value."""
    delta: int
    version: int
    """The version that the value gets if it is there."""


class Swap(NamedTuple):
    """A write in place of another value."""

    expected: bytes
    """The header of the value that may be replaced; empty for none."""
    raw: bytes
    milliseconds: int
    absent: bool
    """Whether there may be no value."""


class Attempt(NamedTuple):
    """The answer to a `Swap` or an `Increment`."""

    done: bool
    """Whether the value was written."""
    raw: bytes | None
    """The value that is stored now; None for none, and after a `Swap` that is done."""


class AtomicKeys(ManyKeys):
    """The operations of a `Client` that write what depends on the value that is there."""

    def swap(self, key: bytes, request: Swap, receive: Receive[Attempt]) -> Awaitable[Any]:
        """Store a value in place of another one and void its lease; to be awaited for what `receive` makes of it.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        command = self._voiding(key, partial(_swap, request))
        return self._wire(key).execute(command, partial(_attempted, receive, None))

    def increment(self, key: bytes, request: Increment, receive: Receive[Attempt]) -> Awaitable[Any]:
        """Change a counter and void its lease; to be awaited for what `receive` makes of it.

        It is sent once. After an error that is no refusal, the server may have counted or not.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        command = self._voiding(key, partial(_increment, request))
        return self._wire(key).execute(command, partial(_attempted, receive, request.created))

    def _voiding(self, key: bytes, pack: Callable[[Sequence[bytes]], Command]) -> Command:
        """Return the command that writes a value and voids its lease.

        :param pack: packs it, given the name of the value, and that of the lease if the command itself is to void it.
        """
        return pack((key, lease_name(key, self._database)))


def _swap(request: Swap, keys: Sequence[bytes]) -> Command:
    return scripts_atomic.swap(keys, request.expected, request.raw, request.milliseconds, absent=request.absent)


def _increment(request: Increment, keys: Sequence[bytes]) -> Command:
    created, change = (request.created, request.milliseconds), (request.lowest, request.delta, request.version)
    return scripts_atomic.increment(keys, request.reject, created, change)


def _attempted(
    receive: Receive[Attempt], created: bytes | None, reply: Any, connection: Connection, sent: float
) -> Any:
    """Take the answer of both scripts.

    :raises CacheUnavailableError: for any other reply.
    """
    done, raw = reply if type(reply) is list and len(reply) == 2 else (None, None)
    if raw is not None and type(raw) is not bytes:
        raise replies.nonsense("a value is expected")
    if replies.yes(done):
        return receive(Attempt(True, created if raw is None else raw), connection, sent)
    return receive(Attempt(False, raw), connection, sent)
