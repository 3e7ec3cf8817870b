"""Tools to test what stands on a cache: a proxy that breaks connections, a clock to advance, judges of what is left.

They need a real server, such as `magnus_cache.embedded.EmbeddedServer`, and no test framework.
"""

from magnus_cache.testing.clock import VirtualClock, virtual_clock
from magnus_cache.testing.frames import Frame, FrameError, FrameSplitter
from magnus_cache.testing.leaks import LeakCheck, no_leaks
from magnus_cache.testing.proxy import Direction, Proxy, ProxyCounts
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
    "Frame",
    "FrameError",
    "FrameSplitter",
    "LeakCheck",
    "Proxy",
    "ProxyCounts",
    "StaleRead",
    "StalenessChecker",
    "StalenessEvent",
    "StalenessLog",
    "StalenessReport",
    "VirtualClock",
    "no_leaks",
    "read_log",
    "virtual_clock",
]
