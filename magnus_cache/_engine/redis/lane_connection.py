"""The connection of the lane: a blocking socket that speaks RESP3, for one exchange at a time.

redis-py makes and takes apart each command and reply in Python. This one sends what is packed already: an exchange is
one write, one read and one call of the parser.
"""

import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import hiredis
from redis.asyncio import SSLConnection

from magnus_cache._engine.redis.commands import pack
from magnus_cache._engine.redis.elements import Elements
from magnus_cache._engine.redis.lane_tls import LaneTls

if TYPE_CHECKING:
    from magnus_cache._engine.redis.endpoint import Endpoint
    from magnus_cache._engine.runtime.clock import Clock

__all__ = ["LaneConnection"]

_MORE: Final = object()
"""What the parser returns while a reply is incomplete."""

_READ_BYTES: Final = 65_536

_OPENING: Final = 0.5
"""Share of the timeout for what comes before an exchange: what has failed goes the long way afterwards."""

_MOST_BYTES: Final = 8 << 20
"""Bytes of one reply. Large values are not asked for here, so more than that is for the background loop to judge."""

_ENDED: Final = "Redis has closed the connection, or a reply is too large"


class LaneConnection:
    """A blocking connection to one Redis. One thread at a time uses it; any thread may `cut` it.

    :param timeout: seconds for each exchange; for what has to come before it, half of that.
    :ivar opening: seconds that the connection with its handshake may take, or whatever else comes before an exchange.
    :ivar busy: whether an exchange was begun and has not ended: then replies are out of step with requests.
    :ivar broken: whether the server has said that the connection which is to hear of changes is gone.
    """

    __slots__ = (
        "_clock", "_elements", "_endpoint", "_guard", "_reader", "_recv", "_sock", "_timeout", "_tls", "broken",
        "busy", "opening",
    )  # fmt: skip

    def __init__(self, endpoint: "Endpoint", timeout: float, clock: "Clock") -> None:
        self._endpoint = endpoint
        self._timeout, self.opening = timeout, timeout * _OPENING
        self._clock = clock
        # Between `cut` in one thread and `close` in another, the number of a closed socket may be another's.
        self._guard = threading.RLock()
        self._elements = Elements()
        self._reader: Any = hiredis.Reader(notEnoughData=_MORE)
        self._sock: socket.SocketType | None = None
        self._tls: LaneTls | None = None
        self._recv: Callable[[int], bytes] = _closed
        self.busy = self.broken = False

    # -- its life -------------------------------------------------------------------------------------------

    def open(self, *more: bytes) -> list[Any]:
        """Connect, authenticate and select the database; return the replies to what is asked besides.

        :raises OSError: if Redis is not there, does not answer in time, or refuses the login.
        :raises ValueError: for what is no answer.
        """
        endpoint, deadline = self._endpoint, self._clock() + self.opening
        self.busy = True
        if endpoint.scheme == "unix":
            self._connect(socket.AF_UNIX, endpoint.path or "", deadline)
        else:
            self._connect_by_name(deadline)
        sock = self._sock
        assert sock is not None
        self._recv = sock.recv
        if endpoint.scheme == "tls":
            context = SSLConnection(host=endpoint.host, **endpoint.tls).ssl_context.get()
            self._secure(sock, LaneTls(context, endpoint.host), deadline)
        login = self._login()
        answers = self.ask_all([*login, *more], deadline)
        for answer in answers[: len(login)]:
            if type(answer) is hiredis.ReplyError:
                raise ConnectionError("Redis refuses the login") from answer
        return answers[len(login) :]

    def _connect_by_name(self, deadline: float) -> None:
        endpoint, failure = self._endpoint, OSError("the name has no address")
        for family, _, _, _, address in socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM):
            try:
                self._connect(family, address, deadline)
            except OSError as error:
                self.close()
                failure = error
                continue
            sock = self._sock
            assert sock is not None
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return
        raise failure

    def _connect(self, family: int, address: Any, deadline: float) -> None:
        # Kept before it has a file descriptor: what an interrupt (Ctrl-C) leaves here is closed like any other.
        self._sock = sock = socket.SocketType.__new__(socket.SocketType)
        socket.SocketType.__init__(sock, family, socket.SOCK_STREAM)
        sock.settimeout(self._left(deadline))
        sock.connect(address)

    def _secure(self, sock: socket.SocketType, tls: LaneTls, deadline: float) -> None:
        """Complete the TLS handshake."""
        unsent, done = tls.handshake(b"")
        while True:
            self._send(sock, unsent, deadline)
            if done:
                self._tls = tls
                return
            sock.settimeout(self._left(deadline))
            received = self._recv(_READ_BYTES)
            if not received:
                raise ConnectionError(_ENDED)
            unsent, done = tls.handshake(received)

    def _send(self, sock: socket.SocketType, unsent: bytes, deadline: float) -> None:
        """Send all of it in time."""
        left = memoryview(unsent)
        while left:
            sock.settimeout(self._left(deadline))
            left = left[sock.send(left) :]

    def _left(self, deadline: float) -> float:
        """:raises TimeoutError: when nothing is left."""
        left = deadline - self._clock()
        if left <= 0:
            raise TimeoutError("Redis does not answer in time")
        return left

    def _login(self) -> list[bytes]:
        endpoint, user = self._endpoint, list[bytes | str]()
        if endpoint.password is not None:
            user = [b"AUTH", endpoint.username or "default", endpoint.password.get_secret_value()]
        hello = pack(b"HELLO", b"3", *user)
        return [hello, pack(b"SELECT", endpoint.db)] if endpoint.db else [hello]

    def cut(self) -> None:
        """End it from any thread, without waiting: who waits for an answer learns that there will be none."""
        with self._guard:
            sock = self._sock
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # It is not connected yet, or not any more.

    def close(self) -> None:
        """Close it, in the thread that uses it, or when none does."""
        with self._guard:
            self._recv = _closed
            if self._sock is not None:
                # In this order: what an interrupt leaves is closed again.
                self._sock.close()
                self._sock = None

    def abandon(self) -> None:
        """Close it in a forked child: the connection stays its parent's, and so does the guard."""
        self._guard = threading.RLock()
        self.close()

    # -- exchanges ------------------------------------------------------------------------------------------

    def ask(self, packed: bytes, deadline: float) -> Any:
        """Send a command and return the reply, which may be an error.

        :param deadline: on the connection's clock, the timeout from now: the whole exchange has to end by then.
        :raises OSError: if the connection ends, or no answer comes in time.
        :raises ValueError: for what is no answer, and for one that is too large.
        """
        sock, tls = self._sock, self._tls
        if sock is None:
            _closed(0)
        assert sock is not None
        self.busy = True
        if tls is not None:
            packed = tls.encrypted(packed)
        try:
            sent, reply, size = sock.send(packed), _MORE, 0
            # Sent as a whole, it has not waited: the buffer is empty between exchanges. So the answer may take the
            # timeout that the socket has. Else, and for TLS, whose records may come in parts, the deadline is checked.
            if sent == len(packed) and tls is None:
                data = self._recv(_READ_BYTES)
                size = len(data)
                if not data or self._elements.too_many(data):
                    raise ConnectionError(_ENDED)
                # Most replies come as one piece, and are taken apart by one call.
                self._reader.feed(data)
                reply = self._reader.gets()
            if reply is _MORE or type(reply) is hiredis.PushNotification:
                reply = self._rest(reply, size, packed[sent:], deadline)
            else:
                self._taken()
        except hiredis.HiredisError as error:
            raise ValueError("what came is no answer") from error
        self.busy = False
        return reply

    def ask_all(self, packed: list[bytes], deadline: float) -> list[Any]:
        """Send some commands and return the replies, errors among them.

        :param deadline: on the connection's clock, any.
        :raises OSError: as `ask` does.
        :raises ValueError: as `ask` does.
        """
        self.busy = True
        unsent = b"".join(packed)
        if self._tls is not None:
            unsent = self._tls.encrypted(unsent)
        try:
            replies = [self._rest(_MORE, 0, unsent, deadline)]
            replies += [self._rest(self._reader.gets(), 0, b"", deadline) for _ in packed[1:]]
        except hiredis.HiredisError as error:
            raise ValueError("what came is no answer") from error
        self.busy = False
        return replies

    def _rest(self, reply: Any, size: int, unsent: bytes, deadline: float) -> Any:
        """Send the rest of a command, and return the reply: the rest of it, or the one that follows an announcement.

        :param size: how many bytes of the reply have come.
        """
        sock, tls = self._sock, self._tls
        if sock is None:
            # A signal handler has closed it.
            _closed(0)
        assert sock is not None
        self._send(sock, unsent, deadline)
        while reply is _MORE or type(reply) is hiredis.PushNotification:
            if reply is not _MORE:
                # The only one that comes here: where announcements go is gone.
                self.broken = True
                reply = self._reader.gets()
                continue
            sock.settimeout(self._left(deadline))
            data = self._recv(_READ_BYTES)
            if tls is not None and data:
                data = tls.decrypted(data)
                if not data:
                    continue
            size += len(data)
            if not data or self._elements.too_many(data) or size > _MOST_BYTES:
                raise ConnectionError(_ENDED)
            self._reader.feed(data)
            reply = self._reader.gets()
        self._taken()
        # After a failure it is not used again. This is Python's own timeout, which polls before each call: the kernel's
        # would begin anew with each signal that comes.
        sock.settimeout(self._timeout)
        return reply

    def _taken(self) -> None:
        """Note that a reply was taken from the parser, which may have bytes of the next one."""
        if not self._reader.has_data():
            self._elements.is_whole = True


def _closed(_: int) -> bytes:
    """:raises ConnectionError: always."""
    raise ConnectionError("the connection is closed")
