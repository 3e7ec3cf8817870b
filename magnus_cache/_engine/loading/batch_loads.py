"""The keys of a batch that are loaded together: in one task, with leases and fills that travel together.

This is the short way for keys about which nothing is special: no one else is loading them, in this process or another,
and they have the same namespace, policy and tags. A key that turns out to be special is given back, and `Batch` loads
it alone; see also `batch_results`. So there is one set of rules for joining, waiting and outages. A test holds the two
ways together.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.flights.groups import TAKEN, FlightGroup
from magnus_cache._engine.loading.acquire_many import ManyAcquirer
from magnus_cache._engine.loading.batch_results import BatchResults, Portion, TogetherLoad
from magnus_cache._engine.loading.loaded_value import LoadedValue
from magnus_cache._engine.loading.loads import Loads
from magnus_cache._engine.loading.request import BatchItem, BatchRequest
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.loop_end import cancel
from magnus_cache._engine.runtime.turns import turn
from magnus_cache._engine.runtime.waiters import Abandoned, Failed, Loaded, Outcome
from magnus_cache._engine.store.batch_keys import places_by_server
from magnus_cache._engine.store.records import MISS, Began
from magnus_cache._engine.store.stamps import Note
from magnus_cache.errors import CacheUnavailableError

__all__ = ["REFUSED", "STARTS_PER_TURN", "BatchCalls", "LoadsTogether", "Pending", "PendingKeys", "by_server"]

STARTS_PER_TURN: Final = 50
"""Keys whose loads are started alone in one turn of the loop."""

_STEP: Final = 100
"""Keys that are entered into the registry of loads in one step of the event loop."""


REFUSED: Final = object()
"""In place of what a loader returns that was not called, as a limit holds it back."""


class Pending(Protocol):
    """Keys that are being loaded, and what comes of them."""

    async def next(self) -> Portion | None:
        """Return what has come next; None when all has.

        :raises BaseException: what the loader raised that is not an `Exception`.
        """
        ...

    def cancel(self) -> None:
        """Note that no one takes the values any more."""


class PendingKeys:
    """Keys that a batch has to load together, and the future of what the loader returns for all of them.

    :param wanted: returns those of some loads that someone waits for.
    """

    __slots__ = ("_flights", "_items", "_taken", "_wanted", "answer")

    def __init__(
        self, items: Sequence[BatchItem], flights: Sequence[Flight],
        wanted: Callable[[Iterable[Flight]], list[Flight]],
    ) -> None:  # fmt: skip
        self._items = items
        self._flights = flights
        self._wanted = wanted
        self._taken = False
        self.answer: asyncio.Future[tuple[BaseException | None, Any]] = asyncio.get_running_loop().create_future()

    def wanted(self) -> tuple[list[Any], list[Flight]]:
        """Return the keys that are still to be loaded, and their flights."""
        flights = self._wanted(self._flights)
        if len(flights) == len(self._flights):
            return [item.key for item in self._items], flights
        still = set(flights)
        return [item.key for item, flight in zip(self._items, self._flights, strict=True) if flight in still], flights

    def resolve(self, error: BaseException | None, answers: Any = None) -> None:
        """Set the answer, unless it is set or cancelled."""
        if not self.answer.done():
            self.answer.set_result((error, answers))

    async def next(self) -> Portion | None:
        """Return the answer, once; see `Pending`."""
        if self._taken:
            return None
        error, answers = await self.answer
        self._taken, everyone = True, range(len(self._items))
        if error is None:
            return Portion(everyone, partial(self._answer, answers), {}, None)
        if isinstance(error, Exception):
            errors = dict.fromkeys(everyone, error)
            return Portion((), partial(self._answer, {}), errors, None, refused=answers is REFUSED)
        raise error

    def _answer(self, answers: Mapping[Any, Any], number: int) -> Any:
        return answers.get(self._items[number].key, MISS)

    def cancel(self) -> None:
        """Note that no one takes the answer any more."""
        cancel(self.answer)


class BatchCalls(Protocol):
    """Calls the loader for keys that are loaded together."""

    def pend(self, items: Sequence[BatchItem], flights: Sequence[Flight]) -> Pending:
        """Have some keys loaded."""
        ...

    def decided(self, count: int) -> None:
        """Note that it is known of so many more keys, or portions of them, how they are loaded."""

    async def lead(self, item: BatchItem, flight: Flight) -> LoadedValue[Any]:
        """Load a key alone, in its flight's own task."""
        ...


