"""The guards that `test_sealed` and `test_sealed_rotation` see missing."""

from typing import Final

from magnus_cache._engine.api.explain import _in_redis
from magnus_cache._engine.codec import refusals
from magnus_cache._engine.loading.batch_results import BatchResults
from magnus_cache._engine.store import records, stored_values
from magnus_cache._engine.store.atomic_writes import AtomicWrites
from magnus_cache._engine.store.lifetimes import Lifetimes
from magnus_cache._engine.store.portions import Portion
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.removals import Removals
from magnus_cache._engine.store.transactions import ValuesToWrite
from magnus_cache._engine.store.values import Coding
from magnus_cache._engine.store.writes import Writes
from magnus_cache._engine.store.writes_many import ManyWrites
from tests.support.guards import guard, rewrite

HERE: Final = "tests/store/test_sealed.py"
ROTATION: Final = "tests/store/test_sealed_rotation.py"
HOSTILE: Final = f"{HERE}::test_hostile_bytes_are_counted_misses"
SEARCH: Final = f"{HERE}::test_nothing_secret_is_in_redis_in_logs_or_in_tools"


@guard(HOSTILE)
def without_the_readable_way_for_sealed_values_of_a_batch() -> None:
    rewrite(Portion._evidence, " or ref.namespace.seal", "")


@guard(HOSTILE)
def without_the_readable_way_for_sealed_values_that_are_not_kept() -> None:
    rewrite(records.KeyRef.__init__, "not namespace.seal and", "")


@guard(HOSTILE)
def without_unsealed_values_refused_where_they_are_received() -> None:
    rewrite(
        Reads.received,
        "raw = self.plain(ref, raw)",
        "raw = raw if not raw[7:8] or not raw[7] & 4 else self.plain(ref, raw)",
    )


@guard(HOSTILE)
def without_unsealed_values_refused_where_they_are_judged() -> None:
    rewrite(
        stored_values._checked,
        "writes.reads.plain(ref, raw)",
        "writes.reads.plain(ref, raw) if raw[7:8] > b'\\x03' else raw",
    )


@guard(HOSTILE)
def without_a_count_of_values_that_cannot_be_opened() -> None:
    rewrite(Coding.unreadable, "+= error.reason in SEAL_FAILURES", "+= 0")


@guard(HOSTILE)
def without_a_look_into_sealed_values_to_explain_them() -> None:
    rewrite(_in_redis, "plain = reads.plain(ref, raw)", "plain = raw")


@guard(f"{HERE}::test_an_entry_that_is_compared_is_opened_again")
def without_sealed_values_read_again_after_a_reconnection() -> None:
    rewrite(Reads.request, "or ref.namespace.seal", "")


@guard(SEARCH)
def without_a_seal_on_single_values() -> None:
    rewrite(Writes._send, "if ref.namespace.seal:", "if False:")


@guard(SEARCH)
def without_a_seal_on_values_of_a_batch() -> None:
    rewrite(ValuesToWrite.parts, " or namespace.seal", "")


@guard(f"{HERE}::test_every_operation_works")
def without_a_seal_on_values_of_a_batch_loader() -> None:
    rewrite(BatchResults.__init__, " or ref.namespace.seal", "")


@guard(f"{HERE}::test_every_operation_works")
def without_a_seal_on_touched_values() -> None:
    rewrite(Lifetimes._replace, "if ref.namespace.seal:", "if False:")


@guard(f"{HERE}::test_counters_of_many_threads_are_exact")
def without_sealed_counters_counted_here() -> None:
    rewrite(AtomicWrites.increment, "self._count_sealed if ref.namespace.seal else", "")


@guard(SEARCH)
def without_paths_left_out_of_messages_about_sealed_values() -> None:
    rewrite(refusals.explained, "if hidden and", "if False and")


@guard(f"{ROTATION}::test_old_values_open_new_ones_have_the_first_key_and_retired_keys_are_misses")
def without_a_look_under_the_other_names_of_a_sealed_value() -> None:
    rewrite(Reads._read_each, "in ref.others:", "in ref.others[:1]:")


@guard(f"{ROTATION}::test_neighbouring_steps_agree")
def without_a_removal_of_the_other_names_by_a_write() -> None:
    rewrite(Removals.replaces, "await self.remove_named(names)", "pass")


@guard(f"{ROTATION}::test_neighbouring_steps_agree")
def without_a_removal_of_all_names_by_a_delete() -> None:
    rewrite(ManyWrites.remove, "for each in ref.each()]", "for each in ref.each()[:1]]")


@guard(f"{ROTATION}::test_neighbouring_steps_agree")
def without_a_search_for_the_name_of_a_counter() -> None:
    rewrite(AtomicWrites.place_of, "in ref.others:", "in ref.others[:1]:")


@guard(f"{ROTATION}::test_an_interrupted_write_leaves_no_other_name")
def without_a_record_of_the_other_names_of_an_interrupted_write() -> None:
    rewrite(Removals.replaces, "self.unsure(names)", "pass")


@guard(f"{ROTATION}::test_a_loaded_value_replaces_those_of_other_names")
def without_a_removal_of_the_other_names_by_a_load() -> None:
    rewrite(Writes.fill, "elif ref.others:", "elif False:")
