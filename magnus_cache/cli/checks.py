"""What `doctor` looks at: each check returns what it found, and what to do about it."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

import redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from magnus_cache import CacheManager, Health
from magnus_cache._engine.codec.envelope import read_header
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.keys.globs import ClearScope
from magnus_cache._engine.policy.calendars import CalendarTtl
from magnus_cache._engine.policy.registry import default_registry
from magnus_cache._engine.redis.client import Client
from magnus_cache._engine.redis.deployment import addresses
from magnus_cache._engine.redis.diagnosis import CLUSTER_GRANTS, GRANTS
from magnus_cache._engine.redis.endpoint import Endpoint
from magnus_cache.errors import CacheArgumentError, CacheDecodeError, CacheError

__all__ = ["Finding", "Level", "findings"]

Level = Literal["ok", "advice", "fix"]


class Finding(NamedTuple):
    """What a check found."""

    check: str
    level: Level
    """``"fix"`` for what must be mended."""
    text: str
    remedy: str = ""
    page: str = ""
    """The page of the documentation that explains it."""


_TRIPS: Final = 25
_OLDEST: Final = (6, 0)
_NEWEST_ADVICE: Final = (7, 2)
_BY_KEY: Final = (7, 0)
_SHARDS: Final = 7
"""The first version that knows CLUSTER SHARDS."""

_FULL: Final = 0.9
_SKEW: Final = 5.0
_SAMPLE: Final = 300
_MONTH: Final = 30 * 86_400 * 1_000_000
_KEY: Final = object()
"""Stands for a key of the cache that no value has."""

_ARGUMENTS: Final[dict[str, tuple[Any, ...]]] = {
    "getrange": (_KEY, 0, 0), "set": (_KEY, b"1", "PX", 1_000), "pexpire": (_KEY, 1_000), "expire": (_KEY, 1),
    "hget": (_KEY, "f"), "hmget": (_KEY, "f"), "hset": (_KEY, "f", 1), "hdel": (_KEY, "f"), "hsetnx": (_KEY, "f", 1),
    "hincrby": (_KEY, "f", 0), "zadd": (_KEY, 0, "m"), "zrem": (_KEY, "m"), "zrangebyscore": (_KEY, 0, 0),
    "zremrangebyscore": (_KEY, 0, 0), "scan": (0, "COUNT", 1), "eval": ("return 1", 0), "evalsha": ("0" * 40, 0),
    "info": ("server",), "client|tracking": ("OFF",), "client|kill": ("ID", 1 << 60),
    **dict.fromkeys(("get", "mget", "del", "unlink", "exists", "pttl", "hgetall"), (_KEY,)),
}  # fmt: skip
"""Harmless arguments of the commands that the cache needs, where they need any; on a key that soon expires."""


def findings(cache: CacheManager, health: Health) -> Iterator[Finding]:
    """Yield what each check finds, of the servers and of the settings."""
    state = cache._engine.state
    if not health and not any(health.nodes):
        # It can be asked which grants are missing, and nothing else.
        for server, endpoint in _servers(state, health):
            with server:
                yield from _acl(server, state, f" at {endpoint.host}", health)
        return
    yield Finding("connection", "ok", f"{health.server} {health.version}, {health.mode}")
    for node in health.nodes:
        if not node:
            remedy = "start the node, or let a replica take over"
            yield Finding("connection", "fix", str(node.reason), remedy, "cluster.md")
    yield from _tracking(health, state.settings)
    yield from _version(health)
    for server, endpoint in _servers(state, health):
        with server:
            about = f" at {endpoint.host}:{endpoint.port}" if health.mode == "cluster" else ""
            for name, check in _CHECKS.items():
                try:
                    yield from check(server, state.settings, about)
                except NoPermissionError as error:
                    yield Finding(name, "advice", f"cannot be checked{about}: {error}")
                except RedisError as error:
                    yield Finding(name, "fix", f"{type(error).__name__}{about}: {error}")
            yield from _acl(server, state, about, health)
    yield from _foreign(cache)
    yield from _warm(cache)
    yield from _settings(state.settings)
    yield from _namespaces()


def _servers(state: State, health: Health) -> Iterator[tuple["redis.Redis", Endpoint]]:
    assert state.endpoint is not None
    first, deployment = state.endpoint, state.settings.deployment()
    if health.address is not None:
        host, _, number = health.address.rpartition(":")
        first = deployment.at(host.strip("[]"), int(number))
    places = [node.address for node in health.nodes if node]
    found = [deployment.at(host, port) for host, port in addresses(places, first.port)] if places else [first]
    for endpoint in found:
        yield _client(endpoint), endpoint


def _client(endpoint: Endpoint) -> "redis.Redis":
    login = {
        "username": endpoint.username,
        "password": endpoint.password.get_secret_value() if endpoint.password else None,
        "db": endpoint.db, "socket_timeout": 3, "socket_connect_timeout": 3,
    }  # fmt: skip
    if endpoint.scheme == "unix":
        return redis.Redis(unix_socket_path=endpoint.path, **login)  # type: ignore[arg-type]  # options by name
    tls: dict[str, Any] = {"ssl": True, **endpoint.tls} if endpoint.scheme == "tls" else {}
    return redis.Redis(host=endpoint.host, port=endpoint.port, **login, **tls)  # type: ignore[arg-type]  # as above


def _info(server: "redis.Redis", section: str) -> dict[str, Any]:
    found: Any = server.info(section)
    return dict(found)


def _ask(server: "redis.Redis", *command: Any) -> Any:
    return server.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py leaves it without


# -- the server ---------------------------------------------------------------------------------------------------


def _tracking(health: Health, settings: Any) -> Iterator[Finding]:
    if settings.tracking == "off":
        yield Finding("tracking", "ok", "Redis announces no changes, as tracking (MAGNUS_CACHE_TRACKING) says")
    elif health.tracking:
        yield Finding("tracking", "ok", f"Redis announces changes ({health.tracking_mode})")
    else:
        yield Finding(
            "tracking", "fix", "Redis announces no changes: what another process changes is noticed late",
            "grant the user +client|tracking, or use a server that has it", "deployment.md",
        )  # fmt: skip


def _version(health: Health) -> Iterator[Finding]:
    if health.server != "redis" or health.version is None:
        return
    version = tuple(int(part) for part in health.version.split(".")[:2] if part.isdigit())
    if version < _OLDEST:
        yield Finding(
            "version", "fix", f"Redis {health.version} is too old", "use Redis 6 or newer, or Valkey", "deployment.md"
        )
    elif version < _NEWEST_ADVICE:
        more = ", and 7.0 announces changes by key" if version < _BY_KEY else ""
        yield Finding("version", "ok", f"Redis {health.version}; 7.2 and Valkey do more in one round trip{more}")


def _latency(server: "redis.Redis", settings: Any, about: str) -> Iterator[Finding]:
    # Not PING, which the cache needs no right for.
    server.time()
    took: list[float] = []
    for _ in range(_TRIPS):
        began = time.perf_counter()
        server.time()
        took.append(time.perf_counter() - began)
    median, worst = statistics.median(took), max(took)
    text = f"a round trip takes {median * 1000:.2f} ms, {worst * 1000:.2f} ms at most{about}"
    if worst * 3 > settings.op_timeout:
        yield Finding(
            "latency", "fix", f"{text}; op_timeout is {settings.op_timeout:g} s",
            f"set op_timeout (MAGNUS_CACHE_OP_TIMEOUT) to {max(worst * 10, 0.1):.1f} or more", "outages.md",
        )  # fmt: skip
    else:
        yield Finding("latency", "ok", text)


def _memory(server: "redis.Redis", _: Any, about: str) -> Iterator[Finding]:
    memory = _info(server, "memory")
    most, used, policy = memory.get("maxmemory", 0), memory["used_memory"], memory.get("maxmemory_policy", "")
    if not most:
        yield Finding(
            "memory", "advice", f"no maxmemory{about}: Redis takes what it can get ({memory['used_memory_human']} now)",
            "set maxmemory, and maxmemory-policy volatile-lru", "deployment.md",
        )  # fmt: skip
    elif policy == "noeviction":
        yield Finding(
            "memory", "fix", f"maxmemory-policy is noeviction{about}: a full Redis refuses to store values",
            "set maxmemory-policy volatile-lru or volatile-lfu: all values have a TTL", "deployment.md",
        )  # fmt: skip
    elif policy.startswith("allkeys"):
        yield Finding(
            "memory", "advice", f"maxmemory-policy is {policy}{about}: epochs may be evicted, which ends their values",
            "set maxmemory-policy volatile-lru or volatile-lfu", "deployment.md",
        )  # fmt: skip
    else:
        yield Finding("memory", "ok", f"{memory['used_memory_human']} of {memory['maxmemory_human']}, {policy}{about}")
    if most and used > _FULL * most:
        yield Finding(
            "memory", "fix", f"Redis is {used / most:.0%} full{about}", "raise maxmemory, or shorten TTLs",
            "deployment.md",
        )  # fmt: skip


def _table(server: "redis.Redis", _: Any, about: str) -> Iterator[Finding]:
    tracked = int(_info(server, "stats").get("tracking_total_keys", 0))
    try:
        found: Any = server.config_get("tracking-table-max-keys")
    except NoPermissionError:
        yield Finding("tracking table", "ok", f"{tracked:,} keys{about}; its limit can be read with +config|get")
        return
    except ResponseError:
        # Managed services have no CONFIG at all.
        yield Finding("tracking table", "ok", f"{tracked:,} keys{about}; the server refuses to tell its limit")
        return
    most = int(found.get("tracking-table-max-keys", 0))
    if most and tracked > _FULL * most:
        yield Finding(
            "tracking table", "fix", f"{tracked:,} of {most:,} keys are tracked{about}: more are announced as changed",
            f"CONFIG SET tracking-table-max-keys {tracked * 4}", "deployment.md",
        )  # fmt: skip
    else:
        yield Finding("tracking table", "ok", f"{tracked:,} of {f'{most:,}' if most else 'any number of'} keys{about}")


def _role(server: "redis.Redis", _: Any, about: str) -> Iterator[Finding]:
    if _info(server, "replication").get("role") == "slave":
        yield Finding(
            "role", "fix", f"this is a replica{about}, which takes no writes", "use the address of the primary",
            "sentinel.md",
        )  # fmt: skip


def _clock(server: "redis.Redis", _: Any, about: str) -> Iterator[Finding]:
    began = time.time()
    found: Any = server.time()
    skew = found[0] + found[1] / 1e6 - (began + time.time()) / 2
    if abs(skew) > _SKEW:
        yield Finding(
            "clock", "advice", f"Redis' clock is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}{about}",
            "run a time service on both machines; TTLs follow Redis' clock", "values.md",
        )  # fmt: skip
    else:
        yield Finding("clock", "ok", f"{abs(skew) * 1000:.0f} ms apart{about}")


_CHECKS: Final[dict[str, Callable[["redis.Redis", Any, str], Iterator[Finding]]]] = {
    "latency": _latency, "memory": _memory, "tracking table": _table, "role": _role, "clock": _clock,
}  # fmt: skip
"""What is asked of each server, by the name of the check."""


def _acl(server: "redis.Redis", state: State, about: str, health: Health) -> Iterator[Finding]:
    """Try each command that the cache needs, on a key of its own, and whether it may use the keys of leases."""
    key, prefix = state.keyspace.control_name("doctor"), state.settings.prefix
    missing: dict[str, None] = {}
    for grant in (*_grants(state, health), lease := f"~{{{prefix}*"):
        command = "exists" if grant == lease else grant.removeprefix("+")
        name = b"{" + key if grant == lease else key
        arguments = (name if each is _KEY else each for each in _ARGUMENTS.get(command, ()))
        try:
            _ask(server, *command.upper().split("|"), *arguments)
        except RedisError as error:
            # A refused EXEC says that, and then the same.
            if not isinstance(error, NoPermissionError) and "NOPERM" not in str(error):
                continue  # it may be used, and had nothing to do
            if "'select'" in str(error):
                missing["+select"] = None  # the connection was refused, before the command
            elif " access " in str(error):
                missing[grant if grant == lease else f"~{prefix}*"] = None
            elif grant != lease:
                missing[grant] = None
    with contextlib.suppress(RedisError):
        server.unlink(key)
    if missing:
        yield Finding(
            "grants", "fix", f"the user lacks {' '.join(missing)}{about}",
            f"ACL SETUSER {state.settings.deployment().endpoint.username or 'default'} {' '.join(missing)}",
            "deployment.md#acl-grants",
        )  # fmt: skip
    else:
        yield Finding("grants", "ok", f"the user has all that the cache needs{about}")


def _grants(state: State, health: Health) -> Sequence[str]:
    grants = GRANTS.split()
    if state.settings.deployment().kind == "cluster":
        grants += CLUSTER_GRANTS.split()
        if health.version is not None and int(health.version.partition(".")[0]) < _SHARDS:
            grants[grants.index("+cluster|shards")] = "+cluster|slots"
    return grants


# -- keys and settings ----------------------------------------------------------------------------------------


def _foreign(cache: CacheManager) -> Iterator[Finding]:
    """Look at some keys of the prefix, to see whether another program writes there, too."""
    state = cache._engine.state
    try:
        names = cache._call(_some_names, state.client, state.keyspace.scope("*"))
        foreign = [name for name in names if not _is_ours(cache._call(state.client.get, name))]
    except CacheError as error:
        yield Finding("keys", "advice", f"cannot be checked: {error}")
        return
    if foreign:
        yield Finding(
            "keys", "fix",
            f"{len(foreign)} of {len(names)} keys were written by another program, such as "
            f"{foreign[0].decode('utf-8', 'replace')!r}",
            "give this cache a prefix of its own: prefix (MAGNUS_CACHE_PREFIX)", "keys.md",
        )  # fmt: skip
    else:
        yield Finding("keys", "ok", f"looked at {len(names):,} key{'' if len(names) == 1 else 's'}, all of this cache")


async def _some_names(client: Client, scope: ClearScope) -> list[bytes]:
    found: list[bytes] = []
    async with contextlib.aclosing(client.scan(scope)) as steps:
        async for names in steps:
            found += names
            if len(found) >= _SAMPLE:
                break
    return found[:_SAMPLE]


def _is_ours(raw: bytes | None) -> bool:
    """Whether this cache has written a value. None, for one that has expired meanwhile or is no string, is not told."""
    if raw is None:
        return True
    try:
        read_header(raw)
    except CacheDecodeError:
        return False
    return True


def _warm(cache: CacheManager) -> Iterator[Finding]:
    """Look at the jobs of `keep_warm`, if there are any."""
    for job in cache.warm_jobs():
        if job.process is None:
            remedy = "start a process with this job; if there is none any more, it is forgotten within a day"
            yield Finding("keep_warm", "advice", f"no process keeps {job.name} warm", remedy, "keep-warm.md")
        elif job.failed:
            what = f"{job.failed:,} loads of {job.name} have failed, the last one with {job.error}"
            yield Finding("keep_warm", "advice", what, "see the log of the process " + job.process, "keep-warm.md")
        else:
            held = f", {job.held_back:,} times held back by limits" if job.held_back else ""
            yield Finding("keep_warm", "ok", f"{job.process} keeps {job.keys:,} keys of {job.name} warm{held}")


def _settings(settings: Any) -> Iterator[Finding]:
    if settings.wait_timeout < settings.lease:
        yield Finding(
            "settings", "advice",
            f"wait_timeout ({settings.wait_timeout:g} s) is shorter than lease ({settings.lease:g} s): after the death "
            "of a loading process, all waiting callers load at the same time",
            "set wait_timeout above lease", "loading.md",
        )  # fmt: skip
    if settings.lease < 2 * settings.op_timeout:
        yield Finding(
            "settings", "fix",
            f"lease ({settings.lease:g} s) is shorter than two op_timeouts ({settings.op_timeout:g} s each): a lease "
            "may end before it can be renewed",
            "set lease to five op_timeouts or more", "loading.md",
        )  # fmt: skip
    if settings.prefix == "magnus":
        yield Finding(
            "settings", "advice", "the prefix is the default one: another application on this Redis shares the values",
            "give each application a prefix of its own: prefix (MAGNUS_CACHE_PREFIX)", "deployment.md",
        )  # fmt: skip


def _namespaces() -> Iterator[Finding]:
    for namespace in default_registry:
        freshness = namespace.freshness
        if isinstance(namespace.ttl, CalendarTtl):
            yield from _calendar(str(namespace), namespace.ttl)
        if freshness.grace and freshness.soft_timeout is None and freshness.hard_timeout is None:
            yield Finding(
                "namespaces", "advice",
                f"namespace {str(namespace)!r} has grace, but no timeout for its source: a source that hangs is waited "
                "for, although a stale value is there",
                "give it soft_timeout, such as soft_timeout='500ms'", "freshness.md",
            )  # fmt: skip


def _calendar(namespace: str, calendar: CalendarTtl) -> Iterator[Finding]:
    """Look for exchanges that do not exist, and for calendars that end within a month."""
    now = int(time.time()) * 1_000_000
    try:
        if not calendar.is_ready(now):
            calendar.prepare(now)
    except (CacheArgumentError, ImportError) as error:
        remedy = "give a code that exchange-calendars knows, such as 'XNYS'"
        yield Finding("namespaces", "fix", f"namespace {namespace!r}: {error}", remedy, "calendars.md")
        return
    if (problem := calendar.shortfall(now + _MONTH)) is not None:
        remedy = "pip install -U exchange-calendars"
        yield Finding("namespaces", "advice", f"namespace {namespace!r}: {problem}", remedy, "calendars.md")
