"""Django's middleware, template tag, sessions and awaited views on our backend, and what rate limits do; outages."""

import asyncio
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import pytest
from django.core.cache import cache, caches
from django.core.cache.utils import make_template_fragment_key
from django.template import engines
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.utils.safestring import SafeString

from magnus_cache import CacheManager
from magnus_cache.testing import Proxy
from tests.foreign.django import BACKEND, NEEDS_PICKLE, NOT_APPLICABLE, SUITE, surprises
from tests.support import django_site as site
from tests.support.django_site import on
from tests.support.documents import PAGES
from tests.support.wait import wait_until

SLACK = 1.0
"""Seconds that a request may take on a busy machine."""


# -- through the doors of Django --------------------------------------------------------------------------------


def test_the_middleware_caches_pages(use: str) -> None:
    middleware = ["django.middleware.cache.UpdateCacheMiddleware", "django.middleware.cache.FetchFromCacheMiddleware"]
    site.calls.clear()
    with override_settings(MIDDLEWARE=middleware):
        first, again = Client().get("/plain"), Client().get("/plain")
        assert first.content == again.content == b"1 for all"
        assert again.cookies["seen"].output() == first.cookies["seen"].output()
        assert again.headers["Expires"] == first.headers["Expires"]
        assert Client().get("/plain", headers={"X-Who": "Ada"}).content == b"2 for Ada"
        assert Client().get("/plain?q=1").content == b"3 for all"
        assert Client().post("/plain").content == b"4 for all"
        assert Client().head("/plain").content == b""
    assert len(site.calls) == 4
    assert [Client().get("/page").content for _ in range(2)] == [b"&lt;Ada&gt; &amp; 5".replace(b"&amp;", b"&")] * 2
    cache.clear()
    assert Client().get("/page").content.endswith(b"6")


def test_the_template_tag_caches_fragments(use: str) -> None:
    source = "{% load cache %}{% cache 60 greeting name %}<b>{{ name }}</b> {{ count }}{% endcache %}"
    template = engines["django"].from_string(source)
    assert template.render({"name": "<Ada>", "count": 1}) == "<b>&lt;Ada&gt;</b> 1"
    assert template.render({"name": "<Ada>", "count": 2}) == "<b>&lt;Ada&gt;</b> 1"
    assert template.render({"name": "Bo", "count": 3}) == "<b>Bo</b> 3"
    fragment = cache.get(make_template_fragment_key("greeting", ["<Ada>"]))
    assert type(fragment) is SafeString
    assert cache.delete(make_template_fragment_key("greeting", ["<Ada>"]))
    assert template.render({"name": "<Ada>", "count": 4}).endswith("4")


