"""What is asked of stored values besides `get`: many at once, whether there is one, its TTL and its age."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, overload

from magnus_cache._engine.api.base import CacheBase
from magnus_cache._engine.api.documented import documented_by
from magnus_cache._engine.api.many import as_list
from magnus_cache._engine.api.stamped import get_many_stamped, get_many_stamped_blocking
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.runtime.annotations import readable
from magnus_cache._engine.runtime.loops import check_loop
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.store.batch_keys import RefMaker
from magnus_cache._engine.store.lifetimes import Lifetime
from magnus_cache._engine.store.reads_many import found_many, found_many_blocking, names_of
from magnus_cache._engine.store.stamps import Stamped

__all__ = ["AsyncReading", "BlockingReading"]


@readable
class AsyncReading(CacheBase):
    """These operations for coroutines."""

    @overload
    async def get_many(self, namespace: str, keys: Iterable[Any]) -> dict[Any, Any]: ...
    @overload
    async def get_many(
        self, namespace: str, keys: Iterable[Any], *, stamped: Literal[True]
    ) -> dict[Any, Stamped[Any]]: ...
    async def get_many(self, namespace: str, keys: Iterable[Any], *, stamped: bool = False) -> dict[Any, Any]:
        """Return the stored values by key, in the order of `keys`; keys without a value are omitted.

        :param stamped: return each value as a `Stamped`; see `get`.
        :raises CacheArgumentError: for a namespace or key that cannot be used, and for keys that are equal in Python
            but different here, such as ``1`` and ``True``.
        """
        check_loop()
        several = as_list(keys, "keys")
        if not several:
            return {}
        if stamped:
            return await get_many_stamped(self._engine, namespace, several)
        refs = RefMaker(self._engine.reads, namespace)
        names = await names_of(refs, several)
        return await found_many(self._engine.reads, refs, several, names) if self._state.mode is Mode.NORMAL else {}

    async def contains(self, namespace: str, key: Any) -> bool:
        """Return whether there is a value.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        ref = self._engine.reads.ref(namespace, key)
        return self._state.mode is Mode.NORMAL and await self._engine.reads.look(ref) is not None

    async def ttl(self, namespace: str, key: Any) -> float | None:
        """Return the seconds a value has left to live, or None if there is none.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        ref = self._engine.reads.ref(namespace, key)
        return None if self._state.mode is Mode.DISABLED else await self._engine.lifetimes.left(ref)

    async def lifetime(self, namespace: str, key: Any) -> Lifetime | None:
        """Return the age of a value and the TTL it has left, or None if there is no value.

        A value in memory costs no exchange with Redis, unlike with `ttl`: it ends here at that time at the latest.

        :raises CacheArgumentError: for a namespace or key that cannot be used.
        """
        ref = self._engine.reads.ref(namespace, key)
        return await self._engine.lifetimes.of(ref) if self._state.mode is Mode.NORMAL else None


@readable
@documented_by(AsyncReading)
class BlockingReading(CacheBase):
    """These operations for blocking code."""

    _async: Any

    def _call(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._state.check_open()
        return self._state.portal.call(partial(operation, *args, **kwargs))

    def _call_or(
        self, operation: Callable[..., Any], *args: Any, otherwise: Any = None,
        record: Callable[[NoThreadError], Any] | None = None,
    ) -> Any:  # fmt: skip
        """Return the result of an operation; without a background loop, the result of `record`, or `otherwise`."""
        try:
            return self._call(operation, *args)
        except NoThreadError as error:
            if record is not None:
                return record(error)
            self._state.without_loop(error)
            return otherwise

    @overload
    def get_many(self, namespace: str, keys: Iterable[Any]) -> dict[Any, Any]: ...
    @overload
    def get_many(self, namespace: str, keys: Iterable[Any], *, stamped: Literal[True]) -> dict[Any, Stamped[Any]]: ...
    def get_many(self, namespace: str, keys: Iterable[Any], *, stamped: bool = False) -> dict[Any, Any]:
        """Do what `AsyncReading.get_many` does, in blocking code."""
        self._state.check_open()
        several = as_list(keys, "keys")
        if not several:
            return {}
        if stamped:
            return get_many_stamped_blocking(self._engine, namespace, several)
        refs = RefMaker(self._engine.reads, namespace)
        names = list(map(refs.name, several))
        return found_many_blocking(self._engine.reads, refs, several, names) if self._state.mode is Mode.NORMAL else {}

    def contains(self, namespace: str, key: Any) -> bool:
        """Do what `AsyncReading.contains` does, in blocking code."""
        there: bool = self._call_or(self._async.contains, namespace, key, otherwise=False)
        return there

    def ttl(self, namespace: str, key: Any) -> float | None:
        """Do what `AsyncReading.ttl` does, in blocking code."""
        left: float | None = self._call_or(self._async.ttl, namespace, key)
        return left

    def lifetime(self, namespace: str, key: Any) -> Lifetime | None:
        """Do what `AsyncReading.lifetime` does, in blocking code."""
        found: Lifetime | None = self._call_or(self._async.lifetime, namespace, key)
        return found
