"""The guards that `test_stamps` sees missing."""

from typing import Any, Final

from magnus_cache._engine.api.search import Search
from magnus_cache._engine.loading import stale
from magnus_cache._engine.loading.loads import Loads
from magnus_cache._engine.loading.stale import StalePolicy
from magnus_cache._engine.store import atomic_memory
from magnus_cache._engine.store.atomic_writes import AtomicWrites
from magnus_cache._engine.store.lifetimes import Lifetimes
from magnus_cache._engine.store.stamps import Note
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/api/test_stamps.py"


@guard(f"{HERE}::test_the_stamp_is_that_of_the_load_in_every_process")
def without_counting_the_time_of_the_load() -> None:
    rewrite(Loads.stored, "Began(fence.flight.began)", "Began(self.clock())")


@guard(f"{HERE}::test_the_stamp_is_that_of_the_load_in_every_process")
def without_the_moment_that_was_stored() -> None:
    rewrite(
        Note.stamped, "began.as_of if began.as_of or began.at == -math.inf else began.told(time)", "began.told(time)"
    )


@guard(f"{HERE}::test_a_touched_value_is_as_old_as_before")
def without_the_age_of_what_is_touched() -> None:
    rewrite(Lifetimes._replace, "header_times.as_of(stored.fresh_until, stored.life)", "0")


@guard(f"{HERE}::test_a_stale_value_says_so")
def without_telling_what_is_stale() -> None:
    rewrite(StalePolicy.get, "stale=state not in _FRESH", "stale=False")


@guard(f"{HERE}::test_a_stale_value_says_so_in_blocking_code")
def without_telling_what_is_stale_in_blocking_code() -> None:
    rewrite(StalePolicy.get_blocking, "stale=state not in _FRESH", "stale=False")


@guard(f"{HERE}::test_in_an_outage_a_stamp_is_as_good_as_before")
def without_a_look_whether_a_stamped_value_can_come_from_redis() -> None:
    rewrite(StalePolicy._note, "near = near or not self._state.reaches(request.ref.name)", "pass")


@guard(f"{HERE}::test_each_value_of_a_batch_has_the_stamp_of_its_own_load")
def without_the_moment_of_a_batchs_own_load() -> None:
    def note(*_: Any) -> None:
        """Note nothing."""

    from magnus_cache._engine.loading.batch_loads import LoadsTogether

    put(LoadsTogether, "_note", note)


@guard(f"{HERE}::test_what_is_never_in_memory_is_a_hit_for_blocking_callers_too")
def without_an_entry_for_stamps_of_what_is_far() -> None:
    put(stale, "_with_entry", lambda request: request)


@guard(f"{HERE}::test_a_counter_stays_as_old_as_it_is")
def without_the_age_of_a_counter_in_memory() -> None:
    put(atomic_memory.Found, "as_old", lambda found: found)


@guard(f"{HERE}::test_a_counter_stays_as_old_as_it_is")
def without_the_age_of_a_counter_that_is_replaced() -> None:
    rewrite(AtomicWrites._replaced, "epoch=stored.epoch, began=began", "epoch=stored.epoch")


@guard(f"{HERE}::test_what_is_served_stale_in_an_outage_is_noted_before_it_is_gone")
def without_a_note_of_what_is_served_stale_in_an_outage() -> None:
    rewrite(Search._stale_of, "if entry is None and self.notes is not None:", "if False:")
