"""The guards that `test_cluster_batches` sees missing."""

from typing import Any, Final

from magnus_cache._engine.loading.acquire_many import ManyAcquirer
from magnus_cache._engine.redis import cluster_scripts
from tests.support.guards import edit, guard, rewrite

HERE: Final = "tests/loading/test_cluster_batches.py"
ACQUIRE: Any = ManyAcquirer.acquire
RECEIVED: Any = ManyAcquirer._received


@guard(f"{HERE}::test_the_lease_of_a_slot_that_has_moved_is_heard_of_from_its_new_node")
def without_a_look_at_the_connection_that_has_brought_a_lease_of_a_batch() -> None:
    rewrite(RECEIVED, " or source is not self.wire", "")


@guard(f"{HERE}::test_leases_and_values_of_cached_calls_and_of_warming_travel_by_node")
def without_the_epochs_of_all_groups_that_a_batch_has_keys_in() -> None:
    rewrite(ACQUIRE, "if state.topology.is_cluster:", "if False:")


@guard(f"{HERE}::test_invariant_3_two_processes_that_load_a_batch_of_a_cluster_load_each_key_once")
def without_respect_for_the_lease_of_another_process_in_a_batch_of_a_cluster() -> None:
    edit(cluster_scripts._LEASE, "'NX', ", "")


@guard(f"{HERE}::test_invariant_3_two_processes_that_load_a_batch_of_a_cluster_load_each_key_once")
def without_a_look_at_the_token_of_a_lease_of_a_batch_of_a_cluster() -> None:
    edit(cluster_scripts._LEASE, "== ARGV[1] and 1 or 0", "and 1 or 1")
