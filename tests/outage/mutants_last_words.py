"""The guards that `test_last_words` sees missing."""

from typing import Final

from magnus_cache._engine.coordination import leases, replay, state
from magnus_cache._engine.outage import breaker
from magnus_cache._engine.redis import topology
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/outage/test_last_words.py"


@guard(f"{HERE}::test_a_close_that_is_cancelled_ends_all_the_same")
def without_an_end_of_what_close_has_begun_to_end() -> None:
    original = state.State.end
    put(state.State, "end", lambda self: None if self.outbox.pending else original(self))


@guard(HERE)
def without_giving_back_what_was_granted_to_nobody() -> None:
    put(leases.Leases, "abandoned", nothing)


@guard(HERE)
def without_last_words() -> None:
    put(state.State, "final_replay", nothing)


@guard(HERE)
def without_ending_replays() -> None:
    put(replay.Replayer, "stop", lambda _: [])


@guard(HERE)
def without_hurry_at_the_end() -> None:
    put(breaker.Breaker, "retry_now", nothing)


@guard(HERE)
def without_asking_whether_a_loop_runs() -> None:
    put(topology, "_lives", lambda wire: wire.up)
