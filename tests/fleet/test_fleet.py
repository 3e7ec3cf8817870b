"""Many real processes, one Redis: one load per key, invalidations that reach everybody, and a holder that dies.

Processes are driven through their pipes; what they loaded is counted in Redis by a plain client, beside the cache.
Moments are of the monotonic clock, which the processes of one machine share.
"""

import bisect
import collections
import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import redis

from magnus_cache import CacheManager
from magnus_cache.testing import Proxy
from tests.support.fleet import PATIENCE, Worker
from tests.support.fleet_worker import HOLDERS, LOADS, Event, Read
from tests.support.wait import lapse, nothing_happens_for, wait_until

pytestmark = pytest.mark.timeout(120)

GATE = "test:gate"

BEATS = 3
"""Heartbeats in the time of `max_staleness`, as designed."""

NOT_OURS = frozenset(
    {"incr", "incrby", "rpush", "blpop", "lpop", "info", "client", "lrange", "ping", "hello", "select"}
)
"""Commands that only the tests' own clients send."""


def results(futures: list[Future[Any]]) -> list[Any]:
    deadline = time.monotonic() + PATIENCE
    return [future.result(max(0.0, deadline - time.monotonic())) for future in futures]


def loads(raw: redis.Redis, key: str) -> int:
    # Not GET, which counts among the commands of the cache.
    count: Any = raw.incrby(f"{LOADS}{key}", 0)
    return int(count)


def holders(raw: redis.Redis, key: str) -> list[int]:
    """Return the process ids of those that loaded a key, in that order."""
    pids: Any = raw.lrange(f"{HOLDERS}{key}", 0, -1)
    return [int(pid) for pid in pids]


def commands(raw: redis.Redis) -> dict[str, int]:
    """Return how often the server has run each command, within scripts too, since it was reset."""
    counts: dict[str, int] = {}
    stats: Any = raw.info("commandstats")
    for name, figures in stats.items():
        command = name.removeprefix("cmdstat_").partition("|")[0]
        if command not in NOT_OURS:
            counts[command] = counts.get(command, 0) + int(figures["calls"])
    return counts


def since(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}


def missed(workers: list[Worker], namespace: str = "t") -> int:
    """Return how many callers of these processes have not found their value."""
    return sum(misses for misses, _ in results([worker.send("waiting", namespace=namespace) for worker in workers]))


def settled(raw: redis.Redis) -> dict[str, int]:
    """Return the commands so far, when no more come for a moment; if they never cease, the latest."""
    deadline = time.monotonic() + 3
    counts = commands(raw)
    while time.monotonic() < deadline:
        nothing_happens_for(0.1)
        before, counts = counts, commands(raw)
        # A heartbeat may come at any time.
        if not since(before, counts).keys() - {"time"}:
            break
    return counts


def crowd_at_the_gate(worker: Worker, key: str, raw: redis.Redis) -> Future[Any]:
    """Return the answer of 20 callers in a process that wait for a load that waits for its gate."""
    _, joined = worker.ask("waiting", namespace="t")
    early = worker.send("crowd", namespace="t", key=key, tasks=10, threads=10, gate=f"{GATE}:{key}")
    # All but the one that leads. Only to have missed is not enough: a thread may be on its way from there to here.
    wait_until(lambda: worker.ask("waiting", namespace="t")[1] == joined + 19 and loads(raw, key) == 1, PATIENCE)
    return early


def opened(early: Future[Any], key: str, raw: redis.Redis) -> list[int]:
    """Open the gate and return which load each of these callers got the value of."""
    assert not early.done()
    raw.rpush(f"{GATE}:{key}", "open")
    answer = early.result(PATIENCE)
    assert answer["errors"] == []
    return [value["load"] for value in answer["values"]]


def everywhere(workers: list[Worker], url: str, key: str) -> list[Any]:
    """Return what each face of each process, and a process that has just begun, has of a key."""
    with CacheManager(redis_url=url) as another:
        found = [another.get("t", key)]
    for worker in workers:
        # An answer that was asked for now: all announcements are known.
        worker.ask("stats")
        found += [worker.ask("get", namespace="t", key=key), worker.ask("get_blocking", namespace="t", key=key)]
    return found


# -- one load ---------------------------------------------------------------------------------------------------


