"""Guards of the package, each of which can be switched off: a pytest plugin, and the list that `nox -s mutants` runs.

``-p tests.support.mutants`` with ``MAGNUS_CACHE_MUTANT`` set to a name switches that guard off. A test that goes on to
pass proves nothing about it.
"""

import asyncio
import contextvars
import dataclasses
import math
import os
from typing import Any, Final

from magnus_cache import errors, freshness
from magnus_cache._engine.api import many
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coherence import epochs
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination import epoch_sync, failover, generations, leases, replay, state
from magnus_cache._engine.flights import callers, context, flights, registry
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading import acquire, batch, loads, throttle
from magnus_cache._engine.loading import stale as refreshes
from magnus_cache._engine.memory import entry as entries
from magnus_cache._engine.memory import store as memory
from magnus_cache._engine.outage import breaker, journal, journal_file, journal_queue, outbox
from magnus_cache._engine.redis import (
    bulk,
    commands,
    connection,
    frame_limits,
    handshake,
    orphans,
    pipeline,
    scripts,
    watchdog,
    wire,
)
from magnus_cache._engine.runtime import loop_end, workers
from magnus_cache._engine.store import clears, reads, reads_many, values, writes
from magnus_cache._engine.store import negative as negatives
from magnus_cache._engine.store.records import MISS, KeyRef

# Each registers its guards by being imported.
from tests.support import (  # noqa: F401
    mutants_elements,
    mutants_epochs,
    mutants_fallback,
    mutants_hostile,
    mutants_identity,
    mutants_interrupts,
    mutants_joining,
    mutants_keys,
    mutants_life,
    mutants_logs,
    mutants_methods,
    mutants_noise,
    mutants_pushes,
    mutants_results,
    mutants_soak,
    mutants_stalls,
    mutants_types,
)
from tests.support.guards import MUTANTS, VARIABLE, edit, guard, nothing, put


def pytest_configure() -> None:
    name = os.environ.get(VARIABLE)
    if name:
        MUTANTS[name].switch_off()


# -- leases -------------------------------------------------------------------------------------------------------

LEASES: Final = "tests/coordination/test_leases.py"
EPOCHS: Final = "tests/coordination/test_epochs.py"
COHERENCE: Final = "tests/coordination/test_coherence.py"
RACES: Final = "tests/store/test_races.py"
BATCHES: Final = "tests/loading/test_batches.py"
FLIGHTS: Final = "tests/flights/test_flights.py"
OUTAGE: Final = "tests/outage/test_outage.py"
ROLLBACK: Final = "tests/coordination/test_rollback.py"
BREAKER: Final = "tests/outage/test_breaker.py"
REACTIONS: Final = "tests/redis/test_reactions.py"
EVICTION: Final = "tests/redis/test_eviction.py"
LATE: Final = "tests/redis/test_late_delivery.py"
LIFECYCLE: Final = "tests/api/test_lifecycle.py"


@guard(LEASES)
def without_token_check_of_a_fill() -> None:
    edit(scripts._FILL, "~= ARGV[1] then return 0 end", "== '?' then return 0 end")


@guard(LEASES)
def without_a_unique_token() -> None:
    for module in (leases, acquire):
        put(module, "new_token", lambda: b"always the same")
    put(leases, "new_version", lambda: 7)


@guard(LEASES)
def without_token_check_of_a_release() -> None:
    edit(scripts._RELEASE, "~= ARGV[1] then return 0 end", "== '?' then return 0 end")


@guard(LEASES)
def without_the_lease_in_a_write() -> None:
    put(commands, "lease_name", lambda name, *_: b"elsewhere:" + name)


@guard(LEASES)
def without_detach_on_delete() -> None:
    def touch(self: Any, names: Any) -> None:
        for name in names:
            self.memory.invalidate(name)

    put(state.State, "touch", touch)


@guard(LEASES, EPOCHS)
def without_detach_on_clear() -> None:
    put(state.State, "forget_prefix", lambda self, prefix: self.memory.clear(prefix))


@guard(LEASES)
def without_the_announcement_of_a_lost_lease() -> None:
    put(leases.Leases, "announced", lambda self, name, _: self.ring(name))


@guard(LEASES)
def without_renewal() -> None:
    put(leases.Lease, "_renew", nothing)


@guard(LEASES)
def without_reading_the_lease_after_its_renewal() -> None:
    edit(scripts._RENEW, "return redis.call('EXISTS', KEYS[1])", "return 1")


@guard(LEASES)
def without_release_after_a_failure() -> None:
    put(scripts, "release", lambda *_, **__: commands.TIME)


