"""The check for leaks and the judge of staleness."""

import asyncio
import json
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.testing import StalenessChecker, StalenessLog, no_leaks, read_log
from tests.support.programs import ROOT, output_of
from tests.support.wait import lapse_async

SOON = 0.05
"""Patience with what will not go, in seconds."""


def test_the_tools_need_no_test_framework_and_start_nothing() -> None:
    script = (
        "import sys, threading, magnus_cache.testing as t;"
        "print([m for m in ('pytest', 'hypothesis', 'trustme') if m in sys.modules], threading.active_count())"
    )
    assert output_of("-W", "error", "-c", script).split() == ["[]", "1"]


# -- leaks ------------------------------------------------------------------------------------------------------


def test_nothing_left_is_nothing_said() -> None:
    with no_leaks():
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
        with socket.socket():
            pass


def test_a_thread_that_stays_is_named() -> None:
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait, name="stays")
    with pytest.raises(AssertionError, match="left behind: thread 'stays'"), no_leaks(SOON):
        thread.start()
    leave.set()
    thread.join()


def test_what_goes_soon_is_waited_for() -> None:
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    with no_leaks():
        thread.start()
        # After the block: the check waits, and wakes up when it has gone.
        timer = threading.Timer(SOON, leave.set)
        timer.start()
    assert not thread.is_alive()


def test_threads_of_others_can_be_ignored() -> None:
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait, name="others-1")
    with no_leaks(SOON, ignore_threads=["others"]):
        thread.start()
    leave.set()
    thread.join()


def test_a_socket_that_stays_is_named_with_its_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client: list[socket.socket] = []
        with pytest.raises(AssertionError, match=rf"socket \('127.0.0.1', \d+\) to \('127.0.0.1', {port}\)"):
            with no_leaks(SOON):
                client.append(socket.create_connection(("127.0.0.1", port)))
        client[0].close()
    with pytest.raises(AssertionError, match=r"socket \('127.0.0.1', \d+\) \(desc"), no_leaks(SOON):
        client.append(socket.create_server(("127.0.0.1", 0)))
    client[1].close()


def test_a_file_that_stays_is_named(tmp_path: Path) -> None:
    path = tmp_path / "open"
    kept: list[Any] = []
    with pytest.raises(AssertionError, match=rf"file {path} \(descriptor \d+\)"), no_leaks(SOON):
        kept.append(path.open("w"))
    kept[0].close()


def test_a_descriptor_used_again_is_no_leak_and_hides_none(tmp_path: Path) -> None:
    first = socket.socket()
    with no_leaks():
        first.close()
    first = socket.socket()
    number = first.fileno()
    with pytest.raises(AssertionError, match=f"descriptor {number}"), no_leaks(SOON):
        first.close()
        second = socket.socket()
        assert second.fileno() == number
    second.close()


def test_of_a_file_open_many_times_the_new_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "open"
    low, high = path.open("w"), path.open("w")
    number = low.fileno()
    low.close()
    with pytest.raises(AssertionError, match=rf"behind: file {path} \(descriptor {number}\)$"), no_leaks(SOON):
        low = path.open("w")
        assert low.fileno() == number
    with pytest.raises(AssertionError) as caught, no_leaks(SOON):
        highest = path.open("w")
    assert str(caught.value) == f"left behind: file {path} (descriptor {highest.fileno()})"
    for file in (low, high, highest):
        file.close()


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system's pollers are no files, or are not alike")
def test_garbage_of_before_hides_nothing() -> None:
    """All epoll files are one to the system, so only their number tells."""
    ring: list[Any] = [select.epoll()]
    ring.append(ring)
    del ring
    with pytest.raises(AssertionError, match="eventpoll"), no_leaks(SOON):
        kept = select.epoll()
    kept.close()


def test_a_block_that_raises_is_not_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), no_leaks(SOON):
        kept = (tmp_path / "open").open("w")
        raise ZeroDivisionError
    kept.close()


@pytest.mark.anyio
async def test_a_task_that_stays_is_named() -> None:
    leave = asyncio.Event()
    with pytest.raises(AssertionError, match="task 'stays'.*Event.wait"):
        async with no_leaks(SOON):
            task = asyncio.create_task(leave.wait(), name="stays")
    leave.set()
    await task


