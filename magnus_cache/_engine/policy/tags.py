"""Tags: names under which values of any namespace are invalidated together."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from magnus_cache._engine.codec.envelope import MOST_TAGS
from magnus_cache._engine.keys.templates import Template
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["HIDDEN_TAG", "AnyTags", "TagRule", "check_tags"]

AnyTags = str | Iterable[str] | Callable[[Any], str | Iterable[str]]
"""One tag or several, of text or templates; or a function of the value that returns them."""

HIDDEN_TAG: Final = "\x00local:"
"""What the hidden tags of local namespaces begin with, and no tag of callers: see `check_tags`."""

_LONGEST: Final = 200
_BRACES: Final = re.compile(r"[{}]")


def check_tags(tags: object) -> tuple[str, ...]:
    """Return tags as plain text, each once. A single text is one tag.

    :raises CacheTypeError: for anything but text or a collection of texts.
    :raises CacheArgumentError: for an empty or over-long tag, one that begins with NUL, and for more than 255.
    """
    if isinstance(tags, str):
        tags = (tags,)
    if not isinstance(tags, Iterable) or isinstance(tags, bytes | Mapping):
        raise CacheTypeError("tags", f"give tags as text, such as ('user:7', 'prices'), not {type(tags).__name__}")
    found: dict[str, None] = {}
    for tag in tags:
        if not isinstance(tag, str):
            raise CacheTypeError("tags", f"a tag is a str, not {type(tag).__name__}")
        text = str.__str__(tag)
        if not text or len(text) > _LONGEST:
            raise CacheArgumentError("tags", f"a tag has 1 to {_LONGEST} characters, not {len(text)}")
        if text.startswith("\x00"):
            raise CacheArgumentError("tags", "a tag does not begin with NUL: such tags are the cache's own")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise CacheArgumentError("tags", "a tag has a lone surrogate, which is not valid text") from None
        found[text] = None
    if len(found) > MOST_TAGS:
        raise CacheArgumentError("tags", f"a value has at most {MOST_TAGS} tags, not {len(found)}")
    return tuple(found)


class TagRule:
    """The tags of a cached function's values: fixed ones, some from the arguments, or some from the value.

    :param tags: see `AnyTags`; of texts, those with braces are templates over the function's parameters.
    :param parameters: the function's parameters.
    :raises CacheTypeError: for tags of any other type.
    :raises CacheArgumentError: for a template that names no parameter.
    """

    __slots__ = ("_fixed", "_templates", "of_value")

    of_value: Callable[[Any], Any] | None

    def __init__(self, tags: AnyTags, parameters: Iterable[str] = ()) -> None:
        self._fixed: tuple[str, ...] = ()
        self._templates: list[Template] = []
        self.of_value = None
        if not isinstance(tags, str) and callable(tags):
            if inspect.iscoroutinefunction(tags):
                raise CacheTypeError("tags", "a coroutine function cannot make tags; use def")
            self.of_value = tags
            return
        names = list(parameters)
        given = check_tags(tags)
        self._fixed = tuple(tag for tag in given if not _BRACES.search(tag))
        self._templates = [Template(tag, names, "tags") for tag in given if _BRACES.search(tag)]

    @property
    def fixed(self) -> bool:
        """Whether the tags do not depend on the arguments."""
        return not self._templates

    def of_call(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the tags known before the load.

        :raises CacheArgumentError: for a template that cannot be filled.
        """
        if not self._templates:
            return self._fixed
        return check_tags((*self._fixed, *(template.fill(arguments) for template in self._templates)))
