"""Responses in the cache of FastAPI and Starlette: which are stored, and how they come back."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi import WebSocket as FastAPIWebSocket
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    StreamingResponse,
)
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.endpoints import HTTPEndpoint
from starlette.routing import Mount, Route

from magnus_cache import AsyncCacheManager, CacheArgumentError, CacheManager, CacheTypeError, Namespace
from magnus_cache.integrations.fastapi import Cached, answers, cache_response, evict, lifespan
from magnus_cache.testing import Proxy, virtual_clock
from tests.support.parameters import shown
from tests.support.programs import run_python
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio


class Quote(BaseModel):
    ticker: str
    call: int


@contextlib.asynccontextmanager
async def asking(app: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=options.pop("raises", True))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", **options) as client:
        yield client


class Counted:
    """Applications whose endpoints count their calls."""

    def __init__(self, cache: AsyncCacheManager) -> None:
        self.app = FastAPI(lifespan=lifespan(cache))
        self.cache = cache
        self.calls = 0

    def count(self) -> int:
        self.calls += 1
        return self.calls

    def add(self, make: Callable[[], Any], path: str = "/x", **options: Any) -> httpx.AsyncClient:
        """Add a route whose endpoint returns what is made, and return a client."""
        options.setdefault("cache", self.cache)
        route = options.pop("route", {})

        @self.app.get(path, **route)
        @cache_response(options.pop("namespace", "pages"), **options)
        async def endpoint() -> Any:
            self.count()
            return make()

        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")


@pytest.fixture
def counted(cache: AsyncCacheManager) -> Counted:
    return Counted(cache)


# -- what comes back ----------------------------------------------------------------------------------------


WAYS = ("decorated", "dependency", "router")


def quotes_app(cache: AsyncCacheManager, way: str, blocking: bool) -> tuple[FastAPI, Iterator[int]]:
    app, calls = FastAPI(), itertools.count(1)
    cached = Cached("quotes", "1m", cache=cache)
    router = APIRouter(dependencies=[Depends(cached)] if way == "router" else [])
    route = router.get("/quotes/{ticker}", dependencies=[Depends(cached)] if way == "dependency" else [])
    decorate: Any = cache_response("quotes", "1m", cache=cache) if way == "decorated" else lambda function: function
    if blocking:

        @route
        @decorate
        def quote_blocking(ticker: str) -> Quote:
            return Quote(ticker=ticker, call=next(calls))

    else:

        @route
        @decorate
        async def quote(ticker: str) -> Quote:
            return Quote(ticker=ticker, call=next(calls))

    app.include_router(router, prefix="/v1")
    return app, calls


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("blocking", [False, True])
async def test_the_endpoint_runs_once_for_its_url(cache: AsyncCacheManager, way: str, blocking: bool) -> None:
    app, calls = quotes_app(cache, way, blocking)
    async with asking(app) as client:
        first, second, other = [await client.get(f"/v1/quotes/{ticker}") for ticker in ("A", "A", "B")]
    assert first.json() == second.json() == {"ticker": "A", "call": 1}
    assert other.json() == {"ticker": "B", "call": 2}
    assert next(calls) == 3
    assert first.headers["cache-control"] == second.headers["cache-control"] == "max-age=60"
    assert first.headers["etag"] == second.headers["etag"] != other.headers["etag"]
    assert "age" not in first.headers
    assert second.headers["age"] == "0"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("blocking", [False, True])
async def test_a_stampede_runs_the_endpoint_once(cache: AsyncCacheManager, way: str, blocking: bool) -> None:
    """PITFALLS, 29: of fastapi-cache, 20 of 20 requests ran it. More requests than there are threads."""
    app, calls = quotes_app(cache, way, blocking)
    async with asking(app) as client:
        found = await asyncio.gather(*(client.get("/v1/quotes/A") for _ in range(60)))
    assert {response.text for response in found} == {'{"ticker":"A","call":1}'}
    assert next(calls) == 2


@pytest.mark.parametrize("way", WAYS)
async def test_the_schema_stays_as_it_is(cache: AsyncCacheManager, way: str) -> None:
    plain, _ = quotes_app(cache, "plain", False)
    app, _ = quotes_app(cache, way, False)
    async with asking(app) as client:
        await client.get("/v1/quotes/A")
    assert app.openapi() == plain.openapi()


async def test_what_another_process_stored_comes_back(url: str, cache: AsyncCacheManager) -> None:
    app, _ = quotes_app(cache, "decorated", False)
    async with AsyncCacheManager(redis_url=url) as other:
        theirs, their_calls = quotes_app(other, "decorated", False)
        async with asking(app) as client, asking(theirs) as their_client:
            first = await client.get("/v1/quotes/A")
            second = await their_client.get("/v1/quotes/A")
    assert second.text == first.text
    assert second.headers["etag"] == first.headers["etag"]
    assert next(their_calls) == 1


RESPONSES: dict[str, Callable[[], Any]] = {
    "json": lambda: {"a": [1, None, "ü"]},
    "html": lambda: HTMLResponse("<h1>ü</h1>"),
    "text": lambda: PlainTextResponse("text", headers={"x-own": "1"}),
    "bytes": lambda: Response(b"\x00\xff", media_type="application/octet-stream"),
    "empty": lambda: Response(status_code=204),
    "accepted": lambda: JSONResponse({}, status_code=203),
    "moved": lambda: RedirectResponse("/y", status_code=308),
    "none": lambda: None,
}


@pytest.mark.parametrize("kind", RESPONSES)
async def test_a_response_comes_back_as_it_was(counted: Counted, kind: str) -> None:
    async with counted.add(RESPONSES[kind]) as client:
        first, second = await client.get("/x"), await client.get("/x")
    assert counted.calls == 1
    assert (second.status_code, second.content) == (first.status_code, first.content)
    assert {**first.headers, "age": "0"} == dict(second.headers)


async def test_the_model_class_and_status_of_a_route_apply(counted: Counted) -> None:
    class Public(BaseModel):
        name: str

    secret = {"name": "Ada", "password": "secret"}
    route = {"response_model": Public, "status_code": 203, "response_class": JSONResponse}
    async with counted.add(lambda: secret, route=route) as client:
        first, second = await client.get("/x"), await client.get("/x")
    assert first.json() == second.json() == {"name": "Ada"}
    assert first.status_code == second.status_code == 203


async def test_the_class_of_an_including_application_applies(cache: AsyncCacheManager) -> None:
    app, router = FastAPI(default_response_class=PlainTextResponse), APIRouter()

    @router.get("/x")
    @cache_response("pages", cache=cache)
    async def page() -> Any:
        return "text"

    app.include_router(router)
    async with asking(app) as client:
        first, second = await client.get("/x"), await client.get("/x")
    assert first.text == second.text == "text"
    assert second.headers["content-type"] == "text/plain; charset=utf-8"


async def test_a_result_that_is_not_of_its_model_is_an_error_and_not_stored(counted: Counted) -> None:
    async with counted.add(lambda: {"no": 1}, route={"response_model": Quote}) as client:
        for _ in range(2):
            with pytest.raises(Exception, match="field required|Field required"):
                await client.get("/x")
    assert counted.calls == 2


async def test_headers_of_dependencies_are_those_of_each_request(cache: AsyncCacheManager) -> None:
    app, numbers = FastAPI(), itertools.count(1)

    async def numbered(response: Response) -> None:
        response.headers["x-request"] = str(next(numbers))

    @app.get("/x", dependencies=[Depends(numbered)])
    @cache_response("pages", cache=cache)
    async def page(response: Response) -> str:
        response.headers["x-page"] = "1"
        response.status_code = 203
        return "x"

    async with asking(app) as client:
        first, second = await client.get("/x"), await client.get("/x")
        third = await client.get("/x", headers={"if-none-match": "*"})
    for number, response in enumerate((first, second, third), 1):
        assert response.status_code == 203
        assert response.headers.get_list("x-request") == [str(number)]
        assert response.headers["x-page"] == "1"


async def test_background_tasks_run_once_for_the_call_that_added_them(cache: AsyncCacheManager) -> None:
    app, done = FastAPI(), list[str]()

    async def noted(background: BackgroundTasks) -> None:
        background.add_task(done.append, "each request")

    @app.get("/x", dependencies=[Depends(noted)])
    @cache_response("pages", cache=cache)
    async def page(background: BackgroundTasks) -> str:
        background.add_task(done.append, "the call")
        return "x"

    @app.get("/y")
    @cache_response("pages", cache=cache)
    async def other() -> Response:
        return Response("y", background=BackgroundTask(done.append, "of a response"))

    async with asking(app) as client:
        for path in ("/x", "/x", "/y", "/y"):
            await client.get(path)
    assert done == ["each request", "the call", "each request", "of a response"]


async def test_all_dependencies_run_before_anything_is_given_out(cache: AsyncCacheManager) -> None:
    """PITFALLS, 33. Also those that are declared after the cache, and with an ETag that another URL has given."""
    app, allowed = FastAPI(), {"admin": True}

    async def authorized() -> None:
        if not allowed["admin"]:
            raise HTTPException(403)

    @app.get("/decorated")
    @cache_response("pages", cache=cache)
    async def decorated(_: Annotated[None, Depends(authorized)]) -> str:
        return "secret"

    @app.get("/dependency", dependencies=[Depends(Cached("pages", cache=cache)), Depends(authorized)])
    async def dependency() -> str:
        return "secret"

    async with asking(app) as client:
        for path in ("/decorated", "/dependency"):
            etag = (await client.get(path)).headers["etag"]
            allowed["admin"] = False
            assert (await client.get(path)).status_code == 403
            assert (await client.get(path, headers={"if-none-match": etag})).status_code == 403
            allowed["admin"] = True
            assert (await client.get(path, headers={"if-none-match": etag})).status_code == 304


# -- conditional requests -----------------------------------------------------------------------------------


async def test_a_304_has_no_body_and_the_headers_that_it_needs(counted: Counted) -> None:
    async with counted.add(lambda: PlainTextResponse("x", headers={"x-own": "1"}), ttl=60) as client:
        etag = (await client.get("/x")).headers["etag"]
        for given in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            found = await client.get("/x", headers={"if-none-match": given})
            assert (found.status_code, found.content) == (304, b"")
            assert found.headers["etag"] == etag
            assert found.headers["cache-control"] == "max-age=60"
            assert found.headers["vary"] == "Authorization, Cookie"
            assert not {"content-length", "content-type", "x-own"} & set(found.headers)
        assert (await client.get("/x", headers={"if-none-match": '"other"'})).status_code == 200
    assert counted.calls == 1


async def test_the_first_request_may_get_a_304_too(counted: Counted) -> None:
    async with counted.add(lambda: PlainTextResponse("x")) as client:
        etag = (await client.get("/x")).headers["etag"]
        await counted.cache.clear("pages")
        assert (await client.get("/x", headers={"if-none-match": etag})).status_code == 304
    assert counted.calls == 2


async def test_an_etag_is_of_one_url_alone(counted: Counted) -> None:
    """PITFALLS, 33: the same body at another URL has another ETag."""
    async with counted.add(lambda: "same", "/one"), counted.add(lambda: "same", "/two") as client:
        one, two = await client.get("/one"), await client.get("/two")
        assert one.content == two.content
        assert one.headers["etag"] != two.headers["etag"]
        found = await client.get("/two", headers={"if-none-match": one.headers["etag"]})
    assert found.status_code == 200


async def test_an_etag_and_a_date_of_the_endpoint_are_kept(counted: Counted) -> None:
    date = "Wed, 01 Jan 2025 00:00:00 GMT"
    own = {"etag": 'W/"v1"', "last-modified": date}
    async with counted.add(lambda: PlainTextResponse("x", headers=own)) as client:
        assert (await client.get("/x")).headers["etag"] == 'W/"v1"'
        assert (await client.get("/x", headers={"if-none-match": '"v1"'})).status_code == 304
        for since, status in (
            (date, 304), ("Thu, 02 Jan 2025 00:00:00 GMT", 304), ("Tue, 31 Dec 2024 00:00:00 GMT", 200), ("soon", 200),
        ):  # fmt: skip
            assert (await client.get("/x", headers={"if-modified-since": since})).status_code == status
        both = {"if-none-match": '"v2"', "if-modified-since": date}
        assert (await client.get("/x", headers=both)).status_code == 200


# -- Cache-Control ------------------------------------------------------------------------------------------


async def test_the_age_grows_and_ends_with_the_ttl(counted: Counted) -> None:
    with virtual_clock() as clock:
        async with counted.add(lambda: "x", ttl=60) as client:
            await client.get("/x")
            clock.advance(20)
            assert (await client.get("/x")).headers["age"] == "20"
            assert (await client.get("/x")).headers["cache-control"] == "max-age=60"
            clock.advance(41)
            assert "age" not in (await client.get("/x")).headers
        await counted.cache.aclose()
    assert counted.calls == 2


@pytest.mark.parametrize(("said", "left"), [("max-age=7", 7), ("s-maxage=9, max-age=7", 9), ("public", 60)])
async def test_a_response_says_how_long_it_is_fresh(counted: Counted, said: str, left: int) -> None:
    async with counted.add(lambda: PlainTextResponse("x", headers={"cache-control": said}), ttl=60) as client:
        first, second = await client.get("/x"), await client.get("/x")
    assert first.headers["cache-control"] == second.headers["cache-control"] == said
    assert counted.calls == 1
    (key,) = [key async for key in counted.cache.scan("pages")]
    life = await counted.cache.ttl("pages", key)
    assert life is not None
    assert left - 1 < life <= left


@pytest.mark.parametrize(
    "headers",
    [
        {"cache-control": "private, max-age=9"}, {"cache-control": "no-store"}, {"cache-control": "No-Cache"},
        {"cache-control": "max-age=0"}, {"cache-control": "max-age=soon"}, {"cache-control": "s-maxage=0, max-age=9"},
        {"expires": "0"}, {"vary": "*"}, {"vary": "X-Other"}, {"set-cookie": "a=1"},
    ],
    ids=shown,
)  # fmt: skip
async def test_a_response_that_says_so_is_not_stored(counted: Counted, headers: dict[str, str]) -> None:
    async with counted.add(lambda: PlainTextResponse("x", headers=headers)) as client:
        for _ in range(2):
            found = await client.get("/x")
            assert found.status_code == 200
            assert "etag" not in found.headers
            assert all(found.headers[name] == value for name, value in headers.items())
        assert (await asyncio.gather(*(client.get("/x") for _ in range(5))))[4].text == "x"
    # What is one caller's alone is not shared by those who wait, either.
    shared = {"max-age=0", "max-age=soon", "s-maxage=0, max-age=9", "0"} & set(headers.values())
    assert counted.calls == (3 if shared else 7)
    assert [key async for key in counted.cache.scan("pages")] == []


@pytest.mark.parametrize("status", [201, 202, 206, 302, 307, 400, 401, 404, 410, 429, 500, 503])
async def test_other_status_codes_are_not_stored(counted: Counted, status: int) -> None:
    async with counted.add(lambda: PlainTextResponse("x", status_code=status)) as client:
        for _ in range(2):
            assert (await client.get("/x", headers={"if-none-match": "*"})).status_code == status
    assert counted.calls == 2


async def test_what_a_request_asks_of_caches_is_done(counted: Counted) -> None:
    with virtual_clock() as clock:
        async with counted.add(lambda: str(counted.calls), ttl=60) as client:

            async def get(said: str, **more: str) -> str:
                return (await client.get("/x", headers={"cache-control": said, **more})).text

            assert (await client.get("/x", headers={"cache-control": "only-if-cached"})).status_code == 504
            assert await get("no-store") == '"1"'
            assert (await client.get("/x", headers={"cache-control": "only-if-cached"})).status_code == 504
            assert await get("") == await get("max-age=5") == await get("only-if-cached") == '"2"'
            clock.advance(6)
            assert await get("max-age=6") == '"2"'
            assert await get("max-age=5") == '"3"'
            clock.advance(1)
            assert await get("no-cache") == '"4"'
            clock.advance(1)
            assert await get("max-age=0") == '"5"'
            clock.advance(1)
            assert (await client.get("/x", headers={"pragma": "no-cache"})).text == '"6"'
            assert await get("") == await get("min-fresh=50") == '"6"'
            clock.advance(11)
            assert await get("min-fresh=50") == '"7"'
        await counted.cache.aclose()


async def test_a_stampede_of_reloads_runs_the_endpoint_once(counted: Counted) -> None:
    with virtual_clock() as clock:
        async with counted.add(lambda: str(counted.calls)) as client:
            await client.get("/x")
            clock.advance(1)
            reloads = (client.get("/x", headers={"cache-control": "no-cache"}) for _ in range(20))
            assert {found.text for found in await asyncio.gather(*reloads)} == {'"2"'}
        await counted.cache.aclose()


@pytest.mark.parametrize(("max_age", "said"), [("5m", "max-age=300"), (0, "no-cache")])
async def test_browsers_are_told_another_time(counted: Counted, max_age: Any, said: str) -> None:
    async with counted.add(lambda: "x", ttl=60, max_age=max_age) as client:
        for _ in range(2):
            assert (await client.get("/x")).headers["cache-control"] == said
    assert counted.calls == 1


# -- methods, bodies and ranges -----------------------------------------------------------------------------


async def test_head_is_served_from_get(cache: AsyncCacheManager) -> None:
    app, calls = FastAPI(), list[str]()

    @app.api_route("/x", methods=["GET", "HEAD", "POST"])
    @cache_response("pages", cache=cache)
    async def page(request: Request) -> str:
        calls.append(request.method)
        return "page"

    async with asking(app) as client:
        await client.head("/x")
        await client.head("/x")
        assert calls == ["HEAD", "HEAD"]
        got, head = await client.get("/x"), await client.head("/x")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == got.headers["content-length"] == "6"
        assert head.headers["etag"] == got.headers["etag"]
        assert (await client.head("/x", headers={"if-none-match": head.headers["etag"]})).status_code == 304
        assert calls == ["HEAD", "HEAD", "GET"]
        await client.post("/x")
        assert "etag" not in (await client.request("GET", "/x", content=b"query")).headers
        assert calls == ["HEAD", "HEAD", "GET", "POST", "GET"]


async def test_files_streams_and_ranges_are_passed_through(counted: Counted, tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_text("0123456789")
    sent = list[int]()

    async def numbers() -> AsyncIterator[bytes]:
        for number in range(3):
            sent.append(number)
            yield b"%d" % number

    async with counted.add(lambda: FileResponse(file), "/file") as client:
        assert (await client.get("/file", headers={"range": "bytes=2-4"})).text == "234"
        whole = await client.get("/file")
        assert whole.text == "0123456789"
        assert (await client.get("/file")).headers["etag"] == whole.headers["etag"]
        part = await client.get("/file", headers={"range": "bytes=2-4", "if-range": whole.headers["etag"]})
        assert (part.status_code, part.text) == (206, "234")
    assert counted.calls == 4
    async with counted.add(lambda: StreamingResponse(numbers()), "/stream") as client:
        found = await asyncio.gather(*(client.get("/stream") for _ in range(3)))
    assert [response.text for response in found] == ["012"] * 3
    assert counted.calls == 7
    assert len(sent) == 9


async def test_a_range_of_a_cached_page_goes_to_its_endpoint(counted: Counted) -> None:
    async with counted.add(lambda: PlainTextResponse("0123")) as client:
        await client.get("/x")
        assert "etag" not in (await client.get("/x", headers={"range": "bytes=0-1"})).headers
    assert counted.calls == 2


def test_a_stream_cannot_be_decorated() -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(CacheTypeError, match="stream"):
        cache_response("pages")(numbers)


async def test_a_stream_of_a_cached_router_stays_one(cache: AsyncCacheManager) -> None:
    app = FastAPI(dependencies=[Depends(Cached("pages", cache=cache))])

    @app.get("/x")
    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2

    async with asking(app) as client:
        assert (await client.get("/x")).text.split() == ["1", "2"]


# -- the key ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/x?a=1&b=2", "/x?b=2&a=1", True),
        ("/x?q=a+b", "/x?q=a%20b", True),
        ("/x?q=%c3%BC", "/x?q=ü", True),
        ("/x?%61=1", "/x?a=1", True),
        ("/x?a=1&a=2", "/x?a=2&a=1", False),
        ("/x?a", "/x?a=", False),
        ("/x?a=1%26b=2", "/x?a=1&b=2", False),
        ("/x?a=%ff", "/x?a=%fe", False),
        ("/x?a=1", "/x?a=1&a=1", False),
        ("/x/a%2Fb", "/x/a/b", False),
        ("/x/%61", "/x/a", True),
        ("/x", "https://test/x", False),
        ("/x", "http://other/x", False),
        ("/x", "http://TEST/x", True),
        ("/x", "http://test:8080/x", False),
        ("/x/a", "/mounted/x/a", False),
    ],
)
async def test_one_url_has_one_spelling(cache: AsyncCacheManager, one: str, other: str, same: bool) -> None:
    app, calls = FastAPI(), itertools.count()

    @app.get("/x")
    @app.get("/x/{rest:path}")
    @cache_response("pages", cache=cache)
    async def page() -> int:
        return next(calls)

    app.mount("/mounted", app)
    async with asking(app) as client:
        found = [(await client.get(url)).text for url in (one, other, one, other)]
    assert found[:2] == found[2:]
    assert (found[0] == found[1]) is same


async def test_headers_that_an_endpoint_declares_are_part_of_the_key(cache: AsyncCacheManager) -> None:
    """fastapi-cache, issue 558: a second request with another header got the response of the first."""

    class Common(BaseModel):
        x_region: str = ""

    async def tenant(x_tenant: Annotated[str, Header()] = "none") -> str:
        return x_tenant

    app = FastAPI()

    @app.get("/x")
    @cache_response("pages", cache=cache)
    async def page(tenant: Annotated[str, Depends(tenant)], accept_language: Annotated[str, Header()] = "en") -> str:
        return f"{tenant} {accept_language}"

    @app.get("/y")
    @cache_response("pages", cache=cache)
    async def region(common: Annotated[Common, Header()], page: Annotated[int, Query()] = 1) -> str:
        return f"{common.x_region} {page}"

    async with asking(app, headers={"accept-language": "de"}) as client:
        assert (await client.get("/x")).text == '"none de"'
        assert (await client.get("/x", headers={"x-tenant": "a"})).text == '"a de"'
        found = await client.get("/x", headers={"accept-language": "fr"})
        assert found.text == '"none fr"'
        assert "accept-language" in found.headers["vary"]
        assert "x-tenant" in found.headers["vary"]
        assert (await client.get("/y", headers={"x-region": "eu"})).text == '"eu 1"'
        assert (await client.get("/y", headers={"x-region": "us"})).text == '"us 1"'


async def test_another_version_of_the_code_has_another_key(counted: Counted) -> None:
    async with counted.add(lambda: 1, "/x", version=1) as client:
        await client.get("/x")
    app = Counted(counted.cache)
    async with app.add(lambda: 2, "/x", version=2) as client:
        assert (await client.get("/x")).text == "2"


# -- when things go wrong -----------------------------------------------------------------------------------


async def test_each_waiter_has_an_exception_of_its_own(cache: AsyncCacheManager) -> None:
    app, calls, errors = FastAPI(), itertools.count(1), list[Exception]()
    release = asyncio.Event()

    class NoSuchTicker(Exception):
        def __init__(self, *, ticker: str) -> None:
            super().__init__(f"no {ticker}")
            self.ticker = ticker

    @app.exception_handler(NoSuchTicker)
    async def handle(_: Request, error: NoSuchTicker) -> Response:
        errors.append(error)
        return PlainTextResponse(error.ticker, status_code=418)

    @app.get("/{kind}")
    @cache_response("pages", cache=cache)
    async def page(kind: str) -> str:
        next(calls)
        await release.wait()
        if kind == "own":
            raise NoSuchTicker(ticker="A")
        raise HTTPException(404, detail={"kind": kind}, headers={"x-own": "1"})

    async with asking(app) as client:
        requests = [asyncio.create_task(client.get(path)) for path in ("/own", "/http") * 3]
        await wait_until_async(lambda: (cache._engine.state.flights.joined) >= 4)
        release.set()
        found = await asyncio.gather(*requests)
    assert [response.status_code for response in found] == [418, 404] * 3
    assert {response.text for response in found[::2]} == {"A"}
    assert {(response.text, response.headers["x-own"]) for response in found[1::2]} == {
        ('{"detail":{"kind":"http"}}', "1")
    }
    assert next(calls) == 3
    assert len({id(error) for error in errors}) == 3


async def test_an_exception_with_a_cookie_is_its_callers_alone(cache: AsyncCacheManager) -> None:
    app, users = FastAPI(), itertools.count(1)
    release = asyncio.Event()

    @app.get("/x")
    @cache_response("pages", cache=cache)
    async def page() -> str:
        user = next(users)
        await release.wait()
        raise HTTPException(403, headers={"Set-Cookie": f"user={user}"})

    async with asking(app) as client:
        requests = [asyncio.create_task(client.get("/x")) for _ in range(4)]
        await wait_until_async(lambda: cache._engine.state.flights.joined >= 3)
        release.set()
        found = await asyncio.gather(*requests)
    assert len({response.headers["set-cookie"] for response in found}) == 4


async def test_a_client_that_leaves_does_not_end_the_call_that_others_wait_for(cache: AsyncCacheManager) -> None:
    app, calls, closed = FastAPI(), itertools.count(1), list[str]()
    release, begun = asyncio.Event(), asyncio.Event()

    async def session() -> AsyncIterator[list[str]]:
        mine = ["open"]
        try:
            yield mine
        finally:
            mine[0] = "closed"
            closed.append("closed")

    @app.get("/x")
    @cache_response("pages", cache=cache)
    async def page(mine: Annotated[list[str], Depends(session)]) -> str:
        next(calls)
        begun.set()
        await release.wait()
        return mine[0]

    async with asking(app) as client:
        leader = asyncio.create_task(client.get("/x"))
        await wait_until_async(begun.is_set)
        others = [asyncio.create_task(client.get("/x")) for _ in range(3)]
        await wait_until_async(lambda: cache._engine.state.flights.joined == 3)
        leader.cancel()
        await asyncio.sleep(0)
        release.set()
        found = await asyncio.gather(*others)
        with pytest.raises(asyncio.CancelledError):
            await leader
    # The leader's database session was open as long as its endpoint ran.
    assert [response.text for response in found] == ['"open"'] * 3
    assert next(calls) == 2
    assert len(closed) == 4


async def test_a_call_that_no_one_waits_for_ends_with_its_client(cache: AsyncCacheManager) -> None:
    app, ended = FastAPI(), asyncio.Event()
    begun = asyncio.Event()

    @app.get("/x")
    @cache_response("pages", cache=cache)
    async def page() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return "x"

    async with asking(app) as client:
        request = asyncio.create_task(client.get("/x"))
        await begun.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    assert ended.is_set()


async def test_a_stale_response_is_given_out_while_its_request_loads_the_next(cache: AsyncCacheManager) -> None:
    app, calls, seen = FastAPI(), itertools.count(1), list[str]()
    release = asyncio.Event()

    async def session() -> AsyncIterator[list[str]]:
        mine = ["open"]
        yield mine
        mine[0] = "closed"

    @app.get("/x")
    @cache_response("pages", 60, cache=cache, grace=600, soft_timeout=0.05)
    async def page(mine: Annotated[list[str], Depends(session)], background: BackgroundTasks) -> int:
        call = next(calls)
        if call == 2:
            await release.wait()
            background.add_task(seen.append, "background")
        seen.append(mine[0])
        return call

    sent = list[bytes]()

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> Any:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "scheme": "http", "path": "/x", "query_string": b""}
    with virtual_clock() as clock:
        async with asking(app) as client:
            assert (await client.get("/x")).text == "1"
            clock.advance(61)
            request = asyncio.create_task(app({**scope, "headers": [(b"host", b"test")]}, receive, send))
            # The client has its response before the endpoint has ended.
            await wait_until_async(lambda: b"1" in sent)
            release.set()
            await request
            assert (await client.get("/x")).text == "2"
        await cache.aclose()
    assert seen == ["open", "open", "background"]


async def test_an_endpoint_does_not_begin_after_its_request_has_been_answered() -> None:
    """As when Redis gives the lease only after the soft timeout: the database session of the request is closed."""
    calls = list[int]()

    async def endpoint() -> None:
        calls.append(1)

    exchange: Any = None
    call = answers._Call(exchange, endpoint)
    call.is_closed = True
    assert await call.load() is None
    assert not call.is_used
    assert calls == []


async def test_requests_go_on_while_redis_is_away(proxy: Proxy) -> None:
    async with AsyncCacheManager(redis_url=f"redis://127.0.0.1:{proxy.port}", op_timeout=0.2) as cache:
        counted = Counted(cache)
        async with counted.add(lambda: counted.calls) as client:
            assert (await client.get("/x")).text == "1"
            proxy.freeze()
            await cache.clear("pages")
            assert (await client.get("/x")).text == "2"
            assert (await client.get("/x")).status_code == 200
            proxy.resume()


async def test_a_response_that_is_too_large_is_given_out_and_not_stored(counted: Counted) -> None:
    namespace = Namespace("small", max_value_bytes=1000)
    async with counted.add(lambda: PlainTextResponse("x" * 2000), namespace=namespace) as client:
        for _ in range(2):
            assert len((await client.get("/x")).text) == 2000
    assert counted.calls == 2


async def test_an_endpoint_that_takes_too_long_is_504_for_all(cache: AsyncCacheManager) -> None:
    app, release = FastAPI(), asyncio.Event()

    @app.get("/x")
    @cache_response("pages", cache=cache, hard_timeout=0.1)
    async def page() -> str:
        await release.wait()
        return "x"

    async with asking(app) as client:
        requests = [asyncio.create_task(client.get("/x")) for _ in range(2)]
        waiting = await requests[1]
        release.set()
        assert {waiting.status_code, (await requests[0]).status_code} == {504}


# -- other kinds of endpoints -------------------------------------------------------------------------------


async def test_routes_of_starlette(cache: AsyncCacheManager) -> None:
    calls = itertools.count(1)
    cached = cache_response("pages", "1m", cache=cache, tags="item:{item}")

    @cached
    async def page(request: Request) -> Response:
        return PlainTextResponse(f"{request.path_params['item']} {next(calls)}")

    @cached
    def blocking(request: Request) -> Response:
        return PlainTextResponse(f"{request.path_params['item']} {next(calls)}")

    class Item(HTTPEndpoint):
        @cached
        async def get(self, request: Request) -> Response:
            return PlainTextResponse(f"{request.path_params['item']} {next(calls)}")

        @evict(tags="item:{item}", cache=cache)
        async def post(self, request: Request) -> Response:
            return PlainTextResponse("written")

    app = Starlette(
        routes=[
            Route("/page/{item}", page), Route("/blocking/{item}", blocking),
            Mount("/mount", routes=[Route("/item/{item}", Item)]),
        ]
    )  # fmt: skip
    async with asking(app) as client:
        paths = ("/page/a", "/blocking/a", "/mount/item/a")
        for number, path in enumerate(paths, 1):
            for _ in range(2):
                assert (await client.get(path)).text == f"a {number}"
            assert (await client.head(path)).headers["content-length"] == "3"
        await client.post("/mount/item/a")
        assert [(await client.get(path)).text for path in paths] == ["a 4", "a 5", "a 6"]


def test_a_websocket_passes(url: str) -> None:
    manager = CacheManager(redis_url=url)
    app = FastAPI(lifespan=lifespan(manager))

    @app.websocket("/decorated")
    @cache_response("pages")
    async def decorated(socket: FastAPIWebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")

    @app.websocket("/dependency", dependencies=[Depends(Cached("pages"))])
    async def dependency(socket: FastAPIWebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")

    with TestClient(app) as client:
        for path in ("/decorated", "/dependency"):
            with client.websocket_connect(path) as socket:
                assert socket.receive_text() == "hello"


def test_an_endpoint_can_be_called_by_hand() -> None:
    @cache_response("pages")
    async def page(number: int) -> int:
        return number

    assert asyncio.run(page(1)) == 1  # type: ignore[arg-type]


# -- the life of the cache ----------------------------------------------------------------------------------


def test_the_cache_lives_as_long_as_its_application(url: str) -> None:
    states = list[Any]()
    manager = CacheManager(redis_url=url)

    @contextlib.asynccontextmanager
    async def inner(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        states.append(await manager.aio.ping())
        yield {"own": "state"}
        states.append(await manager.aio.ping())

    app = FastAPI(lifespan=lifespan(manager, inner=inner))

    @app.get("/x")
    @cache_response("pages")
    async def page(request: Request) -> str:
        return str(request.state.own)

    with TestClient(app) as client:
        assert client.get("/x").json() == client.get("/x").json() == "state"
    assert [health.ok for health in states] == [True, True]
    assert not manager.ping().ok


def test_the_process_wide_cache_starts_and_ends_with_each_application(magnus: CacheManager) -> None:
    for made in (lifespan, lifespan()):
        app = FastAPI(lifespan=made)

        @app.get("/x")
        @cache_response("pages")
        async def page() -> int:
            return 1

        for _ in range(2):
            with TestClient(app) as client:
                assert client.get("/x").json() == 1


# -- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: cache_response("a:b"), "name"),
        (lambda: cache_response("pages", "soon"), "ttl"),
        (lambda: cache_response("pages", vary=3), "vary"),  # type: ignore[arg-type]
        (lambda: cache_response("pages", vary="no header"), "vary"),
        (lambda: cache_response("pages", vary="*"), "vary"),
        (lambda: cache_response("pages", vary=["x", 3]), "vary"),  # type: ignore[list-item]
        (lambda: cache_response("pages", tags=3), "tags"),  # type: ignore[arg-type]
        (lambda: cache_response("pages", max_age=-1), "max_age"),
        (lambda: cache_response("pages", cache="redis"), "cache"),  # type: ignore[arg-type]
        (lambda: cache_response("pages", grace="soon"), "grace"),
        (lambda: Cached(Namespace("pages", audit=0.1)), "namespace: audit"),
        (lambda: Cached("pages", max_age="soon"), "max_age"),
        (lambda: cache_response("pages")(3), "endpoint"),  # type: ignore[arg-type]
        (lambda: evict(), "namespaces"),
        (lambda: evict("a", tags=3), "tags"),  # type: ignore[arg-type]
        (lambda: evict(paths="users"), "paths"),
        (lambda: evict("a", cache=3), "cache"),  # type: ignore[arg-type]
        (lambda: lifespan(3), "lifespan"),
    ],
)
def test_a_wrong_argument_is_named(make: Callable[[], object], argument: str) -> None:
    with pytest.raises(CacheArgumentError, match=argument):
        make()


async def test_a_template_that_names_no_path_parameter_is_an_error_before_anything_is_done(
    cache: AsyncCacheManager,
) -> None:
    app, calls = FastAPI(), itertools.count()

    @app.get("/x/{item}")
    @cache_response("pages", tags="item:{thing}", cache=cache)
    async def page(item: int) -> int:
        return next(calls)

    @app.post("/x/{item}")
    @evict(paths="/x/{thing}", cache=cache)
    async def write(item: int) -> int:
        return next(calls)

    async with asking(app) as client:
        for call in (client.get, client.post):
            with pytest.raises(CacheArgumentError, match=r"path parameters \(item\)"):
                await call("/x/1")
    assert next(calls) == 0


def test_without_the_library_the_error_names_the_extra() -> None:
    done = run_python("-c", "import sys; sys.modules['fastapi'] = None\nimport magnus_cache.integrations.fastapi")
    assert done.stderr.splitlines()[-1] == (
        'ImportError: magnus_cache.integrations.fastapi needs fastapi: pip install "magnus-cache[fastapi]"'
    )
