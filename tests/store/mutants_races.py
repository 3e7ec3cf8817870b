"""The guards that `test_races` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coordination import state
from magnus_cache._engine.flights import registry
from magnus_cache._engine.redis import bulk, frame_limits, handshake, pipeline, watchdog, wire
from magnus_cache._engine.store import clears, reads_many, writes
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/store/test_races.py"


@guard(HERE)
def without_touching_again_when_the_answer_comes() -> None:
    put(bulk, "_removed", lambda _touch, _names, reply, *_: reply)
    # Where our own removals are announced, that does it as well.
    put(handshake, "_ORDERLY", (1_000, 0))


@guard(HERE)
def without_voiding_after_the_record() -> None:
    put(writes.Writes, "unsure", lambda self, names: self.state.outbox.record(names))


@guard(HERE)
def without_voiding_reads_when_a_clear_is_answered() -> None:
    put(clears.Clears, "_forget", nothing)
    put(state.State, "outdated", nothing)


@guard(HERE)
def without_an_end_for_who_waits_for_a_wire() -> None:
    put(wire.Wire, "_end", nothing)


@guard(HERE)
def without_a_look_at_replies() -> None:
    put(pipeline, "check_values", nothing)


@guard(HERE)
def without_hearing_parts_of_answers() -> None:
    took = frame_limits.Intake._took

    def unheard(self: Any, size: int) -> bool:
        heard = self.heard
        taken = took(self, size)
        self.heard = heard
        return taken

    put(frame_limits.Intake, "_took", unheard)


@guard(HERE)
def without_patience_for_large_replies() -> None:
    put(watchdog, "PATIENCE", 1)


@guard(HERE)
def without_threads_of_its_own_for_compression() -> None:
    put(writes, "CapacityLimiter", lambda _: None)


@guard(HERE)
def without_looking_at_cancelled_reads() -> None:
    original = reads_many._read_many

    async def read_many(self: Any, refs: Any) -> Any:
        wire_ = self.state.topology.connection(b"")
        if wire_ is None or not wire_.up:
            return await original(self, refs)
        waiters = [self.request(wire_, ref, None)[0] for ref in refs]
        return [await waiter for waiter in waiters]

    put(reads_many, "_read_many", read_many)
    put(reads_many._Search, "begin", nothing)


@guard(HERE)
def without_an_end_of_joining_what_has_no_lease() -> None:
    put(registry.FlightRegistry, "expire", nothing)
