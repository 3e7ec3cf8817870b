"""The two managers of the process-wide cache. They use the cache that is open now, and open one if there is none."""

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, ClassVar, Final, Self

from magnus_cache._engine.api.base import observed
from magnus_cache._engine.api.process_wide import PROCESS
from magnus_cache._engine.runtime.observers import CacheEvent, Observation

__all__ = ["ProcessFace", "delegate_to"]

_PARTS: Final = ("_async", "_clears", "_deferred", "_engine", "_loads", "_reads", "_state", "_writes")
"""The attributes of a manager that refer to its cache."""


class ProcessFace:
    """The common part of both process-wide managers: the first base, before the class of the manager."""

    _name: ClassVar[str]

    def __repr__(self) -> str:
        return f"<{self._name} {PROCESS.describe()}>"

    def cached(self, *args: Any, **kwargs: Any) -> Any:
        """Return the decorator of `CacheManager.cached` for functions that always use the process-wide cache."""
        return PROCESS.decorating.cached(*args, **kwargs)

    def cached_many(self, *args: Any, **kwargs: Any) -> Any:
        """Return the decorator of `CacheManager.cached_many` for functions that always use the process-wide cache."""
        return PROCESS.decorating.cached_many(*args, **kwargs)

    def disabled(self) -> AbstractContextManager[None]:
        """Return a context manager for tests: within its block, no caller in any thread or task uses the cache."""
        return PROCESS.disabled()

    def observe(self, function: Callable[[Any], object], *kinds: type[CacheEvent]) -> Observation:
        """Call a function with each event of the process-wide cache, whichever is open; see `CacheManager.observe`.

        :raises CacheTypeError: as `CacheManager.observe` does.
        """
        return observed(PROCESS.observers, function, kinds)

    async def aclose(self) -> None:
        """Disconnect, and stop everything that the process-wide cache started. Idempotent; the next use reopens it."""
        await PROCESS.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await PROCESS.aclose()


def delegate_to(there: Callable[[], Any], operations: type) -> Callable[[type], type]:
    """Return a class decorator that takes all missing operations from another manager.

    :param there: returns the other manager, at each call.
    :param operations: the class whose public operations are delegated.
    """

    def delegate(face: type) -> type:
        for part in _PARTS:
            # Properties: `__getattr__` would make every call of a method slower.
            setattr(face, part, property(functools.partial(_part, there, part)))
        for name, operation in inspect.getmembers(operations, callable):
            if not name.startswith("_") and not _overrides(face, name):
                setattr(face, name, _delegated(there, name, operation))
        return face

    return delegate


def _part(there: Callable[[], Any], name: str, _: Any) -> Any:
    return getattr(there(), name)


def _overrides(face: type, name: str) -> bool:
    return name in vars(face) or name in vars(ProcessFace)


def _delegated(there: Callable[[], Any], name: str, operation: Any) -> Any:
    if inspect.iscoroutinefunction(operation):

        async def method(_: Any, *args: Any, **kwargs: Any) -> Any:
            return await getattr(there(), name)(*args, **kwargs)

        return functools.update_wrapper(method, operation)

    def method_blocking(_: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(there(), name)(*args, **kwargs)

    return functools.update_wrapper(method_blocking, operation)
