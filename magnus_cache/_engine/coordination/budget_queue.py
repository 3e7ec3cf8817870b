"""The loads of one event loop that wait for the tokens of one bucket.

The queue asks the bucket for all its loads at once when one comes, and again when the first one's turn is due, as the
bucket has told it. In between it sends nothing. Only the first loads of a long queue are known to the bucket, so that a
process that dies holds up the others by the turns of these at most.

A turn belongs to the queue, not to a load: when it comes, the load gets it that most callers wait for by then.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from magnus_cache._engine.redis.budget_keys import BucketReply, Wanted
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.errors import CacheBudgetError

__all__ = ["Bucket", "BudgetQueue", "Held"]

_AHEAD: Final = 16
"""Loads of one queue that the bucket knows."""

_LEAST: Final = 0.001
"""Seconds before the bucket is asked again, at least."""

_MOST_CALLERS: Final = 1_000_000
_BACKGROUND: Final = _MOST_CALLERS + 1
"""The rank of loads that no caller waits for: after all others."""


class Held(Protocol):
    """A load that asks for tokens.

    :ivar until: monotonic second up to which it may wait.
    """

    @property
    def until(self) -> float: ...  # see above

    def callers(self) -> int:
        """Return how many callers wait for it now; 0 for a load in the background."""
        ...

    def waits(self) -> bool:
        """Return whether it may wait; if not, its callers have something else to serve."""
        ...

    def held_back(self, retry_after: float, *, waits: bool) -> None:
        """Note that it cannot begin now."""

    def refusal(self, retry_after: float) -> CacheBudgetError:
        """Return the error for a load that does not get its turn in time."""
        ...


class Bucket(Protocol):
    """Asks for tokens on behalf of the queues of this process."""

    def ask(
        self, queue: "BudgetQueue", loads: Sequence[Wanted], answered: Callable[[BucketReply], object]
    ) -> None:  # fmt: skip
        """Ask for the tokens of some loads; `answered` is called with the reply on this loop, at once or later."""

    def give_back(self, generation: bytes, place: int, tokens: int) -> None:
        """Give back tokens that were not used."""


class _Entry:
    """A load in the queue.

    :ivar granted: the generation of the bucket and the number of the first token, once it has them.
    :ivar noted: whether it is noted that it was held back.
    """

    __slots__ = ("arrived", "granted", "held", "noted", "tokens", "turn")

    def __init__(self, held: Held, tokens: int, loop: asyncio.AbstractEventLoop) -> None:
        self.held = held
        self.tokens = tokens
        self.arrived = monotonic()
        self.turn: asyncio.Future[None] = loop.create_future()
        self.granted: tuple[bytes, int] | None = None
        self.noted = False

    def order(self) -> tuple[int, float]:
        """Return what those are compared by that wait."""
        callers = self.held.callers()
        return (_MOST_CALLERS - min(callers, _MOST_CALLERS) if callers else _BACKGROUND), self.arrived


class BudgetQueue:
    """The loads that wait on one event loop. Call every method there.

    :param owner: identifies the queue to the bucket.
    """

    def __init__(self, bucket: Bucket, loop: asyncio.AbstractEventLoop, owner: bytes) -> None:
        self._bucket = bucket
        self._loop = loop
        self.owner = owner
        self._waiting: list[_Entry] = []
        self._asked: list[_Entry] | None = None
        self._reserved = 0
        self._changed = False
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._empty_until = -math.inf

    def __len__(self) -> int:
        return len(self._waiting)

    async def take(self, held: Held, tokens: int) -> Callable[[], None]:
        """Return when a load has its tokens, with what gives them back.

        :raises CacheBudgetError: if it does not get them in time, or may not wait.
        """
        if not held.waits() and (left := self._empty_until - monotonic()) > 0:
            # Known already, so the bucket need not be asked.
            held.held_back(left, waits=False)
            raise held.refusal(left)
        entry = _Entry(held, tokens, self._loop)
        self._waiting.append(entry)
        self.ask_soon()
        try:
            await entry.turn
        except BaseException:
            if entry.granted is not None:
                # Cancelled in the moment of its turn.
                self._bucket.give_back(*entry.granted, tokens)
            raise
        finally:
            if entry in self._waiting:
                # Cancelled: its reservation goes to the next.
                self._waiting.remove(entry)
                if not self._loop.is_closed():
                    self.ask_soon()
        assert entry.granted is not None
        return partial(self._bucket.give_back, *entry.granted, tokens)

    def ask_soon(self) -> None:
        """Ask the bucket again, as loads have come or gone, or callers have joined one that waits."""
        self._changed = True
        if self._soon is None and self._asked is None:
            # Together with all loads that begin in this turn of the loop.
            self._soon = self._loop.call_soon(self._ask)

    def _ask(self) -> None:
        self._soon = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._asked is not None or not (self._waiting or self._reserved):
            return
        self._changed = False
        first = sorted(self._waiting, key=_Entry.order)[:_AHEAD]
        self._asked, now = first, monotonic()
        loads = [Wanted(entry.tokens, entry.order()[0], now - entry.arrived) for entry in first]
        self._bucket.ask(self, loads, self._answered)

    def _answered(self, reply: BucketReply) -> None:
        """Take the answer of the bucket: turns that have come, and when the others will."""
        asked, self._asked = self._asked or [], None
        waits = [turn for turn in reply.turns if isinstance(turn, float)]
        self._reserved = len(waits)
        now, last = monotonic(), max(waits, default=None)
        self._empty_until = now + waits[0] if waits else -math.inf
        lefts = dict(zip(asked, reply.turns, strict=True))
        for entry, turn in lefts.items():
            if isinstance(turn, int):
                self._grant(entry.tokens, reply.generation, turn)
        for entry in list(self._waiting):
            # Those that the bucket does not know come after those that it knows.
            left = lefts.get(entry, last)
            if left is None or isinstance(left, int):
                continue
            if not entry.held.waits() or now + left > entry.held.until:
                self._refuse(entry, left)
            elif not entry.noted:
                entry.noted = True
                entry.held.held_back(left, waits=True)
        if self._changed or self._reserved != min(_AHEAD, len(self._waiting)):
            self.ask_soon()
        elif waits:
            self._timer = self._loop.call_later(max(waits[0], _LEAST), self._ask)

    def _grant(self, tokens: int, generation: bytes, place: int) -> None:
        """Give a turn to the load that most callers wait for, of those that take as many tokens."""
        alike = [each for each in self._waiting if each.tokens == tokens and not each.turn.done()]
        if not alike:
            self._bucket.give_back(generation, place, tokens)
            return
        chosen = min(alike, key=_Entry.order)
        self._waiting.remove(chosen)
        chosen.granted = generation, place
        chosen.turn.set_result(None)

    def _refuse(self, entry: _Entry, left: float) -> None:
        self._waiting.remove(entry)
        entry.held.held_back(left, waits=False)
        if not entry.turn.done():
            entry.turn.set_exception(entry.held.refusal(left))