@guard(LEASES)
def without_bells() -> None:
    put(leases.Leases, "ring", nothing)


@guard(LEASES)
def without_a_bound_on_waiting() -> None:
    put(acquire, "monotonic", lambda: 0.0)


@guard(LEASES)
def without_a_check_of_trust_before_joining() -> None:
    put(leases.Leases, "check", nothing)


@guard(LEASES)
def without_a_heartbeat_while_loading() -> None:
    def on_beat(self: Any) -> None:
        self._beat = None
        if self._up and self.trust.used:
            self.trust.used = False
            self._pulse()

    put(wire.Wire, "_on_beat", on_beat)


@guard(LEASES)
def without_giving_back_what_was_granted_to_the_cancelled() -> None:
    put(acquire, "_give_back", nothing)
    original = acquire.LeaseAcquirer._answered

    def answered(self: Any, *args: Any) -> Any:
        class Never:
            def done(self) -> bool:
                return False

        return original(self, *args[:6], Never(), *args[7:])  # type: ignore[arg-type]

    put(acquire.LeaseAcquirer, "_answered", answered)


@guard(LEASES)
def without_an_end_for_leases_of_interrupted_threads() -> None:
    original = leases.Lease._renew

    def renew(self: Any) -> None:
        flight, self.flight = self.flight, None
        original(self)
        self.flight = flight

    put(leases.Lease, "_renew", renew)


@guard(LEASES)
def without_the_rejected_header() -> None:
    original = scripts.acquire
    put(scripts, "acquire", lambda name, _, *rest, **more: original(name, b"", *rest, **more))


@guard(LEASES)
def without_refusing_to_keep_what_was_loaded_alone() -> None:
    original = acquire.LeaseAcquirer.unclaimed

    def unclaimed(self: acquire.LeaseAcquirer, flight: Flight, *, fresh: bool) -> leases.Fence:
        fence = original(self, flight, fresh=fresh)
        fence.offline = self._state.generations.offline
        return fence

    put(acquire.LeaseAcquirer, "unclaimed", unclaimed)


@guard(LEASES)
def without_sending_forgotten_scripts_again() -> None:
    put(pipeline, "NoScriptError", type("Other", (Exception,), {}))


@guard(LEASES, RACES)
def without_reading_the_value_after_a_fill() -> None:
    edit(scripts._FILL, "return redis.call('EXISTS', KEYS[1])", "return 1")


@guard(LEASES)
def without_voiding_by_a_flush() -> None:
    put(leases.Leases, "flushed", nothing)


# -- the near cache -----------------------------------------------------------------------------------------------


@guard("tests/memory/test_memory.py")
def without_the_identity_of_the_placeholder() -> None:
    def fill(self: Any, placeholder: Any, entry: Any) -> bool:
        with self._lock:
            return bool(self._store(placeholder.name, entry))

    put(memory.LocalCache, "fill", fill)


@guard(COHERENCE)
def without_trust() -> None:
    put(Trust, "kill", nothing)


@guard(COHERENCE)
def without_a_deadline_of_trust() -> None:
    def make_hit(self: Any) -> Any:
        def hit(name: bytes) -> Any:
            entry = self._table.get(name)
            return entry if entry is not None and self._clock() < entry and self._stands(name, entry) else None

        return hit

    put(memory.LocalCache, "_make_hit", make_hit)


@guard(COHERENCE)
def without_keeping_our_own_writes_quiet() -> None:
    original = pipeline.Pipeline.compose
    put(pipeline.Pipeline, "compose", lambda self, now, **_: original(self, now))


@guard(COHERENCE)
def without_reading_after_our_own_write() -> None:
    original = commands.store

    def store(name: bytes, *args: Any, **more: Any) -> Any:
        command = original(name, *args, **more)
        command.packed = command.packed.replace(commands.pack(b"EXISTS", name), commands.pack(b"EXISTS", b"other"))
        return command

    put(commands, "store", store)
    # The reply to EXISTS says that the value is there; without the key it would not.
    put(writes.Writes, "_stored", _stored_always(writes.Writes._stored))


def _stored_always(original: Any) -> Any:
    def stored(self: Any, ref: Any, fill: Any, held: Any, times: Any, reply: Any, *rest: Any) -> Any:
        if isinstance(reply, list):
            reply = [*reply[:-1], 1]
        return original(self, ref, fill, held, times, reply, *rest)

    return stored


@guard(COHERENCE, OUTAGE)
def without_distrust_of_a_lost_connection() -> None:
    original = wire.Wire._lost

    def lost(self: Any, error: Any) -> None:
        trust, self.trust = self.trust, Trust(0.0)
        original(self, error)
        self.trust = trust

    put(wire.Wire, "_lost", lost)


