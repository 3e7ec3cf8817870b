"""The guards that `test_hostile_server` sees missing."""

from typing import Final

from magnus_cache._engine.redis import connection, frame_limits, pipeline
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/redis/test_hostile_server.py"


@guard(f"{HERE}::test_an_announcement_without_end_ends_the_connection")
def without_a_lower_bound_on_what_comes_unasked() -> None:
    put(frame_limits, "_UNASKED_BYTES", 128 << 20)


@guard(f"{HERE}::test_a_reply_without_end_ends_the_connection_and_frees_its_memory")
def without_a_bound_on_the_bytes_of_a_reply() -> None:
    put(frame_limits, "_REPLY_BYTES", 1 << 50)


@guard(f"{HERE}::test_a_reply_without_end_ends_the_connection_and_frees_its_memory")
def without_freeing_what_was_read_of_a_frame() -> None:
    put(connection._PushParser, "on_disconnect", connection.DefaultParser.on_disconnect)


@guard(f"{HERE}::test_a_frame_that_was_begun_has_a_deadline")
def without_a_deadline_for_a_frame() -> None:
    put(frame_limits.Intake, "_check", nothing)


@guard(f"{HERE}::test_a_handshake_without_end_ends_the_connection")
def without_watching_the_handshake() -> None:
    put(connection._PushParser, "on_connect", connection.DefaultParser.on_connect)


@guard(f"{HERE}::test_values_as_large_as_they_may_be_are_no_frame_without_end")
def without_counting_the_values_that_are_owed() -> None:
    put(pipeline.Pipeline, "values_owed", lambda _: 1)
