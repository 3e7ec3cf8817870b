"""The process-wide cache: set up before its first use, closed and used again, followed by all that was decorated."""

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import pytest

import magnus_cache
from magnus_cache import (
    AsyncCacheManager,
    CacheClosedError,
    CacheManager,
    CacheSettingsError,
    configure,
    get_async_cache_manager,
    get_cache_manager,
)
from magnus_cache._engine.api import process_wide
from magnus_cache._engine.api.cached import FunctionCache
from magnus_cache._engine.api.process_wide import PROCESS
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import Proxy, isolated, no_leaks
from tests.support.programs import output_of
from tests.support.wait import wait_until


@pytest.fixture(autouse=True)
def process(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names the server."""
    monkeypatch.setenv("REDIS_URL", server.url)


class Source:
    """Functions decorated as modules do when they are imported, and what they were called with."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        cache, awaited = get_cache_manager(), get_async_cache_manager()

        @cache.cached("t", key="{name}")
        def plain(name: str) -> list[str]:
            self.calls.append(name)
            return [name]

        @awaited.cached("t", key="async {name}")
        async def coroutine(name: str) -> list[str]:
            self.calls.append(name)
            return [name]

        @cache.cached_many("t", key="many {names}")
        def many(names: list[str]) -> dict[str, str]:
            self.calls += names
            return {name: name for name in names}

        @awaited.cached_many("t", key="async many {names}")
        async def coroutine_many(names: list[str]) -> dict[str, str]:
            self.calls += names
            return {name: name for name in names}

        class Client:
            @cache.cached("t", key="method {name}")
            def method(inner, name: str) -> str:  # `self` is the source here
                self.calls.append(name)
                return name

            @classmethod
            @cache.cached("t", key="classmethod {name}")
            def of_class(cls, name: str) -> str:
                self.calls.append(name)
                return name

        self.plain, self.coroutine, self.many, self.coroutine_many = plain, coroutine, many, coroutine_many
        self.client = Client()

    def ask_all(self, name: str) -> int:
        """Call each function and return how many had to load."""
        before = len(self.calls)
        assert self.plain(name) == [name]
        assert asyncio.run(self.coroutine(name)) == [name]
        assert self.many([name]) == {name: name}
        assert asyncio.run(self.coroutine_many([name])) == {name: name}
        assert self.client.method(name) == name
        assert self.client.of_class(name) == name
        return len(self.calls) - before


@pytest.fixture
def source(process: None) -> Source:
    return Source()


CLOSINGS: dict[str, Callable[[], Any]] = {
    "close": lambda: get_cache_manager().close(),
    "aclose": lambda: asyncio.run(get_async_cache_manager().aclose()),
    "async close": lambda: asyncio.run(get_async_cache_manager().close()),
    "awaited close": lambda: asyncio.run(_awaited_close()),
}


async def _awaited_close() -> None:
    await get_cache_manager().close()


@pytest.mark.parametrize("closing", CLOSINGS)
def test_functions_work_after_the_cache_was_closed(source: Source, closing: str) -> None:
    with no_leaks():
        for _ in range(3):
            source.ask_all("a")
            assert source.ask_all("a") == 0
            CLOSINGS[closing]()
            assert PROCESS.now is None
        assert len(source.calls) == 6


def test_managers_that_somebody_holds_work_after_a_close(process: None) -> None:
    cache, awaited = get_cache_manager(), get_async_cache_manager()
    assert cache.set("t", "k", 1)
    cache.close()
    assert cache.get("t", "k") == 1
    assert asyncio.run(awaited.get("t", "k")) == 1
    assert cache.redis_available
    assert cache.ping().ok
    assert asyncio.run(awaited.ping()).ok
    cache.invalidate_tags("tag")
    assert cache.aio.sync.get("t", "k") == 1
    assert get_cache_manager().get("t", "k") == 1
    asyncio.run(awaited.close())
    assert awaited.redis_available is False


def test_a_lifespan_that_closes_can_start_again(source: Source) -> None:
    awaited = get_async_cache_manager()

    async def lifespan() -> None:
        async with awaited:
            assert await source.coroutine("a") == ["a"]

    with no_leaks():
        for _ in range(3):
            asyncio.run(lifespan())
    assert source.calls == ["a"]


def test_the_operations_of_functions_follow_too(source: Source) -> None:
    invalidate, refresh, info = source.plain.invalidate, source.plain.refresh, source.plain.cache_info
    source.plain("a")
    get_cache_manager().close()
    assert invalidate("a") is True
    assert refresh("a") == ["a"]
    assert asyncio.run(source.coroutine.refresh("a")) == ["a"]
    assert asyncio.run(source.coroutine.invalidate("a")) is True
    assert source.many.invalidate(["a"]) is False
    assert source.plain.cache_key("a") == "a"
    assert info().loads == 1
    assert source.client.method.invalidate("a") is False


def test_statistics_begin_anew_with_each_cache(source: Source) -> None:
    source.plain("a")
    source.plain("a")
    assert source.plain.cache_info().hits == 1
    assert get_cache_manager().get_stats()["hit_count"] == 1
    get_cache_manager().close()
    assert source.plain.cache_info().hits == 0
    assert get_cache_manager().get_stats()["total_requests"] == 0


def test_functions_of_a_manager_of_ones_own_stay_with_it(url: str) -> None:
    own = CacheManager(redis_url=url)

    @own.cached("t")
    def function(name: str) -> str:
        return name

    function("a")
    own.close()
    with pytest.raises(CacheClosedError, match="closed"):
        function("b")
    with pytest.raises(CacheClosedError):
        function.invalidate("a")


def test_it_looks_like_any_manager(process: None) -> None:
    cache, awaited = get_cache_manager(), get_async_cache_manager()
    assert isinstance(cache, CacheManager)
    assert isinstance(awaited, AsyncCacheManager)
    assert get_cache_manager() is cache
    assert repr(cache) == "<CacheManager process-wide, not in use>"
    assert cache.get("t", "k", "default") == "default"
    assert "127.0.0.1" in repr(cache)
    assert repr(awaited).startswith("<AsyncCacheManager process-wide, ")
    assert cache.set.__doc__ == CacheManager.set.__doc__
    with pytest.raises(AttributeError):
        cache.no_such_thing  # type: ignore[attr-defined]  # noqa: B018  # that is the point


def test_every_operation_of_a_manager_is_one_of_the_process_wide_manager(process: None) -> None:
    for face, kind in ((get_cache_manager(), CacheManager), (get_async_cache_manager(), AsyncCacheManager)):
        for name in dir(kind):
            if not name.startswith("_") and name not in {"aio", "sync"}:
                there = next(vars(cls) for cls in type(face).__mro__ if name in vars(cls))
                assert there["__module__"] in {
                    "magnus_cache._engine.api.managers",
                    "magnus_cache._engine.api.process_managers",
                }, name


def test_asking_for_it_and_decorating_is_no_use(source: Source) -> None:
    assert PROCESS.now is None
    repr(get_cache_manager())
    with get_cache_manager().disabled():
        pass
    assert PROCESS.now is None


# -- configure ----------------------------------------------------------------------------------------------


def test_configure_sets_it_up_after_decorating(source: Source, raw: Any) -> None:
    configure(prefix="desk", default_ttl="1m")
    source.plain("a")
    assert raw.exists("desk:t:a")
    assert get_cache_manager()._state.settings.default_ttl == 60


def test_configure_refuses_once_the_cache_is_in_use(source: Source) -> None:
    source.plain("a")
    with pytest.raises(CacheSettingsError, match="in use already; call configure.* before its first use"):
        configure(prefix="desk")
    assert get_cache_manager()._state.settings.prefix == "magnus"


def test_configure_refuses_once_a_manager_is_in_use(process: None) -> None:
    get_cache_manager().get("t", "k")
    with pytest.raises(CacheSettingsError):
        configure(prefix="desk")


def test_configure_checks_settings_at_once(process: None) -> None:
    with pytest.raises(CacheSettingsError, match="prefx: there is no such setting; did you mean prefix"):
        configure(prefx="desk")  # type: ignore[call-arg]  # that is the point
    with pytest.raises(CacheSettingsError, match="default_ttl"):
        configure(default_ttl=-1)
    # What was refused is not remembered.
    assert get_cache_manager().set("t", "k", 1)


def test_calls_of_configure_add_up(source: Source, url: str) -> None:
    configure(prefix="desk", redis_host="unknown.invalid")
    configure(redis_url=url)
    settings = get_cache_manager()._state.settings
    assert settings.prefix == "desk"
    assert get_cache_manager().set("t", "k", 1)
    assert get_cache_manager().redis_available


def test_what_was_configured_outlives_a_close_and_may_be_changed_then(source: Source, raw: Any) -> None:
    configure(prefix="desk")
    source.plain("a")
    get_cache_manager().close()
    source.plain("a")
    assert source.calls == ["a"]
    get_cache_manager().close()
    configure(prefix="other")
    source.plain("a")
    assert raw.exists("other:t:a")


def test_the_environment_counts_as_it_is_at_the_first_use(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGNUS_CACHE_PREFIX", "late")
    source.plain("a")
    assert get_cache_manager()._state.settings.prefix == "late"


def test_a_wrong_setting_is_told_when_the_cache_is_asked_for(process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setenv("MAGNUS_CACHE_DEFAULT_TTL", "soon")
        with pytest.raises(CacheSettingsError, match="MAGNUS_CACHE_DEFAULT_TTL"):
            get_cache_manager()


# -- many threads -------------------------------------------------------------------------------------------


def test_threads_that_use_it_first_make_one(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(8)
    seen: list[Any] = []
    make = process_wide.ProcessCache._made

    def made(self: Any, settings: Any) -> Any:
        # Until here, all of them have found that there is none.
        together.wait()
        return make(self, settings)

    monkeypatch.setattr(process_wide.ProcessCache, "_made", made)

    def use() -> None:
        seen.append(PROCESS.open())
        source.plain("a")

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, seen))) == 1
    assert source.calls == ["a"]


def test_no_call_that_begins_after_a_close_fails(source: Source) -> None:
    """While others call, the cache is closed over and over; only calls that were under way may learn of it."""
    stop = threading.Event()
    wrong: list[BaseException] = []

    def call() -> None:
        while not stop.is_set():
            try:
                assert source.plain("a") == ["a"]
            except CacheClosedError:
                pass
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        get_cache_manager().close()
        # This thread closes, so none of its calls is under way meanwhile.
        assert source.plain("a") == ["a"]
        assert get_cache_manager().get("t", "a") == ["a"]
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_call_under_way_at_a_close_goes_to_the_next_cache(process: None) -> None:
    """What it was loading cannot be kept any more: it asks again there."""
    begun, go = threading.Event(), threading.Event()
    calls: list[str] = []
    got: list[str] = []

    @get_cache_manager().cached("t")
    def slow(name: str) -> str:
        calls.append(name)
        begun.set()
        assert go.wait(10)
        return name

    thread = threading.Thread(target=lambda: got.append(slow("a")))
    thread.start()
    assert begun.wait(10)
    get_cache_manager().close()
    go.set()
    thread.join()
    assert got == ["a"]
    assert slow("a") == "a"
    assert set(calls) == {"a"}


def test_a_cache_that_is_closed_while_a_function_is_bound_to_it(process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    @get_cache_manager().cached("t")
    def function(name: str) -> str:
        return name

    made, closings = FunctionCache.__init__, [True]

    def init(self: FunctionCache, *args: Any) -> None:
        made(self, *args)
        if closings:
            closings.pop()
            get_cache_manager().close()

    monkeypatch.setattr(FunctionCache, "__init__", init)
    assert function("a") == "a"
    assert PROCESS.now is not None
    assert function("b") == "b"


def test_a_function_that_is_dropped_is_collected(process: None) -> None:
    import gc
    import weakref

    def decorated() -> Any:
        @get_cache_manager().cached("t")
        def function(name: str) -> str:
            return name

        function("a")
        return function

    function = decorated()
    dead = weakref.ref(function)
    del function
    wait_until(lambda: gc.collect() is None or dead() is None)


# -- in other processes -------------------------------------------------------------------------------------


@dataclass
class Job:
    """What a program sends to a pool."""

    name: str
    cache: CacheManager
    awaited: AsyncCacheManager = field(default_factory=get_async_cache_manager)


def work(job: Job) -> tuple[Any, Any, str]:
    value = job.cache.get("t", job.name)
    prefix = job.cache._state.settings.prefix
    job.cache.close()
    return value, asyncio.run(_read(job.awaited, job.name)), prefix


async def _read(cache: AsyncCacheManager, name: str) -> Any:
    async with cache:
        return await cache.get("t", name)


def test_a_manager_is_pickled_by_its_settings(url: str) -> None:
    with CacheManager(redis_url=url, prefix="desk", op_timeout=2) as cache:
        for face in (cache, cache.aio):
            copied = pickle.loads(pickle.dumps(face))
            assert type(copied) is type(face)
            assert copied is not face
            assert copied._state.settings == cache._state.settings
            asyncio.run(copied.aclose())
        assert copy.copy(cache) is copy.deepcopy(cache) is cache


def test_the_process_wide_manager_is_pickled_as_such(process: None) -> None:
    cache = get_cache_manager()
    assert pickle.loads(pickle.dumps(cache)) is cache
    assert pickle.loads(pickle.dumps(get_async_cache_manager()))._engine is PROCESS.awaited._engine
    assert copy.deepcopy(cache) is cache


def test_a_manager_in_a_record_works_in_a_process_pool(url: str) -> None:
    with CacheManager(redis_url=url, prefix="desk") as cache:
        cache.set("t", "k", "own")
        get_cache_manager().set("t", "k", "process-wide")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            assert pool.submit(work, Job("k", cache)).result(60) == ("own", "process-wide", "desk")
            assert pool.submit(work, Job("k", get_cache_manager())).result(60)[:2] == ("process-wide",) * 2


# -- isolation ----------------------------------------------------------------------------------------------


def test_an_isolated_cache_is_empty_and_leaves_nothing(source: Source, raw: Any) -> None:
    source.ask_all("a")
    before = set(raw.keys("*"))
    with isolated() as cache:
        assert cache is get_cache_manager()
        assert cache.get_stats()["total_requests"] == 0
        assert source.ask_all("a") == 6
        assert source.ask_all("a") == 0
        cache.set("other", "k", 1, tags=["tag"])
        cache.invalidate_tags("tag")
        assert cache._state.settings.prefix.startswith("magnus-test-")
        assert set(raw.keys("*")) > before
    assert set(raw.keys("*")) == before
    assert source.ask_all("a") == 0


def test_isolation_for_coroutines(source: Source, raw: Any) -> None:
    async def main() -> None:
        async with isolated() as cache:
            assert await source.coroutine("a") == ["a"]
            assert await cache.get("t", "async a") == ["a"]
            assert raw.keys("magnus-test-*:t:*")
        assert await source.coroutine("a") == ["a"]

    raw.ping()
    with no_leaks():
        asyncio.run(main())
        assert source.calls == ["a", "a"]
        get_cache_manager().close()
    assert not raw.keys("*magnus-test-*")


def test_isolations_within_one_another(source: Source) -> None:
    with isolated() as outer:
        outer.set("t", "k", "outer")
        with isolated(redis_enabled=False):
            assert get_cache_manager().get("t", "k") is None
            get_cache_manager().set("t", "k", "inner")
        assert get_cache_manager().get("t", "k") == "outer"
    assert get_cache_manager().get("t", "k") is None


def test_isolations_that_overlap(source: Source) -> None:
    one, two = isolated(), isolated()
    with one:
        source.plain("a")
        two.__enter__()
        source.plain("a")
    source.plain("a")
    two.__exit__(None, None, None)
    assert source.calls == ["a", "a"]
    source.plain("a")
    assert source.calls == ["a", "a", "a"]


def test_a_block_is_entered_once(process: None) -> None:
    block = isolated()
    with block, pytest.raises(RuntimeError, match="entered already"):
        block.__enter__()
    assert PROCESS.now is None


def test_settings_of_an_isolation_win_over_configure(source: Source, url: str) -> None:
    configure(prefix="desk", default_ttl=7)
    with isolated(redis_url=url):
        configure(redis_url="redis://production.invalid:6379/0", prefix="production", default_ttl=9)
        source.plain("a")
        settings = get_cache_manager()._state.settings
        assert settings.prefix.startswith("magnus-test-")
        assert settings.redis_url is not None
        assert settings.redis_url.get_secret_value() == url
        assert settings.default_ttl == 9
    source.plain("a")
    settings = get_cache_manager()._state.settings
    assert (settings.prefix, settings.default_ttl) == ("desk", 7)


def test_an_isolation_does_not_touch_the_recovery_file(
    process: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGNUS_CACHE_RECOVERY_PATH", str(tmp_path / "recovery.db"))
    with isolated() as cache:
        cache.set("t", "k", 1)
        assert cache._state.journal is None


def test_a_prefix_that_was_given_is_not_wiped(process: None, raw: Any) -> None:
    with isolated(prefix="shared") as cache:
        cache.set("t", "k", 1)
    assert raw.exists("shared:t:k")


def test_a_clear_of_the_usual_prefix_is_meant_for_the_isolated_one(source: Source, raw: Any) -> None:
    cache = get_cache_manager()
    cache.set("t", "k", "kept")
    with isolated():
        cache.set("t", "k", 1)
        assert cache.clear("magnus:*") == 1
        assert cache.get("t", "k") is None
        cache.set("t", "k", 1)
        asyncio.run(cache.aio.clear("magnus:t:*"))
        assert cache.get("t", "k") is None
    assert cache.get("t", "k") == "kept"


def test_disabled_holds_in_whatever_cache_is_in_use(source: Source) -> None:
    with get_cache_manager().disabled():
        source.plain("a")
        with isolated():
            source.plain("a")
        get_cache_manager().close()
        source.plain("a")
        assert source.calls == ["a"] * 3
    source.plain("a")
    source.plain("a")
    assert source.calls == ["a"] * 4


def test_leaving_an_isolation_in_an_outage_takes_no_time(process: None, proxy: Proxy) -> None:
    with no_leaks():
        with isolated(redis_url=proxy.url, op_timeout=0.2) as cache:
            cache.set("t", "k", 1)
            proxy.black_hole()
            wait_until(lambda: not cache.ping().ok)
        proxy.resume()


def test_a_thread_that_is_there_follows_into_an_isolation_and_back(source: Source) -> None:
    stop = threading.Event()
    prefixes: set[str] = set()

    def call() -> None:
        while not stop.is_set():
            source.plain("a")
            prefixes.add(get_cache_manager()._state.settings.prefix)

    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: prefixes)
    with isolated() as cache:
        wait_until(lambda: cache._state.settings.prefix in prefixes)
    prefixes.clear()
    wait_until(lambda: "magnus" in prefixes)
    stop.set()
    thread.join()


def test_the_package_imports_its_parts_when_they_are_asked_for() -> None:
    script = (
        "import sys, magnus_cache\n"
        "assert not [name for name in sys.modules if name.startswith('magnus_cache.')]\n"
        "from magnus_cache import *\n"
        "assert get_cache_manager and CacheSettings and configure\n"
        "assert not set(magnus_cache.__all__) - set(dir(magnus_cache))\n"
    )
    output_of("-W", "error", "-c", script)
    homes = [name for names in magnus_cache._HOMES.values() for name in names]
    assert sorted(homes) == sorted(magnus_cache.__all__)
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        magnus_cache.no_such_name  # type: ignore[attr-defined]  # noqa: B018  # that is the point


def test_an_operation_under_way_at_a_close_says_so_and_the_next_one_works(process: None) -> None:
    begun, go = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def load() -> str:
        begun.set()
        assert go.wait(10)
        return "value"

    def call() -> None:
        try:
            get_cache_manager().get_or_set("t", "k", load)
        except CacheClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert begun.wait(10)
    get_cache_manager().close()
    go.set()
    thread.join()
    assert len(errors) == 1
    assert get_cache_manager().get_or_set("t", "k", load) == "value"
