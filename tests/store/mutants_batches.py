"""The guards that `test_batches` sees missing."""

from typing import Any, Final

from magnus_cache._engine.redis import pipeline
from magnus_cache._engine.store import batches, key_refs, reads
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/store/test_batches.py"
SAME: Final = f"{HERE}::test_a_batch_is_judged_as_its_values_are_one_by_one"
RECEIVED: Any = batches.ValueBatches.received
PAYLOAD: Any = batches.ValueBatches.payload


@guard(SAME)
def without_the_end_of_life_in_a_batch() -> None:
    rewrite(RECEIVED, "fresh_until > past", "True")


@guard(SAME)
def without_a_highest_epoch_in_a_batch() -> None:
    rewrite(RECEIVED, "epoch <= horizon", "True")


@guard(SAME)
def without_a_least_life_in_a_batch() -> None:
    rewrite(RECEIVED, "life >= least", "True")


@guard(SAME)
def without_a_largest_value_in_a_batch() -> None:
    rewrite(RECEIVED, "size <= largest", "True")


@guard(SAME)
def without_a_look_at_the_length_in_a_batch() -> None:
    rewrite(RECEIVED, "size == length - start", "True")


@guard(SAME)
def without_a_checksum_in_a_batch() -> None:
    rewrite(RECEIVED, "crc(raw[summed:]) == checksum", "True")


@guard(SAME)
def without_the_lowest_epoch_in_a_batch() -> None:
    rewrite(RECEIVED, "if epoch >= minimum:", "if True:")


@guard(SAME)
def without_the_lowest_epoch_of_a_function_in_a_batch() -> None:
    rewrite(RECEIVED, "epoch >= minimum_tagged and", "minimum_tagged < NEVER and")


@guard(SAME)
def without_comparing_tags_in_a_batch() -> None:
    rewrite(RECEIVED, "raw.startswith(head, start)", "True")


@guard(SAME)
def without_telling_policies_apart_in_a_batch() -> None:
    rewrite(RECEIVED, "ref.epoch_names is not epoch_names or ref.namespace is not namespace", "epoch_names is None")


@guard(SAME)
def without_unknown_epochs_in_a_batch() -> None:
    rewrite(batches.bounds, "NEVER if minimum is None", "0 if minimum is None")


@guard(SAME)
def without_the_end_of_life_of_one_value() -> None:
    rewrite(PAYLOAD, "fresh_until > time.past(self._clock()) and", "True and")


@guard(SAME)
def without_a_highest_epoch_of_one_value() -> None:
    rewrite(PAYLOAD, "epoch <= time.horizon and", "True and")


@guard(SAME)
def without_a_least_life_of_one_value() -> None:
    rewrite(PAYLOAD, "life >= LEAST_LIFE", "True")


@guard(SAME)
def without_a_largest_size_of_one_value() -> None:
    rewrite(PAYLOAD, "size <= self._reads.limit(ref)", "True")


@guard(SAME)
def without_a_look_at_the_length_of_one_value() -> None:
    rewrite(PAYLOAD, "size == len(raw) - HEADER_BYTES", "True")


@guard(SAME)
def without_a_checksum_of_one_value() -> None:
    rewrite(PAYLOAD, "zlib.crc32(raw[SUMMED_FROM:]) == checksum", "True")


@guard(SAME)
def without_a_lowest_epoch_of_one_value() -> None:
    rewrite(PAYLOAD, "epoch < minimum", "False")


@guard(SAME)
def without_comparing_the_tags_of_one_value() -> None:
    rewrite(PAYLOAD, "not raw.startswith(head, HEADER_BYTES)", "False")


@guard(f"{HERE}::test_plain_values_are_accepted_without_the_readable_way")
def without_a_look_at_the_outbox_for_one_value() -> None:
    rewrite(PAYLOAD, "outbox.pending or", "")


@guard(f"{HERE}::test_an_answer_from_before_redis_was_told_is_looked_at_closely")
def without_a_look_when_one_value_was_asked_for() -> None:
    rewrite(PAYLOAD, "sent < outbox.confirmed_at\n        or", "")


@guard(f"{HERE}::test_what_redis_must_be_told_first_holds_up_a_read_of_a_batch")
def without_a_look_at_the_outbox_for_a_batch() -> None:
    rewrite(RECEIVED, "outbox.pending or sent < outbox.confirmed_at", "False")


