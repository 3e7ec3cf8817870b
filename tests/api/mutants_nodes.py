"""The guards that `test_nodes` sees missing."""

from typing import Final

from magnus_cache._engine.coordination.connection_log import ConnectionLog
from magnus_cache._engine.redis.cluster_loop import ClusterLoop
from magnus_cache._engine.redis.cluster_nodes import ClusterNodes
from magnus_cache._engine.redis.cluster_wire import ClusterWire
from magnus_cache._engine.redis.confirmed_wire import ConfirmedWire
from magnus_cache._engine.redis.topology import Topology
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/api/test_nodes.py"


@guard(f"{HERE}::test_a_node_that_is_replaced")
def without_telling_that_a_node_is_replaced() -> None:
    put(ConnectionLog, "remapped", nothing)


@guard(f"{HERE}::test_a_node_that_is_away_and_back")
def without_asking_each_node_in_a_health_check() -> None:
    put(ClusterNodes, "primaries_known", Topology.primaries_known)


@guard(f"{HERE}::test_a_node_that_is_replaced")
def without_asking_the_others_while_all_requests_are_for_a_node_that_is_away() -> None:
    put(ClusterLoop, "_look_for_successor", nothing)
    put(ClusterWire, "_lost", ConfirmedWire._lost)
