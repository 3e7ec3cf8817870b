"""The guards that `test_incoming` sees missing."""

from typing import Final

from magnus_cache._engine.redis import frame_limits, incoming, sender
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/redis/test_incoming.py"


@guard(f"{HERE}::test_nothing_is_handled_before_what_is_left_of_the_reply_before")
def without_stopping_at_a_reply_that_takes_turns() -> None:
    rewrite(incoming.Incoming._handled, "if rest is not None:", "if False:")


@guard(f"{HERE}::test_nothing_is_handled_before_what_is_left_of_the_reply_before")
def without_leaving_what_comes_meanwhile_to_the_stream() -> None:
    rewrite(incoming.Incoming._leave, "self._handle = None", "pass")


@guard(f"{HERE}::test_the_end_of_a_stream_ends_the_wait_for_replies")
def without_a_look_at_the_end_of_the_stream() -> None:
    rewrite(incoming.Incoming.__init__, "stream.feed_eof, stream.set_exception = ended, failed", "pass")
    put(incoming.Incoming, "detach", lambda _: None)


@guard(f"{HERE}::test_a_server_that_serves_nobody_ends_the_connection")
def without_a_look_at_errors_that_mean_the_connection() -> None:
    rewrite(incoming.Incoming._handled, "isinstance(reply, RedisConnectionError)", "False")


@guard(f"{HERE}::test_a_server_that_serves_nobody_ends_the_connection")
def without_a_look_at_errors_in_lists_that_mean_the_connection() -> None:
    rewrite(incoming.Incoming._handled, "isinstance(reply[0], RedisConnectionError)", "False")


@guard(f"{HERE}::test_an_interrupt_while_a_reply_is_handled_ends_the_connection")
def without_ending_a_connection_that_was_interrupted() -> None:
    rewrite(incoming.Incoming.take, "except BaseException as error:", "except Exception as error:")


@guard(f"{HERE}::test_replies_that_queue_commands_are_counted_and_values_that_look_like_them_are_handled")
def without_a_look_whether_a_reply_is_one_within_a_transaction() -> None:
    rewrite(incoming.Incoming._handled, "owed[0].replies > 1", "owed[0].replies > 0")


@guard(f"{HERE}::test_many_replies_at_once_leave_turns_for_others")
def without_a_bound_on_replies_at_once() -> None:
    put(incoming, "_AT_ONCE", 10_000)


@guard(f"{HERE}::test_replies_that_take_long_together_are_handled_in_several_turns")
def without_a_bound_on_the_time_of_replies_at_once() -> None:
    rewrite(incoming.Incoming._handled, "monotonic() > until", "False")


@guard(f"{HERE}::test_replies_that_take_long_leave_turns_for_others_however_many_came_together")
def without_a_bound_on_the_time_of_replies_that_are_read() -> None:
    at_once = "if handled >= _AT_ONCE:\n            handled = 0\n            await asyncio.sleep(0)\n        "
    turns = f"{at_once}else:\n            await turn()"
    rewrite(incoming.read, turns, "")


@guard(f"{HERE}::test_a_request_that_is_alone_does_not_wait_for_the_end_of_the_turn")
def without_sending_at_once_what_is_alone() -> None:
    rewrite(sender.Sender.kick, "if self._is_alone and not self._pipeline.owed:", "if False:")


@guard(f"{HERE}::test_reads_of_one_turn_share_an_exchange")
def without_waiting_for_the_end_of_the_turn() -> None:
    rewrite(sender.Sender.kick, "if self._is_alone and not self._pipeline.owed:", "if True:")


@guard(f"{HERE}::test_what_the_socket_does_not_take_at_once_is_sent_later_and_in_order")
def without_waiting_for_the_socket() -> None:
    rewrite(sender.Sender._send, " or self._is_waiting or transport.get_write_buffer_size()", "")


@guard(f"{HERE}::test_what_woken_callers_ask_for_leaves_behind_the_last_of_them")
def without_a_flush_behind_the_callers_that_answers_wake() -> None:
    put(sender.Sender, "expect", nothing)


@guard(f"{HERE}::test_an_answer_counts_as_heard_where_its_bytes_are_not_seen")
def without_hearing_answers_whose_bytes_are_not_seen() -> None:
    rewrite(frame_limits.Intake._ended, "if self._reader is None:", "if False:")
