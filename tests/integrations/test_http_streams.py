"""What only some clients can do: bodies that arrive slowly, callers that leave, redirects, hooks, loops, processes."""

import asyncio
import io
import itertools
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import pytest
import requests
import urllib3
from httpx import AsyncClient

from magnus_cache import (
    AsyncCacheManager,
    CacheArgumentError,
    CacheLoopError,
    CacheManager,
    CacheTypeError,
    configure,
    get_cache_manager,
)
from magnus_cache.integrations.http import AsyncCacheTransport, CacheAdapter, CacheTransport, HttpCacheOptions, Rule
from tests.support.inside import loads_by_key
from tests.support.origin import Origin, Reply, Seen
from tests.support.programs import ROOT, run_python
from tests.support.wait import nothing_happens_for, wait_until, wait_until_async

pytestmark = pytest.mark.anyio

FRESH: Final = {"cache-control": "max-age=60"}


@pytest.fixture
def make(library: Any, cache: AsyncCacheManager) -> Any:
    @asynccontextmanager
    async def client(options: HttpCacheOptions | None = None, **further: Any) -> AsyncIterator[AsyncClient]:
        transport = AsyncCacheTransport(library.AsyncHTTPTransport(), cache, **(options or {}))
        async with library.AsyncClient(transport=transport, **further) as made:
            yield made

    return client


class Parts:
    """A body whose parts the test lets go, one by one."""

    def __init__(self, origin: Origin, path: str, count: int = 3) -> None:
        self.gates = [threading.Event() for _ in range(count)]
        self.url = origin.says(path, lambda _: Reply(FRESH, self.body()))
        self.broken = False

    def body(self) -> Iterator[bytes]:
        for number, gate in enumerate(self.gates):
            assert gate.wait(10)
            if self.broken:
                raise ConnectionAbortedError
            yield f"part {number};".encode()

    def go(self) -> None:
        for gate in self.gates:
            gate.set()


ALL: Final = "part 0;part 1;part 2;"


async def test_a_body_is_passed_on_as_it_arrives_and_then_stored(make: Any, origin: Origin) -> None:
    parts = Parts(origin, "/a")
    async with make() as client:
        parts.gates[0].set()
        async with client.stream("GET", parts.url) as response:
            chunks = response.aiter_text()
            assert await anext(chunks) == "part 0;"
            waiting = asyncio.ensure_future(client.get(parts.url))
            nothing_happens_for(0.05)
            parts.go()
            assert "".join([chunk async for chunk in chunks]) == "part 1;part 2;"
        assert response.headers["x-magnus-cache"] == response.extensions["magnus_cache"] == "miss"
        again = await client.get(parts.url)
        assert (again.text, again.extensions["magnus_cache"], (await waiting).text) == (ALL, "hit", ALL)
    assert origin.count("/a") == 1


async def test_a_stream_that_is_left_ends_the_request_if_nobody_else_waits(make: Any, origin: Origin) -> None:
    parts = Parts(origin, "/a")
    async with make() as client:
        parts.gates[0].set()
        async with client.stream("GET", parts.url) as response:
            assert await anext(response.aiter_text()) == "part 0;"
        parts.go()
        assert (await client.get(parts.url)).text == ALL
    assert origin.count("/a") == 2


def waiters(cache: AsyncCacheManager | CacheManager) -> int:
    return sum(flight.waiter_count for flight in loads_by_key(cache).values())


async def test_others_get_the_body_of_a_stream_that_is_left(
    make: Any, origin: Origin, cache: AsyncCacheManager
) -> None:
    parts = Parts(origin, "/a")
    async with make() as client:
        parts.gates[0].set()
        async with client.stream("GET", parts.url) as response:
            # httpx2 closes the stream with the last reference to this.
            chunks = response.aiter_text()
            assert await anext(chunks) == "part 0;"
            waiting = [asyncio.ensure_future(client.get(parts.url)) for _ in range(3)]
            await wait_until_async(lambda: waiters(cache) == 4)
        parts.go()
        assert {each.text for each in await asyncio.gather(*waiting)} == {ALL}
    assert origin.count("/a") == 1


async def test_a_long_body_is_passed_on_and_its_rest_too(make: Any, origin: Origin) -> None:
    parts = Parts(origin, "/a")
    async with make({"max_body_bytes": 10}) as client:
        parts.gates[0].set()
        async with client.stream("GET", parts.url) as response:
            chunks = response.aiter_text()
            first = await anext(chunks)
            parts.go()
            assert first + "".join([chunk async for chunk in chunks]) == ALL
        assert (await client.get(parts.url)).text == ALL
    assert origin.count("/a") == 2


