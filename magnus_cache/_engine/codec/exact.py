"""Values that the C packer would write without asking, as something they are not.

A `bytearray` and a `memoryview` become msgpack's bin type before the default hook sees them, and would come back as
`bytes`. It has no option to refuse that, so containers are searched: a bytearray is replaced by a marked list, a
memoryview (a window on memory that other code may change) is refused.
"""

from typing import Any, Final

from magnus_cache._engine.codec.builtin import BYTEARRAY, TUPLE
from magnus_cache._engine.codec.markers import kind_of
from magnus_cache.errors import CacheEncodeError

__all__ = ["preserve_bytearrays"]

_CONTAINERS: Final = frozenset({list, dict, tuple, set, frozenset})
_TRAPS: Final = frozenset({bytearray, memoryview})


def preserve_bytearrays(value: Any) -> Any:
    """Return the value itself, or a copy in which every bytearray is a marked list.

    Looks into built-in containers only; what a registered type encodes to is searched when it is encoded.

    :raises CacheEncodeError: if there is a memoryview.
    """
    kind = kind_of(value)
    if kind in _CONTAINERS:
        return _rewritten(value) if _trapped(value) else value
    return _rewritten(value) if kind in _TRAPS else value


def _trapped(root: Any) -> bool:
    pending: list[Any] = [root]
    # Each container once: a list that contains itself must end here too.
    seen: set[int] = set()
    trapped = False
    while pending:
        container = pending.pop()
        kinds = set(map(kind_of, container))
        if kind_of(container) is dict:
            pending.append(list(container.values()))
        if not _TRAPS.isdisjoint(kinds):
            if memoryview in kinds:
                raise CacheEncodeError("memoryview", "a memoryview cannot be stored; store bytes(view) instead")
            trapped = True
        if not _CONTAINERS.isdisjoint(kinds):
            for item in container:
                if kind_of(item) in _CONTAINERS and id(item) not in seen:
                    seen.add(id(item))
                    pending.append(item)
    return trapped


def _rewritten(value: Any) -> Any:
    kind = kind_of(value)
    if kind is bytearray:
        return [bytes(value), BYTEARRAY]
    if kind is memoryview:
        raise CacheEncodeError("memoryview", "a memoryview cannot be stored; store bytes(view) instead")
    if kind is list:
        return [_rewritten(item) for item in value]
    if kind is tuple:
        return [*map(_rewritten, value), TUPLE]
    if kind is dict:
        # Keys and set members are hashable, so they hold no bytearray.
        return {key: _rewritten(item) for key, item in value.items()}
    return value
