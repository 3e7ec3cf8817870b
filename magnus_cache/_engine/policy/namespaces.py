"""Namespaces: the named parts of the cache, each with a policy for its values.

A `Namespace` is a `str`, so it can be used wherever a plain name can. A plain name resolves to the namespace that is
registered under it, or else to a namespace with the defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, ClassVar, Final, NoReturn, Self, Unpack

from magnus_cache._engine.codec.compression import Compression, checked_compression
from magnus_cache._engine.keys.names import check_name
from magnus_cache._engine.keys.versions import Version, checked_version
from magnus_cache._engine.policy.audits import checked_audit
from magnus_cache._engine.policy.budgets import AnyBudget, Budget, BudgetRules, checked_budget
from magnus_cache._engine.policy.calendars import CalendarTtl, Ttl, checked_ttl
from magnus_cache._engine.policy.codecs import checked_codec
from magnus_cache._engine.policy.spending import SpendLimit, checked_limit
from magnus_cache._engine.runtime.annotations import readable
from magnus_cache._engine.runtime.durations import Duration, seconds
from magnus_cache._engine.runtime.numbers import whole
from magnus_cache.errors import CacheArgumentError, CacheTypeError
from magnus_cache.freshness import NO_POLICY, Freshness, FreshnessOptions

__all__ = [
    "TTL_FOREVER",
    "TTL_LONG",
    "TTL_MEDIUM",
    "TTL_REALTIME",
    "TTL_STATIC",
    "CacheNamespaces",
    "Namespace",
]

TTL_REALTIME: Final = 30
"""Seconds, for values that change all the time, such as quotes."""

TTL_MEDIUM: Final = 300
"""Seconds, for values that change over minutes, such as a portfolio."""

TTL_LONG: Final = 3600
"""Seconds, for values that change over hours, such as a watchlist."""

TTL_STATIC: Final = 86400
"""Seconds, for values that hardly ever change, such as the list of exchanges."""

TTL_FOREVER: Final = 100 * 365 * 86400
"""Seconds of a century, the longest TTL, for values that do not expire. They may still be evicted, and end if no
process uses their namespace for 30 days."""


@readable
class Namespace(str):
    """A name with a policy for the values stored under it. It equals the plain name, and has the same hash.

    :param name: letters, digits and most punctuation; no ``:``, braces, white space or glob characters.
    :param ttl: how long a value lives, as seconds, a `timedelta`, text such as ``"5m"``, or a calendar: see `until`
        and `market`; ``None`` means ``default_ttl`` of the settings.
    :param l1: whether values are also kept in this process's memory.
    :param l1_ttl: how long a value is kept in memory at most, as a duration; ``None`` means as long as it
        lives.
    :param l1_max_entries: how many of its values each process keeps in memory at most; ``None`` means as many as there
        is room for. The limit is kept when a value is stored under this policy.
    :param max_value_bytes: the largest encoded value that is stored, in bytes; ``None`` means the settings'.
    :param share: give all callers the same object, even if it is mutable. This is faster, but callers must not change
        the object.
    :param compress: compress values that get smaller: ``"zlib"`` (or True), ``"zstd"`` or ``"lz4"``; the last two need
        the extras of these names.
    :param version: a number or text that is part of each key. Change it when the code that makes the values changes,
        so that new code does not read what old code stored.
    :param offline: for how long memory may serve values after contact with Redis was lost, although other processes
        may have changed them; as a duration. Zero asks the source, and ``None`` means as long as a value lives.
        The time counts from the last moment at which Redis confirmed what is in memory. After it, memory stores
        nothing.
    :param local: keep values in this process's memory only, by reference. They may be of any type: clients, compiled
        models, frames. They are never sent to Redis. Clears, tags and deletes of other processes still reach them.
    :param seal: encrypt values and keys in Redis, with the keys of `seal_keys` in the settings; needs the extra
        ``crypto``.
    :param codec: ``(dumps, loads)``, two functions for values of any type: ``dumps(value)`` returns bytes, and
        ``loads`` the value. ``None`` means the cache's own format. ``(pickle.dumps, pickle.loads)`` runs any code that
        is in Redis: use it only if nobody else can write there. Ints stay in the cache's own format, so that `incr`
        works. After another change of the codec, change `version`, too.
    :param strict: raise `CacheEncodeError` if the result of a load cannot be stored, instead of returning it.
    :param audit: the share of hits of cached functions and of `get_or_set`, 0 to 1, whose value is loaded again in the
        background and compared; see `audit_report`. Give it before functions are decorated.
    :param budget: how many loads the whole fleet may begin: ``"60/min"``, a `Budget`, or a mapping of patterns of keys
        to these, such as ``{"{broker}:*": "5/s"}``, with a bucket for each value of the placeholder; None for no limit.
    :param spend_limit: what loads may cost in the whole fleet, by their `cost`: ``"5.00/day"``, ``/hour`` or
        ``/month``, of UTC. Past it only stale values are served, else `CacheBudgetError` is raised; None for no limit.
    :param freshness: what may be done with values that expire soon or have expired: ``grace``, ``soft_timeout``,
        ``hard_timeout``, ``early``, ``jitter``, ``retry``, ``negative``; see `Freshness`.
    :raises CacheArgumentError: (a `ValueError`) for an invalid argument, naming it.
    :raises ImportError: if the library for an option is missing, naming the extra that brings it.
    """

    ttl: float | CalendarTtl | None
    l1: bool
    l1_ttl: float | None
    l1_max_entries: int | None
    max_value_bytes: int | None
    share: bool
    compress: Compression
    version: Version | None
    offline: float | None
    local: bool
    seal: bool
    codec: tuple[Callable[[Any], bytes], Callable[[bytes], Any]] | None
    strict: bool
    audit: float
    budget: Budget | dict[str, Budget] | None
    spend_limit: str | None
    freshness: Freshness
    budgets: BudgetRules | None
    spending: SpendLimit | None
    limited: bool
    """Whether something limits its loads: one attribute to test before a load."""

    __slots__ = (
        "audit", "budget", "budgets", "codec", "compress", "freshness", "l1", "l1_max_entries", "l1_ttl", "limited",
        "local", "max_value_bytes", "offline", "seal", "share", "spend_limit", "spending", "strict", "ttl", "version",
    )  # fmt: skip

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "ttl": None,
        "l1": True,
        "l1_ttl": None,
        "l1_max_entries": None,
        "max_value_bytes": None,
        "share": False,
        "compress": False,
        "version": None,
        "offline": None,
        "local": False,
        "seal": False,
        "codec": None,
        "strict": False,
        "audit": 0.0,
        "budget": None,
        "spend_limit": None,
        "grace": NO_POLICY.grace,
        "soft_timeout": NO_POLICY.soft_timeout,
        "hard_timeout": NO_POLICY.hard_timeout,
        "early": NO_POLICY.early,
        "jitter": NO_POLICY.jitter,
        "retry": NO_POLICY.retry,
        "negative": {},
    }
    """The default of each part of a policy."""

    def __new__(
        cls,
        name: str,
        *,
        ttl: Ttl | None = None,
        l1: bool = True,
        l1_ttl: Duration | None = None,
        l1_max_entries: int | None = None,
        max_value_bytes: int | None = None,
        share: bool = False,
        compress: Compression = False,
        version: Version | None = None,
        offline: Duration | None = None,
        local: bool = False,
        seal: bool = False,
        codec: tuple[Callable[[Any], bytes], Callable[[bytes], Any]] | None = None,
        strict: bool = False,
        audit: float = 0.0,
        budget: AnyBudget = None,
        spend_limit: str | None = None,
        **freshness: Unpack[FreshnessOptions],
    ) -> Self:
        """Make a namespace; see the class."""
        self = super().__new__(cls, check_name(name, "name"))
        put = object.__setattr__
        put(self, "ttl", None if ttl is None else checked_ttl(ttl))
        put(self, "l1", _flag(l1, "l1"))
        put(self, "l1_ttl", None if l1_ttl is None else seconds(l1_ttl, "l1_ttl"))
        put(self, "l1_max_entries", None if l1_max_entries is None else _entries(l1_max_entries, l1=self.l1))
        put(self, "max_value_bytes", None if max_value_bytes is None else _size(max_value_bytes))
        put(self, "share", _flag(share, "share"))
        put(self, "compress", checked_compression(compress))
        put(self, "version", checked_version(version))
        put(self, "offline", None if offline is None else seconds(offline, "offline", zero=True))
        put(self, "local", _flag(local, "local"))
        put(self, "seal", _flag(seal, "seal"))
        put(self, "codec", checked_codec(codec))
        put(self, "strict", _flag(strict, "strict"))
        put(self, "audit", checked_audit(audit))
        put(self, "budget", checked_budget(budget, sealed=seal))
        put(self, "budgets", None if self.budget is None else BudgetRules(str(self), self.budget))
        put(self, "spend_limit", spend_limit)
        put(self, "spending", checked_limit(spend_limit))
        put(self, "limited", self.budget is not None or self.spending is not None)
        put(self, "freshness", Freshness.of(freshness))
        if self.local:
            _check_local(self)
        if self.seal and find_spec("cryptography") is None:
            problem = 'seal=True needs cryptography: pip install "magnus-cache[crypto]"'
            raise ImportError(problem, name="cryptography")
        return self

    @property
    def grace(self) -> float:
        """Seconds for which an expired value may be served stale."""
        return self.freshness.grace

    @property
    def soft_timeout(self) -> float | None:
        """Seconds that a caller waits for a load while there is a stale value; None for no limit."""
        return self.freshness.soft_timeout

    @property
    def hard_timeout(self) -> float | None:
        """Seconds that a caller waits in all, for Redis and for the load; None for no limit."""
        return self.freshness.hard_timeout

    @property
    def early(self) -> float:
        """How eagerly values are refreshed before they expire; 0 for never."""
        return self.freshness.early

    @property
    def jitter(self) -> float:
        """The largest share of a TTL by which it is shortened at random."""
        return self.freshness.jitter

    @property
    def retry(self) -> float:
        """Seconds for which a stale value is served after a failed load."""
        return self.freshness.retry

    @property
    def negative(self) -> dict[type[Exception], float]:
        """For each kind of exception that is remembered as the answer: for how many seconds."""
        return dict(self.freshness.negative)

    @property
    def policy(self) -> dict[str, Any]:
        """All parts of the policy by name; durations in seconds, sizes in bytes."""
        return {part: getattr(self, part) for part in self.DEFAULTS}

    def __repr__(self) -> str:
        given = [f", {part}={value!r}" for part, value in self.policy.items() if value != self.DEFAULTS[part]]
        return f"{type(self).__name__}({str(self)!r}{''.join(given)})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Namespace is immutable; make a new one instead of setting {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Namespace is immutable; {name!r} cannot be deleted")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), str(self), self.policy)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self


def _restore(cls: type[Namespace], name: str, policy: dict[str, Any]) -> Namespace:
    return cls(name, **policy)


def _flag(value: object, argument: str) -> bool:
    if not isinstance(value, bool):
        raise CacheTypeError(argument, f"give True or False, not {type(value).__name__}")
    return value


def _check_local(namespace: Namespace) -> None:
    """:raises CacheArgumentError: for settings that contradict `local`, which keeps objects in memory as they are."""
    if not namespace.l1:
        raise CacheArgumentError("l1", "a local namespace keeps its values in memory only; leave out l1=False")
    if namespace.compress:
        raise CacheArgumentError("compress", "nothing of a local namespace is encoded; leave out compress")
    if namespace.seal:
        raise CacheArgumentError("seal", "nothing of a local namespace is sent to Redis; leave out seal=True")
    if namespace.codec is not None:
        raise CacheArgumentError("codec", "nothing of a local namespace is encoded; leave out codec")
    if namespace.max_value_bytes is not None:
        problem = (
            "nothing of a local namespace is encoded; leave it out: l1_max_bytes of the settings bounds the memory"
        )
        raise CacheArgumentError("max_value_bytes", problem)


def _entries(value: object, *, l1: bool) -> int:
    most = whole(value)
    if most is None:
        raise CacheTypeError("l1_max_entries", f"give an int, not {type(value).__name__}")
    if most <= 0:
        raise CacheArgumentError("l1_max_entries", f"it must be more than zero, got {most}; l1=False keeps none")
    if not l1:
        raise CacheArgumentError("l1_max_entries", "with l1=False nothing is kept in memory; leave out one of the two")
    return most


def _size(value: object) -> int:
    size = whole(value)
    if size is None:
        raise CacheTypeError("max_value_bytes", f"a size is an int of bytes, not {type(value).__name__}")
    if size <= 0:
        raise CacheArgumentError("max_value_bytes", f"a size must be more than zero bytes, got {size}")
    return size


class _IterableType(type):
    """Makes a class of namespaces iterable, as an enumeration is."""

    def __iter__(cls) -> Iterator[Namespace]:
        return (value for value in vars(cls).values() if isinstance(value, Namespace))

    def __len__(cls) -> int:
        return sum(1 for _ in cls)


class CacheNamespaces(metaclass=_IterableType):
    """The namespaces that come with the package; iterate over the class to list them."""

    PORTFOLIO: Final = Namespace("portfolio", ttl=TTL_MEDIUM)
    OPTIONS_CHAINS: Final = Namespace("options_chains", ttl=900)
    KALSHI_MARKETS: Final = Namespace("kalshi_markets", ttl=60)
    STOCK_PRICES: Final = Namespace("stock_prices", ttl=60)
    LLM_RESPONSES: Final = Namespace("llm_responses", ttl=TTL_LONG)
    DISCORD_MESSAGES: Final = Namespace("discord_messages", ttl=120)
    WATCHLISTS: Final = Namespace("watchlists", ttl=TTL_LONG)
    REFERENCE_DATA: Final = Namespace("reference_data", ttl=TTL_STATIC)
