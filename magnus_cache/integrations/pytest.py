"""Fixtures for pytest, for every project that has magnus_cache installed.

`magnus` gives each test its own process-wide cache. With `magnus_server` it uses an embedded server. With
`magnus_faults` it uses that server through a proxy that can break the connection. With `magnus_clock` the test can let
time pass.

Every pytest run imports this module, so it imports only pytest until a fixture is used.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from magnus_cache import CacheManager
    from magnus_cache.embedded import EmbeddedServer
    from magnus_cache.testing.clock import VirtualClock
    from magnus_cache.testing.proxy import Proxy

__all__ = ["magnus", "magnus_clock", "magnus_faults", "magnus_server", "magnus_settings"]


@pytest.fixture
def magnus_settings() -> dict[str, Any]:
    """The settings of `magnus`, by keyword. Override this fixture in a conftest.py or in a test module."""
    return {}


@pytest.fixture
def magnus(request: pytest.FixtureRequest, magnus_settings: dict[str, Any]) -> "Iterator[CacheManager]":
    """The process-wide cache, for this test alone: empty, with its own prefix and statistics.

    Functions that the application has decorated through `get_cache_manager()` use it. It uses the Redis of
    `magnus_faults` or `magnus_server` if the test has one of them, or else the Redis of the settings.
    """
    from magnus_cache.testing.isolation import isolated

    settings = dict(magnus_settings)
    if "magnus_clock" in request.fixturenames:
        # The clock comes first and so outlives the cache, which would otherwise see time go back.
        request.getfixturevalue("magnus_clock")
    for name in ("magnus_faults", "magnus_server"):
        if name in request.fixturenames:
            settings.setdefault("redis_url", request.getfixturevalue(name).url)
    with isolated(**settings) as cache:
        yield cache


class _Servers:
    """The embedded server of this test process, started at its first use."""

    def __init__(self) -> None:
        self._server: EmbeddedServer | None = None

    def get(self) -> "EmbeddedServer":
        from magnus_cache.embedded import EmbeddedServer

        if self._server is None or not self._server.directory.is_dir():
            # A test has closed the server for good.
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
    """An empty embedded server, which the test may stop, kill and pause. It needs the extra ``embedded``."""
    from redis import Redis

    server = _magnus_servers.get()
    with Redis(port=server.port) as client:
        client.flushall()
    yield server
    if server.running:
        server.resume()


@pytest.fixture
def magnus_faults(magnus_server: "EmbeddedServer") -> "Iterator[Proxy]":
    """A proxy in front of `magnus_server`: the test makes it refuse, delay, freeze or cut connections."""
    from magnus_cache.testing.proxy import Proxy

    with Proxy(magnus_server.port) as proxy:
        yield proxy


@pytest.fixture
def magnus_clock() -> "Iterator[VirtualClock]":
    """A clock that the test advances, for all caches of the process, in all threads."""
    from magnus_cache.testing.clock import virtual_clock

    with virtual_clock() as clock:
        yield clock
