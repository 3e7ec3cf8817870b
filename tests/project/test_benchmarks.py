"""The benchmarks run, and their arithmetic is right. Nothing is timed here."""

import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import ANY

import pytest

from benchmarks.__main__ import main
from benchmarks.budgets import BUDGETS, Budget, judge, runs_met
from benchmarks.coherence import note_round
from benchmarks.compare import compare, compare_text
from benchmarks.contenders import if_installed, loops
from benchmarks.document import BEGIN, END, document
from benchmarks.elsewhere import COMPARED, add_columns
from benchmarks.guide import BEFORE, FIRST
from benchmarks.latency import _percentile, _tells
from benchmarks.memory_hits import _draws
from benchmarks.peer import peer, spread
from benchmarks.plan import Plan
from benchmarks.progress import Progress
from benchmarks.report import budget_text, figures, grid, table_text
from benchmarks.suites import SUITES, Suite, tables_of
from benchmarks.tables import OURS, Table, quartiles, rotations
from benchmarks.thread_hits import ThreadReader
from benchmarks.thread_peers import THREAD_KEYS
from magnus_cache.embedded import EmbeddedServer

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--rounds", "1", "--turn", "0.0001", "--entries", "50", "--cleared", "50", "--large", "50", "--many", "50",
)  # fmt: skip


def rates(**samples: list[float]) -> Table:
    table = Table("speed", "Speed", "k/s", less_is_better=False)
    for contender, rounds in samples.items():
        for sample in rounds:
            table.add("10", OURS if contender == "ours" else contender, sample)
    return table


