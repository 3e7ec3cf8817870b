"""A service of FastAPI under uvicorn with workers and under load, while its Redis is killed: no request fails."""

import itertools
import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final, Self

import pytest

from magnus_cache.embedded import EmbeddedServer
from tests.support.effort import ALL
from tests.support.wait import nothing_happens_for, wait_until

ROOT: Final = Path(__file__).parents[2]
_PAGES: Final = 40
_USERS: Final = ("ada", "grace", "joan")
_TIMES: Final = (1, 4) if ALL else (1,)
"""How often Redis is killed; `nox -s cluster` does it often, and under more load."""


@contextmanager
def served(url: str, log: Path) -> Iterator[int]:
    """Run the service with two workers, and yield its port."""
    with socket.socket() as listener, log.open("wb") as output:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        listener.set_inheritable(True)
        environment = os.environ | {"REDIS_URL": url, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
        command = [sys.executable, "-m", "uvicorn", "tests.support.web_cached:app", "--workers", "2"]
        process = subprocess.Popen(
            [*command, "--log-level", "warning", "--fd", str(listener.fileno())], env=environment,
            pass_fds=(listener.fileno(),), stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        port = listener.getsockname()[1]
        try:
            # It takes its connections once its workers have started, which is no matter of the cache.
            connection = HTTPConnection("127.0.0.1", port, timeout=90)
            connection.request("GET", "/worker")
            connection.getresponse().read()
            connection.close()
            yield port
        finally:
            process.terminate()
            process.wait(20)


class Load:
    """Requests of several clients at a time, readers, writers and users, each checked."""

    def __init__(self, port: int, clients: int = 4) -> None:
        self._port = port
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]
        self.answers = 0
        self.unmodified = 0
        self.workers = set[int]()
        self.failures = list[str]()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        dice, etags = random.Random(number), dict[str, str]()
        connection = HTTPConnection("127.0.0.1", self._port, timeout=20)
        for turn in itertools.count():
            if self._over.is_set():
                break
            if turn % 5 == 0:
                # Else one worker may have all connections.
                connection.close()
            self._one(connection, dice, etags)
        connection.close()

    def _one(self, connection: HTTPConnection, dice: random.Random, etags: dict[str, str]) -> None:
        user, page = dice.choice(_USERS), f"/pages/{dice.randrange(_PAGES)}"
        method, path, headers = dice.choices(
            [("GET", page, {}), ("PUT", page, {}), ("GET", "/me", {"authorization": user}), ("GET", "/worker", {})],
            weights=[6, 1, 2, 1],
        )[0]
        asked = dict[str, str](headers)
        if path in etags and dice.random() < 0.5:
            asked["if-none-match"] = etags[path]
        try:
            connection.request(method, path, headers=asked)
            response = connection.getresponse()
            body = response.read()
        except (OSError, HTTPException) as error:
            connection.close()
            self._note(f"{method} {path}: {error!r}")
            return
        if response.status == 304 and "if-none-match" in asked:
            self._note(unmodified=True)
            return
        found: dict[str, Any] = json.loads(body) if response.status == 200 else {}
        is_right = found.get("user") == user if path == "/me" else "worker" in found
        if path.startswith("/pages") and "etag" in response.headers:
            etags[path] = response.headers["etag"]
        said = None if is_right else f"{method} {path} {asked}: {response.status} {body[:200]!r}"
        self._note(said, worker=found["worker"] if path == "/worker" and found else None)

    def _note(self, failure: str | None = None, *, worker: int | None = None, unmodified: bool = False) -> None:
        with self._lock:
            self.answers += failure is None
            self.unmodified += unmodified
            if worker is not None:
                self.workers.add(worker)
            if failure is not None:
                self.failures.append(failure)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("times", _TIMES)
def test_no_request_fails_while_redis_is_killed(
    private_server_with: Callable[..., EmbeddedServer], tmp_path: Path, times: int
) -> None:
    server, log, most = private_server_with(), tmp_path / "log", 60 * times
    with served(server.url, log) as port:
        with Load(port, clients=4 * times) as load:
            wait_until(lambda: load.answers > most and len(load.workers) == 2, 60)
            for _ in range(times):
                server.kill()
                before = load.answers
                wait_until(lambda before=before: load.answers > before + most, 60)  # type: ignore[misc]
                server.start()
                nothing_happens_for(0.2)
                after = load.answers
                wait_until(lambda after=after: load.answers > after + most, 60)  # type: ignore[misc]
        # What one worker has stored, the other has; a write in one is seen by both.
        assert _pages_agree(port), log.read_text()
    said = log.read_text()
    assert load.failures == [], said
    assert load.unmodified > 0
    assert "Traceback" not in said, said


def _pages_agree(port: int) -> bool:
    def get(method: str = "GET") -> tuple[int, int]:
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, "/pages/agreed")
        found = json.loads(connection.getresponse().read())
        connection.close()
        return found["worker"], found["version"]

    def agrees() -> bool:
        get("PUT")
        return len({get() for _ in range(20)}) == 1

    wait_until(agrees, 30)
    return True
