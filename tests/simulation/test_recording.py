"""Recordings: what is in the files and what is not, in every process, whatever happens to it."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

import pytest

from magnus_cache import (
    AsyncCacheManager,
    CacheArgumentError,
    CacheManager,
    CacheSettingsError,
    CacheTypeError,
    Namespace,
    cache_get,
    cache_set,
    get_cache_manager,
    until,
)
from magnus_cache._engine.runtime import access_log, access_writer
from magnus_cache._engine.runtime.access_format import Kind, unpacked_column
from magnus_cache.simulation import RecordingError, simulate
from magnus_cache.simulation.files import Process, read_processes
from magnus_cache.testing import EmbeddedCluster
from tests.support.programs import ROOT, output_of
from tests.support.recordings import blocks_in, files_in
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

SECRET_KEY: Final = "a-key-that-nobody-may-guess"


@pytest.fixture
def cache() -> Any:
    with CacheManager(redis_enabled=False) as cache:
        yield cache


def kinds_of(process: Process) -> list[Kind]:
    return [Kind(row.kind) for row in process.rows]


def the_one(folder: Path) -> Process:
    (process,) = read_processes([folder])
    return process


def use(cache: CacheManager) -> None:
    """Do each kind of thing once."""

    @cache.cached("f", ttl=9, tags="all")
    def load(key: str) -> list[str]:
        return [key]

    load(SECRET_KEY)
    load(SECRET_KEY)
    cache.get("g", SECRET_KEY)
    cache.set("g", SECRET_KEY, "a value", ttl=5)
    cache.get_many("g", [SECRET_KEY, "other"])
    cache.set_many("g", {"other": 1, SECRET_KEY: 2})
    cache.touch("g", "other", 7)
    cache.delete("g", "other")
    cache.invalidate_tags("all")
    cache.clear("g")


def test_everything_that_decides_about_hits_is_recorded(cache: CacheManager, tmp_path: Path) -> None:
    with cache.record_accesses(tmp_path):
        use(cache)
    process = the_one(tmp_path)
    assert kinds_of(process) == [
        Kind.MISS, Kind.LOAD, Kind.STORE, Kind.NEAR_HIT, Kind.MISS, Kind.STORE, Kind.NEAR_HIT, Kind.MISS, Kind.STORE,
        Kind.STORE, Kind.TOUCH, Kind.DELETE, Kind.TAGS, Kind.CLEAR,
    ]  # fmt: skip
    function, plain = process.sources.values()
    assert (function.namespace, plain.namespace, plain.function) == ("f", "g", None)
    assert function.function is not None
    assert function.function.endswith("load")
    stored = [row.detail for row in process.rows if row.kind == Kind.STORE]
    assert [detail[0] for detail in stored] == [9.0, 5.0, 300.0, 300.0]
    assert all(detail[1] > 0 for detail in stored)
    (touched,) = [row.detail for row in process.rows if row.kind == Kind.TOUCH]
    assert touched == 7


async def test_an_async_cache_is_recorded_through_redis(url: str, tmp_path: Path) -> None:
    async with AsyncCacheManager(redis_url=url) as cache, cache.record_accesses(tmp_path) as recording:
        assert await cache.set_many("g", {"a": 1, "b": 2})
        assert await cache.get_many("g", ["a", "c"]) == {"a": 1}
        assert await cache.get(Namespace("g", l1=False), "b") == 2
        assert await cache.get_or_set_many("g", ["a", "d"], lambda keys: dict.fromkeys(keys, 4)) == {"a": 1, "d": 4}
        assert not recording.closed
    assert recording.closed
    process = the_one(tmp_path)
    kinds = kinds_of(process)
    assert kinds.count(Kind.STORE) == 3
    assert kinds.count(Kind.MISS) == 2
    assert {Kind.NEAR_HIT, Kind.FAR_HIT} <= set(kinds)
    # Redis' time: seconds of the epoch.
    assert process.rows[0].at > 1.6e15


def test_no_key_and_no_value_is_in_a_file(cache: CacheManager, tmp_path: Path) -> None:
    with cache.record_accesses(tmp_path):
        use(cache)
    for file in files_in(tmp_path):
        assert file.stat().st_mode & 0o077 == 0
        text = repr(blocks_in(file))
        assert SECRET_KEY not in text
        assert "a value" not in text
        assert "all" not in text.replace("local", "")


def test_two_recordings_have_different_hashes_of_one_key(tmp_path: Path) -> None:
    """So no one can check a guess: the secret is in no file, and gone."""
    keys: list[int | None] = []
    for name in ("one", "two"):
        with CacheManager(redis_enabled=False) as cache, cache.record_accesses(tmp_path / name):
            cache.get("t", SECRET_KEY)
        (row,) = the_one(tmp_path / name).rows
        keys.append(row.key)
    assert keys[0] != keys[1]


def test_sealed_values_leave_no_hash(tmp_path: Path) -> None:
    seal_keys = f"k:{'A' * 43}="
    with CacheManager(redis_enabled=False, seal_keys=seal_keys) as cache, cache.record_accesses(tmp_path):
        cache.set(Namespace("s", seal=True), "k", "a value")
        cache.set("t", "k", "a value")
    sealed, plain = [row.detail for row in the_one(tmp_path).rows if row.kind == Kind.STORE]
    assert sealed[5] == 0
    assert plain[5] != 0


def test_the_processes_of_a_fleet_hash_alike(url: str, tmp_path: Path) -> None:
    caches = [CacheManager(redis_url=url) for _ in range(2)]
    for cache in caches:
        cache.record_accesses(tmp_path)
        cache.set("t", "k", 1)
        assert cache.get("t", "k") == 1
    for cache in caches:
        cache.close()
    one, other = read_processes([tmp_path])
    assert one.header["group"] == other.header["group"]
    assert {row.key for row in one.rows} == {row.key for row in other.rows}
    # In Redis' time: microseconds of the epoch.
    assert min(row.at for process in (one, other) for row in process.rows) > 1.6e15


def test_a_fleet_on_a_cluster_is_recorded(cluster: EmbeddedCluster, tmp_path: Path) -> None:
    caches = [CacheManager(redis_url=cluster.url, redis_cluster=True) for _ in range(2)]
    for cache in caches:
        cache.record_accesses(tmp_path)
    functions = [cache.cached("t", key="{key}")(lambda key: key) for cache in caches]
    for number in range(60):
        functions[number % 2](number // 2 % 10)
    for cache in caches:
        cache.close()
    found = simulate(tmp_path)
    assert found.notes == ()
    assert found.agrees
    assert found.as_recorded.total.loads == found.recorded.loads == 10


def test_a_process_that_finds_redis_away_records_as_a_fleet_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_writer, "_LATEST", 0.0)
    with CacheManager(redis_url="redis://127.0.0.1:1/0") as cache, cache.record_accesses(tmp_path):
        cache.set("t", "k", 1)
        cache.get("t", "k")
    assert Kind.NEAR_HIT in kinds_of(the_one(tmp_path))


def test_a_share_keeps_all_accesses_of_some_keys(cache: CacheManager, tmp_path: Path) -> None:
    with cache.record_accesses(tmp_path, share=0.3):
        for key in range(400):
            for _ in range(3):
                cache.get("t", key)
    process = the_one(tmp_path)
    counts: dict[int | None, int] = {}
    for row in process.rows:
        counts[row.key] = counts.get(row.key, 0) + 1
    assert set(counts.values()) == {3}
    assert 80 <= len(counts) <= 160
    # The others are counted, so that the hit rate of all keys is known.
    assert [sum(counts) for counts in process.totals.values()] == [1_200]


def test_the_oldest_part_of_a_long_recording_goes(
    cache: CacheManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_writer, "_MOST_ROWS", 500)
    size = 2**16
    with cache.record_accesses(tmp_path, max_bytes=size):
        for number in range(24):
            cache.get_many("t", [f"{number} {key}" for key in range(1_000)])
    assert sum(file.stat().st_size for file in files_in(tmp_path)) < 1.5 * size
    assert len(files_in(tmp_path)) == 8
    process = the_one(tmp_path)
    assert process.sources  # each file has them
    assert process.header["number"] > 1
    assert 0 < len(process.rows) < 24_000


def test_a_file_that_is_cut_short_is_read_up_to_its_last_whole_block(
    cache: CacheManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_writer, "_MOST_ROWS", 10)
    with cache.record_accesses(tmp_path):
        for key in range(35):
            cache.get("t", key)
    (file,) = files_in(tmp_path)
    whole = file.read_bytes()
    rows = [len(process.rows) for process in read_processes([file])]
    assert rows == [35]
    for lost in (1, 30):
        file.write_bytes(whole[:-lost])
        process = the_one(tmp_path)
        assert len(process.rows) == 30
        assert process.cut == 1
        assert "end within a block" in simulate(tmp_path).notes[0]


def test_zeros_at_the_end_are_a_file_that_is_cut_short(cache: CacheManager, tmp_path: Path) -> None:
    """As some file systems leave it when the power fails."""
    with cache.record_accesses(tmp_path):
        cache.get("t", 1)
    (file,) = files_in(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole + bytes(5_000))
    assert the_one(tmp_path).cut == 1
    file.write_bytes(whole + bytes(5_000) + b"more")
    with pytest.raises(RecordingError, match="damaged"):
        read_processes([tmp_path])


def test_copies_of_a_file_count_once(cache: CacheManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that was made while the file was written: the longest counts."""
    monkeypatch.setattr(access_writer, "_MOST_ROWS", 10)
    folder, copies = tmp_path / "folder", tmp_path / "copies"
    with cache.record_accesses(folder):
        for key in range(35):
            cache.get("t", key)
    (file,) = files_in(folder)
    copies.mkdir()
    (copies / file.name).write_bytes(file.read_bytes()[:-10])
    monkeypatch.chdir(tmp_path)
    for given in ([folder, "folder"], [folder, copies], [copies, folder]):
        (process,) = read_processes(given)
        assert (len(process.rows), process.cut) == (35, 0)


