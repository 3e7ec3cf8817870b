"""A machine that slept: what was near when it fell asleep is not served by what was known then."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from magnus_cache._engine.runtime import clock
from magnus_cache.testing import virtual_clock
from tests.support.fleet_of_managers import fleet, near

SLEEP = 3600.0


@pytest.mark.parametrize(("platform", "name"), [("linux", "CLOCK_BOOTTIME"), ("darwin", "CLOCK_MONOTONIC_RAW")])
def test_the_clock_counts_the_time_asleep(monkeypatch: pytest.MonkeyPatch, platform: str, name: str) -> None:
    numbers = {77: 1000.0}

    def gettime(number: int) -> float:
        return numbers[number]

    monkeypatch.setattr(clock.sys, "platform", platform)
    monkeypatch.setattr(time, name, 77, raising=False)
    monkeypatch.setattr(time, "clock_gettime", gettime, raising=False)
    chosen = clock._system_clock()
    numbers[77] += SLEEP
    assert chosen() == 1000.0 + SLEEP


@pytest.mark.parametrize("lacking", ["the name", "the kernel"])
def test_where_there_is_no_such_clock_the_ordinary_one_will_do(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    def unknown(_: int) -> float:
        raise OSError(22, "Invalid argument")

    if lacking == "the name":
        for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC_RAW"):
            monkeypatch.delattr(time, name, raising=False)
    else:
        monkeypatch.setattr(time, "clock_gettime", unknown, raising=False)
    assert clock._system_clock() is time.monotonic


def test_caches_go_by_it() -> None:
    chosen: Callable[[], Any] = clock._system_clock()
    before = chosen()
    assert before <= clock.current_clock()() <= chosen()


@pytest.mark.anyio
@pytest.mark.parametrize("connection", ["stands", "was given up"])
async def test_invariant_1_right_after_waking_up_nothing_old_is_served(
    url: str, raw: redis.Redis, connection: str
) -> None:
    """The announcement of what happened meanwhile lies in the socket, or went with the connection."""
    async with fleet(url, 1) as (peer,):
        with virtual_clock() as asleep:
            async with fleet(url, 1) as (cache,):
                await cache.set("t", "k", "old", ttl="1d")
                assert near(cache, "t", "k")
                await peer.delete("t", "k")
                if connection == "was given up":
                    raw.client_kill_filter(_type="normal", skipme=True)
                # No turn of the loop has been since.
                asleep.advance(SLEEP)
                assert not near(cache, "t", "k")
                assert await cache.get("t", "k") is None
