"""A rate-limited HTTP server and the processes of a fleet: what it refuses, what a pause and a killed process do."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from magnus_cache.embedded import EmbeddedServer
from tests.conftest import emptied
from tests.support.fleet import PATIENCE, Fleet, Worker
from tests.support.origin import Origin, Reply, Seen, serving
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(120)

PROCESSES = 8


class Limiter:
    """Serves some requests in any window, and refuses the others with 429."""

    def __init__(self, limit: int, window: float, pause: float = 1.0) -> None:
        self.limit, self.window, self.pause = limit, window, pause
        self.served: list[float] = []
        self.refused: list[float] = []
        self.refusals = 0
        self._lock = threading.Lock()

    def __call__(self, seen: Seen) -> Reply:
        now = time.monotonic()
        with self._lock:
            recent = [at for at in self.served if now - at < self.window]
            if self.refusals or len(recent) >= self.limit:
                self.refusals = max(0, self.refusals - 1)
                self.refused.append(now)
                return Reply({"Retry-After": str(self.pause)}, status=429)
            self.served.append(now)
        return Reply(body=seen.target.partition("?")[2].encode())


@pytest.fixture
def server(running: Callable[[str], EmbeddedServer]) -> EmbeddedServer:
    return emptied(running("valkey"))


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(Path(tmp_path_factory.mktemp("budgets")))
    yield fleet
    fleet.end()


@pytest.fixture
def fleet(processes: Fleet) -> Iterator[Fleet]:
    yield processes
    processes.dismiss()


@pytest.fixture
def origin() -> Iterator[Origin]:
    with serving() as origin:
        yield origin


def asked(workers: list[Worker], source: str, count: int, budget: str | None, prefix: str = "") -> list[Any]:
    """Have each process load some keys of its own, all at once; return what they got."""
    futures = [
        worker.send(
            "ask_source", source=source, keys=[f"{prefix}{number}-{each}" for each in range(count)], budget=budget,
            hard_timeout=20,
        )
        for number, worker in enumerate(workers)
    ]  # fmt: skip
    return [value for future in futures for value in future.result(PATIENCE)]


def test_a_fleet_that_keeps_to_the_limit_of_its_source_is_never_refused(
    fleet: Fleet, origin: Origin, server: EmbeddedServer
) -> None:
    limiter = Limiter(12, 1.0)
    source = origin.says("/quotes", limiter)
    # A little more than its window: how long a request takes to the source differs with the load of the machine.
    values = asked(fleet.hire(PROCESSES, server.url), source, 4, "12/2s")
    assert "CacheBudgetError" not in values
    assert sorted(values) == sorted(f"{number}-{each}" for number in range(PROCESSES) for each in range(4))
    assert (len(limiter.served), limiter.refused) == (PROCESSES * 4, [])


def test_one_refusal_teaches_the_whole_fleet(fleet: Fleet, origin: Origin, server: EmbeddedServer) -> None:
    """Not one request reaches a source without a budget while it rests, beside those that were under way."""
    limiter = Limiter(1000, 1.0, pause=2.0)
    source, workers = origin.says("/quotes", limiter), fleet.hire(PROCESSES, server.url)
    limiter.refusals = 1
    teacher = workers[0].send("ask_source", source=source, keys=["first"], budget=None, hard_timeout=20)
    with redis.Redis.from_url(server.url, protocol=2) as client:
        wait_until(lambda: client.exists("magnus!pauses"))
    assert "CacheBudgetError" not in asked(workers, source, 4, None)
    assert teacher.result(PATIENCE) == ["first"]
    assert len(limiter.refused) == 1
    assert min(limiter.served) - limiter.refused[0] >= 1.9


def test_turns_of_a_killed_process_go_to_the_others(fleet: Fleet, origin: Origin, server: EmbeddedServer) -> None:
    limiter = Limiter(1000, 1.0)
    source, workers = origin.says("/quotes", limiter), fleet.hire(2, server.url)
    assert workers[0].ask("ask_source", source=source, keys=["a"], budget="1/700ms", hard_timeout=20) == ["a"]
    dying = workers[0].send(
        "ask_source", source=source, keys=[f"d{each}" for each in range(20)], budget="1/700ms", hard_timeout=60
    )
    with redis.Redis.from_url(server.url, protocol=2) as client:
        wait_until(lambda: client.hexists("magnus!budget:limited", "w"))
    os.kill(workers[0].pid, signal.SIGKILL)
    with pytest.raises(ProcessLookupError):
        dying.result(PATIENCE)
    # Of the 16 turns that are left behind, none is waited for longer than a second.
    began = time.monotonic()
    values = workers[1].ask("ask_source", source=source, keys=["b", "c"], budget="1/700ms", hard_timeout=25)
    assert values == ["b", "c"]
    assert time.monotonic() - began < 20