def durations(**samples: list[float]) -> Table:
    table = rates(**samples)
    table.less_is_better = True
    return table


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with as little to do as there can be, in a process of its own.

    Some peers keep threads and sockets for as long as their process lives.
    """
    command = [sys.executable, "-m", "benchmarks", *TINY, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


class TestRotations:
    def test_each_has_one_turn_a_round(self) -> None:
        turns = list(rotations(["a", "b", "c"], 4))
        assert [sorted(turns[start : start + 3]) for start in range(0, 12, 3)] == [["a", "b", "c"]] * 4

    def test_another_one_begins_each_round(self) -> None:
        assert list(rotations(["a", "b"], 3)) == ["a", "b", "b", "a", "a", "b"]

    def test_a_plan_tells_whose_turn_it_is_and_shows_it(self) -> None:
        shown: list[str] = []
        plan = Plan(2, 0.1, 1, 1, "127.0.0.1", 1, progress=shown.append)
        assert list(plan.turns(["a", "b"], "10 tasks")) == ["a", "b", "b", "a"]
        assert shown[0] == "10 tasks, round 1 of 2: a"
        assert shown[-1] == "10 tasks, round 2 of 2: a"


class TestTable:
    def test_the_median_of_the_rounds_counts(self) -> None:
        assert rates(ours=[1.0, 100.0, 3.0]).median("10", OURS) == 3.0

    def test_what_was_not_measured_has_no_median(self) -> None:
        assert rates(ours=[1.0]).median("10", "them") is None
        assert rates(ours=[1.0]).median("99", OURS) is None

    def test_the_spread_is_half_the_middle_half_as_a_share_of_the_median(self) -> None:
        assert rates(ours=[8.0, 9.0, 10.0, 11.0, 12.0]).spread("10", OURS) == pytest.approx(0.1)
        assert rates(ours=[10.0]).spread("10", OURS) is None
        assert rates(ours=[0.0, 0.0]).spread("10", OURS) is None

    def test_the_quartiles_of_one_sample_are_that_sample(self) -> None:
        assert quartiles([3.0]) == (3.0, 3.0)
        assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)

    def test_rates_and_durations_compare_in_opposite_directions(self) -> None:
        samples = {"ours": [10.0], "them": [5.0]}
        assert rates(**samples).advantage("10", OURS, "them") == 2.0
        assert durations(**samples).advantage("10", OURS, "them") == 0.5

    def test_a_noisy_stretch_cancels_out_because_rounds_are_compared_one_by_one(self) -> None:
        table = rates(ours=[10.0, 1.0, 1.2], them=[5.0, 0.5, 0.6])
        assert table.advantage("10", OURS, "them") == pytest.approx(2.0)

    def test_nothing_is_compared_with_a_contender_that_was_left_out(self) -> None:
        assert rates(ours=[1.0]).advantage("10", OURS, "them") is None

    def test_a_sample_of_zero_has_no_ratio(self) -> None:
        assert durations(ours=[0.0, 2.0], them=[5.0, 6.0]).ratios("10", OURS, "them") == [3.0]

    def test_the_best_is_the_fastest(self) -> None:
        samples = {"ours": [3.0], "slow": [1.0], "fast": [2.0]}
        assert rates(**samples).best("10", ["slow", "fast", "absent"]) == "fast"
        assert durations(**samples).best("10", ["slow", "fast", "absent"]) == "slow"
        assert rates(**samples).best("10", ["absent"]) is None

    def test_contenders_keep_their_order(self) -> None:
        assert rates(ours=[1.0], b=[1.0], a=[1.0]).contenders == [OURS, "b", "a"]

    def test_another_run_adds_its_rounds_and_no_note_twice(self) -> None:
        table, again = rates(ours=[1.0]), rates(ours=[2.0], them=[4.0])
        table.note("as it is")
        again.note("as it is")
        again.note("is missing")
        table.extend(again)
        assert table.samples == {"10": {OURS: [1.0, 2.0], "them": [4.0]}}
        assert table.notes == ["as it is", "is missing"]

    def test_figures_make_the_same_table_again(self) -> None:
        table = durations(ours=[1.0, 2.0], them=[3.0, 4.0])
        table.note("a note")
        table.distributions["them"] = [(50.0, 3.5)]
        assert Table.from_figures("speed", json.loads(json.dumps(table.figures()))) == table


class TestContenders:
    def test_a_peer_that_is_not_installed_is_noted_once_and_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "uvloop", None)
        table = rates()
        assert list(loops(table)) == [""]
        assert list(loops(table)) == [""]
        assert table.notes == ["uvloop is not installed on this Python: left out."]

    def test_any_other_failure_of_a_peer_is_one(self) -> None:
        with pytest.raises(ZeroDivisionError), if_installed(rates(), "them"):
            _ = 1 / 0


class TestBudgets:
    FASTER = Budget("faster", "speed", "10", ("slow", "fast"), at_least=2.0)

    def outcome(self, budget: Budget, *tables: Table) -> tuple[str, float | None, str | None]:
        [verdict] = judge({table.name: table for table in tables}, (budget,))
        return verdict.outcome, verdict.measured, verdict.against

    def test_met_by_exactly_what_is_demanded(self) -> None:
        assert self.outcome(self.FASTER, rates(ours=[4.0], slow=[1.0], fast=[2.0])) == ("met", 2.0, "fast")

    def test_not_met_by_less_against_the_best_peer(self) -> None:
        assert self.outcome(self.FASTER, rates(ours=[3.0], slow=[1.0], fast=[2.0])) == ("NOT met", 1.5, "fast")

    def test_durations(self) -> None:
        assert self.outcome(self.FASTER, durations(ours=[4.0], fast=[10.0])) == ("met", 2.5, "fast")

    def test_sizes_are_held_against_a_most(self) -> None:
        budget = Budget("small", "speed", "10", at_most=250.0)
        assert self.outcome(budget, durations(ours=[250.0])) == ("met", 250.0, None)
        assert self.outcome(budget, durations(ours=[251.0])) == ("NOT met", 251.0, None)

    def test_another_contender_of_ours_may_be_meant(self) -> None:
        budget = Budget("faster", "speed", "10", ("slow",), at_least=2.0, ours="shared")
        assert self.outcome(budget, rates(ours=[9.0], shared=[1.5], slow=[1.0])) == ("NOT met", 1.5, "slow")

    def test_a_peer_that_is_not_installed_or_a_benchmark_that_did_not_run_breaks_no_budget(self) -> None:
        assert self.outcome(self.FASTER, rates(ours=[4.0])) == ("not measured", None, None)
        assert self.outcome(self.FASTER) == ("not measured", None, None)

    def test_what_no_benchmark_measures_says_so(self) -> None:
        assert self.outcome(Budget("some day")) == ("not measured yet", None, None)

    def test_every_budget_names_a_table_that_exists(self) -> None:
        tables = {name for suite in SUITES for name in (suite.name, *suite.others)}
        for budget in BUDGETS:
            assert budget.table is None or budget.table in tables
            assert budget.table is None or (budget.at_most is None) != (budget.at_least is None)

    def test_several_runs_count_how_many_met_a_budget(self) -> None:
        tables = [rates(ours=[ours], fast=[2.0]) for ours in (4.0, 5.0, 3.0)]
        runs = [judge({"speed": table}, (self.FASTER, Budget("some day"))) for table in tables]
        assert runs_met(runs) == [(2, 3), (0, 0)]


class TestCompare:
    def compared(self, now: Table, then: Table) -> list[tuple[str, float, int]]:
        changes = compare({"speed": now}, {"speed": json.loads(json.dumps(then.figures()))})
        return [(change.outcome, pytest.approx(change.ratio), change.peers) for change in changes]

    def test_a_machine_that_is_twice_as_fast_changes_nothing(self) -> None:
        then, now = rates(ours=[4.0, 5.0], them=[2.0, 2.5]), rates(ours=[8.0, 10.0], them=[4.0, 5.0])
        assert self.compared(now, then) == [("same", 1.0, 1)]

    def test_what_fell_behind_its_peers_is_slower_though_its_figures_grew(self) -> None:
        then, now = rates(ours=[4.0, 5.0], them=[2.0, 2.5]), rates(ours=[6.0, 6.6], them=[6.0, 6.6])
        assert self.compared(now, then) == [("slower", 0.5, 1)]

    def test_durations_and_what_got_faster(self) -> None:
        then, now = durations(ours=[4.0], them=[4.0]), durations(ours=[1.0], them=[4.0])
        assert self.compared(now, then) == [("faster", 4.0, 1)]
        assert self.compared(then, now) == [("slower", 0.25, 1)]

    def test_noise_is_no_change(self) -> None:
        then = rates(ours=[4.0, 8.0, 12.0], them=[4.0, 4.0, 4.0])
        now = rates(ours=[3.0, 6.0, 9.0], them=[4.0, 4.0, 4.0])
        assert self.compared(now, then) == [("same", 0.75, 1)]

    def test_the_yardstick_is_the_peers_that_took_part_in_both_runs(self) -> None:
        then = rates(ours=[4.0], them=[2.0], gone=[0.1])
        now = rates(ours=[4.0], them=[2.0], new=[99.0])
        assert self.compared(now, then) == [("same", 1.0, 1)]

    def test_without_peers_the_figures_themselves_count(self) -> None:
        assert self.compared(durations(ours=[8.0]), durations(ours=[4.0])) == [("slower", 0.5, 0)]
        assert self.compared(durations(ours=[0.0]), durations(ours=[0.0])) == [("same", 1.0, 0)]

    def test_what_only_one_run_measured_is_not_compared(self) -> None:
        assert self.compared(rates(ours=[4.0]), rates(them=[4.0])) == []
        assert compare({"speed": rates(ours=[4.0])}, {}) == []

    def test_the_text_has_what_changed_and_counts_the_rest(self) -> None:
        then = rates(ours=[4.0], them=[2.0])
        then.add("100", OURS, 1.0)
        now = rates(ours=[1.0], them=[2.0])
        now.add("100", OURS, 1.0)
        text = compare_text(compare({"speed": now}, {"speed": then.figures()}), "old.json")
        assert text.splitlines()[0].startswith("Since old.json")
        assert text.splitlines()[2].split() == ["speed", "10", "0.25x", "slower", "1", "peers"]
        assert text.splitlines()[-1] == "1 of 2 columns are as they were."

    def test_the_exit_code_says_whether_anything_got_slower(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("benchmarks.__main__.SUITES", (Suite("speed", lambda _: rates(ours=[4.0], them=[2.0])),))
        monkeypatch.setattr("benchmarks.__main__.judge", lambda tables: judge(tables, (TestBudgets.FASTER,)))
        then, now = tmp_path / "then.json", tmp_path / "now.json"
        # `figures` notes how often each budget was met; one that is not met is no failure.
        assert main(["--no-plots", "--json", str(then)]) == 0
        assert main(["--no-plots", "--json", str(now), "--compare", str(then)]) == 0
        report = json.loads(then.read_text())
        report["tables"]["speed"]["columns"]["10"][OURS]["rounds"] = [40.0]
        then.write_text(json.dumps(report))
        assert main(["--no-plots", "--json", str(now), "--compare", str(then)]) == 1
        assert "slower" in capsys.readouterr().out


class TestDraws:
    KEYS = tuple(f"user:{number}" for number in range(5000))

    def test_programs_read_few_keys_often(self) -> None:
        read = Counter(_draws(self.KEYS)["zipf"])
        often = read.most_common(50)
        assert sum(times for _, times in often) > 0.4 * read.total()
        assert len(read) > 1000

    def test_even_reads_favour_none(self) -> None:
        read = Counter(_draws(self.KEYS)["even"])
        assert len(read) > 0.99 * len(self.KEYS)
        assert max(read.values()) < 40


class TestLatency:
    def test_a_percentile_is_a_value_that_was_measured(self) -> None:
        ordered = [float(number) for number in range(1, 101)]
        assert [_percentile(ordered, percent) for percent in (0.0, 50.0, 99.0, 100.0)] == [1.0, 51.0, 100.0, 100.0]

    def test_a_percentile_needs_two_values_above_it(self) -> None:
        assert _tells([1.0] * 200, 99.0)
        assert not _tells([1.0] * 199, 99.0)


class TestCoherence:
    def test_writes_have_columns_of_their_own_and_all_are_compared_with_the_same_publishes(self) -> None:
        table = Table("invalidation", "", "us", less_is_better=True)
        note_round(table, {"set": [2e-6] * 2, "delete": [4e-6] * 2, "PUBLISH": [1e-6, 3e-6]})
        assert list(table.samples) == ["set p50", "set p99", "delete p50", "delete p99"]
        assert table.median("set p50", OURS) == pytest.approx(2)
        assert table.median("delete p50", OURS) == pytest.approx(4)
        for write in ("set", "delete"):
            assert table.contenders == [OURS, "PUBLISH"]
            assert table.median(f"{write} p50", "PUBLISH") == pytest.approx(2)
            assert table.median(f"{write} p99", "PUBLISH") == pytest.approx(2.98)

    @pytest.mark.parametrize("count", [2, 3, 50, 199, 200, 201, 1000, 1_000_003])
    def test_the_values_watched_are_few_and_no_value_is_watched_twice(self, count: int) -> None:
        warm, fresh = spread(count, 100, 0), spread(count, 16, 1)
        assert 0 < len(warm) <= 100
        assert 0 < len(fresh) <= 16
        assert len({*warm, *fresh}) == len(warm) + len(fresh)
        assert max(int(key) for key in (*warm, *fresh)) < count
        assert count < 1000 or int(warm[-1]) > count * 0.97


@pytest.mark.anyio
async def test_a_peer_process_that_fails_is_told_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with EmbeddedServer() as server:
        port = server.port
    with pytest.raises(RuntimeError, match="has failed"):
        async with peer("prober", "127.0.0.1", port):
            pass
    assert "Connection" in capfd.readouterr().err


class TestReport:
    def test_the_grid_aligns_numbers_to_the_right(self) -> None:
        assert grid([["a", "n"], ["long", "1"], ["b", "100"]]) == "a       n\n---------\nlong    1\nb     100"

    def test_a_table_shows_medians_spread_and_ratios(self) -> None:
        lines = table_text(rates(ours=[20_000.0], them=[9.0, 10.0, 11.0])).splitlines()
        assert lines[0] == "Speed (k/s)"
        assert lines[3].split() == [OURS, "20,000"]
        assert lines[4].split() == ["them", "10.0", "±5%", "2,222x"]

    def test_a_small_figure_keeps_its_digits(self) -> None:
        assert table_text(durations(ours=[0.0123])).splitlines()[-1].split() == [OURS, "0.012"]

    def test_a_wide_table_goes_on_below_and_no_line_is_too_long(self) -> None:
        table = Table("wide", "Wide", "ms", less_is_better=True, notes=["a note " * 40])
        for number in range(20):
            table.add(f"column {number}", OURS, 1.0)
            table.add(f"column {number}", "them", 2.0)
        text = table_text(table, width=80)
        assert max(map(len, text.splitlines())) <= 80
        assert text.count(OURS) > 1
        for number in range(20):
            assert text.count(f"column {number} ") == 1

    def test_a_budget_shows_what_was_demanded_and_measured(self) -> None:
        faster = Budget("faster", "speed", "10", ("them",), at_least=2.0)
        text = budget_text([judge({"speed": rates(ours=[3.0], them=[2.0])}, (faster, Budget("some day")))])
        assert text.splitlines()[2].split() == ["faster", ">=", "2.00x", "1.50x", "NOT", "met", "them"]
        assert text.splitlines()[3].split() == ["some", "day", "not", "measured", "yet"]
        assert text.splitlines()[-1] == "0 of 1 measured budgets are met."

    def test_a_budget_that_this_run_did_not_measure_is_only_counted(self) -> None:
        other = Budget("other", "another table", "10", ("them",), at_least=2.0)
        text = budget_text([judge({"speed": rates(ours=[4.0], them=[2.0])}, (TestBudgets.FASTER, other))])
        assert "other " not in text.splitlines()[2]
        assert text.splitlines()[-1].endswith("This run did not measure 2 others.")

    def test_of_several_runs_all_must_meet_a_budget(self) -> None:
        faster = Budget("faster", "speed", "10", ("them",), at_least=2.0)
        runs = [judge({"speed": rates(ours=[ours], them=[2.0])}, (faster,)) for ours in (3.0, 5.0, 6.0)]
        assert budget_text(runs).splitlines()[2].split() == [
            "faster", ">=", "2.00x", "2.50x", "NOT", "met", "2/3", "them",
        ]  # fmt: skip

    def test_json_has_every_sample(self) -> None:
        tables = {"speed": rates(ours=[1.0, 2.0, 3.0])}
        found = json.loads(json.dumps(figures(tables, [judge(tables)], {"cores": 2})))
        assert found["tables"]["speed"]["columns"]["10"][OURS]["rounds"] == [1.0, 2.0, 3.0]
        assert found["machine"] == {"cores": 2}
        assert found["versions"]["redis"] == ANY
        assert len(found["budgets"]) == len(BUDGETS)


class TestProgress:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def test_a_terminal_sees_what_is_being_measured(self) -> None:
        stream = self.Terminal()
        progress = Progress(2, stream)
        with progress.of("l2-async"):
            progress.show("10 tasks, round 1 of 3: aiocache")
        assert "[1/2] l2-async: 10 tasks, round 1 of 3: aiocache" in stream.getvalue()
        assert "\r" in stream.getvalue()
        assert stream.getvalue().endswith("s in all\n")

    def test_a_file_gets_one_line_for_each_benchmark(self) -> None:
        stream = io.StringIO()
        progress = Progress(2, stream)
        for name in ("a", "b"):
            with progress.of(name):
                progress.show("round 1")
        assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == ["[1/2] a", "[2/2] b"]


class TestDocument:
    def test_what_stands_between_the_marks_is_replaced(self, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text(f"# Page\n\n{BEGIN}\nold\n{END}\n\nafter\n")
        for _ in range(2):
            pictures = [tmp_path / "pictures" / "latency.png"]
            document(page, {"Speed (ms)": "fast  \n\\1 as is"}, {"cores": 2}, "nox -s bench -- --quick", pictures)
        text = page.read_text()
        assert text.startswith(f"# Page\n\n{BEGIN}\n\nCommand: `nox -s bench -- --quick`. Machine: cores: 2.\n")
        assert "![latency](pictures/latency.png)\n" in text
        assert "### Speed (ms)\n\n```text\nfast\n\\1 as is\n```\n" in text
        assert text.endswith(f"{END}\n\nafter\n")
        assert "old" not in text

    def test_a_page_without_marks_is_left_alone(self, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text("# Page\n")
        with pytest.raises(ValueError, match="no part between"):
            document(page, {}, {}, "nox -s bench")
        assert page.read_text() == "# Page\n"


class TestPlots:
    @pytest.fixture
    def report(self) -> dict[str, Table]:
        throughput = Table("l2-async", "Hits", "k/s", less_is_better=False)
        for column in ("1", "10", "10, uvloop"):
            for name in (OURS, "aiocache"):
                throughput.add(column, name, 5.0)
                throughput.add(column, name, 7.0)
        latency = Table("latency", "Latency", "us", less_is_better=True)
        latency.distributions[OURS] = [(0.0, 90.0), (50.0, 100.0), (99.0, 900.0)]
        before_after = Table("guide", "Guide", "ms", less_is_better=True)
        for name, value in {OURS: 0.01, FIRST: 801.0, BEFORE: 800.0}.items():
            before_after.add("Portfolio Loading", name, value)
        return {table.name: table for table in (throughput, latency, before_after)}

    def test_there_is_a_picture_of_each_table_that_was_measured(self, report: dict[str, Table], tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="pictures need matplotlib")
        from benchmarks.plots import plots

        written = plots(report, tmp_path / "pictures")
        assert [path.name for path in written] == ["throughput.png", "latency.png", "guide.png"]
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
        first = written[0].read_bytes()
        plots(report, tmp_path / "pictures")
        assert written[0].read_bytes() == first, "the same figures give another file"

    def test_without_matplotlib_the_rest_still_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        monkeypatch.setattr("benchmarks.__main__.SUITES", (Suite("speed", lambda _: rates(ours=[1.0])),))
        assert main(["--json", str(tmp_path / "bench.json")]) == 0
        assert "matplotlib is not installed" in capsys.readouterr().out


class TestElsewhere:
    def test_the_other_python_s_columns_stand_beside_ours(self) -> None:
        table, other = rates(ours=[1.0], them=[2.0]), rates(ours=[3.0], them=[4.0])
        other.note("theine is not installed on this Python: left out.")
        add_columns({"speed": table}, {"speed": other}, "3.14t")
        assert table.samples == {
            "10": {OURS: [1.0], "them": [2.0]}, "10, 3.14t": {OURS: [3.0], "them": [4.0]},
        }  # fmt: skip
        assert table.notes == ["3.14t: theine is not installed on this Python: left out."]

    def test_it_measures_benchmarks_that_exist(self) -> None:
        assert set(COMPARED) <= {suite.name for suite in SUITES}

    @pytest.mark.timeout(320)
    def test_another_interpreter_measures_with_the_same_plan_on_the_same_server(self, tmp_path: Path) -> None:
        path = tmp_path / "bench.json"
        run("--only", "l1-sync", "--no-plots", "--json", str(path), "--python", f"again={sys.executable}")
        columns = json.loads(path.read_text())["tables"]["l1-sync"]["columns"]
        assert len(columns["str"][OURS]["rounds"]) == len(columns["str, again"][OURS]["rounds"]) == 1

    def test_an_interpreter_without_a_label_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["--python", "python3.14t"])
        assert "LABEL=PATH" in capsys.readouterr().err


@pytest.mark.timeout(320)
def test_every_benchmark_runs(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "bench.json"
    page = tmp_path / "benchmarks.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    done = run("--json", str(path), "--document", str(page))
    report = json.loads(path.read_text())
    assert list(report["tables"]) == [name for suite in SUITES for name in (suite.name, *suite.others)]
    for name, table in report["tables"].items():
        for column, row in table["columns"].items():
            assert row[OURS]["rounds"], f"{name} did not measure ours in {column}"
        compared = {contender for row in table["columns"].values() for contender in row}
        assert len(compared) > 1, f"{name} compares ours with nothing"
    assert "measured budgets are met" in done.stdout
    assert f"[{len(SUITES)}/{len(SUITES)}]" in done.stderr
    assert "Command: `nox -s bench -- --rounds 1" in page.read_text()
    assert str(tmp_path) not in page.read_text(), "the page names a path of this machine"


def test_several_runs_are_shown_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = iter([rates(ours=[1.0]), rates(ours=[2.0])])
    monkeypatch.setattr("benchmarks.__main__.SUITES", (Suite("speed", lambda _: next(tables)),))
    path = tmp_path / "bench.json"
    assert main(["--runs", "2", "--no-plots", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["runs"] == 2
    assert report["tables"]["speed"]["columns"]["10"][OURS]["rounds"] == [1.0, 2.0]
    printed = capsys.readouterr()
    assert "Run 2 of 2" in printed.out
    assert "All 2 runs together" in printed.out
    assert "[2/2] speed" in printed.err


def test_one_benchmark_can_be_run_alone(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    assert main(["--only", "import", "--rounds", "1", "--no-plots", "--json", str(path)]) == 0
    assert list(json.loads(path.read_text())["tables"]) == ["import"]


def test_a_benchmark_may_have_several_tables() -> None:
    one, other = rates(ours=[1.0]), durations(ours=[1.0])
    other.name = "stalls"
    plan = Plan(1, 0.1, 1, 1, "127.0.0.1", 1)
    assert tables_of(Suite("speed", lambda _: (one, other), ("stalls",)), plan) == {"speed": one, "stalls": other}


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "nonsense"])
    assert "l2-async" in capsys.readouterr().err


def test_threads_read_all_keys_in_turn_so_that_a_small_near_cache_has_none() -> None:
    read: list[str] = []
    reader = ThreadReader(read.append)
    for each in (100, 3, 500, 2 * len(THREAD_KEYS)):
        reader.rate(1, each)
    assert read == [THREAD_KEYS[number % len(THREAD_KEYS)] for number in range(len(read))]
