"""Blocking caches whose threads read from Redis by themselves, and a record of which reads did."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from magnus_cache import CacheManager, Namespace
from magnus_cache._engine.redis.lane_tickets import LONG_WAY
from tests.support.inside import retry_lane_now
from tests.support.wait import wait_until

FAR = Namespace("far", ttl=3600, l1=False)
NEAR = Namespace("near", ttl=3600)


def through_the_lane(cache: CacheManager, namespace: str = FAR) -> None:
    """Read until the lane serves a namespace, through which something has to be stored for that."""
    cache.set(namespace, "warm", 1)

    def served() -> bool:
        retry_lane_now(cache)
        forget(cache, namespace, "warm")
        with lane_answers(cache) as answers:
            assert cache.get(namespace, "warm") == 1
        return served_by_lane(answers)

    wait_until(served)


def forget(cache: CacheManager, namespace: str, key: str) -> None:
    """Have the next read of a value ask Redis."""
    cache._state.memory.invalidate(cache._reads.ref(namespace, key).name)


@contextmanager
def lane_answers(cache: CacheManager) -> Iterator[list[Any]]:
    """Collect what the lane answers to those who ask it."""
    answers: list[Any] = []
    lane = cache._state.lane
    ask = lane.ask

    def asked(*args: Any) -> Any:
        answer = ask(*args)
        answers.append(answer)
        return answer

    lane.ask = asked  # type: ignore[method-assign]
    try:
        yield answers
    finally:
        del lane.ask  # type: ignore[method-assign]


def read_by_lane(cache: CacheManager, key: str) -> Any:
    """Return a value that is not in memory, by way of the lane."""
    forget(cache, NEAR, key)
    with lane_answers(cache) as answers:
        value = cache.get(NEAR, key)
    assert served_by_lane(answers)
    return value


def served_by_lane(answers: list[Any]) -> bool:
    """Whether each read that was asked of the lane was answered there."""
    return bool(answers) and LONG_WAY not in answers
