"""The guards that `test_interrupts` sees missing."""

import contextlib
import threading
from contextvars import ContextVar
from typing import Any, Final

from magnus_cache._engine.api import many
from magnus_cache._engine.coordination import life_cycle, state
from magnus_cache._engine.flights import flight, flights, joins
from magnus_cache._engine.loading import loads
from magnus_cache._engine.memory import clear_log, collector, store, tiers
from magnus_cache._engine.runtime import critical, portal, portal_thread, waiters
from magnus_cache._engine.store import deferred
from magnus_cache.errors import CacheDeadlockError
from tests.support.guards import guard, nothing, put, rewrite

HERE: Final = "tests/runtime/test_interrupts.py"


def _check_with(check: Any) -> None:
    for module in (critical, portal, portal_thread, flights, life_cycle, loads):
        put(module, "check_waiting", check)


@guard(f"{HERE}::test_within_a_section_waits_are_refused_and_writes_deferred")
def without_a_look_whether_a_section_was_interrupted() -> None:
    put(critical, "engaged", lambda: False)
    put(portal, "engaged", lambda: False)


@guard(f"{HERE}::test_while_the_interpreter_ends_nothing_is_waited_for")
def without_a_look_whether_the_interpreter_ends() -> None:
    def check() -> None:
        if critical.engaged():
            raise CacheDeadlockError("a signal handler")

    _check_with(check)


@guard(f"{HERE}::test_a_handler_that_calls_the_cache_at_any_place_waits_for_nothing")
def without_a_lock_that_can_be_entered_again() -> None:
    put(flights, "section", threading.Lock)
    reset = joins.FlightRegistry.__init__

    def init(self: Any, *args: Any) -> None:
        reset(self, *args)
        self._lock = threading.Lock()

    put(joins.FlightRegistry, "__init__", init)


@guard(f"{HERE}::test_a_handler_in_the_midst_of_a_wake_makes_its_own")
def without_a_wake_of_ones_own() -> None:
    def post(self: Any, callback: Any, args: Any) -> None:
        self._inbox.append((callback, args))
        if self.over or self.loop is None:
            raise portal_thread.closed_error()
        if self._wake is None:
            self._wake = [0]
            self.loop.call_soon_threadsafe(self._drain, context=self._context)

    put(portal_thread.PortalThread, "post", post)


@guard(f"{HERE}::test_a_handler_in_the_midst_of_the_start_of_the_loop_does_not_wait_for_it")
def without_a_look_who_starts_the_loop() -> None:
    def start(self: Any, ours: Any) -> Any:
        ours.starter = 0
        return _start(self, ours)

    _start = portal.Portal._start
    put(portal.Portal, "_start", start)


@guard(f"{HERE}::test_a_finalizer_on_the_background_thread_before_its_loop_runs")
def without_a_look_at_the_thread_that_is_about_to_run_the_loop() -> None:
    def inside(self: Any) -> bool:
        session = self._session
        return session is not None and threading.get_ident() == session.thread.ident

    put(portal.Portal, "inside", property(inside))


@guard(f"{HERE}::test_within_a_section_waits_are_refused_and_writes_deferred")
def without_deferring_writes() -> None:
    put(deferred.Deferred, "writes", False)


@guard(f"{HERE}::test_a_finalizer_on_the_background_loop_may_invalidate")
def without_deferring_on_the_background_loop() -> None:
    put(deferred.Deferred, "invalidations", property(lambda self: self._state.portal.engaged))


@guard(f"{HERE}::test_what_is_deferred_before_there_is_a_loop_comes_first")
def without_a_place_for_what_comes_before_the_loop() -> None:
    put(portal_thread.PortalThread, "serve_early", nothing)


@guard(f"{HERE}::test_what_is_deferred_on_a_loop_starts_the_background_loop")
def without_starting_the_loop_for_what_was_deferred() -> None:
    put(portal.Portal, "_start_for_early", nothing)


@guard(f"{HERE}::test_within_a_section_waits_are_refused_and_writes_deferred")
def without_forgetting_at_once_what_is_deferred() -> None:
    put(deferred.Deferred, "_forget", nothing)
    put(deferred.Deferred, "_later", nothing)


@guard(f"{HERE}::test_what_was_invalidated_in_the_midst_of_a_step_is_not_kept")
def without_a_look_at_the_placeholder_in_the_step_that_stores() -> None:
    def fill(self: Any, placeholder: Any, entry: Any) -> bool:
        with self._lock:
            if self._pending.get(placeholder.name) is not placeholder:
                return False
            del self._pending[placeholder.name]
            placeholder.filled = True
            stored: bool = self._store(placeholder.name, entry)
            return stored

    put(store.LocalCache, "fill", fill)


