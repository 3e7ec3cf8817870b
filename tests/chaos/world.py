"""What a fault strikes: a server of its own, a proxy before it, and two processes' worth of caches."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from magnus_cache import AsyncCacheManager
from magnus_cache.embedded import EmbeddedServer, find_redis, find_valkey
from magnus_cache.testing import EmbeddedCluster, EmbeddedSentinels, Proxy
from tests.chaos.ledger import Cache, Ledger
from tests.support.groups import url_of

__all__ = ["OP_TIMEOUT", "STALENESS", "GroupWorld", "Scene", "World", "group_world", "world"]

OP_TIMEOUT = 0.3
STALENESS = 0.5
SLACK = 0.3
"""Seconds by which two hundred callers on two cores may be late in noting when something was."""

SECRET = "swordfish"


@dataclass
class Scene:
    """Two processes' worth of caches, and their judge."""

    managers: list[AsyncCacheManager]
    caches: list[Cache]
    ledger: Ledger


@dataclass
class GroupWorld(Scene):
    """Everything a fault of a cluster or of a Sentinel set needs."""

    group: EmbeddedCluster | EmbeddedSentinels

    @property
    def cluster(self) -> EmbeddedCluster:
        assert isinstance(self.group, EmbeddedCluster)
        return self.group

    @property
    def sentinels(self) -> EmbeddedSentinels:
        assert isinstance(self.group, EmbeddedSentinels)
        return self.group


@dataclass
class World(Scene):
    """Everything a fault of one server needs.

    :ivar spare: a second server, for faults that change servers.
    """

    server: EmbeddedServer
    spare: EmbeddedServer
    proxy: Proxy

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
            yield World(managers, caches, Ledger(STALENESS + SLACK), server, spare, proxy)


@contextlib.contextmanager
def group_world(of: Literal["cluster", "sentinel"], kind: str = "valkey") -> Iterator[GroupWorld]:
    """Start a cluster or a Sentinel set; the caches are left to be closed by their users."""
    binary = find_redis() if kind == "redis" else find_valkey()
    group: EmbeddedCluster | EmbeddedSentinels
    if of == "cluster":
        group = EmbeddedCluster(binary=binary, node_timeout=1.0, links=True)
    else:
        group = EmbeddedSentinels(binary=binary, links=True)
    with group, tempfile.TemporaryDirectory() as folder:
        made: dict[str, Any] = {
            "redis_url": url_of(group), "op_timeout": OP_TIMEOUT, "max_staleness": STALENESS, "lease": 2.0,
            "recovery_path": Path(folder) / "recovery.db",
        }  # fmt: skip
        managers = [AsyncCacheManager(**made) for _ in range(2)]
        caches = [Cache(number, manager._engine.state) for number, manager in enumerate(managers)]
        yield GroupWorld(managers, caches, Ledger(STALENESS + SLACK, strict=True), group)