def test_a_fleet_loads_a_cold_key_once_and_nobody_polls(
    hire: Callable[..., list[Worker]], url: str, raw: redis.Redis
) -> None:
    """Invariant 3: 800 callers in 8 processes, one load; who waits is woken, and costs nothing."""
    # However long the machine takes, no lease needs to be renewed meanwhile, which would wake all who wait.
    fleet = hire(8, url, lease=60)
    # Three processes of tasks, three of threads, two of both.
    crowds = [(100, 0)] * 3 + [(0, 100)] * 3 + [(50, 50)] * 2
    waiters, connections = len(fleet) - 1, len(fleet) * 2
    spent: list[int] = []
    for length in (0.3, 0.9):
        key = f"cold-{length}"
        before, expected = commands(raw), missed(fleet) + 800
        at = time.monotonic() + 0.5
        asked = [
            worker.send("crowd", namespace="t", key=key, tasks=tasks, threads=threads, at=at, gate=GATE)
            for worker, (tasks, threads) in zip(fleet, crowds, strict=True)
        ]

        def all_wait(key: str = key, expected: int = expected) -> bool:
            return missed(fleet) == expected or loads(raw, key) > 1

        # The loader holds the key until its gate opens; by then everybody has looked for it in vain.
        wait_until(all_wait, PATIENCE)
        assert loads(raw, key) == 1, f"loaded by {holders(raw, key)} at a time"
        waiting = settled(raw)
        began = time.monotonic()
        nothing_happens_for(length)
        waited, took = since(waiting, commands(raw)), time.monotonic() - began
        raw.rpush(GATE, "open")
        answers = results(asked)
        total = since(before, settled(raw))

        assert [error for answer in answers for error in answer["errors"]] == []
        values = [value for answer in answers for value in answer["values"]]
        assert loads(raw, key) == 1
        assert values == [{"load": 1, "pid": values[0]["pid"]}] * 800

        # Reads are MGETs. Those of tasks share one; those of threads as many as the system lets run at a time.
        count, looks, beats = sum(total.values()), total.get("mget", 0), total.get("time", 0)
        print(f"\na wait of {took:.2f} s: {count} commands, {count / 800:.3f} for each waiting caller,")
        print(f"{count / waiters:.1f} for each waiting process, {(count - looks) / waiters:.1f} without its reads:")
        print(f"{total}; while all wait: {waited}")
        # It asks for the lease, is woken, and takes the value; what the scripts do counts as well. Heartbeats do not:
        # a busy machine takes longer, and so has more of them.
        assert count - looks - beats <= 18 * waiters
        # Nobody polls: while all wait, the holder keeps its trust alive, and the others fall silent.
        assert waited.keys() <= {"time", "mget", "info"}
        assert waited.get("mget", 0) + waited.get("info", 0) <= 2 * waited.get("time", 0)
        assert waited.get("time", 0) <= BEATS * took + 1 + connections
        spent.append(count - looks - beats)
    # Three times the wait costs nothing more.
    assert spent[1] <= spent[0] + len(fleet)


def test_a_namespace_that_redis_does_not_know_is_no_exception(
    hire: Callable[..., list[Worker]], url: str, raw: redis.Redis
) -> None:
    """Invariant 3: as after a flush or on the first day, the fleet issues and learns the epochs at that moment.

    That clears nothing, and makes nobody load by himself.
    """
    fleet = hire(8, url)
    for number in range(5):
        at = time.monotonic() + 0.2
        asked = [
            worker.send("crowd", namespace=f"new-{number}", key=f"{number}", tasks=50, threads=50, at=at, seconds=0.2)
            for worker in fleet
        ]
        answers = results(asked)
        assert [error for answer in answers for error in answer["errors"]] == []
        counts = collections.Counter(value["load"] for answer in answers for value in answer["values"])
        assert loads(raw, f"{number}") == 1, f"round {number}: callers by the load they got the value of: {counts}"
        assert counts == {1: 800}


