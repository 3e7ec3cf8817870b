"""The backend: Django's interface of a cache over a `CacheManager`."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import isawaitable
from pickle import PicklingError
from typing import Any, Final

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from magnus_cache import (
    TTL_FOREVER,
    AsyncCacheManager,
    CacheEncodeError,
    CacheManager,
    CacheMissingError,
    CacheTypeError,
    CacheValueTooLargeError,
)
from magnus_cache.integrations.django.managers import shared_by
from magnus_cache.integrations.django.values import register

__all__ = ["MagnusCache", "UnstorableError"]

register()

_MISSING: Final[Any] = object()

_HINT: Final = '; or store any object that can be pickled, with OPTIONS["codec"] = "pickle" of this entry of CACHES'


class UnstorableError(CacheEncodeError, PicklingError):
    """A value cannot be stored. Also a `pickle.PicklingError`, which code written for Django's other caches expects."""


@contextmanager
def _explained(*, pickles: bool) -> Generator[None, None, None]:
    """Turn the error of a value that cannot be stored into one that names the remedy here."""
    try:
        yield
    except CacheValueTooLargeError:
        raise
    except CacheEncodeError as error:
        hint = "" if pickles else _HINT
        raise UnstorableError(error.type_name, f"{error.problem}{hint}", error.path) from error