@guard(f"{HERE}::test_one_who_leaves_a_batch_takes_nobody_along")
def without_a_look_whether_a_reader_has_left() -> None:
    rewrite(RECEIVED, "if not waiter.done():", "if True:")
    rewrite(batches.ValueBatches._settle, "if waiter.done():", "if False:")


@guard(f"{HERE}::test_a_batch_whose_connection_does_not_come_back_keeps_no_place")
def without_giving_back_the_places_of_a_lost_batch() -> None:
    put(batches.ValueBatches, "unanswered", nothing)


@guard(f"{HERE}::test_a_lost_connection_fails_each_read_of_its_batches_and_keeps_no_place")
def without_counting_the_reads_of_a_lost_batch() -> None:
    rewrite(pipeline.Pipeline._fail_batch, "self.pending -= part.stop - part.start", "pass")


@guard(f"{HERE}::test_a_fault_in_the_handling_of_a_batch_is_told_to_its_readers_alone")
def without_catching_a_fault_in_the_handling_of_a_batch() -> None:
    rewrite(pipeline.Pipeline._receive, "except Exception:", "except MemoryError:")


@guard(f"{HERE}::test_small_values_overtake_large_ones_of_which_one_reply_is_on_its_way")
def without_putting_off_large_values() -> None:
    put(pipeline, "LARGE_BYTES", 1 << 60)


@guard(f"{HERE}::test_small_values_overtake_large_ones_of_which_one_reply_is_on_its_way")
def without_waiting_for_the_reply_of_large_values() -> None:
    rewrite(pipeline.Pipeline.compose, "if self.large and not self._large_owed:", "if self.large:")


@guard(f"{HERE}::test_a_large_value_stays_with_the_epochs_that_are_requested_for_it")
def without_keeping_a_large_value_with_its_epochs() -> None:
    rewrite(
        pipeline.Pipeline._gather_batch,
        "if max(sizes) > LARGE_BYTES and not any(isinstance(part, Read) for part in parts):",
        "if max(sizes) > LARGE_BYTES:",
    )


@guard(f"{HERE}::test_large_values_that_wait_are_told_of_the_end")
def without_telling_large_values_that_wait_of_the_end() -> None:
    rewrite(pipeline.Pipeline.fail_queued, "while self.queue or self.large:", "while self.queue:")


@guard(f"{HERE}::test_what_may_be_past_is_never_taken_for_what_is_to_come")
def without_room_for_rounding() -> None:
    from magnus_cache._engine.redis import server_time

    put(server_time, "_ROUNDING", -30.0)


@guard(f"{HERE}::test_a_remembered_reference_has_the_policy_that_its_namespace_has_now")
def without_a_look_whether_a_namespace_was_registered() -> None:
    rewrite(key_refs.KeyRefs.ref, " and refs.generation == self._registry.generation", "")


@guard(f"{HERE}::test_a_remembered_reference_has_the_policy_that_its_namespace_has_now")
def without_telling_namespaces_of_one_name_apart() -> None:
    rewrite(key_refs.KeyRefs.ref, "refs.given is namespace", "True")


@guard(f"{HERE}::test_references_that_are_replaced_do_not_count_as_remembered")
def without_counting_references_anew() -> None:
    rewrite(key_refs.KeyRefs._made, "if self._count > _MOST // 2:", "if True:")


@guard(f"{HERE}::test_an_interrupt_within_a_batch_leaves_no_reader_without_an_answer")
def without_the_rest_of_a_batch_that_was_interrupted() -> None:
    rewrite(pipeline.Pipeline._answered, "except BaseException:", "except GeneratorExit:")


@guard(f"{HERE}::test_what_fits_at_a_glance_is_requested_as_by_adding_up")
def without_a_bound_on_what_fits_at_a_glance() -> None:
    rewrite(pipeline.Pipeline._gather_batch, "reads * largest <= room", "True")


@guard(f"{HERE}::test_a_read_that_keeps_nothing_asks_again_for_an_epoch_whose_time_is_over")
def without_the_end_of_lent_epochs_in_a_read_that_keeps_nothing() -> None:
    rewrite(reads._has_epochs, " and not known.lent", "")
