"""The clients of the guide's programs on this cache, against local servers: `nox -s clients` runs this module.

yfinance, robin_stocks, Kalshi's, Discord's, OpenAI's and Anthropic's clients and LangChain ask real servers over real
connections. What they return is stored, and comes back the same: here, from another process, and while Redis is away.
"""

import importlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import discord
import kalshi_python
import openai
import pytest
import requests
import yfinance
from anthropic.types import Message
from curl_cffi import requests as curl
from discord import http as discord_http
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from openai.types.chat import ChatCompletion
from requests.adapters import HTTPAdapter
from robin_stocks import robinhood
from robin_stocks.robinhood import globals as robin_globals
from streamlit.testing.v1 import AppTest

from magnus_cache import AsyncCacheManager, CacheManager, get_cache_manager
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.integrations.http import CacheAdapter, Rule
from magnus_cache.testing import Proxy
from tests.foreign import vendors
from tests.foreign.rehearsal import rehearse, rehearse_async
from tests.support.llm_server import LLMServer
from tests.support.origin import Origin, serving

pytestmark = pytest.mark.anyio

Call = Callable[[int], Any]


@pytest.fixture
def origin() -> Iterator[Origin]:
    with serving() as started:
        yield started


def requests_of(origin: Origin) -> Callable[[], int]:
    return lambda: len(origin.seen)


# -- yfinance ---------------------------------------------------------------------------------------------------


class Here(curl.Session):  # type: ignore[misc]  # the types of the library are not checked
    """A session of curl that asks a local server in place of each host."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        return super().request(method, f"{self._url}/{url.partition('://')[2]}", *args, **kwargs)


@pytest.fixture
def yahoo(origin: Origin, tmp_path: Path) -> Iterator[Here]:
    vendors.yahoo(origin)
    yfinance.set_tz_cache_location(str(tmp_path))
    with Here(origin.url) as session:
        yield session


YAHOO: dict[str, Callable[[Here], Any]] = {
    # The guide's: src/yfinance_wrapper.py.
    "currentPrice": lambda session: yfinance.Ticker("AAPL", session=session).info["currentPrice"],
    "info": lambda session: dict(yfinance.Ticker("AAPL", session=session).info),
    "history": lambda session: yfinance.Ticker("AAPL", session=session).history(period="5d"),
    "options": lambda session: yfinance.Ticker("AAPL", session=session).options,
    "option_chain": lambda session: yfinance.Ticker("AAPL", session=session).option_chain("2023-11-17"),
    "dividends": lambda session: yfinance.Ticker("AAPL", session=session).dividends,
    "download": lambda session: yfinance.download(
        ["AAPL", "MSFT"], period="5d", session=session, progress=False, threads=False, auto_adjust=True
    ),
}


@pytest.mark.parametrize("what", YAHOO)
def test_yfinance(server: EmbeddedServer, yahoo: Here, origin: Origin, what: str) -> None:
    result = rehearse(server, lambda _: YAHOO[what](yahoo), requests_of(origin))
    assert len(result) if hasattr(result, "__len__") else result == 190.5


@pytest.mark.parametrize("what", YAHOO)
async def test_yfinance_awaited(server: EmbeddedServer, yahoo: Here, origin: Origin, what: str) -> None:
    await rehearse_async(server, lambda _: YAHOO[what](yahoo), requests_of(origin))


# -- robin_stocks -----------------------------------------------------------------------------------------------


class Rerouted(HTTPAdapter):
    """An adapter of requests that asks a local server in place of each host."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        asked = request.copy()
        asked.url = f"{self._url}/{str(request.url).partition('://')[2]}"
        # No proxy of the developer's machine.
        response = super().send(asked, *args, **{**kwargs, "proxies": {}})
        response.request = request
        return response


