"""Guards of what a push means, and names by database; see `mutants`."""

from typing import Final

from magnus_cache import keys
from magnus_cache.redis import reclaim, recovery
from tests.support.guards import guard, put

DATABASES: Final = "tests/test_databases.py"


@guard(DATABASES)
def without_the_database_in_the_names_of_leases() -> None:
    put(keys, "_at", lambda _: "")


@guard(DATABASES)
def without_the_database_in_the_names_of_control_keys() -> None:
    original = keys.Keyspace.__init__
    put(keys.Keyspace, "__init__", lambda self, prefix="magnus", _=0: original(self, prefix))


@guard(f"{DATABASES}::test_invariant_2_a_load_of_any_database_that_is_overtaken_is_stored_nowhere")
def without_the_database_in_the_scan_for_leases() -> None:
    original = reclaim.lease_name
    put(reclaim, "lease_name", lambda name, _: original(name))


@guard(f"{DATABASES}::test_a_journal_takes_the_tags_of_its_own_database")
def without_the_database_in_the_tags_of_a_journal() -> None:
    original = recovery.Recovery.__init__
    put(recovery.Recovery, "__init__", lambda self, root, *args, **_: original(self, root, *args))
