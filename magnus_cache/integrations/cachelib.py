"""A cache for what takes one of cachelib: Flask-Caching, Flask-Session, and programs that call cachelib themselves.

In Flask-Caching, ``CACHE_TYPE = "magnus_cache.integrations.cachelib.MagnusCache"`` with its ``CACHE_OPTIONS``; or the
backend of `magnus_cache.integrations.flask`, which also reads ``CACHE_KEY_PREFIX``.

:raises ImportError: if cachelib is not installed.
"""

import pickle
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, Literal, Protocol, TypeAlias, runtime_checkable

from magnus_cache import (
    TTL_FOREVER,
    AsyncCacheManager,
    CacheArgumentError,
    CacheEncodeError,
    CacheManager,
    CacheTypeError,
    CacheUnavailableError,
    CacheValueTooLargeError,
    Namespace,
    get_cache_manager,
)
from magnus_cache.integrations.engine import default_registry
from magnus_cache.integrations.models import library

library("cachelib", extra="cachelib")

from cachelib import BaseCache  # noqa: E402  # after the error that names the extra

__all__ = ["Codec", "MagnusCache", "Serializer"]


@runtime_checkable
class Serializer(Protocol):
    """Two functions that make bytes of a value and a value of bytes, as the serializers of cachelib have them."""

    def dumps(self, value: Any) -> bytes:
        """Return the bytes of a value."""
        ...

    def loads(self, bvalue: bytes) -> Any:
        """Return the value of bytes."""
        ...


Codec: TypeAlias = Literal["pickle"] | tuple[Callable[[Any], bytes], Callable[[bytes], Any]] | Serializer | None
"""How values are stored: None for the cache's own way, ``"pickle"``, or the functions ``(dumps, loads)``."""

_REMEDY: Final = (
    'or choose to pickle what this cache stores: codec="pickle", in Flask-Caching '
    'CACHE_OPTIONS = {"codec": "pickle"}. Unpickling runs what it finds: only where no one else can write to Redis'
)

_Timeout: TypeAlias = int | float | timedelta | None


