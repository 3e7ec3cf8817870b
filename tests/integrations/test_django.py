"""The backend for Django: its contract, its settings, threads and processes.

Django's own tests of caches run in ``nox -s foreign -- django``.
"""

import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest
import redis
from django.core.cache import InvalidCacheBackendError, cache, caches
from django.test import Client, override_settings

from magnus_cache import Namespace, get_cache_manager, register_namespace
from magnus_cache.integrations.django import UnstorableError
from magnus_cache.integrations.django.managers import shared_by
from tests.support.django_site import BACKEND, Awaited, entry, on
from tests.support.parameters import shown
from tests.support.programs import output_of, run_python
from tests.support.wait import wait_until


@pytest.fixture
def use(url: str) -> Iterator[str]:
    with on(url, others={"v2": {"VERSION": 2}, "prefixed": {"KEY_PREFIX": "p"}}):
        yield url


# -- the contract -----------------------------------------------------------------------------------------------


def test_values_are_kept_by_key_and_version(face: Any) -> None:
    face.set("k", None)
    assert face.get("k", "default") is None
    assert face.get("other", "default") == "default"
    assert face.add("k", 1) is False
    assert face.add("new", 1) is True
    assert face.get("new") == 1
    assert face.has_key("k")
    assert not face.has_key("other")
    face.set("k", "two", version=2)
    assert face.get("k") is None
    assert face.get("k", version=2) == caches["v2"].get("k") == "two"
    assert caches["prefixed"].get("new") is None
    assert face.delete("new") is True
    assert face.delete("new") is False
    face.set("", "empty")
    assert face.get("") == "empty"
    key = "long" * 55 + " and ünusual\n"
    with pytest.warns(match="memcached"):
        face.set(key, 1)
    with pytest.warns(match="memcached"):
        assert face.get(key) == 1
    assert face.clear() is None
    assert face.get("k", version=2) is None


def test_many_values(face: Any, use: str) -> None:
    assert face.set_many({"a": 1, "b": None}) == []
    assert face.get_many(iter(["a", "b", "c"])) == {"a": 1, "b": None}
    assert face.set_many({}) == []
    assert face.set_many({"a": 2, "c": 3}, 0) == []
    assert face.get_many(["a", "b", "c"]) == {"b": None}
    face.set_many({"a": 1}, version=2)
    assert face.get_many(["a"], version=2) == {"a": 1}
    assert face.delete_many(["a", "b"]) is None
    assert face.get_many(["a", "b"]) == {}
    with pytest.raises(UnstorableError):
        face.set_many({"a": 1, "b": object()})
    assert face.get("a") is None


def left(raw: Any, key: str) -> float:
    """Seconds that a key of version 1 lives in Redis, or 0."""
    milliseconds: int = raw.pttl(f"magnus:django::1:{key}")
    return max(0, milliseconds) / 1000


def test_timeouts(face: Any, raw: Any) -> None:
    """None is for ever, 0 and less for no time, and what is not given is TIMEOUT."""
    century = 100 * 365 * 86400
    face.set("k", 1)
    assert 290 < left(raw, "k") <= 300
    for write in (face.set, face.add, lambda key, value, life: face.set_many({key: value}, life)):
        face.delete("k")
        write("k", 1, None)
        assert century - 10 < left(raw, "k") <= century
    face.touch("k", 20.5)
    assert 10 < left(raw, "k") <= 20.5
    face.touch("k", 10**12)
    assert century - 10 < left(raw, "k")
    assert face.touch("k") is True
    assert 290 < left(raw, "k") <= 300
    assert face.touch("other") is False
    face.set("k", 2, -1)
    assert face.get("k") is None
    assert face.add("k", 1, 0) is True
    assert face.get("k") is None
    face.set("k", 1)
    assert face.add("k", 1, 0) is False
    assert face.touch("k", 0) is True
    assert face.touch("k", 0) is False
    face.set("k", 1, 0.05)
    wait_until(lambda: face.get("k") is None)
    assert face.get_or_set("k", lambda: 7, 0) == 7
    assert face.get("k") is None
    face.set("k", 1)
    assert face.get_or_set("k", lambda: 7, 0) == 1


def test_numbers(face: Any, raw: Any) -> None:
    face.set("n", 41, 100)
    assert face.incr("n") == 42
    assert face.decr("n", 2) == 40
    assert face.get("n") == 40
    assert 90 < left(raw, "n") <= 100
    assert face.incr("n", 0.5) == 40.5
    assert face.incr("n", 1) == 41.5
    assert 90 < left(raw, "n") <= 100
    for missing in (lambda: face.incr("other"), lambda: face.decr("other", 1.5), lambda: face.incr("n", version=2)):
        with pytest.raises(ValueError, match="not found"):
            missing()
    assert not face.has_key("other")
    face.set("n", None)
    with pytest.raises(TypeError):
        face.incr("n")


