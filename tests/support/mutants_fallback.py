"""Guards of the fallback without Redis, and names; see `mutants`."""

import contextlib
from types import SimpleNamespace
from typing import Any, Final

from magnus_cache._engine.api import cached
from magnus_cache._engine.keys import lambdas
from magnus_cache._engine.memory import entry as entries
from magnus_cache._engine.memory import key_locks, store
from magnus_cache._engine.policy import namespaces
from magnus_cache._engine.store import lifetimes, writes
from tests.support import memory
from tests.support.guards import guard, put

STEPS: Final = "tests/store/test_fallback_steps.py"
TOUCH: Final = "tests/store/test_touch.py"


@guard(STEPS)
def without_a_look_whether_an_entry_is_still_the_one_that_was_looked_at() -> None:
    put(store.LocalCache, "replace", lambda self, name, _old, entry: memory.put(self, name, entry))


@guard(STEPS)
def without_telling_remembered_errors_from_values_in_an_outage() -> None:
    def here(self: Any, ref: Any, wire: Any) -> Any:
        return self._memory.peek(ref.name) if wire is None else self._reads.fallback(ref)

    put(lifetimes.Lifetimes, "_here", here)


@guard(STEPS)
def without_locks_on_steps_of_the_fallback() -> None:
    class Free(contextlib.nullcontext[None]):
        pass

    put(key_locks.KeyLocks, "hold", lambda *_: Free())


@guard(STEPS)
def without_a_bound_on_the_number_of_key_locks() -> None:
    original = key_locks.KeyLocks.__init__

    def init(self: Any, patience: float, most: int = 0) -> None:
        original(self, patience, 1_000_000)

    put(key_locks.KeyLocks, "__init__", init)


@guard(STEPS)
def without_a_bound_on_the_wait_for_a_key_lock() -> None:
    original = key_locks.KeyLocks.__init__

    def init(self: Any, patience: float, most: int = key_locks.MOST_KEYS) -> None:
        original(self, 1000.0, most)

    put(key_locks.KeyLocks, "__init__", init)


@guard(STEPS)
def without_a_thread_for_large_compressed_values() -> None:
    async def off_loop(_self: Any, work: Any, *_: Any) -> Any:
        return work()

    put(writes.Writes, "off_loop", off_loop)


NAMES: Final = "tests/keys/test_callkeys.py"
NAMESPACES: Final = "tests/policy/test_namespaces.py"


@guard(NAMES)
def without_the_code_in_the_names_of_lambdas_that_have_no_file() -> None:
    put(lambdas, "_code", lambda _: "")
    put(lambdas, "file_stem", lambda path: "")


@guard(NAMES)
def without_an_order_for_the_constants_of_a_lambda() -> None:
    put(lambdas, "_constant", repr)


@guard(NAMESPACES)
def without_telling_functions_that_a_namespace_was_replaced() -> None:
    put(cached.Site, "namespaces_changed", lambda _: None)


@guard(NAMESPACES)
def without_a_second_look_at_the_registry_after_remembering() -> None:
    class Registry(namespaces.NamespaceRegistry):
        generation = property(lambda _: 0, lambda *_: None)  # type: ignore[assignment]

    namespaces.default_registry.__class__ = Registry


@guard(TOUCH)
def without_keeping_what_is_near_until_redis_has_answered_a_touch() -> None:
    put(store.LocalCache, "void", store.LocalCache.invalidate)


@guard(TOUCH)
def without_a_second_attempt_of_a_touch_whose_connection_was_cut() -> None:
    put(lifetimes, "twice", lambda ask: ask())


@guard(TOUCH)
def without_dropping_what_is_near_of_a_cancelled_touch() -> None:
    put(lifetimes, "asyncio", SimpleNamespace(CancelledError=KeyError))


@guard(TOUCH)
def without_overtaking_loads_that_began_during_a_failing_write() -> None:
    put(writes.Writes, "unsure", writes.Writes._distrust)


@guard(TOUCH)
def without_a_placeholder_of_its_own_for_a_write() -> None:
    original = store.LocalCache.reserve

    def reserve(self: Any, name: bytes, *, anew: bool = False) -> Any:
        return original(self, name)

    put(store.LocalCache, "reserve", reserve)


@guard(TOUCH)
def without_reading_the_payload_before_the_value_of_an_entry() -> None:
    def until(self: Any, deadline: float, trust: Any, more: int | None = None) -> Any:
        value = self.value
        return entries.Entry(value, self.payload, deadline, trust, self.size, self.version, more or 0)

    put(entries.Entry, "until", until)


@guard(TOUCH)
def without_opening_what_is_touched() -> None:
    put(lifetimes, "_checked", lambda raw, _: (lifetimes.envelope.read_header(raw), ()))


@guard(TOUCH)
def without_letting_a_fresh_load_keep_its_own_value_in_an_outage() -> None:
    def unsure(self: Any, names: Any) -> int:
        mark: int = self.state.missed(lambda outbox: outbox.record(names))
        self.state.touch(names)
        return mark

    put(writes.Writes, "_distrust", unsure)
