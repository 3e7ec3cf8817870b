"""The command `bill`, and the columns of money of `stats` and `top`."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from magnus_cache import CacheManager, Namespace
from magnus_cache.cli.app import main

Run = Callable[..., str]


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, which takes a tenth of the time, and return what it prints."""

    def command(*arguments: str, code: int = 0) -> str:
        assert main([*arguments, "--url", url]) == code
        return capsys.readouterr().out

    return command


def parsed(text: str) -> Any:
    return json.loads(text)


def use(url: str) -> None:
    with CacheManager(redis_url=url) as cache:

        @cache.cached("models", cost=2)
        def answer(question: str) -> str:
            return question.upper()

        for _ in range(3):
            assert answer("why") == "WHY"
        for _ in range(2):
            cache.get_or_set("quotes", "k", lambda: 1, cost=0.5)
        cache.get_or_set("free", "k", lambda: 1)


def test_the_bill_says_what_was_spent_and_saved(run: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(url)
    monkeypatch.setenv("MAGNUS_CACHE_CURRENCY", "$")
    shown = run("bill")
    assert "The bill of the last 30 days (UTC): $2.50 spent, $4.50 saved." in shown
    assert "Without the cache: $7.00. It lowered the bill by 64.3 %." in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["models", "1", "2", "$2.00", "$4.00", "66.7", "%", "0", "ms"] in rows
    assert ["quotes", "1", "1", "$0.500", "$0.500", "50.0", "%", "0", "ms"] in rows
    # What has no price has no amounts.
    assert ["free", "1", "0", "0", "ms"] in rows
    names = [row[0] for row in rows if row]
    assert names.index("models") < names.index("quotes") < names.index("free")
    (day,) = [row for row in rows if row and row[0].startswith("20")]
    assert day[1:] == ["3", "3", "$2.50", "$4.50", "64.3", "%", "0", "ms"]


def test_the_bill_of_functions_and_of_today(run: Run, url: str) -> None:
    use(url)
    shown = run("bill", "--by", "function", "--days", "1")
    assert "The bill of today (UTC): 2.00 spent, 4.00 saved." in shown
    assert "answer" in shown
    assert "2.00" in shown
    assert not [line for line in shown.splitlines() if line.startswith(("day", "20"))]


def test_the_bill_as_json(run: Run, url: str) -> None:
    use(url)
    found = parsed(run("bill", "--json"))
    assert found["total"] == {
        "hits": 3, "loads": 3, "saved_seconds": pytest.approx(0, abs=0.1), "spent": 2.5, "saved": 4.5,
        "saved_percent": pytest.approx(64.2857, abs=0.001),
    }  # fmt: skip
    assert (found["days"], found["by"], found["currency"]) == (30, "namespace", "")
    assert {row["namespace"]: row["saved_percent"] for row in found["rows"]} == {
        "free": None, "models": pytest.approx(66.667, abs=0.001), "quotes": 50,
    }  # fmt: skip


def test_limits_and_what_is_spent_of_them(run: Run, url: str, raw: redis.Redis) -> None:
    with CacheManager(redis_url=url) as cache:
        for key in "ab":
            cache.get_or_set(Namespace("daily", spend_limit="5.00/day"), key, lambda: 1, cost=1.25)
        cache.get_or_set(Namespace("hourly", spend_limit="1/hour"), "a", lambda: 1, cost=1)
    use(url)
    rows = [line.split() for line in run("bill").splitlines()]
    assert ["daily", "5.00/day", "2.50", "50", "%"] in rows
    assert ["hourly", "1.00/hour", "1.00", "100", "%"] in rows
    # A limit of yesterday is one of today, of which nothing is spent.
    raw.hincrby("magnus!spend:day:daily", "p", -1)
    assert parsed(run("bill", "--json"))["limits"] == [
        {"namespace": "daily", "period": "day", "limit": 5.0, "spent": 0.0},
        {"namespace": "hourly", "period": "hour", "limit": 1.0, "spent": 1.0},
    ]  # fmt: skip


def test_an_empty_bill_says_how_to_give_prices(run: Run, url: str) -> None:
    shown = run("bill")
    assert "Nothing has a price: give what a load costs as cost=" in shown
    assert "none yet" in shown


@pytest.mark.parametrize(("option", "value"), [("--days", "63"), ("--days", "0"), ("--by", "day")])
def test_other_bills_are_refused(run: Run, url: str, option: str, value: str) -> None:
    run("bill", option, value, code=2)


@pytest.mark.parametrize("command", [("top", "--once"), ("stats", "--fleet")], ids=["top", "stats"])
def test_tables_have_money_if_anything_has_a_price(run: Run, url: str, command: tuple[str, ...]) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.get_or_set("free", "k", lambda: 1)
    assert "money" not in run(*command)
    use(url)
    shown = run(*command)
    assert "money saved" in shown
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("models")]
    assert row[-2:] == ["4.00", "2.00"]
    (free,) = [line.split() for line in shown.splitlines() if line.startswith("free")]
    assert free[-1] in {"ms", "s"}, "no money: the last figure is the time that was saved"
