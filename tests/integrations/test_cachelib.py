"""The cachelib interface: what programs, Flask-Caching and Flask-Session see of it, on a real server."""

import pickle
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any

import flask
import flask_caching
import flask_session
import pytest
import redis
from cachelib.serializers import JSONSerializer
from hypothesis import given, settings
from hypothesis import strategies as st

from magnus_cache import (
    TTL_FOREVER,
    AsyncCacheManager,
    CacheArgumentError,
    CacheEncodeError,
    CacheManager,
    CacheTypeError,
    Namespace,
    register_namespace,
)
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.integrations.cachelib import MagnusCache
from magnus_cache.integrations.flask import MagnusCache as Backend
from magnus_cache.testing import Proxy

CACHELIB = "magnus_cache.integrations.cachelib.MagnusCache"
BACKEND = "magnus_cache.integrations.flask.MagnusCache"


class Quote:
    """What the cache's own format does not store."""

    def __init__(self, price: Decimal) -> None:
        self.price = price

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quote) and self.price == other.price

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture
def cache(manager: CacheManager) -> MagnusCache:
    return MagnusCache(manager)


# -- the interface ----------------------------------------------------------------------------------------------


def test_values_come_back_as_they_are_also_to_another_process(cache: MagnusCache, url: str) -> None:
    values = {"a": (1, [2, {"x": None}]), "b": b"bytes", "c": None, "d": Decimal("1.50"), "e": True}
    assert cache.set_many(values) == list(values)
    with CacheManager(redis_url=url) as manager:
        other = MagnusCache(manager)
        assert other.get_dict(*values) == values
        assert other.get_many("e", "missing", "a", "e") == [True, None, values["a"], True]
        assert other.get("a") == values["a"]
        assert type(other.get("a")) is tuple


def test_none_is_a_value_for_has_alone(cache: MagnusCache) -> None:
    assert cache.set("k", None)
    assert cache.get("k") is None
    assert cache.has("k")
    assert not cache.has("other")


@pytest.mark.parametrize(
    ("timeout", "left"),
    [
        (None, 300), (0, TTL_FOREVER), (60, 60), (2.5, 2.5), (timedelta(minutes=5), 300), (timedelta(), TTL_FOREVER),
        (10**12, TTL_FOREVER),
    ],
)  # fmt: skip
def test_a_timeout_is_what_cachelib_says(cache: MagnusCache, timeout: Any, left: float) -> None:
    cache.set("set", 1, timeout)
    cache.add("add", 1, timeout)
    cache.set_many({"many": 1}, timeout)
    for key in ("set", "add", "many"):
        assert cache.manager.ttl(cache.namespace, key) == pytest.approx(left, abs=2)


def test_a_default_timeout_of_zero_is_no_end(manager: CacheManager) -> None:
    cache = MagnusCache(manager, default_timeout=0)
    cache.set("k", 1)
    cache.inc("n")
    for key in ("k", "n"):
        assert manager.ttl(cache.namespace, key) == pytest.approx(TTL_FOREVER, rel=0.01)


@pytest.mark.parametrize("timeout", [-1, float("nan"), timedelta(seconds=-1), "soon", True])
def test_a_timeout_that_means_nothing_is_named(cache: MagnusCache, timeout: Any) -> None:
    for store in (cache.set, cache.add):
        with pytest.raises(CacheArgumentError, match="^timeout: "):
            store("k", 1, timeout)
    with pytest.raises(CacheArgumentError, match="^timeout: "):
        cache.set_many({"k": 1}, timeout)
    assert not cache.has("k")


def test_only_one_adds(cache: MagnusCache) -> None:
    with ThreadPoolExecutor(8) as threads:
        added = list(threads.map(lambda number: cache.add("lock", number), range(8)))
    assert added.count(True) == 1
    assert cache.get("lock") == added.index(True)


def test_counts_of_all_threads_are_counted(cache: MagnusCache) -> None:
    cache.set("n", 10)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: cache.inc("n", 2), range(50)))
    assert cache.get("n") == 110
    assert cache.dec("n", 10) == 100
    assert cache.dec("new") == -1
    with pytest.raises(CacheTypeError, match="^delta: "):
        cache.inc("n", 1.5)  # type: ignore[arg-type]
    cache.set("text", "x")
    with pytest.raises(CacheTypeError):
        cache.inc("text")


