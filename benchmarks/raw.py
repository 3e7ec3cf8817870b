"""The ceiling: the least a client in Python can do between a caller and Redis.

One connection, an `asyncio.Protocol`, hiredis for both directions, all reads of one turn of the loop sent as one
write of MGETs. No timeouts, no reconnecting, no invalidation: a yardstick, not a client. The same for PUBLISH.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, cast

import hiredis

__all__ = ["RawClient", "RawPublisher", "RawSubscriber", "packed"]

_BATCH: Final = 256
"""Keys in one MGET; larger ones make the first callers wait for the last."""

_Asked = tuple[str, "asyncio.Future[bytes | None]"]


class _RawConnection(asyncio.Protocol):
    """A connection, and an async context: ``async with await Kind.connect(host, port) as connection``."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(cls, host: str, port: int) -> Self:
        """Return one that is up."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport over from asyncio."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand the replies out, in the order in which they come."""
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, Exception):
                raise reply
            self._received(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whoever still waits."""
        for future in self._waiting():
            if not future.done():
                future.set_exception(exc or ConnectionError("the connection was closed"))

    def _received(self, reply: Any) -> None:
        raise NotImplementedError

    def _waiting(self) -> "list[asyncio.Future[Any]]":
        return []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._transport is not None
        self._transport.close()


class RawClient(_RawConnection):
    """Reads values."""

    def __init__(self) -> None:
        super().__init__()
        self._wanted: list[_Asked] = []
        self._owed: deque[list[_Asked]] = deque()

    def get(self, key: str) -> "asyncio.Future[bytes | None]":
        """Return a future of a value's bytes."""
        future: asyncio.Future[bytes | None] = self._loop.create_future()
        if not self._wanted:
            self._loop.call_soon(self._send)
        self._wanted.append((key, future))
        return future

    def _send(self) -> None:
        assert self._transport is not None
        wanted, self._wanted = self._wanted, []
        batches = [wanted[start : start + _BATCH] for start in range(0, len(wanted), _BATCH)]
        self._owed.extend(batches)
        self._transport.writelines(packed("MGET", *(key for key, _ in batch)) for batch in batches)

    def _received(self, reply: Any) -> None:
        for (_, future), value in zip(self._owed.popleft(), reply, strict=True):
            if not future.done():
                future.set_result(value)

    def _waiting(self) -> "list[asyncio.Future[Any]]":
        return [future for _, future in [*self._wanted, *(asked for batch in self._owed for asked in batch)]]


class RawPublisher(_RawConnection):
    """Publishes, one message at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: asyncio.Future[int] | None = None

    def publish(self, channel: str, message: str) -> "asyncio.Future[int]":
        """Return a future of how many received the message."""
        assert self._transport is not None
        self._asked = self._loop.create_future()
        self._transport.write(packed("PUBLISH", channel, message))
        return self._asked

    def _received(self, reply: Any) -> None:
        assert self._asked is not None
        self._asked.set_result(reply)

    def _waiting(self) -> "list[asyncio.Future[Any]]":
        return [] if self._asked is None else [self._asked]


class RawSubscriber(_RawConnection):
    """Listens to one channel."""

    def __init__(self) -> None:
        super().__init__()
        self._heard: Callable[[], None] | None = None
        self._subscribed: asyncio.Future[None] = self._loop.create_future()

    async def subscribe(self, channel: str, heard: Callable[[], None]) -> None:
        """Return once the channel is listened to; from then on, `heard` is called with every message."""
        assert self._transport is not None
        self._transport.write(packed("SUBSCRIBE", channel))
        await self._subscribed
        self._heard = heard

    def _received(self, reply: Any) -> None:
        if self._heard is not None:
            self._heard()
        else:
            self._subscribed.set_result(None)

    def _waiting(self) -> "list[asyncio.Future[Any]]":
        return [self._subscribed]


def packed(*words: bytes | str | int) -> bytes:
    """Return a command in the protocol of Redis."""
    command: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # typed as if a command were one word
    return command
