"""The guards that `test_lane` sees missing."""

import socket
import struct
from typing import Any, Final

from magnus_cache._engine.redis import lane
from magnus_cache._engine.redis.lane import Lane
from magnus_cache._engine.redis.lane_connection import LaneConnection
from magnus_cache._engine.redis.lane_session import Session
from magnus_cache._engine.store.records import Record
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/redis/test_lane.py"


@guard(f"{HERE}::test_a_clear_by_another_is_seen_before_it_was_announced")
def without_a_look_at_the_epochs_that_come_with_a_value() -> None:
    put(Lane, "_agree", lambda *_: True)


@guard(f"{HERE}::test_data_of_another_history_is_not_believed")
def without_a_look_whose_data_the_lane_reads() -> None:
    rewrite(Lane._agree, "if raws[0] != session.server.identity:", "if False:")


@guard(f"{HERE}::test_ctrl_c_at_any_place_leaves_the_others_served")
def without_a_new_leader_where_one_was_interrupted() -> None:
    rewrite(Lane._ask_together, "while ticket.answer is None:", "if ticket is batch.tickets[0]:")


@guard(f"{HERE}::test_ctrl_c_while_a_connection_is_replaced_leaves_no_trust_in_it")
def without_an_end_of_the_connection_before_it_is_forgotten() -> None:
    ended = "self._session.end()\n        self._session = None"
    rewrite(Lane._drop, ended, "session, self._session = self._session, None\n        session.end()")


@guard(f"{HERE}::test_an_interrupted_exchange_is_not_taken_for_the_next")
def without_a_look_whether_the_lane_is_in_step() -> None:
    rewrite(Session.stands, "not connection.busy and ", "")


@guard(f"{HERE}::test_a_handler_that_reads_at_any_place_is_answered")
def without_a_lane_that_its_own_thread_can_enter_again() -> None:
    rewrite(Lane._ask_together, "if lock._is_owned() or batch.gate._is_owned():", "if False:")
    rewrite(Lane.reset, "self._lock: Any = threading.RLock()", "self._lock: Any = threading.Lock()")


@guard(f"{HERE}::test_silence_costs_one_timeout")
def without_silence_of_the_lane_told_to_the_wire() -> None:
    put(lane, "call_on_loop", nothing)


@guard(f"{HERE}::test_silence_ends_no_connection_that_was_made_since")
def without_a_look_whether_the_wire_is_connected_anew() -> None:
    rewrite(lane._give_up, "if wire.time.sampled < asked:", "if True:")


@guard(f"{HERE}::test_silence_costs_all_threads_one_timeout")
def without_a_pause_after_a_failure() -> None:
    rewrite(Lane._wait, "self._retry_at = now + self._pause", "self._retry_at = now")
    put(lane, "call_on_loop", nothing)


@guard(f"{HERE}::test_an_answer_that_makes_no_sense_is_asked_for_the_long_way")
def without_a_look_at_the_answer() -> None:
    rewrite(Lane._answer_one, "if type(values) is not list or len(values) != plan.size:", "if False:")


@guard(f"{HERE}::test_close_ends_a_lane_that_is_not_in_use")
def without_the_end_of_the_lane() -> None:
    put(Lane, "end", nothing)


@guard(f"{HERE}::test_a_forked_child_has_a_connection_of_its_own")
def without_a_lane_of_ones_own_in_a_child() -> None:
    put(Lane, "reset", lambda self: None if hasattr(self, "_lock") else _made(self))


_reset = Lane.reset


def _made(made: Any) -> None:
    _reset(made)


@guard(f"{HERE}::test_the_end_of_the_program_ends_each_lane")
def without_the_end_of_the_lane_with_the_program() -> None:
    put(lane, "_close_at_exit", nothing)


@guard(f"{HERE}::test_large_values_are_left_to_the_background_loop")
def without_a_bound_on_values_of_the_lane() -> None:
    from magnus_cache._engine.store import lane_reads

    put(lane_reads, "SMALL_BYTES", 1 << 40)


@guard(f"{HERE}::test_pending_invalidations_are_told_to_redis_first")
def without_a_look_at_what_waits_before_the_lane_reads() -> None:
    from magnus_cache._engine.store.reads import Reads

    rewrite(Reads.read_blocking, "(state.outbox.pending and state.outbox.covers(ref.name))", "False")


@guard(f"{HERE}::test_a_value_with_tags_of_its_own_is_judged_with_them")
def without_a_judgement_by_tags_in_the_lane() -> None:
    """Of all values as of those without."""
    from magnus_cache._engine.store import reads

    put(reads, "Record", lambda *fields: Record(*fields)._replace(tags=()))


@guard(f"{HERE}::test_a_tag_that_redis_has_lost_holds_up_no_value_without_it")
def without_a_look_which_tags_the_wire_knows() -> None:
    rewrite(Session.plan, "if not self.wire_known.current.issuperset(names):", "if False:")


@guard(f"{HERE}::test_only_many_reads_are_worth_a_connection")
def without_a_thought_what_a_connection_is_worth() -> None:
    rewrite(Lane._worth, "self._wanted > _WORTH and ", "")


@guard(f"{HERE}::test_silence_costs_one_timeout_whatever_signals_come")
def without_a_timeout_that_outlasts_signals() -> None:
    """One of the kernel's."""

    def open_(self: Any, *more: bytes) -> Any:
        answers = opened(self, *more)
        sock = self._sock
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 500_000))
        return answers

    opened = LaneConnection.open
    put(LaneConnection, "open", open_)