def test_a_value_moves_to_another_version(face: Any, raw: Any) -> None:
    face.set("k", "value", 100)
    assert face.incr_version("k") == 2
    assert face.get("k") is None
    assert face.get("k", version=2) == "value"
    assert 90 < max(0, raw.pttl("magnus:django::2:k")) / 1000 <= 100
    assert face.decr_version("k", version=2) == 1
    with pytest.raises(ValueError, match="not found"):
        face.incr_version("k", version=7)


def test_a_default_is_computed_once(face: Any) -> None:
    made: list[int] = []
    assert face.get_or_set("k", lambda: made.append(1)) is None
    assert face.get_or_set("k", lambda: made.append(1)) is None
    assert made == [1]
    assert face.get_or_set("plain", 5) == 5
    with pytest.raises(ZeroDivisionError):
        face.get_or_set("failing", lambda: 1 // 0)
    with pytest.raises(UnstorableError):
        face.get_or_set("object", object)


def test_coroutine_functions_are_awaited_for_a_default(use: str) -> None:
    async def load() -> str:
        return "awaited"

    assert Awaited().get_or_set("k", load) == "awaited"


def test_of_many_threads_one_computes_a_default(use: str) -> None:
    made: list[int] = []
    start = threading.Barrier(8)

    def load() -> str:
        made.append(1)
        time.sleep(0.05)
        return "value"

    def call() -> None:
        start.wait()
        assert cache.get_or_set("k", load) == "value"

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_parts_that_are_cleared_apart(url: str) -> None:
    far = Namespace("far", l1=False)
    others = {"other": {"OPTIONS": {"namespace": "other"}}, "far": {"OPTIONS": {"namespace": far}}}
    with on(url, others=others):
        for alias in caches:
            caches[alias].set("k", alias)
        cache.clear()
        assert [caches[alias].get("k") for alias in caches] == [None, "other", "far"]
        assert caches["far"].manager is cache.manager


@pytest.mark.parametrize("options", [{}, {"codec": "pickle"}], ids=["plain", "pickle"])
def test_a_name_has_the_policy_that_it_is_registered_with(url: str, raw: Any, options: dict[str, str]) -> None:
    options |= {"namespace": "sealed-django", "seal_keys": f"a:{b64encode(bytes(32)).decode()}"}
    register_namespace(Namespace("sealed-django", seal=True), replace=True)
    with on(url, OPTIONS=options):
        cache.set("ada", "s3cret")
        assert cache.get("ada") == "s3cret"
        names = raw.keys("*sealed-django:*")
        assert len(names) == 1
        assert not any(b"ada" in name or b"s3cret" in raw.get(name) for name in names)
        cache.clear()
        assert cache.get("ada") is None


def test_namespaces_of_one_name_with_their_own_policies(url: str) -> None:
    far, near = Namespace("far", l1=False), Namespace("far")
    with on(url, others={"far": {"OPTIONS": {"namespace": far}}, "near": {"OPTIONS": {"namespace": near}}}):
        hits = []
        for alias in ("far", "near"):
            caches[alias].set("k", 1)
            assert caches[alias].get("k") == caches[alias].get("k") == 1
            hits.append(cache.manager.get_stats()["namespaces"]["far"]["l1_hits"])
        assert hits[0] == 0 < hits[1]


def test_a_key_function(url: str) -> None:
    with on(url, KEY_FUNCTION=lambda key, prefix, version: f"{version}-{key}"):
        cache.set("k", 1)
        assert cache.manager.get("django", "1-k") == 1
    with on(url, KEY_FUNCTION=lambda key, prefix, version: key):
        cache.set("", "empty")
        assert cache.get("") == cache.get_many([""])[""] == "empty"


# -- settings ---------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"OPTIONS": {"op_timout": 1}}, r'\["op_timout"\]: there is no such setting; did you mean op_timeout\?'),
    ({"OPTIONS": {"op_timeout": -1}}, r'CACHES\["default"\]\["OPTIONS"\]\["op_timeout"\]: '),
    ({"OPTIONS": {"MAX_ENTRIES": 10}}, r'\["MAX_ENTRIES"\] is no option of this cache: .*l1_max_entries'),
    ({"OPTIONS": {"CLIENT_CLASS": "x"}}, "leave it out"),
    ({"OPTIONS": {"codec": "no.such.thing"}}, r'\["codec"\]: No module named'),
    ({"OPTIONS": {"codec": 1}}, r'\["codec"\] is "pickle", \(dumps, loads\)'),
    ({"OPTIONS": {"codec": (1, 2)}}, r'\["codec"\]: dumps'),
    ({"OPTIONS": {"codec": "pickle", "namespace": Namespace("n")}}, "give the codec to the Namespace"),
    ({"OPTIONS": {"namespace": "a:b"}}, r'\["namespace"\]: '),
    ({"OPTIONS": {"redis_url": "redis://127.0.0.1"}}, "leave out either LOCATION"),
    ({"OPTIONS": 5}, r'CACHES\["default"\]\["OPTIONS"\] is a dict'),
    ({"LOCATION": "127.0.0.1:6379"}, r'\["LOCATION"\] is a URL such as redis://'),
    ({"LOCATION": 5}, r'\["LOCATION"\] is a URL or a list of URLs, not int'),
    ({"LOCATION": "http://127.0.0.1"}, r'CACHES\["default"\]\["LOCATION"\]: '),
    ({"LOCATION": ["redis+cluster://a", "redis://b"]}, "begin alike"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "message"), WRONG, ids=shown)
