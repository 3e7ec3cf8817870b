"""What Redis could not be told outlives the process: killed half-way, the next one on that path tells it."""

import asyncio
import errno
import gc
import os
import signal
import socket
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magnus_cache import AsyncCacheManager, CacheManager, CacheSettings
from magnus_cache._engine.coordination import replay as replays
from magnus_cache._engine.outage import journal
from magnus_cache._engine.outage.journal import THREAD_NAME, Journal
from magnus_cache._engine.outage.journal_file import JournalFile
from magnus_cache._engine.outage.outbox import MOST_NAMES, Outbox, Pending
from magnus_cache._engine.runtime.forks import around_fork
from magnus_cache.errors import CacheSettingsError
from tests.support.effort import examples
from tests.support.fleet import Worker
from tests.support.inside import disk_is_idle, queued_for_disk
from tests.support.programs import output_of, run_python
from tests.support.wait import wait_until, wait_until_async

pytestmark = pytest.mark.timeout(120)

ROOT = b"magnus:"
CACHE = "redis://there:6379/0 magnus"

SECONDS = 10.0
"""What a sound disk may take in a test, before that is a fault."""


class Life:
    """A record and its journal, as one process has them."""

    def __init__(self, path: Path, cache: str = CACHE, **bounds: int) -> None:
        self.warnings: list[str] = []
        self.outbox = Outbox(ROOT, **bounds)
        self.file = JournalFile(path, cache, ROOT, **bounds)
        self.journal = Journal(
            self.file, self.outbox, lambda _, message, _error=None: self.warnings.append(message), SECONDS
        )
        self.journal.mark_unread()

    def write(self) -> None:
        assert self.journal.wait(SECONDS)

    def read(self) -> Pending:
        """Do what a replay does first; return what is to be told."""
        asyncio.run(self.journal.read())
        assert self.outbox.unread == 0
        return self.outbox.take()

    def replay(self) -> None:
        self.outbox.acknowledge(self.read())
        self.write()

    def crash(self) -> None:
        """End as by SIGKILL: what was written stays, what is only in memory is gone."""
        self.write()
        self.outbox.store = None
        self.journal.close(SECONDS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recovery.db"


@pytest.fixture
def live(path: Path) -> Iterator[Callable[..., Life]]:
    """Starts lives on one path, and ends them."""
    lives: list[Life] = []

    def start(**options: Any) -> Life:
        lives.append(Life(path, **options))
        return lives[-1]

    yield start
    for life in lives:
        life.journal.close(SECONDS)


def held(path: Path) -> set[tuple[str, bytes]]:
    """Return what is in the file, past the journal."""
    connection = sqlite3.connect(path)
    try:
        return set(connection.execute("SELECT kind, name FROM missed"))
    finally:
        connection.close()


# -- the record and the file --------------------------------------------------------------------------------------


def test_nothing_is_started_or_made_before_there_is_something_to_write(path: Path, live: Callable[..., Life]) -> None:
    life = live()
    assert not life.outbox.pending
    assert life.journal.as_dict() == {"rows": 0, "restored": 0, "failures": 0}
    assert not path.exists()
    assert THREAD_NAME not in {thread.name for thread in threading.enumerate()}


def test_what_one_life_has_recorded_is_told_by_the_next(path: Path, live: Callable[..., Life]) -> None:
    first = live()
    first.outbox.record([b"magnus:t:k", b"magnus:t:l"])
    first.outbox.record_prefix(b"magnus:u:")
    first.outbox.record_tags([b"magnus!tag:x"])
    first.crash()
    second = live()
    # Until it has been read, it may be about anything.
    assert second.outbox.pending
    assert second.outbox.covers(b"magnus:other:k")
    missed = second.read()
    assert (set(missed.names), set(missed.prefixes), set(missed.tags)) == (
        {b"magnus:t:k", b"magnus:t:l"},
        {b"magnus:u:"},
        {b"magnus!tag:x"},
    )
    assert not second.outbox.covers(b"magnus:other:k")
    assert second.journal.as_dict()["restored"] == 4
    second.replay()
    assert held(path) == set()
    assert second.journal.as_dict()["rows"] == 0


def test_what_was_overwritten_or_told_leaves_the_file(path: Path, live: Callable[..., Life]) -> None:
    life = live()
    position = life.outbox.record([b"magnus:t:k", b"magnus:t:l"])
    life.outbox.overwritten(b"magnus:t:k", position)
    life.write()
    assert held(path) == {("names", b"magnus:t:l")}
    life.outbox.acknowledge(life.outbox.take())
    life.write()
    assert held(path) == set()


def test_a_row_that_was_recorded_again_is_not_deleted_by_who_told_the_first(
    path: Path, live: Callable[..., Life]
) -> None:
    """Rows go by their ids: what came after they were read is somebody else's duty."""
    first, second = live(), live()
    first.outbox.record([b"magnus:t:k"])
    first.write()
    second.outbox.mark_unread()
    told = second.read()
    first.outbox.record([b"magnus:t:k"])
    first.write()
    second.outbox.acknowledge(told)
    second.write()
    assert held(path) == {("names", b"magnus:t:k")}
    first.replay()
    assert held(path) == set()


def test_caches_of_other_servers_share_a_file(path: Path, live: Callable[..., Life]) -> None:
    here, there = live(), live(cache="redis://elsewhere:6379/0 magnus")
    here.outbox.record([b"magnus:t:k"])
    here.crash()
    there.outbox.mark_unread()
    assert not any(there.read())
    assert held(path) == {("names", b"magnus:t:k")}


def test_what_waits_for_another_address_of_this_prefix_is_named(path: Path, live: Callable[..., Life]) -> None:
    """It may be another name of the same server, or another server: its rows stay, and somebody has to look."""
    alias, quiet = "redis://localhost:6379/0 magnus", "redis://there:6379/0 other-magnus"
    for cache in (alias, quiet):
        earlier = live(cache=cache)
        earlier.outbox.record([b"magnus:t:k"])
        earlier.crash()
    life = live()
    for _ in range(3):
        life.outbox.mark_unread()
        assert not any(life.read())
    (said,) = life.warnings
    assert "invalidations wait for redis://localhost:6379/0; this process uses redis://there:6379/0 and" in said
    same = live(cache=alias)
    same.replay()
    assert not same.warnings


def test_too_many_names_become_namespaces_and_too_many_of_those_everything(
    path: Path, live: Callable[..., Life]
) -> None:
    life = live(most_names=3, most_scopes=2)
    life.outbox.record([b"magnus:t:%d" % number for number in range(5)])
    life.write()
    assert held(path) == {("prefixes", b"magnus:t:")}
    for namespace in (b"magnus:u:", b"magnus:v:"):
        life.outbox.record_prefix(namespace)
    life.write()
    assert held(path) == {("prefixes", b"magnus:")}


def test_what_many_processes_leave_behind_is_bounded_too(path: Path, live: Callable[..., Life]) -> None:
    for process in range(4):
        life = live(most_names=5, most_scopes=3)
        life.outbox.record([b"magnus:t%d:%d" % (process % 2, 10 * process + number) for number in range(4)])
        life.outbox.record_tags([b"magnus!tag:%d" % process])
        life.crash()
        assert len([kind for kind, _ in held(path) if kind == "names"]) <= 5
        assert len([kind for kind, _ in held(path) if kind != "names"]) <= 6
    last = live(most_names=5, most_scopes=3)
    last.read()
    for process in range(4):
        assert last.outbox.covers(b"magnus:t%d:%d" % (process % 2, 10 * process), [b"magnus!tag:%d" % process])
        assert last.outbox.covers(b"magnus:other:k", [b"magnus!tag:%d" % process])


def test_ten_thousand_rows_are_read_without_holding_up_the_loop(live: Callable[..., Life]) -> None:
    """Invariant 10."""
    first = live()
    first.outbox.record([b"magnus:t:%d" % number for number in range(10_000)])
    first.crash()
    second, longest = live(), 0.0

    async def main() -> None:
        nonlocal longest
        reading = asyncio.create_task(second.journal.read())
        while not reading.done():
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)

    # Nor is what has piled up in this process to be counted, which would be collected in between.
    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()
    assert len(second.outbox.take().names) == 10_000
    # The loop's own time: what others do with the machine is not counted.
    assert longest < 0.01


