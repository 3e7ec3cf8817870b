"""The guards that `test_large_values` sees missing."""

from typing import Any, Final

from magnus_cache._engine.redis import large_wire, topology, wire
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/redis/test_large_values.py"


@guard(f"{HERE}::test_no_small_value_waits_for_a_large_one")
def without_connections_for_large_values() -> None:
    put(topology.Topology, "connection_for_large", topology.Topology.connection)


@guard(f"{HERE}::test_a_small_value_of_a_namespace_with_large_ones_comes_through_the_idle_connection")
def without_preferring_the_idle_connection_for_large_values() -> None:
    original = large_wire.LargeWires.idlest

    def idlest(self: Any, now: float) -> Any:
        original(self, now)
        return next((wire for wire in self.all if wire.up), None)

    put(large_wire.LargeWires, "idlest", idlest)


@guard(f"{HERE}::test_there_are_few_connections_for_large_values")
def without_a_bound_on_connections_for_large_values() -> None:
    put(large_wire, "MOST_LARGE", 100)


@guard(f"{HERE}::test_large_values_come_through_the_connection_for_all_if_the_server_allows_no_other")
def without_keeping_silent_about_a_missing_connection_for_large_values() -> None:
    put(large_wire.LargeWire, "_live", wire.Wire._live)


@guard(f"{HERE}::test_a_cache_that_is_closed_makes_no_connection_for_large_values")
def without_refusing_connections_for_large_values_after_a_close() -> None:
    rewrite(topology.Topology._created_large, "self._check_open()", "pass")
