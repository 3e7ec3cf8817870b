"""The guards that `test_interleaved` sees missing."""

from typing import Final

from magnus_cache._engine.redis import interleaved
from magnus_cache._engine.redis.interleaved import Interleaved
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/redis/test_interleaved.py"


@guard(
    f"{HERE}::test_what_the_lane_reads_is_kept_and_own_transactions_are_understood",
    f"{HERE}::test_values_that_a_read_finds_expired_are_told_from_the_others",
)
def without_replies_apart_from_announcements() -> None:
    from magnus_cache._engine.redis import wire

    put(wire, "apart", lambda handle, _: handle)


@guard(f"{HERE}::test_replies_are_what_they_were_and_announcements_come_first")
def without_the_elements_that_follow() -> None:
    rewrite(Interleaved.handle, "self._missing = len(announcements)", "self._missing = 1")


@guard(f"{HERE}::test_replies_are_what_they_were_and_announcements_come_first")
def without_announcements_while_elements_are_missing() -> None:
    rewrite(
        Interleaved.handle, "if push_of(reply) is not None:", "if push_of(reply) is not None and not self._missing:"
    )


@guard(f"{HERE}::test_an_announcement_deeper_within_ends_the_connection")
def without_a_look_for_announcements_deeper_within() -> None:
    put(interleaved, "_check_nested", nothing)
