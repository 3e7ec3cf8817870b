"""How values of other libraries describe themselves to `canonical` as parts of a key."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple, TypeAlias

__all__ = [
    "LARGEST", "Content", "Describe", "Described", "Fields", "Plain", "Raw", "Room", "Text", "UnsupportedError",
    "library_name", "only",
]  # fmt: skip

LARGEST: Final = 4 * 2**20
"""Most bytes of an array or frame, its texts and objects counted in: reading them takes some milliseconds."""


class UnsupportedError(Exception):
    """A value has no canonical text.

    :ivar problem: the problem, without the value.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class Plain(NamedTuple):
    """The value counts as this plain value."""

    value: Any


class Text(NamedTuple):
    """The value counts as a text of its kind."""

    kind: str
    text: str


class Fields(NamedTuple):
    """The value counts as its class and these fields; a field without an attribute is unset."""

    names: Iterable[str]


class Raw(NamedTuple):
    """Bytes, as a part of content."""

    data: bytes


class Content(NamedTuple):
    """The value counts as a digest of these parts, which are `Raw` or values."""

    kind: str
    parts: Iterator[Any]


Described: TypeAlias = Plain | Text | Fields | Content
Describe: TypeAlias = Callable[[Any], Described]


def library_name(cls: type) -> str:
    """Return the names of a class's library and of the class; the module between them differs by version."""
    module = cls.__module__
    return f"{module.partition('.')[0]}.{cls.__name__}" if isinstance(module, str) else ""


def only(value: object, *names: str) -> str:
    """Return the name of a value's class, which must be one of `names`.

    :raises UnsupportedError: for any other class: a subclass may hold more than is read here.
    """
    cls = type(value)
    name = library_name(cls)
    if name not in names:
        raise UnsupportedError(f"a {cls.__module__}.{cls.__qualname__} may hold more than a {names[0]}")
    return name


class Room:
    """The bytes that may still be read of one array or frame."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = LARGEST

    def take(self, size: int) -> None:
        """:raises UnsupportedError: if that is too much."""
        self.check(size)
        self._left -= size

    def check(self, size: int) -> None:
        """:raises UnsupportedError: if that would be too much."""
        if size > self._left:
            raise UnsupportedError(
                f"it holds more than {LARGEST // 2**20} MiB, the most content that is read to make a key"
            )
