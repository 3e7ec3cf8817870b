"""`touch` and `ttl`: what they say and do with Redis, without it, and while it goes away."""

import asyncio
import threading
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from magnus_cache import AsyncCacheManager, Namespace
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coherence.tag_stamps import TagStamp
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.memory.entry import Entry, TaggedEntry
from magnus_cache._engine.runtime.clock import monotonic
from tests.support.wait import wait_until_async

ANSWERS = Namespace("t", ttl=60, negative={LookupError: "1m"})
LONG = Trust(1e12)


class Interfering:
    """A `look` into the memory after which another thread does something."""

    def __init__(self, memory: Any, monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> None:
        self._steps = list(steps)
        self._get_untrusted = memory.get_untrusted
        monkeypatch.setattr(type(memory), "get_untrusted", lambda _, name: self.get_untrusted(name))

    def get_untrusted(self, name: bytes) -> Any:
        entry = self._get_untrusted(name)
        if self._steps:
            thread = threading.Thread(target=self._steps.pop(0))
            thread.start()
            thread.join()
        return entry


async def offline(cache: AsyncCacheManager) -> None:
    """Return once the cache knows that its server is gone."""
    await cache.get("t", "anything")
    await wait_until_async(lambda: not cache.redis_available)


# -- remembered errors ------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["redis", "memory", "outage"], ids=["server", "memory", "outage"])
async def test_a_remembered_error_is_no_value_to_touch(private_server: Any, how: str) -> None:
    async with AsyncCacheManager(redis_url=private_server.url, redis_enabled=how != "memory") as cache:

        async def loader() -> None:
            raise LookupError("no such user")

        if how == "outage":
            await cache.get("t", "other")
            private_server.kill()
            await offline(cache)
        with pytest.raises(LookupError):
            await cache.get_or_set(ANSWERS, "k", loader)
        assert await cache.touch(ANSWERS, "k", "10m") is False
        assert await cache.ttl(ANSWERS, "k") is None
        assert await cache.contains(ANSWERS, "k") is False
        assert await cache.get(ANSWERS, "k", "miss") == "miss"
        with pytest.raises(LookupError, match="no such user"):
            await cache.get_or_set(ANSWERS, "k", lambda: "loaded again")


# -- other threads ----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_touch_ends_also_where_a_value_is_written_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncCacheManager(redis_enabled=False) as cache:
        await cache.set("t", "k", 0)
        Interfering(cache._state.memory, monkeypatch, *[lambda: cache.sync.set("t", "k", 1)] * 50)
        assert await cache.touch("t", "k", 600) is True
        assert await cache.get("t", "k") == 1


@pytest.mark.parametrize("kind", [Entry, TaggedEntry])
def test_an_entry_that_is_opened_while_it_is_touched_keeps_its_value(kind: type[Entry]) -> None:
    """Opening an entry sets its value and then drops the payload: a copy made in between needs one of the two."""

    class Opened(kind):  # type: ignore[misc, valid-type]  # whichever it is
        """Is opened by another thread between any two looks at it."""

        @property
        def payload(self) -> bytes | None:
            """The payload, for the last time."""
            seen: bytes | None = kind.payload.__get__(self)  # type: ignore[attr-defined]  # a slot
            self.value, self.payload = [1], None
            return seen

        @payload.setter
        def payload(self, payload: bytes | None) -> None:
            kind.payload.__set__(self, payload)  # type: ignore[attr-defined]  # likewise

        @property
        def value(self) -> Any:
            """The value, before it was opened."""
            seen = kind.value.__get__(self)  # type: ignore[attr-defined]  # likewise
            if seen is None:
                self.value, self.payload = [1], None
            return seen

        @value.setter
        def value(self, value: Any) -> None:
            kind.value.__set__(self, value)  # type: ignore[attr-defined]  # likewise

    near = Opened(None, b"\x91\x01", monotonic() + 60, LONG, 2, 1)
    if kind is TaggedEntry:
        near.stamps, near.epoch = (TagStamp("x"),), 0
    copy = near.until(monotonic() + 600, LONG)
    assert copy.payload == b"\x91\x01" or copy.value == [1]


# -- Redis goes away --------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_touch_that_redis_does_not_answer_is_done_here(
    private_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value that is near stays until Redis has answered: it is what the outage is survived with."""
    from magnus_cache._engine.redis import scripts

    replace = scripts.replace

    def last_words(*args: Any) -> Any:
        private_server.kill()
        return replace(*args)

    async with AsyncCacheManager(redis_url=private_server.url) as cache:
        await cache.set("t", "k", "value", ttl=60)
        monkeypatch.setattr(scripts, "replace", last_words)
        assert await cache.touch("t", "k", 600) is True
        await wait_until_async(lambda: not cache.redis_available)
        assert await cache.get("t", "k") == "value"
        assert 590 < (await cache.ttl("t", "k") or 0) <= 600


@pytest.mark.anyio
async def test_a_touch_survives_a_cut_connection(url: str, proxy: Any) -> None:
    """As reads and writes do: a server that hung up is often back at once."""
    async with AsyncCacheManager(redis_url=proxy.url) as cache:
        await cache.set("t", "k", 1, ttl=60)
        proxy.freeze("to_client")
        before = proxy.counts.bytes_waiting
        touch = asyncio.ensure_future(cache.touch("t", "k", 600))
        await wait_until_async(lambda: proxy.counts.bytes_waiting > before)
        proxy.cut()
        proxy.thaw("to_client")
        assert await touch is True
        assert 590 < (await cache.ttl("t", "k") or 0) <= 600


@pytest.mark.anyio
async def test_invariant_6_a_cancelled_touch_leaves_nothing_near_that_may_have_another_end(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from magnus_cache._engine.redis import scripts

    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set("t", "k", 1, ttl=600)
        replace = scripts.replace

        def cancelling(*args: Any) -> Any:
            asyncio.get_running_loop().call_soon(touch.cancel)
            return replace(*args)

        monkeypatch.setattr(scripts, "replace", cancelling)
        touch = asyncio.ensure_future(cache.touch("t", "k", 5))
        with pytest.raises(asyncio.CancelledError):
            await touch
        assert cache._state.memory.get_untrusted(cache._reads.ref("t", "k").name) is None


# -- large values -----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_touch_and_ttl_decompress_large_values_in_a_thread(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 10: nothing of ours holds up an event loop for long. And nothing is compressed a second time."""
    packed = Namespace("t", ttl=60, compress=True)
    threads: list[threading.Thread] = []
    opened, compress = envelope.open_payload, zlib.compress

    def noted(*args: Any) -> bytes:
        threads.append(threading.current_thread())
        return opened(*args)

    async with AsyncCacheManager(redis_url=url) as cache:
        large = {str(number): number for number in range(20_000)}
        await cache.set(packed, "large", large)
        await cache.set(packed, "small", [1] * 1_000)
        monkeypatch.setattr(envelope, "open_payload", noted)
        monkeypatch.setattr(zlib, "compress", lambda *_: pytest.fail("compressed again"))
        assert await cache.touch(packed, "large", 600) is True
        assert 590 < (await cache.ttl(packed, "large") or 0) <= 600
        assert len(threads) == 2
        assert threading.main_thread() not in threads
        assert await cache.touch(packed, "small", 600) is True
        assert threads[2] is threading.main_thread()
        monkeypatch.setattr(zlib, "compress", compress)
        monkeypatch.setattr(envelope, "open_payload", opened)
        assert await cache.get(packed, "large") == large
        assert await cache.get(packed, "small") == [1] * 1_000


@pytest.mark.anyio
async def test_an_unreadable_value_cannot_be_touched(url: str, raw: Any) -> None:
    packed = Namespace("t", ttl=60, compress=True)
    async with AsyncCacheManager(redis_url=url) as cache:
        await cache.set(packed, "k", [1] * 50_000)
        raw.set("magnus:t:k", b"foreign")
        assert await cache.ttl(packed, "k") is None
        large = envelope.pack(bytes(100_000_000), version=1, fresh_until=1 << 60, compress=True)
        raw.set("magnus:t:k", large)
        assert await cache.touch(packed, "k", 600) is False
        assert await cache.ttl(packed, "k") is None
        assert raw.get("magnus:t:k") == large


def test_a_renewed_value_differs_in_its_end_alone() -> None:
    made: dict[str, Any] = {"epoch": 7, "cost": 0.5, "tags": ("x", "y"), "validator": "v", "compress": True}
    raw = envelope.pack(bytes(1_000), version=1, fresh_until=5, life=2.0, **made)
    again = envelope.renewed(raw, version=2, fresh_until=9, life=4.0)
    assert again == envelope.pack(bytes(1_000), version=2, fresh_until=9, life=4.0, **made)
    with pytest.raises(Exception, match="does not fit"):
        envelope.renewed(raw, version=2, fresh_until=1 << 64, life=4.0)


# -- what a failing write overtakes -----------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["set", "delete"])
async def test_invariant_2_a_load_that_began_during_a_failing_write_is_not_kept(private_server: Any, what: str) -> None:
    """The load is granted its lease after the write began; then Redis dies, and the write is completed here alone."""
    loading, loaded = asyncio.Event(), asyncio.Event()

    async def loader() -> str:
        loading.set()
        await loaded.wait()
        return "loaded"

    async with AsyncCacheManager(redis_url=private_server.url) as cache:
        await cache.get("t", "other")
        writes = cache._writes
        ref = cache._reads.ref("t", "k")
        # What `set` and `delete` do first, and then wait for Redis: at this point another caller comes.
        cache._state.forget_names((ref.name,))
        load = asyncio.ensure_future(cache.get_or_set("t", "k", loader))
        await loading.wait()
        private_server.kill()
        if what == "set":
            assert await writes.write(ref, "set", cache._reads.encoded(ref, "set"), 60) is True
        else:
            await writes.remove((ref,))
        loaded.set()
        assert await load == "loaded"
        await wait_until_async(lambda: not cache.redis_available)
        assert await cache.get("t", "k", "gone") == ("set" if what == "set" else "gone")


@pytest.mark.anyio
async def test_a_set_is_kept_though_a_load_of_another_thread_is_about_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The load has reserved its place when the set comes: only one of them is kept, and that is the set."""
    async with AsyncCacheManager(redis_enabled=False) as cache:
        memory, ref = cache._state.memory, cache._reads.ref("t", "k")
        loaded = Entry("loaded", None, monotonic() + 60, LONG, 1, 1)
        fill: list[Any] = []
        invalidate = memory.invalidate

        def between(_: Any, name: bytes) -> None:
            # The set has voided all placeholders; a load that knows nothing of it takes one.
            invalidate(name)
            if len(fill) < 1:
                fill.append(memory.reserve(name))

        monkeypatch.setattr(type(memory), "invalidate", between)
        local_trust = type(cache._state).local_trust

        def filled_first(state: Any, *value: Any) -> Any:
            memory.fill(fill[0], loaded)
            return local_trust(state, *value)

        monkeypatch.setattr(type(cache._state), "local_trust", filled_first)
        assert await cache._writes.write(ref, "set", cache._reads.encoded(ref, "set"), 60) is True
        memory.release(fill[0])
        assert await cache.get("t", "k") == "set"


@pytest.mark.anyio
async def test_a_fresh_load_is_kept_here_if_redis_dies_meanwhile(private_server: Any) -> None:
    """What it was to replace may still be in Redis and is not believed; the load itself is overtaken by nothing."""
    loading, loaded = asyncio.Event(), asyncio.Event()
    async with AsyncCacheManager(redis_url=private_server.url) as cache:

        @cache.cached("t", key="{key}")
        async def price(key: str) -> str:
            if loading.is_set():
                return "again"
            loading.set()
            await loaded.wait()
            return "fresh"

        await cache.set("t", "k", "old")
        refresh = asyncio.ensure_future(price.refresh("k"))
        await loading.wait()
        private_server.kill()
        await offline(cache)
        loaded.set()
        assert await refresh == "fresh"
        assert await cache.get("t", "k") == "fresh"
        assert await price("k") == "fresh"
