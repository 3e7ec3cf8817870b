"""A connection that is believed only while others confirm its server as the primary; see `confirmed_pipeline`.

A node of a cluster is confirmed by another node, a primary that Sentinel names by a majority of the sentinels. Both are
counted from the moment at which the others were asked: `known.vouched`. The trust of the connection ends
`max_staleness` after that moment, or after the last answer of its own, whichever is earlier.
"""

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError

from magnus_cache._engine.coherence.known_epochs import KnownEpochs
from magnus_cache._engine.redis import commands
from magnus_cache._engine.redis.commands import Command
from magnus_cache._engine.redis.confirmed_pipeline import ConfirmedPipeline, Question
from magnus_cache._engine.redis.connection import push_of
from magnus_cache._engine.redis.diagnosis import TopologyError
from magnus_cache._engine.redis.exchange import as_it_is
from magnus_cache._engine.redis.handshake import history_check
from magnus_cache._engine.redis.incoming import Rest
from magnus_cache._engine.redis.wire import Wire
from magnus_cache._engine.runtime.turns import PIECE
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.outage.breaker import Breaker
    from magnus_cache._engine.redis.endpoint import Endpoint
    from magnus_cache._engine.redis.events import WireLimits, WireListener
    from magnus_cache._engine.runtime.clock import Clock

__all__ = ["ConfirmedWire"]

_ASK_AGAIN: Final = 0.05
"""Seconds after which the others are asked again for their word while answers wait for it."""

_UNCONFIRMED: Final = "it answers, and the others do not confirm that it is the primary; the cache waits for their word"


class ConfirmedWire(Wire):
    """See the module."""

    _pipeline_type = ConfirmedPipeline
    _pipeline: ConfirmedPipeline

    def __init__(
        self, endpoint: "Endpoint", limits: "WireLimits", breaker: "Breaker", observer: "WireListener", clock: "Clock",
    ) -> None:  # fmt: skip
        super().__init__(endpoint, limits, breaker, observer, clock)
        self._waiting: asyncio.TimerHandle | None = None
        self._is_replaced = False
        self._pipeline.believes = self._is_believed

    def _ask_for_word(self, *, urgent: bool = False) -> None:
        """Ask the others, unless that is under way or was done just now."""
        raise NotImplementedError

    def _history_question(self) -> Command:
        """Return the question which history of writes the server has."""
        return commands.recognize(self.probe)

    def _is_believed(self) -> bool:
        return self.clock() <= self.known.vouched + self.max_staleness

    def vouched(self, at: float) -> None:
        """Note that others, asked at a monotonic second, have confirmed this server as the primary."""
        if not self.up or at <= self.known.vouched:
            return
        self.known.vouched = at
        self.trust.deadline = max(self.trust.deadline, self.known.trusted_from + self.max_staleness)
        if not self._pipeline.releasing:
            self._release()

    def _release(self) -> None:
        """Take what was held back, in as many turns of the loop as that needs."""
        pipeline = self._pipeline
        if pipeline.held or pipeline.releasing:
            if pipeline.release():
                self.loop.call_soon(self._release)
            if pipeline.queue:
                self._sender.kick()  # a script that the server did not know
        if not pipeline.held and self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def replaced(self) -> None:
        """Note that others have another server in its place: no word comes for what is held back."""
        self._is_replaced = True
        self._fail_held()

    def _fail_held(self) -> None:
        # As if the connection was lost: callers ask again, and find the other one.
        self._pipeline.fail_held(CacheUnavailableError("lost", "another server has taken the place of this one"))

    def _pack(self) -> list[bytes | memoryview]:
        self._ask_for_word()
        return super()._pack()

    def _handle(self, reply: Any) -> Rest:
        pipeline = self._pipeline
        if (pipeline.held or pipeline.releasing) and (frame := push_of(reply)) is not None:
            names = frame[1] if frame[0] == b"invalidate" else None
            # In pieces, as all that is released together may take several turns of the loop.
            frames = [frame] if names is None else [[b"invalidate", names[at : at + PIECE]] for at in _places(names)]
            pipeline.held.extend(partial(self._take_push, each) for each in frames)
            return None
        return self._handled(super()._handle(reply))

    def _handled(self, rest: Rest) -> Rest:
        """Have the others asked for their word if answers wait for it; return what was given."""
        if self._pipeline.held and self._waiting is None:
            self._wait_for_word(self.clock() + self._limits.op_timeout)
        return rest

    def _wait_for_word(self, until: float) -> None:
        """Ask the others for their word until it comes, or until a monotonic second: then the connection ends."""
        self._waiting = None
        if not self._pipeline.held:
            return
        if self._is_replaced:
            # It was asked before others told so.
            self._fail_held()
            return
        if self.clock() >= until:
            # It has answered: what is told is why that does not count.
            self._intake.refusal = RedisConnectionError(TopologyError(_UNCONFIRMED))
            self.give_up()
            return
        self._ask_for_word(urgent=True)
        self._waiting = self.loop.call_later(_ASK_AGAIN, self._wait_for_word, until)

    def _flushed(self) -> None:
        before = self.trust.deadline, self.trust.generation
        self.trust.retire()
        self.trust = type(self.trust)(*before)
        known, self.known = self.known, KnownEpochs(self._limits.controls.root, self.known.confirmed)
        self.known.vouched = known.vouched
        if self.server.history:
            check = history_check(self.known, self.server.history)
            self._pipeline.add_first(Question(self._history_question(), as_it_is, check))
            self._sender.kick()
        self._observer.flushed(self)

    def _take_push(self, frame: list[Any]) -> None:
        if frame[0] == b"invalidate":
            if frame[1] is None:
                self._flushed()
            else:
                self._observer.invalidated(frame[1], self)

    def _lost(self, error: CacheUnavailableError) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._is_replaced = False
        super()._lost(error)


def _places(names: list[Any]) -> range:
    """Return where the pieces of a list begin."""
    return range(0, len(names), PIECE)