@guard(f"{HERE}::test_what_was_invalidated_in_the_midst_of_a_step_is_not_kept")
def without_a_look_at_what_is_replaced_in_the_step_that_does() -> None:
    def replace(self: Any, name: bytes, old: Any, entry: Any) -> bool:
        with self._lock:
            if self._table.get(name) is not old or not self._is_current(name, old):
                return False
            stored: bool = self._store(name, entry)
            return stored

    put(store.LocalCache, "replace", replace)


@guard(f"{HERE}::test_removals_in_the_midst_of_the_memorys_steps_do_no_harm")
def without_a_look_at_what_is_removed() -> None:
    rewrite(tiers.Tiers._remove, "if name not in table or table[name] is not entry:", "if False:")


@guard(f"{HERE}::test_a_floor_laid_in_the_midst_of_another_stays")
def without_a_look_at_the_floors_in_the_step_that_lays_one() -> None:
    def add(self: Any, floor: Any) -> Any:
        kept = tuple(old for old in self._clears if not clear_log._within(old.scope, floor.scope))
        self._clears = (*kept, floor)
        return floor

    put(clear_log.ClearLog, "add", add)


@guard(f"{HERE}::test_a_floor_laid_in_the_midst_of_another_stays")
def without_leaving_a_step_of_the_collector_alone() -> None:
    rewrite(collector.Collecting._advance, "if self._is_advancing:", "if False:")


@guard(f"{HERE}::test_a_floor_laid_in_the_midst_of_another_stays")
def without_counting_a_floors_steps_from_when_it_is_there() -> None:
    def clear_matching(self: Any, scope: Any) -> None:
        with self._lock:
            generation = self.generation + 1
            self._clears.add(clear_log.Clear(scope, generation, self._round))
            self.generation = generation
            self._void(scope)
            self._advance(store._CLEAR_STEPS)

    put(store.LocalCache, "clear_matching", clear_matching)


@guard(f"{HERE}::test_ctrl_c_at_any_place_leaves_nothing_behind")
def without_leaving_again_after_an_interrupt() -> None:
    left = joins.Joins._leave
    seen: set[int] = set()

    def leave(self: Any, ticket: Any) -> None:
        if id(ticket) not in seen:
            seen.add(id(ticket))
            left(self, ticket)

    put(joins.Joins, "_leave", leave)


@guard(f"{HERE}::test_ctrl_c_at_any_place_leaves_nothing_behind")
def without_a_seat_that_knows_its_load_at_once() -> None:
    join = joins.Joins._join

    def late(self: Any, ticket: Any, *args: Any, **options: Any) -> Any:
        other = joins.Ticket(ticket.waiter, ticket.holds_up)
        found = join(self, other, *args, **options)
        for name in ("flight", "leads", "outer", "inner", "blocks", "job"):
            setattr(ticket, name, getattr(other, name))
        return found

    put(joins.Joins, "_join", late)


@guard(f"{HERE}::test_ctrl_c_at_any_place_leaves_nothing_behind")
def without_leaving_the_loads_of_a_batch_again_after_an_interrupt() -> None:
    rewrite(many._BlockingBatch._load, "LOADING.set(outer)", "pass")


@guard(f"{HERE}::test_those_who_wait_for_an_interrupted_load_are_served")
def without_telling_those_who_were_not_told() -> None:
    def settle(self: Any, flight: Any, outcome: Any) -> None:
        with self._lock:
            if flight.done:
                return
            flight.done = True
            flight.detached = flight.detached or isinstance(outcome, waiters.Abandoned)
            self._background.discard(flight)
            self._forget(flight)
            waiting, flight.waiters = flight.waiters, set()
        waiters.wake(waiting, outcome)

    put(joins.Joins, "_settle", settle)


@guard(f"{HERE}::test_an_interrupted_reservation_is_taken_back")
def without_taking_back_an_interrupted_reservation() -> None:
    def reserve(self: Any, name: bytes, *, anew: bool = False) -> Any:
        with self._lock:
            placeholder = self._pending.get(name)
            if placeholder is None or anew:
                placeholder = self._pending[name] = store.Placeholder(name)
            else:
                placeholder.holders += 1
            return placeholder

    put(store.LocalCache, "reserve", reserve)


@guard(f"{HERE}::test_ctrl_c_at_any_place_of_a_switch_leaves_it_off")
def without_a_switch_that_can_be_interrupted() -> None:
    @contextlib.contextmanager
    def bypass(self: Any) -> Any:
        token = state.MODE.set(state.Mode.BYPASS)
        self.special.add(token)
        try:
            yield
        finally:
            self.special.discard(token)
            state.MODE.reset(token)

    put(state.State, "bypass", bypass)


@guard(f"{HERE}::test_a_handler_that_calls_the_cache_at_any_place_waits_for_nothing")
def without_a_look_which_thread_a_batch_needs() -> None:
    put(flight, "SERVING", ContextVar("no thread", default=flight.ServedThread()))  # noqa: B039  # one for all
