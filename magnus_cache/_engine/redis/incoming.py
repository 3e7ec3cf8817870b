"""Replies handed over as they come, inside the callback in which their bytes arrive.

redis-py reads through a stream: its bytes wake a task in the next turn of the loop, which parses them, wakes the
callers, and these run in the turn after that. Here the bytes go to redis-py's parser at once, and the callers are woken
in the same turn. What takes several turns (a long announcement, a reply of large values) is left to the task that reads
from the connection, and so is all that comes meanwhile: then the bytes go through the stream, which holds up the server
when they are too many. So there is one order of replies and pushes, whichever way they take.

It needs names of redis-py and asyncio that are not public: see `connection`. Without them, the task reads everything.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from typing import Any, Final, Protocol

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.turns import SHARE, turn

__all__ = ["Handled", "Handler", "Incoming", "Rest", "Taken", "Transaction", "read"]

Rest = Callable[[], Awaitable[None]] | None
"""What is left to do of a reply before the next one may be looked at, in turns of the loop; None for nothing."""

Handler = Callable[[Any], Rest]
"""Handles a reply or push."""

Handled = Callable[[], object]
"""Called when all replies that came together were handled."""


class Taken(Enum):
    """What became of bytes that have arrived."""

    NOT = auto()
    """They have to go through the stream."""
    PART = auto()
    """They are part of a reply."""
    REPLIES = auto()
    """Replies were handled. Bytes of another one are here."""
    WHOLE = auto()
    """Replies were handled, and nothing else is here."""


_AT_ONCE: Final = 64
"""Replies handled before the loop gets a turn, in which the tasks run that they have woken."""

_QUEUED_COUNTS: Final = 1 / 16
"""Of a reply, what one counts for that only says that a command of a transaction was taken."""


class Transaction(Protocol):
    """A request that is owed an answer.

    :ivar replies: how many replies are still to come. All but the last begin a transaction, or queue its commands.
    """

    replies: int


class _Parser(Protocol):
    """`hiredis.Reader`, as far as it is used here."""

    def feed(self, data: bytes, /) -> object: ...
    def gets(self, decode: bool, /) -> Any: ...
    def has_data(self) -> bool: ...


def _ignore() -> None:
    """Do nothing."""


async def _nothing_left() -> None:
    """Return: there was nothing left but to let others run."""


class Incoming:
    """What comes in through one connection.

    :param stream: the stream that redis-py reads from.
    :param parser: the parser that redis-py feeds from it.
    """

    __slots__ = ("_all_handled", "_handle", "_nothing", "_owed", "_parser", "_served", "_stream")

    def __init__(self, stream: Any, parser: _Parser) -> None:
        self._stream = stream
        self._parser = parser
        self._owed: Sequence[Transaction] = ()
        # What an empty parser returns is what it was told to return for "not enough data".
        self._nothing = parser.gets(False)
        self._handle: Handler | None = None
        self._all_handled: Handled = _ignore
        self._served: asyncio.Future[Rest] | None = None
        feed_eof, set_exception = stream.feed_eof, stream.set_exception

        def ended() -> None:
            feed_eof()
            self._leave(None)

        def failed(error: BaseException) -> None:
            set_exception(error)
            self._leave(None)

        stream.feed_eof, stream.set_exception = ended, failed

    def detach(self) -> None:
        """Leave the stream alone."""
        # Or the two would keep each other alive.
        del self._stream.feed_eof, self._stream.set_exception

    @property
    def is_whole(self) -> bool:
        """Whether no byte is here that the parser was not fed, or has not turned into a reply."""
        return not (self._stream._buffer or self._parser.has_data())

    @property
    def is_idle(self) -> bool:
        """Whether all that came was handled, and more may come."""
        stream = self._stream
        return not (stream._buffer or self._parser.has_data() or stream.at_eof() or stream.exception() is not None)

    def take_values(self, values: list[Any], most: int) -> Any:
        """Add the next replies that are strings, or nil, to those that came before; return the first other one.

        Called by a handler that is owed as many of them. Whatever is returned has been taken, and is to be handled.

        :param most: how many there are to be; returns None when there are.
        :raises EOFError: when no further whole reply is here.
        """
        gets, nothing = self._parser.gets, self._nothing
        for _ in range(most - len(values)):
            reply = gets(False)
            if type(reply) is bytes or reply is None:
                values.append(reply)
            elif reply is nothing:
                raise EOFError
            else:
                return reply
        return None

    async def serve(
        self, handle: Handler, all_handled: Handled = _ignore, owed: Sequence[Transaction] = ()
    ) -> Rest:  # fmt: skip
        """Have what comes handled as it comes, while `is_idle`, until something is left for the caller; return that.

        Also returns when the stream has ended; reading from it tells why.

        :param all_handled: called when all that came together was handled and nothing is left.
        :param owed: the requests that are owed an answer, the oldest first; empty where only `handle` can tell whether
            a reply is one of a transaction.
        :raises Exception: what `handle` raises.
        """
        self._handle, self._all_handled, self._owed = handle, all_handled, owed
        served: asyncio.Future[Rest] = asyncio.get_running_loop().create_future()
        self._served = served
        try:
            return await served
        finally:
            self._handle = self._served = None
            self._all_handled, self._owed = _ignore, ()

    def take(self, data: bytes) -> Taken:
        """Handle what has arrived, unless it has to go through the stream."""
        handle = self._handle
        if handle is None:
            return Taken.NOT
        try:
            self._parser.feed(data)
            reply = self._parser.gets(False)
            if reply is self._nothing:
                return Taken.PART
            rest = self._handled(reply, handle, self._all_handled, self._owed)
            if rest is not None:
                self._leave(rest)
            return Taken.WHOLE if self.is_whole else Taken.REPLIES
        except BaseException as error:
            # An interrupt too: the reply that it cut short is lost, and with it the order of the others.
            self._fail(error)
            if not isinstance(error, Exception):
                raise
            return Taken.PART

    def go_on(self, handle: Handler, all_handled: Handled, owed: Sequence[Transaction]) -> tuple[Rest] | None:
        """Handle replies that the parser has, as many as one turn allows; return what is left to do, None without any.

        For the task that reads from the connection, after something was left for it: see `serve`.

        :raises Exception: what `handle` raises.
        """
        reply = self._parser.gets(False)
        return None if reply is self._nothing else (self._handled(reply, handle, all_handled, owed),)

    def _handled(self, reply: Any, handle: Handler, all_handled: Handled, owed: Sequence[Transaction]) -> Rest:
        """Handle a reply and those that the parser has after it; return what is left to do before the next ones."""
        parser, nothing, gets = self._parser, self._nothing, self._parser.gets
        left, until = float(_AT_ONCE), monotonic() + SHARE
        while True:
            # Those within a transaction wake no task.
            left -= _QUEUED_COUNTS if (is_queued := reply == b"QUEUED") else 1.0
            if owed and owed[0].replies > 1 and (is_queued or reply == b"OK"):
                # What `Pipeline.skipped` does, without two calls for each command of a transaction.
                owed[0].replies -= 1
                if (reply := gets(False)) is nothing:
                    return None
                continue
            if isinstance(reply, RedisConnectionError):
                raise reply
            if type(reply) is list and reply and isinstance(reply[0], RedisConnectionError):
                raise reply[0]
            rest = handle(reply)
            # Also if replies about many keys came together, each of which takes a good part of a turn. The clock is
            # asked last: most replies come alone, or are the short ones of a transaction.
            if rest is None and (left <= 0 or (not is_queued and parser.has_data() and monotonic() > until)):
                rest = _nothing_left
            if rest is not None:
                return rest
            reply = gets(False)
            if reply is nothing:
                all_handled()
                return None

    def _leave(self, rest: Rest) -> None:
        # At once, not when the task runs: what arrives until then goes through the stream.
        self._handle = None
        if self._served is not None and not self._served.done():
            self._served.set_result(rest)

    def _fail(self, error: BaseException) -> None:
        self._handle = None
        if self._served is not None and not self._served.done():
            is_fault = isinstance(error, Exception)
            self._served.set_exception(error if is_fault else RedisConnectionError("a reply was handled in part"))


async def read(
    connection: AbstractConnection,
    incoming: Incoming | None,
    handle: Handler,
    completed: Callable[[], object],
    all_handled: Handled,
    owed: Sequence[Transaction] = (),
) -> None:
    """Have replies and pushes handled in the order in which they come, until the connection ends.

    :param incoming: what comes in through the connection; None where all has to be read by redis-py's coroutines.
    :param completed: called after each reply, before it is handled.
    :param all_handled: called when replies that came together were handled in one step.
    :param owed: see `Incoming.serve`.
    :raises Exception: what ended it, be it raised by `handle`.
    """
    handled = 0
    while True:
        if incoming is not None and incoming.is_idle:
            rest = await incoming.serve(handle, all_handled, owed)
        elif incoming is not None and (parsed := incoming.go_on(handle, all_handled, owed)) is not None:
            # What has come together with what was left to this task: redis-py would take five times as long for each.
            completed()
            (rest,) = parsed
            if rest is not None:
                handled += _AT_ONCE - 1
        else:
            try:
                # No `timeout`: with a `socket_timeout` of None that blocks without a timer in every redis-py.
                reply: Any = await connection.read_response(
                    disable_decoding=True, disconnect_on_error=False, push_request=True
                )
            except ResponseError as error:
                reply = error
            completed()
            rest = handle(reply)
        if rest is not None:
            await rest()
        handled += 1
        if handled >= _AT_ONCE:
            handled = 0
            await asyncio.sleep(0)
        else:
            await turn()
