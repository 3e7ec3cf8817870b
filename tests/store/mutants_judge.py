"""The guards that `test_judge` sees missing: one for each condition of the judge, and the paths that ask it."""

from typing import Any, Final

from magnus_cache._engine.outage import outbox
from magnus_cache._engine.store import judge, local_values, reads, stored_values, writes
from magnus_cache._engine.store.judge import Verdict
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/store/test_judge.py"
RULES: Final = f"{HERE}::test_the_verdict_is_that_of_the_naive_rules"
OFFLINE: Final = f"{HERE}::test_memory_serves_in_an_outage_what_was_good_when_it_began_and_for_as_long_as_is_allowed"
REPLAY: Final = f"{HERE}::test_a_replay_that_ends_while_a_value_is_judged"
ANSWER: Final = f"{HERE}::test_an_answer_from_before_redis_was_told_is_not_believed"
OBJECT: Final = f"{HERE}::test_a_replay_that_ends_while_an_object_is_judged"
REPLACED: Final = f"{HERE}::test_what_was_replaced_by_what_is_of_no_use_is_not_kept_for_an_outage"


# -- values of Redis ----------------------------------------------------------------------------------------------


@guard(RULES, f"{HERE}::test_what_waits_to_be_told_always_wins")
def without_judging_by_what_waits_to_be_told() -> None:
    rewrite(judge.judge, "if pending:", "if False:")


@guard(RULES, f"{HERE}::test_a_remembered_error_is_never_stale_and_only_for_those_who_remember")
def without_judging_remembered_errors_by_the_callers_policy() -> None:
    rewrite(judge.judge, "if record.negative and not policy.negative:", "if False:")


@guard(RULES)
def without_judging_by_the_end_of_life() -> None:
    rewrite(judge.judge, "if left <= 0 and (", "if False and (")


@guard(
    f"{HERE}::test_a_remembered_error_is_never_stale_and_only_for_those_who_remember",
    f"{HERE}::test_an_error_that_is_remembered_no_more_is_loaded_anew",
)
def without_an_end_of_remembered_errors_at_their_end() -> None:
    rewrite(judge.judge, "record.negative or left", "left")


@guard(RULES, f"{HERE}::test_a_stale_value_stays_for_callers_with_more_grace")
def without_grace_in_the_judge() -> None:
    rewrite(judge.judge, "left + policy.grace <= 0", "True")


@guard(RULES, f"{HERE}::test_a_value_that_was_overtaken_on_its_way_to_redis_is_not_kept_here")
def without_judging_by_whether_epochs_are_known() -> None:
    rewrite(judge.judge, "return _UNKNOWN", "minimum = 0")


@guard(f"{HERE}::test_nothing_is_served_below_its_minimum_or_above_what_is_possible")
def without_a_minimum_of_epochs_in_the_judge() -> None:
    rewrite(judge.judge, "if record.epoch < minimum:", "if False:")


@guard(f"{HERE}::test_nothing_is_served_below_its_minimum_or_above_what_is_possible")
def without_a_horizon_of_epochs_in_the_judge() -> None:
    rewrite(judge.judge, "if record.epoch > horizon:", "if False:")


@guard(RULES, "tests/store/test_touch.py")
def without_telling_stale_values_from_fresh_ones() -> None:
    rewrite(judge.judge, "return _FRESH if left > 0 else _STALE", "return _FRESH")


# -- memory in an outage ------------------------------------------------------------------------------------------


@guard(OFFLINE)
def without_asking_redis_first_where_it_can_be_asked() -> None:
    rewrite(judge.judge_offline, "if reachable:", "if False:")


@guard(OFFLINE, f"{HERE}::test_a_value_from_before_an_earlier_outage_is_not_served")
def without_judging_by_the_outage_that_a_value_was_good_at() -> None:
    rewrite(judge.judge_offline, "if not heard:", "if False:")


@guard(OFFLINE)
def without_an_end_of_life_in_an_outage() -> None:
    rewrite(judge.judge_offline, "if left + grace > 0 else _EXPIRED", "if True else _EXPIRED")


# -- the evidence -------------------------------------------------------------------------------------------------


@guard(REPLAY)
def without_looking_at_the_outbox_before_the_epochs() -> None:
    pending = """pending = outbox.pending and outbox.covers(ref.name, map(epochs.tag_name, record.tags))
    pending = pending or (asked < outbox.confirmed_at and outbox.was_covered(ref.name, asked))"""
    minimum = "minimum = epochs.lowest_valid(source.known, ref.epoch_names, record.tags)"
    rewrite(judge.verdict, f"{pending}\n    {minimum}", f"{minimum}\n    {pending}")


@guard(REPLAY, OBJECT)
def without_looking_at_the_outbox_before_epochs_that_were_waited_for() -> None:
    pending = "pending = covered(state, ref, record.tags) or state.outbox.was_covered(ref.name, asked)"
    minimum = "minimum = state.epochs.lowest_valid_seen(ref.epoch_names, record.tags)"
    rewrite(judge.settled_verdict, f"{pending}\n    {minimum}", f"{minimum}\n    {pending}")


@guard(ANSWER)
def without_doubting_answers_to_what_was_asked_before_redis_was_told() -> None:
    put(outbox.Outbox, "was_covered", lambda *_: False)


@guard(f"{HERE}::test_names_that_redis_was_told_of_are_bounded")
def without_a_bound_on_names_that_redis_was_told_of() -> None:
    rewrite(outbox.Outbox._note_confirmed, "if len(self._confirmed) > self._most_names:", "if False:")


@guard(f"{HERE}::test_names_that_redis_was_told_of_are_bounded")
def without_counting_as_covered_what_is_told_apart_no_more() -> None:
    rewrite(outbox.Outbox._note_confirmed, "self._confirmed_before = now", "pass")


# -- the paths ----------------------------------------------------------------------------------------------------


def _always(*_: Any, **__: Any) -> Verdict:
    return Verdict.FRESH


@guard(REPLAY)
def without_judging_what_is_read() -> None:
    put(reads, "verdict", _always)


@guard(REPLAY)
def without_judging_lifetimes() -> None:
    put(stored_values, "settled_verdict", _always)


@guard(OBJECT, f"{HERE}::test_an_object_of_a_policy_is_not_served_stale_to_callers_without_one")
def without_judging_objects() -> None:
    put(local_values, "settled_verdict", _always)


@guard(f"{HERE}::test_a_value_that_was_overtaken_on_its_way_to_redis_is_not_kept_here")
def without_judging_what_is_kept_of_a_write() -> None:
    put(writes, "judge", _always)


@guard(REPLACED)
def without_letting_go_of_what_an_unreadable_value_replaced() -> None:
    rewrite(
        reads.Reads.received,
        "        self.unreadable(ref, error)\n        self._gone(placeholder)\n",
        "        self.unreadable(ref, error)\n",
    )


@guard(REPLACED)
def without_letting_go_of_what_a_useless_value_replaced() -> None:
    put(reads.Reads, "_is_replaced", lambda *_: False)


@guard(f"{HERE}::test_a_stale_value_stays_for_callers_with_more_grace")
def without_keeping_what_others_may_have() -> None:
    put(reads.Reads, "_is_replaced", lambda *_: True)


@guard(f"{HERE}::test_an_overflow_of_told_names_in_the_midst_of_a_look_hides_none")
def without_a_look_at_told_names_before_their_bound() -> None:
    rewrite(
        outbox.Outbox.was_covered,
        "asked < self._confirmed.get(name, -math.inf) or asked < self._confirmed_before",
        "asked < self._confirmed_before or asked < self._confirmed.get(name, -math.inf)",
    )
