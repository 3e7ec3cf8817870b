"""The guards that `test_policies` sees missing."""

import dataclasses
from typing import Any, Final

from magnus_cache import freshness
from magnus_cache._engine.api import many
from magnus_cache._engine.codec import envelope
from magnus_cache._engine.coherence.trust import Trust
from magnus_cache._engine.coordination import generations
from magnus_cache._engine.flights import context, flights, registry
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading import acquire, loads, throttle
from magnus_cache._engine.loading import stale as refreshes
from magnus_cache._engine.memory import entry as entries
from magnus_cache._engine.memory import store as memory
from magnus_cache._engine.store import lives, reads, values, writes, writes_many
from magnus_cache._engine.store import negative as negatives
from magnus_cache._engine.store.records import MISS, KeyRef
from tests.support.guards import guard, nothing, put

HERE: Final = "tests/loading/test_policies.py"


@guard(HERE)
def without_trust_in_what_is_stale() -> None:
    original = memory.LocalCache.get_stale
    put(memory.LocalCache, "get_stale", lambda self, name, *, trusted: original(self, name, trusted=False))


@guard(HERE)
def without_what_is_left_in_an_outage() -> None:
    put(reads.Reads, "last", nothing)


@guard(HERE)
def without_a_pause_after_a_failed_load() -> None:
    put(throttle.RetryThrottle, "holds", lambda *_: False)


@guard(HERE)
def without_an_end_of_the_pause() -> None:
    put(throttle.RetryThrottle, "holds", lambda self, name: name in self._until)


@guard(HERE)
def without_a_pause_after_a_value_that_its_rules_choke_on() -> None:
    original = loads.Loads._hold_back

    def hold_back(self: Any, ref: Any, error: Exception) -> None:
        if not isinstance(error, KeyError):
            original(self, ref, error)

    put(loads.Loads, "_hold_back", hold_back)


@guard(HERE)
def without_a_bound_on_loads_that_nobody_waits_for() -> None:
    original = flights.Flights.__init__
    put(flights.Flights, "__init__", lambda self, *_, **options: original(self, 1 << 30, **options))


@guard(HERE)
def without_letting_a_load_go_on() -> None:
    put(flights.Flights, "_keep_in_background", nothing)


@guard(HERE)
def without_an_end_of_waiting() -> None:
    original = flights.Flights.run

    async def run(self: Any, key: bytes, load: Any, **options: Any) -> Any:
        options["caller"].max_wait = None
        return await original(self, key, load, **options)

    put(flights.Flights, "run", run)


@guard(HERE)
def without_cancelling_what_goes_on_at_the_end() -> None:
    put(flights.Flights, "_cancel", nothing)


@guard(HERE)
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


@guard(HERE)
def without_telling_what_is_to_be_refreshed() -> None:
    original = acquire.LeaseAcquirer.acquire

    async def acquire_otherwise(self: Any, request: Any, flight: Any) -> Any:
        return await original(self, request._replace(unwanted=None), flight)

    put(acquire.LeaseAcquirer, "acquire", acquire_otherwise)


@guard(HERE)
def without_the_class_of_a_remembered_error() -> None:
    put(negatives, "_named", lambda _, base: base)


@guard(HERE)
def without_asking_who_wants_remembered_errors() -> None:
    original = negatives.decode_error
    everybody = freshness.Freshness(negative=((Exception, 1.0),))
    put(values, "decode_error", lambda payload, _, limit=None: original(payload, everybody, limit))


@guard(HERE)
def without_remembering_errors() -> None:
    put(freshness.Freshness, "negative_ttl", nothing)


@guard(HERE)
def without_telling_errors_from_values() -> None:
    put(entries.Entry, "negative", False)


@guard(HERE)
def without_grace_in_redis_expiry() -> None:
    original = writes.Writes._send

    async def send(self: Any, wire_: Any, ref: Any, *rest: Any) -> bool:
        graceless = KeyRef(
            ref.namespace, ref.name, ref.counters, ref.epoch_names,
            dataclasses.replace(ref.freshness, grace=0.0),
        )  # fmt: skip
        return await original(self, wire_, graceless, *rest)

    put(writes.Writes, "_send", send)


@guard(HERE)
def without_keeping_what_is_stale_near() -> None:
    put(entries.Entry, "end", property(lambda self: self.real))


@guard(HERE)
def without_refusing_what_is_stale_to_who_only_looks() -> None:
    put(reads.Reads, "opened_here", reads.Reads.opened_anyway)
    put(reads.Reads, "opened", reads.Reads.opened_anyway)


@guard(HERE)
def without_telling_mistakes_from_failures() -> None:
    put(refreshes.StalePolicy, "_may_serve_stale", lambda self, ref, error, stale: stale is not MISS)


@guard(f"{HERE}::test_jitter_spreads_the_ends_of_what_was_stored_at_once")
def without_jitter() -> None:
    put(lives, "lifetime", lambda ttl, *_: ttl)


@guard(f"{HERE}::test_jitter_spreads_the_ends_of_what_was_stored_at_once")
def without_jitter_of_many() -> None:
    put(writes_many, "lifetime", lambda ttl, *_: ttl)


@guard(HERE)
def without_asking_what_was_not_modified() -> None:
    put(context.CurrentLoad, "has_previous", True)


@guard(HERE)
def without_the_validator() -> None:
    original = envelope.read_validator
    put(envelope, "read_validator", lambda raw, header: (None, original(raw, header)[1]))


@guard(HERE)
def without_telling_what_outages_a_value_has_been_through() -> None:
    original = generations.OutageGenerations.connected

    def connected(self: Any, wire: Any, *, first: bool) -> None:
        original(self, wire, first=False)

    put(generations.OutageGenerations, "connected", connected)
    put(Trust, "retire", Trust.kill)


@guard(HERE)
def without_what_is_due_for_a_refresh() -> None:
    put(memory.LocalCache, "get_untrusted", lambda self, name: self.hit(name))


@guard(HERE)
def without_a_bound_on_reading() -> None:
    async def read(self: Any, ref: Any, tags: Any) -> Any:
        entry = await self._reads.read(ref, tags)
        return self._reads.last(ref) if entry is None else entry

    put(refreshes.StalePolicy, "_read", read)


@guard(HERE)
def without_stale_values_for_batches() -> None:
    original = many.Search.found

    def found(self: Any, item: Any, entry: Any, value: Any, *, near: bool) -> None:
        original(self, item, None if value is MISS else entry, value, near=near)

    put(many.Search, "found", found)
