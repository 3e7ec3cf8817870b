"""A fleet of real processes, each with a cache of its own, that do what a test tells them."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent

PATIENCE: Final = 30.0
"""Seconds that a process may take to answer."""


class Worker:
    """One process, which runs `tests.support.fleet_worker`, or another module that takes requests as it does.

    :param more: variables of its environment.
    """

    def __init__(self, folder: Path, module: str = "tests.support.fleet_worker", **more: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "MAGNUS_CACHE_"))}
        self._log = (folder / f"worker-{time.monotonic_ns()}.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, text=True, bufsize=1, cwd=folder, env=clean | {"PYTHONPATH": str(ROOT)} | more,
        )  # fmt: skip
        self._numbers = itertools.count()
        self._asked: dict[int, Future[Any]] = {}
        self._over = False
        self._lock = threading.Lock()
        self._listener = threading.Thread(target=self._listen, name="fleet-listener")
        self._listener.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def send(self, do: str, **arguments: Any) -> Future[Any]:
        """Make a request; its answer comes by and by."""
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._numbers)
            self._asked[number] = future
            if self._over:
                self._bury()
            else:
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps({"id": number, "do": do, **arguments}) + "\n")
        return future

    def ask(self, do: str, **arguments: Any) -> Any:
        """Make a request and return its answer."""
        return self.send(do, **arguments).result(PATIENCE)

    def kill(self) -> None:
        """End it at once, as a crash would: SIGKILL. Idempotent."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            with self._lock:
                future = self._asked.pop(answer["id"])
            if "error" in answer:
                future.set_exception(AssertionError(f"in process {self.pid}:\n{answer['error']}"))
            else:
                future.set_result(answer["result"])
        with self._lock:
            self._over = True
            self._bury()

    def _bury(self) -> None:
        while self._asked:
            _, future = self._asked.popitem()
            future.set_exception(ProcessLookupError(f"process {self.pid} has ended:\n{self.said()}"))

    def said(self, most: int = 4000) -> str:
        """Return the end of what it wrote to its standard error, so many characters."""
        return Path(self._log.name).read_text()[-most:]


class Fleet:
    """Processes by the number; those that a test is done with are kept for the next one.

    :param module: what they run.
    """

    def __init__(self, folder: Path, module: str = "tests.support.fleet_worker") -> None:
        self._folder = folder
        self._module = module
        self._idle: list[Worker] = []
        self._busy: list[Worker] = []

    def hire(self, count: int, url: str, *, server: str | None = None, **options: Any) -> list[Worker]:
        """Return so many processes, each connected to the cache at `url`.

        :param server: where the server itself is, if there is a proxy at `url`.
        """
        while len(self._idle) < count:
            self._idle.append(Worker(self._folder, self._module))
        workers = [self._idle.pop(0) for _ in range(count)]
        self._busy += workers
        opened = [worker.send("open", url=url, server=server or url, options=options) for worker in workers]
        for worker, future in zip(workers, opened, strict=True):
            assert future.result(PATIENCE) == worker.pid
        return workers

    def dismiss(self) -> None:
        """Close the caches of all who were hired; whoever cannot is killed."""
        workers, self._busy = self._busy, []
        closed = [worker.send("close") for worker in workers]
        for worker, future in zip(workers, closed, strict=True):
            try:
                future.result(5)
            except Exception:
                worker.kill()
            else:
                self._idle.append(worker)

    def end(self) -> None:
        """Kill all."""
        for worker in (*self._idle, *self._busy):
            worker.kill()