def test_what_is_deleted_is_gone_and_a_missing_key_counts(cache: MagnusCache) -> None:
    cache.set_many({"a": 1, "b": 2, "c": 3})
    assert cache.delete("a")
    assert not cache.delete("a")
    assert cache.delete_many("b", "missing") == ["b", "missing"]
    assert cache.get_many("a", "b", "c") == [None, None, 3]
    assert cache.delete_many() == []
    assert cache.set_many({}) == []


def test_prefixes_keep_applications_apart_and_clear_removes_one(manager: CacheManager) -> None:
    shop, odd = MagnusCache(manager, key_prefix="shop:"), MagnusCache(manager, key_prefix="sh?p:")
    for cache in (shop, odd):
        cache.set("k", cache.key_prefix)
    assert (shop.get("k"), odd.get("k")) == ("shop:", "sh?p:")
    assert odd.clear()
    assert (shop.get("k"), odd.get("k")) == ("shop:", None)
    MagnusCache(manager).set("whole", 1)
    MagnusCache(manager).clear()
    assert shop.get("k") is None


@settings(max_examples=30)
@given(st.lists(st.text("ab*?[]^\\: ", min_size=1, max_size=4), min_size=2, max_size=3, unique=True))
def test_clear_removes_exactly_what_begins_with_its_prefix(prefixes: list[str]) -> None:
    with CacheManager(redis_enabled=False) as manager:
        caches = [MagnusCache(manager, key_prefix=prefix) for prefix in prefixes]
        for cache in caches:
            cache.set("k", 1)
        caches[0].clear()
        for prefix, cache in zip(prefixes, caches, strict=True):
            assert cache.has("k") == (not f"{prefix}k".startswith(prefixes[0]))


def test_a_prefix_may_be_a_function(manager: CacheManager) -> None:
    tenant = "a"
    cache = MagnusCache(manager, key_prefix=lambda: f"{tenant}/")
    cache.set("k", 1)
    tenant = "b"
    assert cache.get("k") is None
    cache.set("k", 2)
    tenant = "a"
    assert cache.get("k") == 1


# -- codecs -----------------------------------------------------------------------------------------------------


def test_a_value_that_cannot_be_stored_is_refused_with_the_remedy(cache: MagnusCache) -> None:
    for store in (
        lambda: cache.set("k", Quote(Decimal(1))), lambda: cache.add("k", Quote(Decimal(1))),
        lambda: cache.set_many({"j": 1, "k": Quote(Decimal(1))}),
    ):  # fmt: skip
        with pytest.raises(CacheEncodeError, match='Quote.*codec="pickle"'):
            store()
    assert not cache.has("j")


@pytest.mark.parametrize("codec", ["pickle", (pickle.dumps, pickle.loads), pickle], ids=["name", "pair", "serializer"])
def test_a_codec_stores_what_it_can(manager: CacheManager, codec: Any, url: str) -> None:
    cache = MagnusCache(manager, codec=codec)
    quote = Quote(Decimal("1.5"))
    assert cache.set("k", quote)
    with CacheManager(redis_url=url) as other:
        assert MagnusCache(other, codec=codec).get("k") == quote
        # Nothing is unpickled by one that was not asked to.
        assert MagnusCache(other).get("k") is None
    cache.set("n", 5)
    assert cache.inc("n") == 6
    assert cache.get("n") == 6


def test_a_serializer_of_cachelib_can_be_set(cache: MagnusCache) -> None:
    cache.serializer = JSONSerializer()
    cache.set("k", (1, 2))
    assert cache.get("k") == [1, 2]
    cache.serializer = None
    assert cache.serializer is None


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("cache", {"cache": object()}), ("key_prefix", {"key_prefix": 5}), ("namespace", {"namespace": 5}),
        ("codec", {"codec": "marshal"}), ("codec", {"codec": (1, 2)}), ("default_timeout", {"default_timeout": -1}),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(manager: CacheManager, argument: str, given: dict[str, Any]) -> None:
    with pytest.raises(CacheArgumentError, match=f"^{argument}: "):
        MagnusCache(**{"cache": manager, **given})


def test_a_namespace_keeps_its_policy(manager: CacheManager) -> None:
    cache = MagnusCache(manager, namespace=Namespace("web", max_value_bytes=100, ttl=5, codec=(repr_bytes, eval)))
    assert cache.namespace.max_value_bytes == 100
    assert cache.namespace.ttl == 300
    cache.set("k", (1, 2))
    assert cache.get("k") == (1, 2)


