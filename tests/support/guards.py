"""The registry of guards that can be switched off, one at a time, to see that the tests notice."""

import inspect
import textwrap
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, Final, NamedTuple

from magnus_cache._engine.redis.scripts import Script

VARIABLE: Final = "MAGNUS_CACHE_MUTANT"


class Mutant(NamedTuple):
    """One guard: how it is switched off, and the tests that have to notice."""

    name: str
    switch_off: Callable[[], object]
    tests: tuple[str, ...]


MUTANTS: Final[dict[str, Mutant]] = {}


def guard(*tests: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def register(switch_off: Callable[[], object]) -> Callable[[], object]:
        name = switch_off.__name__.removeprefix("without_").replace("_", " ")
        MUTANTS[name] = Mutant(name, switch_off, tests)
        return switch_off

    return register


def put(owner: Any, name: str, value: Any) -> None:
    """Put something else in the place of a guard, which must be there: else it has moved, and nothing is off."""
    assert not isinstance(owner, type | ModuleType) or hasattr(owner, name), f"{owner} has no {name}"
    there = inspect.getattr_static(owner, name, None)
    if isinstance(there, FunctionType) and isinstance(value, FunctionType):
        _check_calls(there, value)
    setattr(owner, name, value)


def _check_calls(there: FunctionType, value: FunctionType) -> None:
    """See that a function can be called as the one whose place it takes: else tests fail for that alone."""
    old, new = inspect.signature(there).parameters.values(), inspect.signature(value).parameters.values()
    kinds = {parameter.kind for parameter in new}
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

    def required(parameters: Any) -> int:
        return sum(each.kind in positional and each.default is each.empty for each in parameters)

    def most(parameters: Any) -> int:
        return sum(each.kind in positional for each in parameters)

    def named(parameters: Any) -> dict[str, Any]:
        return {each.name: each for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}

    where = f"{there.__qualname__}{inspect.signature(there)}, in its place {inspect.signature(value)}"
    assert inspect.Parameter.VAR_POSITIONAL in kinds or most(new) >= most(old), where
    assert required(new) <= required(old), where
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        assert set(named(old)) <= set(named(new)), where
    assert all(name in named(old) for name, each in named(new).items() if each.default is each.empty), where


def rewrite(function: Callable[..., object], old: str, new: str) -> None:
    """Change the text of a function, for all who have imported it."""
    assert isinstance(function, FunctionType)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} has no such line, or several: {old}"
    made: dict[str, Any] = {}
    exec(compile(source.replace(old, new), inspect.getfile(function), "exec"), function.__globals__, made)
    function.__code__ = made[function.__name__].__code__


def nothing(*_: Any, **__: Any) -> None:
    return None


def edit(script: Script, old: str, new: str) -> None:
    """Change the text of a script."""
    assert old in script.text, f"{script.name} has no such line"
    script.__init__(script.name, script.text.replace(old, new))  # type: ignore[misc]
