"""Values that callers may change: each gets a copy of its own, from the second hit on by a plan instead of decoding.

The plan, and the value that it copies, are kept beside the payload, and both count against `l1_max_bytes`: one that has
no room, and one whose parts have no plan, is decoded each time.
"""

from typing import Any, Final

from magnus_cache._engine import codec
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.footprint import footprint, has_room
from magnus_cache._engine.memory.store import LocalCache
from magnus_cache._engine.runtime.critical import section

__all__ = ["keep_planned"]

_OPENED: Final = object()
"""Stands for the value of an entry that was decoded once, for one caller."""

_UNPLANNED: Final = object()
"""Stands for the value of an entry that is decoded each time."""


def keep_planned(memory: LocalCache, name: bytes, entry: Entry, value: Any) -> Any:
    """Return a value for one caller that was decoded from an entry's payload and may be changed by its callers.

    At the second such value the entry is replaced by one with a plan to copy it, if it has a plan and there is room.
    That one has the payload as well; both count.
    """
    known = entry.value
    if known is None:
        _note(entry, _OPENED)
    elif known is _OPENED:
        plan = codec.plan_for(value)
        size = 0 if plan is None else entry.size + footprint(value, 0) + plan.size
        if plan is None or not has_room(memory, size):
            _note(entry, _UNPLANNED)
        elif memory.replace(name, entry, entry.planned(plan, size)):
            return plan.copy()
    return value


def _note(entry: Entry, what: object) -> None:
    """Note something about an entry's payload where its value would be, as long as there is none."""
    with section():
        if entry.payload is not None:
            entry.value = what