def test_a_name_has_the_policy_that_it_is_registered_with(url: str, raw: redis.Redis) -> None:
    register_namespace(Namespace("sealed-web", seal=True), replace=True)
    with CacheManager(redis_url=url, seal_keys=f"a:{b64encode(bytes(32)).decode()}") as manager:
        cache, theirs = (MagnusCache(manager, namespace="sealed-web", key_prefix=prefix) for prefix in ("a:", "b:"))
        assert cache.set("ada", "s3cret")
        assert theirs.set("ada", "s3cret")
        names: Any = raw.keys("*sealed-web:*")
        assert len(names) == 2
        assert not any(b"ada" in name or b"s3cret" in raw.get(name) for name in names)  # type: ignore[operator]
        # Which of them begin with the prefix, Redis cannot know.
        assert cache.clear()
        assert (cache.get("ada"), theirs.get("ada")) == (None, None)


def repr_bytes(value: Any) -> bytes:
    return repr(value).encode()


def test_an_async_manager_is_the_same_cache(url: str) -> None:
    manager = AsyncCacheManager(redis_url=url)
    cache = MagnusCache(manager)
    cache.set("k", 1)
    assert manager.sync.get(cache.namespace, "k") == 1
    manager.sync.close()


# -- outages ----------------------------------------------------------------------------------------------------


def test_an_outage_hangs_no_one_and_counts_nothing(proxy: Proxy) -> None:
    with CacheManager(redis_url=proxy.url, op_timeout=0.3) as manager:
        cache = MagnusCache(manager)
        cache.set("k", 1)
        proxy.freeze()
        began = time.monotonic()
        assert cache.get("k") == 1
        assert cache.set("j", 2)
        assert cache.get_many("j", "k") == [2, 1]
        assert cache.inc("n") is None
        assert cache.dec("n") is None
        assert cache.delete("j") in (True, False)
        assert cache.get("j") is None
        assert cache.clear()
        assert not cache.has("k")
        assert time.monotonic() - began < 5
        proxy.thaw()


# -- Flask-Caching ----------------------------------------------------------------------------------------------


def application(manager: CacheManager, kind: str, **config: Any) -> tuple[flask.Flask, flask_caching.Cache]:
    options = {"cache": manager, **config.pop("CACHE_OPTIONS", {})}
    app = flask.Flask("shop")
    app.config.update(CACHE_TYPE=kind, CACHE_OPTIONS=options, **config)
    return app, flask_caching.Cache(app)


