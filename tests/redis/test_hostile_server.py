"""A server, or whoever sits in between, that sends frames without end: they have a size and a deadline."""

import asyncio
import ctypes
import gc
from pathlib import Path
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager
from magnus_cache._engine.redis import frame_limits
from tests.support.relay import Link, Relay
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

MIB = 2**20
ENDLESS_PUSH = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1099511627776\r\n"
ENDLESS_REPLY = b"*1\r\n$1099511627776\r\n"


async def flood(link: Link, most: int) -> int:
    """Send bytes until the client has ended the connection; return how many, `most` at most."""
    sent = 0
    while link.reset is None and sent < most:
        await link.say(b"x" * MIB)
        sent += MIB
        await asyncio.sleep(0)
    return sent


async def test_an_announcement_without_end_ends_the_connection(server: Any) -> None:
    async with Relay(server.port) as relay, AsyncCacheManager(redis_url=relay.url, op_timeout=5) as cache:
        await cache.set("t", "k", 1)
        (link,) = relay.links
        await link.say(ENDLESS_PUSH)
        assert await flood(link, 256 * MIB) < 64 * MIB
        assert await cache.get("t", "k") == 1
        await wait_until_async(lambda: len(relay.links) == 2 and cache.redis_available)


async def test_a_reply_without_end_ends_the_connection_and_frees_its_memory(server: Any) -> None:
    def used() -> int:
        # What was freed goes back to the system first; else it counts as used, the more so in a long test run.
        ctypes.CDLL(None).malloc_trim(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    async with (
        Relay(server.port) as relay,
        AsyncCacheManager(redis_url=relay.url, op_timeout=5, max_value_bytes=MIB) as cache,
    ):
        await cache.set("t", "k", 1)
        (link,) = relay.links
        link.muted = True
        gc.collect()
        gc.disable()
        try:
            before = used()
            heard = link.heard
            reading = asyncio.create_task(cache.get("t", "other", "default"))
            await wait_until_async(lambda: link.heard > heard)
            await link.say(ENDLESS_REPLY)
            assert await flood(link, 512 * MIB) < 128 * MIB
            assert await reading == "default"
            assert used() - before < 40 * MIB
        finally:
            gc.enable()
        await wait_until_async(lambda: cache.redis_available)


@pytest.mark.parametrize("frame", [ENDLESS_PUSH, b">", b"$"])
async def test_a_frame_that_was_begun_has_a_deadline(server: Any, frame: bytes) -> None:
    async with Relay(server.port) as relay, AsyncCacheManager(redis_url=relay.url, op_timeout=0.1) as cache:
        await cache.set("t", "k", 1)
        # The last link: with so short a time, an earlier one may have been given up on a busy machine.
        link = relay.links[-1]
        await link.say(frame)
        await wait_until_async(lambda: link.reset is not None)
        await wait_until_async(lambda: cache.redis_available)


async def test_a_handshake_without_end_ends_the_connection(server: Any) -> None:
    async with Relay(server.port) as relay, AsyncCacheManager(redis_url=relay.url, op_timeout=60) as cache:
        relay.muted = True
        reading = asyncio.create_task(cache.get("t", "k", "default"))
        await wait_until_async(lambda: relay.links and relay.links[0].ready)
        relay.muted = False
        await relay.links[0].say(ENDLESS_REPLY)
        assert await flood(relay.links[0], 256 * MIB) < 64 * MIB
        assert await reading == "default"


async def test_values_as_large_as_they_may_be_are_no_frame_without_end(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Smaller than they are, so that the values may be.
    monkeypatch.setattr(frame_limits, "_UNASKED_BYTES", MIB)
    monkeypatch.setattr(frame_limits, "_REPLY_BYTES", MIB)
    monkeypatch.setattr(frame_limits, "_TIMES", 2)
    # The first one is read alone, and would tell how large the others are.
    values = {f"k{number}": bytes(MIB - 16 if number else 1) for number in range(24)}
    loads: list[int] = []

    def load(keys: list[str]) -> dict[str, bytes]:
        loads.append(len(keys))
        return {key: values[key] for key in keys}

    async with Relay(server.port) as relay:
        for _ in range(2):
            async with AsyncCacheManager(redis_url=relay.url, max_value_bytes=MIB, op_timeout=20) as cache:
                # The second time in few replies, as no large value has come through that connection so far.
                await cache.get_or_set_many("t", values, load)
        assert (loads, len(relay.links)) == ([24], 2)
