"""The guards that `test_memory` sees missing."""

from typing import Any, Final

from magnus_cache._engine.memory import store as memory
from tests.support.guards import guard, put

HERE: Final = "tests/memory/test_memory.py"


@guard(HERE)
def without_the_identity_of_the_placeholder() -> None:
    def fill(self: Any, placeholder: Any, entry: Any) -> bool:
        with self._lock:
            return bool(self._store(placeholder.name, entry))

    put(memory.LocalCache, "fill", fill)
