"""What an entry of ``CACHES`` says: where Redis is, the settings of the cache, and the namespace of its values."""

import pickle
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

from django.conf import settings
from django.core.cache import InvalidCacheBackendError
from django.utils.module_loading import import_string

from magnus_cache import CacheArgumentError, CacheSettings, CacheSettingsError, Namespace
from magnus_cache.integrations.engine import default_registry

__all__ = ["NAMESPACE", "Configuration", "alias_of", "configuration_of", "frozen"]

NAMESPACE: Final = "django"
"""The namespace of the values, unless ``OPTIONS`` names another."""

_Codec = tuple[Callable[[Any], bytes], Callable[[bytes], Any]]

_REMEDIES: Final = {
    "MAX_ENTRIES": "Redis bounds itself, by maxmemory; l1_max_entries bounds the memory of each process",
    "CULL_FREQUENCY": "Redis chooses what it evicts, by maxmemory-policy; leave it out",
    "CLIENT_CLASS": "leave it out; a cluster or sentinels are named by LOCATION",
    "CONNECTION_POOL_CLASS": "leave it out; all threads share one connection",
    "CONNECTION_POOL_KWARGS": "leave it out; all threads share one connection",
    "CONNECTION_POOL_CLASS_KWARGS": "leave it out; all threads share one connection",
    "PARSER_CLASS": "leave it out",
    "PASSWORD": "use redis_password",
    "PICKLE_VERSION": "use codec",
    "SERIALIZER": "leave it out, or use codec",
    "COMPRESSOR": "leave it out, or give namespace a Namespace with compress=True",
    "SOCKET_CONNECT_TIMEOUT": "use op_timeout",
    "SOCKET_TIMEOUT": "use op_timeout",
    "IGNORE_EXCEPTIONS": "leave it out; no read or write fails because Redis is away",
    "SENTINELS": "use redis_sentinels, or a LOCATION such as redis+sentinel://host1,host2/service",
    "db": "use redis_db, or a LOCATION such as redis://host:6379/1",
    "username": "use redis_username",
    "password": "use redis_password",
    "serializer": "leave it out, or use codec",
    "pool_class": "leave it out; all threads share one connection",
    "parser_class": "leave it out",
}
"""What to do about options of Django's own backends and of django-redis."""

_NEXT_URL: Final = re.compile(r"\s*[;,]\s*(?=[A-Za-z+]+://)")

_GROUP: Final = re.compile(r"(?P<scheme>[A-Za-z]+)\+(?P<kind>cluster|sentinel)$")

_SETTING: Final = re.compile(r"\b(?P<name>[a-z0-9_]+)(?P<variable> \([A-Z0-9_]+\))?: ")


class Configuration(NamedTuple):
    """What an entry of ``CACHES`` asks for."""

    options: Mapping[str, Any]
    """Settings of the cache, by name; without any, the cache is the process-wide one."""
    namespace: str
    """Where the values are: a `Namespace`, or a name, which may be registered with a policy at any time."""


def configuration_of(location: Any, options: Mapping[str, Any], where: str) -> Configuration:
    """Return what ``LOCATION`` and ``OPTIONS`` ask for.

    :param where: the place of the entry in the settings, for the message.
    :raises InvalidCacheBackendError: for anything that cannot be used, in one line that names it and the remedy.
    """
    given = dict(options)
    for name in given.keys() & _REMEDIES.keys():
        raise InvalidCacheBackendError(f'{where}["OPTIONS"]["{name}"] is no option of this cache: {_REMEDIES[name]}')
    namespace = _namespace(given.pop("namespace", NAMESPACE), given.pop("codec", None), where)
    urls = _urls(location, where)
    if urls and "redis_url" in given:
        raise InvalidCacheBackendError(f'{where}: leave out either LOCATION or OPTIONS["redis_url"]')
    if urls:
        given["redis_url"] = _one_url(urls, given, where)
    try:
        CacheSettings(**given)
    except CacheSettingsError as error:
        problem = str(error)
    else:
        return Configuration(given, namespace)
    # Not as the cause: one line says it.
    raise InvalidCacheBackendError(_placed(problem, given, located=bool(urls), where=where))


def _placed(problem: str, given: Mapping[str, Any], *, located: bool, where: str) -> str:
    """Return the message of the settings with the places of this file in it."""

    def place(match: re.Match[str]) -> str:
        name = match["name"]
        if name == "redis_url" and located:
            return f'{where}["LOCATION"]: '
        return f'{where}["OPTIONS"]["{name}"]: ' if name in given else match[0]

    return _SETTING.sub(place, problem)


