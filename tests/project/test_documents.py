"""The examples of README and pages run as they stand, what they list is what there is, and their links lead there."""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Self, get_args

import httpx
import pytest
import redis
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import REGISTRY

import magnus_cache
from benchmarks import behaviour
from magnus_cache import (
    AsyncCacheManager,
    CacheManager,
    CacheNamespaces,
    CacheSettings,
    Explanation,
    Health,
    Namespace,
    embedded,
    errors,
    protocols,
    redis_cache_manager,
    testing,
)
from magnus_cache._engine.api.totals import fleet_totals
from magnus_cache._engine.policy import namespaces as namespaces_module
from magnus_cache._engine.policy.registry import default_registry
from magnus_cache._engine.redis.endpoint import variable_of
from magnus_cache.embedded import EmbeddedServer, find_redis, find_valkey
from magnus_cache.errors import CacheError, Reason
from magnus_cache.freshness import Freshness, FreshnessOptions
from magnus_cache.integrations import pytest as plugin
from magnus_cache.observability import opentelemetry, prometheus
from magnus_cache.observability.opentelemetry import Instrumentation, instrument
from magnus_cache.observability.prometheus import CacheCollector
from magnus_cache.testing import Proxy
from tests.conftest import SERVERS
from tests.support.documents import (
    ALL,
    EXAMPLES,
    FOR_USERS,
    PAGES,
    README,
    ROOT,
    Document,
    Example,
    broken_links,
    first_column,
)
from tests.support.wait import wait_until_async
from tests.testing.test_pytest_plugin import Suite

TEXT = "\n".join(document.text for document in FOR_USERS)
SOURCE = "def slow_rate_limited_api(ticker):\n    return {'ticker': ticker}\n\n\n"
"""What examples call and leave to their reader."""

MOST_LINES = 175


# -- examples -----------------------------------------------------------------------------------------------


def _once(price: Any) -> None:
    assert price("AAPL") == price("AAPL") == {"ticker": "AAPL"}
    assert price.cache_info()[:3] == (1, 1, 1)


async def _served(user: Any, lifespan: Any) -> None:
    async with lifespan(None):
        assert await user(1) == await user(1) == {"id": 1}
        assert user.cache_info().loads == 1


async def _lived(lifespan: Any) -> None:
    async with lifespan(_lived):
        assert await magnus_cache.get_async_cache_manager().set("t", "k", 1)


def _of_one_user(client: type[Any]) -> None:
    assert client().orders(7) == client().orders(7) == [{"user": 7, "year": 2025}]
    assert client.orders.cache_info().loads == 2


async def _read_and_changed(read: Any, change: Any, ready: Any) -> None:
    async with magnus_cache.get_async_cache_manager():
        assert await read(1) == await read(1) == {"id": 1, "name": "Ada"}
        await change(1, "Grace")
        await read(1)
        assert read.cache_info().loads == 2
        assert await ready() == {"redis": True, "reason": None}


class _Page:
    """What a page of Streamlit is drawn on, for a user who presses the button."""

    def __init__(self) -> None:
        self.drawn: list[Any] = []

    def multiselect(self, label: str, options: list[str], default: list[str]) -> list[str]:
        return default

    def button(self, label: str) -> bool:
        return True

    def dataframe(self, rows: Any) -> None:
        self.drawn.append(rows)

    def caption(self, text: str) -> None:
        self.drawn.append(text)

    def rerun(self) -> None:
        self.drawn.append("again")


def _drawn(table: Any, page: Any) -> None:
    shown = _Page()
    page(shown)
    page(shown)
    assert [{"ticker": "AAPL", "price": 190.5}] in shown.drawn
    assert shown.drawn.count("again") == 2
    assert table.cache_info().loads == 2


def _computed_again(report: Any, send: Any, news: Any) -> None:
    assert [send("monday", "ada"), send("monday", "grace")] == [3, 3]
    news()
    send("monday", "ada")
    assert report.cache_info().loads == 2


