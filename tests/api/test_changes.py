"""`changes` tells what changed in a namespace, in any process, from its start on, and lets go of its connection."""

import asyncio
import gc
import os
import signal
import threading
import zlib
from collections.abc import Callable
from typing import Any, Final

import pytest
import redis

from magnus_cache import (
    AsyncCacheManager,
    CacheArgumentError,
    CacheClosedError,
    CacheDeadlockError,
    CacheManager,
    CacheSettingsError,
    CacheTypeError,
    CacheUnavailableError,
    Changed,
    Invalidated,
    Lost,
    Namespace,
)
from magnus_cache.embedded import EmbeddedServer
from tests.support.changes import PATIENT, Told, managers, step
from tests.support.programs import output_of
from tests.support.rights import UNTRACKED
from tests.support.seals import new_key
from tests.support.wait import lapse_async, nothing_happens_for_async, wait_until, wait_until_async

pytestmark = pytest.mark.anyio

QUIET: Final = 0.15
"""Seconds in which nothing must be told. Shorter than what it takes would find less, and fail nothing."""


def watchers(raw: redis.Redis) -> int:
    """Return how many connections the server announces changes to by prefix."""
    return sum("B" in str(client["flags"]) for client in raw.client_list())


# -- what is told -----------------------------------------------------------------------------------------------


@pytest.mark.tracking("keys", "prefix")
async def test_writes_and_removals_of_every_process_are_told(url: str) -> None:
    async with managers(url) as (here, other), here.changes("prices") as changes:
        assert changes.watching
        for cache in (other, here):
            await cache.set("prices", "AAPL", 1)
            assert await step(changes) == Changed("prices", "AAPL")
            await cache.delete("prices", "AAPL")
            assert await step(changes) == Changed("prices", "AAPL")
            await cache.set_many("prices", {"TSLA": 1, ("NVDA", 2): 2})
            assert {(await step(changes)).key for _ in range(2)} == {"TSLA", "~(NVDA,~2)"}  # type: ignore[attr-defined]
            await cache.get_or_set("prices", f"{id(cache)}", lambda: 3)
            assert await step(changes) == Changed("prices", f"{id(cache)}")
            await cache.set("others", "AAPL", 1)
        await nothing_happens_for_async(QUIET)
        assert "0 waiting" in repr(changes)


async def test_a_key_is_one_that_every_operation_takes(url: str) -> None:
    keys = ["a b", 7, b"\x00", ("x", 1), "l" * 300, "é"]
    async with managers(url) as (here, other), here.changes("t") as changes:
        for number, key in enumerate(keys):
            await other.set("t", key, number)
            change = await step(changes)
            assert isinstance(change, Changed)
            assert await here.get("t", change.key) == number


async def test_keys_are_told_as_they_were_given(url: str) -> None:
    long = "l" * 300
    async with managers(url) as (here, other), here.changes("t", keys=[long, 7]) as changes:
        await other.set_many("t", {"unwanted": 1, "7": 1})
        await other.set("t", long, 1)
        assert await step(changes) == Changed("t", long)
        await other.set("t", 7, 1)
        assert await step(changes) == Changed("t", 7)


async def test_a_glob_chooses_keys(url: str) -> None:
    async with managers(url) as (here, other), here.changes("t", match="EU:*") as changes:
        await other.set_many("t", {"US:1": 1, "EU:1": 1})
        await other.set("t", "EU 1", 1)
        await other.set("t", "EU:x y", 1)
        assert (await step(changes)).key == "EU:1"  # type: ignore[attr-defined]
        assert await here.get("t", (await step(changes)).key) == 1  # type: ignore[attr-defined]


async def test_a_version_tells_its_own_keys(url: str) -> None:
    new, old = Namespace("t", version=2), Namespace("t", version=1)
    async with managers(url) as (here, other), here.changes(new, match="a*") as changes:
        await other.set(old, "a", 1)
        await other.set(new, "b", 1)
        await other.set(new, "a", 2)
        change = await step(changes)
        assert change == Changed("t", "a")
        assert await here.get(new, "a") == 2