@guard(RACES)
def without_touching_again_when_the_answer_comes() -> None:
    put(bulk, "_removed", lambda _touch, _names, reply, *_: reply)
    # Where our own removals are announced, that does it as well.
    put(handshake, "_ORDERLY", 1_000)


@guard(RACES)
def without_voiding_after_the_record() -> None:
    put(writes.Writes, "unsure", lambda self, names: self.state.outbox.record(names))


# -- epochs -------------------------------------------------------------------------------------------------------


@guard(EPOCHS)
def without_capturing_the_epoch_before_the_load() -> None:
    original = writes.Writes.fill

    async def fill(self: Any, *args: Any) -> bool:
        args[-1].epoch = self.state.epochs.highest
        return await original(self, *args)

    put(writes.Writes, "fill", fill)


@guard(EPOCHS)
def without_epochs() -> None:
    put(epochs.Epochs, "floor", lambda *_: 0)


@guard(EPOCHS)
def without_issuing_a_missing_epoch() -> None:
    def told(self: Any, asking: Any, raw: Any, source: Any, _sent: float) -> bool:
        self._epochs.seen(asking.name, epochs.epoch_of(raw))
        source.known.current.add(asking.name)
        return True

    put(epoch_sync.EpochSync, "_told", told)


@guard(EPOCHS)
def without_our_own_knowledge() -> None:
    put(epochs.Epochs, "latest", lambda *_: 0)


@guard(EPOCHS)
def without_the_push_of_an_epoch() -> None:
    put(state.State, "outdated", nothing)


@guard(EPOCHS)
def without_outdating_tagged_entries() -> None:
    put(memory.LocalCache, "outdate", nothing)


@guard(EPOCHS)
def without_turning_away_who_joined_an_overtaken_load() -> None:
    async def never(*_: Any) -> bool:
        return False

    put(acquire.LeaseAcquirer, "overtaken", never)


@guard(EPOCHS)
def without_the_guard_of_adopted_tags() -> None:
    edit(scripts._ADOPT, "since and since <= captured and last and last <= captured", "true")


@guard(EPOCHS)
def without_the_beginning_of_the_guard() -> None:
    edit(scripts._ADOPT, "since and since <= captured and", "")


@guard(EPOCHS)
def without_the_age_in_a_reclaim() -> None:
    edit(scripts._RECLAIM, "if not stamp or", "if true or not stamp or")


@guard(EPOCHS)
def without_last_plus_one() -> None:
    edit(scripts._BUMP, "math.max(now, last + 1)", "now")


@guard(EPOCHS)
def without_an_end_of_epochs_nobody_announces() -> None:
    put(epochs.KnownEpochs, "forget", nothing)


@guard(EPOCHS)
def without_recording_clears() -> None:
    put(outbox.Outbox, "record_prefix", nothing)


@guard(EPOCHS)
def without_recording_tags() -> None:
    put(outbox.Outbox, "record_tags", nothing)


@guard(EPOCHS)
def without_a_bound_on_remembered_epochs() -> None:
    put(epochs, "_MOST", 10**9)


@guard(RACES)
def without_voiding_reads_when_a_clear_is_answered() -> None:
    put(clears.Invalidator, "_forget", nothing)
    put(state.State, "outdated", nothing)


@guard(EPOCHS)
def without_the_epoch_that_came_with_the_lease() -> None:
    original = acquire.LeaseAcquirer._informed

    async def informed(self: Any, wire_: Any, ref: Any, tags: Any, fence: Any) -> Any:
        epoch, known = fence.epoch, self._state.epochs.floor(wire_.known, ref.epoch_names, tags) is not None
        fence = await original(self, wire_, ref, tags, fence)
        fence.epoch = epoch if known else fence.epoch
        return fence

    put(acquire.LeaseAcquirer, "_informed", informed)


# -- flights and batches ------------------------------------------------------------------------------------------


@guard(FLIGHTS)
def without_the_identity_of_a_flight() -> None:
    put(flights.Flights, "_forget", lambda self, flight: self._flights.pop(flight.key, None))


@guard(FLIGHTS)
def without_waiter_counts() -> None:
    original = flights.Flights._leave

    def leave(self: Any, seat: Any) -> None:
        original(self, seat)
        if seat.flight.task is not None and not seat.flight.done:
            seat.flight.task.cancel()

    put(flights.Flights, "_leave", leave)


