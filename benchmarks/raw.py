"""The ceiling: the least a client in Python can do between a caller and Redis.

One connection, an `asyncio.Protocol`, hiredis for both directions, all reads of one turn of the loop sent as one
write of MGETs. No timeouts, no reconnecting, no invalidation: a yardstick, not a client.
"""

import asyncio
from collections import deque
from types import TracebackType
from typing import Final, Self, cast

import hiredis

__all__ = ["RawClient"]

_BATCH: Final = 256
"""Keys in one MGET; larger ones make the first callers wait for the last."""

_Asked = tuple[str, "asyncio.Future[bytes | None]"]


class RawClient(asyncio.Protocol):
    """Reads values by way of an async context: ``async with await RawClient.connect(host, port) as client``."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._wanted: list[_Asked] = []
        self._owed: deque[list[_Asked]] = deque()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(cls, host: str, port: int) -> Self:
        """Return a client with its connection up."""
        _, client = await asyncio.get_running_loop().create_connection(cls, host, port)
        return client

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
        self._transport.writelines(_packed(batch) for batch in batches)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport over from asyncio."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand the replies out, in the order of the requests."""
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, Exception):
                raise reply
            for (_, future), value in zip(self._owed.popleft(), reply, strict=True):
                if not future.done():
                    future.set_result(value)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whoever still waits."""
        for _, future in [*self._wanted, *(asked for batch in self._owed for asked in batch)]:
            if not future.done():
                future.set_exception(exc or ConnectionError("the connection was closed"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._transport is not None
        self._transport.close()


def _packed(batch: list[_Asked]) -> bytes:
    words = ("MGET", *(key for key, _ in batch))
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # typed as if a command were one word
    return packed
