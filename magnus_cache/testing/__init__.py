"""Tools for testing code that uses a cache: isolation, a clock, real clusters, broken connections, leak checks.

They need no test framework. For pytest there are fixtures; see `magnus_cache.integrations.pytest`.
"""

from magnus_cache.testing.clock import VirtualClock, virtual_clock
from magnus_cache.testing.isolation import isolated
from magnus_cache.testing.leaks import LeakCheck, no_leaks
from magnus_cache.testing.proxy import Direction, Frame, FrameError, FrameSplitter, Proxy, ProxyCounts
from magnus_cache.testing.servers import (
    EmbeddedCluster,
    EmbeddedSentinels,
    NodeError,
    NodeView,
    Promotion,
    SentinelNode,
    ServerNode,
    ServerTls,
    ServerVersion,
    SlotMigration,
    slot_of,
)
from magnus_cache.testing.staleness import (
    StalenessChecker,
    StalenessEvent,
    StalenessLog,
    StalenessReport,
    StaleRead,
    read_log,
)

__all__ = [
    "Direction",
    "EmbeddedCluster",
    "EmbeddedSentinels",
    "Frame",
    "FrameError",
    "FrameSplitter",
    "LeakCheck",
    "NodeError",
    "NodeView",
    "Promotion",
    "Proxy",
    "ProxyCounts",
    "SentinelNode",
    "ServerNode",
    "ServerTls",
    "ServerVersion",
    "SlotMigration",
    "StaleRead",
    "StalenessChecker",
    "StalenessEvent",
    "StalenessLog",
    "StalenessReport",
    "VirtualClock",
    "isolated",
    "no_leaks",
    "read_log",
    "slot_of",
    "virtual_clock",
]
