"""Every code block of the integration guide runs after changing its import path, and does what the guide says.

The blocks are taken from the document and run as they are, on real parts: Redis, a database, a web service. What
they use and the guide leaves to the reader, such as `logger`, is given to them; `yfinance` and `streamlit` alone
are stand-ins. Each test claims the blocks it runs; a block that nobody claims fails a test of its own.
"""

import functools
import hashlib
import inspect
import re
import socket
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import redis
import requests

import magnus_cache
from magnus_cache import CacheNamespaces, get_cache_manager, redis_cache_manager
from magnus_cache.demo.service import ANSWER
from magnus_cache.embedded import EmbeddedServer
from tests.guide import databases, document
from tests.guide.databases import NOW, ROWS, Database, Postgres, PostgresServer, Sqlite, psycopg2_for
from tests.guide.document import BLOCKS
from tests.guide.running import Guide, same
from tests.guide.service import PORTFOLIO, PRICES, Service
from tests.guide.stand_ins import Streamlit, yfinance

Scenario: TypeAlias = Callable[..., None]

CLAIMS: dict[int, Scenario] = {}
DATABASES = ["sqlite", "postgresql"] if databases.postgres_installed() else ["sqlite"]


def acquirer(*indices: int) -> Callable[[Scenario], Scenario]:
    """Mark a test as the one that runs these blocks; it fails unless it does."""

    def mark(scenario: Scenario) -> Scenario:
        @functools.wraps(scenario)
        def run(guide: Guide, **others: Any) -> None:
            scenario(guide, **others)
            assert set(indices) <= guide.ran, "a block that is claimed was not run"

        for index in indices:
            assert index not in CLAIMS, f"block {index} is claimed twice"
            CLAIMS[index] = run
        return run

    return mark


# -- fixtures -----------------------------------------------------------------------------------------------


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with Service() as service:
        service.reroute(monkeypatch, "api.robinhood.com")
        yield service


@pytest.fixture
def surroundings(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Callable[[int, redis.Redis | None], Guide]]:
    """Makes a place to run blocks in, where Redis is at a port; the cache of the process is new, and closed after."""

    def surround(port: int, raw: redis.Redis | None) -> Guide:
        monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
        monkeypatch.setenv("REDIS_PORT", str(port))
        # As in the guide's .env file: empty for local development.
        monkeypatch.setenv("REDIS_PASSWORD", "")
        return Guide(raw, service, monkeypatch, caplog, capsys)

    caplog.set_level("INFO", "guide")
    get_cache_manager().close()
    yield surround
    get_cache_manager().close()


@pytest.fixture
def guide(server: EmbeddedServer, raw: redis.Redis, surroundings: Callable[[int, redis.Redis | None], Guide]) -> Guide:
    return surroundings(server.port, raw)


@pytest.fixture
def guide_without_redis(surroundings: Callable[[int, redis.Redis | None], Guide]) -> Iterator[Guide]:
    # A port that is taken and not listened on: nobody else can start to in the meantime.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield surroundings(taken.getsockname()[1], None)
        get_cache_manager().close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], PostgresServer]]:
    started: list[PostgresServer] = []

    def start() -> PostgresServer:
        if not started:
            started.append(PostgresServer())
        return started[0]

    yield start
    for server in started:
        server.close()


@pytest.fixture(params=DATABASES)
def database(
    request: pytest.FixtureRequest, postgres: Callable[[], PostgresServer], tmp_path: Path
) -> Iterator[Database]:
    database: Database = Sqlite(tmp_path) if request.param == "sqlite" else Postgres(postgres())
    yield database
    database.close()


# -- the document ---------------------------------------------------------------------------------------------


def unclaimed(text: str) -> set[int]:
    return set(range(len(document.blocks_of(text)))) - CLAIMS.keys()


def test_every_block_is_claimed_by_one_test() -> None:
    text = document.PATH.read_text(encoding="utf-8")
    assert unclaimed(text) == set()
    assert set(CLAIMS) == set(range(len(BLOCKS)))
    # Nothing that is Python escaped the search: all other blocks are for a shell.
    fences = re.findall(r"^```(.*)$", text, flags=re.MULTILINE)
    assert len(fences) == 2 * (len(BLOCKS) + fences.count("bash"))


