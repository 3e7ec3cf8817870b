"""The guards that `test_databases` sees missing."""

from typing import Final

from magnus_cache._engine.keys import names as keys
from magnus_cache._engine.outage import outbox
from magnus_cache._engine.redis import bulk
from tests.support.guards import guard, put

HERE: Final = "tests/redis/test_databases.py"


@guard(HERE)
def without_the_database_in_the_names_of_leases() -> None:
    put(keys, "_at", lambda _: "")


@guard(HERE)
def without_the_database_in_the_names_of_control_keys() -> None:
    original = keys.Keyspace.__init__
    put(
        keys.Keyspace,
        "__init__",
        lambda self, prefix="magnus", _=0, namespaces=(): original(self, prefix, namespaces=namespaces),
    )


@guard(f"{HERE}::test_invariant_2_a_load_of_any_database_that_is_overtaken_is_stored_nowhere")
def without_the_database_in_the_scan_for_leases() -> None:
    original = bulk.lease_name
    put(bulk, "lease_name", lambda name, _database=0: original(name))


@guard(f"{HERE}::test_a_journal_takes_the_tags_of_its_own_database")
def without_the_database_in_the_tags_of_a_journal() -> None:
    original = outbox.Outbox.__init__
    put(outbox.Outbox, "__init__", lambda self, root, *args, **_: original(self, root, *args))
