"""What a job keeps warm: a function, and the keys that it is called with."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from magnus_cache._engine.loading.request import LoadRequest
from magnus_cache._engine.store.records import KeyRef

__all__ = ["KeySource", "WarmItem", "WarmPlan", "WarmTarget"]

KeySource = Iterable[Any] | Callable[[], Iterable[Any]] | Callable[[], Awaitable[Iterable[Any]]]
"""The keys of a job, or a function or coroutine function that returns them."""


class WarmItem(NamedTuple):
    """One value to keep warm.

    :ivar ref: the reference of the value.
    :ivar args: the arguments of the call that loads it.
    :ivar kwargs: likewise, by name.
    """

    ref: KeyRef
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class WarmTarget(Protocol):
    """The function that loads the values.

    :ivar namespace: where they live.
    :ivar function: its name, such as ``"app.prices.load"``.
    :ivar together: how many values one call loads at most.
    """

    namespace: str
    function: str
    together: int

    def item(self, key: Any) -> WarmItem:
        """Return the value for a key.

        :raises Exception: for a key that the function cannot be called with.
        """
        ...

    def request(self, item: WarmItem) -> LoadRequest[Any]:
        """Return what a load of the value is to do."""
        ...

    async def load(self, items: Sequence[WarmItem]) -> dict[bytes, Exception]:
        """Load values in one call, for a function of many keys; return the errors, by the names of the values.

        :raises Exception: what the function raises.
        """
        ...


class WarmPlan(NamedTuple):
    """How values are kept warm.

    :ivar keys: the keys; a list if they stay the same.
    :ivar every: seconds between two loads of a value; None to go by its own life.
    :ivar ttl: the TTL of all values in seconds; None if they have different ones.
    :ivar concurrency: how many loads run at a time.
    """

    keys: KeySource
    every: float | None
    ttl: float | None
    concurrency: int