async def test_sealed_keys_are_told_without_their_text(url: str) -> None:
    sealed = Namespace("secret", seal=True)
    async with managers(url, seal_keys=new_key("one")) as (here, other):
        async with here.changes(sealed) as changes, here.changes(sealed, keys=["user"]) as named:
            await other.set(sealed, "user", 5)
            change = await step(changes)
            assert isinstance(change, Changed)
            assert "user" not in change.key
            assert await here.get(sealed, change.key) == 5
            assert await step(named) == Changed("secret", "user")


async def test_clears_tags_and_functions_are_told(url: str) -> None:
    async with managers(url) as (here, other):

        @other.cached("t", key="f:{number}")
        async def function(number: int) -> int:
            return number

        await other.set("t", "a", 1, tags=("x",))
        await other.set("u", "a", 1)
        await function(1)
        async with here.changes("t") as changes:
            await other.invalidate_tags("x")
            assert await step(changes) == Invalidated("t", "x")
            await function.clear()
            told = await step(changes)
            assert isinstance(told, Invalidated)
            assert (told.tag, "function" in str(told.function)) == (None, True)
            await other.clear("u")
            await other.clear("t")
            told = await step(changes)
            while isinstance(told, Changed):
                # Redis may announce first that the memory of the values is freed: these are two prefixes.
                told = await step(changes)
            assert told == Invalidated("t")
            await other.clear("magnus:*")
            await Told(changes).until(lambda told: Invalidated("t") in told)


async def test_new_epochs_are_no_changes(url: str, raw: redis.Redis) -> None:
    """Of a namespace and of tags that are used for the first time."""
    async with managers(url) as (here, other), here.changes("t") as changes:
        await other.set("t", "a", 1, tags=("new",))
        await other.get_or_set("t", "b", lambda: 1, tags=("adopted",))
        told = Told(changes)
        await told.key("b")
        raw.set("magnus:t:last", b"")
        await told.key("last")
        assert {type(change) for change in told.all} == {Changed}


async def test_an_epoch_that_is_gone_is_told(url: str, raw: redis.Redis) -> None:
    async with managers(url) as (here, other):
        await other.set("t", "a", 1, tags=("x",))
        async with here.changes("t") as changes:
            raw.delete("magnus!tag:x")
            assert await step(changes) == Invalidated("t", "x")
            raw.delete("magnus!epoch:t")
            assert await step(changes) == Invalidated("t")
            # What makes it again is no news.
            await other.set("t", "a", 2)
            assert await step(changes) == Changed("t", "a")


async def test_an_expired_key_is_told(url: str, raw: redis.Redis) -> None:
    async with managers(url, 1) as (here,), here.changes("t") as changes:
        raw.set("magnus:t:short", b"", px=1)
        told = Told(changes)
        await told.key("short")
        # Redis removes it when it comes across it.
        await told.key("short")
        assert not raw.exists("magnus:t:short")


async def test_who_is_told_reads_the_new_value_from_a_cache_that_had_the_old_one(url: str) -> None:
    """The connection that values are read through has not heard of the change yet: its loop is blocked here."""
    async with managers(url) as (here, other):
        await here.set("t", "a", 0)
        with here.sync.changes("t") as changes:
            for number in range(1, 20):
                await here.get("t", "a")
                writer = threading.Thread(target=other.sync.set, args=("t", "a", number))
                writer.start()
                while here.sync.get("t", "a") != number:
                    # Told again for each change: the last one leads to the present value.
                    next(changes)
                writer.join()


@pytest.mark.parametrize("many", [False, True])
async def test_a_value_whose_load_was_overtaken_is_told(url: str, many: bool) -> None:
    """Redis announces no removal of a key without a value, and the consumer may have joined the load."""
    async with managers(url) as (here, other), here.changes("t") as changes:
        deleted, values = asyncio.Event(), iter([1, 2])

        async def load(keys: Any = ()) -> Any:
            value = next(values)
            await deleted.wait()
            return dict.fromkeys(keys, value) if many else value

        async def read() -> Any:
            if many:
                return (await here.get_or_set_many("t", ["a"], load))["a"]
            return await here.get_or_set("t", "a", load)

        reading = asyncio.create_task(read())
        await wait_until_async(lambda: len(here._state.leases) == 1)
        assert await other.delete("t", "a") is False
        deleted.set()
        assert await reading == 1
        assert await step(changes) == Changed("t", "a")
        assert await read() == 2


