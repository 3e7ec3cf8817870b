"""Clears by glob: the keys as their callers wrote them, in Redis and in memory, here and in peers."""

import asyncio
import uuid
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from magnus_cache import AsyncCacheManager, CacheManager, Namespace, register_namespace
from magnus_cache._engine.keys.globs import spellings
from magnus_cache._engine.keys.names import Keyspace, key_text
from magnus_cache._engine.policy.registry import default_registry
from magnus_cache.errors import CacheArgumentError
from tests.support.effort import examples
from tests.support.fleet_of_managers import fleet, near
from tests.support.inside import glob_regex

pytestmark = pytest.mark.anyio

LONG = "report:" + "x" * 300 + ":pdf"
UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")

COVERED: list[tuple[Any, str]] = [
    ("plain", "g:pl*"),
    ("hello world", "g:hello w*"),
    ("hello world", "g:hello?world"),
    ("hello world", "magnus:g:h*[ _]world"),
    ("hello world", "*hello w*"),
    ("hello world", "g*:hello wor*"),
    ("a{1}", "g:a{*"),
    ("50%", "g:5?%*"),
    ("~home", "g:~*"),
    ("x\ny", "g:x\n*"),
    ("M\u00fcller", "g:M?ller"),
    ("M\u00fcller", "g:*\u00fcll*"),
    ("\u4e2d\u6587", "g:\u4e2d?"),
    ("a*b", "g:a\\*b"),
    ("\ud800x", "g:\ud800*"),
    (2025, "g:2025*"),
    (2025, "g:20?5"),
    (-7, "g:-*"),
    (10**90, "g:1000*"),
    (True, "g:T*"),
    (b"raw \xff", "g:raw *"),
    (UUID, "g:12345678-*"),
    (("AAPL", 2025), "g:AAPL:*"),
    (("AAPL", 2025), "g:(AAPL,20*"),
    (("AAPL", 2025), "g:('AAPL', *"),
    (("a b", ("c", b"d", "")), "g:*'a b', ('c', b'd', ''))*"),
    (("one",), "g:('one',)*"),
    (("", ()), "g:('', ())*"),
    (LONG, "g:report:xx*"),
    (LONG, "g:report:" + "x" * 100 + "*"),
    (LONG, "g:*:pdf"),
    (LONG, "g:report:" + "?" * 300 + ":pdf"),
    ("hello " * 60, "g:hello hello*"),
    ("\u00fc" * 150, "g:\u00fc\u00fc*"),
    (("AAPL", "y" * 300), "g:(AAPL,yy*"),
    (("AAPL", "y" * 300), "g:('AAPL', 'y*"),
    (10**400, "g:1000*"),
    (b"raw" * 100, "g:rawraw*"),
]

NOT_COVERED: list[tuple[Any, str]] = [
    ("hello world", "g:hello%20w*"),
    ("hello%20world", "g:hello w*"),
    ("~home", "g:%7E*"),
    (2025, "g:~*"),
    ("x", "g:~*"),
    (UUID, "g:uuid*"),
    (b"raw", "g:b:*"),
    ("aab", "g:a?"),
    ("Q", "g:[^Q]*"),
    (LONG, "g:invoice*"),
    (LONG, "g:report:y*"),
    (LONG, "g:report:xx[x]"),
    (LONG, "g:report:" + "?" * 20),
    (("AAPL", 2025), "g:MSFT*"),
    (("AAPL", "y" * 300), "g:(AAPL,z*"),
    ("plain", "other:pl*"),
]


@pytest.mark.parametrize(("key", "glob"), COVERED)
def test_a_glob_covers_the_key_as_it_was_written(key: Any, glob: str) -> None:
    name = Keyspace().value_name("g", key)
    scope = Keyspace().scope(glob)
    assert scope.covers(name)
    # The server leaves out what SCAN does not match; memory asks the glob alone.
    assert glob_regex(scope.pattern.decode("latin-1")).fullmatch(name.decode("latin-1"))
    assert scope.glob is not None
    assert scope.glob.fullmatch(name)


