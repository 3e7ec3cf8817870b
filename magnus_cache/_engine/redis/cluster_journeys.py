"""Requests that a node of a cluster has sent elsewhere: they remember how often, and since when."""

from typing import Any

from magnus_cache._engine.redis.exchange import ReadBatch
from magnus_cache._engine.redis.requests import Call, Read

__all__ = ["Journey", "RedirectedBatch", "RedirectedCall", "RedirectedRead"]


class Journey:
    """How often a request was sent elsewhere, and since when."""

    __slots__ = ("began", "hops")

    def __init__(self, began: float) -> None:
        self.began = began
        self.hops = 0


class RedirectedRead(Read):
    """One wanted value.

    :ivar reader: of an epoch, the connection whose values are judged by it; else None.
    """

    __slots__ = ("journey", "reader")

    def __init__(self, asked: Read, journey: Journey) -> None:
        super().__init__(asked.name, asked.receive, asked.waiter, asked.expected)
        self.journey = journey
        self.reader: Any = None


class RedirectedCall(Call):
    """A command."""

    __slots__ = ("journey",)

    def __init__(self, asked: Call, journey: Journey) -> None:
        super().__init__(asked.command, asked.receive, asked.waiter)
        self.journey = journey

    def said_again(self) -> Call:
        """Return the same request in the words for a server that does not know the script."""
        return RedirectedCall(super().said_again(), self.journey)


class RedirectedBatch(ReadBatch):
    """One read; it is never divided."""

    __slots__ = ("journey",)

    def __init__(self, asked: ReadBatch, journey: Journey) -> None:
        super().__init__(asked.receiver)
        self.wanted, self.places, self.waiters = asked.wanted, asked.places, asked.waiters
        self.journey = journey

    def divided(self, first: Any) -> tuple[ReadBatch, ReadBatch]:
        """Return itself, and an empty batch."""
        empty = ReadBatch(self.receiver)
        return (self, empty) if first[0] else (empty, self)
