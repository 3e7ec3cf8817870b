"""What a fleet costs its Redis: ``python -m benchmarks.fleet``.

First the time of the server for a read, a write, a message and so on is measured on bare connections. Then fleets of
real caches, each with a connection of its own, run against a real server, and the model is printed beside what was
measured. At the end the model tells of fleets that are too large to be measured on one machine, up to 10,000 processes,
and which way of tracking suits each. With ``--write FILE``, the tables also go into a page.
"""

import argparse
import asyncio
import itertools
import random
import re
import statistics
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import redis

from benchmarks.fleet_costs import costs, server_seconds
from benchmarks.fleet_model import MODES, Fleet, Load, Machine, Mode, load_of
from magnus_cache import AsyncCacheManager
from magnus_cache.embedded import EmbeddedServer, find_redis, find_valkey

__all__ = ["FIGURES", "WORKLOADS", "compared", "main", "measured", "recommended"]

FIGURES: Final = ("hit_ratio", "commands", "messages", "received", "sent", "table", "busy")
"""The figures of a `Load` that are measured, too."""

T = TypeVar("T", Fleet, Load)

_TRAFFIC: Final = {8: (300.0, 80.0, 40), 50: (40.0, 40.0, 40), 200: (5.0, 8.0, 12)}
"""Reads of each process, writes of all, and keys, by the number of processes: as much traffic as one process makes in
the place of all, and so few keys that all are read often, and the fleet soon is as it will stay."""

_ROUNDS: Final = 5
_MOST_ROUNDS: Final = 15

_LATE: Final = 0.1
"""Seconds by which no request of a round may be late."""

_PATIENCE: Final = 5.0
"""Seconds of `op_timeout`: a machine that does something else for a moment is no outage."""

_OTHERS: Final = 1_500.0
"""Reads of all processes a second, for other numbers of them."""

_NEAR: Final = 1.2
"""How much more of the server's time a way may take than the cheapest one, and still be the first choice: by key is the
default, and by prefix serves more from memory than none."""

_SMALL: Final = 0.05

_TABLE: Final = 1 << 30
"""Bytes of the table from which on it is too large."""


def _bound(count: int) -> float:
    """Return the `max_staleness` that suits a fleet: the heartbeats of 10,000 processes are a load of their own."""
    return 1.0 if count <= 1_000 else 5.0


WORKLOADS: Final[dict[str, tuple[str, Any]]] = {
    "reference": (
        "reference data: 10,000 values, a write a second",
        lambda count: Fleet(count, 100, 1, 10_000, ttl=3600, staleness=_bound(count)),
    ),
    "prices": (
        "prices: 2,000 values, each read everywhere, 200 writes a second",
        lambda count: Fleet(count, 100, 200, 2_000, ttl=60, staleness=_bound(count)),
    ),
    "users": (
        "data of users: 100 values for each process, a write a second and process",
        lambda count: Fleet(count, 20, count, 100 * count, skew=0.6, ttl=300, staleness=_bound(count)),
    ),
    "feed": (
        "a feed: 100,000 values, 2,000 writes a second, each value read by few",
        lambda count: Fleet(count, 20, 2_000, 100_000, skew=0.8, ttl=300, staleness=_bound(count)),
    ),
}
"""Title and fleet, by the number of processes."""

_SIZES: Final = (10, 100, 1_000, 10_000)


# -- measured ---------------------------------------------------------------------------------------------------


