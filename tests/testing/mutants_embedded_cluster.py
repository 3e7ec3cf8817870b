"""The guards of the kit's clusters that `test_embedded_cluster` sees missing."""

from typing import Any, Final

from magnus_cache.testing.servers import places
from magnus_cache.testing.servers.cluster import EmbeddedCluster
from magnus_cache.testing.servers.group import ServerGroup
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/testing/test_embedded_cluster.py"


@guard(f"{HERE}::test_a_node_that_is_down_keeps_its_ports")
def without_ports_that_are_kept_while_a_node_is_down() -> None:
    reserve = places._reserved

    def released(*ports: int) -> tuple[Any, ...]:
        for each in (held := reserve(*ports)):
            each.close()
        return held

    put(places, "_reserved", released)


@guard(f"{HERE}::test_the_next_test_gets_no_half_moved_slot")
def without_half_moved_slots_that_are_closed_between_tests() -> None:
    put(EmbeddedCluster, "_tidy", nothing)


@guard(f"{HERE}::test_a_slot_that_is_given_away_loses_its_keys")
def without_the_wait_until_all_know_an_owner() -> None:
    put(EmbeddedCluster, "_wait_for_owner", nothing)


@guard(f"{HERE}::test_the_end_leaves_nothing")
def without_servers_that_end_with_the_group() -> None:
    put(ServerGroup, "close", nothing)
