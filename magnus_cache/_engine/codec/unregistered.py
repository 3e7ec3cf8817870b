"""How values travel that are neither built in nor registered: the standard library's, named tuples, database rows.

Asked last, so that the everyday types do not pay for them.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from weakref import WeakSet

from magnus_cache._engine.codec.markers import kind_of
from magnus_cache._engine.codec.named_tuples import NAMED_TUPLE_KIND, encode_named_tuple, restore_named_tuple
from magnus_cache._engine.codec.registry import (
    encode_registered,
    family_registration,
    late_registration,
    replaced,
)
from magnus_cache._engine.codec.rows import ROW_KIND, encode_row, restore_row
from magnus_cache._engine.codec.stdlib import STDLIB_ENCODERS, STDLIB_RESTORERS, encode_zone

__all__ = ["OTHER_RESTORERS", "RENEWAL", "Renewal", "changed_so_far", "encode_other"]

OTHER_RESTORERS: Final = {**STDLIB_RESTORERS, NAMED_TUPLE_KIND: restore_named_tuple, ROW_KIND: restore_row}
"""By kind: the value from the items before the mark."""


class Renewal(threading.local):
    """Whether this thread encodes a value to rebuild it, and how many instances of replaced classes it contained."""

    active = False
    found = 0


RENEWAL: Final = Renewal()

_unnamed: Final[WeakSet[type]] = WeakSet()
"""Classes of named tuples that no annotation names: there are many tuples of each."""


class _Progress:
    """How many values were encoded that come back as something else. Only ever compared, so it needs no lock."""

    changed = 0


_tally: Final = _Progress()


def encode_other(value: Any) -> list[Any] | None:
    """Return a value as a marked list, or None if it cannot be stored.

    :raises CacheEncodeError: if only its content cannot be encoded.
    """
    kind = kind_of(value)
    encoder = STDLIB_ENCODERS.get(kind)
    if encoder is not None:
        return encoder(value)
    if (zone := encode_zone(value, kind)) is not None:
        return zone
    if (family := family_registration(kind)) is not None:
        return encode_registered(family, value)
    marked = encode_row(value, kind)
    if marked is None and kind in _unnamed:
        marked = encode_named_tuple(value, kind)
    if marked is not None:
        _tally.changed += 1
        return marked
    entry = late_registration(kind)
    if entry is None and RENEWAL.active:
        entry = replaced(kind)
        RENEWAL.found += entry is not None
    if entry is not None:
        return encode_registered(entry, value)
    if not isinstance(value, tuple):
        return None
    _unnamed.add(kind)
    _tally.changed += 1
    return encode_named_tuple(value, kind)


changed_so_far: Final[Callable[[], int]] = partial(getattr, _tally, "changed")
"""Returns how many values this process has encoded that come back as something else.

As another class, or as what knows less, such as a row that finds its columns by name only. Where the number has not
changed while a value was encoded, there is none in it.
"""
