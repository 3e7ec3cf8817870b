"""The process-wide cache as its two managers: they go to whatever cache is in use, and make one if there is none."""

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, ClassVar, Final, Self

from magnus_cache._engine.api.process_wide import PROCESS

__all__ = ["ProcessFace", "delegate_to"]

_PARTS: Final = ("_async", "_clears", "_deferred", "_engine", "_loads", "_reads", "_state", "_writes")
"""What managers are made of."""


class ProcessFace:
    """What both process-wide managers have in common. It comes before the manager's class among the bases."""

    _name: ClassVar[str]

    def __repr__(self) -> str:
        return f"<{self._name} {PROCESS.describe()}>"

    def cached(self, *args: Any, **kwargs: Any) -> Any:
        """See `CacheManager.cached`. The function follows the process-wide cache."""
        return PROCESS.decorating.cached(*args, **kwargs)

    def cached_many(self, *args: Any, **kwargs: Any) -> Any:
        """See `CacheManager.cached_many`. The function follows the process-wide cache."""
        return PROCESS.decorating.cached_many(*args, **kwargs)

    def disabled(self) -> AbstractContextManager[None]:
        """Within it, behave as if there were no cache, for all callers, in whatever thread or task; for tests."""
        return PROCESS.disabled()

    async def aclose(self) -> None:
        """Disconnect and stop all that the process-wide cache started. Idempotent; its next use makes another."""
        await PROCESS.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await PROCESS.aclose()


def delegate_to(there: Callable[[], Any], operations: type) -> Callable[[type], type]:
    """Return a class decorator: all that the class lacks comes from another manager, which `there` returns."""

    def fill(face: type) -> type:
        for part in _PARTS:
            # Properties, as a `__getattr__` would make every call of a method slower.
            setattr(face, part, property(functools.partial(_part, there, part)))
        for name, operation in inspect.getmembers(operations, callable):
            if not name.startswith("_") and not _overrides(face, name):
                setattr(face, name, _delegated(there, name, operation))
        return face

    return fill


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
