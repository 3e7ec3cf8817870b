"""Replies in order, whichever way their bytes take: handed over as they arrive, or read in turns of the loop."""

import asyncio
import itertools
import socket
from types import SimpleNamespace
from typing import Any, Self

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError

from magnus_cache import AsyncCacheManager, Namespace
from magnus_cache._engine.redis import connection as connections
from magnus_cache._engine.redis import incoming as incoming_replies
from magnus_cache._engine.redis.commands import Command
from magnus_cache._engine.redis.exchange import IGNORED, as_it_is
from magnus_cache._engine.redis.frame_limits import Intake
from magnus_cache._engine.redis.incoming import Incoming, Rest
from magnus_cache._engine.redis.pipeline import Call, Pipeline
from magnus_cache._engine.redis.sender import Sender
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.turns import SHARE
from tests.support.fleet_of_managers import fleet
from tests.support.inside import intake_of, pipeline_of, wire_of
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

FAR = Namespace("far", ttl=600, l1=False)


class Attached:
    """A stream that a parser of ours reads from, without a server."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.intake = Intake(60, loop.time, lambda: 1, lambda: 1000)
        self.stream = asyncio.StreamReader()
        self.parser = connections._PushParser(self.intake, 1 << 16)
        encoder = SimpleNamespace(decode_responses=False)
        self.parser.on_connect(SimpleNamespace(_reader=self.stream, encoder=encoder))  # type: ignore[arg-type]

    @property
    def incoming(self) -> Incoming:
        assert self.intake.incoming is not None
        return self.intake.incoming

    async def read(self) -> Any:
        return await self.parser.read_response(disable_decoding=True, push_request=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.intake.detach()
        self.parser.on_disconnect()


async def test_what_arrives_is_handled_in_the_same_callback() -> None:
    with Attached() as attached:
        handled: list[Any] = []
        serving = asyncio.create_task(attached.incoming.serve(handled.append))  # type: ignore[arg-type,func-returns-value]
        await asyncio.sleep(0)
        attached.stream.feed_data(b":1\r\n:2\r\n$3\r\nab")
        assert handled == [1, 2]
        attached.stream.feed_data(b"c\r\n")
        assert handled == [1, 2, b"abc"]
        serving.cancel()
        await asyncio.wait([serving])


async def test_replies_that_take_long_together_are_handled_in_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As answers about some hundred keys each do, that arrive at once."""
    monkeypatch.setattr(incoming_replies, "SHARE", -1.0)
    with Attached() as attached:
        handled: list[Any] = []
        serving = asyncio.create_task(attached.incoming.serve(handled.append))  # type: ignore[arg-type,func-returns-value]
        await asyncio.sleep(0)
        attached.stream.feed_data(b":1\r\n:2\r\n:3\r\n")
        assert handled == [1]
        assert await serving is not None
        assert [await attached.read(), await attached.read()] == [2, 3]
        assert attached.incoming.is_idle


async def test_replies_that_take_long_leave_turns_for_others_however_many_came_together() -> None:
    with Attached() as attached:
        handled: list[Any] = []

        def handle(reply: Any) -> Rest:
            until = monotonic() + SHARE / 2
            while monotonic() < until:
                pass
            handled.append(reply)
            return None

        async def read_response(**_: Any) -> Any:
            return await attached.read()

        connection: Any = SimpleNamespace(read_response=read_response)
        reading = asyncio.create_task(
            incoming_replies.read(connection, attached.incoming, handle, lambda: None, lambda: None)
        )
        await asyncio.sleep(0)
        attached.stream.feed_data(b"".join(b":%d\r\n" % number for number in range(30)))
        counts = [0, len(handled)]
        while len(handled) < 30:
            await asyncio.sleep(0)
            counts.append(len(handled))
        reading.cancel()
        await asyncio.wait([reading])
        assert handled == list(range(30))
        # Each takes half of our share, so a third one is never begun after it, however busy the machine is.
        assert max(later - earlier for earlier, later in itertools.pairwise(counts)) <= 2


