"""The benchmarks run, and their arithmetic is right. Nothing is timed here."""

import json
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest

for _peer in ("aiocache", "async_lru", "cachetools", "cashews", "dogpile.cache"):
    pytest.importorskip(_peer, reason="the benchmarks' peers are not installed")

from benchmarks.__main__ import BENCHMARKS, main  # noqa: E402  # after the peers were looked for
from benchmarks.budgets import BUDGETS, Budget, judge  # noqa: E402  # likewise
from benchmarks.coherence import note_round  # noqa: E402  # likewise
from benchmarks.peer import peer, spread  # noqa: E402  # likewise
from benchmarks.report import budget_text, figures, grid, table_text  # noqa: E402  # likewise
from benchmarks.tables import OURS, Table, rotations  # noqa: E402  # likewise
from magnus_cache.embedded import EmbeddedServer  # noqa: E402  # likewise


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


class TestRotations:
    def test_each_has_one_turn_a_round(self) -> None:
        turns = list(rotations(["a", "b", "c"], 4))
        assert [sorted(turns[start : start + 3]) for start in range(0, 12, 3)] == [["a", "b", "c"]] * 4

    def test_another_one_begins_each_round(self) -> None:
        assert list(rotations(["a", "b"], 3)) == ["a", "b", "b", "a", "a", "b"]


class TestTable:
    def test_the_median_of_the_rounds_counts(self) -> None:
        assert rates(ours=[1.0, 100.0, 3.0]).median("10", OURS) == 3.0

    def test_what_was_not_measured_has_no_median(self) -> None:
        assert rates(ours=[1.0]).median("10", "them") is None
        assert rates(ours=[1.0]).median("99", OURS) is None

    def test_rates_and_durations_compare_in_opposite_directions(self) -> None:
        samples = {"ours": [10.0], "them": [5.0]}
        assert rates(**samples).advantage("10", OURS, "them") == 2.0
        assert durations(**samples).advantage("10", OURS, "them") == 0.5

    def test_a_noisy_stretch_cancels_out_because_rounds_are_compared_one_by_one(self) -> None:
        table = rates(ours=[10.0, 1.0, 1.2], them=[5.0, 0.5, 0.6])
        assert table.advantage("10", OURS, "them") == pytest.approx(2.0)

    def test_nothing_is_compared_with_a_contender_that_was_left_out(self) -> None:
        assert rates(ours=[1.0]).advantage("10", OURS, "them") is None

    def test_the_best_is_the_fastest(self) -> None:
        samples = {"ours": [3.0], "slow": [1.0], "fast": [2.0]}
        assert rates(**samples).best("10", ["slow", "fast", "absent"]) == "fast"
        assert durations(**samples).best("10", ["slow", "fast", "absent"]) == "slow"
        assert rates(**samples).best("10", ["absent"]) is None

    def test_contenders_keep_their_order(self) -> None:
        assert rates(ours=[1.0], b=[1.0], a=[1.0]).contenders == [OURS, "b", "a"]


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

    def test_a_peer_that_is_not_installed_or_a_benchmark_that_did_not_run_breaks_no_budget(self) -> None:
        assert self.outcome(self.FASTER, rates(ours=[4.0])) == ("not measured", None, None)
        assert self.outcome(self.FASTER) == ("not measured", None, None)

    def test_what_no_benchmark_measures_says_so(self) -> None:
        assert self.outcome(Budget("some day")) == ("not measured yet", None, None)

    def test_every_budget_names_a_benchmark_that_exists(self) -> None:
        for budget in BUDGETS:
            assert budget.table is None or budget.table in BENCHMARKS
            assert budget.table is None or (budget.at_most is None) != (budget.at_least is None)


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

    def test_a_table_shows_medians_and_ratios(self) -> None:
        text = table_text(rates(ours=[20_000.0], them=[10.0]))
        assert text.splitlines()[2].split() == [OURS, "20,000"]
        assert text.splitlines()[3].split() == ["them", "10.0", "2000.00x"]

    def test_a_budget_shows_what_was_demanded_and_measured(self) -> None:
        faster = Budget("faster", "speed", "10", ("them",), at_least=2.0)
        text = budget_text(judge({"speed": rates(ours=[3.0], them=[2.0])}, (faster, Budget("some day"))))
        assert text.splitlines()[2].split() == ["faster", ">=", "2.00x", "1.50x", "NOT", "met", "them"]
        assert text.splitlines()[3].split() == ["some", "day", "not", "measured", "yet"]

    def test_json_has_every_sample(self) -> None:
        tables = {"speed": rates(ours=[1.0, 2.0, 3.0])}
        found = json.loads(json.dumps(figures(tables, judge(tables), {"cores": 2})))
        assert found["tables"]["speed"]["columns"]["10"][OURS] == {"median": 2.0, "rounds": [1.0, 2.0, 3.0]}
        assert found["machine"] == {"cores": 2}
        assert found["versions"]["redis"] == ANY
        assert len(found["budgets"]) == len(BUDGETS)


# The peers call what redis-py has deprecated.
@pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")
def test_every_benchmark_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The one peer that is optional; and its runtime keeps sockets for as long as the process lives.
    monkeypatch.setitem(sys.modules, "glide", None)
    path = tmp_path / "reports" / "bench.json"
    assert main(["--rounds", "1", "--turn", "0.0001", "--entries", "50", "--cleared", "50", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert list(report["tables"]) == list(BENCHMARKS)
    for table in report["tables"].values():
        for column in table["columns"].values():
            assert len(column[OURS]["rounds"]) == 1
            assert len(column) > 1, "ours was compared with nobody"
    printed = capsys.readouterr().out
    assert "valkey-glide is not installed" in printed
    assert "not measured yet" in printed


def test_one_benchmark_can_be_run_alone(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    assert main(["--only", "import", "--rounds", "1", "--json", str(path)]) == 0
    assert list(json.loads(path.read_text())["tables"]) == ["import"]


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "nonsense"])
    assert "l2-async" in capsys.readouterr().err
