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
    setattr(owner, name, value)


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