def by_server(loads: Loads, items: Sequence[BatchItem]) -> list[Sequence[int]]:
    """Return the places of keys that are of one server, for each server."""
    state = loads.reads.state
    if not items or not state.topology.is_cluster:
        return [range(len(items))] if items else []
    return list(places_by_server(state.client.connection, [item.ref.name for item in items]).values())


class LoadsTogether:
    """Some keys of a batch that are loaded together.

    :param part: the keys, of which it takes those that it can.
    :param source: identifies the batch loader.
    :ivar places: the places in `part` of those that it has taken.
    """

    def __init__(self, loads: Loads, request: BatchRequest, part: Sequence[BatchItem], source: object) -> None:
        self._loads = loads
        self._flights = loads.flights
        self._request = request
        self._part = part
        self._source = source
        self._group = FlightGroup(asyncio.get_running_loop(), request.blocks)
        self._acquirer: ManyAcquirer | None = None
        self._decided: asyncio.Future[None] = self._group.loop.create_future()
        self._results: BatchResults | None = None
        self.places: list[int] = []

    # -- for the caller ---------------------------------------------------------------------------------------------

    async def lead(self, among: Sequence[int]) -> list[int]:
        """Take those of some keys that can be loaded together; return the places of the others.

        :param among: the places of keys that are of one server, see `by_server`.
        """
        part, state = self._part, self._loads.reads.state
        ref, tags = part[among[0]].ref, part[among[0]].tags
        wire = None if ref.namespace.local or state.outbox.pending else state.client.connection(ref.name)
        if wire is not None and not wire.up:
            try:
                await wire.renew()
            except CacheUnavailableError:
                wire = None
        if wire is None:
            return list(among)
        alike, others = list[int](), list[int]()
        names, namespace, freshness = ref.epoch_names, ref.namespace, ref.freshness
        # On a cluster, the epochs of each group of slots have names of their own.
        by_group, connection = state.topology.is_cluster, state.client.connection
        for place in among:
            other, its_tags = part[place].ref, part[place].tags
            same = other.epoch_names is names and other.namespace is namespace and other.freshness is freshness
            if by_group and not same:
                same = other.epoch_names.tags == names.tags and other.namespace is namespace
                # It may have moved to another server in the meantime.
                same = same and other.freshness is freshness and connection(other.name) is wire
            (alike if same and its_tags == tags else others).append(place)
        acquirer = self._acquirer = ManyAcquirer(self._loads.reads, wire, ref, tags, fresh=self._request.fresh)
        began, group = self._loads.clock(), self._group
        group.look = acquirer.look
        for start in range(0, len(alike), _STEP):
            some = alike[start : start + _STEP]
            led = self._flights.lead_many(group, [part[place].ref.name for place in some], str(namespace), began)
            for flight in group.flights[len(self.places) :]:
                flight.loader = self._source
            self.places += [some[number] for number in led]
            if len(led) < len(some):
                others += [some[number] for number in set(range(len(some))).difference(led)]
            await turn()
        return sorted(others)

    def start(self, batch: BatchCalls) -> None:
        """Start the loads."""
        self._flights.start_many(self._group, partial(self._load, batch))

    async def acquired(self) -> None:
        """Return once it is known which of the keys have to be loaded alone after all, and these loads have begun."""
        # The task may be cancelled before its first step.
        task = self._group.task
        assert task is not None
        await asyncio.wait([self._decided, task], return_when=asyncio.FIRST_COMPLETED)

    async def outcomes(self, outcomes: list[Any]) -> None:
        """Fill in the value or the error of each key, once all are known."""
        group = self._group
        await group.wait()
        for number, (place, outcome) in enumerate(zip(self.places, group.outcomes, strict=True)):
            if outcome is TAKEN:
                outcomes[place] = group.values[number]
                self._note(place, None if self._results is None else self._results.began)
            else:
                assert outcome is not None
                if isinstance(outcome, Loaded):
                    self._note(place, outcome.value.began)
                strict = self._request.of_key(self._part[place]).strict
                outcomes[place] = await _taken(outcome, strict=strict)

    def _note(self, place: int, began: Began | None) -> None:
        """Note when the load of a key began, for a stamped call."""
        if (notes := self._request.notes) is not None:
            notes[self._part[place].ref.name] = note = Note()
            note.loaded(began)

    def outcome(self, number: int) -> Outcome | None:
        """Return one outcome, by place in `places`; None if it is not known."""
        return self._group.outcomes[number]

    def is_taken(self, number: int) -> bool:
        """Whether a load has returned a value that is stored."""
        return self._group.outcomes[number] is TAKEN

    @property
    def is_over(self) -> bool:
        """Whether all outcomes are known."""
        return None not in self._group.outcomes

    def on_outcome(self, heard: Callable[[int], object]) -> None:
        """Call a function with the place in `places` of each outcome, from now on."""
        self._group.heard = heard

    def leave(self) -> None:
        """Unregister the caller, who waits no longer. Idempotent."""
        try:
            self._flights.leave_many(self._group)
        except BaseException:
            # Interrupted (Ctrl-C): this does the rest.
            self._flights.leave_many(self._group)
            raise

    # -- the load, in a task of its own -----------------------------------------------------------------------------

    async def _load(self, batch: BatchCalls) -> None:
        acquirer, flights = self._acquirer, self._group.flights
        assert acquirer is not None
        items = [self._part[place] for place in self.places]
        try:
            leases = await acquirer.acquire([item.ref for item in items], flights)
        except CacheUnavailableError as refusal:
            self._loads.reads.failed(items[0].ref, refusal)
            leases = [None] * len(items)
        except BaseException:
            self._tell(batch)
            raise
        load = TogetherLoad(self._group, items, leases, acquirer)
        try:
            try:
                pending = await self._pending(batch, load)
            finally:
                self._tell(batch)
            if pending is not None:
                results = self._results = BatchResults(self._loads, self._request, self._source, load, monotonic())
                try:
                    while (portion := await pending.next()) is not None:
                        await results.take(portion)
                finally:
                    pending.cancel()
        finally:
            load.close()

    def _tell(self, batch: BatchCalls) -> None:
        if not self._decided.done():
            self._decided.set_result(None)
        batch.decided(1)

    async def _pending(self, batch: BatchCalls, load: TogetherLoad) -> Pending | None:
        """Have the keys loaded: alone where they cannot be loaded together; return the others, if there are any."""
        flights, rule = self._group.flights, self._request.options.tags
        alone = [place for place, lease in enumerate(load.leases) if lease is None]
        for number, place in enumerate(alone, 1):
            # Each writes its own look.
            flights[place].look = flights[place].look.copy()
            self._flights.run_alone(self._group, place, partial(batch.lead, load.items[place]))
            if number % STARTS_PER_TURN == 0:
                await asyncio.sleep(0)
        if not load.places:
            return None
        if rule is not None and rule.of_value is not None:
            # If the load fails, the tags that depend on its value are unknown.
            load.acquirer.look.tags = None
        loading, began = [flights[place] for place in load.places], self._loads.clock()
        for flight in loading:
            # The time spent waiting for the leases does not count as load time.
            flight.began = began
        return batch.pend([load.items[place] for place in load.places], loading)


async def _taken(outcome: Outcome, *, strict: bool) -> Any:
    """Return the value of an outcome, or its error."""
    if isinstance(outcome, Loaded):
        try:
            return await outcome.value.taken(strict=strict)
        except Exception as error:  # noqa: BLE001  # it is the outcome of this key alone
            return error
    if isinstance(outcome, Failed):
        return outcome.error.with_traceback(outcome.traceback)
    assert isinstance(outcome, Abandoned)
    return outcome.cause