def test_a_new_block_would_be_noticed() -> None:
    text = document.PATH.read_text(encoding="utf-8")
    assert unclaimed(f"{text}\n\n```python\npass\n```\n") == {len(BLOCKS)}


def test_nobody_edited_or_formatted_the_copy_of_the_guide() -> None:
    assert hashlib.sha256(document.PATH.read_bytes()).hexdigest() == document.SHA256


def test_the_copy_of_the_guide_is_the_guide() -> None:
    if not document.ORIGINAL.exists():
        pytest.skip("the document itself is not here")
    assert document.PATH.read_bytes() == document.ORIGINAL.read_bytes()


def test_nothing_but_imports_is_changed() -> None:
    for block in BLOCKS:
        for old, new in zip(block.splitlines(), document.with_our_imports(block).splitlines(), strict=True):
            assert old == new or re.fullmatch(r"\s*from src\.[\w.]+ import .+", old)
        assert "from src." not in document.with_our_imports(block)


def test_the_module_for_the_guide_has_what_the_guide_imports() -> None:
    wanted = {
        name.strip()
        for block in BLOCKS
        for names in re.findall(r"from src\.cache\.redis_cache_manager import (.+)", block)
        for name in names.split(",")
    }
    constants = {name for name in dir(magnus_cache) if name.startswith("TTL_")} - {"TTL_FOREVER"}
    assert set(redis_cache_manager.__all__) == wanted | constants
    for name in redis_cache_manager.__all__:
        assert getattr(redis_cache_manager, name) is getattr(magnus_cache, name)


def thrice(call: Callable[[], Any]) -> Any:
    """Return what a call returns, three times over."""
    first, *others = [call() for _ in range(3)]
    assert all(same(first, other) for other in others)
    return first


# -- the examples -------------------------------------------------------------------------------------------


@acquirer(0, 1)
def test_example_1_portfolio(guide: Guide) -> None:
    calls = guide.service.calls
    before = guide.run(0, requests=requests)
    client = guide.attached(before, "RobinhoodClient", "get_portfolio_data")()
    assert same(thrice(client.get_portfolio_data), PORTFOLIO)
    assert calls["portfolio"] == 3

    after = guide.run(1, requests=requests)
    cls = guide.attached(after, "RobinhoodClient", "get_portfolio_data")
    first, second = cls(), cls()
    # As a method; and as the function it is, called with an instance. One instance is as good as another.
    found = [first.get_portfolio_data(), second.get_portfolio_data(), after.get_portfolio_data(first)]
    assert all(same(value, PORTFOLIO) for value in found)
    assert calls["portfolio"] == 3 + 1
    assert guide.hits_and_misses == (2, 1)
    name = "magnus:portfolio:robinhood_client.get_portfolio_data~(~self:robinhood_client.RobinhoodClient)"
    guide.expect({name: PORTFOLIO}, ttl=300)
    # What a caller does to its copy is its own business.
    found[0]["positions"].clear()
    assert first.get_portfolio_data() == PORTFOLIO


@acquirer(2, 3)
def test_example_2_options_chains(guide: Guide, database: Database) -> None:
    before = guide.run(2, psycopg2=psycopg2_for(database))
    expected = thrice(lambda: before.get_options_chain("AAPL", "2025-03-21"))
    march, june = date(2025, 3, 21), date(2025, 6, 20)
    assert expected == [row for row in ROWS["options_chains"] if row[:2] == ("AAPL", march)]
    assert len(expected) == 8
    assert database.queries == 3

    after = guide.run(3, psycopg2=psycopg2_for(database))
    found = [after.get_options_chain("AAPL", "2025-03-21") for _ in range(3)]
    assert all(same(value, expected) for value in found)
    other = after.get_options_chain("AAPL", "2025-06-20")
    assert other == [row for row in ROWS["options_chains"] if row[:2] == ("AAPL", june)]
    assert len(other) == 1
    assert database.queries == 3 + 2
    assert guide.hits_and_misses == (2, 2)
    names = ("magnus:options_chains:AAPL_2025-03-21", "magnus:options_chains:AAPL_2025-06-20")
    guide.expect(dict(zip(names, (expected, other), strict=True)), ttl=900)


