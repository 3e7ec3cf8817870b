"""The users of the pages, with no more rights than the pages say, on real servers."""

import re
from collections.abc import Iterable
from typing import Final

from magnus_cache.testing import ServerNode
from tests.support.documents import PAGES

__all__ = ["CLUSTER_LINE", "LINE", "SENTINEL_LINE", "USER", "apply", "rights_in"]

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


def rights_in(line: str) -> list[str]:
    """Return the commands that a line grants."""
    return [word.removeprefix("+") for word in line.split() if word.startswith("+")]


def apply(nodes: Iterable[ServerNode], *lines: str) -> None:
    """Let servers have the users of these lines, and no rights of theirs from before."""
    for node in nodes:
        _, _, user, *_ = lines[0].split()
        node.ask("ACL", "SETUSER", user, "reset")
        for line in lines:
            node.ask(*line.split())
