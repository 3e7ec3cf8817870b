"""The guards that `test_touch` sees missing."""

from types import SimpleNamespace
from typing import Any, Final

from magnus_cache._engine.memory import entry as entries
from magnus_cache._engine.memory import store
from magnus_cache._engine.store import lifetimes, stored_values, writes
from tests.support.guards import guard, put

HERE: Final = "tests/store/test_touch.py"


@guard(HERE)
def without_keeping_what_is_near_until_redis_has_answered_a_touch() -> None:
    put(store.LocalCache, "void", store.LocalCache.invalidate)


@guard(HERE)
def without_a_second_attempt_of_a_touch_whose_connection_was_cut() -> None:
    put(lifetimes, "ask_twice", lambda ask: ask())


@guard(HERE)
def without_dropping_what_is_near_of_a_cancelled_touch() -> None:
    put(lifetimes, "asyncio", SimpleNamespace(CancelledError=KeyError))


@guard(HERE)
def without_overtaking_loads_that_began_during_a_failing_write() -> None:
    put(writes.Writes, "unsure", writes.Writes._distrust)


@guard(HERE)
def without_a_placeholder_of_its_own_for_a_write() -> None:
    original = store.LocalCache.reserve

    def reserve(self: Any, name: bytes, *, anew: bool = False) -> Any:
        return original(self, name)

    put(store.LocalCache, "reserve", reserve)


@guard(HERE)
def without_reading_the_payload_before_the_value_of_an_entry() -> None:
    def until(self: Any, deadline: float, trust: Any, more: int | None = None) -> Any:
        value = self.value
        return entries.Entry(
            value, self.payload, deadline, trust, self.size, entries.pack_facts(self.version, more or 0)
        )

    put(entries.Entry, "until", until)


@guard(HERE)
def without_opening_what_is_touched() -> None:
    put(stored_values, "_checked", lambda _, __, raw: (raw, stored_values.envelope.read_header(raw), (), b""))


@guard(HERE)
def without_letting_a_fresh_load_keep_its_own_value_in_an_outage() -> None:
    def unsure(self: Any, names: Any) -> int:
        mark: int = self.state.record_missed(lambda outbox: outbox.record(names))
        self.state.forget_names(names)
        return mark

    put(writes.Writes, "_distrust", unsure)
