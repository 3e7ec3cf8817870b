"""What `doctor` looks at: each check returns what it found, and what to do about it."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

import redis
from redis.exceptions import NoPermissionError, RedisError

from magnus_cache import CacheManager, Health
from magnus_cache._engine.codec.envelope import read_header
from magnus_cache._engine.policy.namespaces import default_registry
from magnus_cache._engine.redis.deployment import addresses
from magnus_cache._engine.redis.diagnosis import CLUSTER_GRANTS, GRANTS
from magnus_cache._engine.redis.endpoint import Endpoint
from magnus_cache.errors import CacheDecodeError, CacheError

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


_PINGS: Final = 25
_OLDEST: Final = (6, 0)
_NEWEST_ADVICE: Final = (7, 2)
_SHARDS: Final = 7
"""The first version that knows CLUSTER SHARDS."""

_FULL: Final = 0.9
_SKEW: Final = 5.0
_SAMPLE: Final = 300
_TRIALS: Final[dict[str, Callable[[bytes], Sequence[Any]]]] = {
    "+set": lambda key: ("SET", key, b"1", "PX", 1_000),
    "+get": lambda key: ("GET", key),
    "+mget": lambda key: ("MGET", key),
    "+getrange": lambda key: ("GETRANGE", key, 0, 0),
    "+exists": lambda key: ("EXISTS", key),
    "+pttl": lambda key: ("PTTL", key),
    "+hmget": lambda key: ("HMGET", key, "f"),
    "+hget": lambda key: ("HGET", key, "f"),
    "+hgetall": lambda key: ("HGETALL", key),
    "+hsetnx": lambda key: ("HSETNX", key, "f", "1"),
    "+zrem": lambda key: ("ZREM", key, "m"),
    "+zrangebyscore": lambda key: ("ZRANGEBYSCORE", key, 0, 0),
    "+zremrangebyscore": lambda key: ("ZREMRANGEBYSCORE", key, 0, 0),
    "+pexpire": lambda key: ("PEXPIRE", key, _WRONG),
    "+expire": lambda key: ("EXPIRE", key, _WRONG),
    "+hset": lambda key: ("HSET", key, "f", "1", _WRONG),
    "+hincrby": lambda key: ("HINCRBY", key, "f", _WRONG),
    "+zadd": lambda key: ("ZADD", key, _WRONG, "m"),
    "+del": lambda key: ("DEL", key),
    "+unlink": lambda key: ("UNLINK", key),
    "+scan": lambda _: ("SCAN", 0, "COUNT", 1),
    "+dbsize": lambda _: ("DBSIZE",),
    "+eval": lambda _: ("EVAL", "return 1", 0),
    "+evalsha": lambda _: ("EVALSHA", "0" * 40, 0),
    "+time": lambda _: ("TIME",),
    "+info": lambda _: ("INFO", "server"),
    "+client|id": lambda _: ("CLIENT", "ID"),
    "+client|tracking": lambda _: ("CLIENT", "TRACKING", "OFF"),
    "+client|kill": lambda _: ("CLIENT", "KILL", "ID", 1 << 60),
    "+cluster|myid": lambda _: ("CLUSTER", "MYID"),
    "+cluster|info": lambda _: ("CLUSTER", "INFO"),
    "+cluster|shards": lambda _: ("CLUSTER", "SHARDS"),
    "+cluster|slots": lambda _: ("CLUSTER", "SLOTS"),
    "+asking": lambda _: ("ASKING",),
    "+exec": lambda _: ("EXEC",),
    # The last one: what follows on its connection would be queued.
    "+multi": lambda _: ("MULTI",),
}
"""For each right a harmless command that needs it, with a key of the cache.