@acquirer(4, 5)
def test_example_3_kalshi_markets(guide: Guide, database: Database) -> None:
    def get_connection(self: object) -> Any:
        return database.connect(...)

    before = guide.run(4)
    manager = guide.attached(before, "KalshiDBManager", "get_active_markets", get_connection=get_connection)()
    expected = thrice(lambda: manager.get_active_markets())
    markets = {
        sport: [row for row in ROWS["kalshi_markets"] if row[2:4] == (sport, "active")] for sport in ("NFL", "NBA")
    }
    assert expected == markets["NFL"]
    assert len(expected) == 4
    assert database.queries == 3

    after = guide.run(5)
    after.KalshiDBManager.get_connection = get_connection
    manager, other = after.KalshiDBManager(), after.KalshiDBManager()
    # One call, however it is written and whoever makes it.
    found = [manager.get_active_markets(), other.get_active_markets("NFL"), manager.get_active_markets(sport="NFL")]
    assert all(same(value, expected) for value in found)
    basketball = manager.get_active_markets("NBA")
    assert basketball == markets["NBA"]
    assert len(basketball) == 1
    assert database.queries == 3 + 2
    assert guide.hits_and_misses == (2, 2)
    call = "magnus:kalshi_markets:kalshi_db_manager.KalshiDBManager.get_active_markets"
    guide.expect({f"{call}~(sport=NFL)": expected, f"{call}~(sport=NBA)": basketball}, ttl=60)

    guide.cache.set(CacheNamespaces.STOCK_PRICES, "AAPL", 1.0)
    manager.invalidate_market_cache()
    guide.expect({"magnus:stock_prices:AAPL": 1.0}, ttl=60)
    assert same(other.get_active_markets(), expected)
    assert database.queries == 3 + 3


@acquirer(6, 7)
def test_example_4_stock_prices(guide: Guide) -> None:
    guide.provide(yfinance(guide.service.price))
    before = guide.run(6)
    assert thrice(lambda: before.get_stock_price("AAPL")) == PRICES["AAPL"]
    assert guide.service.calls["stock_price"] == 3

    after = guide.run(7)
    assert thrice(lambda: after.get_stock_price("AAPL")) == PRICES["AAPL"]
    assert guide.service.calls["stock_price"] == 3 + 1
    assert after.get_stock_price("MSFT") == PRICES["MSFT"]
    assert guide.service.calls["stock_price"] == 3 + 2
    assert guide.hits_and_misses == (2, 2)
    guide.expect({f"magnus:stock_prices:{ticker}": price for ticker, price in PRICES.items()}, ttl=60)
    # The key is the ticker itself, so that anybody can look at the price, or drop it.
    assert redis_cache_manager.cache_get(CacheNamespaces.STOCK_PRICES, "AAPL") == PRICES["AAPL"]
    assert redis_cache_manager.cache_delete(CacheNamespaces.STOCK_PRICES, "AAPL") is True
    assert after.get_stock_price("AAPL") == PRICES["AAPL"]
    assert guide.service.calls["stock_price"] == 3 + 3


@acquirer(8, 9)
def test_example_5_llm_responses(guide: Guide) -> None:
    calls, prompt = guide.service.calls, "What is a covered call?"
    before = guide.run(8)
    llm = guide.attached(before, "LLMService", "generate_response", openai_llm=guide.service)()
    expected = thrice(lambda: llm.generate_response(prompt, "friendly"))
    assert expected == ANSWER.format(personality="friendly", prompt=prompt)
    assert calls["llm_response"] == 3

    after = guide.run(9)
    cls = guide.attached(after, "LLMService", "generate_response", openai_llm=guide.service)
    first, second = cls(), cls()
    found = [
        first.generate_response(prompt, "friendly"),
        second.generate_response(prompt, "friendly"),
        after.generate_response(first, prompt, "friendly"),
    ]
    assert found == [expected] * 3
    assert second.generate_response(prompt, "stern") == expected
    assert calls["llm_response"] == 3 + 2
    assert guide.hits_and_misses == (2, 2)
    # The MD5 of "What is a covered call?_friendly" and of "What is a covered call?_stern".
    digests = ("ab2b385533323f6dd3033e291f2d72b1", "f42ed03fccebc9401dac4dfeb5a85817")
    guide.expect({f"magnus:llm_responses:{digest}": expected for digest in digests}, ttl=3600)
    assert [(level, "LLM cache HIT" in text) for level, text in guide.logged] == [("INFO", True)] * 2


