"""Where the demo's Redis comes from, or what stands in its place when there is none."""

import socket
from collections.abc import Generator
from contextlib import contextmanager

from magnus_cache.demo.console import Console
from magnus_cache.embedded import EmbeddedServer, ServerNotFoundError, find_redis, find_valkey

__all__ = ["nobody_there", "start_server"]


def start_server(console: Console, *, wanted: bool) -> EmbeddedServer | None:
    """Return a server that is about to start, or None, and say which.

    The embedded Valkey is preferred to a `redis-server` on the PATH; both serve the demo.
    """
    if not wanted:
        console.say("Redis: none, as --no-server asks; everything runs on the memory fallback.")
        return None
    try:
        binary = find_valkey()
    except ServerNotFoundError as missing:
        try:
            binary = find_redis()
        except ServerNotFoundError:
            console.say(f"Redis: none, so everything runs on the memory fallback. To see more: {missing}.")
            return None
        console.say(f"Redis: {binary} in place of the embedded Valkey ({missing}).")
    else:
        console.say("Redis: the embedded Valkey, a real server in a process of its own.")
    return EmbeddedServer(binary)


@contextmanager
def nobody_there() -> Generator[str, None, None]:
    """Return the URL of a Redis that refuses connections: its port is taken, and nobody listens on it."""
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{placeholder.getsockname()[1]}/0"
