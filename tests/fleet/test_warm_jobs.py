"""Real processes that keep the same values warm: one does it for all, whatever becomes of it.

Their loads are written into Redis by plain clients, beside the cache. Moments are of the monotonic clock, which the
processes of one machine share.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import Proxy
from tests.conftest import emptied
from tests.support.fleet import PATIENCE, Fleet, Worker
from tests.support.wait import lapse, nothing_happens_for, wait_until
from tests.support.warm_worker import WARMED

pytestmark = pytest.mark.timeout(120)

KEYS = [f"T{number}" for number in range(6)]
TTL, EVERY = 6.0, 1.5
"""Seconds. A lease lasts for a third of what is between them: 1.5. The rest is for a busy machine."""

LEASE = 1.5


@pytest.fixture
def server(running: Callable[[str], EmbeddedServer]) -> EmbeddedServer:
    """One kind of server: a lease is no more than a key."""
    return emptied(running("valkey"))


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), "tests.support.warm_worker")
    try:
        yield fleet
    finally:
        fleet.end()


def begin(workers: list[Worker], *, blocking: bool = False) -> None:
    """Have processes keep the same values warm."""
    begun = [worker.send("warm", keys=KEYS, ttl=TTL, every=EVERY, blocking=blocking) for worker in workers]
    for future in begun:
        future.result(PATIENCE)


def holders(workers: list[Worker]) -> list[Worker]:
    return [worker for worker in workers if worker.lives and worker.ask("holds")]


def holder(workers: list[Worker]) -> Worker:
    """Return the process that has the job, once one has it."""
    wait_until(lambda: len(holders(workers)) == 1)
    return holders(workers)[0]


def loads(raw: Any, key: str) -> list[tuple[int, float]]:
    """Return the loads of a key: process id and moment."""
    texts = [text.decode().split() for text in raw.lrange(f"{WARMED}{key}", 0, -1)]
    return [(int(pid), float(at)) for pid, at in texts]


def all_loads(raw: Any) -> list[tuple[int, float]]:
    return [load for key in KEYS for load in loads(raw, key)]


def loaded_by(raw: Any, worker: Worker) -> bool:
    return any(pid == worker.pid for pid, _ in all_loads(raw))


@pytest.mark.parametrize("blocking", [False, True], ids=["async", "blocking"])
def test_one_process_loads_for_all_and_no_reader_ever_misses(
    hire: Callable[..., list[Worker]], url: str, raw: redis.Redis, blocking: bool
) -> None:
    workers = hire(3, url)
    begin(workers, blocking=blocking)
    busy = holder(workers)
    # Not when they are loaded: they are stored a moment later.
    wait_until(lambda: raw.exists(*(f"magnus:warm:{key}" for key in KEYS)) == len(KEYS))
    reader = next(worker for worker in workers if worker is not busy)
    reader.ask("begin_reading", keys=KEYS)
    lapse(2.5 * EVERY)
    missed, read = reader.ask("end_reading")
    assert missed == 0
    assert read > 0
    assert holders(workers) == [busy]
    for key in KEYS:
        assert {pid for pid, _ in loads(raw, key)} == {busy.pid}
        moments = [at for _, at in loads(raw, key)]
        # The first interval may be half as long, to spread the loads. None is shorter.
        assert all(later - earlier > EVERY / 2 - 0.1 for earlier, later in itertools.pairwise(moments))
        assert len(moments) >= 2
    (listed,) = reader.ask("jobs")
    assert listed[0].endswith(":quotes")
    assert listed[1].endswith(f":{busy.pid}")


def test_a_killed_holder_is_replaced_within_a_lease_and_readers_do_not_notice(
    hire: Callable[..., list[Worker]], url: str, raw: redis.Redis
) -> None:
    workers = hire(3, url)
    begin(workers)
    first = holder(workers)
    wait_until(lambda: all(loads(raw, key) for key in KEYS))
    others = [worker for worker in workers if worker is not first]
    others[0].ask("begin_reading", keys=KEYS)
    first.kill()
    killed = time.monotonic()
    second = holder(others)
    # A tenth of a lease is what the others differ by; the rest is for a busy machine.
    assert time.monotonic() - killed < LEASE * 1.1 + 3
    wait_until(lambda: all(loads(raw, key)[-1][0] == second.pid for key in KEYS))
    missed, _ = others[0].ask("end_reading")
    assert missed == 0
    assert {pid for pid, _ in all_loads(raw)} == {first.pid, second.pid}


def test_a_holder_that_is_cut_off_stops_and_another_takes_over(
    hire: Callable[..., list[Worker]], url: str, raw: redis.Redis, proxy: Proxy
) -> None:
    (isolated,) = hire(1, proxy.url, server=url, op_timeout=0.3)
    begin([isolated])
    wait_until(lambda: isolated.ask("holds"))
    wait_until(lambda: all(loads(raw, key) for key in KEYS))
    (other,) = hire(1, url)
    begin([other])
    proxy.black_hole()
    cut = time.monotonic()
    wait_until(lambda: not isolated.ask("holds"))
    wait_until(lambda: other.ask("holds"))
    wait_until(lambda: loaded_by(raw, other))
    # By its own clock, the lease ends for the isolated one before it ends in Redis.
    last = max(at for pid, at in all_loads(raw) if pid == isolated.pid)
    assert last < cut + LEASE
    nothing_happens_for(EVERY)
    assert max(at for pid, at in all_loads(raw) if pid == isolated.pid) == last
    proxy.resume()
    nothing_happens_for(LEASE / 2)
    assert holders([isolated, other]) == [other]


def test_a_deployment_hands_the_job_over(hire: Callable[..., list[Worker]], url: str, raw: redis.Redis) -> None:
    old = hire(2, url)
    begin(old)
    holder(old)
    new = hire(2, url)
    begin(new)
    for worker in old:
        worker.ask("close")
        worker.kill()
    successor = holder(new)
    wait_until(lambda: loaded_by(raw, successor))
    wait_until(lambda: all(loads(raw, key)[-1][0] == successor.pid for key in KEYS))


def test_in_an_outage_no_process_loads_for_the_job(
    hire: Callable[..., list[Worker]], url: str, raw: redis.Redis, proxy: Proxy
) -> None:
    workers = hire(2, proxy.url, server=url, op_timeout=0.3)
    begin(workers)
    holder(workers)
    wait_until(lambda: all(loads(raw, key) for key in KEYS))
    proxy.refuse()
    proxy.cut()
    wait_until(lambda: not holders(workers))
    before = len(all_loads(raw))
    nothing_happens_for(EVERY)
    assert len(all_loads(raw)) == before
    proxy.resume()
    busy = holder(workers)
    wait_until(lambda: len([pid for pid, _ in all_loads(raw)[before:] if pid == busy.pid]) > 0)
