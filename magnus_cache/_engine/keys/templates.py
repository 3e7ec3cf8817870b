"""Keys by template, such as ``"{ticker}:{expiration}"``: a format string over a function's parameters."""

import string
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from magnus_cache._engine.keys.libraries import has_content
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["Template"]

_CONTAINERS: Final = (list, tuple, dict, set, frozenset, bytes, bytearray)


class Template:
    """A format string whose fields are parameters, or their attributes and items, as in ``"{user.id}"``.

    The text is exactly the key. Its author has to make sure that different values have different texts: ``"{a}:{b}"``
    has one text for ``("x:y", "z")`` and ``("x", "y:z")``, and ``"{a}"`` one for ``1`` and ``"1"``.

    :param text: the format string.
    :param parameters: the function's parameters.
    :param argument: the argument's name for error messages.
    :raises CacheTypeError: if it is not a str.
    :raises CacheArgumentError: for an unknown field, or an invalid format string.
    """

    __slots__ = ("_argument", "_formatter", "_text", "attributes", "fields")

    fields: frozenset[str]
    """The parameters that the template names."""

    attributes: bool
    """Whether the template reads attributes or items of an argument."""

    def __init__(self, text: str, parameters: Collection[str], argument: str = "key") -> None:
        if not isinstance(text, str):
            raise CacheTypeError(argument, f'a template is a str such as "{{ticker}}", not {type(text).__name__}')
        if not text:
            raise CacheArgumentError(argument, "the template is empty")
        try:
            found = list(_fields(text))
        except ValueError as error:
            raise CacheArgumentError(argument, f"{text!r} is not a format string: {error}") from None
        there = ", ".join(parameters) or "none"
        for field in found:
            if _root(field) not in parameters:
                problem = f"{{{field}}} is not a parameter of the function; there are: {there}"
                raise CacheArgumentError(argument, problem)
        self._argument = argument
        self._text = text
        self._formatter = _Formatter(argument)
        self.fields = frozenset(map(_root, found))
        self.attributes = any(_root(field) != field for field in found)

    def fill(self, arguments: Mapping[str, Any]) -> str:
        """Return the text for these arguments.

        :raises CacheTypeError: for a field whose value has no distinctive text, such as a list or a plain object.
        :raises CacheArgumentError: for a missing attribute or item, or a format that does not fit.
        """
        try:
            return self._formatter.vformat(self._text, (), arguments)
        except CacheArgumentError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # The error's own message may contain the value.
            problem = f"the template {self._text!r} cannot be filled: {type(error).__name__} at one of its fields"
            raise CacheArgumentError(self._argument, problem) from error


def _fields(text: str) -> Iterator[str]:
    for _, field, spec, _ in string.Formatter().parse(text):
        if field is not None:
            yield field
        if spec:
            yield from _fields(spec)


def _root(field: str) -> str:
    return field.partition(".")[0].partition("[")[0]


class _Formatter(string.Formatter):
    def __init__(self, argument: str) -> None:
        self._argument = argument

    def format_field(self, value: Any, format_spec: str) -> str:
        return str(super().format_field(_textual(value, self._argument), format_spec))

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        return super().convert_field(_textual(value, self._argument), conversion)


def _textual(value: Any, argument: str) -> Any:
    cls: Any = type(value)
    # The text of a large array leaves out its middle.
    if isinstance(value, _CONTAINERS) or has_content(value):
        remedy = "name one of its items or attributes, or give a function"
        raise CacheTypeError(argument, f"a field of the template is a {cls.__qualname__}; {remedy}")
    # The text of `object` contains the address in memory, which another object may get.
    if cls.__str__ is object.__str__ and cls.__repr__ is object.__repr__ and cls.__format__ is object.__format__:
        remedy = "name one of its attributes, as in {user.id}"
        raise CacheTypeError(argument, f"a field of the template is a {cls.__qualname__}, which has no text; {remedy}")
    return value
