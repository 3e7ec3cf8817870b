"""The guards that `test_lifecycle` sees missing."""

import contextvars
from typing import Final

from magnus_cache import errors
from magnus_cache._engine.runtime import loop_end
from tests.support.guards import guard, put

HERE: Final = "tests/api/test_lifecycle.py"


@guard(HERE)
def without_a_context_of_the_wires_own() -> None:
    put(loop_end, "Context", contextvars.copy_context)


@guard(HERE)
def without_an_error_for_each_who_raises_it() -> None:
    put(errors.CacheUnavailableError, "again", lambda self: self)
