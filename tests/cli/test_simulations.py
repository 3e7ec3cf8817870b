"""`magnus-cache simulate`, as a program of its own."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from magnus_cache import CacheManager, Namespace
from magnus_cache.cli import app
from magnus_cache.cli.simulations import size_of
from magnus_cache.simulation import Figures
from tests.support.programs import output_of, run_python


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of quotes and reports."""
    folder = tmp_path_factory.mktemp("day")
    with CacheManager(redis_enabled=False) as cache, cache.record_accesses(folder):
        quote = cache.cached(Namespace("quotes", ttl=60), key="{key}")(lambda key: key)
        report = cache.cached(Namespace("reports", ttl=600), key="{key}")(lambda key: key)
        for number in range(400):
            quote(number % 25)
            report(number % 5)
    return folder


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return run_python("-m", "magnus_cache", "simulate", *map(str, arguments))


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_it_prints_a_table_and_a_check(day: Path) -> None:
    done = run(day, "--l1-max-entries", "5,10,1k", "--cost", "0.5", "--namespace", "quotes")
    assert (done.returncode, done.stderr) == (0, "")
    head, columns, recorded, *rows = done.stdout.splitlines()
    assert head.startswith("recorded: 1 process, ")
    assert head.endswith("400 accesses, hit rate 93.8 %")
    assert columns.split() == ["settings", "hits", "memory", "Redis", "loads", "load", "time", "evicted", "money"]
    assert recorded.split()[:6] == ["as", "recorded", "93.8", "%", "93.8", "%"]
    assert recorded.endswith("12.50")
    assert [row.split()[0] for row in rows[:3]] == ["l1_max_entries=5", "l1_max_entries=10", "l1_max_entries=1000"]
    assert rows[3] == "check: as recorded, the simulation has 93.8 % where 93.8 % were recorded; right within 1.0 %"


def test_json_has_all_figures(day: Path) -> None:
    found: dict[str, Any] = json.loads(
        output_of("-m", "magnus_cache", "simulate", str(day), "--policy", "lru,optimum", "--ttl", "1h", "--json")
    )
    assert [each["candidate"] for each in found["candidates"]] == ["ttl=1h, policy=lru", "ttl=1h, policy=optimum"]
    assert found["agrees"] is True
    assert set(found["as_recorded"]["namespaces"]) == {"quotes", "reports"}
    assert {"hit_rate", "l1_hits", "loads", "money", "outdated", "cut_short"} <= set(found["recorded"])


def test_a_row_for_each_namespace(day: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["simulate", str(day), "--each"]) == 0
    assert [line.split()[0] for line in lines_of(capsys)[2:5]] == ["as", "quotes", "reports"]


@pytest.mark.parametrize(("width", "left_out"), [(70, "Redis"), (60, "memory"), (48, "evicted")])
def test_a_narrow_terminal_shows_less(
    day: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, left_out: str
) -> None:
    monkeypatch.setattr("magnus_cache.cli.common._PIPE", width)
    assert app.main(["simulate", str(day), "--l1-max-entries", "10", "--cost", "0.1"]) == 0
    shown = lines_of(capsys)
    columns, recorded, tried, check, *_ = shown[next(at for at, line in enumerate(shown) if "settings" in line) :]
    assert left_out not in columns
    assert {"settings", "hits", "loads", "money"} <= set(columns.split())
    assert max(map(len, (columns, recorded, tried))) <= width
    # Each on one line, whatever had to make room.
    assert recorded.startswith("as recorded ")
    assert tried.startswith("l1_max_entries=10 ")
    assert check.startswith("check: ")


def test_a_simulation_that_is_wrong_is_a_finding(
    day: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Figures, "hit_rate", property(lambda figures: 1.0 if figures.load_seconds else 0.5))
    assert app.main(["simulate", str(day)]) == 1
    assert any(line.startswith("CHECK FAILED") for line in lines_of(capsys))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none: there is no such file or folder"),
        (["DAY", "--ttl", "soon"], "ttl"),
        (["DAY", "--policy", "fifo"], "'fifo' is none of car"),
        (["DAY", "--l1-max-entries", "many"], "'many' is no size; write 500, 10k or 64MB"),
        (["DAY", "--early", "much"], "'much' is no number"),
        (["DAY", "--namespace", "quote"], "there are quotes, reports"),
    ],
    ids=["folder", "ttl", "policy", "size", "number", "namespace"],
)
def test_wrong_usage_is_one_line(
    day: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert app.main(["simulate", *(str(day) if each == "DAY" else each for each in arguments)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("magnus-cache: ")
    assert message in line


@pytest.mark.parametrize(
    ("text", "entries", "size"),
    [("500", 500, 500), ("10k", 10_000, 10_240), ("1.5M", 1_500_000, 1_572_864), ("64MB", 64_000_000, 67_108_864)],
)
def test_sizes_are_written_as_people_write_them(day: Path, text: str, entries: int, size: int) -> None:
    assert (size_of(text, 1_000), size_of(text, 1_024)) == (entries, size)
