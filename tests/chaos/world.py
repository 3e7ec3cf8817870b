"""What a fault strikes: a server of its own, a proxy before it, and two processes' worth of caches."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from magnus_cache import AsyncCacheManager
from magnus_cache.embedded import EmbeddedServer, find_redis, find_valkey
from magnus_cache.testing import Proxy
from tests.chaos.ledger import Cache, Ledger

__all__ = ["OP_TIMEOUT", "STALENESS", "World", "world"]

OP_TIMEOUT = 0.3
STALENESS = 0.5
SLACK = 0.3
"""Seconds by which two hundred callers on two cores may be late in noting when something was."""

SECRET = "swordfish"


@dataclass
class World:
    """Everything a fault needs.

    :ivar spare: a second server, for faults that change servers.
    """

    server: EmbeddedServer
    spare: EmbeddedServer
    proxy: Proxy
    managers: list[AsyncCacheManager]
    caches: list[Cache]
    ledger: Ledger

    def admin(self, server: EmbeddedServer | None = None) -> "redis.Redis":
        """Return a client of the server itself, past the proxy. It does not try again."""
        port = (server or self.server).port
        return redis.Redis(port=port, protocol=2, password=SECRET, retry=Retry(NoBackoff(), 0), socket_timeout=10)


@contextlib.contextmanager
def world(kind: str = "valkey") -> Iterator[World]:
    """Start it all; the caches are left to be closed by whoever uses them."""
    binary = find_redis() if kind == "redis" else find_valkey()
    options: dict[str, str] = {
        "enable-debug-command": "yes", "requirepass": SECRET, "masterauth": SECRET, "repl-diskless-sync-delay": "0",
    }  # fmt: skip
    with EmbeddedServer(binary, **options) as server, EmbeddedServer(binary, **options) as spare:
        with Proxy(server.port) as proxy, tempfile.TemporaryDirectory() as folder:
            url = f"redis://:{SECRET}@127.0.0.1:{proxy.port}/0"
            made: dict[str, Any] = {
                "redis_url": url,
                "op_timeout": OP_TIMEOUT,
                "max_staleness": STALENESS,
                "lease": 2.0,
                "recovery_path": Path(folder) / "recovery.db",
            }
            managers = [AsyncCacheManager(**made) for _ in range(2)]
            caches = [Cache(number, manager._engine.state) for number, manager in enumerate(managers)]
            yield World(server, spare, proxy, managers, caches, Ledger(STALENESS + SLACK))
