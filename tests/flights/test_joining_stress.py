"""Joins under stress: threads and event loops share loads while the tags of these are invalidated at random.

Every value and every error tells which version of the source it is of, so that any that is too old shows.
"""

import asyncio
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from magnus_cache import CacheManager, Namespace

SOAK: Final = bool(os.environ.get("MAGNUS_CACHE_SOAK"))
SECONDS: Final = 60.0 if SOAK else 2.0
KEYS: Final = 3
"""Each with a tag of its own; few, so that callers meet."""

STRESSED: Final = Namespace("stressed", ttl=60, negative={LookupError: 30})


class Source:
    """The versions of the source, by key, and which of them a manager has invalidated the older ones of."""

    def __init__(self) -> None:
        self.versions = [0] * KEYS
        self.lock = threading.Lock()
        self.loads = 0
        self.calls = 0

    def change(self, key: int) -> int:
        with self.lock:
            self.versions[key] += 1
            return self.versions[key]

    def read(self, key: int, *, fails: bool = True) -> int:
        self.loads += 1
        version = self.versions[key]
        # The load goes on, long enough for an invalidation from beginning to end, and for calls that follow it.
        time.sleep(random.random() ** 2 / 25)
        if fails and random.random() < 0.3:
            raise LookupError(version)
        return version


class Process:
    """A manager with the threads that use it: what it has invalidated binds its own callers at once."""

    def __init__(self, url: str, source: Source) -> None:
        self.cache = CacheManager(redis_url=url, wait_timeout=20)
        self.source = source
        self.invalidated = [0] * KEYS
        self.lock = threading.Lock()
        self.wrong: list[str] = []

    def invalidate(self, key: int) -> None:
        version = self.source.change(key)
        self.cache.invalidate_tags(f"tag:{key}")
        with self.lock:
            self.invalidated[key] = max(self.invalidated[key], version)

    def judge(self, way: str, key: int, least: int, got: Any) -> None:
        self.source.calls += 1
        if isinstance(got, LookupError):
            got = got.args[0]
        if got < least:
            self.wrong.append(f"{way} of {key} got version {got}, and {least} was there")

    def single(self, key: int) -> None:
        least = self.invalidated[key]
        got: Any
        try:
            got = self.cache.get_or_set(STRESSED, key, lambda: self.source.read(key), tags=f"tag:{key}")
        except LookupError as error:
            got = error
        self.judge("single", key, least, got)

    def batch(self, key: int) -> None:
        least = self.invalidated[key]

        def load(keys: list[int]) -> dict[int, int]:
            return {key: self.source.read(key) for key in keys}

        got: Any
        try:
            got = self.cache.get_or_set_many(STRESSED, [key], load, tags=f"tag:{key}")[key]
        except LookupError as error:
            got = error
        self.judge("batch", key, least, got)

    async def task(self, key: int) -> None:
        least = self.invalidated[key]

        async def load() -> int:
            await asyncio.sleep(0)
            return self.source.read(key, fails=key > 0)

        got: Any
        try:
            # The tag is known only when the value is; so an error would have none, and be remembered without.
            tags: Any = (lambda _: f"tag:{key}") if key == 0 else f"tag:{key}"
            got = await self.cache.aio.get_or_set(STRESSED, key, load, tags=tags)
        except LookupError as error:
            got = error
        self.judge("task", key, least, got)

    def loop(self, key: int) -> None:
        async def tasks() -> None:
            await asyncio.gather(*(self.task(random.randrange(KEYS)) for _ in range(10)))

        asyncio.run(tasks())


@pytest.fixture(autouse=True)
def switching() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.timeout(600 if SOAK else 60)
def test_invariant_1_joined_loads_under_stress(url: str) -> None:
    source = Source()
    processes = [Process(url, source) for _ in range(2)]
    end = time.monotonic() + SECONDS
    failed: list[BaseException] = []

    def repeat(step: Callable[[int], object], pause: float) -> None:
        try:
            while time.monotonic() < end:
                step(random.randrange(KEYS))
                time.sleep(random.random() * pause)
        except BaseException as error:  # the test reports it
            failed.append(error)

    steps = [
        (step, pause)
        for process in processes
        for step, pause in [
            (process.single, 0.0), (process.single, 0.0), (process.batch, 0.0), (process.loop, 0.0),
            (process.loop, 0.0), (process.invalidate, 0.003),
        ]
    ]  # fmt: skip
    threads = [threading.Thread(target=repeat, args=step) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.cache.close()
    assert not failed, failed[0]
    assert [wrong for process in processes for wrong in process.wrong][:5] == []
    # Joined, or found: else nothing was tested.
    assert source.loads < source.calls
    print(f"{source.loads} loads for {source.calls} calls")
