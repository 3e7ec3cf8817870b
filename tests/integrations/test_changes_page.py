"""The examples of the page on changes, under a real server and in a page of Streamlit, as they stand there."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import pytest
import redis
import uvicorn
from streamlit.testing.v1 import AppTest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from magnus_cache import AsyncCacheManager, CacheManager, get_async_cache_manager
from magnus_cache.embedded import EmbeddedServer
from tests.support.changes import PATIENT
from tests.support.documents import PAGES
from tests.support.wait import wait_until, wait_until_async

_PATIENCE: Final = 20


def _example(word: str) -> str:
    (code,) = (example.code for example in PAGES["changes"].examples if word in example.code)
    return code


@pytest.fixture
def _environment(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", server.url)


def _watchers(raw: redis.Redis) -> int:
    return sum("B" in str(client["flags"]) for client in raw.client_list())


@contextmanager
def _served(app: Any) -> Iterator[int]:
    """Serve an application of this process, and yield its port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="websockets-sansio"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(_PATIENCE)
        assert not thread.is_alive()


@pytest.mark.usefixtures("_environment")
def test_the_web_socket_tells_what_any_process_changes(url: str, raw: redis.Redis) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(_example("@app.websocket"), "changes.md", "exec"), names)

    async def told(socket: Any) -> Any:
        return json.loads(await asyncio.wait_for(socket.recv(), _PATIENCE))

    async def visit(port: int) -> None:
        async with AsyncCacheManager(redis_url=url, **PATIENT) as other:
            await other.set("prices", "AAPL", 1.0)
            async with connect(f"ws://127.0.0.1:{port}/prices", proxy=None) as one:
                async with connect(f"ws://127.0.0.1:{port}/prices", proxy=None) as two:
                    assert await told(one) == await told(two) == {"AAPL": 1.0}
                    await other.set("prices", "other", 0)
                    await other.set("prices", "MSFT", 2.0)
                    assert await told(one) == await told(two) == {"MSFT": 2.0}
                    assert _watchers(raw) == 1
                    await other.clear("prices")
                    assert await told(one) == {}
                await other.set("prices", "AAPL", 3.0)
                # After the clear, Redis has told of each key that it removed.
                while await told(one) != {"AAPL": 3.0}:
                    pass
            # Nothing has changed since, and yet both ends are noticed.
            await wait_until_async(lambda: _watchers(raw) == 0)

    with _served(names["app"]) as port:
        asyncio.run(visit(port))


@pytest.mark.usefixtures("_environment")
def test_a_server_that_ends_ends_its_web_sockets(raw: redis.Redis) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(_example("@app.websocket"), "changes.md", "exec"), names)
    connected, ended = threading.Event(), threading.Event()

    async def visit(port: int) -> None:
        async with connect(f"ws://127.0.0.1:{port}/prices", proxy=None) as socket:
            # The server is restarted, it says.
            with suppress(ConnectionClosedError):
                async for _ in socket:
                    connected.set()
        ended.set()

    with _served(names["app"]) as port:
        thread = threading.Thread(target=asyncio.run, args=(visit(port),))
        thread.start()
        assert connected.wait(_PATIENCE)
    assert ended.wait(_PATIENCE)
    thread.join()
    wait_until(lambda: _watchers(raw) == 0)


@pytest.mark.usefixtures("_environment")
def test_the_fragment_reads_again_what_has_changed(url: str) -> None:
    with CacheManager(redis_url=url, **PATIENT) as other:
        other.set("prices", "AAPL", 1.0)
        page = AppTest.from_string(_example("@st.fragment"), default_timeout=_PATIENCE).run()
        try:
            assert _prices(page) == {"AAPL": "1", "MSFT": "None"}
            before = page.session_state.rows
            assert page.run().session_state.rows is before
            other.set("prices", "MSFT", 2.5)
            wait_until(lambda: _prices(page.run())["MSFT"] == "2.5")
            other.clear("prices")
            wait_until(lambda: _prices(page.run())["AAPL"] == "None")
        finally:
            page.session_state.changes.close()
            asyncio.run(get_async_cache_manager().aclose())


def _prices(page: AppTest) -> dict[str, str]:
    assert not page.exception
    frame = page.table[0].value
    return {row["ticker"]: _shown(row["price"]) for row in frame.to_dict("records")}


def _shown(price: Any) -> str:
    return "None" if price is None or price != price else f"{price:g}"
