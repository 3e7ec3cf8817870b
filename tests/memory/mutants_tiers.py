"""The guards that `test_tiers` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coherence.trust import UnsharedTrust
from magnus_cache._engine.coordination import invalidation
from magnus_cache._engine.memory import cold, collector, records, store, tiers
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/memory/test_tiers.py"


@guard(f"{HERE}::test_an_entry_comes_back_with_all_that_is_known_of_it")
def without_a_dead_trust_on_demotion() -> None:
    rewrite(tiers.Tiers._demote, "entry.trust = DEAD", "pass")


@guard(f"{HERE}::test_a_clear_is_not_forgotten_before_the_cold_store_was_gone_through")
def without_a_check_of_clears_on_promotion() -> None:
    rewrite(tiers.Tiers._promote, "if not self._is_current(name, entry):", "if False:")
    rewrite(records.unpack, "entry.generation = generation", "entry.generation = 10**9")


@guard(f"{HERE}::test_a_clear_is_not_forgotten_before_the_cold_store_was_gone_through")
def without_visits_to_the_cold_store() -> None:
    rewrite(collector.Collecting._next_part, "1 if cold is None else 1 + len(cold.shards)", "1")


@guard(f"{HERE}::test_a_tag_reaches_records_when_nothing_else_has_its_stamp")
def without_the_stamps_of_records() -> None:
    unpack = records.unpack

    def unstamped(record: bytes, bases: Any) -> Any:
        made: Any = unpack(record, bases)
        made.stamps = ()
        return made

    put(cold, "unpack", unstamped)


@guard(f"{HERE}::test_the_number_of_a_basis_is_never_used_again")
def without_numbers_that_are_used_once() -> None:
    rewrite(records.Bases.number, "self._last = self._last + 1", "self._last = len(self.known) + 1")


@guard(f"{HERE}::test_threads_never_get_what_was_invalidated_before")
def without_counting_the_uses_of_a_basis() -> None:
    rewrite(cold.ColdStore.left, "self.bases.uses[basis_of(record)] -= 1", "pass")


@guard(f"{HERE}::test_a_lost_connection_reaches_records")
def without_the_trust_of_records() -> None:
    rewrite(records.Bases.number, "Basis(trust, stamps, room(stamps))", "Basis(Trust(1e300), stamps, room(stamps))")


@guard(
    f"{HERE}::test_a_plain_value_counts_for_as_much_as_before_it_was_packed",
    f"{HERE}::test_values_that_are_larger_when_they_come_back_stay_within_the_bound",
)
def without_the_size_of_a_plain_value_in_its_record() -> None:
    rewrite(records.unpack, 'int.from_bytes(record[start : start + _SIZE], "little")', "len(record) - start - _SIZE")


@guard(f"{HERE}::test_a_hit_finds_what_another_thread_has_just_packed")
def without_a_second_look_after_an_entry_was_packed() -> None:
    rewrite(
        store.LocalCache._make_hit,
        "None if removed else hit(name)",
        "None if removed or get(name) is None else hit(name)",
    )


@guard(f"{HERE}::test_an_object_in_use_through_those_who_hold_it_is_not_evicted")
def without_a_dead_trust_of_a_packed_object() -> None:
    rewrite(tiers.Tiers._demote, "    entry.trust = DEAD", "    entry.trust = DEAD if record else entry.trust")


@guard(f"{HERE}::test_an_object_that_comes_again_is_the_last_to_be_evicted")
def without_the_turn_that_an_object_loses_when_it_is_used() -> None:
    rewrite(cold.ColdStore.left, "if pair[0] != name", "")


@guard(f"{HERE}::test_a_reset_waits_for_a_promotion")
def without_the_lock_in_a_reset() -> None:
    rewrite(store.LocalCache.reset, "with self._lock:", "if True:")


@guard(f"{HERE}::test_a_fill_replaces_a_record")
def without_removing_the_record_that_a_fill_supersedes() -> None:
    rewrite(store.LocalCache._store, "self._cold.discard(name)", "pass")


@guard(f"{HERE}::test_whatever_removes_an_entry_removes_a_record")
def without_records_in_an_invalidation() -> None:
    rewrite(tiers.Tiers._forget, "self._discard(name) or removed", "removed")


@guard(f"{HERE}::test_a_handler_in_the_midst_of_a_section_finds_no_record")
def without_a_look_whether_a_section_is_interrupted_before_a_promotion() -> None:
    put(tiers, "engaged", lambda: False)


@guard(f"{HERE}::test_what_was_invalidated_in_the_midst_of_a_move_stays_so")
def without_a_look_at_the_table_in_the_step_that_demotes() -> None:
    rewrite(tiers.Tiers._demote, "if name not in table or table[name] is not entry:", "if False:")


@guard(f"{HERE}::test_what_was_invalidated_in_the_midst_of_a_move_stays_so")
def without_a_look_at_the_shard_in_the_step_that_promotes() -> None:
    rewrite(tiers.Tiers._promote, "if name not in shard or shard[name] is not record:", "if False:")


@guard(f"{HERE}::test_what_was_not_used_for_the_longest_time_is_evicted")
def without_the_order_of_demotion() -> None:
    def oldest(self: Any) -> bytes | None:
        for shard in self.shards:
            for name in reversed(shard):
                return bytes(name)
        return None

    put(cold.ColdStore, "oldest", oldest)


@guard(f"{HERE}::test_too_many_bases_keep_objects")
def without_a_bound_on_bases() -> None:
    rewrite(records.Bases.number, "if len(self.known) >= MOST_BASES:", "if False:")


@guard(f"{HERE}::test_what_only_this_process_has_outlives_a_replay_in_its_tier")
def without_keeping_what_only_this_process_has() -> None:
    rewrite(cold.ColdStore.trust, "return self.bases.known[basis_of(record)].trust", "return None")


@guard(f"{HERE}::test_what_only_this_process_has_outlives_a_replay_in_its_tier")
def without_leaving_records_packed_in_a_replay() -> None:
    def forget_read(self: Any, names: Any) -> None:
        for name in names:
            found = self.memory.get_stale(name, trusted=False)
            if found is None or not isinstance(found.trust, UnsharedTrust):
                self.memory.invalidate(name)

    put(invalidation.Invalidation, "forget_read", forget_read)
