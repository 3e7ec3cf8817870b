"""The guards that `test_bad_deployments` sees missing."""

from typing import Any, Final

from magnus_cache._engine.redis import sentinel_wire
from magnus_cache._engine.redis.cluster_loop import ClusterLoop
from magnus_cache._engine.redis.cluster_pipeline import ClusterPipeline
from magnus_cache._engine.redis.cluster_topology import ClusterTopology
from magnus_cache._engine.redis.cluster_unowned import UnownedSlots
from magnus_cache._engine.redis.sentinel_watch import SentinelWatch
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/redis/test_bad_deployments.py"


@guard(f"{HERE}::test_invariant_1_a_sentinel_that_may_not_tell_all_is_no_majority")
def without_turning_down_sentinels_that_may_not_tell_all() -> None:
    rewrite(SentinelWatch._told_by_sentinel, "in replies[1:]", "in replies[1:2]")


@guard(f"{HERE}::test_invariant_1_a_server_of_sentinel_that_does_not_tell_its_role")
def without_turning_down_servers_that_do_not_tell_their_role() -> None:
    put(sentinel_wire, "NoPermissionError", ())


@guard(f"{HERE}::test_a_cluster_that_serves_the_slots_that_have_an_owner")
def without_failing_calls_on_unowned_slots_at_once() -> None:
    rewrite(UnownedSlots.gives_up, "is_unowned and now < self._until", "False")


@guard(f"{HERE}::test_a_read_of_the_only_slot_without_an_owner_ends")
def without_the_way_of_a_read_that_is_repeated() -> None:
    rewrite(ClusterPipeline._sorted_out, " or len(part) == 1", "")


@guard(f"{HERE}::test_a_cluster_that_was_made_anew_at_the_same_address")
def without_a_look_at_the_nodes_of_the_settings_when_all_are_lost() -> None:
    rewrite(ClusterLoop.went_away, "if not any(", "if False and not any(")


@guard(f"{HERE}::test_nodes_of_two_clusters")
def without_a_check_whether_the_nodes_belong_together() -> None:
    def unchecked(_topology: Any) -> None:
        return None

    put(ClusterTopology, "check_seeds", unchecked)
