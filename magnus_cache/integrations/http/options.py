"""The options of the transports and of the adapter, checked once."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Any, Final, TypedDict

from magnus_cache import CacheArgumentError, CacheTypeError, Namespace
from magnus_cache.integrations.engine import Duration, default_registry, seconds

__all__ = ["SAFE", "HttpCacheOptions", "Policy", "Rule"]

_SECRET_BYTES: Final = 64

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods that change nothing at the server."""

_BY_DEFAULT: Final = ("GET", "HEAD")


class Rule:
    """How requests to some URLs are cached. Of several rules, the first whose pattern matches counts.

    :param pattern: a glob over the URL without its query, such as ``"https://api.example.com/v1/*"``; ``*`` also
        matches slashes.
    :param ttl: for how long a response is fresh if the server does not say so, as seconds, a `timedelta` or text such
        as ``"5m"``; None for the transport's.
    :param override: whether `ttl` also counts if the server says something else, ``no-store`` included.
    :param store: whether to cache at all.
    :param methods: the methods that are cached, such as ``("POST",)``; None for the transport's.
    :raises CacheArgumentError: naming the argument that cannot be used.
    """

    __slots__ = ("methods", "override", "pattern", "store", "ttl")

    def __init__(
        self, pattern: str, *, ttl: Duration | None = None, override: bool = False, store: bool = True,
        methods: Iterable[str] | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(pattern, str) or not pattern:
            raise CacheTypeError("pattern", 'a glob over URLs is needed, such as "https://api.example.com/*"')
        self.pattern = pattern
        self.ttl = None if ttl is None else seconds(ttl, "ttl")
        self.override = _flag(override, "override")
        self.store = _flag(store, "store")
        self.methods = None if methods is None else _names(methods, "methods", str.upper)
        if override and ttl is None:
            raise CacheArgumentError("override", "it needs a ttl, which replaces what the server says")

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.pattern!r}, ttl={self.ttl!r}, override={self.override}, store={self.store})"
        )

    def matches(self, address: str) -> bool:
        """Whether the rule is about a URL.

        :param address: the URL without query and fragment.
        """
        return fnmatchcase(address, self.pattern)


class HttpCacheOptions(TypedDict, total=False):
    """The options of transports and adapters.

    :ivar namespace: the namespace of the responses, ``"http"`` by default. Its ``grace`` says for how long a stale
        response may be served if the server fails, and its ``soft_timeout`` how long to wait for the server then.
    :ivar ttl: for how long a response is fresh if the server does not say so; None to store no such response.
    :ivar rules: rules for some URLs, each a `Rule`.
    :ivar methods: the methods that are cached, ``("GET", "HEAD")`` by default. With ``"POST"``, the body is part of
        the key.
    :ivar shared: whether all users share the responses that the server allows them to share; by default each has their
        own.
    :ivar identity: text that is part of every key, for users that the requests do not tell apart, such as those of
        client certificates.
    :ivar ignore_headers: names of request headers that do not tell users apart, such as ``"X-Trace"``; else each value
        of such a header has responses of its own.
    :ivar secret: text that the hashes of credentials are keyed with, the same in the whole fleet.
    :ivar max_body_bytes: the largest body that is stored, in bytes as sent by the server; 1 MiB by default.
    :ivar store_cookies: whether to store responses with Set-Cookie.
    :ivar heuristic: whether a response with a Last-Modified is fresh for a tenth of the time since, at most a day, if
        the server does not say.
    :ivar keep: for how long a stale response is kept, to ask the server whether it is still current; a day by default.
    :ivar max_pause: the longest Retry-After that is obeyed, an hour by default.
    """

    namespace: str
    ttl: Duration | None
    rules: Sequence[Rule]
    methods: Iterable[str]
    shared: bool
    identity: str | None
    ignore_headers: Iterable[str]
    secret: str | bytes | None
    max_body_bytes: int
    store_cookies: bool
    heuristic: bool
    keep: Duration
    max_pause: Duration


class Policy:
    """The checked options of a transport, with durations in seconds and sizes in bytes; see `HttpCacheOptions`.

    :raises CacheArgumentError: naming the option that cannot be used.
    """

    def __init__(self, options: HttpCacheOptions) -> None:
        unknown = sorted(set(options) - set(HttpCacheOptions.__annotations__))
        if unknown:
            known = ", ".join(HttpCacheOptions.__annotations__)
            raise CacheTypeError(unknown[0], f"no such option; the options are {known}")
        given: dict[str, Any] = dict(options)
        ttl, rules = given.get("ttl"), given.get("rules", ())
        self._namespace = given.get("namespace", "http")
        self.namespace = str(default_registry.resolve(self._namespace))
        if isinstance(rules, Rule) or not all(isinstance(rule, Rule) for rule in rules):
            raise CacheTypeError("rules", 'a list of rules is needed, such as [Rule("https://a.example/*", ttl="1m")]')
        self.ttl = None if ttl is None else seconds(ttl, "ttl")
        self.rules = tuple(rules)
        self.methods = _names(given.get("methods", _BY_DEFAULT), "methods", str.upper)
        self.ignored = _names(given.get("ignore_headers", ()), "ignore_headers", str.lower)
        self.shared = _flag(given.get("shared", False), "shared")
        self.store_cookies = _flag(given.get("store_cookies", False), "store_cookies")
        self.heuristic = _flag(given.get("heuristic", False), "heuristic")
        self.identity = given.get("identity") or ""
        if not isinstance(self.identity, str):
            raise CacheTypeError("identity", f"text is needed, not {type(self.identity).__name__}")
        self.secret = _secret(given.get("secret"))
        self.max_body_bytes = _size(given.get("max_body_bytes", 2**20))
        self.keep = seconds(given.get("keep", 86400), "keep", zero=True)
        self.max_pause = seconds(given.get("max_pause", 3600), "max_pause")

    @property
    def resolved(self) -> Namespace:
        """The namespace with its policy, as it is registered now."""
        return default_registry.resolve(self._namespace)

    def rule_of(self, address: str) -> Rule | None:
        """Return the first rule that is about a URL without query; None if none is."""
        return next((rule for rule in self.rules if rule.matches(address)), None)


def _flag(value: object, argument: str) -> bool:
    if not isinstance(value, bool):
        raise CacheTypeError(argument, f"give True or False, not {type(value).__name__}")
    return value


def _names(names: Any, argument: str, form: Any) -> frozenset[str]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise CacheTypeError(argument, f"a list of names is needed, such as [{names!r}]")
    return frozenset(form(name) for name in names)


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise CacheTypeError("max_body_bytes", f"a number of bytes is needed, not {type(value).__name__}")
    if value < 0:
        raise CacheArgumentError("max_body_bytes", f"a number of bytes is needed, 0 or more, got {value}")
    return value


def _secret(value: object) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, str | bytes) or not value:
        raise CacheTypeError("secret", "text or bytes are needed")
    secret = value.encode() if isinstance(value, str) else value
    return secret if len(secret) <= _SECRET_BYTES else blake2b(secret).digest()
