"""Services that refuse for now: with a budget, HTTP clients and clients of models pause their source for the fleet."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest
import redis

from magnus_cache import AsyncCacheManager, Budget, CacheBudgetError, CacheManager, Namespace, RetryLater
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.integrations.llm import LLMCache
from magnus_cache.integrations.llm.refusals import retry_later_of
from tests.conftest import emptied
from tests.support.http_clients import KINDS, asking
from tests.support.llm_server import LLMServer
from tests.support.origin import Origin, Reply, Seen, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
def server(running: Callable[[str], EmbeddedServer]) -> EmbeddedServer:
    return emptied(running("valkey"))


@pytest.fixture
async def cache(url: str) -> AsyncIterator[AsyncCacheManager]:
    async with AsyncCacheManager(redis_url=url) as cache:
        yield cache


@pytest.fixture
def origin() -> Iterator[Origin]:
    with serving() as origin:
        yield origin


class Refusing:
    """Refuses some requests, and answers the others."""

    def __init__(self, refusals: int, seconds: str, status: int = 429) -> None:
        self.refusals = refusals
        self.seconds = seconds
        self.status = status
        self.at: list[float] = []

    def __call__(self, seen: Seen) -> Reply:
        self.at.append(time.monotonic())
        if len(self.at) <= self.refusals:
            return Reply({"retry-after": self.seconds}, b"slow down", self.status)
        return Reply({"cache-control": "max-age=60"}, b"page")


async def load(key: Any = None) -> Any:
    return key


# -- HTTP ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_waits_for_the_end_of_a_pause_of_its_budget(
    cache: AsyncCacheManager, origin: Origin, kind: str, status: int
) -> None:
    refusing = Refusing(1, "1", status)
    url = origin.says("/a", refusing)
    async with asking(kind, cache, namespace=Namespace("http", budget="100/s", hard_timeout=20)) as ask:
        got = await ask(url)
        assert (got.status, got.text, got.origin) == (200, "page", "miss")
        assert refusing.at[1] - refusing.at[0] >= 1
        assert (await ask(url)).origin == "hit"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_pause_of_a_budget_holds_for_all_who_share_it(
    cache: AsyncCacheManager, url: str, origin: Origin, kind: str
) -> None:
    vendor = Budget("100/s", source="vendor")
    web, own = Namespace("http", budget=vendor, hard_timeout=1), Namespace("own", budget=vendor, hard_timeout=1)
    refusing = Refusing(1, "60")
    page = origin.says("/a", refusing)
    async with asking(kind, cache, namespace=web) as ask, AsyncCacheManager(redis_url=url) as elsewhere:
        # The response that it got itself, with the time that is left.
        got = await ask(page)
        assert (got.status, got.text, got.headers["retry-after"]) == (429, "slow down", "60")
        with pytest.raises(CacheBudgetError, match="'vendor' is paused"):
            await elsewhere.get_or_set(own, "k", load)
        # One made here, for a request that did not go out: of another user, too.
        other = await ask(page, authorization="Bearer other")
        assert (other.status, other.text, other.origin) == (429, "", "miss")
        assert 50 <= int(other.headers["retry-after"]) <= 60
    assert len(refusing.at) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_past_its_budget_gets_a_429_or_a_stale_response(
    cache: AsyncCacheManager, origin: Origin, kind: str
) -> None:
    url = origin.counts("/a", cache_control="max-age=60")
    origin.says("/b", Reply({"cache-control": "max-age=0, stale-if-error=600", "etag": '"1"'}, b"page"))
    limited = Namespace("http", budget={"*/a*": "1/h", "*/b*": "1/h"}, hard_timeout=1)
    async with asking(kind, cache, namespace=limited) as ask:
        assert (await ask(url)).status == 200
        got = await ask(url + "?other")
        assert got.status == 429
        assert 3_000 < int(got.headers["retry-after"]) <= 3_601
        assert (await ask(origin.url + "/b")).text == "page"
        assert (await ask(origin.url + "/b"))[:3] == (200, "page", "stale")
    assert (origin.count("/a"), origin.count("/b")) == (1, 1)


async def test_a_url_without_a_budget_pauses_its_host_alone(
    cache: AsyncCacheManager, raw: redis.Redis, origin: Origin
) -> None:
    page = origin.says("/a", Refusing(1, "60"))
    namespace = Namespace("http", budget={"other*": "1/h"}, hard_timeout=1)
    async with asking("httpx", cache, namespace=namespace) as ask:
        assert (await ask(page)).status == 429
        assert not raw.exists("magnus!pauses")
        assert await cache.get_or_set(namespace, "another host", load) is None


# -- models --------------------------------------------------------------------------------------------------------


@pytest.fixture
def service() -> Iterator[LLMServer]:
    with LLMServer() as started:
        yield started


MESSAGES: Any = [{"role": "user", "content": "What colour is the sky?"}]


def openai_call(service: LLMServer, *, awaited: bool) -> Any:
    make = openai.AsyncOpenAI if awaited else openai.OpenAI
    return make(base_url=service.url, api_key="k", max_retries=0).chat.completions.create


def anthropic_call(service: LLMServer, *, awaited: bool) -> Any:
    make = anthropic.AsyncAnthropic if awaited else anthropic.Anthropic
    return make(base_url=service.url, api_key="k", max_retries=0).messages.create


CALLS = {
    "openai": (openai_call, {"model": "gpt-4o", "messages": MESSAGES}),
    "anthropic": (anthropic_call, {"model": "claude", "messages": MESSAGES, "max_tokens": 9}),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("client", CALLS)
async def test_a_call_of_a_model_waits_for_the_end_of_a_pause(
    cache: AsyncCacheManager, service: LLMServer, client: str, stream: bool
) -> None:
    make, request = CALLS[client]
    service.refusals, service.refusal = 1, (429, {"retry-after": "0.3"})
    llm = LLMCache(cache, Namespace("llm", budget={"{model}/*": "100/s"}, hard_timeout=20))
    began = time.monotonic()
    reply = await llm.acall(make(service, awaited=True), **request, stream=stream)
    if stream:
        async with reply:
            assert not reply.replayed
            assert [chunk async for chunk in reply]
    assert time.monotonic() - began >= 0.3
    assert service.calls == 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_same_for_blocking_callers(url: str, service: LLMServer, stream: bool) -> None:
    service.refusals, service.refusal = 1, (503, {"retry-after-ms": "300"})
    with CacheManager(redis_url=url) as cache:
        llm = LLMCache(cache, Namespace("llm", budget="100/s", hard_timeout=20))
        began = time.monotonic()
        call = openai_call(service, awaited=False)
        reply = llm.call(call, model="gpt-4o", messages=MESSAGES, stream=stream)
        if stream:
            with reply:
                assert not reply.replayed
                assert list(reply)
        assert time.monotonic() - began >= 0.3
    assert service.calls == 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_pause_that_is_too_long_holds_for_the_model_alone(
    cache: AsyncCacheManager, url: str, service: LLMServer, stream: bool
) -> None:
    service.refusals, service.refusal = 1, (429, {"retry-after": "60"})
    models = Namespace("llm", budget={"{model}/*": "100/s"}, hard_timeout=1)
    call = openai_call(service, awaited=True)
    async with AsyncCacheManager(redis_url=url) as elsewhere:
        with pytest.raises(CacheBudgetError, match="gpt-4o") as raised:
            await LLMCache(cache, models).acall(call, model="gpt-4o", messages=MESSAGES, stream=stream)
        if not stream:
            assert isinstance(raised.value.__cause__, openai.RateLimitError)
        with pytest.raises(CacheBudgetError):
            await LLMCache(elsewhere, models).acall(call, model="gpt-4o", messages=MESSAGES, seed=1)
        assert await LLMCache(elsewhere, models).acall(call, model="gpt-3", messages=MESSAGES)
    assert service.calls == 2


async def test_without_a_budget_callers_get_the_error_of_their_client(
    cache: AsyncCacheManager, service: LLMServer
) -> None:
    service.refusals, service.refusal = 1, (429, {"retry-after": "60"})
    call = openai_call(service, awaited=True)
    with pytest.raises(openai.RateLimitError):
        await LLMCache(cache, Namespace("llm")).acall(call, model="gpt-4o", messages=MESSAGES)
    assert await LLMCache(cache, Namespace("llm")).acall(call, model="gpt-4o", messages=MESSAGES)


class RefusedError(Exception):
    def __init__(self, status: int, headers: Any) -> None:
        self.status_code = status
        self.response = type("Response", (), {"headers": headers})


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"retry-after": "2"}, 2.0), (529, {"retry-after": "0.5"}, 0.5), (503, {"retry-after-ms": "20"}, 0.02),
        (429, {"retry-after-ms": "soon", "retry-after": "3"}, 3.0), (429, {"retry-after": "1e99"}, 3600.0),
        (429, {}, None), (429, {"retry-after": "0"}, None), (429, {"retry-after": "-1"}, None), (429, None, None),
        (429, {"retry-after": "nan"}, None), (429, {"retry-after": "inf"}, None), (500, {"retry-after": "2"}, None),
        (429, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
    ],
)  # fmt: skip
def test_how_long_a_service_asks_to_wait(status: int, headers: Any, seconds: float | None) -> None:
    later = retry_later_of(RefusedError(status, headers))
    assert (None if later is None else later.seconds) == seconds
    assert retry_later_of(RetryLater(1)) is None