def alias_of(location: Any, params: Mapping[str, Any]) -> str:
    """Return the place of an entry in the settings, such as ``CACHES["default"]``, of which Django tells nothing."""
    for alias, entry in settings.CACHES.items():
        others = {name: value for name, value in entry.items() if name not in ("BACKEND", "LOCATION")}
        if others == params and entry.get("LOCATION", "") == location:
            return f'CACHES["{alias}"]'
    return "CACHES"


def frozen(value: Any) -> Any:
    """Return a value of the settings as one that can be a key of a dict."""
    if isinstance(value, Mapping):
        return tuple(sorted((name, frozen(item)) for name, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    # A namespace equals its name, whatever its policy is.
    return (id(value), value) if isinstance(value, Namespace) else value


def _urls(location: Any, where: str) -> list[str]:
    if not location:
        return []
    several = _NEXT_URL.split(location) if isinstance(location, str) else location
    if not isinstance(several, list | tuple) or not all(isinstance(url, str) for url in several):
        kind = type(location).__name__
        raise InvalidCacheBackendError(f'{where}["LOCATION"] is a URL or a list of URLs, not {kind}')
    urls = [url.strip() for url in several]
    if not all("://" in url for url in urls):
        raise InvalidCacheBackendError(f'{where}["LOCATION"] is a URL such as redis://127.0.0.1:6379/0')
    return urls


def _one_url(urls: list[str], options: dict[str, Any], where: str) -> str:
    """Return the URL for several: of a cluster or of sentinels, all are named in it.

    Of other servers, the first is the primary, as in Django. The others are its replicas, which this cache never reads:
    they may lag behind.
    """
    if len(urls) == 1:
        return urls[0]
    parts = [urlsplit(url) for url in urls]
    scheme = parts[0].scheme
    group = _GROUP.match(scheme)
    if group is None and options.get("redis_cluster"):
        options.pop("redis_cluster")
        scheme = f"{scheme}+cluster"
    elif group is None:
        return urls[0]
    if any(part.scheme != parts[0].scheme for part in parts):
        raise InvalidCacheBackendError(f'{where}["LOCATION"]: several URLs of a group begin alike, with {scheme}://')
    login, at, _ = parts[0].netloc.rpartition("@")
    hosts = ",".join(part.netloc.rpartition("@")[2] for part in parts)
    return parts[0]._replace(scheme=scheme, netloc=f"{login}{at}{hosts}").geturl()


def _namespace(namespace: Any, codec: Any, where: str) -> str:
    place = f'{where}["OPTIONS"]'
    functions = None if codec is None else _codec(codec, place)
    if functions is not None and isinstance(namespace, Namespace):
        raise InvalidCacheBackendError(f'{place}: give the codec to the Namespace, or "namespace" as text')
    try:
        if isinstance(namespace, Namespace):
            return namespace
        name = str(Namespace(namespace, codec=functions))
        if functions is None:
            return name
        # A name may be registered with a policy, such as ``seal=True``.
        policy: dict[str, Any] = {**default_registry.resolve(name).policy, "codec": functions}
        return Namespace(name, **policy)
    except CacheArgumentError as error:
        option = "codec" if error.argument == "codec" else "namespace"
        problem = f'{place}["{option}"]: {error.problem}'
    raise InvalidCacheBackendError(problem)


def _codec(codec: Any, place: str) -> _Codec:
    """Return the two functions that an option stands for.

    :param codec: ``"pickle"``; a pair of functions; an object or class with ``dumps`` and ``loads``; or the dotted
        path of any of these, or of such a module.
    """
    if codec == "pickle":
        return _pickled, pickle.loads
    found: Any = _imported(codec, place) if isinstance(codec, str) else codec
    if isinstance(found, type):
        found = found()
    if isinstance(found, list | tuple):
        # Its length is checked with the namespace.
        return cast("_Codec", tuple(found))
    try:
        return found.dumps, found.loads
    except AttributeError:
        kind = type(found).__name__
        problem = f'{place}["codec"] is "pickle", (dumps, loads), or the path of what has both, not {kind}'
    raise InvalidCacheBackendError(problem)


def _imported(path: str, place: str) -> Any:
    try:
        try:
            return import_string(path) if "." in path else import_module(path)
        except ImportError:
            return import_module(path)
    except ImportError as error:
        problem = f'{place}["codec"]: {error}'
    raise InvalidCacheBackendError(problem)


def _pickled(value: Any) -> bytes:
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