@guard(BATCHES)
def without_leaving_waited_keys_out_of_the_first_call() -> None:
    original = acquire.LeaseAcquirer.acquire

    async def acquire_otherwise(self: Any, *args: Any, waiting: Any = None, **more: Any) -> Any:
        return await original(self, *args, **more)

    put(acquire.LeaseAcquirer, "acquire", acquire_otherwise)


@guard(BATCHES)
def without_one_call_for_all_keys() -> None:
    put(batch.Batch, "_decided", _at_once)


def _at_once(self: Any, count: int) -> None:
    self._undecided -= count
    self._start()


@guard(BATCHES)
def without_handing_left_out_keys_on() -> None:
    put(callers.Look, "left_out_by", property(nothing, nothing))


# -- outages ------------------------------------------------------------------------------------------------------


@guard(OUTAGE)
def without_the_record_of_what_redis_missed() -> None:
    put(outbox.Outbox, "record", nothing)


@guard(OUTAGE, RACES)
def without_disbelief_until_it_is_told() -> None:
    put(outbox.Outbox, "covers", lambda *_: False)


@guard(OUTAGE)
def without_letting_go_of_what_redis_has_no_more() -> None:
    put(memory.LocalCache, "drop", nothing)


@guard(RACES)
def without_an_end_for_who_waits_for_a_wire() -> None:
    put(wire.Wire, "_end", nothing)


@guard(RACES)
def without_a_look_at_replies() -> None:
    put(pipeline, "_check_values", nothing)


@guard(RACES)
def without_hearing_parts_of_answers() -> None:
    took = frame_limits.Intake._took

    def unheard(self: Any, size: int) -> bool:
        heard = self.heard
        taken = took(self, size)
        self.heard = heard
        return taken

    put(frame_limits.Intake, "_took", unheard)


@guard(RACES)
def without_patience_for_large_replies() -> None:
    put(watchdog, "PATIENCE", 1)


@guard(RACES)
def without_threads_of_its_own_for_compression() -> None:
    put(writes, "CapacityLimiter", lambda _: None)


@guard(RACES)
def without_looking_at_cancelled_reads() -> None:
    original = reads_many._read_many

    async def read_many(self: Any, refs: Any) -> Any:
        wire_ = self.state.wire()
        if wire_ is None or not wire_.up:
            return await original(self, refs)
        waiters = [self.request(wire_, ref, None)[0] for ref in refs]
        return [await waiter for waiter in waiters]

    put(reads_many, "_read_many", read_many)


# -- what our own commands bring about ---------------------------------------------------------------------------


@guard(EVICTION)
def without_hearing_of_what_our_own_commands_evict() -> None:
    put(handshake, "_ORDERLY", 1_000)


@guard(EVICTION)
def without_quiet_writes() -> None:
    compose = pipeline.Pipeline.compose
    put(pipeline.Pipeline, "compose", lambda self, now, quiet=False: compose(self, now))


@guard(EVICTION)
def without_going_back_to_noloop_where_writes_cannot_be_quiet() -> None:
    original = handshake.answers

    async def answers(link: Any, *packed: bytes) -> Any:
        return [b"OK"] if packed == (commands.TRACKING.packed,) else await original(link, *packed)

    put(handshake, "answers", answers)


# -- what arrives late -------------------------------------------------------------------------------------------


@guard(LATE)
def without_ending_what_was_given_up() -> None:
    put(orphans.OrphanedConnections, "ends", lambda *_: [])


@guard(LATE)
def without_a_reset_of_what_was_given_up() -> None:
    put(connection, "_abort", nothing)


# -- Redis' own troubles ------------------------------------------------------------------------------------------


@guard(ROLLBACK)
def without_asking_for_a_servers_history() -> None:
    put(state.State, "greeting", nothing)


@guard(ROLLBACK)
def without_asking_again_for_a_history_once_the_data_is_gone() -> None:
    put(handshake.HistoryCheck, "__init__", lambda self, known, _: put(self, "_known", known))
    put(handshake.HistoryCheck, "set_result", nothing)


@guard(ROLLBACK)
def without_vouching_for_a_server() -> None:
    put(failover.FailoverGuard, "vouch", nothing)


@guard(ROLLBACK)
def without_telling_that_everything_is_invalidated() -> None:
    edit(scripts._ARRIVE, "if redis.pcall('GET', KEYS[4]) == ARGV[2] then return '' end", "return ''")


@guard(ROLLBACK)
def without_telling_it_once() -> None:
    edit(scripts._ARRIVE, "redis.call('SET', KEYS[4], ARGV[2])", "")


