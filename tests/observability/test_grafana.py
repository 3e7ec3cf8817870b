"""The dashboard for Grafana asks for series that a scrape really has, in units that they really have."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest

from magnus_cache import CacheManager
from magnus_cache.observability.grafana import dashboard
from tests.support.programs import output_of
from tests.support.scrapes import Series, scraped

DASHBOARD: Final[dict[str, Any]] = json.loads(dashboard())
PANELS: Final[list[dict[str, Any]]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES: Final = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
VARIABLES: Final[dict[str, dict[str, Any]]] = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
SELECTED: Final = re.compile(r"(magnus_cache_\w+)\{([^}]*)\}")
"""A series in a query, with its selectors: each is meant for one job."""

OF_JOBS: Final = {"job", "instance"}
"""Labels that Prometheus adds to each series that it scrapes."""


@pytest.fixture(scope="module")
def shown() -> Series:
    """A scrape of a cache that has seen something of everything. Its series are the same without Redis."""
    with CacheManager(redis_enabled=False) as cache:
        cache.get_or_set("t", "k", lambda: 1, cost=0.002)
        cache.get("t", "k")
        cache._engine.state.stats.failed("timeout")
        return scraped(cache)


def labels_of(series: Series, name: str) -> set[str]:
    return {label for each, pairs in series if each == name for label, _ in pairs}


def asked(query: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the series of a query, with the labels that it selects by."""
    for name, selectors in SELECTED.findall(query):
        yield name, set(re.findall(r"(\w+)=~?\"", selectors))


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_query_is_of_series_that_a_scrape_has(shown: Series, title: str, query: str) -> None:
    names = {name for name, _ in shown}
    found = list(asked(query))
    assert found, title
    # None without a selector of the job, and none that is misspelt.
    assert {name for name, _ in found} == set(re.findall(r"magnus_cache_\w+", query)) <= names
    for name, selectors in found:
        assert "job" in selectors
        assert selectors <= labels_of(shown, name) | OF_JOBS
    known = set().union(*(labels_of(shown, name) for name, _ in found))
    for labels in re.findall(r"\bby \(([^)]*)\)", query):
        assert {label.strip() for label in labels.split(",")} <= known, labels
    assert query.count("(") == query.count(")")
    assert set(re.findall(r"\$(\w+)", query)) <= {*VARIABLES, "__rate_interval"}
    # Counters are of use as rates alone, and gauges have none.
    for name, _ in found:
        is_counter = name.endswith(("_total", "_bucket"))
        rates = [*re.finditer(rf"rate\({name}\{{[^}}]*\}}\[\$__rate_interval\]\)", query)]
        assert len(rates) == (query.count(f"{name}{{") if is_counter else 0), name


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_series_that_several_addresses_show_counts_once(panel: dict[str, Any]) -> None:
    """Each address of a fleet shows the figures of the whole fleet: a sum over them would be several times as high."""
    once = re.compile(r"max(?: by \([^)]*\))? ?\((?:rate\()?magnus_cache_\w+\{[^}]*\}(?:\[[^]]*\]\))?\)")
    for target in panel["targets"]:
        plain = once.sub("", target["expr"])
        assert "magnus_cache_" not in plain, plain


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_the_unit_of_a_panel_is_that_of_its_series(panel: dict[str, Any]) -> None:
    overridden = {
        each["matcher"]["options"]: {item["id"]: item["value"] for item in each["properties"]}["unit"]
        for each in panel["fieldConfig"]["overrides"]
    }
    for target in panel["targets"]:
        unit = overridden.get(f"Value #{target['refId']}", panel["fieldConfig"]["defaults"]["unit"])
        assert unit == _unit(target["expr"]), target["expr"]


def _unit(query: str) -> str:
    """Return Grafana's name for the unit of what a query gives."""
    if re.search("_(spent|saved)_", query) and " / " not in query:
        # Of nothing that Grafana knows; an hour of it, since that of a second is very little.
        assert query.endswith(" * 3600")
        return "none"
    if "_seconds_" in query:
        return "s"
    if "_bytes" in query:
        return "bytes"
    if " / " in query:
        return "percentunit"
    return "ops" if "rate(" in query else "none"


def test_panels_have_places_and_numbers_of_their_own() -> None:
    every = DASHBOARD["panels"]
    assert len({panel["id"] for panel in every}) == len(every) > 20
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


def test_the_data_source_is_chosen_when_it_is_opened(shown: Series) -> None:
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert VARIABLES["datasource"]["query"] == "prometheus"
    sources = re.findall(r'"uid": "([^"]*)"', dashboard())
    assert {source for source in sources if source != DASHBOARD["uid"]} == {"${datasource}"}
    for panel in PANELS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    for name in ("job", "namespace"):
        (series, label) = re.match(  # type: ignore[union-attr]  # it matches, or the test has found something
            r"label_values\((magnus_cache_\w+)(?:\{[^}]*\})?, (\w+)\)", VARIABLES[name]["query"]["query"]
        ).groups()
        assert label == name
        assert label in labels_of(shown, series) | OF_JOBS
        assert VARIABLES[name]["definition"] == VARIABLES[name]["query"]["query"]


def test_it_is_printed_by_a_command() -> None:
    printed = output_of("-m", "magnus_cache.observability.grafana")
    assert json.loads(printed) == DASHBOARD
    assert printed.endswith("}\n")