def test_a_holder_that_is_killed_costs_one_more_load(
    hire: Callable[..., list[Worker]], url: str, raw: redis.Redis
) -> None:
    """Invariant 3: while the holder lives its lease is renewed; when it dies, one other takes over."""
    lease, margin = 1.0, 3.0
    fleet = hire(4, url, lease=lease)
    expected = missed(fleet) + 160
    asked = {
        # Only the first load is held up.
        worker.pid: worker.send("crowd", namespace="t", key="k", tasks=20, threads=20, seconds=0.05, gate=GATE)
        for worker in fleet
    }
    wait_until(lambda: missed(fleet) == expected or loads(raw, "k") > 1, PATIENCE)
    began, before = time.monotonic(), commands(raw)
    nothing_happens_for(1.5 * lease)
    waited, took = since(before, commands(raw)), time.monotonic() - began
    assert loads(raw, "k") == 1, f"loaded by {holders(raw, 'k')} although the holder lives"
    # Each renewal is a script of three commands, and wakes the others, who ask anew: a script of five. Each is in a
    # transaction, whose beginning and end count as well; and the first renewal finds that the server does not know its
    # script. The rest are heartbeats.
    rounds, beats = took / (lease / 3) + 1, sum(waited.get(name, 0) for name in ("time", "mget"))
    assert sum(waited.values()) - beats <= rounds * (6 + 8 * 3) + 3

    (holder,) = holders(raw, "k")
    os.kill(holder, signal.SIGKILL)
    killed = time.monotonic()
    dead = asked.pop(holder)
    answers = results(list(asked.values()))
    assert time.monotonic() - killed <= lease + margin
    with pytest.raises(ProcessLookupError):
        dead.result(PATIENCE)
    assert [error for answer in answers for error in answer["errors"]] == []
    assert loads(raw, "k") == 2
    _, successor = holders(raw, "k")
    assert successor in asked
    values = [value for answer in answers for value in answer["values"]]
    assert values == [{"load": 2, "pid": successor}] * 120


# -- coherence --------------------------------------------------------------------------------------------------


def stale_reads(events: list[Event], reads: list[Read], bound: float) -> list[str]:
    """Return the reads that saw what had been superseded for longer than the bound when they began."""
    completed: dict[str, list[Event]] = {}
    for event in events:
        completed.setdefault(event[0], []).append(event)
    found = []
    for key, began, ended, seen in reads:
        history = completed.get(key, [])
        index = bisect.bisect_left(history, began - bound, key=lambda event: event[4])
        if index == 0:
            continue
        _, required, what, _, done = history[index - 1]
        if seen is None:
            # One of the deletes: the one that is required, or one that had begun when the read ended.
            good = what == "delete" or any(later[2] == "delete" and later[3] <= ended for later in history[index:])
        else:
            good = seen >= required
        if not good:
            found.append(f"{key}: {seen} instead of {required} or later, {began - done:.3f} s after that")
    return found


def test_the_checker_of_histories_knows_a_stale_read() -> None:
    """What the next test stands on: the checker accepts and refuses what it should."""
    events: list[Event] = [
        ("k", 1, "set", 0.0, 0.1), ("k", 2, "delete", 1.0, 1.1), ("k", 3, "set", 2.0, 2.1), ("k", 5, "set", 3.0, 3.1),
    ]  # fmt: skip
    good: list[Read] = [
        ("k", 0.0, 0.1, None), ("k", 0.7, 0.8, 1), ("k", 1.5, 1.6, 1), ("k", 1.7, 1.8, None), ("k", 2.5, 2.6, None),
        ("k", 2.7, 3.05, 5), ("k", 3.5, 3.6, 3), ("k", 3.7, 3.8, 5), ("other", 9.0, 9.1, None),
    ]  # fmt: skip
    bad: list[Read] = [("k", 0.7, 0.8, None), ("k", 1.7, 1.8, 1), ("k", 2.7, 2.8, None), ("k", 3.7, 3.8, 3)]
    assert stale_reads(events, good, 0.5) == []
    assert len(stale_reads(events, bad, 0.5)) == len(bad)


