"""The guards that `test_observers` sees missing."""

from typing import Any, Final

from magnus_cache._engine.api import base
from magnus_cache._engine.api.process_wide import ProcessCache
from magnus_cache._engine.coordination.happenings import Happenings
from magnus_cache._engine.runtime import observers
from magnus_cache._engine.runtime.observers import Observation, Observers
from magnus_cache._engine.store.atomic_memory import AtomicMemory
from magnus_cache._engine.store.atomic_writes import AtomicWrites
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/api/test_observers.py"
CAUGHT: Final = "except (Exception, asyncio.CancelledError) as error:"


@guard(f"{HERE}::test_what_is_written_in_one_step_is_told")
def without_telling_what_redis_has_written_in_one_step() -> None:
    rewrite(AtomicWrites.written, 'self.tell_stored(ref, "redis", record, life)', "pass")


@guard(f"{HERE}::test_what_is_written_in_one_step_is_told")
def without_telling_what_memory_has_stored_in_one_step() -> None:
    rewrite(AtomicMemory.store, 'self._writes.tell_stored(ref, "memory", record, ttl)', "pass")


@guard(f"{HERE}::test_each_hit_is_told_once_while_hits_are_observed")
def without_leaving_hits_to_the_readable_path() -> None:
    rewrite(Observers._mark, "self._special.add(self)", "pass")


@guard(f"{HERE}::test_observers_of_other_kinds_leave_hits_to_the_fast_path")
def without_a_look_whether_someone_observes_hits() -> None:
    rewrite(Observers._mark, "self.wants(Hit)", "self.active")


@guard(f"{HERE}::test_a_forked_child_has_the_observers_of_its_parent")
def without_marking_that_hits_are_observed_after_a_fork() -> None:
    rewrite(Observers.reset, "self._mark()", "pass")


@guard(f"{HERE}::test_what_an_observer_does_with_a_cache_is_not_observed")
def without_a_bound_on_observers_that_use_a_cache() -> None:
    rewrite(Observers.tell, 'or getattr(_here, "inside", False)', "")


@guard(f"{HERE}::test_an_act_of_a_finalizer_is_told_with_the_next_event")
def without_a_look_whether_user_code_may_run_where_an_event_is_told() -> None:
    put(observers, "engaged", lambda: False)


@guard(f"{HERE}::test_an_act_of_a_finalizer_is_told_with_the_next_event")
def without_telling_later_what_could_not_be_told_at_once() -> None:
    rewrite(Observers.tell, "self._late.append((observations, event))", "pass")


@guard(f"{HERE}::test_what_an_observer_raises_is_logged_and_changes_nothing")
def without_catching_what_observers_raise() -> None:
    rewrite(Observers._deliver, CAUGHT, "except ZeroDivisionError as error:")


@guard(f"{HERE}::test_what_an_observer_raises_is_logged_and_changes_nothing")
def without_catching_a_cancellation_that_an_observer_raises() -> None:
    rewrite(Observers._deliver, CAUGHT, "except Exception as error:")


@guard(f"{HERE}::test_an_observer_that_unsubscribes_in_its_own_call_is_not_called_again")
def without_a_look_whether_an_observer_has_unsubscribed_meanwhile() -> None:
    put(Observation, "close", lambda self: self._observers.remove(self))


@guard(f"{HERE}::test_a_load_that_fails_or_is_cancelled_ends")
def without_telling_the_end_of_a_load_that_failed() -> None:
    original = observers.LoadSpan.__exit__

    def leave(self: Any, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            original(self, kind, error, trace)

    put(observers.LoadSpan, "__exit__", leave)


@guard(f"{HERE}::test_observers_follow_the_process_wide_cache")
def without_sharing_the_observers_of_the_process_wide_cache() -> None:
    rewrite(
        ProcessCache._share,
        "state.special, state.disabling, state.observers = self._special, self._disabling, self.observers",
        "state.special, state.disabling = self._special, self._disabling",
    )


@guard(f"{HERE}::test_what_others_do_is_told_and_what_this_process_does_is_no_news")
def without_knowing_the_echo_of_own_deletes() -> None:
    put(Happenings, "expect", nothing)


@guard(f"{HERE}::test_an_outage_begins_and_ends_once")
def without_noting_that_an_outage_was_told() -> None:
    rewrite(Happenings.disconnected, "if node in self._away:", "if False:")


@guard(f"{HERE}::test_what_cannot_observe")
def without_refusing_observers_that_must_be_awaited() -> None:
    put(base, "is_async", lambda _: False)
