"""The guards that `test_leases` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coordination import leases, state
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading import acquire
from magnus_cache._engine.redis import commands, pipeline, scripts, wire
from tests.support.guards import edit, guard, nothing, put

HERE: Final = "tests/coordination/test_leases.py"


@guard(HERE)
def without_token_check_of_a_fill() -> None:
    edit(scripts._FILL, "~= ARGV[1] then return 0 end", "== '?' then return 0 end")


@guard(HERE)
def without_a_unique_token() -> None:
    for module in (leases, acquire):
        put(module, "new_token", lambda: b"always the same")
    put(leases, "new_version", lambda: 7)


@guard(HERE)
def without_token_check_of_a_release() -> None:
    edit(scripts._RELEASE, "~= ARGV[1] then return 0 end", "== '?' then return 0 end")


@guard(HERE)
def without_the_lease_in_a_write() -> None:
    put(commands, "lease_name", lambda name, *_: b"elsewhere:" + name)


@guard(HERE)
def without_detach_on_delete() -> None:
    def forget_names(self: Any, names: Any) -> None:
        for name in names:
            self.memory.invalidate(name)

    put(state.State, "forget_names", forget_names)


@guard(HERE, "tests/coordination/test_epochs.py")
def without_detach_on_clear() -> None:
    put(state.State, "forget_prefix", lambda self, prefix: self.memory.clear(prefix))


@guard(HERE)
def without_the_announcement_of_a_lost_lease() -> None:
    put(leases.Leases, "announced", lambda self, name, _: self.notify(name))


@guard(HERE)
def without_renewal() -> None:
    put(leases.Lease, "_renew", nothing)


@guard(HERE)
def without_reading_the_lease_after_its_renewal() -> None:
    edit(scripts._RENEW, "return redis.call('EXISTS', KEYS[1])", "return 1")


@guard(HERE)
def without_release_after_a_failure() -> None:
    put(scripts, "release", lambda *_, **__: commands.TIME)


@guard(HERE)
def without_notifications() -> None:
    put(leases.Leases, "notify", nothing)


@guard(HERE)
def without_a_bound_on_waiting() -> None:
    put(acquire, "monotonic", lambda: 0.0)


@guard(HERE)
def without_a_check_of_trust_before_joining() -> None:
    put(leases.Leases, "check", nothing)


@guard(HERE)
def without_a_heartbeat_while_loading() -> None:
    def on_beat(self: Any) -> None:
        self._beat = None
        if self._up and self.trust.used:
            self.trust.used = False
            self._pulse()

    put(wire.Wire, "_on_beat", on_beat)


@guard(HERE)
def without_giving_back_what_was_granted_to_the_cancelled() -> None:
    put(acquire, "_release", nothing)
    original = acquire._Acquisition._on_reply

    def on_reply(self: Any, fill: Any, _: Any, *args: Any) -> Any:
        class Never:
            def done(self) -> bool:
                return False

        return original(self, fill, Never(), *args)  # type: ignore[arg-type]

    put(acquire._Acquisition, "_on_reply", on_reply)


@guard(HERE)
def without_an_end_for_leases_of_interrupted_threads() -> None:
    original = leases.Lease._renew

    def renew(self: Any) -> None:
        flight, self.flight = self.flight, None
        original(self)
        self.flight = flight

    put(leases.Lease, "_renew", renew)


@guard(HERE)
def without_the_rejected_header() -> None:
    original = scripts.acquire
    put(scripts, "acquire", lambda name, _, *rest, **more: original(name, b"", *rest, **more))


@guard(HERE)
def without_refusing_to_keep_what_was_loaded_alone() -> None:
    original = acquire.LeaseAcquirer.without_lease

    def without_lease(self: acquire.LeaseAcquirer, flight: Flight, *, fresh: bool) -> leases.Fence:
        fence = original(self, flight, fresh=fresh)
        fence.offline = self._state.generations.offline_of(flight.key)
        return fence

    put(acquire.LeaseAcquirer, "without_lease", without_lease)


@guard(HERE)
def without_sending_forgotten_scripts_again() -> None:
    put(pipeline, "NoScriptError", type("Other", (Exception,), {}))


@guard(HERE, "tests/store/test_races.py")
def without_reading_the_value_after_a_fill() -> None:
    edit(scripts._FILL, "return redis.call('EXISTS', KEYS[1])", "return 1")


@guard(HERE)
def without_voiding_by_a_flush() -> None:
    put(leases.Leases, "flushed", nothing)


@guard(HERE)
def without_giving_back_leases_that_an_outage_kept() -> None:
    put(leases.Leases, "release_lost", nothing)


@guard(f"{HERE}::test_a_flush_voids_what_is_being_loaded")
def without_settling_epochs_before_a_lease() -> None:
    async def at_once(*_: Any) -> None:
        return

    put(acquire.LeaseAcquirer, "refresh_epochs", at_once)
