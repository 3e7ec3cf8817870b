"""Fixtures for pytest, there for every project that has magnus_cache installed.

`magnus` gives each test a process-wide cache of its own. With `magnus_server` it uses an embedded server, with
`magnus_faults` that one through a proxy that can break the connection, with `magnus_clock` time can be advanced.

Every pytest run imports this module, so it imports nothing but pytest until a fixture is used.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from magnus_cache._engine.api.managers import CacheManager
    from magnus_cache.embedded import EmbeddedServer
    from magnus_cache.testing.clock import VirtualClock
    from magnus_cache.testing.proxy import Proxy

__all__ = ["magnus", "magnus_clock", "magnus_faults", "magnus_server", "magnus_settings"]


@pytest.fixture
def magnus_settings() -> dict[str, Any]:
    """Settings of the cache that `magnus` gives, by keyword. Override it in a conftest.py or in a test module."""
    return {}


@pytest.fixture
def magnus(request: pytest.FixtureRequest, magnus_settings: dict[str, Any]) -> "Iterator[CacheManager]":
    """The process-wide cache, for this test alone: empty, with a prefix and statistics of its own.

    Functions that the application has decorated through `get_cache_manager()` follow it. It uses the Redis of
    `magnus_faults` or `magnus_server` if the test has them too, else the one that the settings name.
    """
    from magnus_cache.testing.isolation import isolated

    settings = dict(magnus_settings)
    if "magnus_clock" in request.fixturenames:
        # It outlives the cache, which would see time go back otherwise.
        request.getfixturevalue("magnus_clock")
    for name in ("magnus_faults", "magnus_server"):
        if name in request.fixturenames:
            settings.setdefault("redis_url", request.getfixturevalue(name).url)
    with isolated(**settings) as cache:
        yield cache


class _Servers:
    """The embedded server of this test process, started when it is first wanted."""

    def __init__(self) -> None:
        self._server: EmbeddedServer | None = None

    def get(self) -> "EmbeddedServer":
        from magnus_cache.embedded import EmbeddedServer

        if self._server is None or not self._server.directory.is_dir():
            # A test has closed it for good.
            self._server = EmbeddedServer()
        return self._server.start()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


@pytest.fixture(scope="session")
def _magnus_servers() -> Iterator[_Servers]:
    servers = _Servers()
    yield servers
    servers.close()


@pytest.fixture
def magnus_server(_magnus_servers: _Servers) -> "Iterator[EmbeddedServer]":
    """An embedded server, empty, which the test may stop, kill and pause. It needs the extra ``embedded``."""
    from redis import Redis

    server = _magnus_servers.get()
    with Redis(port=server.port) as client:
        client.flushall()
    yield server
    if server.running:
        server.resume()


@pytest.fixture
def magnus_faults(magnus_server: "EmbeddedServer") -> "Iterator[Proxy]":
    """A proxy in front of `magnus_server`: it refuses, delays, freezes or cuts connections when the test says so."""
    from magnus_cache.testing.proxy import Proxy

    with Proxy(magnus_server.port) as proxy:
        yield proxy


@pytest.fixture
def magnus_clock() -> "Iterator[VirtualClock]":
    """A clock that the test advances, for all caches of the process, in all threads."""
    from magnus_cache.testing.clock import virtual_clock

    with virtual_clock() as clock:
        yield clock
