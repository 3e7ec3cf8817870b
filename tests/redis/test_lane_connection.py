"""The socket of the lane: one deadline for each exchange, however its bytes come, and its end."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from magnus_cache._engine.redis.endpoint import Endpoint
from magnus_cache._engine.redis.lane_connection import LaneConnection

TIMEOUT = 30.0
"""Seconds: a test that waits for all of them has failed before."""
LATE = 2.0
"""Seconds after which the server ends its silence, if nobody has given it up by then."""
LEFT = 0.05
"""Seconds that an exchange has left after what has come so far."""
MUCH = bytes(64 << 20)
"""More than the buffers of both sides take."""
SOON = 10.0


class SlowServer:
    """A server of one connection, and its clock, which stands still between two steps of its script.

    :ivar given_up: set when the client waits no more.
    :ivar looked: set when the client looks at the clock.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.given_up, self.looked = threading.Event(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._endpoint = Endpoint(host="127.0.0.1", port=self._listener.getsockname()[1])

    def clock(self) -> float:
        self.looked.set()
        return self.now

    @contextmanager
    def serving(self, script: "Callable[[SlowServer, socket.socket], None]") -> Iterator[LaneConnection]:
        """Give a connection that is not open yet; it is closed in the end."""

        def serve() -> None:
            with self._listener, self._listener.accept()[0] as peer:
                peer.settimeout(SOON)
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                script(self, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        connection = LaneConnection(self._endpoint, TIMEOUT, self.clock)
        try:
            yield connection
        finally:
            self.given_up.set()
            connection.close()
            thread.join()

    def almost_all_is_over(self, left: float = LEFT) -> None:
        """Let almost all of the time of an exchange that has begun at 0 pass."""
        self.now = TIMEOUT - left

    def greet(self, peer: socket.socket) -> None:
        assert b"HELLO" in peer.recv(1 << 16)
        peer.sendall(b"+OK\r\n")

    def send_the_rest_late(self, peer: socket.socket, rest: bytes) -> None:
        """Send it to a client that should have given up by then."""
        self.given_up.wait(LATE)
        try:
            peer.sendall(rest)
        except OSError:
            assert self.given_up.is_set()


def read_all(peer: socket.socket, size: int) -> None:
    """Read so many bytes, or all that come before the end."""
    while size:
        data = peer.recv(min(size, 1 << 20))
        if not data:
            return
        size -= len(data)


def a_reply_in_parts(server: SlowServer, peer: socket.socket) -> None:
    server.greet(peer)
    peer.recv(1 << 16)
    server.almost_all_is_over()
    peer.sendall(b"*1\r\n")
    server.send_the_rest_late(peer, b"$1\r\na\r\n")


def a_reply_to_what_was_sent_slowly(server: SlowServer, peer: socket.socket) -> None:
    server.greet(peer)
    # While the client still sends: it cannot have begun to wait for the answer.
    read_all(peer, 1 << 20)
    server.almost_all_is_over()
    read_all(peer, len(MUCH) - (1 << 20))
    server.send_the_rest_late(peer, b"+OK\r\n")


def a_server_that_does_not_read(server: SlowServer, peer: socket.socket) -> None:
    server.greet(peer)
    server.almost_all_is_over()
    server.given_up.wait(LATE)
    # Time enough for an answer to a client that still sends.
    server.now = 0.0
    read_all(peer, len(MUCH))
    server.send_the_rest_late(peer, b"+OK\r\n")


def a_greeting_in_parts(server: SlowServer, peer: socket.socket) -> None:
    peer.recv(1 << 16)
    server.now = TIMEOUT / 2 - LEFT
    peer.sendall(b"+")
    server.send_the_rest_late(peer, b"OK\r\n")


@pytest.mark.parametrize(
    ("script", "packed"),
    [
        pytest.param(a_reply_in_parts, b"PING\r\n", id="a reply in parts"),
        pytest.param(a_reply_to_what_was_sent_slowly, MUCH, id="a reply to what was sent slowly"),
        pytest.param(a_server_that_does_not_read, MUCH, id="a server that does not read"),
        pytest.param(a_greeting_in_parts, b"", id="a greeting in parts"),
    ],
)
def test_all_of_an_exchange_has_one_deadline(
    script: Callable[[SlowServer, socket.socket], None], packed: bytes
) -> None:
    server = SlowServer()
    with server.serving(script) as connection, pytest.raises(TimeoutError):
        connection.open()
        connection.ask(packed, TIMEOUT)


def test_after_a_reply_in_parts_the_next_exchange_has_all_its_time() -> None:
    enough = 0.5

    def script(server: SlowServer, peer: socket.socket) -> None:
        server.greet(peer)
        peer.recv(1 << 16)
        server.looked.clear()
        server.almost_all_is_over(enough)
        peer.sendall(b"*1\r\n")
        assert server.looked.wait(SOON)
        peer.sendall(b"$1\r\na\r\n")
        peer.recv(1 << 16)
        # Longer than the exchange before had left.
        server.given_up.wait(2 * enough)
        peer.sendall(b"+OK\r\n")

    server = SlowServer()
    with server.serving(script) as connection:
        connection.open()
        assert connection.ask(b"PING\r\n", TIMEOUT) == [b"a"]
        assert connection.ask(b"PING\r\n", 2 * TIMEOUT) == b"OK"


def test_ctrl_c_while_it_is_closed_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: socket.socket) -> None:
        raise KeyboardInterrupt

    def script(server: SlowServer, peer: socket.socket) -> None:
        server.greet(peer)
        try:
            seen.append(peer.recv(1))
        finally:
            ended.set()

    seen, ended, server = list[bytes](), threading.Event(), SlowServer()
    with server.serving(script) as connection:
        connection.open()
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "close", interrupt)
            with pytest.raises(KeyboardInterrupt) as raised:
                connection.close()
        # The traceback keeps what the interrupted call had: only a second call can close the socket.
        connection.close()
        ended.wait(SOON)
        del raised
    assert seen == [b""]
