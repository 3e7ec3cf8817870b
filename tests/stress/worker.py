"""One process under stress: ``python -m tests.stress.worker``; `phase` starts it and tells it what to do.

Requests come as JSON lines, as in `tests.support.fleet_worker`, one at a time, and are served by a thread: the main
thread calls the cache, because signals come to it. The process ends with its input, or with its parent.
"""

import asyncio
import ctypes
import faulthandler
import gc
import json
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import psutil

from magnus_cache import AsyncCacheManager
from tests.stress.callers import Cache, Caller
from tests.stress.keys import FAMILIES, own_key
from tests.stress.records import CACHES, MEMORY, Kind, Log, now
from tests.support.guards import VARIABLE
from tests.support.inside import portal_work
from tests.support.resting import objects, resting

THREADS: Final = 2
"""Blocking callers, beside the main thread."""

LOOPS, TASKS = 2, 3
"""Event loops, one in a thread, and callers of each."""

PAUSE: Final = 0.002
"""Seconds on average between two calls of a caller."""

STALL: Final = 300_000_000
"""Nanoseconds that the watching thread may be late; more, and the process counts as one that stood still."""

ENDING: Final = 20.0
"""Seconds for all calls to end."""

COMPARED: Final = ("plain", "called", "own", "bulky")
"""Families whose values stay as long as nobody changes them."""


