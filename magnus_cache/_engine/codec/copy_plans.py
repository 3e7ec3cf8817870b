"""Copies of a decoded value for each caller, without decoding it again.

A plan is made once, from a value that nobody else has. It shares what is immutable, and copies what is mutable, in C
where a whole container is flat. Each copy is what decoding would give: equal, of the same types, and with each mutable
part an object of its own, even if the value that was stored had one part in two places.

Only built-in containers have a plan, and only small ones: values of other types are decoded each time.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from magnus_cache._engine.codec.immutable import ATOMS, is_immutable
from magnus_cache._engine.codec.markers import kind_of

__all__ = ["MOST_PLANNED_BYTES", "CopyPlan", "plan_for"]

MOST_PLANNED_BYTES: Final = 32_768
"""Bytes of a payload up to which its value is kept for copying. Decoded, it takes several times as many."""

_STEP_BYTES: Final = 240
"""Bytes that each step of a plan takes, about."""

_MOST_STEPS: Final = 1_000
"""Steps of one plan. A flat container is one, and so is a list of flat ones of one type."""

_DEEPEST: Final = 50

_MUTABLE: Final = frozenset({dict, list, set})

_Copy = Callable[[], Any]


class CopyPlan:
    """How to copy one value.

    :ivar copy: returns a copy.
    :ivar value: the value that is copied. It is never handed out.
    :ivar size: bytes that the plan takes beside the value, about.
    """

    __slots__ = ("copy", "size", "value")

    def __init__(self, copy: _Copy, value: Any, steps: int) -> None:
        self.copy = copy
        self.value = value
        self.size = steps * _STEP_BYTES


def plan_for(value: Any) -> CopyPlan | None:
    """Return the plan for a value that was decoded for this purpose; None for one that is to be decoded each time."""
    planning = _Planning()
    try:
        copy = planning.of(value, 0)
    except _UnplannedError:
        return None
    # What is immutable is shared without a plan.
    return None if copy is None else CopyPlan(copy, value, planning.steps)


class _UnplannedError(Exception):
    """A part of the value has no plan, or the plan would be too large."""


class _Planning:
    """The making of one plan.

    :ivar steps: how many steps it has so far.
    """

    def __init__(self) -> None:
        self.steps = 0

    def of(self, value: Any, depth: int) -> _Copy | None:
        """Return what copies a value; None for one that may be shared.

        :raises _UnplannedError: if it has no plan.
        """
        kind = kind_of(value)
        if kind not in _MUTABLE and is_immutable(value):
            return None
        self.steps += 1
        if self.steps > _MOST_STEPS or depth > _DEEPEST:
            raise _UnplannedError
        if kind is dict:
            return self._of_dict(value, depth)
        if kind is list:
            return self._of_list(value, depth)
        if kind is tuple:
            return self._of_tuple(value, depth)
        # A set has only what is hashable; what is mutable all the same, such as an object of a class, has no plan.
        if kind is not set or not _are_immutable(value):
            raise _UnplannedError
        copy: _Copy = value.copy
        return copy

    def _of_dict(self, value: dict[Any, Any], depth: int) -> _Copy:
        if not _are_immutable(value):
            raise _UnplannedError
        shallow = value.copy
        parts = [
            (key, copy) for key, item in value.items()
            if kind_of(item) not in ATOMS and (copy := self.of(item, depth + 1)) is not None
        ]  # fmt: skip
        if not parts:
            return shallow

        def copied() -> dict[Any, Any]:
            new = shallow()
            for key, copy in parts:
                new[key] = copy()
            return new

        return copied

    def _of_list(self, value: list[Any], depth: int) -> _Copy:
        if _are_immutable(value):
            return value.copy
        if (rows := _of_flat_rows(value)) is not None:
            return rows
        copies = [self.of(item, depth + 1) for item in value]
        pairs = list(zip(value, copies, strict=True))
        return lambda: [item if copy is None else copy() for item, copy in pairs]

    def _of_tuple(self, value: tuple[Any, ...], depth: int) -> _Copy:
        copies = [self.of(item, depth + 1) for item in value]
        pairs = list(zip(value, copies, strict=True))
        return lambda: tuple([item if copy is None else copy() for item, copy in pairs])


def _of_flat_rows(value: list[Any]) -> _Copy | None:
    """Return what copies a list of dicts, or of lists, that have nothing to copy in them; None for another list."""
    kinds = set(map(kind_of, value))
    if kinds == {dict}:
        if all(_are_immutable(row) and _are_immutable(row.values()) for row in value):
            copy_dict = dict.copy
            return lambda: list(map(copy_dict, value))
    elif kinds == {list} and all(map(_are_immutable, value)):
        copy_list = list.copy
        return lambda: list(map(copy_list, value))
    return None


def _are_immutable(parts: Iterable[Any]) -> bool:
    # A tuple's parts are looked at by their types, in C.
    return is_immutable(tuple(parts))