async def measured(
    server: EmbeddedServer, fleet: Fleet, mode: Mode, seconds: float, warm: float, seed: int = 1
) -> tuple[Fleet, Load]:
    """Return the fleet as it turned out to be, and what it cost the server: the medians of some rounds.

    :param seconds: of each round.
    :param warm: seconds of the same traffic before.
    """
    pad = "k" * (fleet.name_bytes - len("magnus:t:") - 4)
    keys = [f"{pad}{number:04}" for number in range(fleet.keys)]
    value, chance = "x" * fleet.value_bytes, random.Random(seed)
    weights = list(itertools.accumulate((rank + 1) ** -fleet.skew for rank in range(fleet.keys)))
    with redis.Redis(port=server.port) as client:
        client.flushall()
        async with AsyncExitStack() as stack:
            caches: list[AsyncCacheManager] = []
            for _ in range(fleet.processes):
                cache = AsyncCacheManager(
                    redis_url=server.url, tracking=mode, max_staleness=fleet.staleness, op_timeout=_PATIENCE,
                    stats_interval=1 / fleet.reports if fleet.reports else 0,
                )  # fmt: skip
                stack.push_async_callback(cache.aclose)
                caches.append(cache)
            told, writers = _count_messages(caches), dict[bytes, AsyncCacheManager]()
            _tell_apart(caches, writers)
            await caches[0].set_many("t", dict.fromkeys(keys, value), ttl=fleet.ttl)
            await asyncio.gather(*(cache.get_many("t", keys) for cache in caches))
            stored = client.strlen(f"magnus:t:{keys[0]}")

            async def traffic(lasts: float) -> tuple[int, int, float, float]:
                """Return the reads, the writes, the seconds that it took, and by how many the latest was late."""
                began, reads, writes, tasks, late = time.monotonic(), 0, 0, set[asyncio.Task[Any]](), 0.0
                rate = fleet.reads * fleet.processes + fleet.writes
                due = began
                while due < began + lasts:
                    # Each at its own time: requests that come together cost the server less.
                    due += chance.expovariate(rate)
                    if (left := due - time.monotonic()) > 0:
                        await asyncio.sleep(left)
                    late = max(late, -left)
                    (key,), cache = chance.choices(keys, cum_weights=weights), chance.choice(caches)
                    if chance.random() * rate < fleet.writes:
                        writers[f"magnus:t:{key}".encode()], writes = cache, writes + 1
                        call: Coroutine[Any, Any, Any] = cache.set("t", key, value, ttl=fleet.ttl)
                    else:
                        call, reads = cache.get("t", key), reads + 1
                    task = asyncio.create_task(call)
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                await asyncio.gather(*tasks)
                return reads, writes, time.monotonic() - began, late

            await traffic(warm)
            rounds = list[tuple[float, Fleet, Load]]()
            while len(rounds) < _MOST_ROUNDS and sum(late < _LATE for late, _, _ in rounds) < _ROUNDS:
                hits, before, messages = _memory_hits(caches), _totals(client), told[0]
                reads, writes, took, late = await traffic(seconds)
                after = _totals(client)
                rates = {name: (after[name] - before[name]) / took for name in before}
                load = Load(
                    hit_ratio=(_memory_hits(caches) - hits) / reads, messages=(told[0] - messages) / took,
                    table=client.info("stats")["tracking_total_items"], **rates,
                )  # fmt: skip
                actual = replace(fleet, reads=reads / took / fleet.processes, writes=writes / took)
                rounds.append((late, actual, load))
            # Those in which other programs had the machine for themselves, for a moment, say nothing.
            best = sorted(rounds, key=lambda each: each[0])[:_ROUNDS]
    actual, load = _median([actual for _, actual, _ in best]), _median([load for _, _, load in best])
    return replace(actual, value_bytes=int(stored)), load


def _median(some: list[T]) -> T:
    """Return the median of some records, field by field: a moment in which the machine did something else is none."""
    fields = {name: statistics.median_low(getattr(one, name) for one in some) for name in type(some[0]).__slots__}
    return type(some[0])(**fields)


def _count_messages(caches: Sequence[AsyncCacheManager]) -> list[int]:
    """Return a list with the number of announcements that some caches get from now on."""
    count = [0]
    for cache in caches:
        events = cache._engine.state.events
        original = events.invalidated

        def invalidated(names: list[bytes], connection: Any, original: Any = original) -> None:
            count[0] += 1
            original(names, connection)

        events.invalidated = invalidated  # type: ignore[method-assign]
    return count


