"""The guards that `test_cluster_pipeline` sees missing."""

from typing import Final

from magnus_cache._engine.redis import cluster_pipeline, incoming
from magnus_cache._engine.redis.confirmed_pipeline import ConfirmedPipeline
from magnus_cache._engine.redis.confirmed_wire import ConfirmedWire
from magnus_cache._engine.redis.wire import Wire
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/redis/test_cluster_pipeline.py"


@guard(f"{HERE}::test_invariant_2_an_epoch_that_came_before_its_announcement_counts_as_changed")
def without_answers_before_the_announcement_that_follows_them() -> None:
    put(cluster_pipeline.ClusterPipeline, "announced", nothing)


@guard(f"{HERE}::test_answers_however_they_arrive")
def without_stopping_at_an_answer_that_is_no_value() -> None:
    rewrite(incoming.Incoming.take_values, "if type(reply) is bytes or reply is None:", "if reply is not nothing:")


@guard(f"{HERE}::test_invariant_10_what_was_held_back_is_released_in_turns_of_the_loop")
def without_turns_of_the_loop_while_answers_are_released() -> None:
    rewrite(ConfirmedPipeline.release, "if monotonic() > until:", "if False:")


@guard(f"{HERE}::test_invariant_10_what_was_held_back_is_released_in_turns_of_the_loop")
def without_a_wait_behind_what_is_released() -> None:
    put(ConfirmedWire, "_handle", Wire._handle)
