"""The users of the pages, with no more rights than the pages say, on real servers."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from magnus_cache.testing import ServerNode, ServerVersion
from tests.support.documents import PAGES

__all__ = [
    "CLUSTER_LINE",
    "LINE",
    "SENTINEL_LINE",
    "UNTRACKED",
    "USER",
    "apply",
    "before_7",
    "debugging",
    "rights_in",
    "suited",
]

_TEXT: Final = PAGES["deployment"].text


def _line(pattern: str) -> str:
    (line,) = re.findall(rf"^{pattern}.*$", _TEXT, re.MULTILINE)
    return str(line)


LINE: Final = _line(r"ACL SETUSER app on ")
"""For a single server, and for those that Sentinel watches."""

CLUSTER_LINE: Final = _line(r"ACL SETUSER app \+cluster")
"""What a Redis Cluster needs besides."""

SENTINEL_LINE: Final = _line(r"ACL SETUSER watch ")
"""For the sentinels themselves."""

USER: Final = "app:password"

UNTRACKED: Final = ("+@all", "-client", "+client|id", "+client|kill")
"""All rights but CLIENT TRACKING. `-client|tracking` would be shorter, but needs Redis 7.0."""


def rights_in(line: str) -> list[str]:
    """Return the commands that a line grants."""
    return [word.removeprefix("+") for word in line.split() if word.startswith("+")]


def suited(line: str, version: ServerVersion) -> str:
    """Return a line as the page says that it is for a version of servers."""
    return line.replace("+cluster|shards", "+cluster|slots") if before_7(version) else line


def before_7(version: ServerVersion) -> bool:
    """Return whether a server is older than Redis 7.0: it has no CLUSTER SHARDS, and ACLs know commands as a whole."""
    return version.kind == "redis" and version.number < (7, 0, 0)


def debugging(binary: Path) -> dict[str, str]:
    """Return the options with which a server takes DEBUG; before Redis 7.0, all do."""
    return {} if before_7(ServerVersion.of(binary)) else {"enable-debug-command": "yes"}


def apply(nodes: Iterable[ServerNode], *lines: str) -> None:
    """Let servers have the users of these lines, and no rights of theirs from before."""
    for node in nodes:
        _, _, user, *_ = lines[0].split()
        node.ask("ACL", "SETUSER", user, "reset")
        for line in lines:
            node.ask(*suited(line, node.version).split())
