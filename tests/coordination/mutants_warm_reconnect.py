"""The guards that `test_warm_reconnect` sees missing."""

import math
from typing import Any, Final

from magnus_cache._engine.outage import breaker
from magnus_cache._engine.redis import scripts, wire
from magnus_cache._engine.store import reads
from tests.support.guards import edit, guard, put, rewrite

HERE: Final = "tests/coordination/test_warm_reconnect.py"


@guard(HERE)
def without_comparing_with_what_is_here() -> None:
    put(reads, "comparable", lambda *_: False)


@guard(f"{HERE}::test_what_did_not_change_does_not_come_over_again")
def without_comparing_what_a_thread_could_read_by_itself() -> None:
    rewrite(reads.Reads.read_blocking, "entry_here.size <= _TINY", "True")


@guard(HERE)
def without_looking_at_the_version() -> None:
    edit(scripts._COMPARE, "== ARGV[1] then return {1, head} end", "then return {1, head} end")


@guard(HERE)
def without_judging_what_was_recognized() -> None:
    original = reads.recognized

    def recognized(near: Any, reply: Any) -> Any:
        held, fresh_until, raw = original(near, reply)
        return (held and held._replace(epoch=1 << 62, tags=())), fresh_until, raw

    put(reads, "recognized", recognized)


@guard(HERE)
def without_reading_where_comparing_is_forbidden() -> None:
    put(reads, "JUDGEMENTS", 1)


@guard(HERE)
def without_waiting_for_a_connection_that_is_being_made() -> None:
    original = wire.Wire._enqueue

    def enqueue(self: Any, *asked: Any) -> None:
        if self._error is not None:
            raise self._error
        original(self, *asked)

    put(wire.Wire, "_enqueue", enqueue)


@guard(HERE)
def without_telling_failures_of_before_from_those_of_now() -> None:
    original = breaker.Breaker.succeeded

    def succeeded(self: Any, now: float) -> None:
        original(self, now)
        self.succeeded_at = -math.inf

    put(breaker.Breaker, "succeeded", succeeded)
