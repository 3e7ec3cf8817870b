"""The guards that `test_lease_connections` sees missing."""

from typing import Any, Final

from magnus_cache._engine.loading import acquire
from magnus_cache._engine.store import local_writes, writes
from tests.support.guards import guard, put, rewrite

HERE: Final = "tests/coordination/test_lease_connections.py"


@guard(f"{HERE}::test_a_load_is_stored_although_the_loop_of_its_lease_has_ended")
def without_registering_tags_through_the_running_loop() -> None:
    rewrite(
        acquire.LeaseAcquirer.register_tags,
        "self._state.client.current_connection(fence.lease.name)",
        "fence.lease.connection",
    )


@guard(HERE)
def without_storing_a_load_through_the_running_loop() -> None:
    original = writes.Writes._send

    async def send(self: Any, wire: Any, ref: Any, *args: Any) -> bool:
        lease = self.state.leases._held.get(ref.name)
        if lease is not None:
            wire = lease.connection
            self.reads.epoch_sync.prepare(wire, ref.epoch_names)
        return await original(self, wire, ref, *args)

    put(writes.Writes, "_send", send)


@guard(f"{HERE}::test_invariant_2_an_object_is_judged_although_the_loop_of_its_lease_has_ended")
def without_judging_an_object_through_the_running_loop() -> None:
    rewrite(local_writes.LocalWrites.fill, "state.client.current_connection(ref.name)", "watch.connection")


@guard(f"{HERE}::test_a_lease_is_held_on_the_connection_that_granted_it")
def without_holding_a_lease_on_the_connection_that_granted_it() -> None:
    rewrite(acquire._Acquisition._on_reply, "leases.hold(source,", "leases.hold(self._wire,")