def test_the_file_is_for_this_user_alone(path: Path, live: Callable[..., Life]) -> None:
    life = live()
    life.outbox.record([b"magnus:t:k"])
    life.write()
    files = list(path.parent.glob("recovery.db*"))
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


OTHER: Final = """
import sys
from pathlib import Path
from magnus_cache._engine.outage.journal_file import JournalFile
file = JournalFile(Path(sys.argv[1]), "redis://elsewhere:6379/0 magnus", b"magnus:")
file.change([("names", b"magnus:t:other")], ())
file.close()
"""


def test_two_caches_of_one_process_keep_others_from_removing_the_file_in_use(
    path: Path, live: Callable[..., Life]
) -> None:
    """POSIX locks are the process's: whoever closes a descriptor of the file lets go of all connections' locks."""
    first = live()
    first.outbox.record([b"magnus:t:k"])
    first.write()
    second = live(cache="redis://there:6379/0 second")
    second.outbox.record([b"magnus:t:k"])
    second.write()
    beside = path.with_name(f"{path.name}-wal").stat().st_ino
    output_of("-c", OTHER, str(path))
    assert path.with_name(f"{path.name}-wal").stat().st_ino == beside
    first.outbox.record([b"magnus:t:late"])
    first.write()
    assert {name for _, name in held(path)} == {b"magnus:t:k", b"magnus:t:other", b"magnus:t:late"}