@guard(BREAKER)
def without_one_trial_at_a_time() -> None:
    put(breaker.Breaker, "admit", lambda self, now: max(0.0, self.retry_at - now) if self.open else 0.0)


@guard(BREAKER)
def without_telling_those_who_wait_for_redis() -> None:
    original = breaker.Breaker.listen
    put(breaker.Breaker, "listen", lambda self, bell: original(self, nothing))


@guard(REACTIONS)
def without_the_probe() -> None:
    original = handshake.answers

    async def answers(link: Any, *packed: bytes) -> list[Any]:
        return await original(link, *(commands.TIME.packed if b"!probe" in word else word for word in packed))

    put(handshake, "answers", answers)


@guard(REACTIONS)
def without_leaving_a_demoted_server() -> None:
    put(wire, "ReadOnlyError", type("Other", (Exception,), {}))


@guard(REACTIONS)
def without_counting_loads_that_redis_does_not_take() -> None:
    put(writes.Writes, "_stays_here", nothing)


@guard(REACTIONS)
def without_telling_what_is_refused_from_who_is() -> None:
    original = errors.CacheUnavailableError.__init__

    def init(self: Any, reason: str, problem: str, *, refused: bool = False) -> None:
        original(self, reason, problem, refused=refused or reason in {"noperm", "error"})

    put(errors.CacheUnavailableError, "__init__", init)


@guard(REACTIONS)
def without_knowing_who_serves_nobody() -> None:
    put(wire, "unable", nothing)


# -- policies of freshness ----------------------------------------------------------------------------------------

FRESHNESS: Final = "tests/policy/test_freshness.py"
POLICIES: Final = "tests/loading/test_policies.py"


@guard(POLICIES)
def without_trust_in_what_is_stale() -> None:
    original = memory.LocalCache.past
    put(memory.LocalCache, "past", lambda self, name, *, trusted: original(self, name, trusted=False))


@guard(POLICIES)
def without_what_is_left_in_an_outage() -> None:
    put(reads.Reads, "last", nothing)


@guard(POLICIES)
def without_a_pause_after_a_failed_load() -> None:
    put(throttle.RetryThrottle, "holds", lambda *_: False)


@guard(POLICIES)
def without_an_end_of_the_pause() -> None:
    put(throttle.RetryThrottle, "holds", lambda self, name: name in self._until)


@guard(POLICIES)
def without_a_pause_after_a_value_that_its_rules_choke_on() -> None:
    original = loads.Loads._hold_back

    def hold_back(self: Any, ref: Any, error: Exception) -> None:
        if not isinstance(error, KeyError):
            original(self, ref, error)

    put(loads.Loads, "_hold_back", hold_back)


@guard(POLICIES)
def without_a_bound_on_loads_that_nobody_waits_for() -> None:
    original = flights.Flights.__init__
    put(flights.Flights, "__init__", lambda self, *_, **options: original(self, 1 << 30, **options))


@guard(POLICIES)
def without_letting_a_load_go_on() -> None:
    put(flights.Flights, "_let_go_on", nothing)


@guard(POLICIES)
def without_an_end_of_waiting() -> None:
    original = flights.Flights.run

    async def run(self: Any, key: bytes, load: Any, **options: Any) -> Any:
        return await original(self, key, load, **{**options, "patience": None})

    put(flights.Flights, "run", run)


@guard(POLICIES)
def without_cancelling_what_goes_on_at_the_end() -> None:
    put(flights.Flights, "_call_off", nothing)


@guard(POLICIES)
def without_a_context_of_its_own_for_an_early_load() -> None:
    class Nested(Flight):
        __slots__ = ("_outer",)

        @property
        def outer(self) -> Any:
            return self._outer

        @outer.setter
        def outer(self, outer: Any) -> None:
            self._outer = outer or getattr(self, "_outer", None)

    put(registry, "Flight", Nested)


@guard(POLICIES)
def without_telling_what_is_to_be_refreshed() -> None:
    original = acquire.LeaseAcquirer._found
    put(acquire.LeaseAcquirer, "_found", lambda self, ref, fill, _, *answer: original(self, ref, fill, None, *answer))


@guard(POLICIES)
def without_the_class_of_a_remembered_error() -> None:
    put(negatives, "_named", lambda _, base: base)


@guard(POLICIES)
def without_asking_who_wants_remembered_errors() -> None:
    original = negatives.decode_error
    everybody = freshness.Freshness(negative=((Exception, 1.0),))
    put(values, "decode_error", lambda payload, _, limit: original(payload, everybody, limit))


@guard(POLICIES)
def without_remembering_errors() -> None:
    put(freshness.Freshness, "negative_ttl", nothing)