def test_calls_with_a_policy_of_their_own_are_one_source(cache: CacheManager, tmp_path: Path) -> None:
    """Each makes new objects for it, and a file has numbers for 65,535 sources."""
    with cache.record_accesses(tmp_path):
        for _ in range(20):
            cache.get_or_set("t", "k", lambda: 1, 60, grace="1h")
            cache.get_or_set(Namespace("u", ttl=5), "k", lambda: 1)
    assert [source.namespace for source in the_one(tmp_path).sources.values()] == ["t", "u"]


@pytest.mark.parametrize("kind", ["alone", "redis"])
def test_values_that_a_calendar_ends_are_recorded(url: str, tmp_path: Path, kind: str) -> None:
    noon = until("12:00", tz="Asia/Tokyo")
    with (
        CacheManager(redis_enabled=False) if kind == "alone" else CacheManager(redis_url=url) as cache,
        cache.record_accesses(tmp_path),
    ):
        cache.get_or_set(Namespace("t", ttl=noon), "a", lambda: 1)
        cache.set("t", "b", 1, ttl=noon)
        cache.touch("t", "b", noon)
        cache.get_or_set_many("t", ["c"], lambda keys: dict.fromkeys(keys, 1), noon)
        cache.incr("t", "d", ttl=noon)
    process = the_one(tmp_path)
    assert process.sources[1].policy["ttl"] == "until('12:00', tz='Asia/Tokyo')"
    assert kinds_of(process).count(Kind.STORE) == 4
    assert all(0 <= row.detail[0] <= 86_400 for row in process.rows if row.kind == Kind.STORE)
    assert simulate(tmp_path).agrees


