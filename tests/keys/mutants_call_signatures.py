"""The guards that `test_call_signatures` sees missing."""

import inspect
from typing import Final

from magnus_cache._engine.api import awaitables, cached
from magnus_cache._engine.keys import arguments, signatures
from magnus_cache._engine.keys import calls as callkeys
from tests.support.guards import guard, put

HERE: Final = "tests/keys/test_call_signatures.py"


@guard(
    f"{HERE}::test_a_session_that_a_decorator_hands_in_shifts_nothing", f"{HERE}::test_a_method_behind_such_a_decorator"
)
def without_doubt_of_a_decorators_arguments() -> None:
    put(arguments, "seen", lambda function: signatures.Seen(inspect.signature(function), None))


@guard(f"{HERE}::test_a_template_does_not_guess_which_argument_is_meant")
def without_doubt_of_a_templates_arguments() -> None:
    put(callkeys._ByTemplate, "_check_places", lambda *_: None)


@guard(f"{HERE}::test_a_plain_wrapper_around_a_coroutine_function_is_awaited")
def without_a_look_for_coroutine_functions_within() -> None:
    put(awaitables, "_wrapped", lambda _: None)


@guard(f"{HERE}::test_a_function_that_returns_one_unsaid_gets_a_clear_error")
def without_an_error_for_awaitables() -> None:
    put(cached, "blocking", lambda function, _: function)
