"""The guards that `test_fallback_steps` sees missing."""

import contextlib
from typing import Any, Final

from magnus_cache._engine.memory import key_locks, store
from magnus_cache._engine.store import lifetimes, writes
from tests.support import memory
from tests.support.guards import guard, put

HERE: Final = "tests/store/test_fallback_steps.py"


@guard(HERE)
def without_a_look_whether_an_entry_is_still_the_one_that_was_looked_at() -> None:
    put(store.LocalCache, "replace", lambda self, name, _old, entry: memory.put(self, name, entry))


@guard(HERE)
def without_telling_remembered_errors_from_values_in_an_outage() -> None:
    def here(self: Any, ref: Any, wire: Any) -> Any:
        return self._memory.get_untrusted(ref.name) if wire is None else self._reads.fallback(ref)

    put(lifetimes.Lifetimes, "_here", here)


@guard(HERE)
def without_locks_on_steps_of_the_fallback() -> None:
    class Free(contextlib.nullcontext[None]):
        pass

    put(key_locks.KeyLocks, "hold", lambda *_: Free())


@guard(HERE)
def without_a_bound_on_the_number_of_key_locks() -> None:
    original = key_locks.KeyLocks.__init__

    def init(self: Any, patience: float, most: int = 0) -> None:
        original(self, patience, 1_000_000)

    put(key_locks.KeyLocks, "__init__", init)


@guard(HERE)
def without_a_bound_on_the_wait_for_a_key_lock() -> None:
    original = key_locks.KeyLocks.__init__

    def init(self: Any, patience: float, most: int = key_locks.MOST_KEYS) -> None:
        original(self, 1000.0, most)

    put(key_locks.KeyLocks, "__init__", init)


@guard(HERE)
def without_a_thread_for_large_compressed_values() -> None:
    async def off_loop(_self: Any, work: Any, *_: Any) -> Any:
        return work()

    put(writes.Writes, "off_loop", off_loop)
