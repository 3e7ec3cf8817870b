"""The pipeline of a connection whose answers count only while others confirm that its server is the primary.

Until then, answers and announcements are held back, in their order, and only answers to a `Question` are taken.

The races that holding back excludes
------------------------------------
- A primary was cut off from the others, and they have put its replica in its place. It goes on to answer all that it is
  asked, with what it had. Its own word about its role is worth nothing, another one's is.
- The announcement of an epoch overtakes the answer that is held back and has the old epoch: the old one would count as
  current, without an announcement to come. So what arrives after an answer that is held back waits behind it.
- Two connections wait for each other's word. So answers to `Question` are never held back.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from magnus_cache._engine.redis.exchange import Connection
from magnus_cache._engine.redis.outcomes import check_values
from magnus_cache._engine.redis.pipeline import Pipeline
from magnus_cache._engine.redis.requests import Call, HandOut, InFlight, Measure, Read, ReadParts
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.turns import SHARE
from magnus_cache.errors import CacheUnavailableError

__all__ = ["ConfirmedPipeline", "Question"]


class Question(Call):
    """A question to this very server about itself or about the others: its answer is never held back."""

    __slots__ = ()


class ConfirmedPipeline(Pipeline):
    """See the module.

    :ivar believes: returns whether others have confirmed this server lately.
    :ivar held: the calls that are held back, in order; the first argument of each is what was asked for, or a push.
    :ivar releasing: whether `release` has more to do in the next turn of the loop.
    """

    __slots__ = ("believes", "held", "releasing")

    def __init__(self, measure: Measure) -> None:
        super().__init__(measure)
        self.held: deque[partial[None]] = deque()
        self.releasing = False
        self.believes: Callable[[], bool] = bool

    @property
    def must_hold(self) -> bool:
        """Whether what arrives now is to be held back."""
        return bool(self.held) or self.releasing or not self.believes()

    def _answered(
        self, request: InFlight, parts: ReadParts, values: list[bytes | None], connection: Connection
    ) -> None:
        if not self.must_hold:
            super()._answered(request, parts, values, connection)
            return
        # While the request still counts as owed, as in the base class.
        check_values(values, request.count)
        self.owed.popleft()
        if request.is_large:
            self._large_owed = False
        self.held.append(partial(self._hand_out_held, request, values, connection))

    def _hand_out_held(self, request: InFlight, values: list[bytes | None], connection: Connection) -> None:
        assert isinstance(request.asked, list)
        self.unfinished = HandOut(request.asked, values, connection, request.sent)
        self.hand_out()

    def _settle(self, asked: Read | Call, reply: Any, connection: Connection, sent: float) -> None:
        # A read is settled when the reply that it is part of is handed out, which was held back for it.
        if isinstance(asked, Read | Question) or not self.must_hold:
            self._settle_now(asked, reply, connection, sent)
        else:
            self.held.append(partial(self._settle_now, asked, reply, connection, sent))

    def _settle_now(self, asked: Read | Call, reply: Any, connection: Connection, sent: float) -> None:
        super()._settle(asked, reply, connection, sent)

    def release(self) -> bool:
        """Take what was held back, as far as one turn of the loop allows: others have confirmed this server.

        Returns whether there is more, for another call in the next turn. What arrives until then waits behind it.
        """
        until = monotonic() + SHARE
        while self.unfinished is not None or (self.held and self.believes()):
            if monotonic() > until:
                self.releasing = True
                return True
            # All of a reply, before what came after it.
            if self.unfinished is not None:
                self.hand_out()
            else:
                self.held.popleft()()
        self.releasing = False
        return False

    def fail_sent(self, error: CacheUnavailableError) -> None:
        """Tell all who are owed an answer that it will not come, also those whose answer was held back."""
        self.fail_held(error)
        super().fail_sent(error)

    def fail_held(self, error: CacheUnavailableError) -> None:
        """Tell all whose answer is held back that it will not count."""
        held, self.held, self.releasing = self.held, deque(), False
        for each in held:
            self._fail_held(each.args[0], error)

    def _fail_held(self, asked: Any, error: CacheUnavailableError) -> None:
        if isinstance(asked, InFlight):
            assert isinstance(asked.asked, list)
            for part in asked.asked:
                self._fail(part, error)
        elif isinstance(asked, Read | Call):
            self._fail(asked, error)