@acquirer(10, 11)
def test_example_6_discord_messages(guide: Guide, database: Database) -> None:
    before = guide.run(10, psycopg2=psycopg2_for(database))
    expected = thrice(lambda: before.get_recent_messages())
    assert expected == [row for row in ROWS["discord_messages"] if row[-1] >= NOW - timedelta(hours=24)]
    assert len(expected) == 5
    assert database.queries == 3

    after = guide.run(11, psycopg2=psycopg2_for(database))
    found = [after.get_recent_messages(), after.get_recent_messages(24), after.get_recent_messages(hours_back=24)]
    assert all(same(value, expected) for value in found)
    longer = after.get_recent_messages(48)
    assert longer == ROWS["discord_messages"][:6]
    assert database.queries == 3 + 2
    assert guide.hits_and_misses == (2, 2)
    names = ("magnus:discord_messages:recent_24h", "magnus:discord_messages:recent_48h")
    guide.expect(dict(zip(names, (expected, longer), strict=True)), ttl=120)


# -- warming and watching -------------------------------------------------------------------------------------


def robinhood_client(guide: Guide) -> type[Any]:
    """Return Example 1's client as the warming script uses it: the script asks for a user, the example for none."""
    module = guide.run(1, requests=requests)
    fetch = module.get_portfolio_data

    def get_portfolio_data(self: object, user_id: str) -> Any:
        return {"user": user_id, **fetch(self)}

    module.get_portfolio_data = get_portfolio_data
    return guide.attached(module, "RobinhoodClient", "get_portfolio_data")


NAMED_USERS = ("user1", "user2", "user3")
FETCHED = "magnus:portfolio:robinhood_client.get_portfolio_data~(~self:robinhood_client.RobinhoodClient)"


def expect_warm(guide: Guide, users: list[str]) -> None:
    """Check that the users' portfolios are stored, and that the broker was asked once for all of them."""
    assert "Cache warmed for 100 users" in guide.printed
    values = {f"magnus:portfolio:{user}": {"user": user, **PORTFOLIO} for user in users}
    # What the script stores lives for ten minutes, what the cached client stores beside it for five.
    guide.expect({**values, FETCHED: PORTFOLIO}, ttl={**dict.fromkeys(values, 600), FETCHED: 300})
    assert guide.service.calls.snapshot() == {"portfolio": 1}
    _, misses = guide.hits_and_misses
    for user in users:
        assert redis_cache_manager.cache_get(CacheNamespaces.PORTFOLIO, user) == {"user": user, **PORTFOLIO}
    assert guide.hits_and_misses[1] == misses
    assert guide.service.calls.snapshot() == {"portfolio": 1}


@acquirer(12)
def test_warm_cache_script(guide: Guide) -> None:
    """The list ends in a literal ``...``, in the place of the other users; it is no user, and stops nothing."""
    robinhood_client(guide)
    guide.run(12)
    expect_warm(guide, list(NAMED_USERS))


def test_warm_cache_script_for_a_hundred_users(guide: Guide) -> None:
    """The same, with the ``...`` filled in."""
    robinhood_client(guide)
    text = document.with_our_imports(BLOCKS[12])
    filled = text.replace("'user3', ...]", "'user3', *more_users]")
    assert filled != text
    more = [f"user{number}" for number in range(4, 101)]
    guide.run_text(12, filled, more_users=more)
    expect_warm(guide, [*NAMED_USERS, *more])


@acquirer(13)
def test_statistics_report(guide: Guide) -> None:
    guide.cache.set("portfolio", "user1", PORTFOLIO)
    assert guide.cache.get("portfolio", "user1") == PORTFOLIO
    assert guide.cache.get("portfolio", "user2") is None
    assert guide.cache.get("portfolio", "user1") == PORTFOLIO
    guide.run(13)
    report = dict(line.split(": ", 1) for line in guide.printed.splitlines() if ": " in line)
    memory = report.pop("Redis Memory")
    there = guide.raw is not None
    assert report == {
        "Redis Available": str(there),
        "Hit Rate": "66.67%",
        "Total Requests": "3",
        "Hits": "2",
        "Misses": "1",
        "In-Memory Keys": "1",
        "Redis Total Keys": "1" if there else "N/A",
    }
    assert re.fullmatch(r"[\d.]+[KMG]" if there else "N/A", memory)


