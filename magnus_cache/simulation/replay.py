"""Replays a trace with other settings: the engine's rules of freshness, on the clock of the recording.

One replay is one candidate. It goes through the records once, and decides for each access where the value is found, or
that it is loaded. Time passes only from record to record. What is simplified:

- A value that another process invalidates is gone everywhere at once, and nothing is lost on the way.
- A call of Redis takes no time. Redis never evicts, unless the candidate says how much room it has.
- Callers have no limit for a load (`hard_timeout`), and background loads none of their number.
"""

import heapq
from collections.abc import Iterable
from random import Random
from typing import Any, Final

from magnus_cache._engine.coherence.tag_stamps import TagStamp
from magnus_cache._engine.memory.entry import Entry, pack_facts, pack_windows
from magnus_cache.freshness import early_by, lifetime
from magnus_cache.simulation.candidates import Candidate
from magnus_cache.simulation.figures import Figures
from magnus_cache.simulation.levels import Far, Flight, Rules, Value, lapse, next_uses, rules_of
from magnus_cache.simulation.memories import OPTIMUM, TRUST, Memory, Time, make_memory
from magnus_cache.simulation.trace import (
    ACCESS,
    CLEAR,
    DELETE,
    REFRESH,
    TAGS,
    TOUCH,
    WRITE,
    Outcome,
    Trace,
    head_of,
)

__all__ = ["Replay"]

_TAG_ROOM: Final = TagStamp("").room
_NEVER: Final = float("inf")
_SAME: Final = 1.0
"""Seconds within which a simulated load counts as the recorded one."""


