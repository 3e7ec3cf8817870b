"""The guards that `test_policy` sees missing."""

from typing import Final

from magnus_cache._engine.memory import policy
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/memory/test_policy.py"


@guard(f"{HERE}::test_the_default_is_within_one_percent_of_an_exact_lru")
def without_shares_that_adapt() -> None:
    rewrite(policy.Car.added, "self._share + max(", "0.0 * max(")


@guard(f"{HERE}::test_a_policy_keeps_the_bound_and_loses_no_entry")
def without_dropping_the_names_of_removed_entries() -> None:
    put(policy._Queues, "_compact", nothing)


@guard(f"{HERE}::test_a_scan_passes_what_is_in_use")
def without_a_queue_of_new_entries() -> None:
    rewrite(policy.Car.victim, "self._push(2, name, entry)", "self._push(1, name, entry)")
