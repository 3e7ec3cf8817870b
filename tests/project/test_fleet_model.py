"""The model of a fleet: what must be true of its figures, and that real fleets cost what it says."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from benchmarks.fleet import WORKLOADS, compared, main, measured, recommended
from benchmarks.fleet_model import MODES, Costs, Fleet, Load, Machine, Mode, load_of
from magnus_cache.embedded import EmbeddedServer

BUSY: Final = Costs(
    read=12e-6, write=50e-6, load=100e-6, push=5e-6, broadcast=5e-6, name=0.1e-6, beat=12e-6, replication=13e-6,
    report=150e-6, idle=1e-3, connection=1e-6, pair_bytes=60.0,
)  # fmt: skip
MACHINE: Final = Machine(BUSY, replace(BUSY, read=24e-6, beat=27e-6))
FLEET: Final = Fleet(100, 50, 100, 1_000)


def loads(fleet: Fleet) -> dict[Mode, Load]:
    return {mode: load_of(fleet, mode, MACHINE) for mode in MODES}


def test_a_value_that_is_not_written_is_asked_for_once_in_its_life() -> None:
    """By every process but the one that loads it, which asks as well."""
    load = load_of(Fleet(10, 100, 0, 1, ttl=50), "keys", MACHINE)
    assert load.hit_ratio == pytest.approx(1 - 10 / 50 / 1000, rel=1e-3)
    assert load.messages == pytest.approx(10 / 50, rel=1e-3)


def test_a_value_that_is_written_all_the_time_is_never_in_memory() -> None:
    load = load_of(Fleet(10, 1, 10_000, 1), "keys", MACHINE)
    assert load.hit_ratio < 0.11  # the writer has it


def test_by_prefix_everyone_is_told_of_every_write_and_nothing_is_remembered() -> None:
    by_key, by_prefix, off = (load_of(replace(FLEET, ttl=1e6), mode, MACHINE) for mode in MODES)
    assert by_prefix.messages == pytest.approx(100 * 100, rel=0.06)
    assert by_prefix.messages > by_key.messages > off.messages == 0
    assert by_key.table > by_prefix.table == off.table == 0
    assert by_key.hit_ratio == by_prefix.hit_ratio


def test_what_is_read_by_few_is_told_to_few() -> None:
    few, many = (load_of(replace(FLEET, reads=reads), "keys", MACHINE) for reads in (0.1, 1_000))
    assert few.messages < 200
    assert many.messages == pytest.approx(FLEET.writes * (FLEET.processes - 1), rel=0.12)


@pytest.mark.parametrize("mode", MODES)
def test_more_of_anything_costs_no_less(mode: Mode) -> None:
    before = load_of(FLEET, mode, MACHINE)
    for more in (replace(FLEET, processes=200), replace(FLEET, reads=100), replace(FLEET, writes=200)):
        after = load_of(more, mode, MACHINE)
        assert after.busy >= before.busy
        assert after.commands >= before.commands
        assert after.sent >= before.sent
    assert load_of(replace(FLEET, staleness=5.0), mode, MACHINE).commands < before.commands


def test_a_busier_server_is_woken_less_often() -> None:
    """So it needs at most what it needs with nothing else to do, and at least what it needs when it never sleeps."""
    for size in (1, 10, 100, 1_000, 10_000):
        found = load_of(replace(FLEET, processes=size), "keys", MACHINE).busy
        least = load_of(replace(FLEET, processes=size), "keys", Machine(BUSY, BUSY)).busy
        most = load_of(replace(FLEET, processes=size), "keys", Machine(MACHINE.asleep, MACHINE.asleep)).busy
        assert least <= found <= most


def test_the_figures_are_numbers_for_every_workload_and_size() -> None:
    for _, fleet_of in WORKLOADS.values():
        for size in (1, 10, 10_000, 100_000):
            for load in loads(fleet_of(size)).values():
                assert all(math.isfinite(value) and value >= 0 for value in (load.commands, load.sent, load.busy))
                assert -1e-9 <= load.hit_ratio <= 1


def test_the_choice_is_by_the_time_and_the_memory_of_the_server() -> None:
    least = Load(0.9, 1, 1, 1, 1, 0, 0.10)
    assert recommended({"keys": replace(least, busy=0.11), "prefix": least, "off": least}) == "keys"
    assert recommended({"keys": replace(least, table=2e9), "prefix": least, "off": least}) == "prefix"
    assert recommended({"keys": replace(least, busy=0.2), "prefix": replace(least, busy=0.2), "off": least}) == "off"


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["keys", "prefix"])
async def test_a_real_fleet_costs_what_the_model_says(server: EmbeddedServer, mode: Mode) -> None:
    """In all that does not depend on how fast the machine is."""
    fleet = Fleet(8, 100, 30, 20, staleness=30.0, reports=0)
    actual, found = await measured(server, fleet, mode, 0.6, 1.0)
    rows = compared(replace(found, table=found.table * BUSY.pair_bytes), load_of(actual, mode, MACHINE))
    assert abs(rows["hit_ratio"][0] - rows["hit_ratio"][1]) < 0.1
    for figure in ("commands", "messages", "received", "sent"):
        # A busy machine lets several writes come in one turn of the server, which tells of them in one message.
        most = 1.5 if mode == "prefix" and figure == "messages" else 0.25
        assert -0.25 < rows[figure][2] < most, (figure, rows[figure])


def test_the_command_prints_its_tables_and_writes_them_into_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.fleet.costs", lambda *_: MACHINE)
    page = tmp_path / "fleet.md"
    page.write_text("before\n<!-- fleets -->\nold\n<!-- end -->\nafter\n<!-- measured -->\n<!-- end -->\n")
    assert main(["--quick", "--processes", "2", "--write", str(page)]) == 0
    said, written = capsys.readouterr().out, page.read_text()
    assert "old" not in written
    assert written.startswith("before\n<!-- fleets -->\n| Workload |")
    assert "| 2 | `prefix` |" in written
    assert "| 2 | `prefix` |" in said
