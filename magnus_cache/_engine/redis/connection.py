"""One connection to one Redis: how it is opened, and what its parser keeps.

A `redis.asyncio.Connection` with a parser of our own. redis-py's parsers read RESP3 push frames and drop those that
no handler is registered for; ours hands every frame to the reader, in order with the replies. Client-side caching is
sound because of this order.

Three things have no public name: redis-py's stream reader and writer, the parser within its parser, and the buffer of
asyncio's stream. Bytes are counted as they come in (see `frame_limits`), replies are handed over as they come (see
`incoming`), requests are written by those who make them (see `sender`), and a connection that is given up is reset
rather than closed. Where a release lacks such a name, what needs it is left out and everything else works: replies and
requests then go through redis-py's own coroutines, which takes longer.
"""

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import redis
from hiredis import PushNotification
from redis import exceptions as errors
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection, DefaultParser

from magnus_cache._engine.redis.commands import info
from magnus_cache._engine.redis.diagnosis import unable
from magnus_cache._engine.redis.frame_limits import Intake
from magnus_cache._engine.redis.incoming import Incoming

if TYPE_CHECKING:
    from magnus_cache._engine.redis.endpoint import Endpoint

__all__ = ["Push", "answers", "former_history", "is_orphan", "opened", "push_of", "server_identity", "writer_of"]

_READ_BYTES: Final = 256 * 1024
"""How much one read from the socket may take: large enough that a batch of 256 small values is one read."""

_AT_ONCE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER that throws away what the kernel has not delivered."""


_ANONYMOUS: Final[dict[str, Any]] = (
    {"driver_info": redis.DriverInfo(name="", lib_version="")}
    if hasattr(redis, "DriverInfo")
    else {"lib_name": None, "lib_version": None}
)
"""Has redis-py not tell the server its name and version: that takes a round trip, and redis-py reads the metadata of
its installed package for it, for each connection. The handshake tells it along with all else."""


class Push:
    """A frame that the server sent unasked, such as ``[b"invalidate", [name, ...]]``."""

    __slots__ = ("frame",)

    def __init__(self, frame: list[Any]) -> None:
        self.frame = frame


def push_of(reply: Any) -> list[Any] | None:
    """Return the frame of a push; None for a reply."""
    kind = type(reply)
    return reply.frame if kind is Push else reply if kind is PushNotification else None


class _PushParser(DefaultParser):  # type: ignore[misc, valid-type]  # the alias is chosen at run time by redis-py
    """redis-py's parser, except that push frames are returned instead of swallowed, and that its input is watched."""

    def __init__(self, intake: Intake, socket_read_size: int) -> None:
        super().__init__(socket_read_size)
        self._intake = intake

    def on_connect(self, connection: AbstractConnection) -> None:
        # Before redis-py's own part of the handshake.
        super().on_connect(connection)
        stream: Any = getattr(connection, "_reader", None)
        parser: Any = getattr(self, "_reader", None)
        # asyncio has no public name for the buffer, and redis-py relies on it as well.
        known = hasattr(stream, "_buffer") and hasattr(parser, "has_data")
        # Before a new one replaces methods of the same stream: over a UNIX socket, redis-py calls this twice.
        self._intake.detach()
        self._intake.attach(connection, Incoming(stream, parser) if known else None)

    def on_disconnect(self) -> None:
        super().on_disconnect()
        # Connection and streams refer to each other, so what was read of a frame would stay until a collection.
        self._reader = None

    async def handle_push_response(self, response: list[Any], **_: Any) -> Push:
        return Push(response)


def _build(endpoint: "Endpoint", timeout: float, intake: Intake) -> AbstractConnection:
    options: dict[str, Any] = {
        "db": endpoint.db,
        "username": endpoint.username,
        "password": endpoint.password.get_secret_value() if endpoint.password else None,
        "protocol": 3,
        "parser_class": partial(_PushParser, intake),
        # No timeout per command: redis-py's costs a timer and a task each. The wire has one for all.
        "socket_timeout": None,
        "socket_connect_timeout": timeout,
        "socket_read_size": _READ_BYTES,
        **_ANONYMOUS,
    }
    if endpoint.scheme == "unix":
        return UnixDomainSocketConnection(path=endpoint.path or "", **options)
    options |= {"host": endpoint.host, "port": endpoint.port}
    if endpoint.scheme == "tls":
        return SSLConnection(**options, **endpoint.tls)
    return Connection(**options)


