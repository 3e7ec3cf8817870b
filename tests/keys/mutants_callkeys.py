"""The guards that `test_callkeys` sees missing."""

from typing import Final

from magnus_cache._engine.keys import key_functions, lambdas
from tests.support.guards import guard, put

HERE: Final = "tests/keys/test_callkeys.py"


@guard(HERE)
def without_the_code_in_the_names_of_lambdas_that_have_no_file() -> None:
    put(lambdas, "_code", lambda _: "")
    put(lambdas, "file_stem", lambda path: "")


@guard(HERE)
def without_an_order_for_the_constants_of_a_lambda() -> None:
    put(lambdas, "_constant", repr)


@guard(f"{HERE}::test_key_func_sees_the_defaults_of_arguments_left_out")
def without_defaults_for_key_functions() -> None:
    put(key_functions.KeyFunction, "_plan", lambda *_: key_functions._AS_GIVEN)
