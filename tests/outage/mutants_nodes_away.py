"""The guards that `test_nodes_away` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coordination.node_generations import NodeGenerations
from magnus_cache._engine.redis.cluster_topology import ClusterTopology
from magnus_cache._engine.redis.cluster_wire import ClusterWire
from magnus_cache._engine.redis.topology import Topology
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/outage/test_nodes_away.py"


@guard(f"{HERE}::test_keys_of_a_node_that_is_away_are_served_as_in_an_outage")
def without_outages_of_single_nodes() -> None:
    put(ClusterTopology, "reaches", Topology.reaches)


@guard(f"{HERE}::test_what_was_not_confirmed_since_the_last_outage_is_not_served_in_the_next")
def without_outage_generations_of_single_nodes() -> None:
    def heard(*_: Any) -> bool:
        return True

    put(NodeGenerations, "heard", heard)


@guard(f"{HERE}::test_values_of_a_node_that_was_away_are_confirmed_when_it_is_back")
def without_confirming_what_was_stored_while_a_node_was_away() -> None:
    put(NodeGenerations, "_confirm", nothing)


@guard(f"{HERE}::test_keys_of_a_node_that_is_away_are_served_as_in_an_outage")
def without_one_breaker_for_a_node_however_it_was_found() -> None:
    put(ClusterWire, "switch_breaker", nothing)
