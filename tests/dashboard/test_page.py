"""The page of the dashboard as Streamlit makes it: what it shows of a real Redis, and what its buttons do."""

import gc
import importlib.util
import json
import pickle
import re
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgpack
import pytest
import redis
import streamlit as st
from streamlit.testing.v1 import AppTest

from magnus_cache import CacheManager, Namespace
from magnus_cache.dashboard import panel, texts
from magnus_cache.dashboard.rows import decimals, groups, hit_rates, latencies, saved_unit, shown_minutes, traffic
from magnus_cache.dashboard.texts import (
    bytes_text,
    count_text,
    milliseconds_text,
    percent_text,
    plain_text,
)
from magnus_cache.dashboard.watch import Watch
from magnus_cache.embedded import EmbeddedServer
from tests.support.dashboards import busy_history
from tests.support.wait import wait_until

PATIENCE: Final = 30
HUGE: Final = "9" * 30
Opened = Callable[..., AppTest]


def _app(arguments: list[str]) -> None:
    from magnus_cache.dashboard.app.run import main

    main(arguments)


@pytest.fixture(autouse=True)
def main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit leaves its script as the main module, which processes that other tests spawn would run."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Open the page that ``magnus-cache dashboard`` serves."""

    def page(*arguments: str) -> AppTest:
        return run(AppTest.from_function(_app, args=(list(arguments),), default_timeout=PATIENCE))

    yield page
    st.cache_resource.clear()


@pytest.fixture
def cache(url: str) -> Iterator[CacheManager]:
    with CacheManager(redis_url=url) as cache:
        yield cache


def run(page: AppTest) -> AppTest:
    for box in page.selectbox:
        # Streamlit takes what is typed; its tests know what can be chosen.
        if box.value is not None and box.value not in box.options:
            box.options.append(box.value)
    page.run()
    assert not page.exception, page.exception
    return page


def newest(page: AppTest, shows: Callable[[AppTest], object]) -> AppTest:
    """Run a page until it shows something: it looks at Redis every two seconds."""
    wait_until(lambda: shows(run(page)))
    return page


def metrics(page: AppTest) -> dict[str, tuple[str, str]]:
    return {metric.label: (metric.value, metric.delta) for metric in page.metric}


def words(page: AppTest) -> str:
    return "\n".join(str(each.value) for each in (*page.caption, *page.markdown, *page.info, *page.error, *page.code))


def table(page: AppTest, column: str) -> list[dict[str, Any]]:
    """Return the rows of the table whose first column has this name."""
    (found,) = [each.value for each in page.dataframe if each.value.columns[0] == column]
    rows: list[dict[str, Any]] = json.loads(found.to_json(orient="records"))
    return rows


def use(cache: CacheManager) -> None:
    @cache.cached("users")
    def user(number: int) -> int:
        return number

    for number in range(4):
        assert user(number) == user(number) == number
    for number in range(10):
        cache.get_or_set("quotes", number, lambda: 1.5)
        assert cache.get("quotes", number) == 1.5
    # What was counted is published.
    cache.get_stats("fleet")


# -- figures ----------------------------------------------------------------------------------------------------


def test_before_the_first_report_it_says_where_it_looks(opened: Opened, url: str) -> None:
    page = opened("--url", url, "--prefix", "desk")
    assert [info.value for info in page.info] == ["No process of this fleet has reported yet."]
    assert f"`{url}` with the prefix `desk`" in words(page)
    assert metrics(page)["Processes"] == ("0", "")
    assert metrics(page)["Hit rate"] == ("—", "")
    assert "answers in" in words(page)
    # To look is not to report.
    assert metrics(run(page))["Processes"] == ("0", "")


def test_it_shows_the_figures_of_the_fleet(opened: Opened, url: str, cache: CacheManager, raw: redis.Redis) -> None:
    with CacheManager(redis_url=url) as other:
        use(cache)
        use(other)
        page = opened("--url", url)
        fleet = cache.get_stats("fleet")
        found = metrics(page)
        assert found["Hit rate"][0] == percent_text(fleet["hit_count"], fleet["total_requests"])
        assert found["Calls"][0] == str(fleet["total_requests"]) == "56"
        assert found["Processes"] == ("2", f"{bytes_text(fleet['in_memory_bytes'])} in memory")
        values = len(list(raw.scan_iter("magnus:*")))
        assert values <= int(found["Keys in Redis"][0]) <= raw.dbsize()
        assert found["Keys in Redis"][1].startswith("server uses ")
        namespaces = {row["Namespace"]: row for row in table(page, "Namespace")}
        for name, figures in fleet["namespaces"].items():
            assert namespaces[name]["Calls"] == figures["hit_count"] + figures["miss_count"]
            assert namespaces[name]["Hit rate"] == figures["hit_rate_percent"]
            assert namespaces[name]["Loads"] == figures["loads"]
        assert list(namespaces) == ["quotes", "users"]
        (function,) = table(page, "Function")
        assert (function["Namespace"], function["Calls"]) == ("users", 16)
        assert [row["Values in memory"] for row in table(page, "Host")] == [14, 14]
        assert len(page.get("vega_lite_chart")) == 3