def _tell_apart(caches: Sequence[AsyncCacheManager], writers: Mapping[bytes, AsyncCacheManager]) -> None:
    """Have caches of one process take only what they have written themselves for their own.

    :param writers: who has written each value last, by its name.
    """
    for cache in caches:
        own = cache._engine.state.announcements._own
        if own is not None:
            original = own.among

            def among(names: list[bytes], original: Any = original, cache: AsyncCacheManager = cache) -> Any:
                return [(name, entry) for name, entry in original(names) if writers.get(name) is cache]

            own.among = among  # type: ignore[method-assign]


def _memory_hits(caches: Sequence[AsyncCacheManager]) -> int:
    return sum(cache._engine.state.stats.of("t").l1_hits for cache in caches)


def _totals(client: redis.Redis) -> dict[str, float]:
    """Return what a server has done so far."""
    stats = client.info("stats")
    return {
        "busy": server_seconds(client), "commands": stats["total_commands_processed"],
        "received": stats["total_net_input_bytes"], "sent": stats["total_net_output_bytes"],
    }  # fmt: skip


def compared(found: Load, expected: Load) -> dict[str, tuple[float, float, float]]:
    """Return, by figure, what was measured, what the model says, and by which part that is more; nan for no figure."""
    rows: dict[str, tuple[float, float, float]] = {}
    for name in FIGURES:
        one, other = getattr(found, name), getattr(expected, name)
        rows[name] = one, other, other / one - 1 if one else float("nan")
    return rows


def _measurements(sizes: Sequence[int], known: Machine, kind: str, seconds: float) -> Iterator[str]:
    """Yield the lines of the table of what was measured, beside the model; the last one sums it up."""
    yield "| Processes | Tracking | " + " | ".join(_TITLES[name] for name in FIGURES) + " |"
    yield "|" + "---|" * (len(FIGURES) + 2)
    worst: dict[str, float] = {}
    with EmbeddedServer(find_redis() if kind == "redis" else find_valkey()) as server:
        for size in sizes:
            # Without reports: all of them would come at once, as all processes have begun at once.
            fleet = Fleet(size, *_TRAFFIC.get(size, (_OTHERS / size, 10.0, 12)), reports=0)
            for mode in MODES:
                actual, found = asyncio.run(measured(server, fleet, mode, seconds, 3 * seconds))
                pairs = replace(found, table=found.table * known.busy.pair_bytes)
                rows = compared(pairs, load_of(actual, mode, known))
                for name, (one, _, off) in rows.items():
                    if one and abs(off) > abs(worst.get(name, 0.0)):
                        worst[name] = off
                cells = (f"{_shown(name, *rows[name][:2])} ({rows[name][2]:+.0%})" if rows[name][0] else "0"
                         for name in FIGURES)  # fmt: skip
                yield f"| {size} | `{mode}` | " + " | ".join(cells) + " |"
    yield ""
    yield "Largest deviations: " + ", ".join(f"{_TITLES[name].lower()} {off:+.0%}" for name, off in worst.items()) + "."


_TITLES: Final = {
    "hit_ratio": "Hits in memory", "commands": "Commands/s", "messages": "Messages/s", "received": "kB/s in",
    "sent": "kB/s out", "table": "Table, kB", "busy": "Server's time",
}  # fmt: skip


def _shown(name: str, found: float, expected: float) -> str:
    """Return both figures as people read them: measured, then by the model."""
    if name in {"hit_ratio", "busy"}:
        return f"{found:.1%}, {expected:.1%}"
    if name in {"received", "sent", "table"}:
        return f"{found / 1000:,.0f}, {expected / 1000:,.0f}"
    return f"{found:,.0f}, {expected:,.0f}"


# -- by the model -----------------------------------------------------------------------------------------------


def recommended(loads: dict[Mode, Load]) -> Mode:
    """Return the way of tracking that suits a fleet, by what each costs."""
    least = min(load.busy for load in loads.values())
    for mode, load in loads.items():
        if load.busy <= _NEAR * least and load.table <= _TABLE:
            return mode
    return min(loads, key=lambda mode: loads[mode].busy)