@pytest.fixture
def robin(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> Iterator[requests.Session]:
    """The one session of robin_stocks, as after a login."""
    vendors.robinhood(origin)
    session = robin_globals.SESSION
    monkeypatch.setattr("robin_stocks.robinhood.helper.LOGGED_IN", True)
    session.mount("https://api.robinhood.com/", Rerouted(origin.url))
    session.headers["Authorization"] = "Bearer ada"
    yield session
    session.close()
    del session.headers["Authorization"]
    del session.adapters["https://api.robinhood.com/"]


ROBIN: dict[str, Callable[[], Any]] = {
    "portfolio": robinhood.load_portfolio_profile,
    "quotes": lambda: robinhood.get_quotes("AAPL"),
    "price": lambda: robinhood.get_latest_price("AAPL"),
    "positions": robinhood.get_all_positions,
}


@pytest.mark.parametrize("what", ROBIN)
def test_robin_stocks(server: EmbeddedServer, robin: requests.Session, origin: Origin, what: str) -> None:
    assert rehearse(server, lambda _: ROBIN[what](), requests_of(origin))


@pytest.mark.parametrize("what", ROBIN)
async def test_robin_stocks_awaited(
    server: EmbeddedServer, robin: requests.Session, origin: Origin, what: str
) -> None:  # fmt: skip
    assert await rehearse_async(server, lambda _: ROBIN[what](), requests_of(origin))


def test_robin_stocks_through_the_adapter(server: EmbeddedServer, robin: requests.Session, origin: Origin) -> None:
    """As the page of HTTP clients shows: each user's responses are apart, and an outage makes no call fail."""
    with Proxy(server.port) as proxy, CacheManager(redis_url=proxy.url, op_timeout=0.3) as cache:
        rules = [Rule("https://api.robinhood.com/quotes/*", ttl="5s"), Rule("*/oauth2/*", store=False)]
        below = Rerouted(origin.url)
        robin.mount("https://api.robinhood.com/", CacheAdapter(below, cache, ttl="1m", rules=rules))
        first = [robinhood.load_portfolio_profile() for _ in range(3)]
        assert first[0] == first[1] == first[2]
        assert len(origin.seen) == 1
        robin.headers["Authorization"] = "Bearer bob"
        assert robinhood.load_portfolio_profile() == first[0]
        assert len(origin.seen) == 2
        proxy.refuse()
        proxy.cut()
        assert robinhood.load_portfolio_profile() == first[0]
        assert len(origin.seen) == 2
        assert robinhood.get_quotes("AAPL")[0]["symbol"] == "AAPL"
        assert len(origin.seen) == 3


# -- Kalshi -----------------------------------------------------------------------------------------------------


@pytest.fixture
def kalshi(origin: Origin) -> Iterator[kalshi_python.KalshiClient]:
    vendors.kalshi(origin)
    client = kalshi_python.KalshiClient(kalshi_python.Configuration(host=f"{origin.url}/trade-api/v2"))
    yield client
    client.rest_client.pool_manager.clear()


def kalshi_calls(client: kalshi_python.KalshiClient) -> dict[str, tuple[Call, Any]]:
    markets, portfolio = kalshi_python.MarketsApi(client), kalshi_python.PortfolioApi(client)
    return {
        "markets": (lambda _: markets.get_markets(status="open", limit=2), kalshi_python.GetMarketsResponse),
        "market": (lambda _: markets.get_market("NFL-KC"), kalshi_python.GetMarketResponse),
        "list": (lambda _: markets.get_markets(limit=2).markets, list[kalshi_python.Market]),
        "balance": (lambda _: portfolio.get_balance(), kalshi_python.GetBalanceResponse),
        "dict": (lambda _: markets.get_market("NFL-KC").to_dict(), None),
    }


KALSHI = ("markets", "market", "list", "balance", "dict")


@pytest.mark.parametrize("what", KALSHI)
def test_kalshi(server: EmbeddedServer, kalshi: kalshi_python.KalshiClient, origin: Origin, what: str) -> None:
    call, returns = kalshi_calls(kalshi)[what]
    assert rehearse(server, call, requests_of(origin), returns)


@pytest.mark.parametrize("what", KALSHI)
async def test_kalshi_awaited(
    server: EmbeddedServer, kalshi: kalshi_python.KalshiClient, origin: Origin, what: str
) -> None:  # fmt: skip
    call, returns = kalshi_calls(kalshi)[what]
    assert await rehearse_async(server, call, requests_of(origin), returns)


# -- Discord ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def bot(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[discord.Client]:
    vendors.discord(origin)
    monkeypatch.setattr(discord_http.Route, "BASE", f"{origin.url}/api/v10")
    async with discord.Client(intents=discord.Intents.none()) as client:
        await client.login("token")
        yield client


async def test_the_payloads_of_discord(server: EmbeddedServer, bot: discord.Client, origin: Origin) -> None:
    async def load(_: int) -> Any:
        return await bot.http.logs_from(7, limit=50)

    messages = await rehearse_async(server, load, requests_of(origin))
    assert messages[0] == vendors.MESSAGE


async def test_what_the_program_makes_of_messages(server: EmbeddedServer, bot: discord.Client, origin: Origin) -> None:
    async def load(_: int) -> Any:
        channel = await bot.fetch_channel(7)
        found = [message async for message in channel.history(limit=50)]
        return [
            {"id": each.id, "author": each.author.name, "text": each.content, "at": each.created_at} for each in found
        ]

    messages = await rehearse_async(server, load, requests_of(origin))
    assert messages[0]["author"] == "ada"


async def test_messages_themselves_are_returned_and_not_stored(
    url: str, bot: discord.Client, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """They hold the whole client. No result is lost, and the log says what to do."""
    async with AsyncCacheManager(redis_url=url) as cache:

        @cache.cached("trial", ttl=60)
        async def recent() -> list[discord.Message]:
            channel = await bot.fetch_channel(7)
            return [message async for message in channel.history(limit=50)]

        for _ in range(2):
            assert [each.content for each in await recent()] == [vendors.MESSAGE["content"], ""]
        assert (await cache.get_stats())["namespaces"]["trial"]["unstorable"] == 2
    (said,) = [record for record in caplog.records if "is not cached" in record.getMessage()]
    assert "Message" in said.getMessage()


# -- language models --------------------------------------------------------------------------------------------

PROMPT: list[Any] = [{"role": "user", "content": "What colour is the sky?"}]


@pytest.fixture
def service() -> Iterator[LLMServer]:
    with LLMServer() as started:
        yield started


def test_openai(server: EmbeddedServer, service: LLMServer) -> None:
    import magnus_cache.integrations.openai  # noqa: F401  # registers the responses

    with openai.OpenAI(api_key="k", base_url=f"{service.url}/v1") as client:
        found = rehearse(
            server, lambda _: client.chat.completions.create(model="gpt-4o", messages=PROMPT), lambda: service.calls,
            content=lambda found: found.choices,
        )  # fmt: skip
    assert type(found) is ChatCompletion
    assert found.choices[0].message.content == "The sky is blue."


async def test_openai_awaited(server: EmbeddedServer, service: LLMServer) -> None:
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{service.url}/v1") as client:

        async def load(_: int) -> ChatCompletion:
            return await client.chat.completions.create(model="gpt-4o", messages=PROMPT)

        # The annotation registers them, too.
        await rehearse_async(server, load, lambda: service.calls, ChatCompletion, lambda found: found.choices)


def test_anthropic(server: EmbeddedServer, service: LLMServer) -> None:
    with anthropic.Anthropic(api_key="k", base_url=service.url) as client:
        found = rehearse(
            server, lambda _: client.messages.create(model="claude", max_tokens=9, messages=PROMPT),
            lambda: service.calls, Message, lambda found: found.content,
        )  # fmt: skip
    assert type(found) is Message


async def test_anthropic_awaited(server: EmbeddedServer, service: LLMServer) -> None:
    async with anthropic.AsyncAnthropic(api_key="k", base_url=service.url) as client:

        async def load(_: int) -> Message:
            return await client.messages.create(model="claude", max_tokens=9, messages=PROMPT)

        await rehearse_async(server, load, lambda: service.calls, Message, lambda found: found.content)


def chat_models(service: LLMServer) -> dict[str, Any]:
    return {
        "openai": ChatOpenAI(model="gpt-4o", api_key="k", base_url=f"{service.url}/v1"),
        "anthropic": ChatAnthropic(model="claude", api_key="k", base_url=service.url),
    }


@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
async def test_langchain(server: EmbeddedServer, service: LLMServer, vendor: str) -> None:
    importlib.import_module("magnus_cache.integrations.langchain")
    model = chat_models(service)[vendor]

    async def load(_: int) -> Any:
        return await model.ainvoke("What colour is the sky?")

    found = await rehearse_async(server, load, lambda: service.calls, content=lambda found: found.content)
    assert type(found) is AIMessage


@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
def test_langchain_as_in_the_guide(server: EmbeddedServer, service: LLMServer, vendor: str) -> None:
    model = chat_models(service)[vendor]
    assert rehearse(server, lambda _: model.invoke("sky?").content, lambda: service.calls) == "The sky is blue."


# -- Streamlit --------------------------------------------------------------------------------------------------


def page() -> None:
    """The guide's page: prices and the figures of the cache, with its button."""
    import streamlit as st

    from magnus_cache import cache_clear, get_cache_manager
    from tests.foreign import clients

    cache = get_cache_manager()

    @cache.cached("stock_prices", ttl=60, key_func=lambda ticker: ticker)
    def price_of(ticker: str) -> float:
        return float(clients.YAHOO["currentPrice"](st.session_state["session"]))

    st.subheader("Cache Performance")
    st.metric("AAPL", price_of("AAPL"))
    stats = cache.get_stats()
    st.metric("Hit Rate", f"{stats['hit_rate_percent']:.1f}%")
    st.metric("Cache Keys", stats.get("redis_total_keys") or stats["in_memory_keys"])
    if st.button("Clear"):
        cache_clear("stock_prices")
        st.success("All caches cleared!")


def test_a_page_of_streamlit(
    server: EmbeddedServer, yahoo: Here, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    with Proxy(server.port) as proxy:
        monkeypatch.setenv("MAGNUS_CACHE_REDIS_URL", proxy.url)
        monkeypatch.setenv("MAGNUS_CACHE_OP_TIMEOUT", "0.3")
        app = AppTest.from_function(page, default_timeout=30)
        app.session_state["session"] = yahoo

        def run() -> tuple[str, int]:
            app.run()
            assert not app.exception
            return app.metric[0].value, len(origin.seen)

        price, asked = run()
        assert price == "190.5"
        assert run() == run() == ("190.5", asked)
        app.button[0].click()
        assert run() == ("190.5", asked)
        assert [each.value for each in app.success] == ["All caches cleared!"]
        _, again = run()
        assert again > asked
        proxy.refuse()
        proxy.cut()
        assert run() == run() == ("190.5", again)
        app.button[0].click()
        run()
        assert run()[0] == "190.5"
        assert len(origin.seen) > again
        get_cache_manager().close()