class MagnusCache(BaseCache):  # type: ignore[misc]  # Django has no types
    """A cache of Django in memory and Redis. Name it as the ``BACKEND`` of an entry of ``CACHES``.

    Methods that begin with ``a`` are awaited on the running event loop; none of them uses a thread. While Redis is
    away, reads are served from memory or miss, and nothing raises.
    """

    def __init__(self, location: Any, params: Mapping[str, Any]) -> None:
        self._shared = shared_by(location, params)
        super().__init__(params)
        self._namespace = self._shared.namespace
        self._explaining = partial(_explained, pickles=getattr(self._namespace, "codec", None) is not None)

    @property
    def manager(self) -> CacheManager:
        """The manager behind this cache, for tags, statistics and decorators; all threads share it."""
        return self._shared.manager

    @property
    def _awaited(self) -> AsyncCacheManager:
        return self._shared.manager.aio

    # -- arguments ------------------------------------------------------------------------------------------

    def get_backend_timeout(self, timeout: Any = DEFAULT_TIMEOUT) -> float | None:
        """Return a timeout in seconds: 0 for a value that ends at once, None for one that never ends."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        return None if timeout is None else max(0, timeout)

    def _life(self, timeout: Any) -> float:
        """Return the seconds that a value lives, 0 for none."""
        seconds = self.get_backend_timeout(timeout)
        return TTL_FOREVER if seconds is None else min(seconds, TTL_FOREVER)

    def _key(self, key: Any, version: Any) -> Any:
        # A KEY_FUNCTION may return an empty text.
        return self.make_and_validate_key(key, version=version) or ("",)

    def _keys(self, keys: Iterable[Any], version: Any) -> dict[Any, Any]:
        """Return the keys of a call by those that are stored."""
        return {self._key(key, version): key for key in keys}

    # -- single values --------------------------------------------------------------------------------------

    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: Any = None) -> bool:
        """Store a value if there is none; return whether there was none."""
        name, life = self._key(key, version), self._life(timeout)
        if not life:
            return not self.manager.contains(self._namespace, name)
        with self._explaining():
            return self.manager.add(self._namespace, name, value, life)

    async def aadd(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: Any = None) -> bool:
        """See `add`."""
        name, life = self._key(key, version), self._life(timeout)
        if not life:
            return not await self._awaited.contains(self._namespace, name)
        with self._explaining():
            return await self._awaited.add(self._namespace, name, value, life)

    def get(self, key: Any, default: Any = None, version: Any = None) -> Any:
        """Return a value, or `default` if there is none."""
        return self._shared.manager.get(self._namespace, self._key(key, version), default)

    async def aget(self, key: Any, default: Any = None, version: Any = None) -> Any:
        """See `get`."""
        return await self._awaited.get(self._namespace, self._key(key, version), default)

    def set(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: Any = None) -> None:
        """Store a value."""
        name, life = self._key(key, version), self._life(timeout)
        if not life:
            self.manager.delete(self._namespace, name)
            return
        with self._explaining():
            self.manager.set(self._namespace, name, value, life)

    async def aset(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: Any = None) -> None:
        """See `set`."""
        name, life = self._key(key, version), self._life(timeout)
        if not life:
            await self._awaited.delete(self._namespace, name)
            return
        with self._explaining():
            await self._awaited.set(self._namespace, name, value, life)

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: Any = None) -> bool:
        """Give a value a new timeout, counted from now; return whether there is a value."""
        name, life = self._key(key, version), self._life(timeout)
        if not life:
            return self.manager.delete(self._namespace, name)
        return self.manager.touch(self._namespace, name, life)

    async def atouch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: Any = None) -> bool:
        """See `touch`."""
        name, life = self._key(key, version), self._life(timeout)
        if not life:
            return await self._awaited.delete(self._namespace, name)
        return await self._awaited.touch(self._namespace, name, life)

    def delete(self, key: Any, version: Any = None) -> bool:
        """Remove a value; return whether there was one."""
        return self.manager.delete(self._namespace, self._key(key, version))

    async def adelete(self, key: Any, version: Any = None) -> bool:
        """See `delete`."""
        return await self._awaited.delete(self._namespace, self._key(key, version))

    def has_key(self, key: Any, version: Any = None) -> bool:
        """Return whether there is a value."""
        return self.manager.contains(self._namespace, self._key(key, version))

    async def ahas_key(self, key: Any, version: Any = None) -> bool:
        """See `has_key`."""
        return await self._awaited.contains(self._namespace, self._key(key, version))

    def get_or_set(self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: Any = None) -> Any:
        """Return a value. If there is none, store `default`, or what it returns if it can be called.

        Of all threads and processes that come meanwhile, one calls it.
        """
        name, life = self._key(key, version), self._life(timeout)
        load = default if callable(default) else lambda: default
        if not life:
            found = self.manager.get(self._namespace, name, _MISSING)
            return load() if found is _MISSING else found
        with self._explaining():
            return self.manager.get_or_set(self._namespace, name, load, life, strict=True)

    async def aget_or_set(self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: Any = None) -> Any:
        """See `get_or_set`; `default` may also be a coroutine function. A plain function is called on the loop."""
        name, life = self._key(key, version), self._life(timeout)

        async def load() -> Any:
            value = default() if callable(default) else default
            return await value if isawaitable(value) else value

        if not life:
            found = await self._awaited.get(self._namespace, name, _MISSING)
            return await load() if found is _MISSING else found
        with self._explaining():
            return await self._awaited.get_or_set(self._namespace, name, load, life, strict=True)

    # -- numbers --------------------------------------------------------------------------------------------

    def incr(self, key: Any, delta: Any = 1, version: Any = None) -> Any:
        """Add a number to a value in one step and return the new one. Its timeout stays.

        While Redis is away, this process counts by itself, and Redis then continues from its own number.

        :raises ValueError: if there is no value.
        :raises TypeError: if the value is no number.
        """
        name = self._key(key, version)
        try:
            return self.manager.incr(self._namespace, name, delta, create=False, offline="local")
        except CacheMissingError:
            raise _not_found(key) from None
        except CacheTypeError:
            # Not two ints: a float, for instance.
            add = _adding(delta, key)
        with self._explaining():
            return self.manager.update(self._namespace, name, add, default=_MISSING, offline="local")

    async def aincr(self, key: Any, delta: Any = 1, version: Any = None) -> Any:
        """See `incr`."""
        name = self._key(key, version)
        try:
            return await self._awaited.incr(self._namespace, name, delta, create=False, offline="local")
        except CacheMissingError:
            raise _not_found(key) from None
        except CacheTypeError:
            add = _adding(delta, key)

        async def added(value: Any) -> Any:
            # Not in a worker thread, where a plain function would run.
            return add(value)

        with self._explaining():
            return await self._awaited.update(self._namespace, name, added, default=_MISSING, offline="local")

    def incr_version(self, key: Any, delta: int = 1, version: Any = None) -> Any:
        """Move a value to another version, with the rest of its timeout; return the new version.

        :raises ValueError: if there is no value.
        """
        version = self.version if version is None else version
        old, new = self._key(key, version), self._key(key, version + delta)
        value, life = self.manager.get(self._namespace, old, _MISSING), self.manager.ttl(self._namespace, old)
        if value is _MISSING or life is None:
            raise _not_found(key)
        self.manager.set(self._namespace, new, value, life)
        self.manager.delete(self._namespace, old)
        return version + delta

    async def aincr_version(self, key: Any, delta: int = 1, version: Any = None) -> Any:
        """See `incr_version`."""
        version = self.version if version is None else version
        old, new = self._key(key, version), self._key(key, version + delta)
        value, life = (
            await self._awaited.get(self._namespace, old, _MISSING),
            await self._awaited.ttl(self._namespace, old),
        )
        if value is _MISSING or life is None:
            raise _not_found(key)
        await self._awaited.set(self._namespace, new, value, life)
        await self._awaited.delete(self._namespace, old)
        return version + delta

    # -- many values ----------------------------------------------------------------------------------------

    def get_many(self, keys: Iterable[Any], version: Any = None) -> dict[Any, Any]:
        """Return the values by key; keys without a value are omitted."""
        names = self._keys(keys, version)
        return {names[name]: value for name, value in self.manager.get_many(self._namespace, names).items()}

    async def aget_many(self, keys: Iterable[Any], version: Any = None) -> dict[Any, Any]:
        """See `get_many`."""
        names = self._keys(keys, version)
        return {names[name]: value for name, value in (await self._awaited.get_many(self._namespace, names)).items()}

    def set_many(self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: Any = None) -> list[Any]:
        """Store several values; return the keys of those that may not be stored."""
        names, life = self._keys(data, version), self._life(timeout)
        if not life:
            self.manager.delete_many(self._namespace, names)
            return []
        with self._explaining():
            values = {name: data[key] for name, key in names.items()}
            return [] if self.manager.set_many(self._namespace, values, life) else list(data)

    async def aset_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: Any = None
    ) -> list[Any]:
        """See `set_many`."""
        names, life = self._keys(data, version), self._life(timeout)
        if not life:
            await self._awaited.delete_many(self._namespace, names)
            return []
        with self._explaining():
            values = {name: data[key] for name, key in names.items()}
            return [] if await self._awaited.set_many(self._namespace, values, life) else list(data)

    def delete_many(self, keys: Iterable[Any], version: Any = None) -> None:
        """Remove several values."""
        self.manager.delete_many(self._namespace, self._keys(keys, version))

    async def adelete_many(self, keys: Iterable[Any], version: Any = None) -> None:
        """See `delete_many`."""
        await self._awaited.delete_many(self._namespace, self._keys(keys, version))

    def clear(self) -> None:
        """Remove all values of the namespace, of all versions and key prefixes, in every process."""
        self.manager.clear(self._namespace)

    async def aclear(self) -> None:
        """See `clear`."""
        await self._awaited.clear(self._namespace)

    # -- the end of a request -------------------------------------------------------------------------------

    def close(self, **_: Any) -> None:
        """Do nothing: Django calls this after each request, and the connection stays for the next one."""

    async def aclose(self, **_: Any) -> None:
        """See `close`."""


def _not_found(key: Any) -> ValueError:
    return ValueError(f"Key '{key}' not found")


def _adding(delta: Any, key: Any) -> Callable[[Any], Any]:
    def add(value: Any) -> Any:
        if value is _MISSING:
            raise _not_found(key)
        return value + delta

    return add