@acquirer(14)
@pytest.mark.parametrize("pressed", [False, True])
def test_streamlit_dashboard(guide: Guide, pressed: bool) -> None:
    page = Streamlit(pressed=pressed)
    guide.provide(page)
    namespaces = ("portfolio", "options_chains", "kalshi_markets", "misc")
    for namespace in namespaces:
        guide.cache.set(namespace, "k", namespace, ttl=50)
    guide.cache.get("portfolio", "k")
    guide.cache.get("portfolio", "not there")
    guide.run(14)
    assert page.metrics == {"Hit Rate": "50.0%", "Total Requests": 2, "Cache Keys": 4}
    assert [text.endswith("Cache Performance") for text in page.headers] == [True]
    assert [text.endswith("Clear All Caches") for text in page.buttons] == [True]
    assert page.successes == (["All caches cleared!"] if pressed else [])
    left = ("misc",) if pressed else namespaces
    guide.expect({f"magnus:{namespace}:k": namespace for namespace in left}, ttl=50)
    assert guide.cache.get_many("portfolio", ["k"]) == ({} if pressed else {"k": "portfolio"})


# -- best practices -------------------------------------------------------------------------------------------


@acquirer(15)
def test_ttl_constants(guide: Guide) -> None:
    constants = {name: value for name, value in vars(guide.run(15)).items() if name.startswith("TTL_")}
    assert constants == {
        name: getattr(redis_cache_manager, name) for name in dir(redis_cache_manager) if name[:4] == "TTL_"
    }
    for name, ttl in constants.items():
        guide.cache.set("misc", name, ttl, ttl=ttl)
    names = {f"magnus:misc:{name}": ttl for name, ttl in constants.items()}
    guide.expect(names, ttl=names)


NAMES = ("CacheNamespaces", "cache_clear", "cache_delete", "cache_get", "cache_set", "get_cache_manager")
IMPORTED = {name: getattr(redis_cache_manager, name) for name in NAMES}
"""What earlier blocks imported and later ones just use."""


@acquirer(16)
def test_namespaces_for_organization(guide: Guide) -> None:
    guide.run(16, **IMPORTED, data=PORTFOLIO)
    ttls = {
        "magnus:portfolio:user123": 300,
        "magnus:options_chains:AAPL_2025-03-21": 900,
        "magnus:misc:some_key": 300,
    }
    guide.expect(dict.fromkeys(ttls, PORTFOLIO), ttl=ttls)
    assert guide.cache.get("misc", "some_key") == PORTFOLIO
    assert guide.hits_and_misses == (1, 0)


@acquirer(17)
def test_cache_invalidation(guide: Guide, database: Database) -> None:
    def save_to_database(user_id: str, equity: object) -> None:
        with database.connect(...) as connection:
            connection.cursor().execute("UPDATE portfolios SET equity = %s WHERE user_id = %s", (equity, user_id))

    @guide.cache.cached(CacheNamespaces.PORTFOLIO, key="{user_id}")
    def equity_of(user_id: str) -> Any:
        cursor = database.connect(...).cursor()
        cursor.execute("SELECT equity FROM portfolios WHERE user_id = %s", (user_id,))
        return cursor.fetchone()[0]

    block = guide.run(17, **IMPORTED, save_to_database=save_to_database)
    (user, old), (bystander, kept) = ROWS["portfolios"]
    assert [equity_of(user), equity_of(bystander), equity_of(user)] == [old, kept, old]
    assert database.queries == 2
    block.update_portfolio(user, 2 * old)
    guide.expect({f"magnus:portfolio:{bystander}": kept}, ttl=300)
    assert same(equity_of(user), 2 * old)
    assert same(equity_of(bystander), kept)
    assert database.queries == 2 + 1 + 1
    assert guide.hits_and_misses == (2, 3)


