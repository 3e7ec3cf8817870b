"""One server of a cluster or of a Sentinel set: a process with a place, a configuration file, and commands for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import hiredis

from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing.servers.control import Command, NodeError, ask_all
from magnus_cache.testing.servers.places import Place
from magnus_cache.testing.servers.programs import ServerTls, ServerVersion

__all__ = ["Plan", "ServerNode", "dashed", "quoted"]

_DEFAULTS: Final = {
    "save": "", "appendonly": "no", "repl-diskless-sync-delay": "0",
    # A node is listed as a replica once others have heard of its offset, which is 0 until the primary sends something.
    "repl-ping-replica-period": "1",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What a server is started with.

    :ivar find_place: returns a place for it.
    :ivar options: server options, by their names as servers write them.
    """

    binary: Path
    version: ServerVersion
    find_place: Callable[[], Place]
    tls: ServerTls | None = None
    options: dict[str, str] = field(default_factory=dict[str, str])


class ServerNode(EmbeddedServer):
    """One server process. The cluster or the Sentinel set that it belongs to makes it.

    All that an `EmbeddedServer` can do works: `kill`, `restart`, `pause`, `resume`, `stop`. It keeps its port and its
    identity.

    :ivar version: the kind and the version of the server.
    :ivar port: the port at which clients and other servers reach it.
    :ivar paused: whether `pause` froze it.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.binary)
        self.version = plan.version
        self.paused = False
        self._plan = plan
        self._place: Place | None = None
        self._id = ""
        self._password = plan.options.get("requirepass")

    @property
    def host(self) -> str:
        """The address at which clients and other servers reach it."""
        return self.place.host

    @property
    def address(self) -> str:
        """The host and the port, such as ``"127.0.0.1:10240"``."""
        return self.place.address

    @property
    def url(self) -> str:
        """The URL of this server alone: ``redis://127.0.0.1:<port>/0``, or ``rediss://`` with TLS."""
        return f"{'redis' if self._plan.tls is None else 'rediss'}://{self.address}/0"

    @property
    def place(self) -> Place:
        """Where the server listens.

        :raises NodeError: before the first start.
        """
        if self._place is None:
            raise NodeError("this node has no address yet: start it first")
        return self._place

    @property
    def id(self) -> str:
        """The identity of a node of a cluster: 40 hexadecimal digits that survive a restart."""
        if not self._id:
            self._id = self.ask("CLUSTER", "MYID")
        return self._id

    @property
    def answers(self) -> bool:
        """Whether it is expected to answer: it runs and is not paused."""
        return self.running and not self.paused

    @property
    def password(self) -> str | None:
        """The password that the server requires (its option ``requirepass``)."""
        return self._password

    # -- commands -------------------------------------------------------------------------------------------

    def ask(self, *command: str | int) -> Any:
        """Send a command to this very server, whatever has been done to its network, and return the reply.

        Texts come as `str`, lists as `list`.

        :raises NodeError: for an error reply, and if the server does not answer; the message names both.
        """
        return self.ask_all([command])[0]

    def ask_all(self, commands: list[Command]) -> list[Any]:
        """Send many commands at once and return the replies.

        :raises NodeError: for the first error reply, and if the server does not answer.
        """
        replies = self.try_all(commands)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, hiredis.ReplyError):
                raise NodeError(f"{self} refused {_shown(command)}: {reply}")
        return replies

    def try_all(self, commands: list[Command]) -> list[Any]:
        """Send many commands at once and return the replies, errors included.

        :raises NodeError: if the server does not answer.
        """
        if self.paused:
            raise NodeError(f"{self} is paused and answers nothing; resume it first")
        try:
            return ask_all(Path(self._socket), commands, self.password)
        except OSError as error:
            state = "runs but does not answer" if self.running else "does not run; restart it first"
            raise NodeError(f"{self} {state}, so it was not told {_shown(commands[0])}: {error}") from error

    def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO, such as ``"replication"``.

        :raises NodeError: if the server does not answer.
        """
        lines = str(self.ask("INFO", section)).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def configure(self, **options: str) -> None:
        """Change options of the running server, for example ``configure(maxmemory="10mb")``. A restart keeps them.

        :raises NodeError: if the server refuses one.
        """
        for name, value in options.items():
            self.ask("CONFIG", "SET", dashed(name), value)
            if dashed(name) == "requirepass":
                self._password = value
        self.ask("CONFIG", "REWRITE")

    # -- life -----------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): it keeps its connections and answers nothing.

        :raises NodeError: if it does not run.
        """
        self._must_run("pause")
        super().pause()
        self.paused = True

    def resume(self) -> None:
        """Let the server continue after `pause` (SIGCONT).

        :raises NodeError: if it does not run.
        """
        self._must_run("resume")
        super().resume()
        self.paused = False

    def _must_run(self, action: str) -> None:
        if not self.running:
            raise NodeError(f"{self} does not run, so there is nothing to {action}; restart it first")

    def start(self) -> Self:
        """Start the server and wait until it answers. A restarted server keeps its port; a running one is left alone.

        :raises RuntimeError: if the server does not start, with the last lines of its log.
        """
        if not self.running:
            self.paused = False
        return super().start()

    def close(self) -> None:
        """Stop the server, remove its data and free its ports. Idempotent."""
        # Nothing in it is wanted any more, and in order it would wait for its replicas.
        self.kill()
        super().close()
        if self._place is not None:
            self._place.release()

    def _new_port(self) -> int:
        if self._place is not None:
            self._place.release()
        self._place = self._plan.find_place()
        self._write(self._lines(self._place))
        return self._place.port

    def _lines(self, place: Place) -> dict[str, str]:
        """Return the options for the configuration file."""
        return {**_DEFAULTS, **self._own_lines(place), **self._announced(place), **self._plan.options}

    def _own_lines(self, place: Place) -> dict[str, str]:
        """Return the options that say where the server has its files, and where it listens."""
        own = {"dir": str(self.directory), "unixsocket": self._socket, "protected-mode": "no"}
        listens = {"port": str(place.listens)} if self._plan.tls is None else self._plan.tls.options(place.listens)
        return {**own, **listens, **place.options}

    def _announced(self, place: Place) -> dict[str, str]:
        """Return the options by which others learn where the server is reached."""
        if not place.announced:
            return {}
        name = "cluster-announce-port" if self._plan.tls is None else "cluster-announce-tls-port"
        return {
            "cluster-announce-ip": place.host, name: str(place.port), "cluster-announce-bus-port": str(place.bus_port),
            "replica-announce-ip": place.host, "replica-announce-port": str(place.port),
        }  # fmt: skip

    @property
    def _config(self) -> Path:
        return self.directory / "server.conf"

    def _write(self, lines: dict[str, str], more: str = "") -> None:
        """Write the configuration file, which then belongs to the server: Sentinel has changes written to it."""
        text = "".join(f"{name} {quoted(name, value)}\n" for name, value in lines.items())
        self._config.write_text(text + more)

    def _command(self, port: int) -> list[str]:
        return [*self.place.prefix, str(self._binary), str(self._config)]

    def __repr__(self) -> str:
        return f"<{self.version} at {self._place.address if self._place else 'no address yet'}>"


def dashed(name: str) -> str:
    """Return the name of an option as servers write it."""
    return name.replace("_", "-")


def quoted(name: str, value: str) -> str:
    """Return a value as a configuration file has it. Values of several words are for the server to split."""
    if value and name not in {"dir", "unixsocket"} and not name.endswith("-file"):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _shown(command: Command) -> str:
    text = " ".join(map(str, command[:6]))
    return text if len(command) <= 6 else f"{text} ..."
