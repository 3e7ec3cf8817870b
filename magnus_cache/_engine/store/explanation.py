"""`Explanation`: what the cache knows about one key, for people."""

from dataclasses import dataclass
from typing import Final

__all__ = ["Explanation", "KeyEvent", "duration_text"]


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """One of the last things that happened to a key.

    :ivar what: in a word or two: ``"loaded"``, ``"load failed"``, ``"not stored"`` (a loaded value was returned to its
        callers only), ``"set"``, ``"touched"``, ``"deleted"``, ``"cleared"``, ``"function cleared"``,
        ``"tag invalidated"``; ``"cleared elsewhere"``, ``"tag invalidated elsewhere"`` and ``"changed elsewhere"`` for
        what was announced, and no other process has told more of; ``"Redis away"``, ``"Redis back"``, ``"Redis was
        emptied"``, ``"all invalidated"``.
    :ivar age: seconds since it happened.
    :ivar process: the process that did it, or noticed it: its host, process id and instance.
    :ivar here: whether that is this process.
    :ivar site: the line of the program that called the cache, or the first line of the function that loaded the value;
        None if it is not known.
    :ivar detail: more about it: how long a load took, its error, why a value was not stored, which
        operation but `set` has set it; or None.
    """

    what: str
    age: float
    process: str
    here: bool
    site: str | None = None
    detail: str | None = None

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        by = "this process" if self.here else self.process
        return f"{duration_text(self.age)} ago: {self.what}{detail}, {by}{f', {self.site}' if self.site else ''}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The state of one key, without its value.

    :ivar namespace: the namespace's name.
    :ivar name: the value's full name in Redis.
    :ivar level: where a `get` would find the value now: ``"l1"``, ``"l2"``, or None for a miss.
    :ivar verdict: what is stored, or why the key is a miss, in words.
    :ivar age: seconds since the load or the `set` of the value began, or None if this is not known.
    :ivar left: remaining TTL in seconds, or None.
    :ivar epoch: the highest epoch that the loading process had seen before the load, or None.
    :ivar lowest_valid_epoch: the lowest epoch of a valid value of this key, or None.
    :ivar tags: the tags of the value.
    :ivar cost: seconds that the load took, or None.
    :ivar size: bytes of the encoded value, or None.
    :ivar lease_holder: who is loading the value: host, process and acquisition, or None.
    :ivar lease_left: seconds until that lease expires if it is not renewed, or None.
    :ivar stored_by: the process that has stored the value in Redis: its host, process id and instance; None if it is
        not known, as of a process that has ended.
    :ivar history: the last things that happened to the key, the latest first: in this process, and what others have
        told of their deletes, clears and invalidated tags.
    :ivar calendar: the TTL of its namespace if that is a calendar, as it is written; None otherwise.
    :ivar opaque: whether the codec of a namespace has stored the value: bytes that mean nothing to others.
    :ivar node: on a cluster, the address of the primary that has the key, such as ``"10.0.0.7:6379"``; None otherwise.
    :ivar slot: on a cluster, the slot of the key; None otherwise.
    """

    namespace: str
    name: str
    level: str | None
    verdict: str
    age: float | None = None
    left: float | None = None
    epoch: int | None = None
    lowest_valid_epoch: int | None = None
    tags: tuple[str, ...] = ()
    cost: float | None = None
    size: int | None = None
    lease_holder: str | None = None
    lease_left: float | None = None
    node: str | None = None
    slot: int | None = None
    stored_by: str | None = None
    history: tuple[KeyEvent, ...] = ()
    opaque: bool = False
    calendar: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.verdict}"]
        details: list[str] = []
        if self.age is not None:
            details.append(f"stored {duration_text(self.age)} ago")
        if self.left is not None:
            details.append(
                f"expires in {duration_text(self.left)}"
                if self.left > 0
                else f"expired {duration_text(-self.left)} ago"
            )
        if self.cost:
            details.append(f"loaded in {duration_text(self.cost)}")
        if self.size is not None:
            details.append(f"size {_size(self.size)}{', opaque bytes of a codec' if self.opaque else ''}")
        if self.tags:
            details.append(f"tags {', '.join(self.tags)}")
        if details:
            lines.append(f"  {'; '.join(details)}")
        if self.calendar is not None:
            lines.append(f"  its namespace has ttl={self.calendar}")
        if self.epoch is not None:
            lines.append(f"  epoch {self.epoch}; values are valid from epoch {self.lowest_valid_epoch} on")
        if self.lease_holder is not None:
            lines.append(
                f"  being loaded by {self.lease_holder}; its lease ends in {duration_text(self.lease_left or 0.0)}"
            )
        if self.stored_by is not None:
            lines.append(f"  stored by {self.stored_by}")
        if self.slot is not None:
            lines.append(f"  slot {self.slot}, {'without a known node' if self.node is None else f'node {self.node}'}")
        lines += (f"  {event}" for event in self.history)
        return "\n".join(lines)


_SPANS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def duration_text(seconds: float) -> str:
    """Return a duration for people, with its two largest units: ``2 d 3 h``, ``1 min 5 s``, ``2.5 s``, ``350 ms``."""
    if seconds < 0.9995:
        return f"{round(seconds * 1000, 1):g} ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    left, parts = round(seconds), list[str]()
    for span, unit in _SPANS:
        count, left = divmod(left, span)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def _size(count: int) -> str:
    """Return a size for people: ``1 byte``, ``900 bytes``, ``4.2 kB``."""
    if count < 1000:
        return "1 byte" if count == 1 else f"{count} bytes"
    value, units = float(count), iter(("kB", "MB", "GB"))
    unit = ""
    while value >= 1000 and (larger := next(units, "")):
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