@guard(POLICIES)
def without_telling_errors_from_values() -> None:
    put(entries.Entry, "negative", False)


@guard(POLICIES)
def without_grace_in_redis_expiry() -> None:
    original = writes.Writes._send

    async def send(self: Any, wire_: Any, ref: Any, *rest: Any) -> bool:
        graceless = KeyRef(
            ref.namespace, ref.name, ref.counters, ref.epoch_names,
            dataclasses.replace(ref.freshness, grace=0.0),
        )  # fmt: skip
        return await original(self, wire_, graceless, *rest)

    put(writes.Writes, "_send", send)


@guard(POLICIES)
def without_keeping_what_is_stale_near() -> None:
    put(entries.Entry, "end", property(lambda self: self.real))


@guard(POLICIES)
def without_refusing_what_is_stale_to_who_only_looks() -> None:
    put(reads.Reads, "opened_here", reads.Reads.opened_anyway)
    put(reads.Reads, "opened", reads.Reads.opened_anyway)


@guard(POLICIES)
def without_telling_mistakes_from_failures() -> None:
    put(refreshes.StalePolicy, "_excused", lambda self, ref, error, stale: stale is not MISS)


@guard(FRESHNESS, POLICIES)
def without_an_end_of_grace() -> None:
    original = freshness.classify

    def standing(now: float, due: float, fresh_until: float, end: float) -> Any:
        return original(now, due, fresh_until, max(end, now + 1))

    put(freshness, "classify", standing)
    put(refreshes, "classify", standing)
    put(entries.Entry, "end", property(lambda self: math.inf))
    put(
        reads,
        "pack_windows",
        lambda fresh, stale, *, negative=False: entries.pack_windows(fresh, 1e6, negative=negative),
    )


@guard(FRESHNESS, POLICIES)
def without_refreshing_early() -> None:
    for module in (freshness, reads):
        put(module, "early_by", lambda *_: 0.0)


@guard(POLICIES)
def without_jitter() -> None:
    put(writes, "lifetime", lambda ttl, *_: ttl)


@guard(FRESHNESS)
def without_a_bound_on_jitter() -> None:
    put(freshness, "lifetime", lambda ttl, jitter, random: ttl * (1 + jitter * random()))


@guard(FRESHNESS)
def without_a_least_draw() -> None:
    put(freshness, "_LEAST", 0.0)


@guard(POLICIES)
def without_asking_what_was_not_modified() -> None:
    put(context.CurrentLoad, "has_previous", True)


@guard(POLICIES)
def without_the_validator() -> None:
    original = envelope.read_validator
    put(envelope, "read_validator", lambda raw, header: (None, original(raw, header)[1]))


@guard(LEASES)
def without_giving_back_leases_that_an_outage_kept() -> None:
    put(leases.Leases, "release_lost", nothing)


@guard(POLICIES)
def without_telling_what_outages_a_value_has_been_through() -> None:
    original = generations.OutageGenerations.connected

    def connected(self: Any, wire: Any, *, first: bool) -> None:
        original(self, wire, first=False)

    put(generations.OutageGenerations, "connected", connected)
    put(Trust, "retire", Trust.kill)


@guard(POLICIES)
def without_what_is_due_for_a_refresh() -> None:
    put(memory.LocalCache, "peek", lambda self, name: self.hit(name))


@guard(POLICIES)
def without_a_bound_on_reading() -> None:
    async def read(self: Any, ref: Any, tags: Any) -> Any:
        entry = await self._reads.read(ref, tags)
        return self._reads.last(ref) if entry is None else entry

    put(refreshes.StalePolicy, "_read", read)


@guard(POLICIES)
def without_stale_values_for_batches() -> None:
    original = many._Search.found

    def found(self: Any, item: Any, entry: Any, value: Any, *, near: bool) -> None:
        original(self, item, None if value is MISS else entry, value, near=near)

    put(many._Search, "found", found)


# -- loaders that block, hang, pile up -----------------------------------------------------------------------------

LOADERS: Final = "tests/loading/test_loader_threads.py"
ERRORS: Final = "tests/loading/test_remembered_errors.py"


@guard(LOADERS)
def without_making_room_while_waiting() -> None:
    put(workers.Job, "pause", nothing)
    put(workers.Job, "resume", nothing)


@guard(LOADERS)
def without_places_for_each_namespace() -> None:
    original = workers.LoaderThreads._in_thread
    put(workers.LoaderThreads, "_in_thread", lambda self, loader, _: original(self, loader, ""))