def test_no_read_is_older_than_the_bound(
    hire: Callable[..., list[Worker]], url: str, raw: redis.Redis, proxy: Proxy
) -> None:
    """Invariants 1 and 5: replies and pushes are late, some by more than the bound; no read is.

    Nor are those of the writer itself, whose two faces write and read through connections of their own. Afterwards
    the near caches equal Redis.
    """
    bound, keys = 0.1, [f"k{number}" for number in range(50)]
    (writer,) = hire(1, url, max_staleness=bound)
    # What is late is late only: nobody is to take Redis for lost.
    (reader,) = hire(1, proxy.url, server=url, max_staleness=bound, op_timeout=10)
    reader.ask("read", namespace="t", keys=keys, tasks=20, pause=0.01, seed=1)
    writer.ask("read", namespace="t", keys=keys, tasks=5, pause=0.01, seed=2)
    writing = writer.send("write", namespace="t", keys=keys, versions=1000, deletes=0.2, pause=0.04, seed=3)
    # Each way. Long enough for many a lapse of trust, and what follows, in each.
    for delay in itertools.cycle((0.002, 0.15, 0.0, 0.15, 0.03, 0.07)):
        proxy.delay(delay)
        with contextlib.suppress(TimeoutError):
            writing.result(0.2 + 6 * delay)
            break
    events: list[Event] = writing.result()
    proxy.delay(0.0)
    # In one more bound the latest versions must be seen.
    lapse(2 * bound)
    reads: list[Read] = reader.ask("stop_reading")
    own: list[Read] = writer.ask("stop_reading")

    assert sum(what == "set" for _, _, what, _, _ in events) == 1000
    # It was the near cache that was put to the test, and by writes in between.
    figures = reader.ask("stats")["namespaces"]["t"]
    assert figures["l1_hits"] > len(reads) / 10
    assert figures["l2_hits"] > 100
    for who, log in (("reader", reads), ("writer", own)):
        stale = stale_reads(events, log, bound)
        assert stale == [], f"{len(stale)} of {len(log)} reads of the {who} are stale"

    last = {key: number for key, number, _, _, _ in events}
    with CacheManager(redis_url=url) as another:
        assert another.get_many("t", keys) == last
    for worker in (reader, reader, writer, writer):
        assert worker.ask("get_many", namespace="t", keys=keys) == last


def test_a_clear_reaches_the_fleet(hire: Callable[..., list[Worker]], url: str, raw: redis.Redis) -> None:
    """Invariants 1, 2 and 8: past the bound nobody sees what was cleared, nor what was loaded meanwhile.

    Readers have it in their near cache; a third process is just loading.
    """
    bound, keys = 0.5, [f"k{number}" for number in range(50)]
    clearer, reader, loader = hire(3, url, max_staleness=bound)
    for namespace in ("t", "beside"):
        clearer.ask("set_many", namespace=namespace, mapping=dict.fromkeys(keys, 1))
        assert reader.ask("get_many", namespace=namespace, keys=keys) == dict.fromkeys(keys, 1)
    reader.ask("read", namespace="t", keys=keys, tasks=10, pause=0.004, seed=1)
    early = crowd_at_the_gate(loader, "slow", raw)
    wait_until(lambda: reader.ask("stats")["namespaces"]["t"]["l1_hits"] > 200, PATIENCE)

    began = time.monotonic()
    cleared = clearer.ask("clear", namespace="t")
    wait_until(lambda: time.monotonic() > cleared + bound)
    # The overtaken load is still on its way: nobody who comes now has to wait for it, or gets it.
    late = [worker.send("crowd", namespace="t", key="slow", tasks=5, threads=5) for worker in (clearer, reader, loader)]
    for answer in results(late):
        assert answer["errors"] == []
        assert [value["load"] for value in answer["values"]] == [2] * 10
    assert opened(early, "slow", raw) == [1] * 20

    assert loads(raw, "slow") == 2
    with CacheManager(redis_url=url) as another:
        assert another.get("t", "slow")["load"] == 2
    for worker in (clearer, reader, loader):
        assert worker.ask("get", namespace="t", key="slow")["load"] == 2
        assert worker.ask("get_blocking", namespace="t", key="slow")["load"] == 2
    reads: list[Read] = reader.ask("stop_reading")
    events: list[Event] = []
    for key in keys:
        events += [(key, 1, "set", 0.0, 0.0), (key, 2, "delete", began, cleared)]
    assert sum(seen == 1 for _, _, _, seen in reads) > 100
    assert stale_reads(events, reads, bound) == []
    for worker in (clearer, reader, loader):
        assert worker.ask("get_many", namespace="t", keys=keys) == {}
        assert worker.ask("get_many", namespace="beside", keys=keys) == dict.fromkeys(keys, 1)


# -- loads that are overtaken -----------------------------------------------------------------------------------