@pytest.fixture(params=[CACHELIB, BACKEND], ids=["cachelib", "flask"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


def test_views_functions_and_fragments_are_cached(manager: CacheManager, kind: str) -> None:
    app, cache = application(manager, kind, CACHE_OPTIONS={"codec": "pickle"})
    calls: list[Any] = []

    @app.get("/quote")
    @cache.cached(timeout=60, query_string=True)
    def quote() -> Any:
        calls.append("view")
        return flask.jsonify(price=flask.request.args["ticker"])

    @app.get("/plain")
    @cache.cached()
    def plain() -> Any:
        calls.append("plain")
        return "text", 201, {"X-Kind": "plain"}

    @cache.memoize(60)
    def price(ticker: str) -> Decimal:
        calls.append(ticker)
        return Decimal(1)

    @app.get("/page")
    def page() -> str:
        return flask.render_template_string(
            "{% cache 60, 'fragment' %}{{ shown() }}{% endcache %}", shown=lambda: calls.append("page") or "shown"
        )

    client = app.test_client()
    for ticker in ("A", "A", "B"):
        assert client.get(f"/quote?ticker={ticker}").json == {"price": ticker}
    for _ in range(2):
        answer = client.get("/plain")
        assert (answer.text, answer.status_code, answer.headers["X-Kind"]) == ("text", 201, "plain")
        assert client.get("/page").text == "shown"
        with app.app_context():
            assert price("A") == price("B") == Decimal(1)
    assert calls == ["view", "view", "plain", "page", "A", "B"]
    with app.app_context():
        cache.delete_memoized(price, "A")
        price("A")
        price("B")
        assert calls[6:] == ["A"]
        cache.delete_memoized(price)
        price("B")
        assert calls[7:] == ["B"]
        cache.clear()
        price("B")
    assert calls[8:] == ["B"]


def test_a_response_without_a_codec_is_served_and_the_log_names_the_option(
    manager: CacheManager, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, cache = application(manager, kind)

    @app.get("/")
    @cache.cached()
    def view() -> Any:
        return flask.make_response("text")

    assert app.test_client().get("/").text == "text"
    assert 'CACHE_OPTIONS = {"codec": "pickle"}' in caplog.text


def test_the_key_prefix_of_flask_caching_is_the_namespace(manager: CacheManager) -> None:
    caches = {}
    for prefix in ("shop:", "blog:"):
        app, cache = application(manager, BACKEND, CACHE_KEY_PREFIX=prefix, CACHE_DEFAULT_TIMEOUT=timedelta(minutes=1))
        with app.app_context():
            cache.set("k", prefix)
            caches[prefix] = cache.cache
    assert [cache.namespace for cache in caches.values()] == ["shop%3A", "blog%3A"]
    assert caches["shop:"].namespace.ttl == 60
    caches["shop:"].clear()
    assert [cache.get("k") for cache in caches.values()] == [None, "blog:"]


def test_a_namespace_and_a_key_prefix_can_be_given_apart(manager: CacheManager) -> None:
    app, cache = application(manager, BACKEND, CACHE_KEY_PREFIX="shop:", CACHE_OPTIONS={"namespace": "web"})
    with app.app_context():
        cache.set("k", 1)
        assert isinstance(cache.cache, Backend)
    assert manager.get("web", "shop:k") == 1


def test_a_serializer_of_the_configuration_is_used(manager: CacheManager, kind: str) -> None:
    app, cache = application(manager, kind, CACHE_SERIALIZER=JSONSerializer())
    with app.app_context():
        cache.set("k", (1,))
        assert cache.get("k") == [1]


def test_an_outage_fails_no_request(proxy: Proxy) -> None:
    with CacheManager(redis_url=proxy.url, op_timeout=0.3) as manager:
        app, cache = application(manager, BACKEND)
        calls = []

        @app.get("/<path>")
        @cache.cached()
        def view(path: str) -> str:
            calls.append(path)
            return path

        client = app.test_client()
        assert client.get("/a").text == "a"
        proxy.freeze()
        began = time.monotonic()
        assert [client.get(f"/{path}").text for path in "abcab"] == list("abcab")
        assert time.monotonic() - began < 3
        assert calls == ["a", "b", "c"]
        proxy.thaw()


def test_sessions_of_flask_session_are_kept(manager: CacheManager) -> None:
    app = flask.Flask("shop")
    app.config.update(
        SESSION_TYPE="cachelib", SESSION_CACHELIB=MagnusCache(manager, namespace="sessions"), SECRET_KEY="k"
    )
    flask_session.Session(app)

    @app.get("/<name>")
    def remember(name: str) -> list[str]:
        names: list[str] = flask.session.setdefault("names", [])
        names.append(name)
        flask.session.modified = True
        return names

    one, two = app.test_client(), app.test_client()
    assert one.get("/a").json == ["a"]
    assert two.get("/b").json == ["b"]
    assert one.get("/c").json == ["a", "c"]
    manager.clear("sessions")
    assert one.get("/d").json == ["d"]


_FORKED = """
import os, flask, flask_caching, magnus_cache
magnus_cache.configure(redis_url={url!r})
app = flask.Flask("shop")
app.config["CACHE_TYPE"] = "magnus_cache.integrations.flask.MagnusCache"
cache = flask_caching.Cache(app)
with app.app_context():
    cache.set("parent", os.getpid())
    child = os.fork()
    if not child:
        assert cache.get("parent") == os.getppid()
        assert cache.cache.inc("n") == 1
        cache.set("child", os.getpid())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.get("child") == child
    assert cache.cache.inc("n") == 2
"""


def test_a_forked_worker_has_connections_of_its_own(server: EmbeddedServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORKED.format(url=server.url)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_share_one_connection(cache: MagnusCache, call_in_threads: Callable[..., None]) -> None:
    def use(number: int) -> None:
        for turn in range(20):
            cache.set(f"{number}", turn)
            assert cache.get(f"{number}") == turn

    call_in_threads(use, 8)


@pytest.fixture
def call_in_threads() -> Callable[[Callable[[int], None], int], None]:
    def call(function: Callable[[int], None], count: int) -> None:
        failed: list[BaseException] = []

        def guarded(number: int) -> None:
            try:
                function(number)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed

    return call
