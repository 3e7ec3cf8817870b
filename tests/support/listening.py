"""A socket that a program under test takes over, so that no other program takes its port."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

__all__ = ["Listener", "listening"]


class Listener(NamedTuple):
    number: int
    """Of the file, to be passed on."""
    port: int


@contextmanager
def listening() -> Iterator[Listener]:
    """Give a socket that listens on a free port of the loopback interface, and that a program may inherit."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        listener.set_inheritable(True)
        yield Listener(listener.fileno(), listener.getsockname()[1])
