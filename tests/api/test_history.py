"""The flight recorder: what `explain` tells of the past of a key, in this process and in others."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache import AsyncCacheManager, CacheBatchError, CacheManager, Explanation, KeyEvent, Namespace
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.recorder import Recorder, call_site, code_of, site_text
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import EmbeddedCluster, Proxy, virtual_clock
from tests.support.fleet_of_managers import fleet
from tests.support.groups import url_of
from tests.support.inside import wire_of
from tests.support.loaders import Slow
from tests.support.programs import ROOT, in_forked_children, run_python
from tests.support.rights import LINE, USER
from tests.support.wait import wait_until_answered, wait_until_async

pytestmark = pytest.mark.anyio

HERE = "tests/api/test_history.py"
KEY = b"magnus:t:k"


def whats(found: Explanation) -> list[str]:
    """Return what happened, the latest first."""
    return [event.what for event in found.history]


def line_of(function: Callable[..., Any], text: str) -> int:
    """Return the number of the line of a function that has a text."""
    source = Path(function.__code__.co_filename).read_text(encoding="utf-8").splitlines()
    start = function.__code__.co_firstlineno
    return next(number for number, line in enumerate(source[start - 1 :], start) if text in line)


async def load() -> str:
    return "the value"


# -- this process -----------------------------------------------------------------------------------------------------


async def test_a_key_is_loaded_read_and_deleted(url: str) -> None:
    with virtual_clock() as clock:
        async with fleet(url, 1) as (cache,):
            await cache.get_or_set("t", "k", load)
            await cache.get("t", "k")
            clock.advance(5)
            await cache.delete("t", "k")
            clock.advance(2)
            found = await cache.explain("t", "k")
    deleted, loaded = found.history
    assert (deleted.what, loaded.what) == ("deleted", "loaded")
    assert (deleted.age, loaded.age) == (pytest.approx(2, abs=0.5), pytest.approx(7, abs=0.5))
    assert deleted.here
    assert loaded.here
    number = line_of(test_a_key_is_loaded_read_and_deleted, "await cache.delete")
    assert deleted.site == f"{HERE}:{number} in test_a_key_is_loaded_read_and_deleted"
    assert loaded.site == f"{HERE}:{load.__code__.co_firstlineno} in load"
    assert (loaded.detail or "").startswith("in ")
    host, pid, instance = deleted.process.split(":")
    assert (host, int(pid)) == (socket.gethostname(), os.getpid())
    assert len(instance) == 16
    assert "the value" not in repr(found)
    assert f"2 s ago: deleted, this process, {deleted.site}" in str(found)


def test_blocking_callers_and_decorated_functions(url: str) -> None:
    with CacheManager(redis_url=url) as cache:

        @cache.cached("t", key="k")
        def slow() -> int:
            return 1

        def use() -> None:
            slow()
            slow.invalidate()
            cache.set("t", "k", 2, ttl=60)
            cache.touch("t", "k", 30)
            slow.clear()
            cache.clear("t")
            cache.set_many("t", {"k": 1, "k2": 2})
            cache.delete_many("t", ["k", "k2"])
            cache.invalidate_tags("x")

        use()
        found = cache.explain("t", "k")
        assert whats(cache.explain("t", "k2")) == ["deleted", "set", "cleared"]
    assert whats(found) == ["deleted", "set", "cleared", "touched", "set", "deleted", "loaded"]
    *rest, loaded = found.history
    assert loaded.site == f"{HERE}:{slow.__code__.co_firstlineno} in {slow.__qualname__}"
    for event in rest:
        assert (event.site or "").endswith(" in test_blocking_callers_and_decorated_functions.<locals>.use")
    assert found.history[3].detail == "30 s"


async def test_what_is_written_in_one_step(url: str) -> None:
    done = [("set", "update", HERE), ("set", "decr", HERE), ("set", "incr", HERE), ("set", "add", HERE)]

    def past(found: Explanation) -> list[tuple[str, str | None, str]]:
        return [(event.what, event.detail, (event.site or "").partition(":")[0]) for event in found.history]

    async with AsyncCacheManager(redis_url=url) as cache:
        assert await cache.add("t", "k", 1)
        assert not await cache.add("t", "k", 1)
        await cache.incr("t", "k")
        await cache.decr("t", "k")
        await cache.update("t", "k", lambda value: value + 1)
        assert past(await cache.explain("t", "k")) == done

    def blocking() -> None:
        with CacheManager(redis_url=url) as cache:
            assert cache.add("b", "k", 1)
            assert not cache.add("b", "k", 1)
            cache.incr("b", "k")
            cache.decr("b", "k")
            cache.update("b", "k", lambda value: value + 1)
            assert past(cache.explain("b", "k")) == done

    await asyncio.to_thread(blocking)


async def test_the_call_site_of_what_no_code_waits_for_is_not_known(url: str, anyio_backend_name: str) -> None:
    async with fleet(url, 1) as (cache,):
        await asyncio.create_task(cache.delete("t", "k"))
        (event,) = (await cache.explain("t", "k")).history
        assert event.site is None
        await asyncio.gather(asyncio.to_thread(cache.sync.delete, "t", "k2"))
        (event,) = (await cache.explain("t", "k2")).history
        assert event.site is None


async def test_a_value_that_is_not_stored_tells_why(url: str) -> None:
    slow = Slow()

    async def fail() -> None:
        raise ValueError("private")

    async with fleet(url) as (one, two):
        call = asyncio.create_task(one.get_or_set("t", "k", slow))
        await slow.begun()
        await one.delete("t", "k")
        slow.finish()
        await call
        overtaken = (await one.explain("t", "k")).history
        assert [event.what for event in overtaken] == ["not stored", "loaded", "deleted"]
        assert overtaken[0].detail == "overtaken"
        await two.get_or_set("t", "odd", object)
        assert (await two.explain("t", "odd")).history[0].detail == "cannot be stored"
        with pytest.raises(ValueError, match="private"):
            await two.get_or_set("t", "bad", fail)
        (failed,) = (await two.explain("t", "bad")).history
        assert (failed.what, failed.detail) == ("load failed", "ValueError")
        assert "private" not in repr(failed)


async def test_batches(url: str) -> None:
    async with fleet(url, 1) as (cache,):

        async def load_many(keys: list[str]) -> dict[str, Any]:
            return {key: 1 if key != "bad" else ValueError() for key in keys}

        keys = [str(number) for number in range(300)]
        with pytest.raises(CacheBatchError):
            await cache.get_or_set_many("t", [*keys, "bad"], load_many)
        await cache.warm_cache("t", lambda key: key, ["w1", "w2"])
        assert whats(await cache.explain("t", "299")) == ["loaded"]
        assert whats(await cache.explain("t", "bad")) == ["load failed"]
        assert whats(await cache.explain("t", "w2")) == ["loaded"]
        assert load_many.__qualname__ in ((await cache.explain("t", "0")).history[0].site or "")


async def test_an_outage_and_an_emptied_server(proxy: Proxy, raw: redis.Redis) -> None:
    async with fleet(proxy.url, 1) as (cache,):
        await cache.set("t", "k", 1)
        await cache.get_stats()
        raw.flushall()
        await wait_until_answered(lambda: _is_told(cache, "Redis was emptied"))
        proxy.refuse()
        proxy.cut()
        await cache.get("t", "other")
        assert "Redis away" in whats(await cache.explain("t", "k"))
        proxy.resume()
        await wait_until_answered(lambda: _is_told(cache, "Redis back"))


async def _is_told(cache: AsyncCacheManager, what: str) -> bool:
    return what in whats(await cache.explain("t", "k"))


async def test_a_recorder_that_is_switched_off(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1, recorder_keys=0, stats_interval=0) as (cache,):
        await cache.get_or_set("t", "k", load)
        await cache.delete("t", "k")
        await cache.clear("t")
        found = await cache.explain("t", "k")
        assert (found.history, found.stored_by) == ((), None)
    assert not raw.exists("magnus!fleet:log")


def test_a_hit_records_nothing(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.set("t", "k", 1)
        before = cache.explain("t", "k").history
        for _ in range(10):
            cache.get("t", "k")
            cache.get_or_set("t", "k", lambda: 2)
        assert len(cache.explain("t", "k").history) == len(before) == 1


def test_a_forked_child_knows_nothing_of_what_its_parent_did() -> None:
    with CacheManager(redis_enabled=False) as cache:
        cache.set("t", "k", 1)

        def child() -> list[str]:
            found = whats(cache.explain("t", "k"))
            cache.close()
            return found

        assert in_forked_children(child) == [[]]
        assert whats(cache.explain("t", "k")) == ["set"]


# -- bounds -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 40), max_size=300), st.integers(0, 20))
def test_the_recorder_is_bounded_and_knows_what_came_last(keys: list[int], most: int) -> None:
    recorder = Recorder(most, monotonic)
    for number, key in enumerate(keys):
        recorder.add(b"%d" % key, f"{number}")
    known = {key for key in range(41) if recorder.of(b"%d" % key, ())}
    latest = list(dict.fromkeys(reversed(keys)))
    assert len(known) <= most + 1
    assert known >= set(latest[: most // 2])
    for key in known:
        told = [int(fact.what) for fact in recorder.of(b"%d" % key, ())]
        assert told == sorted(told)
        assert len(told) <= 16
        assert told[-1] == max(number for number, other in enumerate(keys) if other == key)


def test_the_last_things_of_one_key_are_known() -> None:
    recorder = Recorder(10, monotonic)
    for number in range(1_000):
        recorder.add(KEY, f"{number}")
    told = [fact.what for fact in recorder.of(KEY, ())]
    assert told[-4:] == ["996", "997", "998", "999"]
    assert len(told) <= 8
    for _ in range(3):
        recorder.again(KEY, "changed")
    assert [fact.what for fact in recorder.of(KEY, ())][-2:] == ["999", "changed"]


def test_many_at_a_time_are_bounded() -> None:
    recorder = Recorder(10, monotonic)
    names = [b"%d" % number for number in range(5_000)]
    for number in range(1_000):
        recorder.add_many(names, f"many {number}")
        recorder.add_all(lambda name, tags: name == KEY or "x" in tags, f"all {number}")
    assert recorder.of(names[0], ())[-1].what == "many 999"
    assert recorder.of(KEY, ())[-1].what == recorder.of(b"other", ["x"])[-1].what == "all 999"
    assert len(recorder.of(names[0], ["x"])) <= 256
    assert recorder.of(names[-1], ()) == []


def test_places_in_a_program() -> None:
    def here() -> Any:
        return call_site()

    assert site_text(here()) == f"{HERE}:{line_of(here, 'call_site')} in {here.__qualname__}"
    assert site_text(code_of(here)) == f"{HERE}:{here.__code__.co_firstlineno} in {here.__qualname__}"
    assert code_of(print) is None
    assert site_text(None) is None


# -- other processes --------------------------------------------------------------------------------------------------

PROGRAM = """
from magnus_cache import CacheManager