class _Opened:
    """The life of one connection, for ``async with``.

    Not an async generator: those of a loop that was closed by hand are finalized by tasks on that loop.
    """

    __slots__ = ("_connection", "_intake", "_process", "_settled", "_writer")

    def __init__(self, connection: AbstractConnection, intake: Intake, settled: Callable[[], bool]) -> None:
        self._connection = connection
        self._intake = intake
        self._settled = settled
        self._process = os.getpid()
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> AbstractConnection:
        try:
            await self._connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it without
        except BaseException as error:
            await self._leave(error)
            raise
        # Without it, the end is an ordinary one.
        self._writer = writer_of(self._connection)
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave(error)

    async def _leave(self, error: BaseException | None) -> None:
        self._intake.detach()
        if isinstance(error, GeneratorExit):
            # The loop was closed under us: nothing can be awaited any more.
            self._drop()
            return
        if self._writer is not None and not self._settled():
            _abort(self._writer.transport)
        # A peer that failed must not keep us. On an orderly end the loop itself may be about to end, and a transport
        # (a TLS one takes several turns to close) must not be left to it half-closed; redis-py bounds that wait.
        with contextlib.suppress(errors.RedisError, OSError):
            await self._connection.disconnect(nowait=not isinstance(error, asyncio.CancelledError))

    def _drop(self) -> None:
        """Close the socket without the help of the loop."""
        if sys.is_finalizing():
            # Modules are gone already, and the process takes its sockets along.
            return
        writer = writer_of(self._connection)
        for name in ("_reader", "_writer"):
            # redis-py would complain of a connection that still has them.
            setattr(self._connection, name, None)
        if writer is None:
            return
        transport: Any = writer.transport
        if self._process == os.getpid():
            # Not in a forked child: the socket, and the set that the loop waits on, are its parent's as well.
            _abort(transport)
        # What an abort leaves to the next turn of the loop, which will not come. asyncio has no public name for it.
        # uvloop does it itself when it closes, and warns of the transport; from Python it cannot be done before.
        transport = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None) or transport
        with contextlib.suppress(Exception):
            transport._call_connection_lost(None)


def opened(
    endpoint: "Endpoint", timeout: float, intake: Intake, settled: Callable[[], bool] = lambda: False
) -> contextlib.AbstractAsyncContextManager[AbstractConnection]:
    """Connect, authenticate and select the database; disconnect on the way out, whatever happens.

    :param timeout: seconds for the connection and its handshake together are the caller's to bound; this one
        bounds the TCP and TLS part inside redis-py.
    :param intake: watches over what comes in, from the first byte on.
    :param settled: whether all was answered that was asked; else what is still on its way is not to arrive any more.
    """
    return _Opened(_build(endpoint, timeout, intake), intake, settled)


def writer_of(connection: AbstractConnection) -> asyncio.StreamWriter | None:
    """Return the writer of a connection; None where redis-py has it under another name."""
    writer: asyncio.StreamWriter | None = getattr(connection, "_writer", None)
    return writer


def _abort(transport: asyncio.WriteTransport) -> None:
    """End a connection by a reset.

    Closed in the ordinary way, it would have the kernel deliver what was sent for many minutes to come: a value that
    was deleted meanwhile, and a socket that stays for as long.
    """
    own = transport.get_extra_info("socket")
    # It may be closed already (a ValueError by uvloop), or no socket of the kernel's.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    # On a closed loop it cannot leave the rest to the next turn.
    with contextlib.suppress(RuntimeError):
        transport.abort()


async def answers(
    connection: AbstractConnection, *packed: bytes, unable: Callable[[Exception], object] = unable
) -> list[Any]:
    """Send some commands during the handshake, and return the answers, errors to single ones included.

    An error of a server that serves no client at all is raised, as redis-py's own error.

    :param unable: returns None for an error to one command only.
    """
    await connection.send_packed_command(list(packed), check_health=False)
    replies: list[Any] = []
    while len(replies) < len(packed):
        try:
            reply = await connection.read_response(disable_decoding=True, push_request=True)
        except errors.ResponseError as error:
            reply = error
            if unable(error) is not None:
                raise
        if not isinstance(reply, Push):
            replies.append(reply)
    return replies


def server_identity(server: Any, replication: Any) -> bytes:
    """Return what tells one server's history of writes from another's; nothing where it is not told.

    It changes when the server is started anew, and when it becomes a primary: either may have lost the latest writes.

    :param server: the reply to INFO server, an error, or None for what only tells when it became a primary.
    :param replication: the reply to INFO replication, an error, or None to tell its starts apart alone.
    """
    parts: list[str] = []
    for reply, field in ((server, b"run_id"), (replication, b"master_replid")):
        if reply is not None and (value := info(reply, field)):
            parts.append(value)
    return ":".join(parts).encode()


def former_history(replication: Any) -> bytes:
    """Return the history that a server has followed as a replica before it became a primary; empty if there is none."""
    former = info(replication, b"master_replid2") or ""
    return former.encode() if former.strip("0") else b""


def is_orphan(replication: Any) -> bool:
    """Whether a server is a replica that has lost its primary, or waits for its first data, by its INFO replication.

    What it has is as old as its link is broken, and may never have been all there was. One whose link is up is behind
    by what is on its way, which no client can tell.
    """
    return info(replication, b"role") == "slave" and info(replication, b"master_link_status") != "up"
