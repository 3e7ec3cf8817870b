"""The tag of all values of one cached function: clearing the function invalidates the tag, in constant time.

The tag is stored with the value. So `get` under the function's key, the memory of other processes, and processes that
never imported the function reject a cleared value, and keys do not change. Values that `set` or an earlier release
stored have no such tag: they are served as before, and are not cleared.
"""

from typing import Final

from magnus_cache._engine.codec.envelope import MOST_TAGS
from magnus_cache._engine.keys.names import shorten
from magnus_cache.errors import CacheArgumentError

__all__ = ["function_tag", "is_of_function", "name_of_function", "visible_tags", "with_function_tag"]

_START: Final = "~function:"
"""The prefix of these tags; as in keys, ``~`` marks what the cache itself adds."""


def function_tag(namespace: str, name: str) -> str:
    """Return the tag of a function's values in a namespace.

    :param name: the function's module and qualified name. Functions of one name, such as those that a factory makes,
        have one tag: clearing one drops the values of all of them.
    """
    return shorten(f"{_START}{namespace}:{name}")


def with_function_tag(tags: tuple[str, ...], function: tuple[str, ...]) -> tuple[str, ...]:
    """Return a value's own tags with that of its function.

    :raises CacheArgumentError: for too many.
    """
    if len(tags) + len(function) > MOST_TAGS:
        raise CacheArgumentError("tags", f"a value of a cached function has at most {MOST_TAGS - 1} tags of its own")
    return (*tags, *function)


def visible_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tags that the caller gave."""
    return tuple(tag for tag in tags if not tag.startswith(_START))


def name_of_function(namespace: str, tag: str) -> str | None:
    """Return the name of the function in a namespace whose values may have a tag; None if there is none.

    Of a tag that was shortened, the name is the beginning and a digest, and the namespace may be a similar one.
    """
    if not tag.startswith(_START):
        return None
    head, text = f"{namespace}:", tag[len(_START) :]
    if text.startswith(head):
        return text[len(head) :]
    shown, mark, _ = text.partition("~#")
    return text if mark and head.startswith(shown) else None


def is_of_function(tag: str) -> bool:
    """Return whether a tag is that of the values of a cached function."""
    return tag.startswith(_START)