@pytest.mark.parametrize(("key", "glob"), NOT_COVERED)
def test_a_glob_covers_no_key_by_its_internal_text(key: Any, glob: str) -> None:
    assert not Keyspace().scope(glob).covers(Keyspace().value_name("g", key))


TEXTS = st.text(st.sampled_from("ab %~{}(),=:*?[]\\\n\x00\u00fc\ud800"), min_size=1, max_size=9)
GLOBS = st.text(st.sampled_from("ab %~{}(),:*?[]\\\n\u00fc\ud800"), min_size=1, max_size=7)


@settings(max_examples=examples(1000))
@given(TEXTS, GLOBS)
def test_a_string_is_matched_as_it_is(key: str, glob: str) -> None:
    name, scope = Keyspace().value_name("g", key), Keyspace().scope(f"g:{glob}*")
    wanted = glob_regex(f"{glob}*").fullmatch(key) is not None
    assert scope.covers(name) is wanted
    if wanted:
        assert glob_regex(scope.pattern.decode("latin-1")).fullmatch(name.decode("latin-1"))


@settings(max_examples=examples(300))
@given(st.text(st.sampled_from("ab %~\u00fc\ud800\U0001f600"), min_size=201, max_size=260), st.integers(1, 80))
def test_a_long_string_is_covered_by_each_of_its_beginnings(key: str, length: int) -> None:
    name = Keyspace().value_name("g", key)
    literal = "".join(f"\\{character}" if character in "*?[\\" else character for character in key[:length])
    for glob in (f"g:{literal}*", f"*{literal}*", f"g:{'?' * length}*", f"g:{literal}*{key[-3:]}"):
        assert Keyspace().scope(glob).covers(name)
    beginning, whole = next(iter(spellings(key_text(key).encode())))
    assert not whole
    assert key.startswith(beginning)
    assert len(beginning) >= 4


PARTS = st.recursive(
    TEXTS | st.integers() | st.booleans() | st.uuids() | st.binary(max_size=5) | st.just(""),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)


@settings(max_examples=examples(500))
@given(st.lists(PARTS, min_size=1, max_size=3).map(tuple))
def test_a_tuple_is_matched_as_it_is_written(key: Any) -> None:
    text = key_text(key).encode()
    if b"~#" not in text:
        assert (repr(key), True) in list(spellings(text))


@given(st.binary(max_size=40))
def test_names_of_others_are_read_as_well_as_can_be(text: bytes) -> None:
    for glob in ("magnus:g:a*", "*a*", "g:?*"):
        Keyspace().scope(glob).covers(b"magnus:g:" + text)


@pytest.mark.parametrize("arguments", [("New York",), (7,), (("a", 1),), ("y" * 300,)])
def test_calls_of_cached_functions_are_matched_by_their_keys_and_by_what_these_say(arguments: tuple[Any, ...]) -> None:
    with CacheManager(redis_enabled=False) as cache:

        @cache.cached("g")
        def report(city: Any, page: int = 1) -> list[Any]:
            calls.append(city)
            return [city, page]

        calls: list[Any] = []
        key = report.cache_key(*arguments)
        for glob in (f"g:{key[:40]}*", "g:*report*", "g:*city=[Ny7(]*"):
            report(*arguments)
            cache.clear(glob)
            calls.clear()
            report(*arguments)
            assert len(calls) == 1


@pytest.mark.parametrize(("key", "glob"), [pair for pair in COVERED if "\ud800" not in str(pair)])
async def test_a_clear_by_glob_removes_it_everywhere(url: str, raw: redis.Redis, key: Any, glob: str) -> None:
    async with fleet(url) as (one, two):
        await one.set("g", key, "old")
        await one.set("g", "Another", "kept")
        await one.set("other", "Another", "kept")
        assert await two.get("g", key) == "old"
        assert near(one, "g", key)
        assert near(two, "g", key)
        assert await one.clear(glob) == 1
        assert await one.get("g", key) is None
        assert await two.get("g", key) is None
        assert raw.exists(Keyspace().value_name("g", key)) == 0
        assert await two.get("g", "Another") == await two.get("other", "Another") == "kept"


