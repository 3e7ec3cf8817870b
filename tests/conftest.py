"""Fixtures of all tests: real servers, a proxy in front of them, and the check that nothing is left over."""

import gc
import os
import signal
import ssl
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
import redis
import trustme
from hypothesis import HealthCheck, settings

from magnus_cache._engine.api.process_wide import PROCESS, Isolation
from magnus_cache._engine.runtime.clock import monotonic, switch_process_clock
from magnus_cache.embedded import EmbeddedServer, ServerNotFoundError, find_redis, find_valkey
from magnus_cache.testing import EmbeddedCluster, EmbeddedSentinels, Proxy, ServerTls
from tests.support import leaks
from tests.support.effort import ALL, examples
from tests.support.fleet import Fleet, Worker
from tests.support.inside import forget_log_lines
from tests.support.wait import wait_until

# A shell has what it runs in the background ignore Ctrl-C, and so would the tests of what it does, and their processes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# How long an example takes says nothing here: other tests and programs share the machine.
settings.register_profile(
    "untimed", max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")


_ONLY: Final = os.environ.get("MAGNUS_TESTS_SERVER")
"""The path of the one server program of this run, such as an older one; `nox -s redis62` sets it."""


def _servers() -> list[str]:
    """Valkey always, and fails loudly if it is missing; a redis-server where there is one, and the report says so."""
    if _ONLY:
        return ["redis"]
    try:
        find_redis()
    except ServerNotFoundError:
        return ["valkey"]
    return ["valkey", "redis"]


SERVERS = _servers()

Group = TypeVar("Group", EmbeddedCluster, EmbeddedSentinels)


_GROUPS: Final = {"shared_cluster", "shared_sentinels", "private_cluster_with", "private_sentinels_with"}
"""The fixtures of tests that run on several servers at a time."""

_KINDS: Final = {"valkey", "redis"}
_LOOPS: Final = {"asyncio", "uvloop"}

_FOR_PEOPLE: Final = (
    "tests/cli/", "tests/dashboard/", "tests/integrations/", "tests/observability/", "tests/project/",
    "tests/testing/test_pytest_plugin.py",
)  # fmt: skip
"""Where the tests of what people touch are: most of them start a program each."""

_ON_THE_ENGINE: Final = (
    "tests/api/test_changes.py", "tests/api/test_keep_warm.py", "tests/api/test_keep_warm_limits.py",
    "tests/api/test_stamps.py",
    "tests/coordination/test_ledger.py", "tests/fleet/test_budgets.py", "tests/fleet/test_changes_machine.py",
    "tests/fleet/test_warm_jobs.py", "tests/loading/test_audits.py", "tests/loading/test_budgets.py",
    "tests/loading/test_costs.py", "tests/loading/test_held_back.py", "tests/loading/test_spending.py",
    "tests/redis/test_buckets.py", "tests/redis/test_changes_faults.py", "tests/simulation/",
    "tests/store/test_calendar_ttls.py",
)  # fmt: skip
"""Where the tests of what is built upon loads and stores are: they wait for timers, and the engine has its own."""


_ABOVE_THE_WIRE: Final = (
    "tests/api/", "tests/codec/", "tests/flights/", "tests/keys/", "tests/loading/", "tests/memory/", "tests/runtime/",
    "tests/settings/",
)  # fmt: skip
"""Where tests say nothing of a kind of server or loop, as those of the wire, epochs, leases, store and outages do."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave further kinds of servers and loops of slow tests to `nox -s cluster`, which sets `MAGNUS_TESTS=all`.

    Tests on a cluster or Sentinel set, those above the wire, and those of tools, pages and what is built on the engine,
    run on Valkey and asyncio here. All others run on each server and each loop; those that have both run on one more
    kind, which is the other loop for half of them, and the other server for half.
    """
    here, elsewhere = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        is_there = item.nodeid.startswith((*_FOR_PEOPLE, *_ON_THE_ENGINE, *_ABOVE_THE_WIRE))
        is_slow = is_there or bool(_GROUPS & set(getattr(item, "fixturenames", ())))
        kinds = set(item.name.partition("[")[2].rstrip("]").split("-"))
        on_other_server, on_uvloop = "redis" in kinds and "valkey" not in kinds, "uvloop" in kinds
        further = (on_other_server, on_uvloop)
        if is_slow:
            left = any(further)
        elif _LOOPS & kinds and _KINDS & kinds:
            left = further[zlib.crc32(item.nodeid.partition("[")[0].encode()) % 2]
        else:
            left = False
        # Of a property, there is more to try.
        if is_slow or left or item.get_closest_marker("hypothesis") is not None:
            item.add_marker("slow")
        (elsewhere if left else here).append(item)
    if elsewhere and not ALL:
        items[:] = here
        config.hook.pytest_deselected(items=elsewhere)


def pytest_report_header() -> str:
    if _ONLY:
        return f"server under test: {_ONLY}"
    return f"servers under test: {', '.join(SERVERS)}" + (
        "" if "redis" in SERVERS else " (no redis-server on the PATH)"
    )


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="session")
def running() -> Iterator[Callable[[str], EmbeddedServer]]:
    started: dict[str, EmbeddedServer] = {}

    def start(kind: str) -> EmbeddedServer:
        if kind not in started:
            started[kind] = EmbeddedServer(binary_of(kind)).start()
        return started[kind]

    yield start
    for server in started.values():
        server.close()


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, running: Callable[[str], EmbeddedServer]) -> EmbeddedServer:
    """A server of each kind, empty."""
    server = running(request.param)
    return emptied(server)


