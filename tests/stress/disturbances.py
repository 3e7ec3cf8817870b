"""What happens to the callers' processes, their connections and their server while they call."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import redis

from magnus_cache import CacheManager
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.testing import Proxy
from tests.stress.keys import ALL, FAMILIES
from tests.stress.records import EVERYBODY, Kind, Log, now
from tests.support.fleet import Worker

__all__ = ["DISTURBANCES", "Disturbance", "Stage"]


@dataclass
class Stage:
    """What there is to disturb.

    :ivar log: for what happens to all at once.
    :ivar proxy: before the server; the last worker goes through it.
    """

    server: EmbeddedServer
    proxy: Proxy
    admin: "redis.Redis"
    workers: list[Worker]
    log: Log
    staleness: float


@dataclass(frozen=True)
class Disturbance:
    """One of them.

    :ivar run: called in a thread with the stage, what is set when it is over, and dice; undoes what it did.
    :ivar traits: what the processes do to themselves.
    :ivar evictions: whether values and leases may go at any time.
    """

    name: str
    run: Callable[[Stage, threading.Event, random.Random], None] | None = None
    traits: tuple[str, ...] = ()
    evictions: bool = False


DISTURBANCES: Final[dict[str, Disturbance]] = {
    name: Disturbance(name, traits=traits)
    for name, traits in {
        "quiet": (), "signals": ("signals",), "finalizers": ("finalizers",), "interrupts": ("interrupts",),
        "tight loops": ("tight loops",),
    }.items()
}  # fmt: skip
"""By name."""


def disturbance(
    name: str, *, evictions: bool = False
) -> Callable[[Callable[[Stage, threading.Event, random.Random], None]], None]:
    def register(run: Callable[[Stage, threading.Event, random.Random], None]) -> None:
        DISTURBANCES[name] = Disturbance(name, run, evictions=evictions)

    return register


@disturbance("other database")
def _(stage: Stage, over: threading.Event, dice: random.Random) -> None:
    """Have another cache use the same names in another database, and flush that now and then."""
    url = f"redis://127.0.0.1:{stage.server.port}/1"
    families = [family for name, family in FAMILIES.items() if name != "bulky"]
    with CacheManager(redis_url=url) as cache, redis.Redis(port=stage.server.port, db=1, protocol=2) as raw:
        while not over.wait(dice.expovariate(1 / 0.002)):
            family = dice.choice(families)
            key = dice.choice(family.keys)
            match dice.choices(["load", "set", "delete", "tag", "clear", "flush"], [40, 10, 20, 3, 1, 1])[0]:
                case "load":
                    cache.get_or_set(key.namespace, key.name, lambda: 1, ttl=60, tags=key.tags)
                case "set":
                    cache.set(key.namespace, key.name, 1, ttl=60)
                case "delete":
                    cache.delete(key.namespace, key.name)
                case "tag" if key.tags:
                    cache.invalidate_tags(*key.tags)
                case "clear":
                    cache.clear(key.namespace)
                case "flush":
                    raw.flushdb()
                case _:
                    pass


@disturbance("evictions", evictions=True)
def _(stage: Stage, over: threading.Event, dice: random.Random) -> None:
    """Give the server less memory than it needs."""
    admin = stage.admin
    while not over.wait(dice.uniform(0.1, 0.6)):
        admin.config_set("maxmemory-policy", dice.choice(["allkeys-lru", "allkeys-random", "volatile-ttl"]))
        used = int(admin.info("memory")["used_memory"])
        admin.config_set("maxmemory", used - dice.randrange(300_000))
        over.wait(dice.uniform(0.1, 0.5))
        admin.config_set("maxmemory", 0)
    admin.config_set("maxmemory", 0)


@disturbance("table overflow")
def _(stage: Stage, over: threading.Event, dice: random.Random) -> None:
    """Let the server remember few of the keys that it tracks."""
    stage.admin.config_set("tracking-table-max-keys", 20)
    over.wait()
    stage.admin.config_set("tracking-table-max-keys", 1_000_000)


@disturbance("suspended client")
def _(stage: Stage, over: threading.Event, dice: random.Random) -> None:
    """Stop a process for longer than it may trust what it has."""
    while not over.wait(dice.uniform(0.2, 1.0)):
        worker = dice.choice(stage.workers)
        os.kill(worker.pid, signal.SIGSTOP)
        time.sleep(dice.uniform(stage.staleness, 4 * stage.staleness))
        os.kill(worker.pid, signal.SIGCONT)


@disturbance("killed connections")
def _(stage: Stage, over: threading.Event, dice: random.Random) -> None:
    while not over.wait(dice.uniform(0.1, 2.0)):
        stage.admin.client_kill_filter(_type="normal", skipme=True)


@disturbance("paused server")
def _(stage: Stage, over: threading.Event, dice: random.Random) -> None:
    """Stop the server, for a moment or for longer than its clients wait."""
    while not over.wait(dice.uniform(0.3, 2.0)):
        began = now()
        stage.server.pause()
        time.sleep(dice.uniform(0.05, 1.0))
        stage.server.resume()
        stage.log.note(Kind.STALLED, EVERYBODY, (0,), began, now())


@disturbance("cut proxy")
def _(stage: Stage, over: threading.Event, dice: random.Random) -> None:
    """Cut one process off, or let what it sends and is sent vanish for a while."""
    while not over.wait(dice.uniform(0.1, 1.5)):
        if dice.random() < 0.6:
            stage.proxy.cut()
        else:
            stage.proxy.black_hole()
            time.sleep(dice.uniform(0.05, 0.8))
            stage.proxy.resume()
            stage.proxy.cut()


@disturbance("flushes")
def _(stage: Stage, over: threading.Event, dice: random.Random) -> None:
    while not over.wait(dice.uniform(0.1, 1.0)):
        began = now()
        if dice.random() < 0.5:
            stage.admin.flushall()
        else:
            stage.admin.flushdb()
        stage.log.note(Kind.GONE, EVERYBODY, [key.number for key in ALL], began, now(), 1)