@pytest.mark.parametrize(("key", "glob"), NOT_COVERED)
async def test_a_clear_by_glob_leaves_alone_what_it_does_not_cover(url: str, key: Any, glob: str) -> None:
    async with fleet(url) as (one, two):
        await one.set("g", key, "kept")
        assert await two.get("g", key) == "kept"
        assert await one.clear(glob) == 0
        assert await one.get("g", key) == await two.get("g", key) == "kept"


@pytest.mark.parametrize(("key", "glob"), COVERED)
def test_a_clear_by_glob_in_memory_alone(key: Any, glob: str) -> None:
    with CacheManager(redis_enabled=False) as cache:
        cache.set("g", key, "old")
        cache.set("g", "Another", "kept")
        cache.clear(glob)
        assert cache.get("g", key) is None
        assert cache.get("g", "Another") == "kept"


@pytest.mark.parametrize("where", ["here", "in a peer"])
@pytest.mark.parametrize(("key", "glob"), [("hello world", "g:hello w*"), (2025, "g:20*"), (LONG, "g:*:pdf")])
async def test_a_load_that_a_glob_overtakes_is_not_stored(url: str, where: str, key: Any, glob: str) -> None:
    """Invariant: what a clear overtakes may be returned to callers that wait, and is never stored."""
    began, go = asyncio.Event(), asyncio.Event()

    async def load() -> str:
        began.set()
        await go.wait()
        return "old"

    async with fleet(url) as (one, two):
        loading = asyncio.ensure_future(one.get_or_set("g", key, load))
        await began.wait()
        await (one if where == "here" else two).clear(glob)
        go.set()
        assert await loading == "old"
        assert await one.get("g", key) is None
        assert await two.get("g", key) is None


# -- other caches' prefixes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "right"),
    [("magnus:*", "'desk:*'"), ("magnus*", "'desk:*'"), ("magnus:portfolio:u*", "'desk:portfolio:u*'")],
)
def test_the_default_prefix_under_another_one_is_refused(glob: str, right: str) -> None:
    with CacheManager(redis_enabled=False, prefix="desk") as cache:
        cache.set("portfolio", "u", 1)
        with pytest.raises(CacheArgumentError, match="^namespace_or_pattern: ") as caught:
            cache.clear(glob)
        assert right in str(caught.value)
        assert cache.get("portfolio", "u") == 1
        cache.clear("desk:*")
        assert cache.get("portfolio", "u") is None


async def test_the_default_prefix_under_another_one_is_refused_to_coroutines() -> None:
    async with AsyncCacheManager(redis_enabled=False, prefix="desk") as cache:
        with pytest.raises(CacheArgumentError, match="'desk:\\*'"):
            await cache.clear("magnus:*")


def test_a_namespace_that_is_named_like_the_default_prefix_can_be_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_registry, "_registered", dict(default_registry._registered))
    with CacheManager(redis_enabled=False, prefix="desk") as cache:
        cache.set("magnus", "u", 1)
        cache.clear("desk:magnus:*")
        assert cache.get("magnus", "u") is None
        register_namespace(Namespace("magnus", ttl=5))
        cache.set("magnus", "u", 1)
        cache.clear("magnus:u*")
        assert cache.get("magnus", "u") is None


async def test_the_prefix_of_any_other_cache_on_the_server_is_refused(url: str) -> None:
    async with (
        AsyncCacheManager(redis_url=url, prefix="shop") as shop,
        AsyncCacheManager(redis_url=url, prefix="desk") as desk,
    ):
        await shop.set("orders", 1, "kept")
        await shop.clear("something")
        for glob, right in (("shop:*", "'desk:*'"), ("shop:orders:1*", "'desk:orders:1*'")):
            with pytest.raises(CacheArgumentError) as caught:
                await desk.clear(glob)
            assert "'shop'" in str(caught.value)
            assert right in str(caught.value)
        assert await shop.get("orders", 1) == "kept"
        # Nobody's prefix, so a namespace that this process has not seen yet.
        assert await desk.clear("visits:*") == 0
        # One that it uses, whoever else has that name for a prefix.
        await desk.set("shop", "a", 1)
        assert await desk.clear("shop:a*") == 1
        assert await desk.get("shop", "a") is None
