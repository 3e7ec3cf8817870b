"""The dashboard in a real browser, with a fleet of processes and a Redis that goes away: ``nox -s browser``."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from magnus_cache import CacheManager
from magnus_cache.dashboard.texts import percent_text
from magnus_cache.embedded import EmbeddedServer
from tests.support.dashboards import browser, busy_history, dashboard, text_of
from tests.support.programs import ROOT
from tests.support.wait import wait_until

pytest.importorskip("playwright")
pytestmark = pytest.mark.timeout(600)

PATIENCE: Final = 60
TICK: Final = 2.0
"""Seconds between two looks of the page."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture
def visit(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Serve the dashboard of a server, and open it. Nothing may be asked of any other host, and no script may fail."""
    with ExitStack() as stack:
        problems: list[str] = []

        def opened(url: str, *, address: str | None = None, **options: Any) -> Any:
            place = address or stack.enter_context(dashboard(tmp_path, "--url", url))
            context = chromium.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(PATIENCE * 1000)
            page.on("request", lambda request: problems.append(request.url) if _is_foreign(request.url) else None)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.goto(place)
            page.get_by_text("Cache magnus").wait_for()
            page.address = place
            return page

        yield opened
        assert problems == []


def _is_foreign(url: str) -> bool:
    return not re.match(r"(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:", url)


_WORKER: Final = """
import sys
from magnus_cache import CacheManager
cache = CacheManager(redis_url=sys.argv[1], stats_interval=0.3)
number = int(sys.argv[2])
for line in sys.stdin:
    for key in range(int(line)):
        cache.get_or_set(f"n{number % 2}", f"{number}-{key}", lambda: "x" * 50)
        cache.get(f"n{number % 2}", f"{number}-{key}")
    cache.get_stats("fleet")
    print("done", flush=True)
cache.close()
"""


class Workers:
    """Processes that use the cache when they are told to."""

    def __init__(self, url: str, count: int) -> None:
        self._running = [
            subprocess.Popen(
                [sys.executable, "-c", _WORKER, url, str(number)], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for number in range(count)
        ]  # fmt: skip

    def use(self, keys: int) -> None:
        """Have each process load so many keys and read them again."""
        for worker in self._running:
            assert worker.stdin is not None
            worker.stdin.write(f"{keys}\n")
            worker.stdin.flush()
        for worker in self._running:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "done\n"

    def end(self) -> None:
        for worker in self._running:
            worker.communicate()


@pytest.fixture
def workers() -> Iterator[Callable[[str, int], Workers]]:
    started: list[Workers] = []

    def start(url: str, count: int) -> Workers:
        started.append(Workers(url, count))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture
def server(private_server: EmbeddedServer) -> EmbeddedServer:
    return private_server


def figure(page: Any, label: str) -> str:
    """Return the value of a metric."""
    metric = page.get_by_test_id("stMetric").filter(has=page.get_by_text(label, exact=True))
    value: str = metric.get_by_test_id("stMetricValue").inner_text()
    return value


def becomes(page: Any, label: str, value: str) -> None:
    """Return once a metric has a value."""
    wait_until(lambda: figure(page, label) == value, PATIENCE)


def cells(page: Any) -> list[list[str]]:
    """Return the rows of the table that can be seen."""
    table = page.get_by_test_id("stDataFrame").filter(visible=True).first
    rows: list[list[str]] = table.locator("table tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell => cell.textContent))"
    )
    return rows


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def test_figures_of_several_processes_are_those_in_redis(
    visit: Callable[..., Any], server: EmbeddedServer, workers: Callable[[str, int], Workers]
) -> None:
    page = visit(server.url)
    page.get_by_text("No process of this fleet has reported yet.").wait_for()
    assert figure(page, "Processes") == "0"
    fleet = workers(server.url, 3)
    with CacheManager(redis_url=server.url, stats_interval=0) as cache, redis.Redis(port=server.port) as raw:
        for keys in (20, 50):
            fleet.use(keys)
            sums = cache.get_stats("fleet")
            assert sums["total_requests"] == 3 * 2 * (keys if keys == 20 else 70)
            becomes(page, "Calls", str(sums["total_requests"]))
            assert figure(page, "Hit rate") == percent_text(sums["hit_count"], sums["total_requests"])
            assert figure(page, "Processes") == "3"
            values = len(list(raw.scan_iter("magnus:*")))
            assert values <= int(figure(page, "Keys in Redis")) <= raw.dbsize()
        calls = {
            name: str(figures["hit_count"] + figures["miss_count"]) for name, figures in sums["namespaces"].items()
        }
        # The table is drawn after the figures above it.
        wait_until(lambda: {row[0]: re.sub(r"\D", "", row[1]) for row in cells(page)} == calls, PATIENCE)
        tab(page, "Processes")
        wait_until(lambda: len(cells(page)) == 3, PATIENCE)
        # They end: no process is left, and what they have counted is.
        fleet.end()
        becomes(page, "Processes", "0")
        assert figure(page, "Calls") == str(sums["total_requests"])


def test_an_outage_is_watched(visit: Callable[..., Any], server: EmbeddedServer) -> None:
    with CacheManager(redis_url=server.url) as cache:
        busy_history(cache)
        page = visit(server.url)
        becomes(page, "Calls", "1.14 M")
        server.stop()
        page.get_by_text(re.compile("Redis has been away for [0-9]+ s")).wait_for()
        page.get_by_text("nothing listens there").wait_for()
        # The last figures, and how old they are, which changes.
        assert figure(page, "Calls") == "1.14 M"
        ages: set[str] = set()
        wait_until(lambda: ages.add(_age(page)) or len(ages) >= 2, PATIENCE)
        # One who comes meanwhile sees them, too.
        late = visit(server.url, address=page.address)
        becomes(late, "Calls", "1.14 M")
        server.start()
        page.get_by_text(re.compile("Redis (is|has been) away")).wait_for(state="detached")
        page.get_by_text("answers in").wait_for()
        late.get_by_text("answers in").wait_for()
        # This server keeps nothing.
        page.get_by_text("No process of this fleet has reported yet.").wait_for()
        tab(page, "Outages")
        wait_until(lambda: cells(page) and cells(page)[0][2] == "refused", PATIENCE)


def _age(page: Any) -> str:
    found = re.search(r"These figures are (.*?) old", text_of(page))
    assert found is not None
    return found[1]


def test_nothing_is_drawn_anew_when_it_looks_again(visit: Callable[..., Any], server: EmbeddedServer) -> None:
    with CacheManager(redis_url=server.url) as cache:
        busy_history(cache)
        page = visit(server.url)
        page.wait_for_function("() => document.querySelectorAll('[data-testid=stVegaLiteChart] svg').length === 3")
        page.wait_for_function("() => document.querySelector('[data-testid=stDataFrame] canvas')")
        seen: list[float] = []
        page.expose_function("faded", lambda opacity: seen.append(opacity))
        page.evaluate(
            """() => {
                const parts = 'canvas, [data-testid=stMetric], [data-testid=stVegaLiteChart] svg';
                window.kept = [...document.querySelectorAll(parts)];
                window.tall = document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight;
                const look = () => {
                    for (const one of document.querySelectorAll('[data-testid=stElementContainer]')) {
                        const visible = Number(getComputedStyle(one).opacity);
                        if (visible < 1) window.faded(visible);
                    }
                    requestAnimationFrame(look);
                };
                look();
            }"""
        )
        for total in ("1.15 M", "1.16 M"):
            # Another minute of the same kind.
            busy_history(cache, 1)
            becomes(page, "Calls", total)
        assert page.evaluate("() => window.kept.length >= 9 && window.kept.every(one => one.isConnected)")
        tall = "() => document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight === window.tall"
        assert page.evaluate(tall)
        assert seen == []


def test_clear_is_pressed_and_asks_each_time(visit: Callable[..., Any], server: EmbeddedServer) -> None:
    with CacheManager(redis_url=server.url) as cache:
        cache.set_many("quotes", {str(number): number for number in range(30)})
        cache.set("users", "1", 1)
        cache.get_stats("fleet")
        page = visit(server.url)
        tab(page, "Clear")
        box = page.get_by_role("combobox", name="Remove the values of")
        box.wait_for()
        button = page.get_by_role("button", name="Clear …")
        confirm = page.get_by_role("button", name="Remove values")
        # Whatever else is being drawn at that moment, a click counts.
        for _ in range(20):
            button.click()
            confirm.wait_for()
            page.get_by_role("button", name="Cancel").click()
            confirm.wait_for(state="detached")
        assert len(list(cache.scan("quotes"))) == 30
        box.click()
        page.keyboard.type("quotes")
        page.keyboard.press("Enter")
        button.click()
        page.get_by_text("Remove the values of 'quotes'").wait_for()
        confirm.click()
        page.get_by_text("30 values removed.").wait_for()
        assert list(cache.scan("quotes")) == []
        assert cache.get("quotes", "1") is None
        assert cache.get("users", "1") == 1
        box.click()
        page.keyboard.type("all namespaces")
        page.keyboard.press("Enter")
        button.click()
        confirm.click()
        page.get_by_text("1 value removed.").wait_for()
        assert list(cache.scan("users")) == []


def test_a_key_is_chosen_and_explained(visit: Callable[..., Any], server: EmbeddedServer) -> None:
    with CacheManager(redis_url=server.url) as cache:
        cache.set("t", b"\xff\x00", 1)
        cache.set("t", "k" * 400, 2, tags="shown")
        cache.get_stats("fleet")
        page = visit(server.url)
        tab(page, "Keys")
        page.get_by_label("Namespace", exact=True).click()
        page.keyboard.type("none")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="List keys").click()
        page.get_by_text("No key of 'none' matches.").wait_for()
        page.get_by_label("Namespace", exact=True).click()
        page.keyboard.type("t")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="List keys").click()
        page.get_by_text("2 keys").wait_for()
        table = page.get_by_test_id("stDataFrame").filter(visible=True)
        told: list[str] = []
        for row in (1, 2):
            table.click(position={"x": 18, "y": 35 * row + 17})
            code = page.get_by_test_id("stTabs").get_by_test_id("stCode").filter(visible=True)
            code.wait_for()
            wait_until(lambda code=code: code.inner_text() not in told, PATIENCE)
            told.append(code.inner_text())
        assert any("tags shown" in each for each in told)
        assert all("valid" in each and "expires in" in each for each in told)


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 2560])
def test_nothing_is_wider_than_the_page(visit: Callable[..., Any], server: EmbeddedServer, width: int) -> None:
    with CacheManager(redis_url=server.url) as cache:
        busy_history(cache, 30)
        page = visit(server.url, viewport={"width": width, "height": 1000})
        page.wait_for_function("() => document.querySelectorAll('[data-testid=stVegaLiteChart] svg').length === 3")
        wider = page.evaluate(
            """() => [...document.querySelectorAll('[data-testid=stMain] *')]
                .filter(one => one.getBoundingClientRect().right > window.innerWidth + 1
                    && !one.closest('[data-testid=stTabs]') && getComputedStyle(one).visibility !== 'hidden')
                .map(one => one.outerHTML.slice(0, 200))"""
        )
        assert wider == []


def test_dark_and_light(visit: Callable[..., Any], server: EmbeddedServer) -> None:
    light = visit(server.url, color_scheme="light")
    dark = visit(server.url, address=light.address, color_scheme="dark")
    shades = [
        page.evaluate("() => getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
        for page in (light, dark)
    ]
    bright, deep = ([int(part) for part in re.findall(r"\d+", shade)[:3]] for shade in shades)
    assert min(bright) > 200
    assert max(deep) < 60
