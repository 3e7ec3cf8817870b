"""The guards that `test_lane_reads` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.redis import commands
from magnus_cache._engine.redis.lane_session import Plan, Session
from magnus_cache._engine.store.lane_reads import LaneReads
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/store/test_lane_reads.py"


@guard(f"{HERE}::test_what_is_changed_before_it_is_kept_is_not_kept")
def without_a_place_reserved_before_the_lane_asks() -> None:
    read = LaneReads.read

    def late(self: Any, ref: Any, placeholder: Any) -> Any:
        judge, memory = self._judge, self._state.memory

        def judged(ref: Any, placeholder: Any, *answer: Any) -> Any:
            place = memory.reserve(ref.name, anew=True)
            try:
                return judge(ref, placeholder and place, *answer)
            finally:
                memory.release(place)

        self._judge = judged
        try:
            return read(self, ref, placeholder)
        finally:
            self._judge = judge

    put(LaneReads, "read", late)


@guard(f"{HERE}::test_what_came_before_the_wire_was_lost_is_not_kept")
def without_the_trust_from_before_the_lane_asks() -> None:
    """The trust of the wire at the time of judgement."""

    class _Late:
        def __init__(self, session: Session) -> None:
            self._wire = session.wire
            self.known, self.time, self.tracking = session.wire.known, session.wire.time, True

        @property
        def trust(self) -> Trust:
            return self._wire.trust

    init = Plan.__init__

    def plan(self: Any, epochs: Any, epoch_names: Any, tags: Any, session: Session) -> None:
        init(self, epochs, epoch_names, tags, session)
        known = self.source.known
        self.source = _Late(session)
        self.source.known = known

    put(Plan, "__init__", plan)


@guard(f"{HERE}::test_a_flush_before_it_is_kept_leaves_nothing")
def without_the_end_of_trust_with_the_wires() -> None:
    put(Trust, "follow", nothing)


@guard(f"{HERE}::test_a_change_by_another_process_is_announced")
def without_announcements_of_what_the_lane_reads() -> None:
    put(commands, "announce_to", lambda _: commands.TIME)


@guard(f"{HERE}::test_after_the_wire_was_lost_announcements_go_to_its_new_connection")
def without_a_look_whether_the_wire_is_the_same() -> None:
    put(Session, "stands", lambda self, *_: not self.connection.busy)
    put(Trust, "follow", nothing)


@guard(f"{HERE}::test_what_a_lost_lane_has_read_is_trusted_no_longer_than_the_bound")
def without_a_trust_of_the_lanes_own() -> None:
    init = Session.__init__

    def session(self: Any, connection: Any, wire: Any, began: float) -> None:
        init(self, connection, wire, began)
        self.trust = self.wire_trust

    put(Session, "__init__", session)
    put(Session, "end", lambda self: self.connection.close())
    put(Trust, "follow", nothing)
    rewrite(Session.prove, "self.trust.deadline = self._sent + lasts", "pass")


@guard(f"{HERE}::test_a_lane_in_use_keeps_what_it_has_read_trusted")
def without_the_renewal_of_the_lanes_trust() -> None:
    rewrite(Session.prove, "self.trust.deadline = self._sent + lasts", "pass")


@guard(f"{HERE}::test_an_older_answer_of_another_thread_is_not_found_afterwards")
def without_a_look_at_what_another_thread_has_kept() -> None:
    rewrite(LaneReads._read, "if kept is not entry and (kept is None or kept.version != entry.version):", "if False:")
