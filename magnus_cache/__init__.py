"""A two-level cache for async and blocking Python: an LRU in the process with Redis behind it, never silently stale.

Start with `get_cache_manager` and its `cached` decorator, or create your own `CacheManager`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from magnus_cache._engine.api.audit_report import AuditReport, AuditRow, TtlProposal
    from magnus_cache._engine.api.changes import AsyncChanges, Changes
    from magnus_cache._engine.api.managers import (
        AsyncCacheManager,
        CacheManager,
        cache_clear,
        cache_delete,
        cache_get,
        cache_set,
        configure,
        get_async_cache_manager,
        get_cache_manager,
    )
    from magnus_cache._engine.api.warm_jobs import AsyncKeepWarm, KeepWarm
    from magnus_cache._engine.api.warming import WarmReport
    from magnus_cache._engine.codec import register_type
    from magnus_cache._engine.coordination.health import Health, NodeHealth
    from magnus_cache._engine.coordination.recordings import AccessRecording
    from magnus_cache._engine.flights.context import NOT_MODIFIED, CurrentLoad, current_load
    from magnus_cache._engine.policy.budgets import Budget
    from magnus_cache._engine.policy.calendars import CalendarTtl
    from magnus_cache._engine.policy.markets import market
    from magnus_cache._engine.policy.namespaces import (
        TTL_FOREVER,
        TTL_LONG,
        TTL_MEDIUM,
        TTL_REALTIME,
        TTL_STATIC,
        CacheNamespaces,
        Namespace,
    )
    from magnus_cache._engine.policy.registry import register_namespace
    from magnus_cache._engine.policy.until import until
    from magnus_cache._engine.runtime.fleet_totals import FleetProcess
    from magnus_cache._engine.runtime.ledger import LedgerRow
    from magnus_cache._engine.runtime.observers import Observation
    from magnus_cache._engine.runtime.stats import CacheStats
    from magnus_cache._engine.runtime.warm_figures import WarmJob
    from magnus_cache._engine.settings.settings import CacheSettings
    from magnus_cache._engine.store.explanation import Explanation, KeyEvent
    from magnus_cache._engine.store.lifetimes import Lifetime
    from magnus_cache._engine.store.stamps import Stamped
    from magnus_cache.changes import Change, Changed, Invalidated, Lost
    from magnus_cache.errors import (
        CacheArgumentError,
        CacheBatchEncodeError,
        CacheBatchError,
        CacheBudgetError,
        CacheClosedError,
        CacheConflictError,
        CacheDeadlockError,
        CacheDecodeError,
        CacheEncodeError,
        CacheError,
        CacheLoopError,
        CacheMissingError,
        CacheRecursionError,
        CacheSettingsError,
        CacheTimeoutError,
        CacheTypeError,
        CacheUnavailableError,
        CacheValueTooLargeError,
        RetryLater,
    )
    from magnus_cache.events import (
        BudgetExceeded,
        CacheEvent,
        Cleared,
        Deleted,
        ErrorServed,
        Evicted,
        FillRefused,
        Hit,
        LoadEnded,
        LoadStarted,
        Miss,
        OutageBegan,
        OutageEnded,
        PeerInvalidated,
        SourcePaused,
        StaleServed,
        Stored,
        TagsInvalidated,
        Touched,
        Unreadable,
        Unstorable,
        WaitExpired,
        WarmJobLost,
        WarmJobTaken,
        WarmRound,
        WriteRefused,
    )
    from magnus_cache.protocols import CacheInfo

__all__ = [
    "NOT_MODIFIED",
    "TTL_FOREVER",
    "TTL_LONG",
    "TTL_MEDIUM",
    "TTL_REALTIME",
    "TTL_STATIC",
    "AccessRecording",
    "AsyncCacheManager",
    "AsyncChanges",
    "AsyncKeepWarm",
    "AuditReport",
    "AuditRow",
    "Budget",
    "BudgetExceeded",
    "CacheArgumentError",
    "CacheBatchEncodeError",
    "CacheBatchError",
    "CacheBudgetError",
    "CacheClosedError",
    "CacheConflictError",
    "CacheDeadlockError",
    "CacheDecodeError",
    "CacheEncodeError",
    "CacheError",
    "CacheEvent",
    "CacheInfo",
    "CacheLoopError",
    "CacheManager",
    "CacheMissingError",
    "CacheNamespaces",
    "CacheRecursionError",
    "CacheSettings",
    "CacheSettingsError",
    "CacheStats",
    "CacheTimeoutError",
    "CacheTypeError",
    "CacheUnavailableError",
    "CacheValueTooLargeError",
    "CalendarTtl",
    "Change",
    "Changed",
    "Changes",
    "Cleared",
    "CurrentLoad",
    "Deleted",
    "ErrorServed",
    "Evicted",
    "Explanation",
    "FillRefused",
    "FleetProcess",
    "Health",
    "Hit",
    "Invalidated",
    "KeepWarm",
    "KeyEvent",
    "LedgerRow",
    "Lifetime",
    "LoadEnded",
    "LoadStarted",
    "Lost",
    "Miss",
    "Namespace",
    "NodeHealth",
    "Observation",
    "OutageBegan",
    "OutageEnded",
    "PeerInvalidated",
    "RetryLater",
    "SourcePaused",
    "StaleServed",
    "Stamped",
    "Stored",
    "TagsInvalidated",
    "Touched",
    "TtlProposal",
    "Unreadable",
    "Unstorable",
    "WaitExpired",
    "WarmJob",
    "WarmJobLost",
    "WarmJobTaken",
    "WarmReport",
    "WarmRound",
    "WriteRefused",
    "cache_clear",
    "cache_delete",
    "cache_get",
    "cache_set",
    "configure",
    "current_load",
    "get_async_cache_manager",
    "get_cache_manager",
    "market",
    "register_namespace",
    "register_type",
    "until",
]

__version__ = "0.1.0"

_HOMES: Final = {
    "_engine.api.changes": ("AsyncChanges", "Changes"),
    "_engine.codec": ("register_type",),
    "_engine.flights.context": (
        "NOT_MODIFIED",
        "CurrentLoad",
        "current_load",
    ),
    "changes": ("Change", "Changed", "Invalidated", "Lost"),
    "events": (
        "BudgetExceeded",
        "CacheEvent",
        "Cleared",
        "Deleted",
        "ErrorServed",
        "Evicted",
        "FillRefused",
        "Hit",
        "LoadEnded",
        "LoadStarted",
        "Miss",
        "OutageBegan",
        "OutageEnded",
        "PeerInvalidated",
        "SourcePaused",
        "StaleServed",
        "Stored",
        "TagsInvalidated",
        "Touched",
        "Unreadable",
        "Unstorable",
        "WaitExpired",
        "WarmJobLost",
        "WarmJobTaken",
        "WarmRound",
        "WriteRefused",
    ),
    "errors": (
        "CacheArgumentError",
        "CacheBatchEncodeError",
        "CacheBatchError",
        "CacheBudgetError",
        "CacheClosedError",
        "CacheConflictError",
        "CacheDeadlockError",
        "CacheDecodeError",
        "CacheEncodeError",
        "CacheError",
        "CacheLoopError",
        "CacheMissingError",
        "CacheRecursionError",
        "CacheSettingsError",
        "CacheTimeoutError",
        "CacheTypeError",
        "CacheUnavailableError",
        "CacheValueTooLargeError",
        "RetryLater",
    ),
    "_engine.runtime.observers": ("Observation",),
    "_engine.store.explanation": ("Explanation", "KeyEvent"),
    "_engine.api.audit_report": ("AuditReport", "AuditRow", "TtlProposal"),
    "_engine.store.lifetimes": ("Lifetime",),
    "_engine.store.stamps": ("Stamped",),
    "_engine.coordination.health": ("Health", "NodeHealth"),
    "_engine.coordination.recordings": ("AccessRecording",),
    "_engine.api.managers": (
        "AsyncCacheManager",
        "CacheManager",
        "cache_clear",
        "cache_delete",
        "cache_get",
        "cache_set",
        "configure",
        "get_async_cache_manager",
        "get_cache_manager",
    ),
    "_engine.policy.calendars": ("CalendarTtl",),
    "_engine.policy.markets": ("market",),
    "_engine.policy.until": ("until",),
    "_engine.policy.budgets": ("Budget",),
    "_engine.policy.namespaces": (
        "TTL_FOREVER",
        "TTL_LONG",
        "TTL_MEDIUM",
        "TTL_REALTIME",
        "TTL_STATIC",
        "CacheNamespaces",
        "Namespace",
    ),
    "_engine.policy.registry": ("register_namespace",),
    "protocols": ("CacheInfo",),
    "_engine.settings.settings": ("CacheSettings",),
    "_engine.runtime.fleet_totals": ("FleetProcess",),
    "_engine.runtime.ledger": ("LedgerRow",),
    "_engine.runtime.stats": ("CacheStats",),
    "_engine.runtime.warm_figures": ("WarmJob",),
    "_engine.api.warm_jobs": ("AsyncKeepWarm", "KeepWarm"),
    "_engine.api.warming": ("WarmReport",),
}
"""The public names, by the module that defines them."""

_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:
    # Type checkers have the imports above, and so find misspelt names.
    def __getattr__(name: str) -> Any:
        """Import a public name at its first use: pytest imports this package wherever it is installed."""
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
