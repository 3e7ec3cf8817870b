"""The faults. Each strikes for some seconds and has healed when it returns; what it does is real."""

import threading
import time
from collections.abc import Callable
from typing import Final

import redis

from tests.chaos.world import SECRET, World

__all__ = ["FAULTS", "Fault"]

Fault = Callable[[World, float], None]
"""Called in a thread: ``fault(world, seconds)``."""

FAULTS: Final[dict[str, Fault]] = {}


def fault(name: str) -> Callable[[Fault], Fault]:
    def register(strike: Fault) -> Fault:
        FAULTS[name] = strike
        return strike

    return register


@fault("SIGKILL, back empty")
def _(world: World, seconds: float) -> None:
    world.server.kill()
    time.sleep(seconds)
    world.server.restart()


@fault("SIGKILL, back with old data")
def _(world: World, seconds: float) -> None:
    with world.admin() as admin:
        admin.save()
    # What is invalidated now is in Redis' memory alone, and comes back from the file.
    time.sleep(seconds / 2)
    world.server.kill()
    time.sleep(seconds / 2)
    world.server.restart()
    (world.server.directory / "dump.rdb").unlink()


@fault("SIGSTOP")
def _(world: World, seconds: float) -> None:
    world.server.pause()
    time.sleep(seconds)
    world.server.resume()


@fault("black hole")
def _(world: World, seconds: float) -> None:
    world.proxy.black_hole()
    time.sleep(seconds)
    world.proxy.resume()


@fault("black hole, replies only")
def _(world: World, seconds: float) -> None:
    world.proxy.half_open("to_client")
    time.sleep(seconds)
    world.proxy.resume()


@fault("nothing listens")
def _(world: World, seconds: float) -> None:
    world.proxy.refuse()
    world.proxy.cut()
    time.sleep(seconds)
    world.proxy.resume()


@fault("half of all packets delayed")
def _(world: World, seconds: float) -> None:
    # Longer each second turn than a quiet reply takes; a delay shorter than the timeout is nobody's failure.
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        world.proxy.delay(0.1)
        time.sleep(0.05)
        world.proxy.delay(0.0)
        time.sleep(0.05)


@fault("connection resets")
def _(world: World, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        world.proxy.cut()
        time.sleep(0.1)


@fault("CLIENT KILL")
def _(world: World, seconds: float) -> None:
    end = time.monotonic() + seconds
    with world.admin() as admin:
        while time.monotonic() < end:
            admin.client_kill_filter(_type="normal", skipme=True)
            time.sleep(0.1)


@fault("CLIENT PAUSE")
def _(world: World, seconds: float) -> None:
    with world.admin() as admin:
        admin.client_pause(int(seconds * 1000))
    time.sleep(seconds)


@fault("DEBUG SLEEP")
def _(world: World, seconds: float) -> None:
    with world.admin() as admin:
        admin.execute_command("DEBUG", "SLEEP", str(seconds))


@fault("out of memory")
def _(world: World, seconds: float) -> None:
    with world.admin() as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)
        time.sleep(seconds)
        admin.config_set("maxmemory", 0)


@fault("FLUSHALL")
def _(world: World, seconds: float) -> None:
    end = time.monotonic() + seconds
    with world.admin() as admin:
        while time.monotonic() < end:
            admin.flushall()
            time.sleep(seconds / 4)


@fault("password changed")
def _(world: World, seconds: float) -> None:
    with world.admin() as admin:
        admin.config_set("requirepass", "another")
        admin.client_kill_filter(_type="normal", skipme=True)
        time.sleep(seconds)
        admin.config_set("requirepass", SECRET)


@fault("endless script")
def _(world: World, seconds: float) -> None:
    with world.admin() as admin:
        admin.config_set("busy-reply-threshold", 10)

    def spin() -> None:
        with world.admin() as busy:
            try:
                busy.eval("while true do end", 0)
            except redis.RedisError:
                pass

    thread = threading.Thread(target=spin)
    thread.start()
    time.sleep(seconds)
    with world.admin() as admin:
        admin.script_kill()
    thread.join()


@fault("replica promoted")
def _(world: World, seconds: float) -> None:
    with world.admin(world.spare) as spare:
        spare.execute_command("REPLICAOF", "127.0.0.1", str(world.server.port))
        while spare.info("replication")["master_link_status"] != "up":
            time.sleep(0.02)
        # The primary dies, and with it what it had not passed on.
        world.server.kill()
        time.sleep(seconds)
        spare.execute_command("REPLICAOF", "NO", "ONE")
    world.proxy.target = world.spare.port
    world.proxy.cut()