def test_sessions(use: str) -> None:
    with override_settings(MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"]):
        one, other = Client(), Client()
        assert [one.get("/visits").json()["visits"] for _ in range(3)] == [1, 2, 3]
        assert other.get("/visits").json()["visits"] == 1
        stolen = one.cookies["sessionid"].value
        one.get("/leave")
        one.cookies["sessionid"] = stolen
        assert one.get("/visits").json()["visits"] == 1
        assert other.get("/visits").json()["visits"] == 2


def test_rate_limits(use: str) -> None:
    assert [Client().get("/limited").status_code for _ in range(5)] == [200, 200, 200, 403, 403]
    assert [Client().get("/throttled").status_code for _ in range(5)] == [200, 200, 200, 429, 429]


def test_awaited_views_and_methods(use: str) -> None:
    async def requests() -> list[Any]:
        found = [(await AsyncClient().get("/awaited")).json() for _ in range(2)]
        # Now whatever asks for a worker thread fails; Django's handler had to.
        asyncio.get_running_loop().set_default_executor(NoThreads())
        before = threading.active_count()
        backend = caches["default"]
        await backend.aset_many({"a": 1, "n": 1.5})
        assert await backend.aincr("n", 1) == 2.5
        assert await asyncio.gather(*(backend.aget("a") for _ in range(20))) == [1] * 20
        assert await backend.aget_or_set("b", lambda: threading.current_thread().name) == "MainThread"
        await backend.aclose()
        assert threading.active_count() <= before
        return found

    assert asyncio.run(requests()) == [{"seen": [1], "count": 5}] * 2


class NoThreads(ThreadPoolExecutor):
    def submit(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a worker thread was asked for")


# -- outages ----------------------------------------------------------------------------------------------------

OP_TIMEOUT = 0.3
PATIENCE = 5 * OP_TIMEOUT + 3
"""Seconds within which a request that waited must end, far less than the 30 of `wait_timeout`."""


def seconds_of(view: Callable[[], Any]) -> tuple[float, Any]:
    began = time.monotonic()
    answer = view()
    return time.monotonic() - began, answer


def test_an_outage_hangs_no_request(proxy: Proxy, url: str) -> None:
    """Redis swallows all that it is sent: the first request waits for op_timeout, the others for nothing."""
    session = ["django.contrib.sessions.middleware.SessionMiddleware"]
    with on(proxy.url, OPTIONS={"op_timeout": OP_TIMEOUT}), override_settings(MIDDLEWARE=session):
        client = Client()
        assert client.get("/visits").json() == {"visits": 1}
        page = client.get("/page").content
        proxy.black_hole()
        first, answer = seconds_of(lambda: client.get("/visits"))
        assert answer.json()["visits"] == 2  # from memory
        assert first < OP_TIMEOUT + SLACK
        for path in ("/visits", "/page", "/limited", "/throttled", "/plain"):
            took, answer = seconds_of(lambda path=path: client.get(path))
            assert answer.status_code == HTTPStatus.OK
            assert took < SLACK, path
        assert client.get("/page").content == page
        cache.set("k", "new")
        assert cache.get("k") == "new"
        assert cache.get("other", "default") == "default"
        cache.set("n", 1)
        assert cache.incr("n") == 2
        with pytest.raises(ValueError, match="not found"):
            cache.incr("missing")
        cache.delete_many(["n"])
        took, answers = seconds_of(lambda: asyncio.run(in_an_outage()))
        assert answers == ["new", None, True, False]
        assert took < SLACK


def test_an_outage_during_a_slow_request_hangs_no_one(proxy: Proxy, url: str) -> None:
    """Those who wait for a load of this process get its value; those who wait for another's load by themselves."""
    begun, gate, elsewhere = threading.Event(), threading.Event(), threading.Event()

    def load_here() -> str:
        begun.set()
        assert gate.wait(30)
        return "here"

    def load_elsewhere() -> str:
        elsewhere.set()
        assert gate.wait(30)
        return "elsewhere"

    site.loads.update(mine=load_here, theirs=lambda: "mine")
    with on(proxy.url, OPTIONS={"op_timeout": OP_TIMEOUT}), CacheManager(redis_url=url) as other:
        cache.get("k")
        with ThreadPoolExecutor(8) as threads:
            far = threads.submit(other.get_or_set, "django", ":1:theirs", load_elsewhere)
            assert elsewhere.wait(30)
            mine = [threads.submit(Client().get, "/slow?key=mine") for _ in range(3)]
            theirs = [threads.submit(Client().get, "/slow?key=theirs") for _ in range(3)]
            assert begun.wait(30)
            proxy.black_hole()
            took, answers = seconds_of(lambda: [each.result(60).content for each in theirs])
            assert answers == [b"mine"] * 3
            assert took < PATIENCE
            gate.set()
            took, answers = seconds_of(lambda: [each.result(60).content for each in mine])
            assert answers == [b"here"] * 3
            assert took < PATIENCE
            assert far.result(60) == "elsewhere"


async def in_an_outage() -> list[Any]:
    backend = caches["default"]
    await backend.aset("a", 1)
    return [await backend.aget("k"), await backend.aget("n"), await backend.aadd("b", 1), await backend.atouch("c")]


def test_what_is_written_in_an_outage_reaches_the_others(proxy: Proxy, url: str) -> None:
    with on(proxy.url, OPTIONS={"op_timeout": OP_TIMEOUT}), CacheManager(redis_url=url) as other:
        cache.set_many({"set": "old", "deleted": "old"})
        assert other.get("django", ":1:set") == "old"
        proxy.refuse()
        proxy.cut()
        cache.get("other")
        wait_until(lambda: not cache.manager.redis_available)
        cache.set("set", "new")
        cache.delete("deleted")
        assert cache.get("deleted") is None
        assert other.get("django", ":1:set") == "old"
        proxy.resume()
        wait_until(lambda: other.get("django", ":1:set") != "old" and other.get("django", ":1:deleted") is None)
        wait_until(lambda: cache.get("set") != "old")


# -- the page of the documentation ------------------------------------------------------------------------------


def test_the_examples_of_the_page_do_what_it_says(url: str) -> None:
    page = PAGES["django"]
    settings, views = list[dict[str, Any]](), list[str]()
    for example in page.examples:
        code = example.code.replace("redis://127.0.0.1:6379/0", url)
        if "def " in code:
            views.append(code)
        else:
            names: dict[str, Any] = {}
            exec(code, names)
            settings.append({name: value for name, value in names.items() if name.isupper()})
    assert len(settings) == 3
    assert len(views) == 1
    for several in settings:
        with override_settings(**several):
            for alias in several["CACHES"]:
                caches[alias].set("k", alias)
                assert caches[alias].get("k") == alias
            names = {}
            exec(views[0], names)
            request = RequestFactory().get("/report")
            assert names["weekly_report"](request).content == names["weekly_report"](request).content == b'{"rows": 3}'
            expected = b'{"ticker": "AAPL", "price": 190.5}'
            assert names["quote"](request, "AAPL").content == expected
            assert asyncio.run(names["awaited_quote"](request, "AAPL")).content == expected
            assert cache.get("quote:AAPL") == 190.5


def test_the_page_lists_what_of_djangos_tests_does_not_apply() -> None:
    section = PAGES["django"].section("Django's own tests")
    listed = dict(re.findall(r"^\| (`test_[^|]*) \| ([^|]+) \|$", section, re.MULTILINE))
    told = {name: reason for names, reason in listed.items() for name in re.findall(r"`(\w+)`", names)}
    reasons = {
        **NOT_APPLICABLE,
        **{test: f'{why}; passes with the codec `"pickle"`' for test, why in NEEDS_PICKLE.items()},
    }
    assert told == {test.rpartition(".")[2]: reason for test, reason in reasons.items()}


def test_a_run_of_djangos_tests_tells_what_is_a_surprise() -> None:
    expected = {f"{label}.test": "passed" for some in SUITE.values() for label in some}
    expected |= dict.fromkeys(NOT_APPLICABLE, "failed")
    plain = {**expected, **dict.fromkeys(NEEDS_PICKLE, "failed")}
    assert surprises(plain, "") == []
    assert surprises({**expected, **dict.fromkeys(NEEDS_PICKLE, "passed")}, "pickle") == []
    (wrong,) = surprises({**plain, f"{BACKEND}.test_add": "failed"}, "")
    assert wrong == f"{BACKEND}.test_add: failed, and not listed"
    (wrong,) = surprises({**plain, f"{BACKEND}.test_get_client": "passed"}, "")
    assert wrong == f"{BACKEND}.test_get_client: passed, and listed as one that fails"
    del plain["template_tests.syntax_tests.test_cache.test"]
    assert surprises(plain, "") == ["template_tests.syntax_tests.test_cache: no test has run"]