class _Rows:
    """A connection of psycopg, as far as the recipe uses one: itself its cursor and its transaction."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = [(1, 9.5)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        return None

    def cursor(self) -> "_Rows":
        return self

    transaction = cursor

    def execute(self, statement: str, values: tuple[Any, ...]) -> None:
        if statement.startswith("INSERT"):
            self.rows = [*self.rows, (2, values[1])]

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self.rows


def _ordered(orders: Any, add: Any) -> None:
    rows = _Rows()
    assert orders(rows, 7) == orders(_Rows(), 7) == [(1, 9.5)]
    add(rows, 7, 3.25)
    assert orders(rows, 7) == [(1, 9.5), (2, 3.25)]


async def _answered(complete: Any) -> None:
    question = [{"role": "user", "content": "Hello"}]
    async with magnus_cache.get_async_cache_manager():
        assert await complete(object(), "small", question) == await complete(object(), "small", question)
        await complete(object(), "large", question)
        assert complete.cache_info().loads == 2


async def _answers(app: Any, *requests: tuple[str, str, dict[str, Any]]) -> list[httpx.Response]:
    async with (
        magnus_cache.get_async_cache_manager(),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        return [await client.request(method, url, **more) for method, url, more in requests]


def _evicted(app: Any) -> None:
    read, write = ("GET", "/quotes/AAPL", {}), ("PUT", "/quotes/AAPL", {"params": {"price": 191}})
    found = asyncio.run(_answers(app, read, read, write, read))
    assert [answer.json() for answer in found] == [{"price": 190.5}, {"price": 190.5}, None, {"price": 191}]
    assert ["age" in answer.headers for answer in found] == [False, True, False, False]


def _listed(catalog: Any) -> None:
    read, write = ("GET", "/items", {}), ("POST", "/items", {"params": {"name": "pen"}})
    found = asyncio.run(_answers(catalog, read, read, write, read))
    assert ["age" in answer.headers for answer in found] == [False, True, False, False]


def _of_each_user(app: Any) -> None:
    users = [("GET", "/portfolio", {"headers": {"authorization": f"Bearer {user}"}}) for user in (1, 2, 1)]
    found = asyncio.run(_answers(app, *users))
    assert [answer.json()["user"] for answer in found] == [1, 2, 1]
    assert ["age" in answer.headers for answer in found] == [False, False, True]


CHECKS: dict[tuple[str, ...], Callable[..., object]] = {
    ("get_stock_price",): _once,
    ("stock_price",): _once,
    ("user", "lifespan"): lambda *names: asyncio.run(_served(*names)),
    ("lifespan",): lambda lifespan: asyncio.run(_lived(lifespan)),
    ("exchanges",): lambda exchanges: _equal(exchanges.cache_info()[:3], (1, 1, 1)),
    ("OrderClient",): _of_one_user,
    ("options_chain",): lambda chain: _equal(chain.cache_info().loads, 2),
    ("quotes", "cache"): lambda quotes, cache: _equal(
        quotes(["AAPL", "MSFT", "IBM"]), {"AAPL": 4, "MSFT": 4, "IBM": 3}
    ),
    ("summary", "today"): lambda _, today: _equal((today.spent, today.saved, today.saved_percent), (0.004, 0.016, 80)),
    ("report",): lambda report: _equal((report.loaded, report.failed), (2, 0)),
    ("read_user", "put_user", "ready"): lambda *names: asyncio.run(_read_and_changed(*names)),
    ("quote_table", "page"): _drawn,
    ("daily_report", "send_report", "new_orders"): _computed_again,
    ("experiment",): lambda experiment: _equal(experiment.cache_info()[:3], (1, 1, 1)),
    ("info", "history"): lambda info, history: _equal((info.cache_info().loads, history.cache_info().loads), (1, 3)),
    ("orders", "add_order"): _ordered,
    ("complete",): lambda complete: asyncio.run(_answered(complete)),
    ("app", "quote", "put_quote"): lambda app, *_: _evicted(app),
    ("catalog",): _listed,
    ("app", "portfolio", "current_user"): lambda app, *_: _of_each_user(app),
    ("rates",): lambda rates: _equal(rates.cache_info().loads, 1),
    ("health",): lambda health: _equal(health.ok, True),
}
"""What an example with these names has to have done, beside not failing."""


def _equal(found: object, expected: object) -> None:
    assert found == expected


def _is_test(example: Example) -> bool:
    return re.search(r"^def test_", example.code, re.MULTILINE) is not None


@pytest.mark.parametrize("example", [example for example in EXAMPLES if not _is_test(example)], ids=str)
def test_an_example_runs(example: Example, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PORT", str(server.port))
    # Else the namespaces that it registers would be those of other tests of this process.
    monkeypatch.setattr(default_registry, "_registered", dict(default_registry._registered))
    if example.document == PAGES["django"].name:
        # Its views need settings.
        import_module("tests.support.django_site")
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(SOURCE + example.code, str(example), "exec"), names)
    for wanted, check in CHECKS.items():
        if all(name in names for name in wanted):
            check(*(names[name] for name in wanted))
    for collector in [each for each in REGISTRY._collector_to_names if isinstance(each, CacheCollector)]:
        REGISTRY.unregister(collector)
    if isinstance(telemetry := names.get("telemetry"), Instrumentation):
        telemetry.close()
    match names.get("cache"):
        case AsyncCacheManager() as awaited:
            asyncio.run(awaited.aclose())
        case CacheManager() as blocking:
            blocking.close()


def test_every_check_is_of_an_example() -> None:
    code = "\n".join(example.code for example in EXAMPLES)
    assert [names for names in CHECKS if not all(re.search(rf"\b{name}\b", code) for name in names)] == []


@pytest.mark.parametrize("example", [example for example in EXAMPLES if _is_test(example)], ids=str)
def test_an_example_of_a_test_passes(example: Example, server: EmbeddedServer, tmp_path: Path) -> None:
    suite = Suite(tmp_path)
    (tmp_path / "app.py").write_text(SOURCE + README.examples[0].code)
    suite.write("example", example.code)
    assert "1 passed" in suite.run(REDIS_PORT=str(server.port))


# -- the house of the documents -----------------------------------------------------------------------------


@pytest.mark.parametrize("document", ALL, ids=str)
def test_every_link_leads_somewhere(document: Document) -> None:
    assert broken_links(document) == []


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("[a](.docs/keys.md) [b](.docs/keys.md#choose-the-key) [c](#a-heading) [d](https://example.org)", []),
        ("[a](.docs/none.md)", [".docs/none.md"]),
        ("[a](.docs/keys.md#none)", [".docs/keys.md#none"]),
        ("[a](#none)", ["#none"]),
        ("[a](../outside.md)", ["../outside.md"]),
        ("```\n[a](none.md)\n```\n", []),
    ],
)
def test_the_search_for_broken_links_finds_them(text: str, broken: list[str]) -> None:
    document = Document(README.path)
    document.text = f"# A `heading`?\n\n{text}\n"
    assert broken_links(document) == broken


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = {README.path}, [README]
    while waiting:
        for _, target, _ in waiting.pop().linked():
            if target not in reached and target.suffix == ".md":
                reached.add(target)
                waiting.append(Document(target))
    assert {page.name for page in PAGES.values() if page.path not in reached} == set()


@pytest.mark.parametrize("page", PAGES.values(), ids=str)
def test_a_page_opens_with_what_it_comes_down_to(page: Document) -> None:
    assert re.match(r"# .+\n\n\*\*TL;DR\*\*: ", page.text)


def test_the_readme_is_what_a_newcomer_needs() -> None:
    assert len(README.text.splitlines()) <= MOST_LINES
    for command in ("python -m pip install nox && nox -s demo", "python -m pip install nox && nox -s tests"):
        assert command in README.text


# -- what is listed is what there is ------------------------------------------------------------------------


MODULES = (magnus_cache, embedded, errors, protocols, testing, plugin, redis_cache_manager, prometheus, opentelemetry)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_in_a_document(module: Any) -> None:
    # Those of classmethods reached through their class are seen by type checkers alone.
    names = [name for name in module.__all__ if not name.endswith("OfClass")]
    assert [name for name in names if not re.search(rf"\b{name}\b", TEXT)] == []


@pytest.mark.parametrize("manager", [CacheManager, AsyncCacheManager])
def test_every_operation_is_in_a_document(manager: type) -> None:
    operations = [name for name in dir(manager) if not name.startswith("_")]
    assert len(operations) > 20
    assert [name for name in operations if not re.search(rf"[`.]{name}\b", TEXT)] == []


def _settings_table() -> str:
    return PAGES["deployment"].section("Settings").partition("| Variable | Default | Meaning |")[2].partition("\n\n")[0]


def test_every_setting_is_on_its_page() -> None:
    assert first_column(_settings_table()) == {variable_of(name) for name in CacheSettings.model_fields}


def test_the_page_tells_the_defaults_of_settings() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", _settings_table(), re.MULTILINE))
    assert len(told) > 6
    for name, field in CacheSettings.model_fields.items():
        if variable_of(name) in told:
            assert type(field.default)(json.loads(_quoted(told[variable_of(name)]))) == field.default, name


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\d.]+|true|false", word) else json.dumps(word)


def test_every_figure_is_on_its_page(server: EmbeddedServer, tmp_path: Path) -> None:
    with CacheManager(redis_url=server.url, recovery_path=tmp_path / "recovery.db") as cache:
        cache.get("t", "k")
        cache.set(Namespace("few", l1_max_entries=1), "k", 1)
        stats = cache.get_stats()
    told = PAGES["metrics"].section("Statistics")
    assert first_column(told) == set(stats)
    for part in (stats["namespaces"]["t"], stats["breaker"], stats["journal"], stats["levels"], stats["levels"]["l2"]):
        missing = [name for name in part if f"`{name}`" not in told]
        assert missing == []
    for name in stats:
        assert f"``{name}``" in (magnus_cache.CacheStats.__doc__ or ""), name


def test_every_series_is_on_its_page() -> None:
    with CacheManager(redis_enabled=False) as cache:
        families = [
            *CacheCollector(cache, functions=True).describe(), *CacheCollector(cache, scope="process").describe(),
        ]  # fmt: skip
    names = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    functions = {name for name in names if "_function_" in name}
    section = PAGES["observability"].section("Prometheus")
    assert names - functions <= set(re.findall(r"`(magnus_cache_\w+)`", section)) <= names
    listed = first_column(section.partition("| Question")[0])
    assert listed == names - functions - {"magnus_cache_breaker_open", "magnus_cache_outages_total"}


def test_every_metric_of_opentelemetry_is_on_its_page() -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])
    with CacheManager(redis_enabled=False) as cache, instrument(cache, meter_provider=meters):
        cache.get_or_set("t", "k", lambda: 1)
        cache._engine.state.stats.failed("timeout")
        data = reader.get_metrics_data()
        assert data is not None
        metrics = data.resource_metrics[0].scope_metrics[0].metrics
    meters.shutdown()
    told = PAGES["observability"].section("OpenTelemetry")
    assert first_column(told) == {metric.name for metric in metrics}
    for metric in metrics:
        for point in metric.data.data_points:
            assert [name for name in point.attributes or {} if f"`{name}`" not in told] == [], metric.name


def test_every_part_of_health_is_on_its_page() -> None:
    assert first_column(PAGES["metrics"].section("Health")) == set(Health.__dataclass_fields__)


def test_every_reason_is_on_its_page() -> None:
    assert first_column(PAGES["outages"].section("Reasons")) == set(get_args(Reason))


def test_every_error_is_on_its_page_with_the_classes_that_it_is() -> None:
    table = PAGES["errors"].section("Error classes")
    rows = dict(re.findall(r"^\| `(\w+)` \|([^|]*)\|", table, re.MULTILINE))
    kinds = {name: kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type)}
    assert set(rows) == set(kinds)
    for name, told in rows.items():
        bases = {base.__name__ for base in kinds[name].__bases__ if base is not CacheError}
        assert set(re.findall(r"`(\w+)`", told)) == bases, name


def test_every_part_of_a_policy_is_on_its_page() -> None:
    assert first_column(PAGES["namespaces"].section("Policy")) == set(Namespace.DEFAULTS)
    options = PAGES["freshness"].text.partition("| Option | Default | Meaning |")[2].partition("\n\n")[0]
    assert first_column(options) == set(FreshnessOptions.__annotations__) == set(Freshness.__dataclass_fields__)


def test_the_page_tells_the_namespaces_and_ttls_that_there_are() -> None:
    told = dict(re.findall(r"^\| `([\w.]+)` \| (\d+) \|", PAGES["namespaces"].text, re.MULTILINE))
    constants = {
        name: getattr(namespaces_module, name) for name in namespaces_module.__all__ if name.startswith("TTL_")
    }
    listed = {f"CacheNamespaces.{name}": value.ttl for name, value in vars(CacheNamespaces).items() if name.isupper()}
    assert {name: int(seconds) for name, seconds in told.items()} == constants | listed


def test_every_part_of_an_explanation_is_on_its_page() -> None:
    assert first_column(PAGES["debugging"].section("Why is this value here?")) == set(Explanation.__dataclass_fields__)


def test_the_comparison_says_of_this_cache_what_it_does() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|", PAGES["comparison"].section("Loads"), re.MULTILINE)
    told = dict(rows[rows.index(("calls of the source by 50 callers", "1")) :])
    assert told == behaviour.answers("magnus_cache")


def test_every_fixture_and_tool_is_on_its_page() -> None:
    assert first_column(PAGES["testing"].section("Fixtures")) == set(plugin.__all__)
    assert first_column(PAGES["testing"].section("Tools")) == set(testing.__all__)


def test_the_guides_to_the_code_name_the_folders_and_modules_that_there_are() -> None:
    engine = Path(magnus_cache.__file__).parent / "_engine"
    assert first_column(PAGES["architecture"].section("Floors")) == {path.parent.name for path in engine.glob("*/*.py")}
    told = Document(ROOT / ".github" / "CONTRIBUTING.md").section("Where to start reading")
    modules = re.findall(r"`(\w+/\w+)`", told)
    assert len(modules) > 10
    assert [module for module in modules if not (engine / f"{module}.py").is_file()] == []


# -- the grants ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SERVERS)
def test_the_grants_of_the_page_are_all_that_is_needed(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    (recipe,) = re.findall(r"^ACL SETUSER app on .*$", TEXT, re.MULTILINE)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(find_redis() if kind == "redis" else find_valkey()))
        admin = stack.enter_context(redis.Redis(port=server.port, protocol=2, decode_responses=True))
        admin.execute_command(*recipe.split())
        peer = stack.enter_context(CacheManager(redis_url=f"redis://app:password@127.0.0.1:{server.port}/0"))
        asyncio.run(_use(stack.enter_context(Proxy(server.port)), peer))
        log = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in admin.execute_command("ACL", "LOG")]
    # A cache tells its name where it may; a grant of that would be unknown to servers before 7.2.
    assert {entry["object"] for entry in log} <= {"client|setinfo"}
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line for line in warnings if "did not answer in time" not in line and " is back " not in line] == []


async def _use(proxy: Proxy, peer: CacheManager) -> None:
    """Do with a cache whatever asks something else of Redis."""
    async with AsyncCacheManager(redis_url=f"redis://app:password@127.0.0.1:{proxy.port}/0", op_timeout=0.3) as cache:
        await cache.set("t", "k", "x" * 2000, tags="tag")
        assert await asyncio.to_thread(peer.get, "t", "k") == "x" * 2000
        await cache.delete("t", "k")
        await wait_until_async(lambda: peer._engine.state.memory.hit(b"magnus:t:k") is None)
        assert await cache.get_or_set("t", "loaded", lambda: 1, grace=60, early=1, tags="tag") == 1
        assert await asyncio.to_thread(peer.get_or_set, "t", "loaded", lambda: 2) == 1
        assert await cache.touch("t", "loaded", 5)
        assert await cache.ttl("t", "loaded")
        assert await cache.contains("t", "loaded")
        await cache.set_many("t", {"a": 1, "b": 2})
        assert await cache.get_many("t", ["a", "b"]) == {"a": 1, "b": 2}
        assert await cache.get_or_set_many("t", ["c"], lambda keys: dict.fromkeys(keys, 3)) == {"c": 3}
        assert await cache.delete_many("t", ["a"]) == 1
        await cache.invalidate_tags("tag")
        assert await asyncio.to_thread(peer.get, "t", "loaded") is None
        await cache.clear("magnus:t:b*")
        await cache.clear("t")
        assert await asyncio.to_thread(peer.get, "t", "c") is None
        assert (await cache.explain("t", "k")).level is None
        assert (await cache.get_stats())["redis_total_keys"] != "N/A"
        assert (await asyncio.to_thread(fleet_totals, peer._engine.state)).now["processes"]
        # A connection that is lost is ended there by the next one; what is suspect is compared.
        await asyncio.to_thread(peer.set, "t", "large", "y" * 5000)
        assert await cache.get("t", "large")
        proxy.freeze()
        await cache.set("t", "k", 1)
        proxy.resume()
        await wait_until_async(lambda: cache.redis_available)
        assert await cache.get("t", "large")
