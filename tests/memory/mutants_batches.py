"""The guards that `test_batches` sees missing."""

from typing import Final

from magnus_cache._engine.memory.batches import BatchCache
from tests.support.guards import guard, rewrite

HERE: Final = "tests/memory/test_batches.py"
_CHECKED: Final = "if name not in pending or pending[name] is not placeholder or name in table"
_REMOVED: Final = "\n            continue\n        del pending[name]"
_REMOVED_IF_THERE: Final = "\n            continue\n        pending.pop(name, None)"


@guard(f"{HERE}::test_many_are_kept_as_one_by_one")
def without_the_placeholder_of_what_is_packed_at_once() -> None:
    rewrite(BatchCache._packed, f"{_CHECKED} or name in shard:{_REMOVED}", f"if False:{_REMOVED_IF_THERE}")


@guard(f"{HERE}::test_what_is_invalidated_in_the_midst_of_a_batch_stays_so")
def without_a_look_at_the_placeholder_in_the_step_that_adds() -> None:
    rewrite(BatchCache._added, f"{_CHECKED}:{_REMOVED}", f"if False:{_REMOVED_IF_THERE}")


@guard(f"{HERE}::test_a_batch_leaves_what_is_in_use_hot")
def without_packing_at_once_what_the_hot_table_has_no_room_for() -> None:
    rewrite(BatchCache.fill_many, "if self._cold is not None and", "if False and")


@guard(f"{HERE}::test_a_batch_keeps_the_bounds")
def without_evictions_for_what_is_packed_at_once() -> None:
    rewrite(BatchCache._packed, "self._evict(entry)", "pass")


@guard(f"{HERE}::test_a_batch_reads_no_record_that_must_not_be_served")
def without_the_trust_of_a_record_that_a_batch_reads() -> None:
    rewrite(BatchCache._glance, "now < entry and now < trust.deadline", "now < entry")


@guard(f"{HERE}::test_a_batch_reads_no_record_that_must_not_be_served")
def without_the_clears_since_a_record_was_made() -> None:
    rewrite(BatchCache._glance, "entry.generation == self.generation or self._is_current(name, entry)", "True")


@guard(f"{HERE}::test_a_batch_reads_what_is_hot_before_records_take_its_place")
def without_reading_first_what_is_hot() -> None:
    rewrite(BatchCache.hits, "hit(name) if name in table else None", "None")


@guard(f"{HERE}::test_whether_a_batch_has_anything_in_memory")
def without_the_records_among_what_is_in_memory() -> None:
    rewrite(BatchCache.has_any, "or name in shards[hash(name) % many]", "")


@guard(f"{HERE}::test_a_batch_drops_what_nothing_has_changed")
def without_the_placeholder_of_what_a_batch_drops() -> None:
    rewrite(BatchCache.drop_many, "and pending.get(name) is placeholder", "")