class Garbage:
    """Calls the cache when the collector finds it."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._self = self

    def __del__(self) -> None:
        self._caller.unexpected()


class Worker:
    """The requests, each a method."""

    def __init__(self) -> None:
        self.work: SimpleQueue[Any] = SimpleQueue()
        """What the main thread is to do."""
        self._caches: list[Cache] = []
        self._log: Log
        self._over = threading.Event()
        self._callers: dict[str, Caller] = {}
        self._threads: list[threading.Thread] = []
        self._main_done = threading.Event()
        self._failures: list[str] = []
        self._quiet = threading.Event()
        self._watch: threading.Thread

    # -- life -------------------------------------------------------------------------------------------------

    def open(self, number: int, url: str, options: dict[str, Any]) -> int:
        """Make the caches; return the process id."""
        self._number = number
        self._log = Log(Path(os.devnull))
        for place in range(MEMORY + 1):
            # What is in memory alone has room for everything: a value that is not there was lost.
            here = {"redis_enabled": False, "l1_max_entries": 10_000} if place == MEMORY else {"redis_url": url}
            cache = Cache(number * CACHES + place, AsyncCacheManager(**options | here), self._log)
            cache.sync.get("stress", "nothing")
            self._caches.append(cache)
            self._observe(cache)
        return os.getpid()

    def close(self) -> None:
        for cache in self._caches:
            cache.sync.close()

    def _observe(self, cache: Cache) -> None:
        """Write down when a cache has lost a connection, and when it has none."""
        state, down = cache.state, set[Any]()
        since = {"apart": 0, "broken": 0}
        cut, connected = state.events.cut, state.events.connected
        lock = threading.RLock()

        def look() -> None:
            moment = now()
            with lock:
                down.difference_update([wire for wire in down if wire.closed or wire.over])
                bad = {"apart": not cache.in_memory and not state.reachable, "broken": bool(down)}
                for what, kind in (("apart", Kind.APART), ("broken", Kind.BROKEN)):
                    if since[what]:
                        # Again and again: what is asked at the end is complete.
                        self._log.note(kind, cache.number, (0,), since[what], moment)
                    since[what] = moment if bad[what] else 0

        def note_cut(wire: Any) -> None:
            moment = now()
            self._log.note(Kind.CLOSED, cache.number, (0,), moment, moment)
            with lock:
                down.add(wire)
            look()
            cut(wire)
            look()

        def note_connected(wire: Any) -> None:
            look()
            connected(wire)
            with lock:
                down.discard(wire)
            look()

        state.events.cut, state.events.connected = note_cut, note_connected  # type: ignore[method-assign]
        cache.look = look

    # -- a phase ----------------------------------------------------------------------------------------------

    def begin(self, path: str, seed: int, traits: list[str]) -> None:
        """Let all call, and write to this file.

        :param traits: what disturbances want of the process itself.
        """
        log = Log(Path(path))
        old, self._log = self._log, log
        for cache in self._caches:
            cache.log = log
        old.close()
        self._over.clear()
        self._failures.clear()
        self._callers.clear()
        self._main_done.clear()
        self._quiet.clear()
        self._watch = threading.Thread(target=self._watching, name="stress-watch", daemon=True)
        self._watch.start()
        count = iter(range(100))
        self._threads = []
        for _ in range(THREADS):
            caller = self._caller(next(count), seed, in_tasks=False)
            self._threads.append(threading.Thread(target=self._call, args=(caller, traits), daemon=True))
        for _ in range(LOOPS):
            crew = [self._caller(next(count), seed, in_tasks=True) for _ in range(TASKS)]
            self._threads.append(threading.Thread(target=self._loops, args=(crew, seed), daemon=True))
        if "tight loops" in traits:
            for in_tasks in (True, False, False):
                caller = self._caller(next(count), seed, in_tasks=in_tasks)
                caller.tight()
                args = ([caller], seed, 0.0) if in_tasks else (caller, traits, 0.0)
                target = self._loops if in_tasks else self._call
                self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        main = self._caller(next(count), seed, in_tasks=False)
        odd = self._caller(next(count), seed, in_tasks=False)
        for thread in self._threads:
            thread.start()
        self.work.put(lambda: self._main(main, odd, traits, random.Random(seed)))

    def _caller(self, number: int, seed: int, *, in_tasks: bool) -> Caller:
        caller = Caller(self._caches, own_key(self._number, number), seed * 1000 + number, in_tasks=in_tasks)
        self._callers[f"caller {number}, {'a task' if in_tasks else 'a thread'}"] = caller
        return caller

    def _call(self, caller: Caller, traits: list[str], pause: float = PAUSE) -> None:
        dice = random.Random(caller.calls)
        try:
            while not self._over.is_set():
                if "finalizers" in traits:
                    Garbage(caller)
                caller.blocking()
                if pause:
                    self._over.wait(dice.expovariate(1 / pause))
        except BaseException:
            self._failures.append(traceback.format_exc()[-1500:])

    def _loops(self, crew: list[Caller], seed: int, pause: float = PAUSE) -> None:
        """Run one event loop after the other, for some callers."""
        dice = random.Random(seed)

        async def calls(caller: Caller, until: int) -> None:
            while not self._over.is_set() and now() < until:
                await caller.awaited()
                await asyncio.sleep(dice.expovariate(1 / pause) if pause else 0)

        async def main() -> None:
            until = now() + int(dice.uniform(1, 4) * 1e9)
            await asyncio.gather(*(calls(caller, until) for caller in crew))

        try:
            while not self._over.is_set():
                asyncio.run(main())
        except BaseException:
            self._failures.append(traceback.format_exc()[-1500:])

    def _main(self, caller: Caller, odd: Caller, traits: list[str], dice: random.Random) -> None:
        """Call from the main thread, while signals come."""
        armed = False
        inside = False

        def handler(*_: object) -> None:
            nonlocal armed, inside
            if "interrupts" in traits and armed:
                armed = False
                raise KeyboardInterrupt
            if "signals" in traits and not inside:
                inside = True
                try:
                    odd.unexpected()
                finally:
                    inside = False

        if "signals" in traits or "interrupts" in traits:
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, 0.002, 0.0023 if "signals" in traits else 0.0071)
        try:
            while not self._over.is_set():
                try:
                    armed = True
                    caller.blocking()
                    armed = False
                except KeyboardInterrupt:
                    pass
                armed = False
                self._over.wait(dice.expovariate(1 / PAUSE))
        except BaseException:
            self._failures.append(traceback.format_exc()[-1500:])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            self._main_done.set()

    def _watching(self) -> None:
        """Note when this process stands still, when caches are cut off, and what Redis has been told later."""
        last = now()
        while not self._quiet.is_set():
            moment = now()
            if moment - last > STALL:
                self._log.note(Kind.STALLED, self._number * CACHES, (0,), last, moment)
            last = moment
            for cache in self._caches:
                cache.look()
                count = len(cache.untold)
                if count and not cache.state.outbox.pending:
                    for _ in range(count):
                        numbers, began = cache.untold.popleft()
                        self._log.note(Kind.TOLD, cache.number, numbers, began, now())
            time.sleep(0.005)

    def stop(self) -> dict[str, Any]:
        """Let all calls end, and return what they came to."""
        self._over.set()
        deadline = time.monotonic() + ENDING
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._main_done.wait(max(0.0, deadline - time.monotonic()))
        hung = [
            f"{name}: {caller.busy[0]} since {(now() - caller.busy[1]) / 1e9:.1f} s"
            for name, caller in self._callers.items()
            if caller.busy is not None
        ]
        if hung:
            faulthandler.dump_traceback(all_threads=True)
        errors: Counter[str] = Counter()
        for caller in self._callers.values():
            errors.update(caller.errors)
        return {
            "hung": hung,
            "calls": sum(caller.calls for caller in self._callers.values()),
            "worst": max(caller.worst for caller in self._callers.values()) / 1e9,
            "errors": dict(errors) | dict.fromkeys(self._failures, 1),
        }

    def rest(self, patience: float) -> dict[str, Any]:
        """Wait until nothing is under way; return what is, and how much there is of everything."""
        deadline = time.monotonic() + patience
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._quiet.set()
        self._watch.join()
        self._callers.clear()
        self._threads = []
        for cache in self._caches:
            cache.state.memory.sweep(10_000)
        gc.collect()
        sessions = [cache.state.portal.loaders._session for cache in self._caches]
        # Each cache's loop of loaders is begun when it is first needed.
        loaders = {session.thread for session in sessions if session is not None}
        # Nor the idle ones that event loops keep for later.
        others = [thread for thread in threading.enumerate() if not thread.name.startswith("AnyIO worker thread")]
        return {
            "left": left,
            "bytes": psutil.Process().memory_info().rss,
            "objects": objects(),
            "threads": sum(thread not in loaders for thread in others),
        }

    def _left(self) -> list[str]:
        left: list[str] = []
        for cache in self._caches:
            state = cache.state
            if not resting(state):
                left.append(
                    f"cache {cache.number % CACHES}: flights {len(state.flights)}, unattended "
                    f"{state.flights.background}, leases {len(state.leases)}, places {state.memory.pending}, "
                    f"untold {state.outbox.pending}"
                )
            if cache.untold:
                left.append(f"cache {cache.number % CACHES}: {len(cache.untold)} invalidations are not told")
            work = portal_work(state.portal)
            if any(work.values()):
                counts = ", ".join(f"{what} {count}" for what, count in work.items())
                left.append(f"cache {cache.number % CACHES}: {counts}")
        return left

    def values(self) -> list[list[list[int]]]:
        """Return the stamps that each cache on Redis would serve now, by key."""
        found: list[list[list[int]]] = []
        for cache in self._caches[:MEMORY]:
            stamps: list[list[int]] = []
            for name in COMPARED:
                family = FAMILIES[name]
                values = cache.sync.get_many(family.namespace, [key.name for key in family.keys])
                stamps += [[key.number, values[key.name][1]] for key in family.keys if key.name in values]
            found.append(stamps)
        return found


def _die_with_the_parent() -> None:
    if sys.platform == "linux":
        kill, set_signal = signal.SIGKILL, 1
        # Also while this process is stopped, and cannot see the end of its input.
        ctypes.CDLL(None).prctl(set_signal, kill)


def main() -> None:
    _die_with_the_parent()
    faulthandler.enable()
    sys.setswitchinterval(1e-6)
    logging.getLogger("magnus_cache").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if mutant := os.environ.get(VARIABLE):
        from tests.support.mutants import MUTANTS

        MUTANTS[mutant].switch_off()
    worker = Worker()

    def listen() -> None:
        for line in sys.stdin:
            request = json.loads(line)
            number, do = request.pop("id"), request.pop("do")
            try:
                answer = {"id": number, "result": getattr(worker, do)(**request)}
            except Exception:
                answer = {"id": number, "error": traceback.format_exc()}
            print(json.dumps(answer), flush=True)
        # Nobody is left to answer to, whatever is still under way.
        os._exit(0)

    threading.Thread(target=listen, name="stress-requests", daemon=True).start()
    while True:
        try:
            worker.work.get()()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
