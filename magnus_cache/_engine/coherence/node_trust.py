"""The trust of a connection to a node of a cluster: in parts, so that slots that move end the trust in few entries.

An entry stands on the trust of its slot's part: `SPAN` neighbouring slots, 1,024 parts in all. When a slot moves, its
part ends, and everything else that was read through the connection stays. A trust for each single slot would end that
of fewer entries still. But what a large memory keeps as records has a number for each trust, of which there are some
thousands at most; and people move slots by ranges.

The races that this excludes
----------------------------
- One thread ends a part while another one, on the connection's loop, makes an entry that stands on it. The slots are
  noted as moved before the part ends, and a reader asks for the part before it looks whether the slot has moved. So
  either the part that it got is ended, or it finds that the slot has moved.
"""

from collections.abc import Iterable
from typing import Final

from magnus_cache._engine.coherence.trust import Trust

__all__ = ["SPAN", "NodeTrust"]

SPAN: Final = 16
"""Slots whose entries share a trust."""

_DEAD: Final = float("-inf")


class _Part(Trust):
    __slots__ = ("whole",)

    whole: "NodeTrust | None"


class NodeTrust(Trust):
    """The trust of a connection to one node, which all its parts follow. The connection's loop makes parts and renews.

    :ivar deadline: monotonic seconds until which the entries of all parts may be served.
    :ivar used: whether an entry of any part was served since the owner last reset this.
    """

    __slots__ = ("_deadline", "_generation", "_parts", "_since", "_used")

    def __init__(self, deadline: float, generation: float = 0) -> None:
        self._parts: dict[int, _Part] = {}
        self._since: dict[int, float] = {}
        self._deadline, self._generation, self._used = deadline, generation, False
        super().__init__(deadline, generation)

    def of(self, slot: int) -> Trust:
        """Return what the entries of a slot stand on; ask for it before you look whether the slot has moved."""
        number = slot // SPAN
        part = self._parts.get(number)
        if part is None:
            part = _Part(self._deadline, max(self._generation, self._since.get(number, self._generation)))
            part.whole = self
            # At once, as another thread may end it.
            self._parts[number] = part
        return part

    def has(self, trust: Trust) -> bool:
        """Return whether a trust is one of the parts, and its slots have not moved since."""
        return isinstance(trust, _Part) and trust.whole is self

    def suspect(self, ranges: Iterable[tuple[int, int]], now: float) -> None:
        """End the trust in all entries of some slots, given the first and last ones of ranges; from any thread.

        :param now: the current monotonic second, which is the generation of what is read of them from now on.
        """
        numbers = [number for first, last in ranges for number in range(first // SPAN, last // SPAN + 1)]
        for number in numbers:
            # First, see `of`.
            self._since[number] = now
            part = self._parts.pop(number, None)
            if part is not None:
                part.whole = None
                part.kill()

    def kill(self) -> None:
        """Make every entry of all parts suspect, at once."""
        super().kill()
        for part in list(self._parts.values()):
            part.kill()

    @property
    def deadline(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Monotonic seconds until which the entries may be served."""
        return self._deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        if deadline != self._deadline:
            self._deadline = deadline
            if deadline != _DEAD:
                for part in list(self._parts.values()):
                    part.deadline = deadline

    @property
    def generation(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The monotonic second when the trust began; that of a part may be later."""
        return self._generation

    @generation.setter
    def generation(self, generation: float) -> None:
        self._generation = generation
        for part in list(self._parts.values()):
            part.generation = generation

    @property
    def used(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether an entry was served since the owner last reset this."""
        return self._used or any(part.used for part in list(self._parts.values()))

    @used.setter
    def used(self, used: bool) -> None:
        self._used = used
        if not used:
            for part in list(self._parts.values()):
                part.used = False
