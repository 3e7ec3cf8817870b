"""The managers behind the backends: one for all entries of ``CACHES`` with the same settings, for all threads.

Django makes a backend for each thread, and on an event loop for each request. So a backend is light, and what it uses
stays: neither the end of a request nor that of a thread closes a connection.
"""

from collections.abc import Mapping
from typing import Any, Final

from django.conf import settings
from django.core.cache import InvalidCacheBackendError
from django.core.signals import setting_changed

from magnus_cache import CacheManager, get_cache_manager
from magnus_cache.integrations.django.options import Configuration, alias_of, configuration_of, frozen

__all__ = ["Shared", "shared_by"]


class Shared:
    """The configuration of an entry of ``CACHES``, and its manager."""

    __slots__ = ("_key", "namespace", "options")

    def __init__(self, configuration: Configuration) -> None:
        self.options, self.namespace = configuration
        self._key = frozen(self.options)

    @property
    def manager(self) -> CacheManager:
        """The manager of these settings. Its first use opens it, also after it was closed."""
        if not self.options:
            return get_cache_manager()
        found = _MANAGERS.get(self._key)
        # Of two threads that come first, one gets the manager of the other.
        return found or _MANAGERS.setdefault(self._key, CacheManager(**self.options))


_MANAGERS: Final[dict[Any, CacheManager]] = {}
"""By the settings."""

_SHARED: Final[dict[Any, Shared]] = {}
"""By what an entry says: reading settings takes too long for each request."""


def shared_by(location: Any, params: Mapping[str, Any]) -> Shared:
    """Return what all backends of an entry of ``CACHES`` share.

    :raises InvalidCacheBackendError: for an entry that cannot be used, in one line.
    """
    options = params.get("OPTIONS") or {}
    key: Any = None
    try:
        key = frozen((location, options))
        if (found := _SHARED.get(key)) is not None:
            return found
    except TypeError:  # unhashable
        key = None
    where = alias_of(location, params)
    if not isinstance(options, Mapping):
        raise InvalidCacheBackendError(f'{where}["OPTIONS"] is a dict of names and values')
    made = Shared(configuration_of(location, options, where))
    return made if key is None else _SHARED.setdefault(key, made)


def _settings_changed(*, setting: str, **_: Any) -> None:
    """Close the managers that no entry uses any more: a test has replaced ``CACHES``."""
    if setting != "CACHES":
        return
    _SHARED.clear()
    used: set[Any] = set()
    for entry in settings.CACHES.values():
        params = {name: value for name, value in entry.items() if name not in ("BACKEND", "LOCATION")}
        try:
            used.add(frozen(shared_by(entry.get("LOCATION", ""), params).options))
        except InvalidCacheBackendError:
            continue
    for key in [key for key in _MANAGERS if key not in used]:
        _MANAGERS.pop(key).close()


setting_changed.connect(_settings_changed)
