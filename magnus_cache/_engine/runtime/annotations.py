"""Annotations as they are written, so that `help()` shows ``ttl: AnyTtl = None`` and not its expansion."""

from typing import Any, TypeVar

__all__ = ["readable"]

C = TypeVar("C", bound=type)


class _Text(str):
    """An annotation that is not evaluated, shown without quotation marks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def readable(cls: C) -> C:
    """Return the class, with the annotations of its methods shown as they are written.

    For classes of modules with ``from __future__ import annotations``; `typing.get_type_hints` works as ever.
    """
    for member in vars(cls).values():
        function: Any = getattr(member, "__func__", member)
        annotations = getattr(function, "__annotations__", None)
        if callable(function) and annotations:
            function.__annotations__ = {
                name: _Text(text) if isinstance(text, str) else text for name, text in annotations.items()
            }
    return cls
