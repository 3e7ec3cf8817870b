"""The guards that `test_many` sees missing."""

from typing import Any, Final

from magnus_cache._engine.memory import batches
from magnus_cache._engine.redis import client_many, commands
from magnus_cache._engine.store import writes_many
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/store/test_many.py"


@guard(f"{HERE}::test_one_value_that_is_refused_is_not_told_as_stored")
def without_a_look_at_each_answer_of_a_transaction() -> None:
    def stored(count: int, receive: Any, _: Any, connection: Any, sent: float) -> Any:
        return receive(client_many.Stored((), True), connection, sent)

    put(client_many, "_stored", stored)


@guard(f"{HERE}::test_a_cancelled_call_distrusts_what_it_may_have_written")
def without_a_record_of_transactions_given_up() -> None:
    put(writes_many.ManyWrites, "_give_up", nothing)


@guard(f"{HERE}::test_what_others_change_is_not_served_from_memory")
def without_tracking_many_values_after_their_write() -> None:
    many = commands.store_many

    def store_many(names: Any, *args: Any, **more: Any) -> Any:
        command = many(names, *args, **more)
        command.packed = command.packed.replace(commands.pack(b"EXISTS", *names), commands.pack(b"ECHO", b"x"))
        return command

    def stored(count: int, receive: Any, _: Any, connection: Any, sent: float) -> Any:
        return receive(client_many.Stored((), True), connection, sent)

    put(commands, "store_many", store_many)
    put(client_many, "_stored", stored)


@guard(f"{HERE}::test_a_load_under_way_does_not_store_over_many_later_values")
def without_voiding_the_leases_of_many_values() -> None:
    many = commands.store_many

    def store_many(names: Any, *args: Any, **more: Any) -> Any:
        command = many(names, *args, **more)
        leases = [commands.lease_name(name, 0) for name in names]
        command.packed = command.packed.replace(commands.pack(b"DEL", *leases), commands.pack(b"EXISTS", *leases))
        return command

    put(commands, "store_many", store_many)


@guard(f"{HERE}::test_invalidating_many_names_voids_their_placeholders")
def without_invalidating_many_names() -> None:
    put(batches.BatchCache, "invalidate_many", nothing)


@guard(
    f"{HERE}::test_a_lost_connection_in_between_loses_nothing",
    f"{HERE}::test_a_full_server_keeps_values_in_this_process",
)
def without_writing_one_by_one_what_a_transaction_has_not_stored() -> None:
    async def all_is_well(_self: Any, _items: Any) -> bool:
        return True

    put(writes_many.ManyWrites, "_write_each", all_is_well)