@pytest.mark.parametrize("epoch", ["magnus!epoch", "magnus!epoch:t", "magnus!tag:x"])
async def test_who_is_told_of_a_clear_finds_nothing_of_before(url: str, raw: redis.Redis, epoch: str) -> None:
    """As above; no value is removed here, as after a clear, so the epoch alone tells."""
    async with managers(url, 1) as (here,):
        await here.set("t", "a", 1, tags=("x",))
        assert await here.get("t", "a") == 1
        with here.sync.changes("t") as changes:
            number = int(raw.get("magnus!clock")) + 1  # type: ignore[arg-type]
            with raw.pipeline() as steps:
                bucket = zlib.crc32(epoch.encode()) % 1024
                steps.set(epoch, number).hset("magnus!guard", str(bucket), str(number)).execute()
            assert next(changes) == Invalidated("t", "x" if "tag" in epoch else None)
            assert here.sync.get("t", "a") is None


async def test_what_is_read_after_the_start_and_again_when_told_is_the_present_value(url: str) -> None:
    async with managers(url) as (here, other):
        writing = asyncio.create_task(_count(other, 100))
        async with here.changes("t") as changes:
            shown = await here.get("t", "n")
            while shown != 99:
                await step(changes)
                shown = await here.get("t", "n")
        await writing


async def _count(cache: AsyncCacheManager, most: int) -> None:
    for number in range(most):
        await cache.set("t", "n", number)


# -- what waits -------------------------------------------------------------------------------------------------


async def test_a_change_waits_once_and_too_many_are_one_gap(url: str) -> None:
    async with managers(url) as (here, other), here.changes("t", max_waiting=3) as changes:
        for _ in range(5):
            await other.set_many("t", {"a": 1, "b": 2})
        await wait_until_async(lambda: "2 waiting" in repr(changes))
        assert {(await step(changes)).key for _ in range(2)} == {"a", "b"}  # type: ignore[attr-defined]
        await other.set_many("t", {str(number): 1 for number in range(50)})
        await wait_until_async(lambda: "1 waiting" in repr(changes))
        assert await step(changes) == Lost("t", "overflow")
        await other.set("t", "later", 1)
        await Told(changes).key("later")


async def test_a_clear_stands_for_the_keys_that_follow_until_it_is_taken(url: str) -> None:
    async with managers(url) as (here, other):
        await other.set_many("t", {str(number): 1 for number in range(300)})
        async with here.changes("t", max_waiting=10) as changes:
            assert await other.clear("t") == 300
            await other.set("t", "a", 1)
            await nothing_happens_for_async(QUIET)
            # The epoch is asked for before it is told, and more keys than may wait can come before its answer.
            first = await step(changes)
            assert first in (Invalidated("t"), Lost("t", "overflow"))
            while "0 waiting" not in repr(changes):
                assert await step(changes) in (Invalidated("t"), Changed("t", "a"))


async def test_each_consumer_is_told_and_all_share_one_connection(url: str, raw: redis.Redis) -> None:
    async with managers(url) as (here, other):
        async with here.changes("t") as one, here.changes("t") as two, here.changes("u") as third:
            with here.sync.changes("t") as blocking:
                assert watchers(raw) == 1
                await other.set("t", "a", 1)
                await other.set("u", "b", 1)
                assert await step(one) == await step(two) == next(blocking) == Changed("t", "a")
                assert await step(third) == Changed("u", "b")
            assert watchers(raw) == 1
        await wait_until_async(lambda: watchers(raw) == 0)


async def test_a_busy_consumer_lets_other_tasks_run(url: str) -> None:
    async with managers(url, 1) as (here,), here.changes("t") as changes:
        await here.set_many("t", {str(number): 1 for number in range(5_000)})
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(count())
        await wait_until_async(lambda: "5000 waiting" in repr(changes))
        before = turns
        for _ in range(5_000):
            await anext(changes)
        task.cancel()
        assert turns > before


# -- in blocking code -------------------------------------------------------------------------------------------


def test_in_blocking_code(url: str) -> None:
    with CacheManager(redis_url=url, **PATIENT) as here, CacheManager(redis_url=url, **PATIENT) as other:
        with here.changes("t", timeout=0.05) as changes:
            assert list(changes) == []
            other.set("t", "a", 1)
            assert next(changes) == Changed("t", "a")
            assert list(changes) == []
        assert list(changes) == []
        assert changes.closed
        for change in here.changes("t", timeout=0):
            raise AssertionError(f"nothing has changed, and {change} was told")


