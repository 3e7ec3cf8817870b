"""The guards that `test_epochs` sees missing."""

from typing import Any, Final

from magnus_cache._engine.coherence import epochs, known_epochs
from magnus_cache._engine.coordination import epoch_sync, state
from magnus_cache._engine.loading import acquire
from magnus_cache._engine.memory import store as memory
from magnus_cache._engine.outage import outbox
from magnus_cache._engine.redis import scripts
from magnus_cache._engine.store import writes
from tests.support.guards import edit, guard, nothing, put

HERE: Final = "tests/coordination/test_epochs.py"


@guard(HERE)
def without_capturing_the_epoch_before_the_load() -> None:
    original = writes.Writes.fill

    async def fill(self: Any, *args: Any) -> bool:
        args[-1].epoch = self.state.epochs.highest
        return await original(self, *args)

    put(writes.Writes, "fill", fill)


@guard(HERE)
def without_epochs() -> None:
    put(epochs.Epochs, "lowest_valid", lambda *_: 0)


@guard(HERE)
def without_issuing_a_missing_epoch() -> None:
    def received(self: Any, name: bytes, _waiter: Any, raw: Any, source: Any, sent: float) -> bool:
        self._learned(name, epochs.epoch_of(raw), source, sent)
        return True

    put(epoch_sync.EpochSync, "_received", received)


@guard(HERE)
def without_our_own_knowledge() -> None:
    put(epochs.Epochs, "latest", lambda *_: 0)


@guard(HERE)
def without_the_push_of_an_epoch() -> None:
    put(state.State, "outdated", nothing)


@guard(HERE)
def without_outdating_tagged_entries() -> None:
    put(memory.LocalCache, "invalidate_tag", nothing)


@guard(HERE)
def without_turning_away_who_joined_an_overtaken_load() -> None:
    async def never(*_: Any) -> bool:
        return False

    put(acquire.LeaseAcquirer, "overtaken", never)


@guard(HERE)
def without_the_guard_of_adopted_tags() -> None:
    edit(scripts._ADOPT, "since and since <= captured and last and last <= captured", "true")


@guard(HERE)
def without_the_beginning_of_the_guard() -> None:
    edit(scripts._ADOPT, "since and since <= captured and", "")


@guard(HERE)
def without_the_age_in_a_reclaim() -> None:
    edit(scripts._RECLAIM, "return not stamp or", "return true or not stamp or")


@guard(HERE)
def without_last_plus_one() -> None:
    edit(scripts._BUMP, "math.max(now, last + 1)", "now")


@guard(HERE)
def without_an_end_of_epochs_nobody_announces() -> None:
    put(known_epochs.KnownEpochs, "forget", nothing)


@guard(HERE)
def without_recording_clears() -> None:
    put(outbox.Outbox, "record_prefix", nothing)


@guard(HERE)
def without_recording_tags() -> None:
    put(outbox.Outbox, "record_tags", nothing)


@guard(HERE)
def without_a_bound_on_remembered_epochs() -> None:
    put(epochs, "_MOST", 10**9)


@guard(HERE)
def without_the_epoch_that_came_with_the_lease() -> None:
    original = acquire.LeaseAcquirer.with_epochs

    async def informed(self: Any, wire_: Any, request: Any, fence: Any) -> Any:
        names, tags = request.ref.epoch_names, request.tags
        epoch, known = fence.epoch, self._state.epochs.lowest_valid(wire_.known, names, tags) is not None
        fence = await original(self, wire_, request, fence)
        fence.epoch = epoch if known else fence.epoch
        return fence

    put(acquire.LeaseAcquirer, "with_epochs", informed)