# -- files that cannot be used ------------------------------------------------------------------------------------


def foreign_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (id INTEGER)")
    connection.close()


def later_version(path: Path) -> None:
    life = Life(path)
    life.outbox.record([b"magnus:t:k"])
    life.crash()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def torn(path: Path) -> None:
    life = Life(path)
    life.outbox.record([b"magnus:t:%d" % number for number in range(1000)])
    life.crash()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(b"no database at all" * 100), foreign_database, later_version, torn]
)
def test_a_file_that_cannot_be_read_is_moved_aside_and_everything_is_distrusted(
    path: Path, live: Callable[..., Life], spoil: Callable[[Path], None]
) -> None:
    spoil(path)
    before = path.read_bytes()
    life = live()
    assert set(life.read().prefixes) == {ROOT}
    assert "moved to recovery.db.damaged-1" in life.warnings[0]
    assert path.with_name("recovery.db.damaged-1").read_bytes() == before
    life.replay()
    life.crash()
    # Every other cache that used the file is told as well, once.
    for cache, expected in ((CACHE, set[bytes]()), ("redis://elsewhere:6379/0 magnus", {ROOT})):
        other = live(cache=cache)
        assert set(other.read().prefixes) == expected
        other.replay()


def test_a_file_that_is_found_damaged_while_writing_is_replaced(path: Path, live: Callable[..., Life]) -> None:
    foreign_database(path)
    life = live()
    life.outbox.record([b"magnus:t:k"])
    life.write()
    assert ("names", b"magnus:t:k") in held(path)
    assert set(life.read().prefixes) == {ROOT}