async def test_a_stream_that_breaks_is_an_error_to_all_and_is_not_stored(
    make: Any, origin: Origin, library: Any, cache: AsyncCacheManager
) -> None:
    parts = Parts(origin, "/a")
    async with make() as client:
        parts.gates[0].set()
        async with client.stream("GET", parts.url) as response:
            chunks = response.aiter_text()
            await anext(chunks)
            waiting = [asyncio.ensure_future(client.get(parts.url)) for _ in range(2)]
            await wait_until_async(lambda: waiters(cache) == 3)
            parts.broken = True
            parts.go()
            with pytest.raises(library.RemoteProtocolError) as raised:
                await anext(chunks)
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in errors] == [library.RemoteProtocolError] * 2
        assert len({id(error.request) for error in [raised.value, *errors]}) == 3
        parts.broken = False
        assert (await client.get(parts.url)).text == ALL


async def test_a_caller_that_is_cancelled_takes_nothing_from_the_others(make: Any, origin: Origin) -> None:
    gate = threading.Event()
    there = origin.says("/a", lambda _: gate.wait(10) and Reply(FRESH, b"all"))  # type: ignore[return-value]
    async with make() as client:
        calls = [asyncio.ensure_future(client.get(there)) for _ in range(4)]
        await wait_until_async(lambda: origin.count("/a") == 1)
        calls[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[0]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.get(there)
        gate.set()
        assert {each.text for each in await asyncio.gather(*calls[1:])} == {"all"}
    assert origin.count("/a") == 1


async def test_a_timeout_of_the_request_reaches_each_waiter(make: Any, origin: Origin, library: Any) -> None:
    gate = threading.Event()
    there = origin.says("/a", lambda _: gate.wait(10) and Reply(FRESH))  # type: ignore[return-value]
    async with make(timeout=0.3) as client:
        errors = await asyncio.gather(*(client.get(there) for _ in range(3)), return_exceptions=True)
        gate.set()
        assert [type(error) for error in errors] == [library.ReadTimeout] * 3
        assert len({id(error) for error in errors}) == 3
    assert origin.count("/a") == 1


async def test_redirects_hooks_and_auth_are_the_clients(make: Any, origin: Origin) -> None:
    there = origin.counts("/b", cache_control="max-age=60")
    origin.says("/a", Reply({"location": there, "cache-control": "max-age=60"}, status=301))
    said = list[str]()

    async def hook(response: Any) -> None:
        said.append(f"{response.url.path} {response.headers['x-magnus-cache']}")

    async with make(event_hooks={"response": [hook]}, follow_redirects=True, auth=("user", "password")) as client:
        for _ in range(2):
            response = await client.get(origin.url + "/a")
            assert (response.text, [each.status_code for each in response.history]) == ("1", [301])
    assert said == ["/a miss", "/b miss", "/a hit", "/b hit"]
    assert origin.seen[0].headers["authorization"].startswith("Basic ")


@pytest.mark.parametrize(("patience", "asked"), [(20, 2), (None, 2), (0.5, 1), (0.1, 1)])
async def test_a_waiter_that_would_wait_longer_asks_itself(
    cache: AsyncCacheManager, library: Any, patience: float | None, asked: int
) -> None:
    """The one that loads has a shorter timeout, and its request ends by that."""
    reached, over = asyncio.Event(), asyncio.Event()
    requests = list[Any]()

    async def server(request: Any) -> Any:
        requests.append(request)
        if len(requests) > 1:
            return library.Response(200, text="late", headers={"cache-control": "max-age=60"})
        reached.set()
        await over.wait()
        raise library.ReadTimeout("the server is slow", request=request)

    transport = AsyncCacheTransport(library.MockTransport(server), cache)
    async with library.AsyncClient(transport=transport, timeout=0.5) as client:
        first = asyncio.ensure_future(client.get("http://a/x"))
        await reached.wait()
        second = asyncio.ensure_future(client.get("http://a/x", timeout=patience))
        await wait_until_async(lambda: waiters(cache) == 2)
        over.set()
        found = await asyncio.gather(first, second, return_exceptions=True)
    assert type(found[0]) is library.ReadTimeout
    assert len(requests) == asked
    assert found[1].text == "late" if asked == 2 else type(found[1]) is library.ReadTimeout  # type: ignore[union-attr]


def test_a_blocking_waiter_that_would_wait_longer_asks_itself(manager: CacheManager) -> None:
    reached, over, calls = threading.Event(), threading.Event(), itertools.count(1)

    class Slow(requests.adapters.HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *_: Any, **options: Any) -> requests.Response:
            if next(calls) > 1:
                fields = {"cache-control": "max-age=60", "content-length": "4"}
                body = urllib3.HTTPResponse(io.BytesIO(b"late"), fields, 200, preload_content=False)
                return self.build_response(request, body)
            reached.set()
            assert over.wait(30)
            raise requests.ReadTimeout("the server is slow", request=request)

    with requests.Session() as session, ThreadPoolExecutor(2) as threads:
        session.mount("http://", CacheAdapter(Slow(), manager))
        first = threads.submit(session.get, "http://a/x", timeout=0.5)
        assert reached.wait(30)
        assert waiters(manager) == 0, "the one that loads does so in its own thread"
        second = threads.submit(session.get, "http://a/x", timeout=(0.1, 20))
        wait_until(lambda: waiters(manager) == 1)
        over.set()
        assert second.result(30).text == "late"
        with pytest.raises(requests.ReadTimeout):
            first.result(30)
    assert next(calls) == 3


async def test_a_condition_leaves_the_callers_request_alone(make: Any, origin: Origin) -> None:
    def answer(seen: Seen) -> Reply:
        status = 304 if "if-none-match" in seen.headers else 200
        return Reply({"etag": '"a"', "cache-control": "no-cache"}, status=status)

    url = origin.says("/a", answer)
    async with make() as client:
        await client.get(url)
        response = await client.get(url)
        assert response.headers["x-magnus-cache"] == "revalidated"
        assert "if-none-match" not in response.request.headers
    assert "if-none-match" in origin.seen[1].headers


async def test_a_large_body_that_can_be_read_only_once_is_passed_on(make: Any, origin: Origin) -> None:
    url = origin.says("/a", lambda _: Reply({}, str(origin.count("/a")).encode()))

    async def body(text: bytes) -> AsyncIterator[bytes]:
        yield text

    async with make({"methods": ["POST"], "ttl": "1m", "max_body_bytes": 3}) as client:
        for text, answers in ((b"123", ["1", "1"]), (b"1234", ["2", "3"])):
            fields = {"content-length": str(len(text))}
            assert [(await client.post(url, content=body(text), headers=fields)).text for _ in range(2)] == answers
        # In memory, it may be of any size.
        assert [(await client.post(url, content=b"12345")).text for _ in range(2)] == ["4", "4"]


async def test_closing_the_cache_while_a_body_arrives_is_an_error_of_the_library(
    origin: Origin, library: Any, url: str
) -> None:
    parts = Parts(origin, "/a")
    cache = AsyncCacheManager(redis_url=url)
    async with library.AsyncClient(transport=AsyncCacheTransport(library.AsyncHTTPTransport(), cache)) as client:
        parts.gates[0].set()
        async with client.stream("GET", parts.url) as response:
            chunks = response.aiter_text()
            assert await anext(chunks) == "part 0;"
            await cache.close()
            with pytest.raises(library.ReadError, match="the cache was closed while the response was read"):
                await anext(chunks)
        parts.go()


def test_blocking_streams_are_read_by_part_too(origin: Origin, url: str, library: Any) -> None:
    parts = Parts(origin, "/a")
    parts.go()
    with CacheManager(redis_url=url) as cache:
        for limit, origins in ((1000, ["miss", "hit"]), (10, ["miss", "miss"])):
            with library.Client(
                transport=CacheTransport(library.HTTPTransport(), cache, max_body_bytes=limit, identity=str(limit))
            ) as client:
                for expected in origins:
                    with client.stream("GET", parts.url) as response:
                        assert "".join(response.iter_text()) == ALL
                        assert response.headers["x-magnus-cache"] == expected
                with client.stream("GET", parts.url) as response:
                    pass  # not read


def test_the_adapter_streams_and_is_closed(origin: Origin, url: str) -> None:
    parts = Parts(origin, "/a")
    parts.go()
    with CacheManager(redis_url=url) as cache, requests.Session() as session:
        session.mount("http://", CacheAdapter(cache=cache, max_body_bytes=10))
        for _ in range(2):
            with session.get(parts.url, stream=True) as response:
                assert next(response.iter_content(3)) == b"par"
                assert response.text == ALL if response._content_consumed else True
        with session.get(parts.url, stream=True) as response:
            assert b"".join(response.iter_content(5)).decode() == ALL
        cookies = origin.says("/c", Reply({**FRESH, "set-cookie": "a=1"}))
        session.mount("http://", CacheAdapter(cache=cache, store_cookies=True))
        for _ in range(2):
            session.cookies.clear()
            session.get(cookies)
            assert session.cookies.get_dict() == {"a": "1"}


def test_a_client_certificate_tells_users_apart(origin: Origin, url: str) -> None:
    there = origin.counts("/a", cache_control="max-age=60")
    with CacheManager(redis_url=url) as cache:
        texts = list[str]()
        for cert in (__file__, f"{ROOT}/README.md", __file__):
            with requests.Session() as session:
                session.mount("http://", CacheAdapter(cache=cache))
                texts.append(session.get(there, cert=cert).text)
    assert texts == ["1", "2", "1"]


def test_all_loops_and_the_process_wide_cache_share(origin: Origin, url: str, library: Any) -> None:
    configure(redis_url=url)
    there = origin.counts("/a", cache_control="max-age=60")

    async def once() -> str:
        async with library.AsyncClient(transport=AsyncCacheTransport(library.AsyncHTTPTransport())) as client:
            text: str = (await client.get(there)).text
            return text

    assert [asyncio.run(once()) for _ in range(3)] == ["1", "1", "1"]
    with library.Client(transport=CacheTransport(library.HTTPTransport())) as client:
        assert client.get(there).text == "1"
    with requests.Session() as session:
        session.mount("http://", CacheAdapter())
        assert session.get(there).text == "1"
    get_cache_manager().close()


_ASKING: Final = """
import asyncio, sys, httpx
from magnus_cache import AsyncCacheManager
from magnus_cache.integrations.http import AsyncCacheTransport

async def main():
    async with AsyncCacheManager(redis_url=sys.argv[1]) as cache:
        transport = AsyncCacheTransport(httpx.AsyncHTTPTransport(), cache)
        async with httpx.AsyncClient(transport=transport, timeout=20) as client:
            calls = [asyncio.ensure_future(client.get(sys.argv[2])) for _ in range(50)]
            await asyncio.sleep(0.1)
            print("asking", flush=True)
            print({each.text for each in await asyncio.gather(*calls)})

asyncio.run(main())
"""


def test_a_hundred_callers_in_two_processes_make_one_request(origin: Origin, url: str) -> None:
    gate = threading.Event()
    there = origin.says("/a", lambda _: gate.wait(20) and Reply(FRESH, b"one"))  # type: ignore[return-value]
    command = [sys.executable, "-c", _ASKING, url, there]
    programs = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "asking\n"
    finally:
        gate.set()
        ends = [program.communicate(timeout=20) for program in programs]
    assert ends == [("{'one'}\n", "")] * 2
    assert origin.count("/a") == 1


async def test_trio_is_told_which_loops_work(origin: Origin) -> None:
    import trio

    there = origin.counts("/a", cache_control="max-age=60")

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncCacheTransport(httpx.AsyncHTTPTransport(), cache)) as client:
            await client.get(there)

    with CacheManager(redis_enabled=False) as cache:
        with pytest.raises(CacheLoopError):
            await asyncio.to_thread(trio.run, main)
    await asyncio.get_running_loop().shutdown_default_executor()