def test_money_is_shown_once_calls_have_a_price(
    opened: Opened, url: str, cache: CacheManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGNUS_CACHE_CURRENCY", "$")
    use(cache)
    page = opened("--url", url)
    assert "Money saved" not in metrics(page)
    assert "No load has a price." in words(page)
    assert "Money saved" not in table(page, "Namespace")[0]

    @cache.cached("models", cost=lambda answer: len(answer) / 4)
    def answer(question: str) -> str:
        return question * 2

    for _ in range(4):
        assert answer("ab") == "abab"
    cache.get_stats("fleet")
    st.cache_resource.clear()
    page = opened("--url", url)
    assert metrics(page)["Money saved"] == ("$3.00", "75.0 % of the bill")
    rows = {row["Namespace"]: row for row in table(page, "Namespace")}
    assert (rows["models"]["Money saved"], rows["models"]["Money spent"]) == ("$3.00", "$1.00")
    assert rows["quotes"]["Money saved"] == texts.NOTHING
    (function,) = [row for row in table(page, "Function") if row["Namespace"] == "models"]
    assert function["Money saved"] == "$3.00"
    (day,) = table(page, "Day (UTC)")
    assert (day["Calls"], day["Loads"], day["Of the bill"]) == (32, 15, 75)
    assert (day["Money spent"], day["Money saved"]) == ("$1.00", "$3.00")
    assert "No load has a price." not in words(page)


def test_the_bill_has_the_limits_of_spending(opened: Opened, url: str, cache: CacheManager) -> None:
    for key in range(2):
        cache.get_or_set(Namespace("models", spend_limit="5.00/day"), key, lambda: 1, cost=1.25)
    # So that the first look of the page finds them.
    cache.get_stats("fleet")
    page = opened("--url", url)
    newest(page, lambda page: any(each.value.columns[0] == "Limit of" for each in page.dataframe))
    (limit,) = table(page, "Limit of")
    assert limit == {"Limit of": "models", "spend_limit": "5.00/day", "Spent of it": "2.50", "Used": 50}


def test_the_ledger_is_looked_up_once_a_minute(cache: CacheManager) -> None:
    use(cache)
    watch = Watch(cache, 0)
    seen = watch.look()
    first = seen.ledger
    assert {row.namespace for row in first} == {"quotes", "users"}
    cache.get("quotes", 1)
    # It looks at the figures again as soon as it may.
    wait_until(lambda: watch.look().figures is not seen.figures)
    assert watch.look().ledger is first
    watch.expire()
    assert sum(row.hits for row in watch.look().ledger) == sum(row.hits for row in first) + 1


def test_a_page_looks_again(opened: Opened, url: str, cache: CacheManager) -> None:
    page = opened("--url", url)
    use(cache)
    newest(page, lambda page: metrics(page)["Calls"][0] == "28")
    assert not page.info


def test_nothing_is_asked_more_often_than_it_should_be(cache: CacheManager) -> None:
    use(cache)
    watch = Watch(cache, 60)
    first = watch.look()
    cache.get("quotes", 1)
    assert watch.look().figures is first.figures
    watch.expire()
    assert (watch.look().figures or {})["total_requests"] == (first.figures or {})["total_requests"] + 1


def test_reports_of_another_version_do_no_harm(opened: Opened, url: str, cache: CacheManager, raw: redis.Redis) -> None:
    use(cache)
    for name in raw.scan_iter("magnus!fleet:*"):
        raw.hset(
            name,
            mapping={
                "n:later:quotes": 1, "later:x": 2, f"n:h1:{HUGE}": HUGE, b"n:h1:no\xed\xb3\xbf": 1,
                "f:h1:odd": 3, "e:later": "4", "l2:99999": 1, "load:5": "-7", "p:later": 1,
            },
        )  # fmt: skip
    for name in raw.scan_iter("magnus!stats:*"):
        raw.set(name, b"00000009" + msgpack.packb({"host": b"\xff", "pid": None, "more": {"x": 1}}))
    page = opened("--url", url)
    assert {"quotes", "users", HUGE} <= {row["Namespace"] for row in table(page, "Namespace")}
    # Once in the hour's sums; those of the minute are for the charts.
    assert {"Reason": "later", "Exchanges": 4} in table(page, "Reason")
    (process,) = table(page, "Host")
    assert process["Process"] == "—"


def test_a_history_of_two_hours(opened: Opened, url: str, cache: CacheManager) -> None:
    # The next minutes as well: one of them may be the present one when the history is read.
    busy_history(cache, 10, ahead=3)
    page = opened("--url", url)
    minutes = cache.get_history(120)
    shown = shown_minutes(minutes, 60)
    # The present minute is not complete.
    assert [minute["at"] for minute in shown] == [minute["at"] for minute in minutes[-61:-1]]
    rates, calls, latency = hit_rates(shown), traffic(shown), latencies(shown)
    assert sum(rates["calls"]) == sum(minute["total_requests"] for minute in minutes[:-1]) > 0
    assert rates["rate"][:30] == [None] * 30
    assert rates["rate"][-1] == minutes[-2]["hit_rate_percent"]
    last = minutes[-2]
    assert [calls["rate"][place] for place in (59, 119, 179)] == [
        last["l1_hits"] / 60, last["l2_hits"] / 60, last["miss_count"] / 60,
    ]  # fmt: skip
    assert latency["median"][59] == last["levels"]["load"]["p50_ms"]
    assert latency["slow"][119] == last["levels"]["l2"]["p99_ms"]
    assert latency["median"][0] is None
    assert "per second" in metrics(page)["Calls"][1]
    page.get("button_group")[0].set_value(15)
    run(page)


def test_the_first_minute_is_shown_while_there_is_no_other(cache: CacheManager) -> None:
    use(cache)
    minutes = cache.get_history(120)
    assert list(shown_minutes(minutes, 60))[-1]["at"] >= minutes[-2]["at"]
    assert sum(minute["total_requests"] for minute in shown_minutes(minutes, 60)) == 28


# -- outages ----------------------------------------------------------------------------------------------------


def test_an_outage_is_told_and_the_last_figures_stay(opened: Opened, private_server_with: Any) -> None:
    server: EmbeddedServer = private_server_with()
    with CacheManager(redis_url=server.url) as cache:
        use(cache)
    page = newest(opened("--url", server.url), metrics)
    before = metrics(page)
    server.stop()
    newest(page, lambda page: page.error)
    assert re.match(r"\*\*Redis (is|has been) away", page.error[0].value)
    assert "nothing listens there" in page.error[0].value
    assert "old" in page.error[0].value
    assert metrics(page) == before
    # Also for those who come later.
    other = opened("--url", server.url)
    assert metrics(other) == before
    assert other.error
    server.start()
    newest(page, lambda page: not page.error)
    assert "answers in" in words(page)
    assert [row["Reason"] for row in table(page, "Ended")] == ["refused"]


def test_it_waits_for_a_redis_that_is_not_there_yet(opened: Opened, private_server_with: Any) -> None:
    server: EmbeddedServer = private_server_with()
    server.stop()
    page = opened("--url", server.url)
    assert "There are no figures yet" in page.error[0].value
    assert not page.metric
    server.start()
    newest(page, lambda page: page.metric)
    assert page.info


def test_figures_that_cannot_be_read_are_told(opened: Opened, url: str, cache: CacheManager, raw: redis.Redis) -> None:
    use(cache)
    page = opened("--url", url)
    before = metrics(page)
    raw.set("magnus!fleet", "x")
    newest(page, lambda page: page.error)
    assert "No newer figures" in page.error[0].value
    assert metrics(page) == before


def test_a_wrong_setting_is_told(opened: Opened) -> None:
    page = opened("--url", "nonsense")
    assert "redis_url" in page.error[0].value


# -- keys -------------------------------------------------------------------------------------------------------


def listed(page: AppTest, namespace: str, match: str = "*") -> list[str] | None:
    """List keys; return them, or None if there are none."""
    choice = page.selectbox(key="magnus_keys_namespace")
    choice.set_value(namespace)
    page.text_input(key="magnus_keys_match").set_value(match)
    next(button for button in page.button if button.label == "List keys").click()
    run(page)
    found = [each.value for each in page.dataframe if list(each.value.columns) == ["Key"]]
    return list(found[0]["Key"]) if found else None


def explained(page: AppTest, place: int) -> str:
    page.session_state["magnus_keys_chosen"] = {"selection": {"rows": [place], "columns": [], "cells": []}}
    run(page)
    return str((*page.code, *page.warning)[-1].value)


def test_keys_are_listed_and_explained(opened: Opened, url: str, cache: CacheManager, raw: redis.Redis) -> None:
    keys: list[Any] = ["plain", "with space", 7, b"\xff\x00", ("a", 2), "l" * 300, "é", "**bold**"]
    for number, key in enumerate(keys):
        cache.set("t", key, number, ttl=1_000 + number)
    # Of another program: no key of ours has such bytes.
    raw.set(b"magnus:t:\xff\xfe", "x")
    raw.set("magnus:t:plain", raw.get("magnus:t:plain")[:-1] + b"\xc1")
    cache.get_stats("fleet")
    page = opened("--url", url)
    shown = listed(page, "t")
    assert shown is not None
    assert len(shown) == len(keys) + 1
    assert {"with space", "é", "**bold**", "%FF%FE"} <= set(shown)
    told = [explained(page, place) for place in range(len(shown))]
    assert [each for each in told if not any(word in each for word in ("valid", "unreadable", "program"))] == []
    assert "unreadable: the stored value is damaged" in told[shown.index("plain")]
    assert "Another program" in told[shown.index("%FF%FE")]
    # No value is shown.
    assert listed(page, "t", "with*") == ["with space"]
    assert "expires in" in explained(page, 0)
    cache.delete("t", "with space")
    assert "not there" in explained(page, 0)


def test_what_a_codec_has_stored_is_shown_as_opaque_bytes(opened: Opened, url: str, cache: CacheManager) -> None:
    cache.set(Namespace("t", codec=(pickle.dumps, pickle.loads)), "k", {1, 2})
    cache.get_stats("fleet")
    page = opened("--url", url)
    assert listed(page, "t") == ["k"]
    assert "opaque bytes of a codec" in explained(page, 0)
    assert any("opaque bytes" in str(each.value) for each in page.markdown)


def test_a_namespace_that_does_not_exist_has_no_keys(opened: Opened, url: str, cache: CacheManager) -> None:
    use(cache)
    page = opened("--url", url)
    assert listed(page, "none") is None
    assert "No key of 'none' matches." in words(page)
    assert listed(page, "a:b") is None
    assert "contains ':'" in page.error[0].value
    assert listed(page, "users", "[") is None or page.error


def test_a_long_list_ends(opened: Opened, url: str, cache: CacheManager) -> None:
    cache.set_many("t", {f"{number:05}": 1 for number in range(1_002)})
    page = opened("--url", url)
    assert len(listed(page, "t") or ()) == 1_000
    assert "The first 1,000 keys" in words(page)


# -- clear ------------------------------------------------------------------------------------------------------


def asked(page: AppTest, what: str | None = None) -> AppTest:
    if what is not None:
        page.selectbox(key="magnus_clear_what").set_value(what)
        run(page)
    page.button(key="magnus_clear").click()
    return run(page)


def pressed(page: AppTest, button: str) -> AppTest:
    page.button(key=f"magnus_clear_{button}").click()
    return run(page)


def test_clear_asks_and_then_clears(opened: Opened, url: str, cache: CacheManager) -> None:
    use(cache)
    page = opened("--url", url)
    asked(page, "quotes")
    assert "'quotes'" in page.text[0].value
    assert cache.get("quotes", 1) == 1.5
    pressed(page, "cancel")
    assert not page.text
    assert cache.get("quotes", 1) == 1.5
    # Another choice is another question.
    asked(page, "quotes")
    page.selectbox(key="magnus_clear_what").set_value("users")
    run(page)
    assert not page.text
    page.selectbox(key="magnus_clear_what").set_value("quotes")
    asked(page)
    pressed(page, "confirm")
    assert [each.value for each in page.success] == ["10 values removed."]
    wait_until(lambda: cache.get("quotes", 1) is None)
    assert len(list(cache.scan("users"))) == 4
    asked(page, "all namespaces")
    pressed(page, "confirm")
    assert [each.value for each in page.success] == ["4 values removed."]
    assert list(cache.scan("users")) == []


@pytest.mark.parametrize(
    ("what", "told"),
    [("none", "There was nothing to remove."), ("quotes:1*", "1 value removed."), ("other!x:*", ""), ("a b:[", "")],
)
def test_what_is_cleared_may_be_typed(opened: Opened, url: str, cache: CacheManager, what: str, told: str) -> None:
    use(cache)
    page = opened("--url", url)
    pressed(asked(page, what), "confirm")
    if told:
        assert [each.value for each in page.success] == [told]
    else:
        assert page.error or page.success


def test_a_clear_while_redis_is_away_is_told(opened: Opened, private_server_with: Any) -> None:
    server: EmbeddedServer = private_server_with()
    page = opened("--url", server.url)
    server.stop()
    pressed(asked(page), "confirm")
    assert "once it is back" in page.success[0].value


# -- panel ------------------------------------------------------------------------------------------------------


def _own_page(cache):  # type: ignore[no-untyped-def]  # it runs elsewhere, without the imports of this module
    import streamlit as st

    from magnus_cache.dashboard import panel

    st.subheader("Mine")
    panel(cache, every=5)


@pytest.fixture
def embedded() -> Iterator[Callable[[Any], AppTest]]:
    yield lambda cache: run(AppTest.from_function(_own_page, args=(cache,), default_timeout=PATIENCE))
    st.cache_resource.clear()


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_a_panel_in_a_page_of_ones_own(embedded: Callable[[Any], AppTest], cache: CacheManager, kind: str) -> None:
    use(cache)
    page = embedded(getattr(cache, kind))
    assert metrics(page)["Calls"][0] == "28"
    assert [each.value for each in page.subheader] == ["Mine"]


def test_a_panel_of_the_process_wide_cache(
    embedded: Callable[[Any], AppTest], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from magnus_cache import get_cache_manager

    monkeypatch.setenv("REDIS_URL", url)
    use(get_cache_manager())
    assert metrics(embedded(None))["Calls"][0] == "28"


def test_a_process_wide_cache_that_was_closed_lends_its_watch_to_no_other_cache(
    embedded: Callable[[Any], AppTest], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its identity may not be given to another cache while pages find a watch by it."""
    from magnus_cache import get_cache_manager

    monkeypatch.setenv("REDIS_URL", url)
    embedded(None)
    former = weakref.ref(get_cache_manager()._state)
    get_cache_manager().close()
    gc.collect()
    assert former() is not None


def test_a_panel_of_a_cache_without_redis(embedded: Callable[[Any], AppTest]) -> None:
    with CacheManager(redis_enabled=False) as cache:
        use(cache)
        page = embedded(cache)
        assert "has no Redis" in words(page)
        assert metrics(page)["Calls"][0] == "28"
        assert metrics(page)["Keys in Redis"] == ("—", "")
        assert listed(page, "quotes") is not None
        pressed(asked(page), "confirm")
        assert page.success


def test_without_streamlit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "streamlit" else find(name, *a))
    with pytest.raises(ImportError, match=r'pip install "magnus-cache\[dashboard\]"'):
        panel()


# -- texts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (9_999, "9,999"), (10_000, "10.0 k"), (12_345, "12.3 k"), (999_499, "999 k"), (999_500, "1.00 M"),
     (1_234_567, "1.23 M"), (10**30, "1000000000000 E"), (-12_345, "-12.3 k")],
)  # fmt: skip
def test_counts_have_three_digits(count: int, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1_000, "1.00 kB"), (4_212, "4.21 kB"), (2_110_000, "2.11 MB")]
)
def test_sizes(size: int, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 0, texts.NOTHING), (0, 5, "0 %"), (5, 5, "100 %"), (99_999, 100_000, "99.9 %"), (1, 100_000, "0.1 %"),
     (1, 3, "33.3 %")],
)  # fmt: skip
def test_a_share_is_whole_only_if_nothing_is_missing(part: int, whole: int, text: str) -> None:
    assert percent_text(part, whole) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0.314, "0.31 ms"), (9.21, "9.2 ms"), (12.345, "12.3 ms"), (456.7, "457 ms"), (999.6, "1.00 s"), (2_885, "2.88 s"),
     (250_000, "4 min 10 s")],
)  # fmt: skip
def test_short_times(milliseconds: float, text: str) -> None:
    assert milliseconds_text(milliseconds) == text


def test_a_text_of_any_bytes_can_be_sent() -> None:
    assert plain_text(b"a\xff".decode("utf-8", "surrogateescape")) == "a\\udcff"


def test_columns_have_a_unit_and_decimals_for_their_largest_number() -> None:
    assert [decimals(column) for column in ([None, 250.0], [12.0], [1.5], [0.2], [])] == [0, 1, 2, 3, 3]
    assert saved_unit([{"saved_seconds": 59.0}, {"saved_seconds": 700.0}]) == (60, "min")
    assert saved_unit([]) == (1, "s")
    assert groups("Namespace", {})["Namespace"] == []