class Replay:
    """One replay.

    :ivar figures: by source.
    :ivar evictions: entries that left the memories to make room.
    """

    def __init__(self, trace: Trace, candidate: Candidate, *, seed: int = 0) -> None:
        self._trace = trace
        self._random = Random(seed).random
        self._clock = clock = Time()
        self._rules = [rules_of(facts.source.policy, facts.namespace, candidate) for facts in trace.sources]
        self.figures = [Figures() for _ in trace.sources]
        self._memories: list[Memory] = []
        for header in trace.processes:
            entries = header["l1_max_entries"] if candidate.l1_max_entries is None else candidate.l1_max_entries
            size = header["l1_max_bytes"] if candidate.l1_max_bytes is None else candidate.l1_max_bytes
            rule = candidate.policy or header.get("l1_policy", "car")
            self._memories.append(make_memory(rule, entries, size, clock, scale=trace.scale))
        for rules in self._rules:
            if rules.most is not None:
                for memory in self._memories:
                    memory.limit(head_of(rules.namespace), max(1, round(rules.most / trace.scale)))
        self._shared = [bool(header["redis"]) for header in trace.processes]
        room = candidate.l2_max_bytes
        self._far = Far(None if room is None else int(room / trace.scale))
        self._flights: dict[tuple[int, int], Flight] = {}
        self._due: list[tuple[float, int, Flight]] = []
        self._count = 0
        self._paused: dict[tuple[int, int], float] = {}
        # The latest value of each key; in its process, if it does not go to Redis.
        self._lives: dict[tuple[int, int], Value] = {}
        self._is_optimum = (candidate.policy or "") == OPTIMUM
        self._by_namespace: dict[tuple[str, str], list[int]] = {}
        for key, group in enumerate(trace.groups):
            self._by_namespace.setdefault((group, trace.namespaces[key]), []).append(key)

    @property
    def evictions(self) -> float:
        """Entries that left the memories to make room, of all keys."""
        return sum(memory.evictions for memory in self._memories) * self._trace.scale

    def run(self) -> None:
        """Go through the trace."""
        trace, clock, due = self._trace, self._clock, self._due
        uses = next_uses(trace.ops) if self._is_optimum else ()
        clock.now = trace.began
        self._sow()
        hits = [memory.hit for memory in self._memories]
        figures, rules, names, changes = self.figures, self._rules, trace.names, trace.changes
        # When memory must be confirmed by Redis: a connection that is not used is not renewed, and its trust lapses.
        lapses = [lapse(header) for header in trace.processes]
        used = [trace.began] * len(lapses)
        for place, (at, what, process, source, key, detail) in enumerate(trace.ops):
            while due and due[0][0] <= at:
                self._land()
            clock.now = at
            if what != ACCESS:
                self._other(at, what, process, source, key, detail)
                continue
            if uses:
                self._memories[process].next_use = uses[place]
            idle, used[process] = at - used[process], at
            if rules[source].l1:
                entry = hits[process](names[key])
                if entry is not None and not entry.value.is_error:
                    if idle > lapses[process] and self._far.get(key) is entry.value:
                        figures[source].l2_hits += 1
                    else:
                        figures[source].l1_hits += 1
                    if changes[key]:
                        figures[source].outdated += self._wrongness(key, entry.value, at)
                    continue
            self._look(at, process, source, key)
        while due:
            self._land()

    # -- reads --------------------------------------------------------------------------------------------------

    def _look(self, at: float, process: int, source: int, key: int) -> None:
        """Do what `StalePolicy.get` and the wrappers do when memory has no fresh value."""
        rules, counts, memory = self._rules[source], self.figures[source], self._memories[process]
        entry = memory.stale(self._trace.names[key]) if rules.l1 and not rules.plain else None
        value: Value | None = entry.value if entry is not None else None
        near, refresh_due = value is not None, False
        if value is None and self._is_far(process, rules):
            value = self._far.get(key)
            if value is not None and at < (value.fresh if rules.plain else min(value.end, value.fresh + rules.grace)):
                entry = self._keep(process, source, key, value, at)
            else:
                value = None
        if value is not None and entry is not None and at >= entry.deadline and at < value.fresh:
            # Past the deadline, but fresh: due for a refresh, or older than `l1_ttl` allows.
            refresh_due = rules.early > 0
        if value is not None and value.is_error:
            if at < value.fresh and rules.negative != 0 and not rules.plain:
                counts.errors += 1
                return
            value = None
        if value is not None and at < value.fresh:
            if near:
                counts.l1_hits += 1
            else:
                counts.l2_hits += 1
            counts.outdated += self._wrongness(key, value, at)
            if refresh_due:
                self._begin(at, process, source, key, unwanted=value)
            return
        if value is not None and self._paused.get((process, key), 0.0) > at:
            counts.stale += 1
            return
        counts.misses += 1
        self._load(at, process, source, key, value)

    def _is_far(self, process: int, rules: Rules) -> bool:
        return self._shared[process] and not rules.local

    def _wrongness(self, key: int, value: Value, at: float) -> float:
        """Return how likely it is that a value had changed at the source by now, 0 to 1.

        A change happened at any moment of its span alike.
        """
        right, began = 1.0, value.began
        for first, last in self._trace.changes[key]:
            if first >= at:
                break
            if last > began:
                right *= 1 - (min(last, at) - max(first, began)) / (last - first)
        return 1 - right

    def _load(self, at: float, process: int, source: int, key: int, stale: Value | None) -> None:
        """Do what follows a miss."""
        rules, counts = self._rules[source], self.figures[source]
        if self._is_far(process, rules):
            found = self._far.get(key)
            if found is not None and at < found.fresh and not found.is_error:
                # Another process has refreshed it.
                self._keep(process, source, key, found, at)
                return
        flight = self._begin(at, process, source, key)
        if flight is None:
            return
        ends = flight.began + flight.outcome.took
        if stale is None:
            return
        if rules.soft is not None and ends - at >= rules.soft:
            counts.stale += 1
        else:
            flight.waiting += 1

    def _begin(self, at: float, process: int, source: int, key: int, *, unwanted: Value | None = None) -> Flight | None:
        """Begin a load, or join the one under way; return it.

        :param unwanted: the value that an early refresh is to replace.
        """
        rules, counts = self._rules[source], self.figures[source]
        place = (-1 if self._is_far(process, rules) else process), key
        if (flight := self._flights.get(place)) is not None:
            flight.users.add(process)
            return flight
        if unwanted is not None:
            if self._paused.get((process, key), 0.0) > at:
                return None
            found = self._far.get(key) if place[0] < 0 else None
            if found is not None and found is not unwanted and at < found.fresh:
                self._keep(process, source, key, found, at)
                return None
        outcome = self._trace.outcome(key, at, source)
        if outcome is None:
            return None
        counts.loads += 1
        counts.early += unwanted is not None
        counts.load_seconds += outcome.busy
        counts.money += self._trace.sources[source].price
        counts.failures += outcome.failed
        flight = self._flights[place] = Flight(at, key, process, source, outcome)
        self._count += 1
        heapq.heappush(self._due, (at + outcome.took, self._count, flight))
        return flight

    def _land(self) -> None:
        """End the load that ends next."""
        at, _, flight = heapq.heappop(self._due)
        self._clock.now = at
        rules, outcome, key = self._rules[flight.source], flight.outcome, flight.key
        place = (-1 if self._is_far(flight.process, rules) else flight.process), key
        if self._flights.get(place) is flight:
            del self._flights[place]
        life = outcome.ttl
        if outcome.failed:
            if rules.negative is not None:
                life = rules.negative or None
            if life is None or rules.plain:
                self.figures[flight.source].stale += flight.waiting
                if rules.grace or rules.early:
                    for user in flight.users:
                        self._paused[user, key] = at + rules.retry
                return
        elif rules.ttl is not None and life is not None:
            life = rules.ttl
        for user in flight.users:
            self._paused.pop((user, key), None)
        if life is None or flight.void:
            return
        if not outcome.failed and (rules.ttl is not None or rules.jitter):
            life = lifetime(life, rules.jitter, self._random)
        grace = 0.0 if outcome.failed else rules.grace
        # The recorded load itself, if it began just then: what it found is what was there at its own begin.
        began = outcome.began if 0 <= outcome.began - flight.began < _SAME else flight.began
        value = Value(began, at + life, at + life + grace, outcome, is_error=outcome.failed)
        self._store(at, flight.users, flight.source, key, value)

    def _store(self, at: float, users: Iterable[int], source: int, key: int, value: Value) -> None:
        """Store a value in Redis, and in the memories of those that have it; the others drop what they had."""
        users = set(users)
        one = next(iter(users))
        if self._is_far(one, self._rules[source]):
            self._far.put(key, value)
            self._lives[-1, key] = value
            for other in self._trace.users[key] - users:
                if self._shared[other]:
                    self._memories[other].invalidate(self._trace.names[key])
        else:
            self._lives[one, key] = value
        for user in users:
            self._keep(user, source, key, value, at)

    def _keep(self, process: int, source: int, key: int, value: Value, at: float) -> Entry | None:
        """Keep a value in the memory of a process, if it has any, as `Reads.entry` makes it; return its entry."""
        rules = self._rules[source]
        if not rules.l1 and not rules.early:
            return None
        deadline, more = value.fresh, 0
        if not rules.plain:
            most = max(0.0, deadline - at)
            early = 0.0 if value.is_error else min(most, early_by(value.cost, rules.early, self._random))
            more = pack_windows(early, 0.0 if value.is_error else rules.grace, negative=value.is_error)
            deadline -= early
        if rules.l1_ttl is not None and at + rules.l1_ttl < deadline:
            deadline, more = at + rules.l1_ttl, more & 1
        name, outcome = self._trace.names[key], value.outcome
        size = outcome.size + len(outcome.tags) * _TAG_ROOM + outcome.name_bytes - len(name)
        entry = Entry(value, None, deadline, TRUST, max(0, size), pack_facts(0, more))
        if rules.l1:
            self._memories[process].keep(name, entry, self._trace.ended_tags(outcome.tags))
        return entry

    # -- all else -----------------------------------------------------------------------------------------------

    def _sow(self) -> None:
        """Store what was there before the recording began."""
        trace = self._trace
        for key, (processes, source, at) in trace.seeds.items():
            outcome, rules = trace.outcome(key, at, source), self._rules[source]
            if outcome is None or outcome.ttl is None:
                outcome = trace.sources[source].mean
            if outcome is None or outcome.ttl is None:
                # Nothing is known of its life: it lives.
                outcome = Outcome(at, 0.0, 0.0, False, _NEVER)
            life = outcome.ttl if rules.ttl is None else rules.ttl
            assert life is not None
            assert outcome.ttl is not None
            ends = trace.ends[key]
            next_load = trace.outcomes[key][0].ended - trace.outcomes[key][0].took if ends else trace.began
            # It was stored so long before the load that replaced it; without one, just before the recording.
            began = min(next_load - outcome.ttl, at) if ends else trace.began
            fresh = min(began + life, at + 1e9)
            if fresh <= trace.began:
                continue
            value = Value(began, fresh, fresh + rules.grace, outcome)
            user = next(iter(processes), -1)
            if user < 0 or self._is_far(user, rules):
                self._far.put(key, value)
            for process in processes:
                self._keep(process, source, key, value, trace.began)

    def _other(self, at: float, what: int, process: int, source: int, key: int, detail: Any) -> None:
        if what in (WRITE, REFRESH):
            rules, outcome = self._rules[source], detail
            if what == WRITE:
                self._end(at, process, key, source)
            life = outcome.ttl if rules.ttl is None else rules.ttl
            if life is None:
                known = self._trace.outcome(key, at, source)
                life = known.ttl if known is not None else None
            if life is not None:
                began = at - outcome.took if what == REFRESH else at
                value = Value(began, at + life, at + life + rules.grace, outcome)
                self._store(at, (process,), source, key, value)
        elif what == DELETE:
            self._end(at, process, key, source)
        elif what == TOUCH:
            self._touch(at, process, key, detail)
        elif what == CLEAR:
            self._clear(at, process, detail)
        elif what == TAGS:
            self._end_tags(at, process, detail)

    def _touch(self, at: float, process: int, key: int, ttl: float) -> None:
        value = self._far.get(key)
        if value is not None and at < value.fresh:
            grace = value.end - value.fresh
            again = Value(value.began, at + ttl, at + ttl + grace, value.outcome)
            self._far.put(key, again)
        for user in self._trace.users[key]:
            self._memories[user].invalidate(self._trace.names[key])

    def _end(self, at: float, process: int, key: int, source: int = -1) -> None:
        """Remove a value everywhere, and void its loads."""
        self._drop(at, process, key, source)
        for user in self._users(process, key):
            self._memories[user].invalidate(self._trace.names[key])

    def _users(self, process: int, key: int) -> list[int]:
        """Return the processes that hear of a change of a value that a process makes."""
        if not self._shared[process]:
            return [process]
        return [user for user in self._trace.users[key] if user == process or self._shared[user]]

    def _drop(self, at: float, process: int, key: int, source: int = -1) -> None:
        """Remove a value from Redis, void its loads, and count the life that ends so."""
        alive = False
        if self._shared[process]:
            self._far.pop(key)
            alive = self._ended(at, (-1, key))
        for user in self._users(process, key):
            alive = self._ended(at, (user, key)) or alive
        if alive:
            self.figures[self._source_of(key, source)].cut_short += 1

    def _ended(self, at: float, place: tuple[int, int]) -> bool:
        """Void the load of a value, and return whether the value was fresh."""
        flight = self._flights.pop(place, None)
        if flight is not None:
            flight.void = True
        value = self._lives.pop(place, None)
        return value is not None and at < value.fresh

    def _source_of(self, key: int, source: int) -> int:
        if source >= 0:
            return source
        namespace = self._trace.namespaces[key]
        return next(at for at, facts in enumerate(self._trace.sources) if facts.namespace == namespace)

    def _clear(self, at: float, process: int, namespace: str | None) -> None:
        group = self._trace.processes[process]["group"]
        for (its, name), keys in self._by_namespace.items():
            if its != group or namespace not in (None, name):
                continue
            for key in keys:
                self._drop(at, process, key)
            for user, memory in enumerate(self._memories):
                if user == process or (self._shared[user] and self._trace.processes[user]["group"] == group):
                    memory.clear(head_of(name))

    def _end_tags(self, at: float, process: int, tags: frozenset[int]) -> None:
        keys = list(dict.fromkeys(key for tag in tags for key in self._trace.tagged.get(tag, ())))
        for key in keys:
            value = self._lives.get((-1, key)) or self._lives.get((process, key))
            # Its present value may have other tags than an earlier one.
            if value is None or not tags.isdisjoint(value.outcome.tags):
                self._drop(at, process, key)
        names = [self._trace.names[key] for key in keys]
        for user, memory in enumerate(self._memories):
            if user == process or (self._shared[process] and self._shared[user]):
                memory.end_tags(tags, names)