def _predictions(known: Machine) -> Iterator[str]:
    """Yield the lines of the table of larger fleets."""
    yield "| Workload | Processes | Hits, `keys` / `off` | Time of the server, `keys` / `prefix` / `off` | " + (
        "Messages/s, `keys` / `prefix` | Table of `keys` | Choose |"
    )
    yield "|" + "---|" * 7
    for title, fleet_of in WORKLOADS.values():
        for size in _SIZES:
            loads: dict[Mode, Load] = {mode: load_of(fleet_of(size), mode, known) for mode in MODES}
            keys, prefix, off = (loads[mode] for mode in MODES)
            yield (
                f"| {title} | {size:,} | {keys.hit_ratio:.0%} / {off.hit_ratio:.0%} | {_share(keys.busy)} / "
                f"{_share(prefix.busy)} / {_share(off.busy)} | {keys.messages:,.0f} / {prefix.messages:,.0f} | "
                f"{keys.table / 1e6:,.1f} MB | `{recommended(loads)}` |"
            )
            title = ""


def _costs(known: Machine) -> Iterator[str]:
    """Yield the lines of the table of what the server takes."""
    yield "| Microseconds of the server | one after the other | each finds it asleep |"
    yield "|---|---|---|"
    for name, title in _ACTS.items():
        yield f"| {title} | {getattr(known.busy, name) * 1e6:.1f} | {getattr(known.asleep, name) * 1e6:.1f} |"
    yield ""
    yield f"For each key and process that has read it, `keys` takes {known.busy.pair_bytes:.0f} bytes of the server."


_ACTS: Final = {
    "read": "a read", "write": "a write", "load": "a load, beside the write", "push": "a message, by key",
    "broadcast": "a message, by prefix", "name": "each further name in it", "beat": "a heartbeat",
    "replication": "the question about replication", "report": "a report to the fleet's statistics",
}  # fmt: skip


def _details(known: Machine) -> Iterator[str]:
    """Yield the lines about what else follows from the costs."""
    yield "| Processes | One write of a value that all hold | Heartbeats, `max_staleness` 1 s | 5 s | 30 s |"
    yield "|" + "---|" * 5
    for size in _SIZES:
        fleets = [Fleet(size, 100, 1e-9, 1, ttl=1e9, staleness=bound) for bound in (1.0, 5.0, 30.0)]
        beats = " | ".join(_share(load_of(fleet, "keys", known).busy) for fleet in fleets)
        yield f"| {size:,} | {size * known.busy.push * 1000:,.1f} ms | {beats} |"


def _share(busy: float) -> str:
    """Return the part of a core that a server needs, as people read it."""
    return f"{busy:.1%}" if busy < _SMALL else f"{busy:.0%}" if busy <= 1 else f"**{busy:.0%}**"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables. Return 0, whatever they say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two sizes of fleets, and half a minute")
    parser.add_argument("--processes", type=int, action="append", metavar="N", help="measure this many; repeatable")
    parser.add_argument("--server", choices=("valkey", "redis"), default="valkey", help="which one (%(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the tables into this page, too")
    options = parser.parse_args(arguments)
    sizes = options.processes or ([8, 50] if options.quick else list(_TRAFFIC))
    known = costs(1, 300) if options.quick else costs()
    parts = {
        "costs": list(_costs(known)),
        "measured": list(_measurements(sizes, known, options.server, 1.0 if options.quick else 2.5)),
        "fleets": list(_predictions(known)),
        "details": list(_details(known)),
    }
    for lines in parts.values():
        print("\n".join(lines), end="\n\n")
    if options.write is not None:
        page = options.write.read_text("utf-8")
        for name, lines in parts.items():
            text = "\n".join(lines)
            page = re.sub(
                rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda match, text=text: f"{match[1]}{text}\n{match[2]}",  # type: ignore[misc]
                page, flags=re.DOTALL,
            )  # fmt: skip
        options.write.write_text(page, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