async def test_nothing_is_handled_before_what_is_left_of_the_reply_before() -> None:
    """A long announcement takes turns of the loop. What comes meanwhile waits in the stream."""
    with Attached() as attached:
        handled: list[Any] = []

        async def rest() -> None:
            await asyncio.sleep(0)

        def handle(reply: Any) -> Rest:
            handled.append(reply)
            return rest if reply == 2 else None

        serving = asyncio.create_task(attached.incoming.serve(handle))
        await asyncio.sleep(0)
        attached.stream.feed_data(b":1\r\n:2\r\n:3\r\n")
        attached.stream.feed_data(b":4\r\n")
        assert handled == [1, 2]
        assert await serving is rest
        assert not attached.incoming.is_idle
        assert [await attached.read(), await attached.read()] == [3, 4]
        assert attached.incoming.is_idle


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_the_end_of_a_stream_ends_the_wait_for_replies(how: str) -> None:
    with Attached() as attached:
        serving = asyncio.create_task(attached.incoming.serve(lambda _: None))
        await asyncio.sleep(0)
        if how == "end":
            attached.stream.feed_eof()
        else:
            attached.stream.set_exception(ConnectionResetError("by peer"))
        assert await serving is None
        assert not attached.incoming.is_idle
        with pytest.raises((RedisConnectionError, ConnectionResetError)):
            await attached.read()


@pytest.mark.parametrize("data", [b"-LOADING it loads\r\n", b"*1\r\n-LOADING it loads\r\n"])
async def test_a_server_that_serves_nobody_ends_the_connection(data: bytes) -> None:
    with Attached() as attached:
        serving = asyncio.create_task(attached.incoming.serve(lambda _: None))
        await asyncio.sleep(0)
        attached.stream.feed_data(data)
        with pytest.raises(RedisConnectionError):
            await serving


async def test_an_interrupt_while_a_reply_is_handled_ends_the_connection() -> None:
    """The reply that it cut short is lost, so the next one would be taken for it."""
    with Attached() as attached:

        def interrupted(_: Any) -> Rest:
            raise KeyboardInterrupt

        serving = asyncio.create_task(attached.incoming.serve(interrupted))
        await asyncio.sleep(0)
        with pytest.raises(KeyboardInterrupt):
            attached.stream.feed_data(b":1\r\n")
        with pytest.raises(RedisConnectionError):
            await serving


async def test_replies_that_queue_commands_are_counted_and_values_that_look_like_them_are_handled() -> None:
    with Attached() as attached:
        handled: list[Any] = []
        request = SimpleNamespace(replies=4)
        serving = asyncio.create_task(attached.incoming.serve(handled.append, owed=[request]))  # type: ignore[arg-type,func-returns-value]
        await asyncio.sleep(0)
        attached.stream.feed_data(b"+OK\r\n+QUEUED\r\n+QUE")
        assert (request.replies, handled) == (2, [])
        attached.stream.feed_data(b"UED\r\n*1\r\n:1\r\n$6\r\nQUEUED\r\n$2\r\nOK\r\n")
        assert (request.replies, handled) == (1, [[1], b"QUEUED", b"OK"])
        serving.cancel()
        await asyncio.wait([serving])


async def test_many_replies_at_once_leave_turns_for_others() -> None:
    with Attached() as attached:
        handled: list[Any] = []
        serving = asyncio.create_task(attached.incoming.serve(handled.append))  # type: ignore[arg-type,func-returns-value]
        await asyncio.sleep(0)
        attached.stream.feed_data(b":7\r\n" * 500)
        assert len(handled) < 100
        assert await serving is not None
        rest = [await attached.read() for _ in range(500 - len(handled))]
        assert set(rest) == {7}


