"""The load under way as its loader sees it, with the value to be replaced, for conditional requests."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Final, Never, TypeVar, cast

from magnus_cache._engine.runtime.switches import Switch
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = [
    "CURRENT",
    "NOT_MODIFIED",
    "UNMODIFIED",
    "CurrentLoad",
    "PreviousValue",
    "as_current_load",
    "current_load",
    "is_unmodified",
    "modified",
    "not_modified_error",
]

T = TypeVar("T")

_LONGEST: Final = 4096
"""Bytes of a validator. An ETag is some dozens."""


class _NotModified:
    """The type of `NOT_MODIFIED`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NOT_MODIFIED"

    def __reduce__(self) -> str:
        return "NOT_MODIFIED"


UNMODIFIED: Final = _NotModified()
"""`NOT_MODIFIED` as the value that it is, to compare others with."""

NOT_MODIFIED: Final[Never] = cast("Never", UNMODIFIED)
"""What a loader returns if the stored value is still current. The value is kept for another TTL.

Type checkers see the type `Never`, so that a function that returns it keeps its annotation.
"""


def is_unmodified(value: object) -> bool:
    """Return whether a loader returned `NOT_MODIFIED`."""
    return value is UNMODIFIED


def modified(value: T) -> T:
    """Return what a loader returned that replaces no value.

    :raises CacheTypeError: for `NOT_MODIFIED`.
    """
    if value is UNMODIFIED:
        raise not_modified_error()
    return value


class PreviousValue:
    """A stored value that a load is to replace.

    :ivar value: returns the value, as a copy of the caller's own if it is mutable.
    :ivar validator: the version of the value at its source, or None.
    """

    __slots__ = ("validator", "value")

    def __init__(self, value: Callable[[], Any], validator: str | None) -> None:
        self.value = value
        self.validator = validator


class CurrentLoad:
    """What a loader can learn about its load; see `current_load`."""

    __slots__ = ("_previous", "_validator")

    def __init__(self, previous: PreviousValue | None = None) -> None:
        self._previous = previous
        self._validator = previous.validator if previous is not None else None

    @property
    def has_previous(self) -> bool:
        """Whether this load replaces a stored value. Only then may the loader return `NOT_MODIFIED`."""
        return self._previous is not None

    @property
    def previous(self) -> Any:
        """The value that this load replaces; None if it replaces nothing."""
        return self._previous.value() if self._previous is not None else None

    @property
    def validator(self) -> str | None:
        """The version of the value at its source, such as an ETag: that of the previous value, until you set it.

        :raises CacheTypeError: when it is set to anything but a str or None.
        :raises CacheArgumentError: when it is set to more than 4096 bytes.
        """
        return self._validator

    @validator.setter
    def validator(self, validator: str | None) -> None:
        if validator is not None:
            if not isinstance(validator, str):
                raise CacheTypeError("validator", f"a str or None is needed, not {type(validator).__name__}")
            if len(validator.encode("utf-8", "surrogatepass")) > _LONGEST:
                raise CacheArgumentError("validator", f"it is longer than {_LONGEST} bytes; store a hash of it")
            try:
                validator.encode()
            except UnicodeEncodeError as error:
                raise CacheArgumentError("validator", "it contains a lone surrogate, which is not text") from error
        self._validator = validator


CURRENT: Final[ContextVar[CurrentLoad | None]] = ContextVar("magnus_cache_current_load", default=None)
"""What `current_load` returns. A task of its own may set it; in the context of callers, use `as_current_load`."""


def current_load() -> CurrentLoad:
    """Return the load that runs the calling code; outside a load, one that replaces nothing.

    With it, a loader can ask its source conditionally. It also works without the cache::

        load = current_load()
        reply = await client.get(url, headers={"If-None-Match": load.validator} if load.validator else {})
        if reply.status_code == 304:
            return NOT_MODIFIED
        load.validator = reply.headers.get("ETag")
        return reply.json()

    A load replaces a value if it refreshes a stale value (within its grace), or a fresh one early. It replaces nothing
    after an invalidation, while Redis is away, and in loaders of many keys.
    """
    return CURRENT.get() or CurrentLoad()


def not_modified_error() -> CacheTypeError:
    """Return the error for a loader that returns `NOT_MODIFIED` although it replaces no value."""
    problem = "it returned NOT_MODIFIED although there is no value to keep; see current_load()"
    return CacheTypeError("loader", problem)


def as_current_load(load: CurrentLoad) -> AbstractContextManager[None]:
    """Make this the current load within a ``with`` block."""
    return Switch(CURRENT, load)