@pytest.mark.anyio
async def test_tasks_and_connections_get_the_loop_to_end_in() -> None:
    async with no_leaks():
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
        server.close()
        task = asyncio.create_task(lapse_async(0.01))
    assert task.done()


@pytest.mark.anyio
async def test_the_loops_idle_workers_do_not_count() -> None:
    async with no_leaks(SOON):
        await asyncio.to_thread(int)
    with pytest.raises(AssertionError, match="thread '(asyncio|uvloop)_"):
        async with no_leaks(SOON, ignore_threads=()):
            # Two at once: the one that is there already is not enough.
            both = threading.Barrier(2)
            await asyncio.gather(asyncio.to_thread(both.wait, 10), asyncio.to_thread(both.wait, 10))


@pytest.mark.anyio
async def test_a_coroutine_is_told_to_write_async_with() -> None:
    with pytest.raises(RuntimeError, match="async with no_leaks"):
        with no_leaks():
            pass


def test_what_is_left_can_be_asked_for_within_the_block() -> None:
    check = no_leaks()
    with pytest.raises(RuntimeError, match="has not begun"):
        check.left()
    with check:
        assert check.left() == []
        with socket.socket():
            assert len(check.left()) == 1


# -- staleness --------------------------------------------------------------------------------------------------


def test_a_read_within_the_bound_passes_and_one_beyond_fails() -> None:
    checker = StalenessChecker(1.0)
    checker.published("k", 1, 10.0)
    checker.published("k", 2, 20.0)
    checker.read("k", 2, 20.5)
    checker.read("k", 1, 19.0)
    checker.read("k", 1, 21.0)
    with pytest.raises(AssertionError, match=r"staler than 1 s: 'k': version 1 .* 1\.250000 s .*version 2 was due"):
        checker.read("k", 1, 21.25)
    report = checker.report()
    assert (report.published, report.reads, report.stale, report.violations) == (2, 4, 2, 1)
    assert report.max_staleness == 1.25
    assert (report.examples[0].seen, report.examples[0].newest, report.examples[0].staleness) == (1, 2, 1.25)
    with pytest.raises(AssertionError, match="1 beyond the bound of 1 s\n'k': version 1"):
        checker.check()


def test_a_miss_is_never_stale_and_what_is_still_being_written_may_be_seen() -> None:
    checker = StalenessChecker(0.0)
    checker.read("unknown", 7, 1.0)
    checker.published("k", 1, 1.0)
    checker.read("k", None, 2.0)
    checker.read("k", 2, 2.0)
    report = checker.check()
    assert (report.reads, report.misses, report.stale, report.max_staleness) == (3, 1, 0, 0.0)


def test_a_write_completed_when_the_read_began_may_be_missed() -> None:
    """Which of the two came first cannot be told."""
    checker = StalenessChecker(0.0)
    checker.published("k", 2, 5.0)
    checker.read("k", 1, 5.0)
    assert checker.report().stale == 0
    with pytest.raises(AssertionError):
        checker.read("k", 1, 5.000001)


def test_staleness_counts_from_the_first_newer_version() -> None:
    checker = StalenessChecker(100.0)
    for version in range(10):
        checker.published("k", version, float(version))
    checker.read("k", 3, 9.5)
    assert checker.report().max_staleness == 9.5 - 4.0


def test_keys_do_not_mix() -> None:
    checker = StalenessChecker(0.0)
    checker.published("other", 9, 1.0)
    checker.read("k", 1, 2.0)
    assert checker.check().stale == 0


@pytest.mark.parametrize("bound", [-0.1, float("nan"), float("inf")])
def test_a_bound_is_a_number_of_seconds(bound: float) -> None:
    with pytest.raises(ValueError, match="0 or more seconds"):
        StalenessChecker(bound)


MOMENTS = st.integers(min_value=0, max_value=12).map(float)
PUBLICATIONS = st.lists(st.tuples(st.integers(min_value=0, max_value=8), MOMENTS), max_size=14)