KILLED: Final = """
import os, sys, time
from magnus_cache import CacheManager
cache, folder = CacheManager(), sys.argv[1]
load = cache.cached("t", key="{key}")(lambda key: key)
while sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)) < 400:
    load(1)
    load(2)
    time.sleep(0.01)
print("recorded", flush=True)
while True:
    load(1)
"""


def test_a_killed_process_leaves_what_it_had_written(url: str, tmp_path: Path) -> None:
    """The files of two processes are merged; one of them was killed in the midst of its work."""
    variables = {"MAGNUS_CACHE_RECORD": str(tmp_path), "REDIS_URL": url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "recorded\n"
        finally:
            program.kill()
    with CacheManager(redis_url=url) as cache, cache.record_accesses(tmp_path):
        load = cache.cached("t", key="{key}")(lambda key: key)
        assert [load(1), load(2), load(1)] == [1, 2, 1]
    found = simulate(tmp_path)
    assert found.processes == 2
    assert found.agrees


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_file_of_its_own(cache: CacheManager, tmp_path: Path) -> None:
    with cache.record_accesses(tmp_path) as recording:
        cache.get("t", "of the parent")
        child = os.fork()
        if not child:
            cache.get("t", "of the child")
            recording.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert sorted(len(process.rows) for process in read_processes([tmp_path])) == [1, 1]
    assert len(files_in(tmp_path)) == 2


def test_a_program_that_ends_without_closing_has_recorded_all(tmp_path: Path) -> None:
    script = "from magnus_cache import cache_get, cache_set; cache_set('t', 'k', 1); cache_get('t', 'k')"
    printed = output_of(
        "-W", "ignore", "-c", script, MAGNUS_CACHE_RECORD=str(tmp_path), MAGNUS_CACHE_REDIS_ENABLED="false"
    )
    assert printed == ""
    assert kinds_of(the_one(tmp_path)) == [Kind.STORE, Kind.NEAR_HIT]


def test_the_process_wide_cache_is_recorded_from_its_first_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGNUS_CACHE_RECORD", str(tmp_path))
    monkeypatch.setenv("MAGNUS_CACHE_REDIS_ENABLED", "false")
    get_cache_manager().close()
    try:
        cache_set("t", "k", 1)
        assert cache_get("t", "k") == 1
    finally:
        get_cache_manager().close()
    assert [kind for each in read_processes([tmp_path]) for kind in kinds_of(each)] == [Kind.STORE, Kind.NEAR_HIT]


def test_nothing_of_it_is_left_when_it_has_ended(cache: CacheManager, tmp_path: Path) -> None:
    """Hits take the fast path again, there is no thread, and nothing more is written."""
    load = cache.cached("t", key="{key}")(lambda key: key)
    state = cache._state
    with cache.record_accesses(tmp_path):
        load(1)
        assert state.special
        assert state.observers.active
    assert not state.special
    assert not state.observers.active
    assert "magnus-cache-accesses" not in {thread.name for thread in threading.enumerate()}
    size = files_in(tmp_path)[0].stat().st_size
    load(1)
    assert files_in(tmp_path)[0].stat().st_size == size


async def test_no_file_is_written_on_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writers = set[int]()
    pack = access_writer.packed_block
    monkeypatch.setattr(
        access_writer, "packed_block", lambda fields: (writers.add(threading.get_ident()), pack(fields))[1]
    )
    async with AsyncCacheManager(redis_enabled=False) as cache, cache.record_accesses(tmp_path):
        await asyncio.gather(*(cache.get("t", key) for key in range(50)))
    assert writers
    assert threading.get_ident() not in writers


def test_what_comes_faster_than_it_is_written_is_counted_as_lost(
    cache: CacheManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "_MOST", 20)
    with cache.record_accesses(tmp_path):
        for key in range(100):
            cache.get("t", key)
    process = the_one(tmp_path)
    assert len(process.rows) + process.lost == 100
    assert process.lost > 0
    assert "are missing" in " ".join(simulate(tmp_path).notes)


def test_a_full_disk_ends_the_recording_and_nothing_else(
    cache: CacheManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(access_writer, "packed_block", full)
    with cache.record_accesses(tmp_path):
        cache.set("t", "k", 1)
        assert cache.get("t", "k") == 1
    assert "No space left on device" in caplog.text
    assert str(tmp_path) in caplog.text


def test_one_cache_has_one_recording(cache: CacheManager, tmp_path: Path) -> None:
    with cache.record_accesses(tmp_path / "one") as first, pytest.raises(CacheArgumentError, match="being recorded"):
        cache.record_accesses(tmp_path / "two")
    first.close()
    with cache.record_accesses(tmp_path / "two") as second:
        first.close()
        assert not second.closed
    assert "closed" in repr(second)


def test_the_end_of_the_cache_ends_its_recording(tmp_path: Path) -> None:
    cache = CacheManager(redis_enabled=False)
    recording = cache.record_accesses(tmp_path)
    cache.get("t", "k")
    cache.close()
    assert recording.closed
    assert kinds_of(the_one(tmp_path)) == [Kind.MISS]


async def test_a_recording_of_an_async_cache_ends_with_it(tmp_path: Path) -> None:
    cache = AsyncCacheManager(redis_enabled=False)
    recording = cache.record_accesses(tmp_path)
    await cache.get("t", "k")
    await cache.aclose()
    assert recording.closed
    await wait_until_async(lambda: files_in(tmp_path))
    assert kinds_of(the_one(tmp_path)) == [Kind.MISS]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"share": 0}, "share: a share of the keys is above 0"), ({"share": 1.5}, "above 0 and up to 1"),
        ({"share": "x"}, "above 0 and up to 1"), ({"max_bytes": 5}, "max_bytes: 65,536 bytes or more"),
    ],
    ids=["none", "more than all", "text", "small"],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(
    cache: CacheManager, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(CacheArgumentError, match=message):
        cache.record_accesses(tmp_path, **more)
    assert not cache._state.special


def test_a_folder_that_cannot_be_used_is_refused(cache: CacheManager, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CacheArgumentError, match="it is a file; name a folder"):
        cache.record_accesses(file)
    path: Any = 5
    with pytest.raises(CacheTypeError, match="path: a folder is needed, not int"):
        cache.record_accesses(path)
    with pytest.raises(CacheSettingsError, match=r"record \(MAGNUS_CACHE_RECORD\): it is not a folder"):
        CacheManager(record=file)
    with pytest.raises(CacheSettingsError, match="record_share"):
        CacheManager(record_share=0)


def test_files_that_are_no_recordings_are_refused(cache: CacheManager, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="there is no such file or folder"):
        simulate(tmp_path / "none")
    with pytest.raises(RecordingError, match=r"there are no recordings \(\*\.accesses\)"):
        simulate(tmp_path)
    with cache.record_accesses(tmp_path / "empty"):
        pass
    with pytest.raises(RecordingError, match="there are no recordings"):
        simulate(tmp_path / "empty")
    for name, raw, message in (
        ("text", b"hello, this is a text", "no recording of accesses, or it is damaged"),
        ("nothing", b"", "nothing was recorded in these files"),
        ("other", access_writer.packed_block({"format": "x"}), "this is no recording"),
        (
            "newer", access_writer.packed_block({"format": "magnus-cache accesses", "version": 2}),
            "has version 2, and this program reads version 1",
        ),
        ("part", access_writer.packed_block({"format": "magnus-cache accesses", "version": 1}), "the header lacks"),
        ("list", access_writer.packed_block([1]), "this is no recording"),  # type: ignore[arg-type]
    ):  # fmt: skip
        file = tmp_path / f"{name}.accesses"
        file.write_bytes(raw)
        with pytest.raises(RecordingError, match=message):
            simulate(file)


def test_a_damaged_block_is_refused(cache: CacheManager, tmp_path: Path) -> None:
    with cache.record_accesses(tmp_path):
        cache.get("t", "k")
    (file,) = files_in(tmp_path)
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 0xFF
    file.write_bytes(raw)
    with pytest.raises(RecordingError, match="block 2 is damaged; leave this file out"):
        simulate(tmp_path)


def test_columns_are_read_as_they_were_written() -> None:
    for kind in ("I", "H", "Q"):
        raw = access_writer.packed_column(kind, [0, 1, 65_535])  # type: ignore[arg-type]  # one of three
        assert raw[:1] == b"\0"
        assert list(unpacked_column(kind, raw)) == [0, 1, 65_535]  # type: ignore[arg-type]  # likewise