class MagnusCache(BaseCache):
    """A cache of cachelib's interface, with the memory of this process and Redis behind it.

    Its values live in one namespace. Timeouts are seconds or a `timedelta`; 0 means no end, None the default. No
    operation raises because Redis is away: what `inc` and `dec` return is None then, as cachelib has it.

    :param cache: the manager; None for the process-wide one.
    :param default_timeout: seconds, or a `timedelta`, for values that are stored without a timeout; 0 for no end.
    :param key_prefix: text before each key, or a function without arguments that returns it, called for each operation.
    :param ignore_delete_many_errors: of no effect, because no key fails to be deleted.
    :param namespace: where the values are; a `Namespace` with a policy, or its name, which may be registered with
        one. Its ``ttl`` is `default_timeout`.
    :param codec: how values are stored: None for the types that this cache stores, which never runs code;
        ``"pickle"``, or two functions ``(dumps, loads)``, for all that these store.
    :raises CacheArgumentError: for an argument that cannot be used, naming it.
    """

    def __init__(
        self,
        cache: CacheManager | AsyncCacheManager | None = None,
        default_timeout: int | timedelta = 300,
        key_prefix: str | Callable[[], str] | None = None,
        ignore_delete_many_errors: bool = True,
        *,
        namespace: str = "cachelib",
        codec: Codec = None,
    ) -> None:
        if not isinstance(cache, CacheManager | AsyncCacheManager | None):
            raise CacheTypeError("cache", f"it is a CacheManager or None, not {type(cache).__name__}")
        if not (key_prefix is None or isinstance(key_prefix, str) or callable(key_prefix)):
            raise CacheTypeError("key_prefix", f"it is a str, or a function that returns one, not {key_prefix!r}")
        super().__init__(default_timeout)
        self.ignore_delete_many_errors = ignore_delete_many_errors
        self.manager: CacheManager = get_cache_manager() if cache is None else cache.sync
        self.key_prefix = key_prefix or ""
        self._policy: dict[str, Any] = {**_policy(namespace), "ttl": _ttl(self.default_timeout, "default_timeout")}
        self._name = str(namespace)
        self._store_by(codec)

    def _store_by(self, codec: Codec) -> None:
        functions = _functions(codec)
        policy: dict[str, Any] = self._policy if functions is None else {**self._policy, "codec": functions}
        self.namespace = Namespace(self._name, **policy)
        self._codec = policy.get("codec")
        self._serializer: Codec = self._codec if functions is None else codec

    @property
    def serializer(self) -> Codec:
        """How values are stored, see `codec`. Flask-Caching sets it to its ``CACHE_SERIALIZER``."""
        return self._serializer

    @serializer.setter
    def serializer(self, codec: Codec) -> None:
        self._store_by(codec)

    def _key(self, key: Any) -> str:
        prefix = self.key_prefix if isinstance(self.key_prefix, str) else self.key_prefix()
        return f"{prefix}{key}"

    def _ttl(self, timeout: _Timeout) -> float | None:
        return None if timeout is None else _ttl(timeout, "timeout")

    @contextmanager
    def _naming_the_remedy(self) -> Generator[None]:
        try:
            yield
        except CacheValueTooLargeError:
            raise
        except CacheEncodeError as error:
            if self._codec is not None:
                raise
            raise CacheEncodeError(error.type_name, f"{error.problem}; {_REMEDY}", error.path) from error

    def get(self, key: str) -> Any:
        """Return a value; None if there is none, or if it is None."""
        return self.manager.get(self.namespace, self._key(key))

    def get_many(self, *keys: str) -> list[Any]:
        """Return the values of keys in their order, from one exchange with Redis; None for each that is not there."""
        names = list(map(self._key, keys))
        found = self.manager.get_many(self.namespace, names)
        return [found.get(name) for name in names]

    def has(self, key: str) -> bool:
        """Return whether there is a value; None is one."""
        return self.manager.contains(self.namespace, self._key(key))

    def set(self, key: str, value: Any, timeout: _Timeout = None) -> bool:
        """Store a value; return whether it is stored: in Redis, or in this process while Redis is away.

        :raises CacheArgumentError: for a timeout that cannot be used.
        :raises CacheEncodeError: for a value that cannot be stored, naming its type.
        """
        with self._naming_the_remedy():
            return self.manager.set(self.namespace, self._key(key), value, self._ttl(timeout))

    def add(self, key: str, value: Any, timeout: _Timeout = None) -> bool:
        """Store a value if there is none; return whether it is stored. Of several callers anywhere, one gets True.

        :raises CacheArgumentError: for a timeout that cannot be used.
        :raises CacheEncodeError: for a value that cannot be stored, naming its type.
        """
        with self._naming_the_remedy():
            return self.manager.add(self.namespace, self._key(key), value, self._ttl(timeout))

    def set_many(self, mapping: Mapping[str, Any], timeout: _Timeout = None) -> list[Any]:
        """Store many values in one exchange with Redis; return the keys, or none of them if not all are stored.

        :raises CacheArgumentError: for a timeout that cannot be used.
        :raises CacheEncodeError: for a value that cannot be stored, naming its type; then nothing is stored.
        """
        values = {self._key(key): value for key, value in mapping.items()}
        with self._naming_the_remedy():
            stored = self.manager.set_many(self.namespace, values, self._ttl(timeout))
        return list(mapping) if stored else []

    def delete(self, key: str) -> bool:
        """Remove a value everywhere; return whether there was one."""
        return self.manager.delete(self.namespace, self._key(key))

    def delete_many(self, *keys: str) -> list[Any]:
        """Remove many values everywhere; return the keys, because a key without a value counts as removed."""
        self.manager.delete_many(self.namespace, list(map(self._key, keys)))
        return list(keys)

    def clear(self) -> bool:
        """Remove all values of the namespace; with a `key_prefix`, those whose key begins with it. Return True.

        Without a prefix this is a single round trip. With one, Redis looks through its database. Redis does not know
        which keys of a sealed namespace begin with a prefix, so all its values are removed.
        """
        prefix = "" if self.namespace.seal else self._key("")
        self.manager.clear(f"{self.namespace}:{_escaped(prefix)}*" if prefix else self.namespace)
        return True

    def inc(self, key: str, delta: int = 1) -> int | None:
        """Add a number to a value in one step, and return the new one; None while Redis is away.

        A key without a value starts from 0, and ends after the default timeout.

        :raises CacheTypeError: if there is another value than an int.
        """
        try:
            return self.manager.incr(self.namespace, self._key(key), delta)
        except CacheUnavailableError:
            return None

    def dec(self, key: str, delta: int = 1) -> int | None:
        """Subtract a number, as `inc` adds one.

        :raises CacheTypeError: as `inc` does.
        """
        try:
            return self.manager.decr(self.namespace, self._key(key), delta)
        except CacheUnavailableError:
            return None


def _policy(namespace: str) -> dict[str, Any]:
    """:raises CacheTypeError: for what is no name of a namespace."""
    if not isinstance(namespace, str):
        raise CacheTypeError("namespace", f"it is a str or a Namespace, not {type(namespace).__name__}")
    # A name may be registered with a policy, such as ``seal=True``.
    return default_registry.resolve(namespace).policy


def _ttl(timeout: float | timedelta, argument: str) -> float:
    """Return a timeout in seconds, by the rule of cachelib that 0 is no end.

    :raises CacheArgumentError: for one below 0, which would never have been stored.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float | timedelta):
        raise CacheTypeError(argument, f"it is seconds or a timedelta, not {type(timeout).__name__}")
    span = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if not span >= 0:
        raise CacheArgumentError(argument, f"it is 0, for no end, or more; got {span:g} seconds")
    return min(span, TTL_FOREVER) or TTL_FOREVER


def _functions(codec: Any) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]] | None:
    """:raises CacheArgumentError: for what is no codec."""
    match codec:
        case None:
            return None
        case "pickle":
            return pickle.dumps, pickle.loads
        case (dumps, loads) if callable(dumps) and callable(loads):
            pair: Any = (dumps, loads)
            return pair  # type: ignore[no-any-return]  # of what types they are, only the caller knows
        case Serializer():
            return codec.dumps, codec.loads
        case _:
            raise CacheArgumentError("codec", f'it is "pickle" or a pair of functions (dumps, loads), not {codec!r}')


def _escaped(text: str) -> str:
    """Return the glob that matches exactly this text."""
    return "".join(f"\\{character}" if character in "*?[]^\\" else character for character in text)