def test_a_blocked_consumer_ends_when_it_is_closed_or_its_cache_is(url: str) -> None:
    for close in ("itself", "cache"):
        with CacheManager(redis_url=url, **PATIENT) as cache:
            changes = cache.changes("t").__enter__()
            ended = threading.Event()
            thread = threading.Thread(target=lambda it=changes, end=ended: (list(it), end.set()))  # type: ignore[misc]
            thread.start()
            (changes if close == "itself" else cache).close()
            assert ended.wait(10)
            thread.join()


def test_ctrl_c_interrupts_it(url: str) -> None:
    with CacheManager(redis_url=url, **PATIENT) as cache, cache.changes("t") as changes:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(changes)
        timer.join()
        cache.set("t", "a", 1)
        assert next(changes) == Changed("t", "a")


def test_it_does_not_block_the_loop_that_feeds_it(url: str) -> None:
    with CacheManager(redis_url=url, **PATIENT) as cache:

        async def loader() -> Any:
            return next(cache.changes("t"))

        with pytest.raises(CacheDeadlockError):
            cache.get_or_set("t", "a", loader)


# -- its end ----------------------------------------------------------------------------------------------------


async def test_leaving_the_loop_ends_the_watch(url: str, raw: redis.Redis) -> None:
    async with managers(url) as (here, other):
        await other.set("t", "a", 0)
        task = asyncio.create_task(_set_until(other, raw))
        async for change in here.changes("t"):
            assert change == Changed("t", "a")
            break
        await wait_until_async(lambda: watchers(raw) == 0)
        task.cancel()


async def _set_until(cache: AsyncCacheManager, raw: redis.Redis) -> None:
    await wait_until_async(lambda: watchers(raw) == 1)
    while True:
        await cache.set("t", "a", 1)
        await lapse_async(0.01)


async def test_a_cancelled_step_loses_nothing(url: str) -> None:
    async with managers(url) as (here, other), here.changes("t") as changes:
        waiting = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await other.set("t", "a", 1)
        assert await step(changes) == Changed("t", "a")


async def test_a_cancelled_start_leaves_nothing(url: str, raw: redis.Redis) -> None:
    async with managers(url, 1) as (here,):
        starting = asyncio.ensure_future(here.changes("t").__aenter__())
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        del starting
        gc.collect()
        await here.set("t", "a", 1)
        await wait_until_async(lambda: watchers(raw) == 0)


async def test_a_closed_cache_ends_the_iteration_and_begins_none(url: str) -> None:
    async with managers(url, 1) as (here,):
        changes = await here.changes("t").__aenter__()
        unused = here.changes("t")
        waiting = asyncio.ensure_future(anext(changes, None))
        await asyncio.sleep(0)
        await here.close()
        assert await asyncio.wait_for(waiting, 10) is None
        assert [change async for change in unused] == []
        with pytest.raises(CacheClosedError):
            here.changes("t")


def test_a_loop_that_ends_lets_go(url: str, raw: redis.Redis) -> None:
    """Also one that was closed by hand, with a consumer that nothing has closed."""
    with CacheManager(redis_url=url, **PATIENT) as cache:
        here = AsyncCacheManager(redis_url=url, **PATIENT)
        loop = asyncio.new_event_loop()
        changes = here.changes("t")
        loop.run_until_complete(changes.__aenter__())
        loop.close()
        cache.set("t", "a", 1)
        wait_until(lambda: "1 waiting" in repr(changes))
        assert asyncio.run(step(changes)) == Changed("t", "a")
        changes = here.changes("t")
        gc.collect()
        wait_until(lambda: watchers(raw) == 0)
        here.sync.close()


def test_a_forked_child_has_no_consumer_and_may_make_one(url: str) -> None:
    assert output_of("-W", "error::ResourceWarning", "-c", _FORK, url).split() == ["True", "[]", "child-told", "parent"]


_FORK: Final = """
import os, sys
from magnus_cache import CacheManager
cache = CacheManager(redis_url=sys.argv[1], op_timeout=10)
changes = cache.changes("t", timeout=10).__enter__()
child = os.fork()
if not child:
    print(changes.closed, list(changes), flush=True)
    with cache.changes("t") as own:
        cache.set("t", "a", 1)
        print("child-told" if next(own).key == "a" else "", flush=True)
    cache.close()
    os._exit(0)
os.waitpid(child, 0)
print("parent" if next(changes).key == "a" else "")
changes.close()
cache.close()
"""


