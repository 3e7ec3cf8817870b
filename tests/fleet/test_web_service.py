"""Web services with several workers, under load, while a primary of their cluster is killed: no request fails."""

import http.client
import importlib.util
import itertools
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import pytest

from magnus_cache.testing import EmbeddedCluster, EmbeddedSentinels
from tests.support.groups import url_of
from tests.support.wait import nothing_happens_for, wait_until

ROOT: Final = Path(__file__).parents[2]

_SERVERS: Final = {
    "uvicorn": ("-m", "uvicorn", "tests.support.web_apps:asgi", "--workers", "2", "--log-level", "warning", "--fd"),
    "gunicorn": (
        "-m", "gunicorn", "tests.support.web_apps:wsgi", "--workers", "2", "--worker-class", "gthread", "--threads",
        "4", "--log-level", "warning", "--bind",
    ),
    "gunicorn, preloaded": (
        "-m", "gunicorn", "tests.support.web_apps:wsgi", "--workers", "2", "--worker-class", "gthread", "--threads",
        "4", "--log-level", "warning", "--preload", "--bind",
    ),
}  # fmt: skip


_KEPT: Final = 5
"""Requests over one connection."""


@contextmanager
def _served(server: str, url: str, log: Path) -> Iterator[int]:
    """Run a web server, and yield its port."""
    with socket.socket() as listener, log.open("wb") as output:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        listener.set_inheritable(True)
        number, port = listener.fileno(), listener.getsockname()[1]
        place = str(number) if server == "uvicorn" else f"fd://{number}"
        environment = os.environ | {"REDIS_URL": url, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
        process = subprocess.Popen(
            [sys.executable, *_SERVERS[server], place], env=environment, pass_fds=(number,), stdout=output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield port
        finally:
            process.terminate()
            process.wait(20)


@dataclass
class Load:
    """Requests of several clients at a time, each over a connection that it keeps."""

    port: int
    clients: int = 6
    answers: int = 0
    workers: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        dice = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            for turn in itertools.count():
                if self._over.is_set():
                    break
                if turn % _KEPT == 0:
                    # Else one worker may have all connections.
                    connection.close()
                what = "write" if dice.random() < 0.2 else "read"
                self._one(connection, f"/{what}/k{dice.randrange(200)}")
        finally:
            connection.close()

    def _one(self, connection: http.client.HTTPConnection, path: str) -> None:
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            found = response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            with self._lock:
                self.failures.append(f"{path}: {error!r}")
            connection.close()
            return
        with self._lock:
            self.answers += 1
            self.workers.add(found.split(" ")[0])
            if response.status != 200 or not found.replace(" ", "").isdecimal():
                self.failures.append(f"{path}: {response.status} {found[:200]}")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("server", _SERVERS)
@pytest.mark.parametrize("of", ["cluster", "sentinel"])
def test_no_request_fails_while_a_primary_is_killed(
    private_cluster_with: Callable[..., EmbeddedCluster],
    private_sentinels_with: Callable[..., EmbeddedSentinels],
    tmp_path: Path,
    server: str,
    of: str,
) -> None:
    if importlib.util.find_spec(server.partition(",")[0]) is None:
        pytest.skip(f"{server} is not installed")
    group = private_cluster_with(node_timeout=1.0) if of == "cluster" else private_sentinels_with()
    log = tmp_path / "log"
    with _served(server, url_of(group), log) as port:
        with Load(port) as load:
            wait_until(lambda: load.answers > 300 and len(load.workers) == 2, 60)
            before = load.answers
            if isinstance(group, EmbeddedCluster):
                primary = group.primaries[0]
                replica = group.replicas_of(primary)[0]
                group.kill(primary)
                group.wait_for_primary(replica)
            else:
                primary = group.primary
                group.kill(primary)
                group.wait_for_failover(primary)
            nothing_happens_for(1.0)
            during = load.answers
            wait_until(lambda: load.answers > during + 300, 60)
    said = log.read_text()
    assert load.failures == [], said
    assert during > before + 100
    assert "Traceback" not in said, said
