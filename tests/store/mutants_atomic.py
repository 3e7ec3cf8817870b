"""The guards that `test_atomic` sees missing."""

from typing import Any, Final

from magnus_cache._engine.redis import scripts_atomic
from magnus_cache._engine.runtime import key_queues
from magnus_cache._engine.store import atomic_writes, stored_values, updates, writes
from tests.support.guards import edit, guard, nothing, put, rewrite

HERE: Final = "tests/store/test_atomic.py"

MACHINE: Final = "tests/store/test_atomic_machine.py"


@guard(HERE)
def without_judging_what_was_counted() -> None:
    rewrite(atomic_writes.AtomicWrites._count, "if attempt.done and not (invalidated or ended):", "if attempt.done:")


@guard(HERE)
def without_the_epoch_of_a_counter_in_its_script() -> None:
    edit(scripts_atomic._INCREMENT, "< tonumber(lowest)", "< 0")
    rewrite(atomic_writes.AtomicWrites._count, "if attempt.done and not (invalidated or ended):", "if attempt.done:")


@guard(HERE)
def without_the_checksum_of_a_counter() -> None:
    edit(scripts_atomic._INCREMENT, "if sum(string.sub(value, 8)) ~= string.sub(value, 4, 7) then", "if false then")


@guard(HERE)
def without_voiding_the_lease_of_what_is_counted() -> None:
    edit(scripts_atomic._INCREMENT, "if KEYS[2] then redis.call('DEL', KEYS[2]) end", "")


@guard(HERE)
def without_voiding_the_lease_of_what_is_swapped() -> None:
    edit(scripts_atomic._SWAP, "if KEYS[2] then redis.call('DEL', KEYS[2]) end", "")


@guard(HERE)
def without_comparing_what_is_swapped() -> None:
    edit(scripts_atomic._SWAP, "head ~= expected", "false")


@guard(HERE)
def without_judging_what_is_in_the_way() -> None:
    async def judged(*_: Any) -> Any:
        return stored_values.Judged(None)

    put(atomic_writes, "judged", judged)


@guard(HERE)
def without_an_error_for_a_lost_increment() -> None:
    rewrite(
        atomic_writes.AtomicWrites.increment,
        'raise maybe_done(error, "incr", "counted") from error', "return await self._count(ref, change)",
    )  # fmt: skip


@guard(HERE)
def without_knowing_an_own_value_after_a_lost_answer() -> None:
    rewrite(atomic_writes.AtomicWrites.swapped, "done = found[VERSION_AT : VERSION_AT + 8] == version", "pass")


@guard(HERE)
def without_an_error_for_an_update_that_may_be_done() -> None:
    rewrite(updates.Update._store, "if swapped.unsure:", "if False:")


@guard(HERE)
def without_detaching_what_an_atomic_write_overtakes() -> None:
    put(writes.Writes, "void_loads", nothing)


@guard(HERE)
def without_telling_redis_what_was_updated_in_an_outage() -> None:
    rewrite(updates.Update._store_here, "if self._away:\n            # As", "if False:\n            # As")


@guard(HERE)
def without_a_limit_for_turns() -> None:
    put(key_queues._Queue, "limit", nothing)


@guard(f"{MACHINE}::test_a_counter_ends_by_the_clock_of_the_cache")
def without_the_end_of_a_counter_by_the_clock_of_the_cache() -> None:
    rewrite(atomic_writes.AtomicWrites._count, "(invalidated or ended)", "invalidated")


@guard(f"{MACHINE}::test_what_is_written_after_a_clear_elsewhere_is_there_for_all")
def without_a_look_at_what_was_added_on_nothing() -> None:
    rewrite(atomic_writes.AtomicWrites._add, "await still_valid(self, wire, ref, record)", "True")


@guard(f"{MACHINE}::test_what_is_written_after_a_clear_elsewhere_is_there_for_all")
def without_the_epoch_of_after_an_update_has_found_nothing() -> None:
    rewrite(updates.Update._from_redis, "self._epoch = self._state.epochs.highest", "self._epoch = self._epoch or 1")


@guard(HERE)
def without_a_script_that_creates_no_counter() -> None:
    edit(scripts_atomic._INCREMENT, "if created == '' then return {0, false} end", "")


@guard(HERE)
def without_missing_counters_in_an_outage() -> None:
    rewrite(atomic_writes.AtomicWrites._count_here, "if begins and not change.create:", "if False:")
