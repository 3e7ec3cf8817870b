"""The socket of the lane: one deadline for each exchange, however its bytes come, its interruptions and its end."""

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from magnus_cache._engine.redis.endpoint import Endpoint
from magnus_cache._engine.redis.lane_connection import LaneConnection
from magnus_cache._engine.redis.lane_tls import LaneTls
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.embedded import EmbeddedServer
from tests.support.interrupts import interrupted
from tests.support.leaks import sockets
from tests.support.wait import wait_until

TIMEOUT = 30.0
"""Seconds: a test that waits for all of them has failed before."""
LATE = 10.0
"""Seconds after which the server ends its silence, if no client has given it up by then."""
LEFT = 0.05
"""Seconds that an exchange has left after what has come so far."""
MUCH = bytes(64 << 20)
"""More than the buffers of both sides take."""
SOON = 20.0


class SlowServer:
    """A server of one connection, and its clock, which stands still between two steps of its script.

    :param authority: the authority of its certificate, and the file of that; without it, there is no TLS.
    :ivar given_up: set when the client waits no more.
    :ivar looked: set when the client looks at the clock.
    """

    def __init__(self, authority: tuple[trustme.CA, Path] | None = None) -> None:
        self.now = 0.0
        self._context: ssl.SSLContext | None = None
        self.given_up, self.looked = threading.Event(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._endpoint = Endpoint(host="127.0.0.1", port=self._listener.getsockname()[1])
        if authority is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority[0].issue_cert("127.0.0.1").configure_cert(self._context)
            tls = {"ssl_ca_certs": str(authority[1])}
            self._endpoint = replace(self._endpoint, scheme="tls", tls=tls)

    def clock(self) -> float:
        self.looked.set()
        return self.now

    @contextmanager
    def serving(self, script: "Callable[[SlowServer, socket.socket], None]") -> Iterator[LaneConnection]:
        """Give a connection that is not open yet; it is closed in the end."""

        def serve() -> None:
            with self._listener, self._listener.accept()[0] as accepted:
                accepted.settimeout(SOON)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._context is None:
                    script(self, accepted)
                else:
                    with self._context.wrap_socket(accepted, server_side=True) as peer:
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
    """Read so many bytes, or all that come before the end, however that comes."""
    with suppress(OSError):
        while size and (data := peer.recv(min(size, 1 << 20))):
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


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
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
    script: Callable[[SlowServer, socket.socket], None],
    packed: bytes,
    scheme: str,
    authority: trustme.CA,
    authority_file: Path,
) -> None:
    server = SlowServer((authority, authority_file) if scheme == "tls" else None)
    with server.serving(script) as connection, pytest.raises(TimeoutError):
        connection.open()
        connection.ask(packed, TIMEOUT)


def test_what_comes_before_an_exchange_has_its_own_deadline() -> None:
    def script(server: SlowServer, peer: socket.socket) -> None:
        server.greet(peer)
        peer.recv(1 << 16)
        server.send_the_rest_late(peer, b"+OK\r\n")

    server = SlowServer()
    with server.serving(script) as connection:
        connection.open()
        with pytest.raises(TimeoutError):
            connection.ask_all([b"PING\r\n"], LEFT)
        assert connection.busy


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


# -- what a server may send ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["alone", "with others"])
def test_what_a_frame_claims_is_counted_that_begins_behind_another_reply(how: str) -> None:
    """Its header comes in two parts, the first one together with the whole reply before it."""
    claim = b"*10000000\r\n"

    def script(server: SlowServer, peer: socket.socket) -> None:
        server.greet(peer)
        peer.recv(1 << 16)
        peer.sendall(b"+OK\r\n" + claim[:5])
        peer.recv(1 << 16)
        peer.sendall(claim[5:])
        server.given_up.wait(LATE)
        # So a client that waits for the elements learns that it is late.
        server.now = 3 * TIMEOUT
        server.send_the_rest_late(peer, b":1\r\n")

    server = SlowServer()
    with server.serving(script) as connection:

        def ask() -> object:
            return (
                connection.ask(b"PING\r\n", TIMEOUT) if how == "alone" else connection.ask_all([b"PING\r\n"], TIMEOUT)
            )

        connection.open()
        assert ask() in (b"OK", [b"OK"])
        with pytest.raises(ConnectionError, match="too large"):
            ask()