def test_a_load_overtaken_by_a_peers_delete_is_for_earlier_callers_only(
    hire: Callable[..., list[Worker]], url: str, raw: redis.Redis
) -> None:
    """Invariants 1 and 2: it is not joined by who comes later, and never stored."""
    bound = 0.5
    fleet = hire(2, url, max_staleness=bound)
    deleter, loader = fleet

    early = crowd_at_the_gate(loader, "joined", raw)
    deleted = deleter.ask("delete", namespace="t", key="joined")
    # Who comes once the announcement is there gets a new load, while the old one is still on its way.
    late: list[Future[Any]] = []
    deadline = time.monotonic() + 20
    while not any(future.done() for future in late):
        assert time.monotonic() < deadline, "who comes after the delete waits for the overtaken load"
        late.append(loader.send("crowd", namespace="t", key="joined", tasks=1, threads=1))
        lapse(0.05)
    assert opened(early, "joined", raw) == [1] * 20
    for answer in results(late):
        assert answer["errors"] == []
        numbers = {value["load"] for value in answer["values"]}
        assert numbers == {2} or (numbers <= {1, 2} and answer["began"] <= deleted + bound)
    assert loads(raw, "joined") == 2
    assert everywhere(fleet, url, "joined") == [{"load": 2, "pid": loader.pid}] * 5


def test_a_load_overtaken_by_a_peers_delete_is_not_stored(
    hire: Callable[..., list[Worker]], url: str, raw: redis.Redis
) -> None:
    """Invariant 2: neither where nobody came after it, nor over the deleter's own new load."""
    fleet = hire(2, url)
    deleter, loader = fleet

    early = crowd_at_the_gate(loader, "lone", raw)
    deleter.ask("delete", namespace="t", key="lone")
    assert opened(early, "lone", raw) == [1] * 20
    assert raw.exists("magnus:t:lone", "{magnus:t:lone}:lease") == 0
    assert everywhere(fleet, url, "lone") == [None] * 5

    early = crowd_at_the_gate(loader, "anew", raw)
    deleter.ask("delete", namespace="t", key="anew")
    anew = deleter.ask("crowd", namespace="t", key="anew", tasks=10, threads=10)
    assert anew["errors"] == []
    assert anew["values"] == [{"load": 2, "pid": deleter.pid}] * 20
    assert opened(early, "anew", raw) == [1] * 20
    assert everywhere(fleet, url, "anew") == [{"load": 2, "pid": deleter.pid}] * 5


def test_a_load_that_has_not_heard_of_the_delete_is_not_stored(
    hire: Callable[..., list[Worker]], url: str, raw: redis.Redis, proxy: Proxy
) -> None:
    """Invariant 2: the announcement is late, so that the value is sent; Redis knows the lease is void.

    The second time, somebody else holds a lease of the same key by then.
    """
    (deleter,) = hire(1, url)
    (loader,) = hire(1, proxy.url, server=url, op_timeout=10)
    for key in ("deleted", "leased"):
        early = crowd_at_the_gate(loader, key, raw)
        proxy.delay(0.3)
        deleter.ask("delete", namespace="t", key=key)
        if key == "leased":
            # Two loads are held up: the second is the deleter's own.
            anew = deleter.send("crowd", namespace="t", key=key, tasks=10, gate=f"{GATE}:anew", gated=2)
            wait_until(lambda: loads(raw, "leased") == 2, PATIENCE)
        assert opened(early, key, raw) == [1] * 20
        proxy.delay(0.0)
        assert raw.exists(f"magnus:t:{key}") == 0
        if key == "leased":
            assert opened(anew, "anew", raw) == [2] * 10
    assert everywhere([deleter, loader], url, "deleted") == [None] * 5
    assert everywhere([deleter, loader], url, "leased") == [{"load": 2, "pid": deleter.pid}] * 5


def test_a_load_overtaken_by_a_peers_write_is_not_stored(
    hire: Callable[..., list[Worker]], url: str, raw: redis.Redis
) -> None:
    """Invariant 2: what was set while it loaded stays."""
    fleet = hire(2, url)
    setter, loader = fleet
    early = crowd_at_the_gate(loader, "k", raw)
    setter.ask("set", namespace="t", key="k", value="written")
    late = loader.ask("crowd", namespace="t", key="k", tasks=5, threads=5)
    assert late["errors"] == []
    assert late["values"] == ["written"] * 10
    assert opened(early, "k", raw) == [1] * 20
    assert everywhere(fleet, url, "k") == ["written"] * 5
    assert loads(raw, "k") == 1
