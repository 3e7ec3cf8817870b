"""Which server a program is, and its version."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

__all__ = ["ServerVersion"]


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
