"""The environment of the application: its sources, its Redis, and a manager for each simulated process."""

import socket
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from magnus_cache import AsyncCacheManager, CacheManager, CacheSettings
from magnus_cache.demo.apps import App, plain_app
from magnus_cache.demo.call_counter import CallCounter
from magnus_cache.demo.console import Console
from magnus_cache.demo.database import Database
from magnus_cache.demo.service import RATE_LIMIT, RATE_WINDOW, ApiClient, Service
from magnus_cache.demo.workloads import WORKLOADS, Callers
from magnus_cache.embedded import EmbeddedServer, ServerNotFoundError, find_redis, find_valkey

__all__ = ["Context", "Environment", "open_environment"]


@dataclass(frozen=True, slots=True)
class Environment:
    """The running sources and the running Redis.

    :ivar plain: the application without a cache.
    :ivar unlimited: a second client of the service, which sends as many calls as it is asked for.
    :ivar calls: the calls that reached a source, by workload.
    :ivar server: the Redis, or None when the demo runs on the memory fallback.
    """

    plain: App
    unlimited: ApiClient
    calls: CallCounter
    directory: Path
    server: EmbeddedServer | None
    redis_url: str

    def manager(self) -> AsyncCacheManager:
        """Return a new cache, as another process of the application would have; `sync` is its blocking manager.

        All settings but the URL of Redis are the defaults: the demo ignores the user's environment.
        """
        fields = CacheSettings.model_fields.items()
        defaults = {name: field.default for name, field in fields if not name.startswith("redis_")}
        return CacheManager(redis_url=self.redis_url, redis_enabled=True, **defaults).aio


@dataclass(frozen=True, slots=True)
class Context:
    """The environment, the cache, its blocking and async callers, and the console, for every step of the demo.

    :ivar cache: the async manager; `cache.sync` is the blocking manager of the same cache.
    """

    environment: Environment
    cache: AsyncCacheManager
    callers: tuple[Callers, Callers]
    console: Console


@contextmanager
def open_environment(console: Console, *, speed: float, with_server: bool) -> Generator[Environment, None, None]:
    """Start the sources and the Redis, and remove all of them at the end.

    :param speed: how many times faster than in the guide the sources are.
    """
    latencies = {workload.name: workload.seconds / speed for workload in WORKLOADS}
    calls = CallCounter()
    with ExitStack() as stack:
        server = _server(console, wanted=with_server)
        redis_url = stack.enter_context(server).url if server else stack.enter_context(_refusing_address())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="magnus-cache-demo-")))
        service = stack.enter_context(Service(latencies, calls))
        database = Database(directory / "demo.sqlite3", latencies, calls)
        limit = f"{RATE_LIMIT} calls in {RATE_WINDOW:g} s"
        console.say(f"HTTP:  an API on this machine that allows each client {limit}; {_took('HTTP', speed)} a call.")
        console.say(f"SQL:   a SQLite file whose queries take {_took('SQL', speed)}, inside the database.")
        yield Environment(
            plain=plain_app(ApiClient(service.url, "demo-app"), database),
            unlimited=ApiClient(service.url, "unlimited-app"),
            calls=calls,
            directory=directory,
            server=server,
            redis_url=redis_url,
        )


def _server(console: Console, *, wanted: bool) -> EmbeddedServer | None:
    """Return a server to start, or None, and print which.

    The embedded Valkey is preferred to a `redis-server` on the PATH; the demo runs on both.
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
def _refusing_address() -> Generator[str, None, None]:
    """Return a URL that refuses connections: its port is bound, so that no other program can listen there."""
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{placeholder.getsockname()[1]}/0"


def _took(source: str, speed: float) -> str:
    """Return the latencies of one kind of source as text, such as ``0.8, 1.2 and 3 s``."""
    times = sorted(workload.seconds / speed for workload in WORKLOADS if workload.source == source)
    unit, factor = ("s", 1) if speed == 1 else ("ms", 1000)
    *most, last = (f"{seconds * factor:.3g}" for seconds in times)
    return f"{', '.join(most)} and {last} {unit}"
