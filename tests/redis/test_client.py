"""The client: what answers may be, where a key is asked for, and what becomes of who asks too late."""

import asyncio
from typing import Any, Final, cast

import pytest

from magnus_cache import AsyncCacheManager, CacheUnavailableError
from magnus_cache._engine.redis import client, scripts
from magnus_cache._engine.redis.client import Comparison, Inspection, LeaseReply
from magnus_cache._engine.redis.exchange import Callback
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

NOWHERE: Final = cast("Any", None)


def _taken(answer: Any, _connection: Any, _sent: float) -> Any:
    return answer


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (b"value", LeaseReply(value=b"value")),
        (b"", LeaseReply(value=b"")),
        (scripts.LEASED, LeaseReply(granted=True)),
        (scripts.UNSTORABLE, LeaseReply(unstorable=True)),
        (1_500, LeaseReply(wait=1.5)),
    ],
)
def test_an_answer_about_a_lease_is_one_of_four(reply: Any, answer: LeaseReply) -> None:
    assert client._leased(_taken, reply, NOWHERE, 0.0) == answer


@pytest.mark.parametrize("reply", [None, -2, 86_400_001, "5", 1.5, [0], [b"value"], ValueError("no")])
def test_what_is_no_answer_about_a_lease_grants_none(reply: Any) -> None:
    with pytest.raises(CacheUnavailableError) as caught:
        client._leased(_taken, reply, NOWHERE, 0.0)
    assert caught.value.reason == "protocol"


@pytest.mark.parametrize(
    ("reply", "answer"),
    [([1, b"head"], Comparison(True, b"head")), ([0, b"all"], Comparison(False, b"all")), ([0, None], (False, None))],
)
def test_a_comparison_tells_whether_it_is_that_version(reply: Any, answer: Any) -> None:
    assert client._compared(_taken, reply, NOWHERE, 0.0) == answer


@pytest.mark.parametrize(
    "reply", [None, 1, [], [1], [1, b"a", b"b"], [2, b"a"], [-1, b"a"], [True, b"a"], [1, "a"], [1, 5], (1, b"a")]
)
def test_what_is_no_comparison_is_an_error_of_the_exchange(reply: Any) -> None:
    with pytest.raises(CacheUnavailableError) as caught:
        client._compared(_taken, reply, NOWHERE, 0.0)
    assert caught.value.reason == "protocol"


def test_an_inspection_knows_no_lease_without_a_holder() -> None:
    assert client._inspected([b"v", b"me", 1500]) == Inspection(b"v", b"me", 1.5)
    assert client._inspected([None, scripts.PASSED, 200]) == Inspection(None, None, 0.2)
    assert client._inspected([None, None, -2]) == Inspection(None, None, 0.0)
    assert client._inspected([None, b"me", 1 << 62]).left == 0.0
    for odd in (None, [], [b"v"], [5, None, 0], [ValueError("no"), None, 0]):
        with pytest.raises(CacheUnavailableError):
            client._inspected(odd)


@pytest.mark.parametrize("reply", [[0, "OK", ValueError("no")], [ValueError("no"), b"OK", 1]])
def test_an_error_within_a_transaction_is_its_error(reply: Any) -> None:
    with pytest.raises(ValueError, match="no"):
        client.done(_taken, reply, NOWHERE, 0.0)


def test_a_callback_takes_an_answer_however_late() -> None:
    taken: list[Any] = []
    callback = Callback(taken.append, taken.append)
    assert not callback.done()
    callback.set_result(5)
    callback.set_exception(error := ValueError("no"))
    assert not callback.done()
    assert taken == [5, error]
    Callback().set_result(5)
    Callback().set_exception(error)


async def test_a_key_is_asked_for_through_the_connection_of_the_loop(url: str) -> None:
    """Whichever key it is: one server has them all. Another loop has another connection."""
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set("t", "k", 1)
        topology = cache._engine.state.topology
        here = topology.connection(b"magnus:t:k")
        assert here is not None
        assert here is topology.connection(b"magnus:t:l")
        assert topology.servers() == [here]
        assert [(wire, list(keys)) for wire, keys in topology.by_server([b"a", b"b"])] == [(here, [b"a", b"b"])]
        assert topology.group(b"magnus:t:k") is topology.group(b"magnus!epoch:t")
        assert topology.group(b"x").controls is cache._engine.state.epochs.names
        await asyncio.to_thread(cache.sync.get, "t", "unknown")
        assert len({wire.loop for wire in topology.connections()}) == 2


async def test_what_is_asked_after_the_end_is_unavailable(url: str) -> None:
    """Who was about to ask when the cache was closed gets the error for an outage, as one who waits for an answer."""
    cache = AsyncCacheManager(redis_url=url)
    await cache.set("t", "k", 1)
    asks = cache._engine.state.client
    await cache.aclose()
    for ask in (
        lambda: asks.get(b"k"),
        lambda: asks.remove([b"k"], lambda _: None),
        lambda: asks.issue([b"magnus!epoch:t"], 0, _taken),
        asks.size,
    ):
        with pytest.raises(CacheUnavailableError) as caught:
            await ask()
        assert caught.value.reason == "closed"
    assert (await asks.reclaim(b"magnus:*", 1)).error is not None


async def test_operations_by_key_do_what_they_say(url: str, raw: Any) -> None:
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.get_stats()
        asks, name = cache._engine.state.client, b"magnus:t:k"
        raw.delete(name, b"{magnus:t:k}:lease")

        async def acquired(token: bytes, **more: Any) -> LeaseReply:
            waiter = asyncio.get_running_loop().create_future()
            asks.acquire(name, client.LeaseRequest(b"", token, 5_000, **more), _taken, waiter)
            return await waiter

        assert await acquired(b"A") == LeaseReply(granted=True)
        assert 0 < (await acquired(b"B")).wait <= 5.1
        assert (await asks.inspect(name))[:2] == (None, b"A")
        waiter = asyncio.get_running_loop().create_future()
        asks.holder(name, _taken, waiter)
        assert await waiter == b"A"
        assert await asks.fill(name, b"B", b"theirs", 5_000, _taken) is False
        assert await asks.fill(name, b"A", b"loaded", 5_000, _taken) is True
        assert await acquired(b"C") == LeaseReply(value=b"loaded")
        assert await asks.get(name) == b"loaded"
        assert await asks.replace(name, b"other", b"newer", 5_000) is False
        assert await asks.replace(name, b"load", b"newer", 5_000) is True
        assert await asks.store(name, b"stored", 5_000, _taken) is True
        assert await asks.count([name, b"magnus:t:none"]) == 1
        assert await acquired(b"D", force=True) == LeaseReply(granted=True)
        ended: list[Any] = []
        asks.release(name, b"D", ended.append, ended.append)
        await wait_until_async(lambda: ended == [1])
        told: list[list[bytes]] = []
        assert await asks.remove([name], told.append) == 1
        assert told == [[name], [name]]
        ping = await asks.ping(name)
        assert ping.tracking
        assert ping.server.server in ("redis", "valkey")
        assert ping.server.mode == "standalone"