@guard(LOADERS)
def without_counting_threads_to_their_end() -> None:
    original = workers.LoaderThreads._in_thread

    async def in_thread(self: Any, loader: Any, namespace: str) -> Any:
        jobs: list[Any] = []
        made = workers.Job
        put(workers, "Job", lambda *args: jobs.append(made(*args)) or jobs[-1])
        try:
            return await original(self, loader, namespace)
        except asyncio.CancelledError:
            jobs[-1].end()
            put(jobs[-1].__class__, "end", nothing)
            raise
        finally:
            put(workers, "Job", made)

    put(workers.LoaderThreads, "_in_thread", in_thread)


@guard(LOADERS)
def without_asking_for_a_place_first() -> None:
    original = flights.Flights._board
    put(flights.Flights, "_board", lambda *args, **options: original(*args, **{**options, "for_nobody": False}))


@guard(LOADERS)
def without_leaving_alone_what_was_given_up() -> None:
    put(refreshes.StalePolicy, "_impatient", nothing)


@guard(LOADERS)
def without_an_age_of_loads() -> None:
    put(registry.FlightRegistry, "overdue", nothing)


@guard(RACES)
def without_an_end_of_joining_what_has_no_lease() -> None:
    put(registry.FlightRegistry, "expire", nothing)


@guard(LIFECYCLE)
def without_a_context_of_the_wires_own() -> None:
    put(loop_end, "Context", contextvars.copy_context)


@guard(BREAKER)
def without_telling_who_waits_for_an_attempt_that_is_not_due() -> None:
    put(wire.Wire, "_rest", nothing)


@guard(LIFECYCLE)
def without_an_error_for_each_who_raises_it() -> None:
    put(errors.CacheUnavailableError, "again", lambda self: self)


@guard(LOADERS)
def without_giving_back_the_lease_of_what_hangs() -> None:
    put(leases.Leases, "let_go", nothing)


@guard(LOADERS)
def without_more_time_for_the_next_attempt() -> None:
    original = registry.FlightRegistry._enter

    def enter(self: Any, flight: Any) -> Any:
        replaced = original(self, flight)
        flight.tolerance = 2.0
        return replaced

    put(registry.FlightRegistry, "_enter", enter)


@guard(LOADERS)
def without_cancelling_what_was_replaced() -> None:
    put(flights.Flights, "_cancel_unwanted", nothing)


@guard(LOADERS)
def without_an_end_of_renewals() -> None:
    original = leases.Lease.__init__

    def init(self: Any, *args: Any) -> None:
        original(self, *args)
        self._left = 1 << 30

    put(leases.Lease, "__init__", init)


@guard(LOADERS)
def without_leaving_the_exit_to_the_leader() -> None:
    original = flights.Flights._fly

    async def fly(self: Any, flight: Any, load: Any) -> None:
        raised: list[SystemExit] = []

        async def loading(flight: Any) -> Any:
            try:
                return await load(flight)
            except SystemExit as error:
                raised.append(error)
                raise

        await original(self, flight, loading)
        if raised:
            raise raised[0]

    put(flights.Flights, "_fly", fly)


@guard(ERRORS)
def without_comparing_what_came_back() -> None:
    put(negatives, "_alike", lambda *_: True)


@guard(ERRORS)
def without_the_built_in_class_beneath() -> None:
    put(negatives, "_base", lambda kind: kind)


# -- warm reconnection --------------------------------------------------------------------------------------------

WARM: Final = "tests/coordination/test_warm_reconnect.py"


@guard(WARM)
def without_comparing_with_what_is_here() -> None:
    put(reads, "comparable", lambda *_: False)


@guard(WARM)
def without_looking_at_the_version() -> None:
    edit(scripts._COMPARE, "== ARGV[1] then return {1, head} end", "then return {1, head} end")


@guard(WARM)
def without_judging_what_was_recognized() -> None:
    original = reads.recognized

    def recognized(near: Any, reply: Any) -> Any:
        held, fresh_until, raw = original(near, reply)
        return (held and held._replace(epoch=1 << 62, tags=())), fresh_until, raw

    put(reads, "recognized", recognized)


@guard(WARM)
def without_reading_where_comparing_is_forbidden() -> None:
    put(reads, "JUDGEMENTS", 1)


@guard(WARM)
def without_waiting_for_a_connection_that_is_being_made() -> None:
    original = wire.Wire._enqueue

    def enqueue(self: Any, asked: Any) -> None:
        if self._error is not None:
            raise self._error
        original(self, asked)

    put(wire.Wire, "_enqueue", enqueue)


