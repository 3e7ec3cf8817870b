"""The operations of a cached function that are the same for one key and for many: `clear`, `explain`, `contains`.

A plain function gets the blocking forms, a coroutine function the awaited ones.
"""

from collections.abc import Callable
from typing import Any, Protocol

from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.api.explain import explain as explained
from magnus_cache._engine.loading.failures import function_name
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.policy.options import LoadOptions
from magnus_cache._engine.store.explanation import Explanation
from magnus_cache._engine.store.records import KeyRef

__all__ = ["Place", "add_operations"]


class Place(Protocol):
    """The parts of a decorated function that these operations use."""

    @property
    def engine(self) -> Engine:
        """The cache."""
        ...

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself."""
        ...

    @property
    def options(self) -> LoadOptions:
        """What its loads do."""
        ...

    @property
    def tag(self) -> str:
        """The tag of all values of the function."""
        ...

    def single(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> KeyRef:
        """Return the reference of the one value that these arguments name."""
        ...


def add_operations(wrapper: Any, place: Place, *, awaited: bool) -> Any:
    """Return the wrapper of a decorated function with these operations as attributes."""
    make = _awaited if awaited else _blocking
    name = getattr(place.function, "__qualname__", type(place.function).__qualname__)
    for operation in make(place):
        operation.__qualname__ = f"{name}.{operation.__name__}"
        setattr(wrapper, operation.__name__, operation)
    return wrapper


async def _contains(engine: Engine, ref: KeyRef) -> bool:
    return engine.state.mode is Mode.NORMAL and await engine.reads.look(ref) is not None


def _awaited(place: Place) -> tuple[Any, Any, Any]:
    async def clear() -> None:
        """Remove all values of this function everywhere; see `Cached.clear`."""
        await place.engine.invalidate((place.tag,), function_name(place.function))

    async def explain(*args: Any, **kwargs: Any) -> Explanation:
        """Return what the cache knows about the value for these arguments; see `Cached.explain`."""
        return await explained(place.engine.reads, place.single(args, kwargs), place.options)

    async def contains(*args: Any, **kwargs: Any) -> bool:
        """Return whether there is a value for these arguments; see `Cached.contains`."""
        return await _contains(place.engine, place.single(args, kwargs))

    return clear, explain, contains


def _blocking(place: Place) -> tuple[Any, Any, Any]:
    def clear() -> None:
        """Remove all values of this function everywhere; see `Cached.clear`."""
        engine, tags = place.engine, (place.tag,)
        engine.state.check_open()
        name = function_name(place.function)
        site = engine.state.acts.invalidating(tags, name)
        if engine.deferred.invalidations:
            engine.deferred.invalidate(tags)
        else:
            engine.state.portal.call(engine.clears.invalidate, tags)
        engine.state.acts.invalidated(tags, site, name)

    def explain(*args: Any, **kwargs: Any) -> Explanation:
        """Return what the cache knows about the value for these arguments; see `Cached.explain`."""
        engine, ref = place.engine, place.single(args, kwargs)
        engine.state.check_open()
        explanation: Explanation = engine.state.portal.call(explained, engine.reads, ref, place.options)
        return explanation

    def contains(*args: Any, **kwargs: Any) -> bool:
        """Return whether there is a value for these arguments; see `Cached.contains`."""
        engine, ref = place.engine, place.single(args, kwargs)
        engine.state.check_open()
        there: bool = engine.state.portal.call(_contains, engine, ref)
        return there

    return clear, explain, contains
