"""Which server program runs, its version, and the files that it needs for TLS."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from magnus_cache.embedded import _any_server, find_redis

__all__ = ["ServerTls", "ServerVersion", "choose_program", "no_tls"]


class ServerVersion(NamedTuple):
    """The kind of a server and its version, such as ``ServerVersion("valkey", (9, 1, 2))``.

    :ivar kind: ``"valkey"`` or ``"redis"``.
    :ivar number: major, minor and patch.
    """

    kind: str
    number: tuple[int, int, int]

    @classmethod
    def of(cls, binary: Path) -> "ServerVersion":
        """Return the version of a program.

        :raises ValueError: if the program is neither a Redis nor a Valkey server.
        """
        command = [str(binary), "--version"]
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout
        found = re.match(r"(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)", said)
        if found is None:
            raise ValueError(f"{binary} is neither a Redis nor a Valkey server; it says: {said[:100]!r}")
        kind, major, minor, patch = found.groups()
        return cls(kind.lower(), (int(major), int(minor), int(patch)))

    @property
    def migrates_atomically(self) -> bool:
        """Whether the server has ``CLUSTER MIGRATESLOTS``."""
        return self.kind == "valkey" and self.number >= (9, 0, 0)

    def __str__(self) -> str:
        return f"{self.kind} {'.'.join(map(str, self.number))}"


@dataclass(frozen=True)
class ServerTls:
    """The files with which servers speak TLS, to clients and to each other. All are in PEM format.

    :ivar authority: certificates that sign the certificates of servers and clients.
    :ivar certificate: of the servers. It must be valid for ``127.0.0.1``.
    :ivar key: the private key of the certificate.
    :ivar verify_clients: whether clients need a certificate too.
    """

    authority: Path
    certificate: Path
    key: Path
    verify_clients: bool = True

    def options(self, port: int) -> dict[str, str]:
        """Return the server options: TLS at this port, and no port without it."""
        return {
            "port": "0", "tls-port": str(port), "tls-ca-cert-file": str(self.authority),
            "tls-cert-file": str(self.certificate), "tls-key-file": str(self.key),
            "tls-auth-clients": "yes" if self.verify_clients else "no", "tls-replication": "yes", "tls-cluster": "yes",
        }  # fmt: skip


def choose_program(binary: Path | None, tls: ServerTls | None) -> Path:
    """Return the server to run: the given one; else the embedded Valkey, which has no TLS; else one on the PATH.

    Without any, the error of `find_redis` or `find_valkey` says how to install one.
    """
    if binary is not None:
        return binary
    return find_redis() if tls is not None else _any_server()


def no_tls(binary: Path) -> str:
    """Return what is wrong with a server that has no TLS, and the remedy."""
    return f"{binary} was built without TLS; use one that has it, such as binary=find_redis()"