A server looks at the rights first, and at the arguments of a command that it allows then.
"""

_WRONG: Final = "no number"


def findings(cache: CacheManager, health: Health) -> Iterator[Finding]:
    """Yield what each check finds, of the servers and of the settings."""
    settings = cache._engine.state.settings
    if not health and not any(health.nodes):
        # It can be asked which grants are missing, and nothing else.
        for server, endpoint in _servers(cache, health):
            with server:
                yield from _acl(server, endpoint, cache, health)
        return
    yield Finding("connection", "ok", f"{health.server} {health.version}, {health.mode}")
    for node in health.nodes:
        if not node:
            yield Finding(
                "connection", "fix", str(node.reason), "start the node, or let a replica take over", "cluster.md"
            )
    yield from _tracking(health, settings)
    yield from _version(health)
    for server, endpoint in _servers(cache, health):
        with server:
            about = f" at {endpoint.host}:{endpoint.port}" if health.mode == "cluster" else ""
            for check in (_latency, _memory, _table, _role, _clock):
                try:
                    yield from check(server, settings, about)
                except NoPermissionError as error:
                    yield Finding(check.__name__[1:], "advice", f"cannot be checked{about}: {error}")
                except RedisError as error:
                    yield Finding(check.__name__[1:], "fix", f"{type(error).__name__}{about}: {error}")
            yield from _acl(server, endpoint, cache, health)
    yield from _foreign(cache)
    yield from _settings(settings)
    yield from _namespaces()


def _servers(cache: CacheManager, health: Health) -> Iterator[tuple["redis.Redis", Endpoint]]:
    state = cache._engine.state
    assert state.endpoint is not None
    first, deployment = state.endpoint, state.settings.deployment()
    if health.address is not None:
        host, _, number = health.address.rpartition(":")
        first = deployment.at(host.strip("[]"), int(number))
    places = addresses([node.address for node in health.nodes if node], first.port) if any(health.nodes) else ()
    for endpoint in [deployment.at(host, port) for host, port in places] or [first]:
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
        yield Finding("version", "ok", f"Redis {health.version}; 7.2 and Valkey do more in one round trip")


def _latency(server: "redis.Redis", settings: Any, about: str) -> Iterator[Finding]:
    # Not PING: a user that has no more rights than the pages name may not send it.
    server.time()
    took: list[float] = []
    for _ in range(_PINGS):
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


def _acl(server: "redis.Redis", endpoint: Endpoint, cache: CacheManager, health: Health) -> Iterator[Finding]:
    key = cache._engine.state.keyspace.control_name("doctor")
    prefix = key.partition(b"!")[0].decode()
    is_cluster = cache._engine.state.settings.deployment().kind == "cluster"
    rights = {*GRANTS.split(), *(CLUSTER_GRANTS.split() if is_cluster else ())}
    if "+cluster|shards" in rights and health.version is not None and int(health.version.partition(".")[0]) < _SHARDS:
        rights = rights - {"+cluster|shards"} | {"+cluster|slots"}
    lease = f"~{{{prefix}*", ("EXISTS", b"{" + key)
    missing: dict[str, None] = {}
    for right, command in (lease, *((right, make(key)) for right, make in _TRIALS.items() if right in rights)):
        try:
            _ask(server, *command)
        except RedisError as error:
            if not isinstance(error, NoPermissionError) and "NOPERM" not in str(error):
                continue  # it may be used, and had nothing to do
            if "'select'" in str(error):
                missing["+select"] = None  # the connection was refused, before the command
            elif " access " in str(error):
                missing[right if right == lease[0] else f"~{prefix}*"] = None
            elif right != lease[0]:
                missing[right] = None
    server.connection_pool.disconnect()
    about = f" at {endpoint.host}:{endpoint.port}" if is_cluster else ""
    if missing:
        yield Finding(
            "grants", "fix", f"the user lacks {' '.join(missing)}{about}",
            f"ACL SETUSER {endpoint.username or 'default'} {' '.join(missing)}", "deployment.md#acl-grants",
        )  # fmt: skip
    else:
        yield Finding("grants", "ok", f"the user has all that the cache needs{about}")


# -- keys and settings ----------------------------------------------------------------------------------------


def _foreign(cache: CacheManager) -> Iterator[Finding]:
    """Look at some keys of the prefix, to see whether another program writes there, too."""
    from magnus_cache.cli.values import namespaces

    foreign: list[str] = []
    try:
        names = namespaces(cache)
        looked = 0
        for name in names:
            for key in cache.scan(name):
                looked += 1
                raw = cache._call(cache._engine.state.client.get, cache._engine.state.keyspace.value_name(name, key))
                if raw is not None and not _is_ours(raw):
                    foreign.append(f"{name}:{key}")
                if looked >= _SAMPLE:
                    break
    except CacheError as error:
        yield Finding("keys", "advice", f"cannot be checked: {error}")
        return
    if foreign:
        yield Finding(
            "keys", "fix", f"{len(foreign)} of {looked} keys were written by another program, such as {foreign[0]!r}",
            "give this cache a prefix of its own: prefix (MAGNUS_CACHE_PREFIX)", "keys.md",
        )  # fmt: skip
    else:
        yield Finding("keys", "ok", f"{len(names)} namespaces; {looked} keys looked at, all of this cache")


def _is_ours(raw: bytes) -> bool:
    try:
        read_header(raw)
    except CacheDecodeError:
        return False
    return True


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
        if freshness.grace and freshness.soft_timeout is None and freshness.hard_timeout is None:
            yield Finding(
                "namespaces", "advice",
                f"namespace {str(namespace)!r} has grace, but no timeout for its source: a source that hangs is waited "
                "for, although a stale value is there",
                "give it soft_timeout, such as soft_timeout='500ms'", "freshness.md",
            )  # fmt: skip
