"""Load requests: one record travels from the call that misses to the reply that grants the lease.

A hit creates none. They are named tuples because a frozen dataclass takes three times as long to create.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from magnus_cache._engine.policy.options import AnyLoader, LoadOptions
from magnus_cache._engine.store.local_values import tagged
from magnus_cache._engine.store.records import KeyRef
from magnus_cache._engine.store.stamps import Note

__all__ = ["BatchItem", "BatchLoader", "BatchRequest", "LoadRequest", "Locate"]

T = TypeVar("T")

BatchLoader = Callable[[list[Any]], Mapping[Any, Any]] | Callable[[list[Any]], Awaitable[Mapping[Any, Any]]]
"""A function or coroutine function of a list of keys that returns a mapping of keys to values."""


class LoadRequest(NamedTuple, Generic[T]):
    """One value to load.

    :ivar ref: the reference of the value.
    :ivar loader: the function that returns it; for a key of a batch, the identity of the batch loader.
    :ivar options: how to store the value.
    :ivar tags: its tags, as far as they are known before the load.
    :ivar fresh: whether to use no existing value, and to join no load that began before.
    :ivar max_wait: seconds that the caller waits; then the load continues in the background. With 0, the load is not
        started at the limit of background loads. None waits without a limit.
    :ivar blocks: the event loop that is blocked while the caller waits.
    :ivar unwanted: the version of the value to refresh, which must not be returned.
    :ivar on_wait: called if another process holds the lease.
    :ivar note: is told when the load of the value began, for a stamped call; None for other calls.
    :ivar background: whether the cache itself asks for it, and no caller waits.
    :ivar spare: whether the caller has a stale value to serve, so that the load need not wait for its source.
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
    note: Note | None = None
    background: bool = False
    spare: bool = False

    @property
    def strict(self) -> bool:
        """Whether a value that cannot be stored is an error to the caller."""
        return self.options.is_strict(self.ref.namespace)


class BatchItem:
    """One key of a batch, with the reference of its value and the tags known so far."""

    __slots__ = ("key", "ref", "tags")

    def __init__(self, key: Any, ref: KeyRef, tags: tuple[str, ...] = ()) -> None:
        self.key = key
        self.ref = ref
        self.tags = tagged(ref, tags)


Locate = Callable[[Any], BatchItem]
"""Returns a key's reference and tags.

:raises CacheArgumentError: for a key that cannot be used.
"""


class BatchRequest(NamedTuple):
    """Many values; one call of the loader returns those that are missing.

    :ivar keys: the requested keys.
    :ivar locate: returns a key's reference and tags.
    :ivar loader: called with the missing keys.
    :ivar options: how to store the values.
    :ivar function: the function behind the loader, if the loader only wraps it. Loads of the same function share the
        keys that it omits.
    :ivar fresh: whether to use no existing values.
    :ivar blocks: the event loop that is blocked while the caller waits.
    :ivar notes: gets a note of each value by its name, for a stamped call; None for other calls.
    :ivar spare: whether there is a stale value for each key, so that the load need not wait for its source.
    """

    keys: Sequence[Any]
    locate: Locate
    loader: BatchLoader
    options: LoadOptions
    function: object = None
    fresh: bool = False
    blocks: asyncio.AbstractEventLoop | None = None
    notes: dict[bytes, Note] | None = None
    spare: bool = False

    def of_key(self, item: BatchItem, source: Any = None) -> LoadRequest[Any]:
        """Return the request for one key, to be loaded together with others.

        :param source: identifies the batch loader.
        """
        return LoadRequest(item.ref, source, self.options, item.tags, self.fresh, blocks=self.blocks)