async def test_without_the_private_names_everything_works(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a release of redis-py that has its stream and writer under other names."""
    on_connect = connections.DefaultParser.on_connect
    monkeypatch.setattr(connections._PushParser, "on_connect", on_connect)
    monkeypatch.setattr(connections, "writer_of", lambda _: None)
    monkeypatch.setattr("magnus_cache._engine.redis.wire.writer_of", lambda _: None)
    async with fleet(url) as (one, two):
        await one.set_many(FAR, {number: number for number in range(300)})
        assert await asyncio.gather(*(two.get(FAR, number) for number in range(300))) == list(range(300))
        assert await one.get_or_set("t", "k", lambda: "loaded") == "loaded"
        assert await two.get("t", "k") == "loaded"
        await one.set("t", "k", "newer")
        await two.get_stats()
        assert await two.get("t", "k") == "newer"
        assert intake_of(wire_of(two)).incoming is None


# -- when requests are sent ---------------------------------------------------------------------------------------


async def test_a_request_that_is_alone_does_not_wait_for_the_end_of_the_turn(url: str) -> None:
    # No heartbeat comes along on a busy machine.
    async with AsyncCacheManager(redis_url=url, max_staleness=60) as cache:
        await cache.set(FAR, "k", 1)
        # The first comes with its epochs, so the second counts as one of several; the third is seen to be alone.
        for _ in range(3):
            await cache.get(FAR, "k")
        call = cache.get(FAR, "k")
        call.send(None)  # type: ignore[attr-defined]  # a coroutine; as far as it goes without the loop
        pipeline = pipeline_of(wire_of(cache))
        assert [sent.count for sent in pipeline.owed] == [1]
        call.close()  # type: ignore[attr-defined]  # likewise
        await wait_until_async(lambda: not pipeline.owed)


async def test_reads_of_one_turn_share_an_exchange(url: str, raw: redis.Redis) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set_many(FAR, dict.fromkeys(range(20), 1))
        for _ in range(3):
            await asyncio.gather(*(cache.get(FAR, number) for number in range(20)))
        raw.config_resetstat()
        await asyncio.gather(*(cache.get(FAR, number) for number in range(20)))
        assert raw.info("commandstats")["cmdstat_mget"]["calls"] <= 2  # type: ignore[index]  # no coroutine


async def test_what_woken_callers_ask_for_leaves_behind_the_last_of_them() -> None:
    """Not a turn later, after one more look at all sockets."""
    loop, (ours, theirs) = asyncio.get_running_loop(), socket.socketpair()
    _, writer = await asyncio.open_connection(sock=ours)
    pipeline = Pipeline(lambda *_: None)
    sender = Sender(loop, pipeline, lambda: pipeline.compose(0.0))
    sender.attach(writer)

    def ask(count: int) -> None:
        for _ in range(count):
            pipeline.add(Call(Command("PING", b"PING\r\n"), as_it_is, IGNORED))
        sender.kick()

    # Two callers, so none of them seems to be alone.
    ask(2)
    for _ in range(2):
        pipeline.answered(b"PONG", None)  # type: ignore[arg-type]  # nothing asks where it came from
    loop.call_soon(ask, 1)
    loop.call_soon(ask, 1)
    sender.expect()
    assert not pipeline.owed
    sent = asyncio.Event()
    loop.call_soon(lambda: sent.set() if len(pipeline.owed) == 2 else None)
    await asyncio.sleep(0)
    assert sent.is_set()
    writer.transport.abort()
    theirs.close()
    await asyncio.sleep(0)


async def test_an_answer_counts_as_heard_where_its_bytes_are_not_seen() -> None:
    """As with a release of redis-py that has its stream under another name."""
    now = 1.0
    intake = Intake(60, lambda: now, lambda: 1, lambda: 1000)
    intake.completed()
    now = 5.0
    intake.completed()
    assert intake.heard == 5.0


async def test_what_the_socket_does_not_take_at_once_is_sent_later_and_in_order() -> None:
    loop, (ours, theirs) = asyncio.get_running_loop(), socket.socketpair()
    theirs.setblocking(False)
    _, writer = await asyncio.open_connection(sock=ours)
    pipeline = Pipeline(lambda *_: None)
    sender = Sender(loop, pipeline, lambda: pipeline.compose(0.0))

    async def send_packed_command(chunks: Any, check_health: bool) -> None:
        writer.writelines(chunks)
        await writer.drain()

    connection: Any = SimpleNamespace(send_packed_command=send_packed_command)
    running = asyncio.create_task(sender.run(connection))
    sender.attach(writer)
    await asyncio.sleep(0)
    words = [bytes([number]) * 1_000_000 for number in range(20)]
    for word in words:
        pipeline.add(Call(Command("SET", word), as_it_is, IGNORED))
        sender.kick()
        await asyncio.sleep(0)
    assert writer.transport.get_write_buffer_size() > 0
    assert pipeline.queue, "the rest waits for the socket"
    received = bytearray()
    while len(received) < 20_000_000:
        received += await loop.sock_recv(theirs, 1 << 20)
    assert received == b"".join(words)
    running.cancel()
    await asyncio.wait([running])
    sender.detach()
    writer.close()
    await writer.wait_closed()
    theirs.close()
