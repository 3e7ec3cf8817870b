"""Replies in order, whichever way their bytes take: handed over as they arrive, or read in turns of the loop."""

import asyncio
from types import SimpleNamespace
from typing import Any, Self

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError

from magnus_cache import AsyncCacheManager, Namespace
from magnus_cache._engine.redis import connection as connections
from magnus_cache._engine.redis.frame_limits import Intake
from magnus_cache._engine.redis.incoming import Incoming, Rest
from tests.support.fleet_of_managers import fleet
from tests.support.inside import intake_of, pipeline_of, waits_for_the_socket, wire_of
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
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set(FAR, "k", 1)
        for _ in range(2):
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


async def test_a_write_that_the_socket_does_not_take_at_once_is_finished_later(proxy: Any) -> None:
    value = b"x" * 900_000
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=10) as cache:
        await cache.get(FAR, "k")
        proxy.freeze()
        calls = [asyncio.create_task(cache.set(FAR, number, value)) for number in range(12)]
        reads = [asyncio.create_task(cache.get(FAR, number)) for number in range(12)]
        await wait_until_async(lambda: waits_for_the_socket(wire_of(cache)))
        proxy.thaw()
        assert all(await asyncio.gather(*calls))
        # Order is kept: each was read after it was written.
        assert await asyncio.gather(*reads) == [value] * 12
