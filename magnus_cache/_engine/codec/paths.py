"""Where in a value the part is that cannot be stored: `result["rows"][3].price`.

The encoder reports the type of the part, but not where it is. To find it, containers are halved: encoding all
of a container's items, then half of the rest, takes about as long as encoding them once. Only a value that has just
been refused is searched, so that the search costs the ordinary way nothing.
"""

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from magnus_cache._engine.codec.builtin import ENCODERS
from magnus_cache._engine.codec.markers import kind_of
from magnus_cache._engine.codec.registry import registration
from magnus_cache._engine.codec.rows import is_row
from magnus_cache._engine.codec.values import encode
from magnus_cache.errors import CacheEncodeError

__all__ = ["Located", "locate"]

_DEEPEST: Final = 32
"""Steps of a path; a deeper part is named by its container."""

_LONGEST: Final = 40
"""Characters of a key that are shown."""

_MOST_COLUMNS: Final = 1_000

_NESTED: Final = "nested deeper"
"""The encoder's message for a value that is nested too deeply."""

_PLAIN: Final = frozenset({list, dict, tuple, set, frozenset})


class Located(NamedTuple):
    """The part of a value that cannot be stored.

    :ivar path: an expression that leads to it, such as ``result["rows"][3].price``.
    :ivar error: the encoder's error for this part alone.
    """

    path: str
    part: Any
    error: CacheEncodeError


class _Children(NamedTuple):
    """The parts of one container, and how each is reached from it."""

    items: list[Any]
    name: Callable[[int], str]


def locate(value: Any, error: CacheEncodeError, root: str) -> Located:
    """Return the part of a value that was refused.

    :param error: why the value was refused.
    :param root: the name of the value itself, such as ``"result"``.
    """
    if _NESTED in error.problem:
        return Located(root + _circle(value), value, error)
    path, part, own = root, value, error
    for _ in range(_DEEPEST):
        step = _failing(part)
        if step is None:
            break
        name, part, own = step
        path += name
    return Located(path, part, own)


def _failing(part: Any) -> tuple[str, Any, CacheEncodeError] | None:
    """Return the first part of a container that cannot be stored, and how it is reached; None if it is whole."""
    for children in _children(part):
        items = children.items
        if (own := _refused(items)) is None:
            continue
        low, high = 0, len(items)
        while high - low > 1:
            middle = (low + high) // 2
            if _refused(items[low:middle]) is not None:
                high = middle
            else:
                low = middle
        return children.name(low), items[low], _refused(items[low]) or own
    return None


def _refused(value: Any) -> CacheEncodeError | None:
    try:
        encode(value)
    except CacheEncodeError as error:
        # Without its traceback, which refers to all that was being encoded.
        return error.with_traceback(None)
    return None


def _children(part: Any) -> list[_Children]:
    """Return the parts of a container as the encoder sees it; nothing for a value whose own type is refused."""
    kind = kind_of(part)
    entry = registration(kind)
    if entry is not None:
        names = _field_names(kind)
        present = [name for name in names if hasattr(part, name)]
        return [_Children([getattr(part, name) for name in present], lambda index: f".{present[index]}")]
    if kind not in _PLAIN and kind not in ENCODERS:
        return _children_of_others(part, kind)
    if isinstance(part, dict):
        keys: list[Any] = list(part)
        return [
            _Children(keys, lambda index: f" (key {_shown(keys[index])})"),
            _Children(list(part.values()), lambda index: f"[{_shown(keys[index])}]"),
        ]
    if isinstance(part, set | frozenset):
        return [_Children(list(part), lambda _: " (an item)")]
    if isinstance(part, list | tuple | deque):
        return [_Children(list(part), lambda index: f"[{index}]")]
    return []


def _children_of_others(part: object, kind: type) -> list[_Children]:
    """Return the fields of a named tuple that can be stored for its type, and the columns of a row and of a frame."""
    columns: list[Any]
    fields = getattr(kind, "_fields", None)
    if isinstance(part, tuple) and isinstance(fields, tuple):
        names: list[Any] = list(fields)
        empty: Any = tuple.__new__(kind, [None] * len(names))
        return [_Children(list(part), lambda index: f".{names[index]}")] if _refused(empty) is None else []
    if is_row(kind) and isinstance(part, Mapping | Sequence):
        if isinstance(part, Mapping):
            columns = list(part)
            return [_Children([part[name] for name in columns], lambda index: f"[{_shown(columns[index])}]")]
        return [_Children(list(part), lambda index: f"[{index}]")]
    if kind.__module__.partition(".")[0] == "pandas" and kind.__name__ == "DataFrame":
        frame: Any = part
        columns = list(islice(frame.columns, _MOST_COLUMNS))
        series = [frame.iloc[:, index] for index in range(len(columns))]
        return [_Children(series, lambda index: f"[{_shown(columns[index])}]")]
    return []


def _field_names(kind: type) -> list[str]:
    """Return the names of a class's fields, if it is of a kind that has fields."""
    names: Any = getattr(kind, "__dataclass_fields__", None) or getattr(kind, "model_fields", None)
    names = names or getattr(kind, "_fields", ())
    return [name for name in names if isinstance(name, str)]


def _shown(key: Any) -> str:
    """Return a key as written in a program, shortened; the type of a key that is not plain."""
    if kind_of(key) is str:
        return json.dumps(key if len(key) <= _LONGEST else f"{key[:_LONGEST]}…", ensure_ascii=False)
    if key is None or kind_of(key) in (bool, int, float):
        return repr(key)[:_LONGEST]
    return f"<{kind_of(key).__name__}>"


def _circle(value: Any) -> str:
    """Return the path to a container within itself, if there is one within some steps; else nothing."""
    trail: list[tuple[Any, str]] = [(value, "")]
    ways: list[list[tuple[str, Any]]] = [_steps(value)]
    looked = 0
    while ways and looked < _MOST_COLUMNS:
        if not ways[-1]:
            ways.pop()
            trail.pop()
            continue
        looked += 1
        name, child = ways[-1].pop()
        path = trail[-1][1] + name
        if any(child is container for container, _ in trail):
            return path
        if len(trail) < _DEEPEST and kind_of(child) in _PLAIN:
            trail.append((child, path))
            ways.append(_steps(child))
    return ""


def _steps(container: Any) -> list[tuple[str, Any]]:
    steps: list[tuple[str, Any]] = []
    for children in _children(container):
        for index, child in enumerate(islice(children.items, _MOST_COLUMNS)):
            if kind_of(child) in _PLAIN:
                steps.append((children.name(index), child))
    return steps
