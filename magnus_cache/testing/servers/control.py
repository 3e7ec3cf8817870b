"""Commands for one server over its own Unix socket.

The socket is open whatever the test has done to the network: TLS, proxies, partitions and delays do not reach it. Each
call opens a connection and closes it, so that nothing stays open between the steps of a test.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import hiredis

from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache.errors import CacheError

__all__ = ["Command", "NodeError", "ask_all", "wait_for"]

Command: TypeAlias = Sequence[str | int]
"""A command and its arguments."""

_STEP: Final = 0.01
_CHUNK: Final = 1 << 16


class NodeError(CacheError, RuntimeError):
    """A server refused a command, did not answer, or did not reach the wanted state in time. The message says which."""


def ask_all(path: Path, commands: Sequence[Command], password: str | None = None, timeout: float = 5.0) -> list[Any]:
    """Return the replies to commands that are sent at once, as texts, numbers and lists.

    Bytes that are no UTF-8 are kept as surrogates. The answer to a command that failed is a `hiredis.ReplyError`.

    :raises OSError: if the server does not run, or does not answer within `timeout` seconds.
    """
    login: list[Command] = [] if password is None else [("AUTH", password)]
    sent = [*login, *commands]
    reader = hiredis.Reader(encoding="utf-8", errors="surrogateescape", notEnoughData=...)
    replies: list[Any] = []
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(timeout)
        peer.connect(str(path))
        peer.sendall(b"".join(_packed(command) for command in sent))
        while len(replies) < len(sent):
            data = peer.recv(_CHUNK)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            reader.feed(data)
            while (reply := reader.gets()) is not ...:
                replies.append(reply)
    return replies[len(login) :]


def _packed(command: Command) -> bytes:
    # Its stub knows commands of one word only.
    parts: Any = tuple(command)
    packed: bytes = hiredis.pack_command(parts)
    return packed


def wait_for(condition: Callable[[], object], patience: float, problem: Callable[[], str]) -> None:
    """Return once the condition holds. Servers that do not answer meanwhile count as not there yet.

    :raises NodeError: with the problem, if the condition does not hold within `patience` seconds.
    """
    deadline = monotonic() + patience
    while True:
        with contextlib.suppress(NodeError):
            if condition():
                return
        if monotonic() > deadline:
            raise NodeError(f"{problem()} (waited {patience:g} s)")
        time.sleep(_STEP)
