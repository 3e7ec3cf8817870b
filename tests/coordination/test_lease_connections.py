"""Leases whose connection is replaced while the load runs: the load ends through the connection that replaced it."""

import asyncio

import pytest
import redis

from magnus_cache import CacheManager, Namespace
from magnus_cache._engine.loading.acquire import LeaseAcquirer
from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.redis.exchange import Connection
from magnus_cache._engine.redis.wire import Wire
from tests.support.fleet_of_managers import fleet
from tests.support.inside import held_leases, only_wire_of
from tests.support.loaders import Slow
from tests.support.wait import wait_until, wait_until_async

TRACKING = ("keys", "prefix", "off")


def end_background_loop(cache: CacheManager) -> None:
    """End the background loop by a task that raises SystemExit; return when the loop is closed."""
    loop = cache._state.portal.loop
    assert loop is not None

    async def leave() -> None:
        raise SystemExit

    tasks: list[asyncio.Task[None]] = []
    loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(leave())))
    wait_until(loop.is_closed)
    assert isinstance(tasks[0].exception(), SystemExit)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("tags", ["computed", "given"])
def test_a_load_is_stored_although_the_loop_of_its_lease_has_ended(url: str, raw: redis.Redis, tags: str) -> None:
    """The value goes to Redis through the loop that replaced it, with its tags, and is valid there."""
    with CacheManager(redis_url=url) as cache:

        def load() -> str:
            end_background_loop(cache)
            return "loaded"

        assert cache.get_or_set("t", "k", load, tags="x" if tags == "given" else lambda value: "x") == "loaded"
        assert raw.exists("magnus:t:k")
        assert not raw.exists("{magnus:t:k}:lease")
        assert cache.get("t", "k") == "loaded"
        cache.invalidate_tags("x")
        assert cache.get("t", "k") is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_invariant_2_a_load_is_overtaken_although_the_loop_of_its_lease_has_ended(url: str) -> None:
    """A peer's write in between is announced to nobody, and still wins: in Redis and here."""
    with CacheManager(redis_url=url) as cache, CacheManager(redis_url=url) as peer:

        def load() -> str:
            end_background_loop(cache)
            peer.set("t", "k", "newer")
            return "old"

        assert cache.get_or_set("t", "k", load) == "old"
        assert cache.get("t", "k") == "newer"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("cleared", [False, True])
def test_invariant_2_an_object_is_judged_although_the_loop_of_its_lease_has_ended(url: str, cleared: bool) -> None:
    """An object that stays in this process is judged by the epochs of the connection that replaced the lost one."""
    local = Namespace("local", ttl=60, local=True)
    with CacheManager(redis_url=url) as cache, CacheManager(redis_url=url) as peer:

        def load() -> list[str]:
            end_background_loop(cache)
            if cleared:
                peer.clear(local)
            return ["loaded"]

        # The epochs are issued by this, and what the server announces of that is read again: an epoch that is in doubt
        # when its connection is lost counts as risen.
        assert cache.get_or_set(local, "k", list) == []
        assert cache.delete(local, "k")
        assert cache.get("t", "k") is None
        wait_until(lambda: not only_wire_of(cache).known.doubts)
        assert cache.get_or_set(local, "k", load) == ["loaded"]
        assert cache._state.stats.errors == {}, "Redis was there, and is asked through the loop that runs"
        assert cache.get(local, "k") == (None if cleared else ["loaded"])


@pytest.mark.anyio
async def test_a_lease_is_held_on_the_connection_that_granted_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wire that a load began with ends before it asks. The lease and its announcements belong to the new one."""
    slow, refresh, ended = Slow(), LeaseAcquirer.refresh_epochs, list[Connection]()

    async def end_first(self: LeaseAcquirer, wire: Connection, request: LoadRequest[int]) -> None:
        await refresh(self, wire, request)
        if not ended:
            ended.append(wire)
            assert isinstance(wire, Wire)
            await wire.aclose()

    async with fleet(url, 2) as (one, peer):
        assert await one.get("t", "k") is None
        monkeypatch.setattr(LeaseAcquirer, "refresh_epochs", end_first)
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        (lease,) = held_leases(one).values()
        assert lease.connection is one._engine.state.topology.connection(b"")
        assert lease.connection not in ended
        assert lease.connection.leases_held == 1
        await peer.delete("t", "k")
        await wait_until_async(lambda: lease.void)
        slow.finish()
        assert await call == 1
        assert await one.get("t", "k") is None