@guard(WARM)
def without_telling_failures_of_before_from_those_of_now() -> None:
    original = breaker.Breaker.succeeded

    def succeeded(self: Any, now: float) -> None:
        original(self, now)
        self.succeeded_at = -math.inf

    put(breaker.Breaker, "succeeded", succeeded)


# -- what an outage leaves to be done -----------------------------------------------------------------------------

LAST: Final = "tests/outage/test_last_words.py"


@guard(LAST)
def without_an_end_of_what_close_has_begun_to_end() -> None:
    original = state.State.end
    put(state.State, "end", lambda self: None if self.outbox.pending else original(self))


@guard(LAST)
def without_giving_back_what_was_granted_to_nobody() -> None:
    put(leases.Leases, "unwanted", nothing)


@guard(LAST)
def without_last_words() -> None:
    put(state.State, "farewell", nothing)


@guard(LAST)
def without_ending_replays() -> None:
    put(replay.Replayer, "stop", lambda _: [])


@guard(LAST)
def without_hurry_at_the_end() -> None:
    put(breaker.Breaker, "hurry", nothing)


@guard(LAST)
def without_asking_whether_a_loop_runs() -> None:
    put(state, "_lives", lambda wire: wire.up)


# -- the journal --------------------------------------------------------------------------------------------------

JOURNAL: Final = "tests/outage/test_journal.py"


@guard(JOURNAL)
def without_doubt_until_the_journal_is_read() -> None:
    put(outbox.Outbox, "begin_doubt", nothing)


@guard(JOURNAL)
def without_waiting_for_the_journal() -> None:
    async def written(_: Any) -> None:
        return None

    put(journal.Journal, "written", written)


@guard(JOURNAL)
def without_a_new_id_for_what_is_recorded_again() -> None:
    original = journal_file.JournalFile._insert

    def insert(self: Any, connection: Any, kind: str, name: bytes) -> int:
        found = connection.execute("SELECT id FROM missed WHERE kind = ? AND name = ?", (kind, name)).fetchone()
        return found[0] if found else original(self, connection, kind, name)

    put(journal_file.JournalFile, "_insert", insert)


@guard(JOURNAL)
def without_a_bound_on_what_processes_leave_together() -> None:
    put(journal_file.JournalFile, "bound", lambda _: False)


@guard(JOURNAL)
def without_distrust_after_a_damaged_journal() -> None:
    put(journal_file.JournalFile, "_admit_loss", nothing)


@guard(JOURNAL)
def without_a_look_where_the_journal_is() -> None:
    put(journal_file.JournalFile, "moved", False)


@guard(JOURNAL)
def without_writing_the_journal_anew() -> None:
    put(journal.Journal, "_write_all", lambda self: put(self, "_behind", False))


@guard(JOURNAL)
def without_the_bound_on_waiting_for_the_disk() -> None:
    async def answered(_: Any, sync: Any) -> None:
        await asyncio.wrap_future(sync.done)

    put(journal.Journal, "_answered", answered)


@guard(JOURNAL)
def without_dropping_what_was_told_from_the_journal() -> None:
    put(journal.Journal, "drop", nothing)


@guard(JOURNAL)
def without_leaving_an_open_journal_to_sqlite() -> None:
    def make(self: Any) -> None:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    put(journal_file.JournalFile, "_make", make)


@guard(JOURNAL)
def without_a_look_at_what_rows_say() -> None:
    put(outbox.Outbox, "fits", lambda *_: True)


@guard(JOURNAL)
def without_telling_a_journal_that_is_locked_from_a_damaged_one() -> None:
    original = journal.Journal.read

    async def read(self: Any) -> bool:
        doubt = self._recovery.doubt
        if not await original(self):
            self._recovery.record_prefix(b"")
            self._recovery.believe(doubt)
        return True

    put(journal.Journal, "read", read)


@guard(JOURNAL)
def without_another_attempt_to_write_the_journal() -> None:
    original = journal.Journal._failed

    def failed(self: Any, error: Exception) -> None:
        behind = self._behind
        original(self, error)
        self._behind = behind

    put(journal.Journal, "_failed", failed)


@guard(JOURNAL)
def without_a_bound_on_what_waits_for_the_journal() -> None:
    put(journal_queue, "_MOST", math.inf)


@guard(JOURNAL)
def without_a_bound_on_the_last_wait_for_a_locked_journal() -> None:
    put(journal, "_LAST", math.inf)


@guard(JOURNAL)
def without_patience_with_a_locked_journal() -> None:
    put(journal, "_BUSY", 0)


@guard(JOURNAL)
def without_a_look_at_what_waits_for_other_addresses() -> None:
    put(journal_file.JournalFile, "others", lambda _: "")