def emptied(server: EmbeddedServer) -> EmbeddedServer:
    """Return the server with no data and no statistics."""
    with redis.Redis(port=server.port) as client:
        client.flushall()
        client.config_resetstat()
    return server


@pytest.fixture
def url(server: EmbeddedServer) -> str:
    return server.url


@pytest.fixture
def raw(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A plain client, to look at what is really in the server."""
    with redis.Redis(port=server.port, protocol=2) as client:
        yield client


@pytest.fixture
def private_server_with() -> Iterator[Callable[..., EmbeddedServer]]:
    """Starts servers with options, which the test may kill."""
    servers: list[EmbeddedServer] = []

    def start(**options: str) -> EmbeddedServer:
        servers.append(EmbeddedServer(binary_of("valkey"), **options).start())
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def private_server(private_server_with: Callable[..., EmbeddedServer]) -> EmbeddedServer:
    return private_server_with()


def binary_of(kind: str) -> Path:
    """Return the server program of a kind in `SERVERS`, or the only one of this run."""
    if _ONLY:
        return Path(_ONLY)
    return find_valkey() if kind == "valkey" else find_redis()


def kind_here(kind: str) -> str:
    """Return the kind of server that a test of this kind runs on: the only one of this run, or the kind itself."""
    return "redis" if _ONLY else kind


@pytest.fixture(scope="session", params=SERVERS)
def shared_cluster(request: pytest.FixtureRequest) -> Iterator[EmbeddedCluster]:
    """A cluster for the whole run. Not started within a test, whose leak check would find the ports that it holds."""
    with EmbeddedCluster(binary=binary_of(request.param)) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: EmbeddedCluster) -> EmbeddedCluster:
    """A cluster of each kind: 3 primaries, 3 replicas; empty, and all nodes run. Roles and slots may have moved."""
    shared_cluster.restore()
    # A replica follows the slots of its primary if they all move, and goes where a replica is missing.
    spare = [node for each in shared_cluster.primaries for node in shared_cluster.replicas_of(each)[1:]]
    for primary in shared_cluster.primaries:
        if spare and not shared_cluster.replicas_of(primary):
            spare.pop().ask("CLUSTER", "REPLICATE", primary.id)
            shared_cluster.settle()
    return shared_cluster


@pytest.fixture
def private_cluster_with() -> Iterator[Callable[..., EmbeddedCluster]]:
    """Starts clusters with options, for one test."""
    yield from _private(EmbeddedCluster)


def _private(group_of: Callable[..., Group]) -> Iterator[Callable[..., Group]]:
    started: list[Group] = []

    def start(*numbers: int, kind: str = "valkey", **options: Any) -> Group:
        started.append(group_of(*numbers, binary=binary_of(kind), **options))
        return started[-1].start()

    yield start
    for group in started:
        group.close()


@pytest.fixture(scope="session", params=SERVERS)
def shared_sentinels(request: pytest.FixtureRequest) -> Iterator[EmbeddedSentinels]:
    """A Sentinel set for the whole run, not started within a test either."""
    with EmbeddedSentinels(binary=binary_of(request.param)) as sentinels:
        yield sentinels


@pytest.fixture
def sentinels(shared_sentinels: EmbeddedSentinels) -> EmbeddedSentinels:
    """A set of each kind: a primary, 2 replicas, 3 sentinels; empty, and all of them run. Roles may have changed."""
    shared_sentinels.restore()
    return shared_sentinels


@pytest.fixture
def private_sentinels_with() -> Iterator[Callable[..., EmbeddedSentinels]]:
    """Starts Sentinel sets with options, for one test."""
    yield from _private(EmbeddedSentinels)


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> ServerTls:
    """Files for servers that speak TLS. The certificate is valid for 127.0.0.1 and localhost, for clients too."""
    folder = tmp_path_factory.mktemp("tls")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    return ServerTls(folder / "authority.pem", folder / "certificate.pem", folder / "key.pem")


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        yield fleet
    finally:
        fleet.end()


@pytest.fixture
def hire(processes: Fleet) -> Iterator[Callable[..., list[Worker]]]:
    """Hires processes for one test."""
    try:
        yield processes.hire
    finally:
        processes.dismiss()


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_proxy(server: EmbeddedServer, authority: trustme.CA) -> Iterator[Proxy]:
    """The server behind TLS, with a certificate for 127.0.0.1 and localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    with Proxy(server.port, context) as proxy:
        yield proxy


@pytest.fixture
def authority_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the developer's machine reaches a test, from the environment or from a `.env` file."""
    for name in list(os.environ):
        if name.startswith(("REDIS_", "MAGNUS_CACHE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a module with `TRACKING` in each way of tracking that it names."""
    ways: tuple[str, ...] = getattr(metafunc.module, "TRACKING", ())
    if marker := metafunc.definition.get_closest_marker("tracking"):
        ways = marker.args
    if ways:
        metafunc.parametrize("_tracking", ways, indirect=True)


@pytest.fixture(autouse=True)
def _tracking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _clean_environment: None) -> None:
    """How Redis announces changes to the caches of a test that say nothing else."""
    if way := getattr(request, "param", None):
        monkeypatch.setenv("MAGNUS_CACHE_TRACKING", way)


@pytest.fixture(autouse=True)
def _a_log_that_has_said_nothing() -> None:
    """What one test had logged is no reason to hold it back in another."""
    forget_log_lines()


@pytest.fixture(autouse=True, scope="module")
def _what_is_there_stays() -> None:
    """Look for garbage, after each test, among what the tests made: all else would take most of the suite's time.

    What one module has left is looked through once, before the next one, and then stays as well.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_left(running: Callable[[str], EmbeddedServer]) -> Iterator[None]:
    """Fail a test that leaves a thread or a socket behind."""
    threads, sockets = leaks.threads(), leaks.sockets()
    yield
    # No test finds the process-wide cache in use, or set up, by another.
    PROCESS.close()
    PROCESS._places[:] = [Isolation((), {})]
    # A cache that a test module keeps open would hold on to the time that a test let pass.
    switch_process_clock(monotonic)
    gc.collect()
    wait_until(lambda: leaks.threads() <= threads)
    wait_until(lambda: leaks.sockets() <= sockets)
