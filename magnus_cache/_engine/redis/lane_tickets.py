"""The tickets of the lane: what a thread wants to read, and what becomes of that."""

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from magnus_cache._engine.redis.exchange import ValueReceiver, Wanted

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["LONG_WAY", "Answer", "Judged", "LongWay", "Ticket"]


class LongWay:
    """The type of `LONG_WAY`, which stands for "ask through the background loop"."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "LONG_WAY"


LONG_WAY: Final = LongWay()


class Judged:
    """An answer that was judged already, together with those of other threads: what it came to, or the error."""

    __slots__ = ("error", "result")

    def __init__(self, result: Any, error: BaseException | None = None) -> None:
        self.result = result
        self.error = error


Answer: TypeAlias = "tuple[bytes | None, Connection, float] | Judged | LongWay"
"""A value as it is stored, or None, what it is to be judged by, and the monotonic second when it was asked for; or what
it came to."""


class Ticket:
    """The read of one value. For those who judge it with others, it is where the answer goes: a `Waiter`.

    :param near: whether the value may be kept in memory.
    :param receiver: judges it together with others; None if its own thread does.
    :param place: what the receiver has reserved for it.
    :param tags: those that it may have beside its function's; their epochs come along if the wire knows them.
    :ivar answer: None while there is none.
    """

    __slots__ = ("answer", "near", "place", "receiver", "tags", "wanted")

    def __init__(
        self, wanted: Wanted, *, near: bool, receiver: ValueReceiver | None = None, place: Any = None,
        tags: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.wanted = wanted
        self.near = near
        self.receiver = receiver
        self.place = place
        self.tags = tags
        self.answer: Answer | None = None

    def done(self) -> bool:
        """Return whether it is answered."""
        return self.answer is not None

    def set_result(self, result: Any, /) -> None:
        """Take what the value came to."""
        self.answer = Judged(result)

    def set_exception(self, exception: BaseException, /) -> None:
        """Take the reason why it came to nothing."""
        self.answer = Judged(None, exception)
