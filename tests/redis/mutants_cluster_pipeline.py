"""The guards that `test_cluster_pipeline` sees missing."""

from typing import Final

from magnus_cache._engine.redis import cluster_pipeline, incoming
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/redis/test_cluster_pipeline.py"


@guard(f"{HERE}::test_invariant_2_an_epoch_that_came_before_its_announcement_counts_as_changed")
def without_answers_before_the_announcement_that_follows_them() -> None:
    put(cluster_pipeline.ClusterPipeline, "announced", nothing)


@guard(f"{HERE}::test_answers_however_they_arrive")
def without_stopping_at_an_answer_that_is_no_value() -> None:
    rewrite(incoming.Incoming.take_values, "if type(reply) is bytes or reply is None:", "if reply is not nothing:")