with CacheManager(redis_url={url!r}) as cache:

    def rename():
        cache.{act}

    rename()
"""


@pytest.mark.parametrize(
    ("act", "what"),
    [
        ("delete('t', 'k')", "deleted"),
        ("delete_many('t', ['a', 'k'])", "deleted"),
        ("clear('t')", "cleared"),
        ("clear('magnus:t:*')", "cleared"),
        ("invalidate_tags('x')", "tag invalidated"),
    ],
)
async def test_another_process_has_invalidated_a_key(
    url: str, tmp_path: Path, act: str, what: str, anyio_backend_name: str
) -> None:
    """By whom, and from which line of its program."""
    if anyio_backend_name != "asyncio":
        pytest.skip("one kind of loop is enough")
    program = tmp_path / "rename.py"
    program.write_text(PROGRAM.format(url=url, act=act), encoding="utf-8")
    async with fleet(url, 1) as (cache,):
        await cache.get_or_set("t", "k", load, tags=["x"])
        await cache.get_or_set("u", "k", load)
        done = await asyncio.to_thread(run_python, str(program))
        assert done.returncode == 0, done.stderr
        latest, *_ = (await cache.explain("t", "k")).history
        assert (latest.what, latest.here) == (what, False)
        assert (latest.site or "").endswith("rename.py:7 in rename")
        host, pid, _ = latest.process.split(":")
        assert host == socket.gethostname()
        assert int(pid) != os.getpid()
        assert whats(await cache.explain("u", "k")) == ["loaded"]
        assert str(latest).startswith(f"{str(latest).partition(':')[0]}: {what}")


async def test_a_cache_that_is_closed_at_once_has_told_what_it_did(url: str) -> None:
    async with fleet(url, 1) as (one,):
        async with AsyncCacheManager(redis_url=url) as two:
            for number in range(100):
                await two.delete("t", f"k{number}")
        for key in ("k0", "k99"):
            (event,) = (await one.explain("t", key)).history
            assert (event.what, event.here) == ("deleted", False)


async def test_another_cache_clears_a_function(url: str) -> None:
    async with fleet(url) as managers:
        functions = []
        for manager in managers:

            @manager.cached("t")
            async def slow() -> int:
                return 1

            functions.append(slow)
            await slow()
        await functions[1].clear()
        await managers[1]._state.fleet_log.published(wire_of(managers[1]))
        event = (await functions[0].explain()).history[0]
        assert (event.what, event.here) == ("function cleared", False)


async def test_a_change_of_which_no_process_tells(url: str, raw: redis.Redis) -> None:
    async with fleet(url, 1) as (cache,):
        await cache.get_or_set("t", "k", load)
        raw.delete("magnus:t:k")
        await wait_until_answered(lambda: _is_told(cache, "changed elsewhere"))


async def test_what_this_process_does_itself_is_not_told_as_a_change_elsewhere(url: str) -> None:
    async with fleet(url, 1) as (cache,):
        for _ in range(3):
            await cache.get_or_set("t", "k", load, tags=["x"])
            await cache.delete("t", "k")
        await cache.get_or_set("t", "k", load, tags=["x"])
        await cache.invalidate_tags("x")
        await cache.clear("t")
        await cache.get_stats()
        assert not [event for event in (await cache.explain("t", "k")).history if "elsewhere" in event.what]


async def test_who_has_stored_a_value(url: str, tmp_path: Path) -> None:
    async with fleet(url) as (one, two):
        await one.set("t", "k", 1)
        found = await one.explain("t", "k")
        assert found.stored_by == one._state.fleet_log.process
        assert f"stored by {found.stored_by}" in str(found)
        script = f"""
