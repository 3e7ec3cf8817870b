"""The pipeline of a connection to a node of a cluster.

It differs from that of a single server in four ways:

- Reads are single GETs, sent together: an MGET with keys of two slots is refused.
- An announcement may come between two of them. What was answered before it is handed out before it. Else an epoch that
  was answered first and announced then would count as read after the announcement, and as current for good.
- An answer that sends us elsewhere (MOVED, ASK, TRYAGAIN, a slot without an owner) reaches no caller. Its request is
  given to `redirect`, which queues it again where it belongs.
- An answer counts only while another node confirms that this one is the primary of its slots, see
  `confirmed_pipeline`. An answer that sends us elsewhere is never held back: it brings nothing, and a replica, which
  has no other ones, is confirmed by no node.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from redis.exceptions import AskError, ClusterDownError, MasterDownError, ResponseError, TryAgainError

from magnus_cache._engine.redis.commands import pack
from magnus_cache._engine.redis.confirmed_pipeline import ConfirmedPipeline, Question
from magnus_cache._engine.redis.diagnosis import unable
from magnus_cache._engine.redis.exchange import Connection, ReadBatch
from magnus_cache._engine.redis.requests import Call, HandOut, InFlight, Measure, Read, ReadParts

__all__ = ["ClusterPipeline", "is_redirection", "unable_node"]


class _Gets(InFlight):
    """Some GETs that were sent together.

    :ivar values: the answers so far.
    :ivar wanted: how many there will be.
    """

    __slots__ = ("values", "wanted")

    def __init__(self, sent: float, asked: ReadParts, wanted: int) -> None:
        super().__init__(sent, 1, asked)
        self.values: list[Any] = []
        self.wanted = wanted


def is_redirection(error: BaseException) -> bool:
    """Return whether an error reply only says that the command belongs elsewhere, or has to wait."""
    if isinstance(error, MasterDownError):
        return False
    if isinstance(error, ClusterDownError):
        # One slot has no owner; the others work.
        return "slot" in str(error).lower()
    if isinstance(error, AskError | TryAgainError):  # MovedError is an AskError
        return True
    # What a script says of a write where `cluster-allow-reads-when-down` is set.
    return isinstance(error, ResponseError) and "cluster is down" in str(error)


def unable_node(error: Exception) -> Any:
    """Return why a node serves no command at all, see `diagnosis.unable`."""
    return None if is_redirection(error) else unable(error)


class ClusterPipeline(ConfirmedPipeline):
    """See the module.

    :ivar redirect: queues a request again, given the error; it settles the request in any case.
    """

    __slots__ = ("redirect",)

    def __init__(self, measure: Measure) -> None:
        super().__init__(measure)
        self.redirect: Callable[[Read | ReadBatch | Call, Exception], None]

    def _pack_reads(self, now: float, parts: ReadParts, names: list[bytes]) -> bytes:
        self.owed.append(_Gets(now, parts, len(names)))
        return b"".join([pack(b"GET", name) for name in names])

    def skipped(self) -> bool:
        """Count a reply that only queues a command of a transaction; return False if none is due."""
        # A value may have these bytes.
        return False if self.owed and isinstance(self.owed[0], _Gets) else super().skipped()

    def answered(self, reply: Any, connection: Connection) -> Any:
        """Hand a reply to the oldest request; there must be one."""
        request = self.owed[0]
        if not isinstance(request, _Gets):
            return super().answered(reply, connection)
        request.values.append(reply)
        if len(request.values) == request.wanted:
            self.owed.popleft()
            if request.is_large:
                self._large_owed = False
            self._take_now_or_later(request, connection)
        return reply

    @property
    def is_interrupted(self) -> bool:
        """Whether some, but not all, of the GETs that were sent together are answered."""
        owed = self.owed
        return bool(owed) and isinstance(request := owed[0], _Gets) and bool(request.values)

    def take_answered(self, connection: Connection) -> None:
        """Hand out what is answered of some GETs that were sent together, before an announcement is handled."""
        request = self.owed[0]
        assert isinstance(request, _Gets)
        parts = request.asked
        assert isinstance(parts, list)
        count = len(request.values)
        answered, others = _divided(parts, count)
        done = _Gets(request.sent, answered, count)
        done.values = request.values
        request.asked, request.wanted, request.values = others, request.wanted - count, []
        self._take_now_or_later(done, connection)

    def _take_now_or_later(self, request: _Gets, connection: Connection) -> None:
        if self.must_hold and not all(map(_is_redirection, request.values)):
            self.held.append(partial(self._take, request, connection))
        else:
            self._take(request, connection)

    def _take(self, request: _Gets, connection: Connection) -> None:
        """Hand out the answers to some GETs, and queue those again that were sent elsewhere."""
        values, parts = request.values, request.asked
        assert isinstance(parts, list)
        if any(map(_is_no_value, values)):
            parts, values = self._sorted_out(parts, values, connection, request.sent)
            if not parts:
                return
        self.unfinished = HandOut(parts, values, connection, request.sent)
        self.hand_out()

    def _sorted_out(
        self, parts: ReadParts, values: list[Any], connection: Connection, sent: float
    ) -> tuple[ReadParts, list[Any]]:
        """Return the reads that have an answer, with their values; see to the others."""
        good, kept, begin = ReadParts(), list[Any](), 0
        for part in parts:
            count = len(part) if isinstance(part, ReadBatch) else 1
            some, begin = values[begin : begin + count], begin + count
            if isinstance(part, Read):
                if _is_no_value(some[0]):
                    self._elsewhere(part, some[0], connection, sent)
                else:
                    good.append(part)
                    kept += some
                continue
            if len(part) == 1:
                # As it is: it may remember its way.
                if _is_no_value(some[0]):
                    self._elsewhere(part, some[0], connection, sent)
                else:
                    good.append(part)
                    kept += some
                continue
            answered, others = part.divided([not _is_no_value(value) for value in some])
            for place, value in enumerate(filter(_is_no_value, some)):
                one = ReadBatch(part.receiver)
                one.add(others.wanted[place], others.places[place], others.waiters[place])
                self._elsewhere(one, value, connection, sent)
            if len(answered):
                good.append(answered)
                kept += [value for value in some if not _is_no_value(value)]
        return good, kept

    def _elsewhere(self, asked: Read | ReadBatch, reply: Any, connection: Connection, sent: float) -> None:
        error = reply if isinstance(reply, Exception) else ResponseError("Protocol error: no answer to GET")
        if is_redirection(error):
            self.pending -= 1
            self.redirect(asked, error)
        elif isinstance(asked, ReadBatch) and getattr(error, "args", ("",))[0:1] and "WRONGTYPE" in str(error):
            # As MGET does: a key of another type is no value.
            self._receive(asked, slice(0, 1), [None], connection, sent)
        else:
            self._refuse([asked], error, connection, sent)

    def _settle(self, asked: Read | Call, reply: Any, connection: Connection, sent: float) -> None:
        if _is_redirection(reply):
            self._settle_now(asked, reply, connection, sent)
        else:
            super()._settle(asked, reply, connection, sent)

    def _settle_now(self, asked: Read | Call, reply: Any, connection: Connection, sent: float) -> None:
        if _is_redirection(reply) and not isinstance(asked, Question):
            self.pending -= 1
            self.redirect(asked, reply)
        else:
            super()._settle_now(asked, reply, connection, sent)


def _divided(parts: ReadParts, count: int) -> tuple[ReadParts, ReadParts]:
    """Return the first reads of a request, and the others."""
    first, others = ReadParts(), ReadParts()
    for part in parts:
        if count <= 0:
            others.append(part)
            continue
        if isinstance(part, ReadBatch) and len(part) > count:
            others.append(part.split(count))
        first.append(part)
        count -= len(part) if isinstance(part, ReadBatch) else 1
    return first, others


def _is_redirection(reply: Any) -> bool:
    return isinstance(reply, Exception) and is_redirection(reply)


def _is_no_value(value: Any) -> bool:
    return value is not None and type(value) is not bytes
