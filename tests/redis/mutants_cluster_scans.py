"""The guards that `test_cluster_scans` sees missing."""

from typing import Any, Final

from magnus_cache._engine.redis import cluster_scripts
from magnus_cache._engine.redis.cluster_topology import ClusterTopology
from tests.support.guards import edit, guard, put

HERE: Final = "tests/redis/test_cluster_scans.py"


@guard(f"{HERE}::test_a_glob_is_cleared_on_all_nodes_by_the_first_call")
def without_asking_for_the_primaries_first() -> None:
    async def primaries(topology: Any) -> Any:
        return topology.servers()

    put(ClusterTopology, "primaries", primaries)


@guard(f"{HERE}::test_nodes_that_slots_have_moved_to_are_scanned_again")
def without_scanning_again_where_slots_have_moved_to() -> None:
    def none(_topology: ClusterTopology, _at: float) -> list[Any]:
        return []

    put(ClusterTopology, "owners_since", none)


@guard(f"{HERE}::test_keys_of_a_slot_that_is_half_moved_are_removed")
def without_leaving_names_of_another_node_to_it() -> None:
    edit(cluster_scripts._RECLAIM, "redis.pcall('UNLINK', name)", "redis.call('UNLINK', name)")
