"""The guards that `test_announcements` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coherence import epochs, known_epochs
from magnus_cache._engine.coordination import epoch_sync, lease, leases, state
from magnus_cache._engine.flights import callers
from magnus_cache._engine.loading import acquire, joining
from magnus_cache._engine.redis import pipeline, sender
from magnus_cache._engine.runtime import backoff
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/coordination/test_announcements.py"


@guard(f"{HERE}::test_invariant_3_an_announced_lease_that_stands_is_no_lost_one")
def without_asking_before_a_lease_is_given_up() -> None:
    put(lease.Lease, "doubt", lambda self: self._owner.voided(self))


@guard(f"{HERE}::test_an_announced_lease_that_is_gone_is_given_up")
def without_asking_whether_an_announced_lease_stands() -> None:
    put(lease.Lease, "_ask", nothing)


@guard(f"{HERE}::test_invariant_1_nobody_joins_before_redis_has_said_that_the_lease_stands")
def without_a_joiners_own_question() -> None:
    put(joining.JoinRules, "_in_doubt", lambda *_: False)


@guard(f"{HERE}::test_who_cannot_be_told_whether_a_lease_stands_does_not_join")
def without_refusing_to_join_on_an_unanswered_question() -> None:
    original = joining.JoinRules.confirm

    async def confirm(self: Any, *args: Any) -> None:
        detach, self.flights.detach_flight = self.flights.detach_flight, nothing
        try:
            await original(self, *args)
        finally:
            self.flights.detach_flight = detach

    put(joining.JoinRules, "confirm", confirm)


@guard(f"{HERE}::test_many_who_cannot_be_told_whether_a_lease_stands_share_one_load")
def without_a_load_for_all_who_get_no_answer() -> None:
    put(callers.JoiningCaller, "began_before", lambda *_: False)


@guard(f"{HERE}::test_a_question_that_is_refused_detaches_the_load_and_keeps_its_lease")
def without_doubt_after_a_question_that_failed() -> None:
    put(leases.Leases, "uncertain", nothing)


@guard(f"{HERE}::test_invariant_3_a_flush_elsewhere_voids_no_lease")
def without_asking_after_a_flush() -> None:
    def flushed(self: Any, wire: Any) -> None:
        for held in list(self._held.values()):
            self.voided(held)
        self.notify_all()

    put(leases.Leases, "flushed", flushed)


@guard(f"{HERE}::test_an_announced_epoch_that_has_not_risen_outdates_nothing")
def without_reading_an_epoch_again_before_its_values_go() -> None:
    def announced(self: Any, name: bytes, wire: Any, **_: Any) -> None:
        wire.known.discard(name)
        self._outdated(name)

    put(epoch_sync.EpochSync, "announced", announced)


@guard(f"{HERE}::test_invariant_1_an_epoch_that_rose_outdates_what_it_is_about")
def without_following_up_announced_epochs() -> None:
    put(epoch_sync.EpochSync, "_ask_again", nothing)


@guard(f"{HERE}::test_what_another_connection_learns_of_an_epoch_counts_for_all")
def without_acting_on_an_epoch_that_rose() -> None:
    original = epochs.Epochs.seen

    def seen(self: Any, *args: Any) -> bool:
        original(self, *args)
        return False

    put(epochs.Epochs, "seen", seen)


@guard(f"{HERE}::test_invariant_1_no_answer_extends_trust_past_an_open_question")
def without_holding_trust_while_an_epoch_is_in_doubt() -> None:
    put(known_epochs.KnownEpochs, "trusted_from", property(lambda self: self.confirmed))


@guard(f"{HERE}::test_invariant_7_what_was_announced_and_not_followed_up_is_no_fallback")
def without_assuming_the_worst_of_a_lost_connections_announcements() -> None:
    put(epoch_sync.EpochSync, "cut", nothing)


@guard(f"{HERE}::test_an_epoch_that_cannot_be_read_again_counts_as_risen")
def without_assuming_the_worst_of_an_epoch_that_cannot_be_read() -> None:
    put(epoch_sync.EpochSync, "_unanswered", lambda _, known, name, *ended: epoch_sync._end(known, name, *ended))


@guard(f"{HERE}::test_invariant_1_nobody_joins_before_an_announced_epoch_is_read_again")
def without_waiting_for_an_announced_epoch_before_joining() -> None:
    put(state.State, "doubts", lambda *_: False)


@guard(f"{HERE}::test_settled_takes_an_answer_that_an_announcement_has_followed")
def without_counting_answers_that_an_announcement_has_followed() -> None:
    put(epochs.Epochs, "lowest_valid_seen", nothing)


@guard(f"{HERE}::test_every_operation_works_where_nothing_can_be_tracked")
def without_reading_a_value_and_its_epochs_in_one_reply() -> None:
    original = epoch_sync.EpochSync.prepare

    def prepare(self: Any, *args: Any, again: bool = False) -> None:
        original(self, *args)

    put(epoch_sync.EpochSync, "prepare", prepare)


_ONE_REPLY: Final = f"{HERE}::test_a_value_that_is_requested_with_its_epochs_comes_in_one_reply_with_them"


@guard(_ONE_REPLY)
def without_waiting_for_what_follows_an_epoch() -> None:
    put(sender.Sender, "schedule", lambda self: self.send_now())


@guard(_ONE_REPLY)
def without_epochs_beside_a_large_value() -> None:
    put(pipeline, "_ALONG", 0)


@guard(f"{HERE}::test_invariant_10_announcements_of_what_was_asked_are_no_circle")
def without_pauses_between_questions() -> None:
    put(backoff.Pace, "delay", lambda *_: 0.0)


@guard(f"{HERE}::test_without_tracking_a_waiter_looks_again_by_itself")
def without_looking_again_where_nothing_is_announced() -> None:
    put(acquire, "pause", lambda _: 60.0)


@guard(f"{HERE}::test_invariant_1_who_came_after_an_announced_tag_is_not_given_an_older_load")
def without_the_moment_of_an_announcement() -> None:
    original = epochs.Epochs.invalidated
    put(epochs.Epochs, "invalidated", lambda self, names, _=None: original(self, names))


@guard(f"{HERE}::test_an_announced_root_leaves_the_other_epochs_known_and_heard")
def without_keeping_other_epochs_when_the_root_is_announced() -> None:
    def doubt(self: Any, name: bytes, doubt: Any) -> None:
        self.discard(name)
        self.doubts.setdefault(name, doubt)

    put(known_epochs.KnownEpochs, "doubt", doubt)


@guard(f"{HERE}::test_an_announced_root_leaves_the_other_epochs_known_and_heard")
def without_following_up_epochs_that_are_not_current() -> None:
    original = epoch_sync.EpochSync.announced

    def announced(self: Any, name: bytes, heard: Any, **more: Any) -> None:
        if name in heard.known.current:
            original(self, name, heard, **more)

    put(epoch_sync.EpochSync, "announced", announced)
