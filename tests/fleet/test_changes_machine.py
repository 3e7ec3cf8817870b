"""Writers and a consumer of `changes`: every key written since the start is told, or something that stands for it.

The consumer does what the page says: it reads all after the start, and again what it is told. In the end it shows what
Redis has, whatever was written, cleared, cut or flushed meanwhile.
"""

from collections import Counter
from typing import Any, Final

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from magnus_cache import CacheManager, Changed
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import Proxy
from tests.support.changes import PATIENT
from tests.support.effort import ALL
from tests.support.wait import wait_until

_FEW: Final = 8
_EXAMPLES: Final = 200 if ALL else _FEW
"""Examples of the state machine."""

KEYS: Final = ("a", "b", "c", "l" * 250)
TAGS: Final = ("x", "y")
NAMESPACE: Final = "t"

_keys: Final = st.sampled_from(KEYS)
_tags: Final = st.sampled_from(TAGS)
_writers: Final = st.integers(0, 1)


class Consumers(RuleBasedStateMachine):
    """The first cache has the consumer and goes through a proxy; the other one is beside it."""

    def __init__(self, server: EmbeddedServer, proxy: Proxy, counts: "Counter[str]") -> None:
        super().__init__()
        self.proxy, self.counts = proxy, counts
        self.raw = redis.Redis(port=server.port)
        self.raw.flushall()
        self.caches = (
            CacheManager(redis_url=proxy.url, **PATIENT), CacheManager(redis_url=server.url, **PATIENT)
        )  # fmt: skip
        self.number = 0
        for cache in self.caches:
            assert cache.ping().ok
        self.changes = self.caches[0].changes(NAMESPACE, keys=KEYS, timeout=0, max_waiting=3).__enter__()
        self.shown: dict[str, Any] = {}
        self.show(KEYS)

    def show(self, keys: tuple[str, ...]) -> None:
        for key in keys:
            self.shown[key] = self.caches[0].get(NAMESPACE, key)

    @rule(key=_keys, by=_writers, tag=_tags)
    def write(self, key: str, by: int, tag: str) -> None:
        self.number += 1
        self.caches[by].set(NAMESPACE, key, self.number, tags=(tag,))

    @rule(keys=st.lists(_keys, unique=True), by=_writers)
    def write_many(self, keys: list[str], by: int) -> None:
        self.number += 1
        self.caches[by].set_many(NAMESPACE, dict.fromkeys(keys, self.number))

    @rule(key=_keys, by=_writers, tag=_tags)
    def load(self, key: str, by: int, tag: str) -> None:
        self.number += 1
        self.caches[by].get_or_set(NAMESPACE, key, lambda: self.number, tags=(tag,))

    @rule(key=_keys, by=_writers)
    def delete(self, key: str, by: int) -> None:
        self.caches[by].delete(NAMESPACE, key)

    @rule(by=_writers)
    def clear(self, by: int) -> None:
        self.caches[by].clear(NAMESPACE)

    @rule(tag=_tags, by=_writers)
    def invalidate(self, tag: str, by: int) -> None:
        self.caches[by].invalidate_tags(tag)

    @rule(key=_keys)
    def expire(self, key: str) -> None:
        self.raw.pexpire(self.caches[1].explain(NAMESPACE, key).name, 1)

    @rule()
    def cut(self) -> None:
        self.proxy.cut()

    @rule()
    def flush(self) -> None:
        self.raw.flushall()

    @rule()
    def take(self) -> None:
        """Take what waits, and show it, as the page says."""
        for change in self.changes:
            self.counts[type(change).__name__] += 1
            self.show((change.key,) if isinstance(change, Changed) else KEYS)

    def teardown(self) -> None:
        try:
            wait_until(self._shows_what_there_is, 30)
        finally:
            self.changes.close()
            for cache in self.caches:
                cache.close()
            self.raw.close()

    def _shows_what_there_is(self) -> bool:
        """Only what is told makes it read again; until the last of it has come, it may show an older value."""
        self.take()
        return self.shown == {key: self.caches[1].get(NAMESPACE, key) for key in KEYS}


def test_a_consumer_shows_what_there_is_in_the_end(private_server: EmbeddedServer) -> None:
    counts: Counter[str] = Counter()
    profile = settings(
        max_examples=_EXAMPLES, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck),
        print_blob=True,
    )  # fmt: skip
    with Proxy(private_server.port) as proxy:
        run_state_machine_as_test(lambda: Consumers(private_server, proxy, counts), settings=profile)
    # A few examples need not have all three.
    if _EXAMPLES > _FEW:
        assert set(counts) == {"Changed", "Invalidated", "Lost"}
