"""The proxy: what it does to bytes, connections and pushes between a client and a real server."""

import asyncio
import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import trustme
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache.testing import Direction, Frame, FrameError, FrameSplitter, Proxy, no_leaks
from magnus_cache.testing.proxy.frames import FrameScanner
from magnus_cache.testing.proxy.lanes import Lane, LaneRules
from magnus_cache.testing.proxy.pushes import PushFilter, PushMode, PushRules
from tests.support.wait import wait_until

PING, PONG = b"PING\r\n", b"+PONG\r\n"


class Client:
    """A raw socket that reads whole frames; it never waits longer than ten seconds."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._splitter = FrameSplitter()
        self._frames: list[Frame] = []

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def frame(self) -> Frame:
        while not self._frames:
            data = self.socket.recv(65_536)
            if not data:
                raise EOFError
            self._frames += self._splitter.feed(data)
        return self._frames.pop(0)

    def ask(self, command: bytes) -> Frame:
        self.send(command)
        return self.frame()

    def track(self) -> None:
        assert self.ask(b"HELLO 3\r\n").kind == "%"
        assert self.ask(b"CLIENT TRACKING ON BCAST\r\n").data == b"+OK\r\n"

    @property
    def silent(self) -> bool:
        """Whether nothing is there to be read now."""
        if self._frames:
            return False
        self.socket.setblocking(False)
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(10)

    def closed(self) -> bool:
        """Wait for the end of the connection; return whether it was a reset."""
        try:
            while self.socket.recv(65_536):
                pass
        except ConnectionResetError:
            return True
        return False

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@pytest.fixture
def through(server: Any) -> Iterator[Proxy]:
    with no_leaks(), Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def connect(through: Proxy) -> Iterator[Callable[[], Client]]:
    clients: list[Client] = []

    def new() -> Client:
        clients.append(Client(through.port))
        return clients[-1]

    yield new
    for client in clients:
        client.socket.close()


@pytest.fixture
def client(connect: Callable[[], Client]) -> Client:
    return connect()


@pytest.fixture
def writer(server: Any) -> Iterator[redis.Redis]:
    """Writes past the proxy, so that its clients are told."""
    with redis.Redis(port=server.port) as client:
        yield client


def invalidation(key: str) -> Frame:
    return Frame(">", f">2\r\n$10\r\ninvalidate\r\n*1\r\n${len(key)}\r\n{key}\r\n".encode())


# -- frames -----------------------------------------------------------------------------------------------------


def _line(kind: str, text: str) -> bytes:
    return f"{kind}{text}\r\n".encode()


def _bulk(kind: str, body: bytes) -> bytes:
    return _line(kind, str(len(body))) + body + b"\r\n"


def _chunks(bodies: list[bytes]) -> bytes:
    return b"$?\r\n" + b"".join(_bulk(";", body) for body in bodies if body) + b";0\r\n"


def _many(kind: str, elements: list[bytes]) -> bytes:
    if kind in "%|":
        elements = elements[: len(elements) // 2 * 2]
        return _line(kind, str(len(elements) // 2)) + b"".join(elements)
    return _line(kind, str(len(elements))) + b"".join(elements)


def _uncounted(kind: str, elements: list[bytes]) -> bytes:
    return _line(kind, "?") + b"".join(elements) + b".\r\n"


BODIES = st.binary(max_size=40) | st.sampled_from([b"\r\n", b">2\r\n", b"a\r", b"\n", b"$5\r\nhello\r\n", b"x" * 5000])
SCALARS = (
    st.builds(_line, st.sampled_from("+-(,:#"), st.text("abc 0123-.>", max_size=12))
    | st.sampled_from([b"_\r\n", b"$-1\r\n", b"*-1\r\n", b"#t\r\n", b",inf\r\n", b"+\r\n"])
    | st.builds(_bulk, st.sampled_from("$!="), BODIES)
    | st.builds(_chunks, st.lists(BODIES, max_size=3))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.builds(_many, st.sampled_from("*~%>"), st.lists(inner, max_size=4))
        | st.builds(_uncounted, st.sampled_from("*~%"), st.lists(inner, max_size=4))
        | st.builds(lambda about, value: _many("|", about) + value, st.lists(inner, max_size=4), inner)
    ),
    max_leaves=12,
)


def _kind(frame: bytes) -> str:
    """What a value is, behind its attributes, found in another way than the scanner finds it."""
    while frame[:1] == b"|":
        count, _, rest = frame[1:].partition(b"\r\n")
        frame = rest
        for _ in range(int(count) * 2):
            frame = _without_value(frame)
    return chr(frame[0])


def _without_value(data: bytes) -> bytes:
    line, _, rest = data.partition(b"\r\n")
    kind, text = chr(line[0]), line[1:]
    if kind in "$!=" and text.isdigit():
        return rest[int(text) + 2 :]
    if line == b"$?":
        while not rest.startswith(b";0"):
            size, _, rest = rest[1:].partition(b"\r\n")
            rest = rest[int(size) + 2 :]
        return rest[4:]
    if kind in "*~%>|" and text == b"?":
        while not rest.startswith(b".\r\n"):
            rest = _without_value(rest)
        return rest[3:]
    if kind in "*~%>|" and text.isdigit():
        for _ in range(int(text) * (2 if kind in "%|" else 1)):
            rest = _without_value(rest)
        return _without_value(rest) if kind == "|" else rest
    return rest


FRAMES = st.lists(VALUES, max_size=6)
CUTS = st.lists(st.integers(min_value=0, max_value=300), max_size=40)


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    """Cut a stream into pieces of these sizes and a rest; without sizes, into single bytes."""
    pieces: list[bytes] = []
    for size in cuts or [1] * len(stream):
        pieces.append(stream[:size])
        stream = stream[size:]
    return [*pieces, stream]


@given(frames=FRAMES, cuts=CUTS)
def test_any_split_of_any_frames_gives_the_same_frames(frames: list[bytes], cuts: list[int]) -> None:
    splitter = FrameSplitter()
    found = [frame for piece in split(b"".join(frames), cuts) for frame in splitter.feed(piece)]
    assert [frame.data for frame in found] == frames
    assert [frame.kind for frame in found] == [_kind(frame) for frame in frames]
    assert splitter.pending == 0


@given(frame=VALUES, data=st.data())
def test_a_frame_without_its_end_is_pending(frame: bytes, data: st.DataObject) -> None:
    size = data.draw(st.integers(min_value=0, max_value=len(frame) - 1))
    splitter = FrameSplitter()
    assert splitter.feed(frame[:size]) == []
    assert splitter.pending == size


@given(frames=FRAMES, cuts=CUTS)
def test_pieces_come_as_soon_as_their_kind_is_known(frames: list[bytes], cuts: list[int]) -> None:
    scanner, given_out, taken = FrameScanner(), b"", b""
    for part in split(b"".join(frames), cuts):
        taken += part
        given_out += b"".join(piece.data for piece in scanner.scan(part))
        assert given_out + scanner.head == taken


def test_a_reply_is_passed_on_before_its_end() -> None:
    assert [tuple(piece) for piece in FrameScanner().scan(b"$9\r\nhal")] == [("$", b"$9\r\nhal", False)]


@pytest.mark.parametrize(
    "stream",
    [
        b"hello\r\n", b"\r\n", b"+OK\n", b"$3\r\nfour\r\n", b"$x\r\n", b"$-2\r\n", b"*\r\n", b"*1_0\r\n", b".\r\n",
        b";3\r\nabc\r\n", b"$?\r\n+a\r\n", b"*2\r\n+a\r\n.\r\n", b"$" + b"1" * 30 + b"\r\n", b"+" + b"a" * (1 << 20),
    ],
)  # fmt: skip
def test_what_is_no_resp_is_refused(stream: bytes) -> None:
    with pytest.raises(FrameError):
        FrameSplitter().feed(stream)


def test_frames_may_be_nested_deeply() -> None:
    deep = b"*1\r\n" * 50_000 + b":1\r\n"
    assert FrameSplitter().feed(deep + PONG) == [Frame("*", deep), Frame("+", PONG)]


# -- pushes, without a network ----------------------------------------------------------------------------------


@given(frames=FRAMES, cuts=CUTS, mode=st.sampled_from(PushMode))
def test_replies_pass_whatever_happens_to_pushes(frames: list[bytes], cuts: list[int], mode: PushMode) -> None:
    rules = PushRules(mode)
    pushes = PushFilter(rules)
    passed = b"".join(pushes.feed(piece) for piece in split(b"".join(frames), cuts))
    replies = [frame for frame in frames if _kind(frame) != ">"]
    assert passed == b"".join(frames if mode is PushMode.FORWARD else replies)
    lost = len(frames) - len(replies)
    assert {PushMode.FORWARD: rules.forwarded, PushMode.DROP: rules.dropped, PushMode.HOLD: rules.held}[mode] == lost
    rules.mode = PushMode.FORWARD
    released = pushes.feed(b"")
    assert released == (b"".join(f for f in frames if _kind(f) == ">") if mode is PushMode.HOLD else b"")


def test_pushes_are_never_released_into_a_reply() -> None:
    rules = PushRules(PushMode.HOLD)
    pushes = PushFilter(rules)
    assert pushes.feed(b">1\r\n+a\r\n$4\r\nab") == b"$4\r\nab"
    rules.mode = PushMode.FORWARD
    assert pushes.feed(b"") == b""
    assert pushes.feed(b"cd\r\n+OK\r\n") == b"cd\r\n>1\r\n+a\r\n+OK\r\n"


def test_dropping_drops_what_was_held() -> None:
    rules = PushRules(PushMode.HOLD)
    pushes = PushFilter(rules)
    pushes.feed(b">1\r\n+a\r\n")
    rules.mode = PushMode.DROP
    assert (pushes.feed(b""), rules.held, rules.dropped) == (b"", 0, 1)


@pytest.mark.parametrize("cuts", [[], [1000], [len(b"+OK\r\n>1\r\n+a\r\n|1\r\n+a\r\n+b\r\n")]])
def test_what_is_no_resp_goes_on_as_it_is(cuts: list[int]) -> None:
    rules = PushRules(PushMode.DROP)
    pushes = PushFilter(rules)
    stream = b"+OK\r\n>1\r\n+a\r\n|1\r\n+a\r\n+b\r\nnot RESP\r\n>1\r\n+a\r\n"
    passed = b"".join(pushes.feed(piece) for piece in split(stream, cuts))
    assert passed == stream.replace(b">1\r\n+a\r\n", b"", 1)
    assert rules.dropped == 1


# -- connections ------------------------------------------------------------------------------------------------


def test_it_forwards_and_counts(through: Proxy, client: Client) -> None:
    assert client.ask(PING).data == PONG
    counts = through.counts
    assert (counts.connections, counts.open_connections) == (through.connections, 1) == (1, 1)
    assert (counts.bytes_to_server, counts.bytes_to_client) == (len(PING), len(PONG))
    assert (counts.bytes_swallowed, counts.bytes_waiting) == (0, 0)
    client.socket.close()
    wait_until(lambda: through.counts.open_connections == 0)


def test_a_large_value_goes_through_in_both_directions(through: Proxy) -> None:
    value = bytes(range(256)) * 150_000
    with redis.Redis(port=through.port) as client:
        client.set("large", value)
        assert client.get("large") == value


def test_a_slow_reader_holds_the_server_up(through: Proxy, client: Client, writer: redis.Redis) -> None:
    """Neither the proxy nor its freeze takes more than its bound."""
    value = b"x" * (24 << 20)
    writer.set("large", value)
    through.freeze("to_client")
    client.send(b"GET large\r\n")
    wait_until(lambda: through.counts.bytes_waiting > 16 << 20)
    assert through.counts.bytes_waiting < 17 << 20
    through.thaw("to_client")
    assert len(client.frame().data) == len(value) + len(b"$25165824\r\n\r\n")
    assert through.counts.bytes_waiting == 0


def test_the_end_of_one_direction_leaves_the_other(through: Proxy) -> None:
    """A server that answers after the client said that it will send no more."""
    with socket.create_server(("127.0.0.1", 0)) as listener, Proxy(listener.getsockname()[1]) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
            server, _ = listener.accept()
            with server:
                client.sendall(b"question")
                client.shutdown(socket.SHUT_WR)
                server.settimeout(10)
                assert server.recv(100) == b"question"
                assert server.recv(100) == b""
                server.sendall(b"answer")
            assert client.recv(100) == b"answer"
            assert client.recv(100) == b""
        wait_until(lambda: proxy.counts.open_connections == 0)


@pytest.mark.parametrize("seconds", [0.0, 0.05])
@pytest.mark.parametrize("kind", ["end", "reset"])
def test_how_a_server_ends_a_connection_reaches_the_client(seconds: float, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, Proxy(listener.getsockname()[1]) as proxy:
        proxy.delay(seconds)
        client = Client(proxy.port)
        server, _ = listener.accept()
        client.send(PING)
        assert server.recv(100) == PING
        if kind == "reset":
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        assert client.closed() is (kind == "reset")
        client.socket.close()
        wait_until(lambda: proxy.counts.open_connections == 0)


def test_a_client_that_resets_is_gone_for_the_server(through: Proxy, writer: redis.Redis, client: Client) -> None:
    assert client.ask(b"CLIENT SETNAME goes\r\n").data == b"+OK\r\n"
    client.reset()
    wait_until(lambda: "goes" not in [info["name"] for info in writer.client_list()])
    wait_until(lambda: through.counts.open_connections == 0)


def test_cut_resets_all_and_new_ones_are_served(through: Proxy, connect: Callable[[], Client]) -> None:
    clients = [connect() for _ in range(3)]
    clients[0].ask(PING)
    through.cut()
    assert through.counts.open_connections == 0
    assert [client.closed() for client in clients] == [True] * 3
    assert connect().ask(PING).data == PONG


def test_refuse_leaves_what_stands_and_resume_uses_the_same_port(
    through: Proxy, client: Client, connect: Callable[[], Client]
) -> None:
    client.ask(PING)
    port = through.port
    through.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect()
    assert client.ask(PING).data == PONG
    through.resume()
    assert through.port == port
    assert connect().ask(PING).data == PONG
    assert client.ask(PING).data == PONG


def test_an_end_for_a_client_that_has_just_reset_is_let_go() -> None:
    """The system knows that the connection is over, and asyncio does not yet."""
    asyncio.run(_end_for_a_client_that_has_just_reset())


async def _end_for_a_client_that_has_just_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Client(listener.getsockname()[1])
        accepted = listener.accept()[0]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=accepted)
    hung_up = select.poll()
    hung_up.register(accepted, 0)
    try:
        client.reset()
        assert hung_up.poll(10_000)
        lane = Lane(loop, LaneRules(), None)
        lane.sink = transport
        lane.arrived_end()
        assert lane.ended
    finally:
        transport.abort()
        await asyncio.sleep(0)


def test_without_a_server_clients_are_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Proxy(port) as proxy:
        # The reset may come before the client has seen that it is connected.
        with pytest.raises(ConnectionResetError), contextlib.closing(Client(proxy.port).socket) as client:
            client.recv(1)
        assert proxy.connections == 1


def test_nobody_waits_for_a_server_that_does_not_take_connections() -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        with contextlib.suppress(TimeoutError):
            while True:
                filler = stack.enter_context(socket.socket())
                filler.settimeout(0.2)
                filler.connect(listener.getsockname())
        with no_leaks(), Proxy(listener.getsockname()[1]) as proxy:
            client = Client(proxy.port)
            client.send(PING)
            wait_until(lambda: proxy.counts.bytes_waiting)
            proxy.cut()
            assert client.closed()
            client.socket.close()


def test_a_connection_that_comes_at_the_end_is_closed(server: Any) -> None:
    """Accepted or not yet, when the proxy stops listening: it must not be forgotten."""
    with no_leaks():
        for attempt in range(30):
            with Proxy(server.port) as proxy:
                clients = [Client(proxy.port) for _ in range(attempt % 3 + 1)]
                if attempt % 2:
                    proxy.refuse()
            for client in clients:
                client.closed()
                client.socket.close()


# -- delay ------------------------------------------------------------------------------------------------------


def test_delays_of_pieces_that_follow_each_other_do_not_add_up(through: Proxy, client: Client) -> None:
    """Each piece is late by the delay: twenty pieces, sent apart, are no later than one."""
    through.delay(0.3, "to_server")
    started = time.monotonic()
    sent = 0
    for number in range(20):
        piece = f"ECHO {number}\r\n".encode()
        client.send(piece)
        sent += len(piece)
        # Arrived as a piece of its own.
        wait_until(lambda: through.counts.bytes_waiting + through.counts.bytes_to_server == sent)  # noqa: B023
    replies = [client.frame().data for _ in range(20)]
    took = time.monotonic() - started
    assert replies == [b"$%d\r\n%d\r\n" % (len(str(number)), number) for number in range(20)]
    assert 0.3 <= took < 0.3 * 5


@pytest.mark.parametrize(("direction", "least"), [("to_server", 0.1), ("to_client", 0.1), ("both", 0.2)])
def test_a_delay_is_that_of_its_direction(through: Proxy, client: Client, direction: Direction, least: float) -> None:
    client.ask(PING)
    through.delay(0.1, direction)
    started = time.monotonic()
    assert client.ask(PING).data == PONG
    assert least <= time.monotonic() - started < least + 5


def test_a_shorter_delay_is_also_that_of_what_is_under_way(through: Proxy, client: Client) -> None:
    through.delay(1000)
    client.send(PING)
    wait_until(lambda: through.counts.bytes_waiting)
    through.delay(0)
    assert client.frame().data == PONG


def test_pieces_keep_their_order_when_the_delay_falls(through: Proxy, client: Client) -> None:
    through.delay(0.2)
    client.send(b"ECHO 1\r\n")
    wait_until(lambda: through.counts.bytes_waiting)
    through.delay(0.05)
    client.send(b"ECHO 2\r\n")
    assert [client.frame().data, client.frame().data] == [b"$1\r\n1\r\n", b"$1\r\n2\r\n"]


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_delay_has_to_be_a_number_of_seconds(through: Proxy, seconds: float) -> None:
    with pytest.raises(ValueError, match="0 or more seconds"):
        through.delay(seconds)


def test_an_unknown_direction_is_refused(through: Proxy) -> None:
    with pytest.raises(ValueError, match="'sideways'"):
        through.freeze("sideways")  # type: ignore[arg-type]


# -- freezes and black holes ------------------------------------------------------------------------------------


def test_frozen_bytes_are_delivered_later(through: Proxy, client: Client, writer: redis.Redis) -> None:
    through.freeze("to_client")
    client.send(b"SET frozen 1\r\n")
    wait_until(lambda: through.counts.bytes_waiting == len(b"+OK\r\n"))
    assert writer.get("frozen") == b"1"
    assert client.silent
    through.thaw("to_client")
    assert client.frame().data == b"+OK\r\n"


def test_freezing_one_direction_leaves_the_other(through: Proxy, client: Client, writer: redis.Redis) -> None:
    client.track()
    through.freeze("to_server")
    client.send(PING)
    wait_until(lambda: through.counts.bytes_waiting == len(PING))
    writer.set("told", 1)
    assert client.frame() == invalidation("told")
    through.resume()
    assert client.frame().data == PONG


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_a_half_open_connection(
    through: Proxy, client: Client, writer: redis.Redis, connect: Callable[[], Client], direction: Direction
) -> None:
    client.track()
    through.half_open(direction)
    client.send(b"SET half 1\r\n")
    wait_until(lambda: through.counts.bytes_swallowed)
    # The other direction is open: the server got the command, or the client gets what the server says.
    if direction == "to_client":
        wait_until(lambda: writer.get("half") == b"1")
    else:
        assert writer.get("half") is None
        writer.set("other", 1)
        assert client.frame() == invalidation("other")
    assert client.silent
    through.resume()
    assert client.closed()
    assert connect().ask(PING).data == PONG


def test_a_black_hole_swallows_new_connections_too(
    through: Proxy, client: Client, connect: Callable[[], Client]
) -> None:
    client.ask(PING)
    before = through.counts
    through.black_hole()
    other = connect()
    client.send(PING)
    other.send(PING)
    wait_until(lambda: through.counts.bytes_swallowed == 2 * len(PING))
    assert through.counts.bytes_to_server == before.bytes_to_server
    assert client.silent
    assert other.silent
    through.resume()
    assert client.closed()
    assert other.closed()


def test_a_black_hole_swallows_the_ends_of_connections(
    through: Proxy, client: Client, writer: redis.Redis, connect: Callable[[], Client]
) -> None:
    """A partition tells neither side that the other is gone."""
    identity = int(client.ask(b"CLIENT ID\r\n").data[1:])
    gone = int(connect().ask(b"CLIENT ID\r\n").data[1:])
    leaver = connect()
    leaver.ask(PING)
    through.black_hole()
    writer.client_kill_filter(_id=str(identity))
    leaver.reset()
    # What comes later proves that both ends came earlier.
    connect().send(PING)
    wait_until(lambda: through.counts.bytes_swallowed == len(PING))
    assert client.silent
    assert through.counts.open_connections == 4
    assert gone in [int(info["id"]) for info in writer.client_list()]
    through.resume()
    assert client.closed()


def test_what_is_delayed_falls_into_a_black_hole(through: Proxy, client: Client) -> None:
    through.delay(1000, "to_server")
    client.send(PING)
    wait_until(lambda: through.counts.bytes_waiting)
    through.black_hole()
    assert (through.counts.bytes_waiting, through.counts.bytes_swallowed) == (0, len(PING))


def test_resume_ends_everything(through: Proxy, connect: Callable[[], Client]) -> None:
    through.freeze()
    through.delay(1000)
    through.drop_pushes()
    through.refuse()
    through.resume()
    client = connect()
    client.track()
    client.send(b"SET resumed 1\r\n")
    assert {client.frame().kind, client.frame().kind} == {">", "+"}


# -- pushes -----------------------------------------------------------------------------------------------------


def test_dropped_pushes_never_come_and_replies_do(through: Proxy, client: Client, writer: redis.Redis) -> None:
    client.track()
    through.drop_pushes()
    for number in range(10):
        writer.set(f"lost{number}", number)
    wait_until(lambda: through.counts.pushes_dropped == 10)
    assert client.ask(b"GET lost1\r\n").data == b"$1\r\n1\r\n"
    through.drop_pushes(False)
    writer.set("told", 1)
    assert client.frame() == invalidation("told")
    counts = through.counts
    assert (counts.pushes_forwarded, counts.pushes_dropped, counts.pushes_held) == (1, 10, 0)


def test_held_pushes_come_when_released_in_their_order(through: Proxy, client: Client, writer: redis.Redis) -> None:
    client.track()
    through.hold_pushes()
    writer.set("first", 1)
    writer.set("second", 2)
    wait_until(lambda: through.counts.pushes_held == 2)
    assert client.ask(b"GET second\r\n").data == b"$1\r\n2\r\n"
    assert client.silent
    through.release_pushes()
    assert [client.frame(), client.frame()] == [invalidation("first"), invalidation("second")]
    assert (through.counts.pushes_held, through.counts.pushes_forwarded) == (0, 2)


def test_held_pushes_of_a_connection_that_is_cut_are_dropped(
    through: Proxy, client: Client, writer: redis.Redis
) -> None:
    client.track()
    through.hold_pushes()
    writer.set("k", 1)
    wait_until(lambda: through.counts.pushes_held == 1)
    through.cut()
    assert (through.counts.pushes_held, through.counts.pushes_dropped) == (0, 1)


def test_released_pushes_wait_for_a_thaw(through: Proxy, client: Client, writer: redis.Redis) -> None:
    client.track()
    through.hold_pushes()
    writer.set("k", 1)
    wait_until(lambda: through.counts.pushes_held == 1)
    through.freeze()
    through.release_pushes()
    assert client.silent
    through.thaw()
    assert client.frame() == invalidation("k")


# -- life -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["idle", "frozen", "delayed", "swallowing", "refusing"])
def test_nothing_is_left_of_it_whatever_it_did(server: Any, state: str) -> None:
    with no_leaks():
        with Proxy(server.port) as proxy:
            clients = [Client(proxy.port) for _ in range(5)]
            clients[0].ask(PING)
            if state == "frozen":
                proxy.freeze()
            elif state == "delayed":
                proxy.delay(1000)
            elif state == "swallowing":
                proxy.black_hole()
            elif state == "refusing":
                proxy.refuse()
            for client in clients:
                # A proxy that refuses has ended some connections, which it had not taken on yet.
                with contextlib.suppress(ConnectionError):
                    client.send(PING)
        assert proxy.counts.open_connections == 0
        assert proxy.counts.bytes_waiting == 0
        for client in clients:
            client.socket.close()


def test_its_controls_need_it_to_run(server: Any) -> None:
    proxy = Proxy(server.port)
    with pytest.raises(RuntimeError, match="with block"):
        proxy.cut()
    with proxy, pytest.raises(RuntimeError, match="already"):
        proxy.__enter__()
    with pytest.raises(RuntimeError, match="with block"):
        proxy.resume()
    with proxy, contextlib.closing(Client(proxy.port).socket) as client:
        client.sendall(PING)
        assert client.recv(100) == PONG


def test_a_port_that_is_taken_meanwhile_is_an_error_and_leaves_nothing(server: Any) -> None:
    with no_leaks(), Proxy(server.port) as proxy:
        proxy.refuse()
        with socket.create_server(("127.0.0.1", proxy.port)), pytest.raises(OSError, match="in use"):
            proxy.resume()
        proxy.resume()


def test_controls_may_be_called_from_many_threads(through: Proxy) -> None:
    def work() -> None:
        for _ in range(20):
            with contextlib.suppress(OSError), contextlib.closing(Client(through.port).socket) as client:
                client.sendall(PING)
                through.freeze()
                through.cut()
                through.resume()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert through.counts.bytes_waiting == 0
    wait_until(lambda: through.counts.open_connections == 0)


def test_it_ends_tls(server: Any, authority: trustme.CA) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with no_leaks():
        with Proxy(server.port, context) as proxy:
            assert proxy.url == f"rediss://127.0.0.1:{proxy.port}/0"
            # One that never shakes hands: nobody waits for it at the end.
            plain = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
            for action in (proxy.cut, proxy.resume):
                with trusting.wrap_socket(Client(proxy.port).socket, server_hostname="127.0.0.1") as client:
                    client.sendall(PING)
                    assert client.recv(100) == PONG
                    action()
            wait_until(lambda: proxy.counts.open_connections == 0)
            assert proxy.connections == 2
        plain.close()
