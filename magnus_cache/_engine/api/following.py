"""A decorated function that goes to another cache when the process-wide one is another."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from magnus_cache._engine.api.cached import FunctionCache
from magnus_cache._engine.api.engine import Engine
from magnus_cache.errors import CacheClosedError

__all__ = ["Follower"]


class Follower:
    """One decorated function that follows the process-wide cache.

    There is a `FunctionCache` for each cache that it goes to, and one function for all of them, which looks into the
    memory of the cache that it is bound to: a hit takes as long as in a function that follows nothing. All else that a
    call needs is done by one `FunctionCache`, as a whole. Unbound, it looks nowhere, and the first call binds it.

    :param nowhere: a cache without anything in it, to check by that the function can be decorated at all.
    :param make: makes the `FunctionCache` for a cache.
    :param binder: binds a follower to the cache in use.
    :ivar function: what stands in for the decorated function.
    """

    __slots__ = ("__weakref__", "_at", "_binder", "_nowhere", "function", "make")

    def __init__(
        self, nowhere: Engine, make: Callable[[Engine], FunctionCache], binder: Callable[["Follower"], None]
    ) -> None:
        self.make = make
        self._binder = binder
        self._at: tuple[FunctionCache, Any] | None = None
        self._nowhere = make(nowhere)
        self.function = self._function()

    def _function(self) -> Any:
        plain, function = self._nowhere.function, self._nowhere.wrapper()
        # Not what the original had, which `functools.wraps` has taken over.
        before = getattr(plain, "__dict__", {})
        added = {name: value for name, value in vars(function).items() if before.get(name) is not value}
        if self._nowhere.rebind is None:
            function = functools.update_wrapper(self._delegate(None, self._nowhere.awaited), function)
        else:
            self.unbind()
        for name, value in added.items():
            if callable(value) and name != "__wrapped__":
                call = self._delegate(name, inspect.iscoroutinefunction(value))
                setattr(function, name, functools.update_wrapper(call, value))
        vars(function)["present"] = lambda: self._present()[0]
        return function

    def _delegate(self, name: str | None, awaited: bool) -> Any:
        """Return a function that calls the present one's wrapper, or an attribute of it."""

        def there() -> Any:
            wrapper = self._present()[1]
            return wrapper if name is None else getattr(wrapper, name)

        if awaited:

            async def call(*args: Any, **kwargs: Any) -> Any:
                return await there()(*args, **kwargs)

            return call

        def call_blocking(*args: Any, **kwargs: Any) -> Any:
            return there()(*args, **kwargs)

        return call_blocking

    def _present(self) -> tuple[FunctionCache, Any]:
        while (at := self._at) is None:
            self._binder(self)
        return at

    def bind(self, cache: FunctionCache) -> None:
        """Go to this one from now on."""
        self._at = (cache, cache.wrapper())
        self._rebind(cache)

    def unbind(self) -> None:
        """Go nowhere; the next call finds out where."""
        self._at = None
        self._rebind(self._nowhere)

    def _rebind(self, cache: FunctionCache) -> None:
        if self._nowhere.rebind is not None:
            slow = self._slow_async if self._nowhere.awaited else self._slow
            self._nowhere.rebind(cache.source._replace(slow=slow))

    async def _slow_async(self, *call: Any) -> Any:
        while True:
            at = self._present()
            try:
                return await at[0].slow(*call)
            except CacheClosedError:
                if self._stays(at):
                    raise

    def _slow(self, *call: Any) -> Any:
        while True:
            at = self._present()
            try:
                return at[0].slow(*call)
            except CacheClosedError:
                if self._stays(at):
                    raise

    def _stays(self, at: tuple[FunctionCache, Any]) -> bool:
        """Whether it was not its cache that was closed during a call; else the call goes to the next one."""
        return self._at is at or not at[0].engine.state.closed
