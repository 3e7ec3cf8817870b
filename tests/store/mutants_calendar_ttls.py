"""The guards that `test_calendar_ttls` sees missing."""

from typing import Final

from magnus_cache._engine.loading import batch_results, joining
from magnus_cache._engine.store import lives
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/store/test_calendar_ttls.py"


@guard(HERE)
def without_asking_when_the_load_began() -> None:
    rewrite(lives.CalendarLife.left, "self.calendar.end(began, server)", "self.calendar.end(server, server)")


@guard(HERE)
def without_the_doubt_about_when_the_load_began() -> None:
    rewrite(lives.CalendarLife.left, " - ceil(time.error(now) * MICROSECONDS)", "")


@guard(HERE)
def without_asking_when_a_batch_began() -> None:
    rewrite(batch_results.BatchResults._fill, "load.acquirer.known.at", "self._loads.clock()")


@guard(HERE)
def without_keeping_late_calls_from_earlier_loads() -> None:
    put(joining.JoinRules, "_is_ended", lambda self, ref, flight, calendar: False)


@guard(HERE)
def without_leaving_alone_what_waits_for_a_lease() -> None:
    rewrite(joining.JoinRules._is_ended, "if not leased and state.reaches(ref.name):", "if False:")


@guard(HERE)
def without_a_thread_for_building_calendars() -> None:
    rewrite(
        lives.Lives.ready,
        "await to_thread.run_sync(partial(calendar.prepare, at), limiter=limiter, abandon_on_cancel=True)",
        "calendar.prepare(at)",
    )


@guard(HERE)
def without_letting_callers_leave_while_a_calendar_is_built() -> None:
    rewrite(lives.Lives.ready, "abandon_on_cancel=True", "abandon_on_cancel=False")


@guard(HERE)
def without_a_bound_on_jitter() -> None:
    rewrite(lives.CalendarLife.left, "left * self.share if", "left * (2 - self.share) if")


@guard(HERE)
def without_asking_what_an_early_refresh_gains() -> None:
    put(lives.Lives, "gains", lambda self, calendar, name, fresh_until: True)


@guard(HERE)
def without_the_clock_of_redis() -> None:
    put(lives.Lives, "time_of", lambda self, name: lives.host_time(self._state.clock))