def test_a_damaged_file_that_cannot_be_moved_is_told_once(
    path: Path, live: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign_database(path)
    life = live()

    def refuse(_: JournalFile) -> None:
        raise PermissionError("the folder is read-only")

    monkeypatch.setattr(JournalFile, "_put_aside", refuse)
    assert set(life.read().prefixes) == {ROOT}
    life.outbox.acknowledge(life.outbox.take())
    for _ in range(2):
        life.outbox.mark_unread()
        assert not any(life.read())


def test_a_file_that_is_removed_in_use_is_written_anew(path: Path, live: Callable[..., Life]) -> None:
    life = live()
    life.outbox.record([b"magnus:t:k"])
    life.write()
    for file in path.parent.glob("recovery.db*"):
        file.unlink()
    life.outbox.record([b"magnus:t:l"])
    life.write()
    assert held(path) == {("names", b"magnus:t:k"), ("names", b"magnus:t:l")}


@pytest.mark.parametrize(
    ("column", "content"),
    [
        ("name", b"gibberish"),
        ("name", b"magnus:n\xf3:k"),
        ("kind", "gibberish"),
        ("kind", b"\xff"),
        # Told as a tag, it would be overwritten by an epoch.
        ("kind", "tags"),
    ],
)
def test_rows_that_somebody_has_edited_count_as_everything(
    path: Path, live: Callable[..., Life], column: str, content: Any
) -> None:
    first = live()
    first.outbox.record([b"magnus:t:k"])
    first.crash()
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE missed SET {column} = CAST(? AS TEXT)", (content,))
    connection.commit()
    connection.close()
    second = live()
    missed = second.read()
    assert (set(missed.names), set(missed.prefixes), set(missed.tags)) == (set(), {ROOT}, set())
    assert "cannot be read" in second.warnings[0]
    second.replay()
    assert held(path) == set()
    second.crash()
    assert not any(live().read())


def test_while_the_disk_refuses_memory_is_all_there_is_and_then_it_is_written_anew(
    path: Path, live: Callable[..., Life]
) -> None:
    life = live()
    life.outbox.record([b"magnus:t:a"])
    life.write()
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    life.outbox.record([b"magnus:t:b"])
    wait_until(lambda: life.warnings)
    assert "invalidations of an outage are kept in memory only" in life.warnings[0]
    assert life.outbox.covers(b"magnus:t:b")
    blocker.execute("ROLLBACK")
    blocker.close()
    life.outbox.record([b"magnus:t:c"])
    life.write()
    assert {name for _, name in held(path)} == {b"magnus:t:a", b"magnus:t:b", b"magnus:t:c"}


def test_what_could_not_be_written_as_the_file_could_not_be_opened_is_written_when_it_can(
    path: Path, live: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork closes the file; the process may be out of descriptors when it is to be opened again."""
    monkeypatch.setattr(journal, "_RETRY", 0.05)
    life = live()
    life.outbox.record([b"magnus:t:a"])
    life.write()
    life.journal.before_fork()
    life.journal.after_fork_in_parent()
    with monkeypatch.context() as patch:

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        patch.setattr(JournalFile, "_connected", refuse)
        life.outbox.record([b"magnus:t:k"])
        life.write()
        assert life.journal.as_dict()["failures"] > 0
    # Without anything else to write.
    wait_until(lambda: {name for _, name in held(path)} == {b"magnus:t:a", b"magnus:t:k"})
    life.outbox.record([b"magnus:t:b"])
    life.write()
    assert {name for _, name in held(path)} == {b"magnus:t:a", b"magnus:t:k", b"magnus:t:b"}


def test_closing_does_not_wait_for_who_keeps_the_file_locked(path: Path, live: Callable[..., Life]) -> None:
    life = live()
    life.outbox.record([b"magnus:t:first"])
    life.write()
    blocker = sqlite3.connect(path, isolation_level=None)
    try:
        blocker.execute("BEGIN IMMEDIATE")
        for number in range(3000):
            life.outbox.record([b"magnus:t:%d" % number])
        began = time.monotonic()
        life.journal.close(SECONDS)
        assert time.monotonic() - began < 1.5
        assert THREAD_NAME not in {thread.name for thread in threading.enumerate()}
    finally:
        blocker.close()


def test_what_is_locked_for_a_moment_is_written_before_the_end(path: Path, live: Callable[..., Life]) -> None:
    life = live()
    life.outbox.record([b"magnus:t:first"])
    life.write()
    blocker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    blocker.execute("BEGIN IMMEDIATE")
    letting_go = threading.Timer(0.2, blocker.close)
    letting_go.start()
    try:
        for number in range(3000):
            life.outbox.record([b"magnus:t:%d" % number])
        life.journal.close(SECONDS)
    finally:
        letting_go.join()
    assert life.journal.as_dict()["failures"] == 0
    assert len(held(path)) == 3001


def test_what_waits_for_a_disk_that_hangs_is_bounded(path: Path, live: Callable[..., Life]) -> None:
    """As is the record: what is queued beyond is written with all of it."""
    life = live()
    life.outbox.record([b"magnus:t:first"])
    life.write()
    most = 2 * MOST_NAMES
    with life.journal._busy:
        for number in range(3 * most // 1000):
            # Overwritten at once: the queue grows, the record does not.
            names = [b"magnus:t:%d:%d" % (number, each) for each in range(1000)]
            position = life.outbox.record(names)
            for name in names:
                life.outbox.overwritten(name, position)
        life.outbox.record([b"magnus:t:last"])
        life.outbox.acknowledge(Pending({b"magnus:t:first": 1}, {}, {}))
        assert queued_for_disk(life.journal) < most + 100
    life.write()
    assert held(path) == {("names", b"magnus:t:last")}
    # And it is as before.
    life.outbox.record([b"magnus:t:k"])
    life.write()
    asyncio.run(asyncio.wait_for(life.journal.written(), SECONDS))
    assert held(path) == {("names", b"magnus:t:last"), ("names", b"magnus:t:k")}
    assert life.journal._kept == life.journal._written
    assert disk_is_idle(life.journal)


def test_nobody_waits_longer_than_the_timeout_for_a_disk_that_hangs(path: Path) -> None:
    outbox, said = Outbox(ROOT), list[str]()
    journal = Journal(
        JournalFile(path, CACHE, ROOT), outbox, lambda _, message, _error=None: said.append(message), 0.05
    )

    async def main() -> None:
        for _ in range(20):
            outbox.record([b"magnus:t:k"])
            await journal.written()

    try:
        # Held as by a call of the operating system that does not come back.
        with journal._busy:
            began = time.monotonic()
            asyncio.run(asyncio.wait_for(main(), SECONDS))
            assert time.monotonic() - began < 20 * 0.05
        assert len(said) == 1
        assert "local disk" in said[0]
        assert journal.wait(SECONDS)
        assert held(path) == {("names", b"magnus:t:k")}
    finally:
        journal.close(SECONDS)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_a_journal_of_its_own(path: Path, live: Callable[..., Life]) -> None:
    life = live()
    life.outbox.record([b"magnus:t:parent"])
    life.write()
    around_fork(life.journal)
    child = os.fork()
    if not child:
        signal.alarm(20)
        life.outbox.reset()
        life.journal.reset()
        life.outbox.record([b"magnus:t:child"])
        os._exit(7 if life.journal.wait(SECONDS) else 1)
    life.outbox.record([b"magnus:t:parent 2"])
    life.write()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert {name for _, name in held(path)} == {b"magnus:t:parent", b"magnus:t:child", b"magnus:t:parent 2"}


NAMES = [b"magnus:a:1", b"magnus:a:2", b"magnus:b:1"]
STEPS = st.one_of(
    st.tuples(st.just("record"), st.integers(0, 1), st.sampled_from(NAMES)),
    st.tuples(st.just("prefix"), st.integers(0, 1), st.sampled_from([b"magnus:a:", b"magnus:b:"])),
    st.tuples(st.just("overwrite"), st.integers(0, 1), st.sampled_from(NAMES)),
    st.tuples(
        st.sampled_from(["take", "settle", "read", "crash", "write", "rewrite"]), st.integers(0, 1), st.just(b"")
    ),
)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=25))
def test_nothing_is_ever_lost(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, bytes]]) -> None:
    """Two processes on one path, that may crash at any step: what was recorded is told to Redis, or still known.

    The model is Redis: what each key was last invalidated by, and what it was told since.
    """
    path = tmp_path_factory.mktemp("model") / "recovery.db"
    lives = [Life(path), Life(path)]
    taken: list[tuple[Pending, int] | None] = [None, None]
    untold: dict[bytes, int] = {}
    try:
        for moment, (what, who, name) in enumerate(steps, 1):
            life = lives[who]
            if what == "record":
                life.outbox.record([name])
                untold[name] = moment
                life.write()
            elif what == "prefix":
                life.outbox.record_prefix(name)
                untold |= {each: moment for each in NAMES if each.startswith(name)}
                life.write()
            elif what == "overwrite":
                # A write that Redis has confirmed: whatever it held of the key before is gone.
                life.outbox.overwritten(name, life.outbox.position)
                untold.pop(name, None)
            elif what == "take":
                told = life.read()
                taken[who] = told, moment
                for each in [*untold]:
                    if each in told.names or any(each.startswith(prefix) for prefix in told.prefixes):
                        del untold[each]
            elif what == "settle" and (sent := taken[who]) is not None:
                life.outbox.acknowledge(sent[0])
                taken[who] = None
            elif what == "read":
                life.outbox.mark_unread()
                life.read()
            elif what == "crash":
                life.crash()
                lives[who], taken[who] = Life(path), None
            elif what == "rewrite":
                life.journal._dirty = True
        for life in lives:
            life.crash()
        last = Life(path)
        lives.append(last)
        last.read()
        assert all(last.outbox.covers(each) for each in untold)
    finally:
        for life in lives:
            life.journal.close(SECONDS)


# -- settings ---------------------------------------------------------------------------------------------------------


def test_the_path_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CacheSettings().recovery_path is None
    monkeypatch.setenv("MAGNUS_CACHE_RECOVERY_PATH", "recovery.db")
    # Where it is does not change with the working directory.
    assert CacheSettings().recovery_path == tmp_path / "recovery.db"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CacheSettings(recovery_path="~/r.db").recovery_path == tmp_path / "r.db"


@pytest.mark.parametrize(
    ("place", "problem"), [(".", "it is a folder; name a file in it"), ("none/r.db", "its folder does not exist")]
)
def test_a_path_that_cannot_be_one_is_named(place: str, problem: str) -> None:
    with pytest.raises(CacheSettingsError, match=rf"recovery_path \(MAGNUS_CACHE_RECOVERY_PATH\).*{problem}"):
        CacheSettings(recovery_path=place)


# -- a cache ------------------------------------------------------------------------------------------------------


def away(cache: CacheManager, proxy: Any) -> None:
    """Take Redis away from a cache."""
    proxy.refuse()
    proxy.cut()
    wait_until(lambda: cache.get("t", "unknown") is None and not cache.redis_available)


def test_closing_in_an_outage_keeps_what_has_to_be_told(server: Any, proxy: Any, path: Path) -> None:
    options: dict[str, Any] = {"redis_url": proxy.url, "op_timeout": 0.3, "recovery_path": path}
    with CacheManager(**options) as cache:
        cache.set("t", "k", "old")
        away(cache, proxy)
        cache.delete("t", "k")
        assert held(path) == {("names", b"magnus:t:k")}
        figures = cache.get_stats()
        assert figures["unreplayed"] is True
        assert figures["journal"] == {"rows": 1, "restored": 0, "failures": 0}
    assert held(path) == {("names", b"magnus:t:k")}
    proxy.resume()
    with CacheManager(**options) as cache:
        assert cache.get("t", "k") is None
        wait_until(lambda: held(path) == set())
        assert cache.get_stats()["unreplayed"] is False
        assert cache.get_stats()["journal"]["restored"] == 1


@pytest.mark.anyio
async def test_several_loops_and_threads_write_one_journal(server: Any, proxy: Any, path: Path) -> None:
    async with AsyncCacheManager(redis_url=proxy.url, op_timeout=0.3, recovery_path=path) as cache:
        await cache.set("t", "k", 1)
        await asyncio.to_thread(cache.sync.get, "t", "k")
        proxy.refuse()
        proxy.cut()

        def elsewhere() -> None:
            async def deletes() -> None:
                await asyncio.gather(*(cache.delete("t", f"l{number}") for number in range(10)))

            asyncio.run(deletes())

        await asyncio.gather(
            *(cache.delete("t", f"a{number}") for number in range(10)),
            *(asyncio.to_thread(cache.sync.delete, "t", f"b{number}") for number in range(10)),
            asyncio.to_thread(elsewhere),
        )
        assert {name for _, name in held(path)} == {b"magnus:t:%c%d" % (c, n) for c in b"abl" for n in range(10)}
        proxy.resume()
        await wait_until_async(lambda: cache.redis_available)
        await cache.get("t", "k")
        await wait_until_async(lambda: held(path) == set())


def test_what_a_peer_left_is_read_at_the_next_reconnection(server: Any, proxy: Any, path: Path) -> None:
    """Not at the start alone: what another process could not tell is told by whoever reaches Redis first."""
    with CacheManager(redis_url=proxy.url, op_timeout=0.3, recovery_path=path) as cache:
        cache.set("t", "k", "old")
        away(cache, proxy)
        # A process that cannot reach Redis either, and ends before it can.
        peer = Life(path, f"{cache._state.endpoint.display if cache._state.endpoint else ''} magnus")
        peer.outbox.record([b"magnus:t:k"])
        peer.crash()
        proxy.resume()
        wait_until(lambda: cache.redis_available)
        assert cache.get("t", "k") is None
        wait_until(lambda: held(path) == set())


def test_a_replay_that_fails_for_no_known_reason_distrusts_everything_and_no_reader_hears_of_it(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with CacheManager(redis_url=url) as cache:
        cache.set("t", "k", "old")
        cache.set("u", "k", "old")
        # Nothing that can be told.
        cache._state.outbox.restore("prefixes", [b"magnus:t\xf3:"])
        cache._state.outbox.restore("names", [b"magnus:t:gone"])
        assert cache.get("t", "gone") is None
        wait_until(lambda: any("the replay of missed invalidations failed" in line for line in caplog.messages))
        assert cache.get_or_set("t", "k", lambda: "new") == "new"
        wait_until(lambda: cache.get("u", "k") is None and not cache._state.outbox.pending)
        assert cache.get_or_set("t", "l", lambda: 1) == 1
        assert len([line for line in caplog.messages if "the replay of missed" in line]) == 1


def test_while_a_journal_cannot_be_read_its_process_alone_believes_nothing(
    url: str, raw: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody keeps the file locked, a backup or a browser of databases: that is not the fleet's affair."""
    monkeypatch.setattr(replays, "PAUSE", 0.1)
    with CacheManager(redis_url=url) as healthy:
        healthy.set_many("t", {"k": "there", "l": "there"})
        earlier = Life(path, f"{url} magnus")
        earlier.outbox.record([b"magnus:t:l"])
        earlier.crash()
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("PRAGMA locking_mode = EXCLUSIVE")
        blocker.execute("BEGIN EXCLUSIVE")
        try:
            with CacheManager(redis_url=url, recovery_path=path, op_timeout=0.2) as sick:
                before = raw.get("magnus!epoch")
                assert sick.get("t", "k") is None
                began = time.monotonic()
                for number in range(5):
                    assert sick.get("t", f"m{number}") is None
                    assert sick.get_or_set("t", f"m{number}", lambda: "loaded") == "loaded"
                # Nobody waits for the file any more.
                assert time.monotonic() - began < 1
                assert healthy.get("t", "m0") == "loaded"
                assert healthy.get("t", "k") == "there"
                assert raw.get("magnus!epoch") == before
                assert sick._state.outbox.pending
                assert not any(sick._state.outbox.take())
                blocker.close()
                wait_until(lambda: sick.get("t", "k") == "there")
                wait_until(lambda: healthy.get("t", "l") is None)
                assert raw.get("magnus!epoch") == before
        finally:
            blocker.close()


# -- processes ----------------------------------------------------------------------------------------------------


def call(worker: Worker, method: str, *arguments: Any, blocking: bool = False, **options: Any) -> Any:
    return worker.ask("call", method=method, blocking=blocking, arguments=list(arguments), options=options)


INVALIDATIONS: dict[str, tuple[Any, ...]] = {
    "delete": ("delete", "t", "k"),
    "clear": ("clear", "t"),
    "everything": ("clear", "magnus:*"),
    "tag": ("invalidate_tags", "x"),
    "overwrite": ("set", "t", "k", "new"),
}


@pytest.mark.parametrize("blocking", [False, True], ids=["async", "blocking"])
@pytest.mark.parametrize("what", INVALIDATIONS)
def test_a_process_that_is_killed_in_the_outage_loses_no_invalidation(
    hire: Callable[..., list[Worker]], server: Any, proxy: Any, raw: Any, path: Path, what: str, blocking: bool
) -> None:
    """Invariant 7: killed as soon as its call has returned, and Redis comes back with the old value."""
    with CacheManager(redis_url=server.url) as peer:
        (worker,) = hire(1, proxy.url, server=server.url, op_timeout=0.3, recovery_path=str(path))
        # On a busy machine, Redis may not answer the first attempt in time.
        wait_until(lambda: call(worker, "set", "t", "k", "old", tags=["x"]))
        assert peer.get("t", "k") == "old"
        proxy.refuse()
        proxy.cut()
        method, *arguments = INVALIDATIONS[what]
        call(worker, method, *arguments, blocking=blocking)
        worker.kill()
        assert raw.exists("magnus:t:k")
        proxy.resume()
        with CacheManager(redis_url=proxy.url, recovery_path=path) as successor:
            assert successor.get("t", "k") is None
            wait_until(lambda: peer.get("t", "k") is None)
            assert successor.get_or_set("t", "k", lambda: "newer") == "newer"
            wait_until(lambda: held(path) == set())
        assert peer.get("t", "k") == "newer"


def test_two_processes_on_one_path_are_killed_at_once(
    hire: Callable[..., list[Worker]], server: Any, proxy: Any, raw: Any, path: Path
) -> None:
    with CacheManager(redis_url=server.url) as peer:
        keys = [f"k{number}" for number in range(40)]
        peer.set_many("t", dict.fromkeys(keys, "old"))
        workers = hire(2, proxy.url, server=server.url, op_timeout=0.3, recovery_path=str(path))
        proxy.refuse()
        proxy.cut()
        futures = [
            worker.send("call", method="delete", blocking=number % 2 == 0, arguments=["t", key], options={})
            for worker, mine in zip(workers, (keys[:25], keys[15:]), strict=True)
            for number, key in enumerate(mine)
        ]
        for future in futures:
            future.result(30)
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
        for worker in workers:
            worker.kill()
        proxy.resume()
        assert raw.exists("magnus:t:k0")
        # The whole fleet starts again, on the same path.
        with (
            CacheManager(redis_url=proxy.url, recovery_path=path) as first,
            CacheManager(redis_url=proxy.url, recovery_path=path) as second,
        ):
            assert first.get_many("t", keys) == {}
            assert second.get_many("t", keys) == {}
            wait_until(lambda: peer.get_many("t", keys) == {})
            wait_until(lambda: held(path) == set())


BROKEN = """
import logging, os, resource, sys
from magnus_cache import CacheManager
logging.basicConfig(level=logging.WARNING)
with CacheManager(redis_url=sys.argv[1], recovery_path=sys.argv[2]) as cache:
    if sys.argv[3] == "full":
        # Every write to a file fails, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    else:
        os.chmod(os.path.dirname(sys.argv[2]), 0o500)
        if os.geteuid() == 0:
            os.seteuid(65534)
    for number in range(10):
        cache.set("t", "k", number)
        assert cache.get("t", "k") == number
        cache.delete("t", "k")
        cache.clear("t")
        cache.invalidate_tags("x")
    assert cache._state.outbox.covers(b"magnus:t:k")
    print(cache.get_stats()["journal"]["failures"] > 0)
"""


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_disk_that_refuses_is_told_once_and_callers_go_on(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{probe.getsockname()[1]}/0"
    done = run_python("-c", BROKEN, url, str(folder / "r.db"), how)
    folder.chmod(0o700)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
    lines = [line for line in done.stderr.splitlines() if "recovery journal" in line]
    assert len(lines) == 1
    assert "kept in memory only" in lines[0]