def test_bad_options_are_told() -> None:
    for options, named in (
        ({"tll": 1}, "tll: no such option"), ({"ttl": "soon"}, "ttl"), ({"rules": [("*", 1)]}, "rules"),
        ({"methods": "GET"}, "methods"), ({"max_body_bytes": -1}, "max_body_bytes"), ({"secret": ""}, "secret"),
        ({"namespace": "a:b"}, "name"), ({"shared": 1}, "shared"), ({"identity": 3}, "identity"),
        ({"max_body_bytes": "1"}, "max_body_bytes"),
    ):  # fmt: skip
        with pytest.raises(CacheArgumentError, match=named):
            CacheTransport(httpx.HTTPTransport(), **options)  # type: ignore[arg-type]
    with pytest.raises(CacheTypeError, match="cache"):
        CacheTransport(httpx.HTTPTransport(), httpx.Client)  # type: ignore[arg-type]
    with pytest.raises(CacheArgumentError, match="override"):
        Rule("*", override=True)
    with pytest.raises(CacheTypeError, match="pattern"):
        Rule("")
    assert repr(Rule("*/a", ttl="1m")) == "Rule('*/a', ttl=60.0, override=False, store=True)"


def test_the_transports_need_neither_library(tmp_path: Any) -> None:
    code = (
        "import sys\n"
        "for name in ('httpx', 'httpx2', 'requests', 'urllib3'): sys.modules[name] = None\n"
        "import magnus_cache.integrations.http as http\n"
        "http.AsyncCacheTransport, http.CacheTransport\n"
        "try: http.CacheAdapter\n"
        "except ImportError as error: print(error)\n"
    )
    done = run_python("-c", code)
    assert done.stdout == ('magnus_cache.integrations.http needs requests: pip install "magnus-cache[requests]"\n'), (
        done.stderr
    )
