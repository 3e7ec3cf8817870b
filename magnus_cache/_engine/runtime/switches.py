"""Settings for the time of a ``with`` block, which an interrupt does not leave behind."""

from contextvars import ContextVar
from types import TracebackType
from typing import Any, Generic, TypeVar

__all__ = ["Presence", "Switch"]

T = TypeVar("T")


class Switch(Generic[T]):
    """Gives a context variable, which has a default, another value within one ``with`` block.

    Not a generator: Ctrl-C between its `yield` and the block would leave the value behind. Only an interrupt before
    the first step of `__exit__` remains, which no Python code can prevent.

    :param active: a set that contains this switch for the time of the block.
    """

    __slots__ = ("_active", "_before", "_value", "_variable")

    def __init__(self, variable: ContextVar[T], value: T, active: set[Any] | None = None) -> None:
        self._variable = variable
        self._value = value
        self._active = active

    def __enter__(self) -> None:
        self._before = self._variable.get()
        try:
            if self._active is not None:
                self._active.add(self)
            self._variable.set(self._value)
        except BaseException:
            # Interrupted: there will be no `__exit__`.
            self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave()
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        self._variable.set(self._before)
        if self._active is not None:
            self._active.discard(self)


class Presence:
    """A member of some sets for the time of one ``with`` block, which every thread and task can see."""

    __slots__ = ("_sets",)

    def __init__(self, *sets: set[Any]) -> None:
        self._sets = sets

    def __enter__(self) -> None:
        try:
            for members in self._sets:
                members.add(self)
        except BaseException:
            # Interrupted: there will be no `__exit__`.
            self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave()
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> None:
        for members in self._sets:
            members.discard(self)