def test_a_wrong_entry_is_one_clear_line(more: dict[str, Any], message: str) -> None:
    with override_settings(CACHES={"default": {**entry("redis://127.0.0.1"), **more}}):
        with pytest.raises(InvalidCacheBackendError, match=message) as caught:
            cache.get("k")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("location", "options", "expected"),
    [
        ("", {}, {}),
        ("redis://a", {"op_timeout": 1}, {"redis_url": "redis://a", "op_timeout": 1}),
        ("redis://a;redis://b", {}, {"redis_url": "redis://a"}),
        (["redis://a:1/2", "redis://b"], {}, {"redis_url": "redis://a:1/2"}),
        ("redis+cluster://a,b:2", {}, {"redis_url": "redis+cluster://a,b:2"}),
        ("rediss+cluster://u:p@a:1, rediss+cluster://b:2", {}, {"redis_url": "rediss+cluster://u:p@a:1,b:2"}),
        (["redis://a", "redis://b"], {"redis_cluster": True}, {"redis_url": "redis+cluster://a,b"}),
        (["redis+sentinel://a/s", "redis+sentinel://b/s"], {}, {"redis_url": "redis+sentinel://a,b/s"}),
    ],
)
def test_where_redis_is(location: Any, options: dict[str, Any], expected: dict[str, Any]) -> None:
    assert shared_by(location, {"OPTIONS": options}).options == expected


def test_without_a_location_the_process_wide_cache_is_used(use: str) -> None:
    with override_settings(CACHES={"default": {"BACKEND": BACKEND}}):
        assert cache.manager is get_cache_manager()


# -- processes, threads and the end of requests -----------------------------------------------------------------


def test_all_threads_share_a_manager_that_outlives_them_and_requests(use: str) -> None:
    managers: list[Any] = []

    def request() -> None:
        assert Client().get("/visits").status_code == HTTPStatus.OK
        managers.append((caches["default"], cache.manager))

    with override_settings(MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"]):
        for _ in range(3):
            thread = threading.Thread(target=request)
            thread.start()
            thread.join()
    backends = {id(backend) for backend, _ in managers}
    assert len(backends) == 3
    assert len({id(manager) for _, manager in managers}) == 1
    with redis.Redis.from_url(use) as raw:
        assert raw.info("clients")["connected_clients"] <= 3  # this one, the manager's, and its lane


def test_a_manager_that_no_entry_uses_any_more_is_closed(url: str) -> None:
    with on(url):
        cache.set("k", 1)
        kept = cache.manager
        backend = caches["default"]
        with override_settings(CACHES={"default": entry(url), "new": entry(url, OPTIONS={"prefix": "new"})}):
            assert cache.manager is kept
            assert cache.get("k") == 1
            other = caches["new"].manager
            caches["new"].set("k", 2)
        with pytest.raises(RuntimeError, match="closed"):
            other.get("t", "k")
        with override_settings(CACHES={"default": entry(url, OPTIONS={"prefix": "new"})}):
            assert cache.get("k") == 2
        # The backend of a thread that does not know opens its manager again.
        assert backend.get("k") == 1


PREFORK = """
import os, sys
from django.conf import settings
backend = "magnus_cache.integrations.django.MagnusCache"
settings.configure(CACHES={"default": {"BACKEND": backend, "LOCATION": sys.argv[1]}})
from django.core.cache import cache
cache.set("n", 0, None)
assert cache.get("n") == 0
children = []
for _ in range(4):
    child = os.fork()
    if not child:
        added = cache.add("once", os.getpid())
        for _ in range(100): cache.incr("n")
        os._exit(added)
    children.append(child)
codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
print(codes, cache.get("n"), cache.incr("n"))
"""


def test_forked_workers_count_and_add_together(url: str) -> None:
    """As under gunicorn and uwsgi, where the parent may have used the cache before the fork."""
    assert output_of("-W", "error", "-c", PREFORK, url).split("]") == ["[0, 0, 0, 1", " 400 401\n"]


RELOADED = """
import sys, threading
from django.conf import settings
backend = "magnus_cache.integrations.django.MagnusCache"
settings.configure(CACHES={"default": {"BACKEND": backend, "LOCATION": sys.argv[1]}})
from django.core.cache import cache
from django.utils.autoreload import trigger_reload
used = threading.Event()
def serve():
    while True:
        cache.incr("n") if not cache.add("n", 1) else used.set()
        cache.get_or_set("k", lambda: 1, 0.001)
threading.Thread(target=serve, daemon=True).start()
used.wait()
trigger_reload("views.py")
"""


def test_the_development_server_can_start_itself_again(url: str) -> None:
    """It ends with the code 3 in its main thread, while a daemon thread serves requests; its parent starts it again."""
    done = run_python("-W", "error", "-c", RELOADED, url)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
