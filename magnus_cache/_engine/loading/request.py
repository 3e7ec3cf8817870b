"""What is to be loaded, as one record: it travels from the call that misses to the reply that grants the lease.

A hit makes none. They are named tuples, not frozen dataclasses, because those take three times as long to be made.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from magnus_cache._engine.policy.options import AnyLoader, LoadOptions
from magnus_cache._engine.store.local_values import tagged
from magnus_cache._engine.store.records import KeyRef

__all__ = ["BatchItem", "BatchLoader", "BatchRequest", "LoadRequest", "Locate"]

T = TypeVar("T")

BatchLoader = Callable[[list[Any]], Mapping[Any, Any]] | Callable[[list[Any]], Awaitable[Mapping[Any, Any]]]
"""A function or coroutine function of a list of keys that returns a mapping of keys to values."""


class LoadRequest(NamedTuple, Generic[T]):
    """One value that is to be loaded.

    :ivar ref: where it lives.
    :ivar loader: what is called for it; for a key of a batch, the identity of the batch loader.
    :ivar options: how its value is kept.
    :ivar tags: those of its tags that are known before the load.
    :ivar fresh: whether to take no value that is already there, and to join no load that began before.
    :ivar max_wait: seconds that the caller waits; then the load goes on without it. With 0, the load is not begun if
        too many go on already. None for as long as it takes.
    :ivar blocks: the event loop that the caller holds up meanwhile.
    :ivar unwanted: the version of a value that is not to be returned, because it is what is to be refreshed.
    :ivar on_wait: called when it turns out that another process holds the lease.
    """

    ref: KeyRef
    loader: AnyLoader[T]
    options: LoadOptions
    tags: tuple[str, ...] = ()
    fresh: bool = False
    max_wait: float | None = None
    blocks: asyncio.AbstractEventLoop | None = None
    unwanted: int | None = None
    on_wait: Callable[[], object] | None = None

    @property
    def strict(self) -> bool:
        """Whether a value that cannot be stored is an error to the caller."""
        return self.options.is_strict(self.ref.namespace)


class BatchItem:
    """One key of a batch, where its value lives, and its tags as far as they are known."""

    __slots__ = ("key", "ref", "tags")

    def __init__(self, key: Any, ref: KeyRef, tags: tuple[str, ...] = ()) -> None:
        self.key = key
        self.ref = ref
        self.tags = tagged(ref, tags)


Locate = Callable[[Any], BatchItem]
"""Tells where the value of a key lives.

:raises CacheArgumentError: for a key that cannot be used.
"""


class BatchRequest(NamedTuple):
    """Many values; those that are missing are loaded in one call.

    :ivar keys: what is asked for.
    :ivar locate: tells where the value of a key lives.
    :ivar loader: called with the keys that are missing.
    :ivar options: how the values are kept.
    :ivar function: whose answers the loader returns, if that is not the loader itself. Loads of the same function
        share what it leaves out.
    :ivar fresh: whether to take no values that are already there.
    :ivar blocks: the event loop that the caller holds up meanwhile.
    """

    keys: Sequence[Any]
    locate: Locate
    loader: BatchLoader
    options: LoadOptions
    function: object = None
    fresh: bool = False
    blocks: asyncio.AbstractEventLoop | None = None

    def of_key(
        self, item: BatchItem, source: Any = None, on_wait: Callable[[], object] | None = None
    ) -> LoadRequest[Any]:
        """Return the request for one key, to be loaded together with others.

        :param source: what the batch loader is told apart from others by.
        """
        return LoadRequest(item.ref, source, self.options, item.tags, self.fresh, blocks=self.blocks, on_wait=on_wait)
