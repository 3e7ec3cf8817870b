"""The guards that `test_breaker` sees missing."""

from typing import Final

from magnus_cache._engine.outage import breaker
from magnus_cache._engine.redis import wire
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/outage/test_breaker.py"


@guard(HERE)
def without_one_trial_at_a_time() -> None:
    put(breaker.Breaker, "try_acquire", lambda self, now: max(0.0, self._retry_at - now) if self.open else 0.0)


@guard(HERE)
def without_telling_those_who_wait_for_redis() -> None:
    original = breaker.Breaker.subscribe
    put(breaker.Breaker, "subscribe", lambda self, callback: original(self, nothing))


@guard(HERE)
def without_telling_who_waits_for_an_attempt_that_is_not_due() -> None:
    put(wire.Wire, "_rest", nothing)