# -- without Redis ----------------------------------------------------------------------------------------------


async def test_without_redis_the_changes_of_this_process_are_told() -> None:
    async with AsyncCacheManager(redis_enabled=False) as cache, cache.changes("t") as changes:
        assert changes.watching
        told = Told(changes)
        for change in (
            lambda: cache.set("t", "a", 1), lambda: cache.set_many("t", {"a": 2}), lambda: cache.touch("t", "a", 60),
            lambda: cache.update("t", "a", lambda value: value + 1), lambda: cache.delete("t", "a"),
            lambda: cache.add("t", "a", 1), lambda: cache.incr("t", "a"), lambda: cache.delete_many("t", ["a"]),
            lambda: cache.get_or_set("t", "a", lambda: 5),
            lambda: cache.get_or_set_many("t", ["a", "b"], lambda keys: dict.fromkeys(keys, 1)),
        ):  # fmt: skip
            told.all.clear()
            await change()
            await told.until(lambda all_told: all_told)
            assert all(isinstance(each, Changed) and each.key in {"a", "b"} for each in told.all)
            while "0 waiting" not in repr(changes):
                await step(changes)
        await cache.invalidate_tags("x")
        assert await step(changes) == Invalidated("t", "x")
        await cache.clear("other")
        await cache.clear("t")
        assert await step(changes) == Invalidated("t")
        await cache.clear("magnus:t:a*")
        assert await step(changes) == Invalidated("t")
        await cache.clear("magnus:u:a*")
        assert "0 waiting" in repr(changes)


async def test_a_local_namespace_tells_what_this_process_does_and_what_peers_invalidate(url: str) -> None:
    local = Namespace("models", local=True)
    async with managers(url) as (here, other), here.changes(local) as changes:
        await here.set(local, "a", object(), tags=("x",))
        told = Told(changes)
        await told.key("a")
        kept = await here.get(local, "a")
        await other.invalidate_tags("x")
        await told.until(lambda all_told: Invalidated("models", "x") in all_told)
        assert await here.get(local, "a") is None
        assert kept is not None
        await here.set(local, "a", kept)
        # The first connection has met a server that was new to the process, and dropped all values.
        told.all.clear()
        await other.delete(local, "a")
        await told.until(lambda all_told: Invalidated("models") in all_told)
        assert await here.get(local, "a") is None


# -- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"namespace": "a:b"}, "namespace"), ({"namespace": 3}, "namespace"), ({"match": ""}, "match"),
        ({"match": 3}, "match"), ({"keys": "abc"}, "keys"), ({"keys": 3}, "keys"), ({"keys": [""]}, "key"),
        ({"keys": ["a"], "match": "b*"}, "match"), ({"max_waiting": 0}, "max_waiting"),
        ({"max_waiting": True}, "max_waiting"), ({"timeout": -1}, "timeout"), ({"timeout": "soon"}, "timeout"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(arguments: dict[str, Any], problem: str) -> None:
    given = {"namespace": "t", **arguments}
    with CacheManager(redis_enabled=False) as cache:
        with pytest.raises((CacheArgumentError, CacheTypeError)) as caught:
            cache.changes(**given)
        assert problem in str(caught.value)


def test_tracking_off_is_refused_with_the_remedy(url: str) -> None:
    with CacheManager(redis_url=url, tracking="off") as cache:
        with pytest.raises(CacheSettingsError, match="MAGNUS_CACHE_TRACKING"):
            cache.changes("t")


async def test_a_server_that_does_not_announce_is_refused_with_the_remedy(
    private_server_with: Callable[..., EmbeddedServer],
) -> None:
    server = private_server_with()
    with redis.Redis(port=server.port) as raw:
        raw.execute_command("ACL", "SETUSER", "app", "on", ">password", "~*", *UNTRACKED)
    url = f"redis://app:password@127.0.0.1:{server.port}"
    async with managers(url, 1) as (here,):
        with pytest.raises(CacheUnavailableError, match="tracking"):
            async for _ in here.changes("t"):
                pass
        changes = await here.changes("t").__aenter__()
        assert changes.closed
        assert await here.set("t", "a", 1)