@acquirer(18)
def test_cache_failures_are_handled(guide: Guide) -> None:
    block = guide.run(18, **IMPORTED, fetch_from_source=lambda key: guide.service.price(key or "AAPL"))
    assert block.get_data_with_fallback("AAPL") == PRICES["AAPL"]
    assert guide.service.calls["stock_price"] == 1
    guide.cache.set(CacheNamespaces.STOCK_PRICES, "AAPL", 200.5)
    assert block.get_data_with_fallback("AAPL") == 200.5
    assert guide.service.calls["stock_price"] == 1
    assert guide.hits_and_misses == (1, 1)
    assert guide.logged == []
    # A key that cannot be one is the caller's mistake, and the only error there is.
    assert block.get_data_with_fallback(None) == PRICES["AAPL"]
    assert [(level, text.startswith("Cache error: key: ")) for level, text in guide.logged] == [("WARNING", True)]


@acquirer(19)
def test_hit_rate_is_logged(guide: Guide) -> None:
    guide.cache.set("misc", "k", 1)
    for key in ("k", "k", "not there"):
        guide.cache.get("misc", key)
    guide.run(19, stats=guide.cache.get_stats())
    assert guide.logged == [("INFO", "Cache hit rate: 66.7%")]


# -- troubleshooting ------------------------------------------------------------------------------------------


@acquirer(20)
def test_redis_not_connecting(guide: Guide) -> None:
    """The block begins with two commands for a shell, so it is no Python; what follows them is, and is run."""
    block = document.with_our_imports(BLOCKS[20])
    with pytest.raises(SyntaxError):
        compile(block, "block 20", "exec")
    shell, mark, python = block.partition("# Check connection in Python\n")
    assert [line.split("  #")[0] for line in shell.splitlines() if line and line[0] != "#"] == [
        "redis-cli ping",
        "redis-server",
    ]
    assert mark
    # The property does no I/O: it tells the state after the last exchange, and in a program that has not asked
    # Redis for anything yet there was none. In a program with a problem there was.
    get_cache_manager().get("test", "mykey")
    guide.run_text(20, python)
    assert guide.printed == f"Redis available: {guide.raw is not None}\n"


@acquirer(21)
def test_always_cache_miss(guide: Guide) -> None:
    guide.run(21)
    assert guide.printed == "Test result: myvalue\n"
    assert guide.hits_and_misses == (1, 0)
    guide.expect({"magnus:test:mykey": "myvalue"}, ttl=60)


@acquirer(22)
def test_memory_usage_too_high(guide: Guide) -> None:
    for namespace in ("llm_responses", "portfolio", "misc"):
        guide.cache.set(namespace, "k", namespace)
    if guide.raw is not None:
        guide.raw.set("somebody:else", "kept")
    cleared: list[tuple[str, int]] = []

    # The block clears a namespace and then everything; look at what is there in between.
    def cache_clear(what: str) -> int:
        count = redis_cache_manager_clear(what)
        cleared.append((what, guide.cache.get_stats()["in_memory_keys"]))
        return count

    redis_cache_manager_clear = redis_cache_manager.cache_clear
    guide.monkeypatch.setattr(redis_cache_manager, "cache_clear", cache_clear)
    guide.run(22, **IMPORTED, cache=guide.cache)
    assert cleared == [("llm_responses", 2), ("magnus:*", 0)]
    guide.expect({}, ttl=0)
    if guide.raw is not None:
        assert re.fullmatch(r"Redis memory: [\d.]+[KMG]\n", guide.printed)
        assert guide.raw.get("somebody:else") == b"kept"
    assert guide.cache.get_many("portfolio", ["k"]) == {}


# -- without Redis --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_without_redis_every_block_gives_the_same_values(
    guide_without_redis: Guide, database: Database, index: int
) -> None:
    """Every claim again, with nobody at the port: the same values, calls, hits and misses, from memory."""
    scenario = CLAIMS[index]
    given = {"database": database, "pressed": True}
    wanted = inspect.signature(scenario).parameters.keys() & given.keys()
    scenario(guide_without_redis, **{name: given[name] for name in wanted})
    assert guide_without_redis.cache.redis_available is False