import sys
from magnus_cache import CacheManager
cache = CacheManager(redis_url={url!r})
cache.set("t", "theirs", 1)
print(cache.explain("t", "theirs").stored_by, cache.get_stats("fleet")["processes"], flush=True)
sys.stdin.readline()
cache.close()
"""
        pipe = asyncio.subprocess.PIPE
        program = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdin=pipe, stdout=pipe, cwd=ROOT)
        assert program.stdin is not None
        assert program.stdout is not None
        name, _ = (await program.stdout.readline()).decode().split()
        assert (await two.explain("t", "theirs")).stored_by == name
        program.stdin.write(b"\n")
        await program.communicate()
        # It has ended, and so what it published of itself is gone.
        assert (await two.explain("t", "theirs")).stored_by is None


async def test_an_invalidation_carries_nothing_of_this(url: str, raw: redis.Redis) -> None:
    """It is published later, however many there are: in one request."""
    async with fleet(url, 1, max_staleness=60) as (cache,):
        await cache.set("t", "k", 1)
        before = raw.info("commandstats").get("cmdstat_hincrby", {"calls": 0})["calls"]
        for number in range(50):
            await cache.delete("t", f"k{number}")
        state = cache._state
        assert raw.info("commandstats").get("cmdstat_hincrby", {"calls": 0})["calls"] - before <= 1
        await wait_until_async(lambda: not state.fleet_log.waiting)
        await cache.get_stats()
        assert raw.info("commandstats")["cmdstat_hincrby"]["calls"] - before <= 3


async def test_the_log_of_the_fleet_is_a_ring(url: str, raw: redis.Redis) -> None:
    async with fleet(url) as (one, two):
        for number in range(600):
            raw.hset("magnus!fleet:log", str(number % 512), b"junk")
        raw.hset("magnus!fleet:log", "n", "600")
        await one.clear("t")
        await one._state.fleet_log.published(wire_of(one))
        assert raw.hlen("magnus!fleet:log") == 513
        assert 0 < raw.ttl("magnus!fleet:log") <= 25 * 3_600
        assert whats(await two.explain("t", "k"))[0] == "cleared"
        # It is no value, and not counted as one.
        total = (await two.get_stats())["redis_total_keys"]
        raw.delete("magnus!fleet:log")
        assert (await two.get_stats())["redis_total_keys"] == total


NONSENSE = [
    b"", b"junk", msgpack.packb(3), msgpack.packb([]), msgpack.packb({"at": 1}), b"\xc1", b"x" * 10_000,
    msgpack.packb({"at": "1", "what": "w", "by": "b", "site": None, "names": [KEY], "target": None, "tags": []}),
    msgpack.packb({"at": 1, "what": 1, "by": "b", "site": None, "names": [KEY], "target": None, "tags": []}),
    msgpack.packb({"at": 1, "what": "w", "by": "b", "site": None, "names": "k", "target": None, "tags": []}),
    msgpack.packb({"at": 1, "what": "w", "by": "b", "site": None, "names": [3], "target": None, "tags": [[]]}),
    msgpack.packb({"at": 1, "what": "w", "by": "b", "site": 7, "names": [KEY], "target": None, "tags": []}),
    msgpack.packb({"at": 1, "what": "w", "by": "b", "site": None, "names": [], "target": "a:b:{", "tags": []}),
]  # fmt: skip


async def test_nonsense_in_the_log_is_passed_over(url: str, raw: redis.Redis) -> None:
    good = {"at": 1, "what": "deleted", "by": "h:1:i", "site": None, "names": [KEY], "target": None, "tags": []}
    for number, record in enumerate([*NONSENSE, msgpack.packb(good)]):
        raw.hset("magnus!fleet:log", str(number), record)
    raw.set("magnus!stats:x", b"00000001junk")
    async with fleet(url, 1) as (cache,):
        (event,) = (await cache.explain("t", "k")).history
        assert (event.what, event.process) == ("deleted", "h:1:i")
        raw.set("magnus!fleet:log", "a text")
        assert (await cache.explain("t", "k")).history == ()


async def test_without_redis_the_own_past_is_known(proxy: Proxy) -> None:
    async with fleet(proxy.url, 1) as (cache,):
        await cache.set("t", "k", 1)
        proxy.refuse()
        proxy.cut()
        await cache.delete("t", "k")
        assert {"deleted", "set"} <= set(whats(await cache.explain("t", "k")))


def test_an_explanation_is_plain_data(url: str) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.set("t", "k", 1)
        (event,) = asdict(cache.explain("t", "k"))["history"]
    assert set(event) == set(KeyEvent.__dataclass_fields__)


async def test_local_namespaces(url: str) -> None:
    local = Namespace("objects", local=True)
    async with fleet(url) as (one, two):
        for cache in (one, two):
            await cache.get_or_set(local, "k", object)
        await two.delete(local, "k")
        await two._state.fleet_log.published(wire_of(two))
        history = (await one.explain(local, "k")).history
        assert [event.what for event in history][:1] == ["deleted"]
        assert not history[0].here


async def test_on_a_cluster(cluster: EmbeddedCluster) -> None:
    async with fleet(url_of(cluster)) as (one, two):
        await one.get_or_set("t", "k", load, tags=["x"])
        await two.invalidate_tags("x")
        await two.delete("t", "k")
        await two.clear("t")
        await two._state.fleet_log.published(wire_of(two))
        told = (await one.explain("t", "k")).history
        assert [event.what for event in told if not event.here] == ["cleared", "deleted"]
        assert "loaded" in [event.what for event in told]


def test_a_user_of_an_acl_needs_no_further_grant(private_server_with: Callable[..., EmbeddedServer]) -> None:
    server = private_server_with()
    with redis.Redis(port=server.port) as client:
        client.execute_command(*LINE.split())
        url = server.url.replace("redis://", f"redis://{USER}@")
        with CacheManager(redis_url=url) as one:
            one.delete("t", "k")
        with CacheManager(redis_url=url) as two:
            assert whats(two.explain("t", "k")) == ["deleted"]
        assert client.hlen("magnus!fleet:log") == 2
