"""The guards that `test_cluster_many` sees missing."""

from typing import Any, Final

from magnus_cache._engine.redis.cluster_topology import ClusterTopology
from tests.support.guards import guard, put

HERE: Final = "tests/store/test_cluster_many.py"


@guard(f"{HERE}::test_what_a_former_node_of_a_slot_answers_is_not_kept")
def without_a_look_whether_slots_have_moved_since_values_were_asked_for() -> None:
    def never(*_: Any) -> bool:
        return False

    put(ClusterTopology, "_has_moved", never)
