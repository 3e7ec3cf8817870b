"""The guards that `test_slots` sees missing."""

from typing import Any, Final

from magnus_cache._engine.redis import slots
from magnus_cache._engine.redis.slots import ClusterNode, Respondent, SlotMap
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/redis/test_slots.py"


@guard(f"{HERE}::test_what_stands_in_place_of_an_address")
def without_the_host_that_has_answered() -> None:
    def host(endpoint: Any, _ip: Any, _respondent: Respondent) -> str:
        return (endpoint or b"").decode()

    put(slots, "_host", host)


@guard(f"{HERE}::test_a_bad_map_is_refused")
def without_a_check_of_ranges() -> None:
    def checked(first: Any, last: Any) -> tuple[int, int]:
        return first, last

    put(slots, "_range", checked)


@guard(f"{HERE}::test_a_bad_map_is_refused")
def without_a_check_that_ranges_do_not_overlap() -> None:
    put(slots, "_joined", tuple)


@guard(f"{HERE}::test_a_failed_primary_beside_its_successor")
def without_a_look_at_the_health_of_primaries() -> None:
    original = slots._primary

    def primary(nodes: Any, respondent: Respondent) -> ClusterNode | None:
        return original([{**node, b"health": b"online"} for node in nodes], respondent)

    put(slots, "_primary", primary)


@guard(f"{HERE}::test_groups_that_are_split_over_nodes")
def without_groups_that_have_slots_of_nobody() -> None:
    def missing(_map: SlotMap) -> list[tuple[int, int]]:
        return []

    put(SlotMap, "missing", missing)


@guard(f"{HERE}::test_a_node_at_another_address_counts_as_changed")
def without_a_look_at_addresses() -> None:
    put(ClusterNode, "__eq__", lambda one, other: one[0] == other[0])


@guard(
    f"{HERE}::test_a_former_primary_that_is_listed_beside_its_successor",
    "tests/redis/test_cluster_successors.py::test_invariant_1_a_former_primary_that_is_still_listed_is_not_believed",
)
def without_doubt_in_a_shard_with_two_primaries() -> None:
    rewrite(
        slots._primary,
        "if len(candidates) != 1:\n        return None\n    (fields,) = candidates",
        "if not candidates:\n        return None\n    fields = candidates[0]",
    )
