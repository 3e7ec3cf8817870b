"""The operations of `AsyncCacheManager`: the cache for coroutines.

Each method reads as one path through the cache: check the arguments, try the near cache, then go to `reads`,
`writes` or `loads`.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from magnus_cache.clock import Duration, seconds
from magnus_cache.decorators import Decorator, make_decorator
from magnus_cache.engine import Engine
from magnus_cache.errors import CacheTypeError, CacheUnavailableError
from magnus_cache.loads import AnyLoader, Rule, check_callable
from magnus_cache.memory import Entry
from magnus_cache.reads import MISS, Address
from magnus_cache.redis import commands
from magnus_cache.state import Mode
from magnus_cache.stats import CacheStats
from magnus_cache.warming import ProgressCallback, WarmReport, warm

if TYPE_CHECKING:
    from magnus_cache.settings import CacheSettings

__all__ = ["AsyncOperations"]

T = TypeVar("T")

_STEP: Final = 500
"""Keys of one call that are handled at a time: about a millisecond."""


class AsyncOperations:
    """What can be done with a cache from a coroutine; see `AsyncCacheManager`."""

    def __init__(self, settings: "CacheSettings | None" = None, **overrides: Any) -> None:
        self._bind(Engine.made(settings, overrides))

    @classmethod
    def _over(cls, engine: Engine) -> Self:
        """Return another face of an engine."""
        manager = cls.__new__(cls)
        manager._bind(engine)
        return manager

    def _bind(self, engine: Engine) -> None:
        self._engine = engine
        self._state = engine.state
        self._reads, self._writes, self._loads = engine.reads, engine.writes, engine.loads

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state.describe()}>"

    # -- single values --------------------------------------------------------------------------------------

    async def get(self, namespace: str, key: Any, default: Any = None) -> Any:
        """Return the stored value, or `default` if there is none; None is a value like any other.

        :param key: str, int, UUID, bytes, or a tuple of these.
        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        address = self._reads.address(namespace, key)
        state = self._state
        if state.special and state.mode is not Mode.NORMAL:
            return default
        entry = state.memory.hit(address.name)
        if entry is not None:
            value = self._reads.opened(address, entry)
            if value is not MISS:
                address.counters.l1_hits += 1
                return value
        value = self._reads.opened(address, await self._reads.read(address))
        if value is MISS:
            address.counters.misses += 1
            return default
        address.counters.l2_hits += 1
        return value

    async def set(self, namespace: str, key: Any, value: Any, ttl: Duration | None = None) -> bool:
        """Store a value; return whether it is stored, in Redis or, while that is away, in this process.

        :param ttl: seconds, a timedelta or text such as ``"5m"``; None for the namespace's.
        :raises CacheArgumentError: for a namespace, key or ttl that cannot be used.
        :raises CacheEncodeError: naming the type that cannot be stored.
        :raises CacheValueTooLargeError: for more bytes than the namespace allows.
        """
        address = self._reads.address(namespace, key)
        life = self._reads.ttl(address) if ttl is None else seconds(ttl)
        payload = self._reads.encoded(address, value)
        if self._state.mode is Mode.DISABLED:
            return False
        self._writes.touch((address.name,))
        return await self._writes.write(address, value, payload, life)

    async def delete(self, namespace: str, key: Any) -> bool:
        """Remove a value everywhere; return whether there was one.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        return await self.delete_many(namespace, (key,)) > 0

    async def contains(self, namespace: str, key: Any) -> bool:
        """Return whether there is a value.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        address = self._reads.address(namespace, key)
        return self._state.mode is Mode.NORMAL and await self._reads.look(address) is not None

    async def touch(self, namespace: str, key: Any, ttl: Duration) -> bool:
        """Give a stored value a new time to live, counted from now; return whether there was a value.

        :raises CacheArgumentError: for a namespace, key or ttl that cannot be used.
        """
        address, life = self._reads.address(namespace, key), seconds(ttl)
        return self._state.mode is not Mode.DISABLED and await self._writes.prolong(address, life)

    async def ttl(self, namespace: str, key: Any) -> float | None:
        """Return the seconds a value has left to live, or None if there is none.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        address = self._reads.address(namespace, key)
        return None if self._state.mode is Mode.DISABLED else await self._writes.left(address)

    async def get_or_set(self, namespace: str, key: Any, loader: AnyLoader[T], ttl: Duration | None = None) -> T:
        """Return the stored value, or load it, once for all who ask, and store it.

        :param loader: a coroutine function without arguments, or a function, which runs in a worker thread.
        :raises CacheArgumentError: for a namespace, key, loader or ttl that cannot be used.
        :raises CacheEncodeError: naming the type that cannot be stored.
        :raises CacheRecursionError: if loading the key needs the key.
        :raises Exception: whatever the loader raises, the same for all who waited.
        """
        check_callable(loader, "loader")
        address = self._reads.address(namespace, key)
        rule = Rule(None if ttl is None else seconds(ttl))
        return await self._loaded(address, loader, rule)

    async def _loaded(self, address: Address, loader: AnyLoader[T], rule: Rule) -> T:
        if self._state.mode is Mode.NORMAL:
            entry = self._state.memory.hit(address.name)
            if entry is not None and (value := self._reads.opened(address, entry)) is not MISS:
                address.counters.l1_hits += 1
                return value  # type: ignore[no-any-return]  # what was stored is what the loader returned
            if (value := self._reads.opened(address, await self._reads.read(address))) is not MISS:
                address.counters.l2_hits += 1
                return value  # type: ignore[no-any-return]  # likewise
            address.counters.misses += 1
        return await self._loads.load(address, loader, rule)

    # -- many values ----------------------------------------------------------------------------------------

    async def get_many(self, namespace: str, keys: Iterable[Any]) -> dict[Any, Any]:
        """Return the stored values by key, in the order of `keys`; keys without a value are left out.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        found: dict[Any, Any] = {}
        for step in _steps(_listed(keys, "keys")):
            addresses = [self._reads.address(namespace, key) for key in step]
            if self._state.mode is Mode.NORMAL:
                self._open_many(step, addresses, await self._reads.look_many(addresses), found)
                await asyncio.sleep(0)
        return found

    def _open_many(
        self,
        keys: Sequence[Any],
        addresses: Sequence[Address],
        entries: Sequence[tuple[Entry | None, bool]],
        found: dict[Any, Any],
    ) -> None:
        for key, address, (entry, near) in zip(keys, addresses, entries, strict=True):
            value = self._reads.opened(address, entry)
            if value is MISS:
                address.counters.misses += 1
                continue
            found[key] = value
            if near:
                address.counters.l1_hits += 1
            else:
                address.counters.l2_hits += 1

    async def set_many(self, namespace: str, mapping: Mapping[Any, Any], ttl: Duration | None = None) -> None:
        """Store many values; nothing is stored if any key or value cannot be.

        :raises CacheArgumentError: for a namespace, key or ttl that cannot be used.
        :raises CacheEncodeError: naming the type that cannot be stored.
        :raises CacheValueTooLargeError: for more bytes than the namespace allows.
        """
        if not isinstance(mapping, Mapping):
            raise CacheTypeError("mapping", f"a mapping of keys to values is needed, not {type(mapping).__name__}")
        life = None if ttl is None else seconds(ttl)
        items: list[tuple[Address, Any, bytes, float]] = []
        for step in _steps(list(mapping.items())):
            for key, value in step:
                address = self._reads.address(namespace, key)
                items.append((address, value, self._reads.encoded(address, value), life or self._reads.ttl(address)))
            await asyncio.sleep(0)
        if self._state.mode is not Mode.DISABLED:
            self._writes.touch([item[0].name for item in items])
            await self._writes.write_many(items)

    async def delete_many(self, namespace: str, keys: Iterable[Any]) -> int:
        """Remove values everywhere; return how many there were.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        addresses = [self._reads.address(namespace, key) for key in _listed(keys, "keys")]
        if self._state.mode is Mode.DISABLED or not addresses:
            return 0
        return await self._writes.remove(addresses)

    async def clear(self, namespace_or_pattern: str) -> int:
        """Remove all values of a namespace, of the whole prefix (``"magnus:*"``), or whose names match a glob.

        Returns the number of values removed from Redis; those of this process are gone as well.

        :raises CacheArgumentError: for a name that is neither.
        :raises CacheUnavailableError: if Redis is there and refuses; while it is away, it is told on its return.
        """
        return await self._writes.clear(namespace_or_pattern)

    async def warm_cache(
        self, namespace: str, data_loader: Callable[[Any], Any], keys: Iterable[Any], ttl: Duration | None = None, *,
        concurrency: int = 16, only_missing: bool = False, progress: "ProgressCallback | bool | None" = None,
    ) -> WarmReport:  # fmt: skip
        """Load and store a value for each key, some at a time; a key that fails stops nothing.

        :param data_loader: called with a key; a coroutine function, or a function, which runs in worker threads.
        :param concurrency: loads at a time, 1 or more.
        :param only_missing: leave keys alone that have a value.
        :param progress: called after each key as ``progress(done, total)``; True or False for a progress bar or
            none; None for a bar if a terminal and `rich` are there.
        :raises CacheArgumentError: naming the argument that cannot be used.
        """
        return await warm(
            self._engine, namespace, data_loader, _listed(keys, "keys"), ttl,
            concurrency=concurrency, only_missing=only_missing, progress=progress,
        )  # fmt: skip

    # -- decorating -----------------------------------------------------------------------------------------

    def cached(
        self, namespace: str, ttl: "Duration | Callable[[Any], Duration | None] | None" = None,
        key_func: Callable[..., Any] | None = None, *, key: str | None = None,
        skip_if: Callable[[Any], bool] | None = None, exclude: Iterable[str] = (),
    ) -> Decorator:  # fmt: skip
        """Return a decorator that caches what a function or coroutine function returns, by its arguments.

        :param ttl: a duration, or a function of the value that returns one; None for the namespace's.
        :param key_func: called with the function's arguments, returns the key.
        :param key: a template of the key, such as ``"{ticker}:{expiration}"``; instead of `key_func`.
        :param skip_if: called with the value; if it returns true, the value is not stored.
        :param exclude: names of parameters that do not count, such as a database session.
        :raises CacheArgumentError: naming the argument that cannot be used.
        """
        return make_decorator(
            self._engine, namespace, ttl, key_func=key_func, key=key, skip_if=skip_if, exclude=exclude
        )

    # -- the rest -------------------------------------------------------------------------------------------

    async def get_stats(self) -> CacheStats:
        """Return the figures of this cache; see `CacheStats` for the keys."""
        state, figures = self._state, self._state.local_figures()
        wire = state.wire()
        if wire is not None:
            try:
                total = await wire.execute(commands.DB_SIZE)
                info = await wire.execute(commands.INFO_MEMORY)
            except CacheUnavailableError as error:
                state.stats.failed(error.reason)
            else:
                figures["redis_total_keys"] = total
                figures["redis_used_memory"] = _info(info, b"used_memory_human")
        figures["redis_available"] = state.redis_available
        return figures

    @property
    def redis_available(self) -> bool:
        """Whether Redis answered when it was last asked; False before the first call. No I/O."""
        return self._state.redis_available

    def bypass(self) -> AbstractContextManager[None]:
        """Within it, read nothing from the cache but store what is loaded: a one-off fresh read."""
        return self._state.switched(Mode.BYPASS)

    def disabled(self) -> AbstractContextManager[None]:
        """Within it, behave as if there were no cache; for tests."""
        return self._state.switched(Mode.DISABLED)

    async def aclose(self) -> None:
        """Disconnect and stop all that this cache started. Idempotent; later calls raise `CacheClosedError`."""
        await self._state.aclose()

    async def __aenter__(self) -> Self:
        self._state.check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _listed(keys: Iterable[Any], argument: str) -> list[Any]:
    if isinstance(keys, str | bytes):
        raise CacheTypeError(argument, "an iterable of keys is needed, not a single text; put it into a list")
    try:
        return list(keys)
    except TypeError:
        raise CacheTypeError(argument, f"an iterable of keys is needed, not {type(keys).__name__}") from None


def _steps(items: list[T]) -> Iterator[list[T]]:
    """Yield a long list in pieces: between two of them the event loop gets a turn."""
    for start in range(0, len(items), _STEP):
        yield items[start : start + _STEP]


def _info(reply: Any, field: bytes) -> str:
    text = bytes(reply if isinstance(reply, bytes) else getattr(reply, "data", reply))
    for line in text.splitlines():
        name, _, value = line.partition(b":")
        if name == field:
            return value.decode()
    return "unknown"