@given(publications=PUBLICATIONS, seen=st.integers(-1, 9), started=MOMENTS, bound=st.integers(0, 4))
def test_it_judges_as_the_definition_does(
    publications: list[tuple[int, float]], seen: int, started: float, bound: int
) -> None:
    """In any order of publication, against a look at all of them."""
    checker = StalenessChecker(float(bound))
    for version, completed in publications:
        checker.published("k", version, completed)
    due = max((version for version, completed in publications if completed < started - bound), default=-2)
    newer = [completed for version, completed in publications if version > seen and completed < started]
    try:
        checker.read("k", seen, started)
    except AssertionError:
        assert seen < due
        assert checker.report().examples[0].newest == due
    else:
        assert seen >= due
    assert checker.report().max_staleness == (started - min(newer) if newer else 0.0)


def test_reads_of_other_processes_are_judged_when_all_is_known() -> None:
    checker = StalenessChecker(1.0)
    checker.merge([("read", "k", 1, 30.0), ("read", "k", 2, 30.0), ("read", "k", None, 30.0)])
    checker.merge(json.loads('[["published", "k", 1, 10], ["published", "k", 2, 20.0]]'))
    with pytest.raises(AssertionError, match="'k': version 1 was read 10.000000 s after"):
        checker.check()
    assert checker.report().reads == 3


@pytest.mark.parametrize(
    "event", [("read", "k", 1), ("wrote", "k", 1, 1.0), ("published", "k", None, 1.0), ("read", 1, 1, 1.0), 7]
)
def test_what_is_no_event_is_refused_with_its_position(event: Any) -> None:
    with pytest.raises(ValueError, match="event 1 is not a StalenessEvent"):
        StalenessChecker(1.0).merge([("read", "k", 1, 1.0), event])


def test_threads_can_share_a_checker() -> None:
    checker = StalenessChecker(60.0)
    newest = 0

    def write() -> None:
        nonlocal newest
        for version in range(1, 2001):
            newest = version
            checker.published("k", version)

    def read() -> None:
        for _ in range(2000):
            started = monotonic()
            checker.read("k", newest, started)

    threads = [threading.Thread(target=work) for work in (write, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = checker.check()
    assert (report.published, report.reads) == (2000, 4000)


PROCESS = """
import sys, time
from magnus_cache.testing import StalenessLog
log = StalenessLog(sys.argv[1])
for version in range(1, 1001):
    log.read("k", version, time.monotonic())
    log.published("k", version)
print("logged", flush=True)
sys.stdin.read()
"""


def test_logs_of_killed_processes_are_merged(tmp_path: Path) -> None:
    """Two of them append to one file; they are killed, which neither a buffer nor a mixed line survives."""
    path = tmp_path / "events"
    started = monotonic()
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"logged\n"
        process.kill()
        process.communicate()
    with StalenessLog(path) as log:
        log.read("k", 999, monotonic())
    with path.open("ab") as file:
        file.write(b'["read", "k", ')
    checker = StalenessChecker(0.0)
    checker.merge(read_log(path))
    report = checker.report()
    assert (report.published, report.reads) == (2000, 2001)
    # The clock is one for all processes.
    assert 0 < report.max_staleness < monotonic() - started
    assert report.violations >= 1
    assert report.examples[-1].seen <= 999


def test_a_log_that_is_no_log_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text("not JSON\n")
    with pytest.raises(ValueError, match="Expecting value"):
        list(read_log(path))
    with pytest.raises(FileNotFoundError):
        list(read_log(tmp_path / "none"))


def test_a_check_takes_logarithmic_time() -> None:
    """Counted, not timed: how many versions are compared in a history of 100,000."""
    compared = 0

    class Version(int):
        def __lt__(self, other: Any) -> bool:
            nonlocal compared
            compared += 1
            return int(self) < int(other)

        def __gt__(self, other: Any) -> bool:
            nonlocal compared
            compared += 1
            return int(self) > int(other)

    checker = StalenessChecker(1e9)
    for version in range(100_000):
        checker.published("k", Version(version), float(version))
    compared = 0
    checker.read("k", Version(50_000), 1e6)
    assert 0 < compared < 100
