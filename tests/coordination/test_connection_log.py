"""What the log says of the connection to Redis."""

import logging
import ssl
from pathlib import Path

import pytest
import redis
import trustme

from magnus_cache import CacheManager
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import Proxy
from tests.support.programs import run_python
from tests.support.wait import wait_until


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records if record.name == "magnus_cache"]


def test_the_first_connection_is_told_once(server: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "magnus_cache"), CacheManager(redis_url=server.url) as cache:
        cache.get("t", "k")
        with redis.Redis(port=server.port, protocol=2) as raw:
            raw.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: cache.set("t", "k", 1) and cache.redis_available)
    assert lines(caplog) == [(logging.INFO, f"connected to Redis at {server.url}")]


def test_a_new_reason_is_told_and_the_end_is_as_loud_as_the_beginning(
    private_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    with CacheManager(redis_url=private_server.url) as cache:
        cache.get("t", "k")
        private_server.kill()
        wait_until(lambda: cache.get("t", "other") is None and not cache.redis_available)
        private_server._options["requirepass"] = "new"
        private_server.restart()
        wait_until(lambda: "auth" in cache.get_stats()["errors"])
        wait_until(lambda: any("user and password" in line for _, line in lines(caplog)))
        with redis.Redis(port=private_server.port, protocol=2, password="new") as raw:
            raw.config_set("requirepass", "")
        wait_until(lambda: cache.redis_available, 10)
    levels, told = zip(*lines(caplog), strict=True)
    assert set(levels) == {logging.WARNING}
    away, *changed, back = told
    assert "nothing listens there" in away or "was lost" in away
    assert any("refused the user or password" in line for line in changed)
    assert "is back after" in back


def test_another_remedy_for_the_same_reason_is_told(
    server: EmbeddedServer, authority: trustme.CA, authority_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever follows the first and makes the cache anew, in a minute or not, needs the second."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("example.org").configure_cert(context)
    with Proxy(server.port, context) as proxy:
        for file in (None, None, str(authority_file)):
            url = f"rediss://127.0.0.1:{proxy.port}/0"
            with CacheManager(redis_url=url, redis_ssl_ca_certs=file) as cache:
                cache.get("t", "k")
    told = [line for _, line in lines(caplog)]
    assert len(told) == 2
    assert "is not trusted" in told[0]
    assert "is not for '127.0.0.1'" in told[1]


def test_a_bare_log_says_who_speaks() -> None:
    """Where logging is not set up, Python prints the message alone."""
    program = "from magnus_cache import CacheManager; CacheManager(redis_url='redis://127.0.0.1:1/0').get('t', 'k')"
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("magnus_cache: Redis at redis://127.0.0.1:1/0: nothing listens there")
    assert len(done.stderr.splitlines()) == 1