class Session:
    """A TLS session without sockets: the server's side, and ours."""

    def __init__(self, authority: trustme.CA, authority_file: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        self._received, self._unsent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._server = context.wrap_bio(self._received, self._unsent, server_side=True)
        self.ours = LaneTls(ssl.create_default_context(cafile=str(authority_file)), "127.0.0.1")
        request, done = self.ours.handshake(b"")
        self._received.write(request)
        with suppress(ssl.SSLWantReadError):
            self._server.do_handshake()
        while not done:
            request, done = self.ours.handshake(self._unsent.read())
            self._received.write(request)
        self._server.do_handshake()

    def says(self, content: bytes) -> bytes:
        self._server.write(content)
        return self._unsent.read()

    def ends(self) -> bytes:
        with suppress(ssl.SSLWantReadError):
            self._server.unwrap()
        return self._unsent.read()


@pytest.mark.parametrize("after", [b"", b"\x17", b"+OK\r\n"])
@pytest.mark.parametrize("before", [b"", b"+OK\r\n"])
def test_the_end_of_a_tls_session_ends_the_exchange_whatever_follows_it(
    authority: trustme.CA, authority_file: Path, before: bytes, after: bytes
) -> None:
    session = Session(authority, authority_file)
    received = session.says(before) if before else b""
    received += session.ends() + after
    if before:
        assert session.ours.decrypted(received) == before
        received = b"more"
    with pytest.raises(ConnectionError, match="ended the TLS session"):
        session.ours.decrypted(received)


# -- interruptions ----------------------------------------------------------------------------------------------


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture(params=["tcp", "tls", "unix"])
def endpoint(
    request: pytest.FixtureRequest,
    authority: trustme.CA,
    authority_file: Path,
    private_server_with: Callable[..., EmbeddedServer],
) -> Iterator[Endpoint]:
    if request.param == "tls":
        with tls_server(authority) as port:
            tls = {"ssl_ca_certs": str(authority_file)}
            yield Endpoint(scheme="tls", host="127.0.0.1", port=port, tls=tls)
    else:
        path = f"/tmp/magnus-lane-{os.getpid()}.sock"
        server = private_server_with(unixsocket=path)
        unix = Endpoint(scheme="unix", path=path)
        yield unix if request.param == "unix" else Endpoint(host="127.0.0.1", port=server.port)


@contextmanager
def tls_server(authority: trustme.CA) -> Iterator[int]:
    """Serve one client after the other, however it leaves."""
    context, over = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), threading.Event()
    authority.issue_cert("127.0.0.1").configure_cert(context)

    def serve() -> None:
        while not over.is_set():
            with suppress(OSError), listener.accept()[0] as accepted:
                if not over.is_set():
                    with context.wrap_socket(accepted, server_side=True) as peer:
                        while peer.recv(1 << 16):
                            peer.sendall(b"+OK\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join()


@pytest.mark.parametrize("step", ["open", "close"])
def test_ctrl_c_leaves_no_socket(endpoint: Endpoint, step: str) -> None:
    before = sockets()
    for place in range(1, 100_000):
        connection = LaneConnection(endpoint, TIMEOUT, monotonic)
        if step == "close":
            connection.open()
        kept: list[BaseException] = []
        try:
            with interrupted(place, interrupt) as interruption:
                connection.open() if step == "open" else connection.close()
        except KeyboardInterrupt as error:
            # Its traceback keeps what the interrupted calls had, so that the collector closes nothing in time.
            kept.append(error)
        connection.close()
        # Those of the TLS server in this process end after ours.
        wait_until(lambda: sockets() <= before)
        if not interruption.done:
            break
    assert place > (10 if step == "open" else 1)
