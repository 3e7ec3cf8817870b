"""Commands about many keys of one node, sent together: each is of one slot, and is answered and redirected by itself.

A single server takes many keys in one transaction or script. In a cluster, its keys must be of one slot. So each key
has a command of its own, or a transaction if its changes must not be announced to us. They leave in one write, and
their replies are taken in one go, as those to GETs are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from magnus_cache._engine.redis.commands import Command
from magnus_cache._engine.redis.exchange import Callback, Connection, Waiter, as_it_is
from magnus_cache._engine.redis.requests import Call
from magnus_cache.errors import CacheError

__all__ = ["Calls", "ReceiveEach", "Together", "outcome"]

ReceiveEach = Callable[[Sequence[int], Sequence[Any], Connection, float], object]
"""Takes some of the replies: ``receive(places, replies, connection, sent)``.

An error is in the place of the reply. It is called as often as it takes: those that came before an announcement are
taken before it, and those of a key that has moved when its new node has answered. It runs inside the reader.
"""


class Together(Command):
    """Commands that differ in their keys only, as one piece."""

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[Command]) -> None:
        first = parts[0]
        packed = b"".join([part.packed for part in parts])
        super().__init__(first.name, packed, len(parts) * first.replies, None, first.writes)
        self.parts = parts

    def quiet(self) -> tuple[list[bytes | memoryview], int]:
        """Return the bytes of one transaction for each command, and the number of replies; see `Command.quiet`."""
        pieces: list[bytes | memoryview] = []
        for part in self.parts:
            pieces += part.quiet()[0]
        return [b"".join(pieces)], len(self.parts) * (self.writes + 4)


class Calls(Call):
    """Some commands that are sent together.

    :param receive: a `ReceiveEach`.
    :param waiter: gets None when all are answered, or an error when the connection is lost before.
    :ivar values: the replies that have come and were not handed out.
    :ivar wanted: how many there will be, with these; 0 before they were sent.
    """

    __slots__ = ("_begun", "_left", "_take", "each", "parts", "values", "wanted")

    def __init__(self, parts: Sequence[Command], receive: ReceiveEach, waiter: Waiter) -> None:
        super().__init__(Together(parts), as_it_is, waiter)
        self.parts, self._take = parts, receive
        self.values: list[Any] = []
        self.wanted = self.each = self._begun = 0
        self._left = len(parts)

    def sent(self, replies: int) -> None:
        """Note how many replies are owed for all of them."""
        self.wanted, self.each = replies, replies // len(self.parts)

    def taken(self) -> tuple[int, list[list[Any]]]:
        """Return the place of the first command that was not handed out, and the replies to each that has all of them.

        They count as handed out from now on.
        """
        each, begin = self.each, self._begun
        count = len(self.values) // each
        groups = [self.values[at : at + each] for at in range(0, count * each, each)]
        del self.values[: count * each]
        self.wanted -= count * each
        self._begun += count
        return begin, groups

    def settle(self, places: Sequence[int], replies: Sequence[Any], connection: Connection, sent: float) -> None:
        """Hand out some replies; with the last ones, end the wait."""
        try:
            self._take(places, replies, connection, sent)
        finally:
            self._left -= len(places)
            if not self._left and not self.waiter.done():
                self.waiter.set_result(None)

    def alone(self, place: int, connection: Connection, sent: float) -> Call:
        """Return the request for one of them, which was sent elsewhere."""

        def failed(error: BaseException) -> None:
            if not isinstance(error, CacheError):
                raise error
            self.settle((place,), (error,), connection, sent)

        return Call(self.parts[place], partial(self._received, place), Callback(None, failed))

    def _received(self, place: int, reply: Any, connection: Connection, sent: float) -> None:
        self.settle((place,), (reply,), connection, sent)


def outcome(command: Command, replies: list[Any], *, quiet: bool) -> Any:
    """Return what the replies to one command come to, as `Pipeline.answered` does: the first error names the cause."""
    last = replies[-1]
    if quiet and type(last) is list:
        return command.reply(last)
    return next((reply for reply in replies if isinstance(reply, Exception)), last)
