"""The pipeline of a connection to a node of a cluster.

It differs from that of a single server in four ways:

- Reads are single GETs, sent together: an MGET with keys of two slots is refused. Their answers are handed out
  together, as if they were one.
- An announcement may come between two of them. What was answered before it is handed out before it. Else an epoch that
  was answered first and announced then would count as read after the announcement, and as current for good.
- An answer that sends us elsewhere (MOVED, ASK, TRYAGAIN, a slot without an owner) reaches no caller. Its request is
  given to `redirect`, which queues it again where it belongs.
- An answer counts only while another node confirms that this one is the primary of its slots, see
  `confirmed_pipeline`. An answer that sends us elsewhere is never held back: it brings nothing, and a replica, which
  has no other ones, is confirmed by no node.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from redis.exceptions import (
    AskError,
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    ResponseError,
    TryAgainError,
)

from magnus_cache._engine.redis.cluster_calls import Calls, outcome
from magnus_cache._engine.redis.confirmed_pipeline import ConfirmedPipeline, Question
from magnus_cache._engine.redis.diagnosis import unable
from magnus_cache._engine.redis.exchange import Connection, ReadBatch
from magnus_cache._engine.redis.outcomes import error_of, fail_waiter
from magnus_cache._engine.redis.requests import Call, HandOut, InFlight, Measure, Read, ReadParts, is_one_step
from magnus_cache.errors import CacheUnavailableError

__all__ = ["ClusterPipeline", "Gets", "is_redirection", "unable_node"]

_VALUE_TYPES: Final = {bytes, type(None)}


class Gets(InFlight):
    """Some GETs that were sent together.

    :ivar values: the answers that have come and were not handed out.
    :ivar wanted: how many there will be, with these.
    """

    __slots__ = ("values", "wanted")
    asked: ReadParts

    def __init__(self, sent: float, asked: ReadParts, wanted: int) -> None:
        super().__init__(sent, 1, asked)
        self.values: list[Any] = []
        self.wanted = wanted

    def divided(self) -> "Gets":
        """Keep the reads without an answer, and return the others with theirs."""
        count, parts = len(self.values), ReadParts()
        first = Gets(self.sent, parts, count)
        first.values, self.values = self.values, []
        self.wanted -= count
        while count:
            part = self.asked[0]
            reads = len(part) if isinstance(part, ReadBatch) else 1
            if isinstance(part, ReadBatch) and reads > count:
                self.asked[0] = part.split(count)
            else:
                del self.asked[0]
            parts.append(part)
            count -= min(reads, count)
        return first


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
        # What looks like such a reply may be a value.
        self.transactions = deque()
        self.redirect: Callable[[Read | ReadBatch | Call, Exception], None]

    def _pack_reads(self, now: float, parts: ReadParts, names: list[bytes]) -> bytes:
        self.owed.append(Gets(now, parts, len(names)))
        return b"".join([b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name) for name in names])

    @property
    def run(self) -> Gets | Calls | None:
        """The oldest request if it is several that were sent together, whose replies are taken together."""
        request = self.owed[0] if self.owed else None
        if isinstance(request, Gets):
            return request
        if request is None or not isinstance(request.asked, Calls):
            return None
        calls = request.asked
        if not calls.wanted:
            calls.sent(request.replies)
        return calls

    def skipped(self) -> bool:
        """Count a reply that only queues a command of a transaction; return False if none is due."""
        # A value may have these bytes.
        return False if self.run is not None else super().skipped()

    def answered(self, reply: Any, connection: Connection) -> Any:
        """Hand a reply to the oldest request; there must be one."""
        run = self.run
        if run is None:
            return super().answered(reply, connection)
        run.values.append(reply)
        if len(run.values) == run.wanted:
            self.got_all(run, connection)
        return reply

    def got_all(self, run: Gets | Calls, connection: Connection) -> None:
        """Hand out the answers to the oldest request, all of which have come."""
        if isinstance(run, Gets):
            self.owed.popleft()
            if run.is_large:
                self._large_owed = False
            self._hand_over(run, connection)
        else:
            self._hand_over_calls(run, connection)
            self.owed.popleft()
            self.pending -= 1

    def announced(self, connection: Connection) -> None:
        """Hand out what has come before an announcement, which may be about an epoch or a value that is among it.

        Other clients may change something between two of our GETs. The announcement is newer than the answers before
        it, and older than those after it. If it was handled first, an old epoch would count as read after its change.
        """
        run = self.run
        if run is None or not run.values:
            return
        if isinstance(run, Gets):
            self._hand_over(run.divided(), connection)
        else:
            self._hand_over_calls(run, connection)

    def _hand_over_calls(self, calls: Calls, connection: Connection) -> None:
        """Hand out the replies to those commands of the oldest request that have all of theirs."""
        request = self.owed[0]
        begin, groups = calls.taken()
        quiet = request.quiet is not None
        replies = [
            outcome(part, group, quiet=quiet)
            for part, group in zip(calls.parts[begin : begin + len(groups)], groups, strict=True)
        ]
        if self.must_hold and not all(map(_is_redirection, replies)):
            self.held.append(partial(self._take_calls, calls, begin, replies, connection, request.sent))
        else:
            self._take_calls(calls, begin, replies, connection, request.sent)

    def _take_calls(
        self, calls: Calls, begin: int, replies: Sequence[Any], connection: Connection, sent: float
    ) -> None:  # fmt: skip
        """Hand out replies, and queue those commands again that were sent elsewhere."""
        places, taken = list[int](), list[Any]()
        for place, found in enumerate(replies, begin):
            reply = found
            if isinstance(reply, Exception):
                if is_redirection(reply):
                    self.redirect(calls.alone(place, connection, sent), reply)
                    continue
                if isinstance(reply, NoScriptError) and calls.parts[place].again is not None:
                    self.add(calls.alone(place, connection, sent).said_again())
                    continue
                reply = error_of(reply, calls.command.name)
            places.append(place)
            taken.append(reply)
        if places:
            try:
                calls.settle(places, taken, connection, sent)
            # As in `Pipeline`: a fault in the handling of these must not take the connection from all the others.
            except Exception:  # noqa: BLE001  # it is told to whom it concerns
                problem = f"Redis gave an answer to {calls.command.name} that makes no sense"
                fail_waiter(calls.waiter, CacheUnavailableError("protocol", problem))

    def _fail_held(self, asked: Any, error: CacheUnavailableError) -> None:
        if isinstance(asked, Calls):
            # It counts as pending no more, or is owed further replies and is told with these.
            fail_waiter(asked.waiter, error)
        else:
            super()._fail_held(asked, error)

    def _hand_over(self, request: Gets, connection: Connection) -> None:
        values = request.values
        if self.must_hold and not all(map(_is_redirection, values)):
            self.held.append(partial(self._take, request, connection))
        else:
            self._take(request, connection)

    def _take(self, request: Gets, connection: Connection) -> None:
        """Hand out the answers to some GETs, and queue those again that were sent elsewhere."""
        parts, values, sent = request.asked, request.values, request.sent
        if not set(map(type, values)) <= _VALUE_TYPES:
            parts, values = self._sorted_out(parts, values, connection, sent)
            if not parts:
                return
        size, batch = sum(map(len, filter(None, values))), parts[0]
        if len(parts) > 1 or isinstance(batch, Read) or not is_one_step(size, len(values)):
            self.unfinished = HandOut(parts, values, connection, sent)
            self.hand_out()
            return
        # As `Pipeline` does it with an MGET: one batch in one step, without an object that keeps count of it.
        try:
            self._receive(batch, slice(0, len(values)), values, connection, sent)
        except BaseException:
            self.unfinished = HandOut(parts, values, connection, sent)
            raise
        self._handed_out(size, len(values), sent)

    def _sorted_out(
        self, parts: ReadParts, values: list[Any], connection: Connection, sent: float
    ) -> tuple[ReadParts, list[Any]]:
        """Return the reads that have an answer, with their values; see to the others."""
        good, kept, begin = ReadParts(), list[Any](), 0
        for part in parts:
            count = len(part) if isinstance(part, ReadBatch) else 1
            some, begin = values[begin : begin + count], begin + count
            if isinstance(part, Read) or len(part) == 1:
                # A batch as it is: it may remember its way.
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
        elif isinstance(asked, ReadBatch) and "WRONGTYPE" in str(error):
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


def _is_redirection(reply: Any) -> bool:
    return isinstance(reply, Exception) and is_redirection(reply)


def _is_no_value(value: Any) -> bool:
    return value is not None and type(value) is not bytes
