"""What a batch loader returned for keys that are loaded together: encoded, stored and delivered some at a time.

Most values are small and plain: their fills travel together (`fills_many`). A value about which anything is special is
stored alone, by `Loads.store_result`: one that is large, compressed or cannot be stored, one whose life, tags or
storage a function of the caller decides, one that Redis has refused.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, NamedTuple

from magnus_cache._engine import codec
from magnus_cache._engine.coordination.lease_batch import BatchLease
from magnus_cache._engine.coordination.leases import Fence
from magnus_cache._engine.flights.flight import LOADING
from magnus_cache._engine.flights.groups import FlightGroup
from magnus_cache._engine.loading.acquire_many import ManyAcquirer
from magnus_cache._engine.loading.loaded_value import LoadedValue
from magnus_cache._engine.loading.loads import Loads
from magnus_cache._engine.loading.money import count_load, count_loads
from magnus_cache._engine.loading.request import BatchItem, BatchRequest, LoadRequest
from magnus_cache._engine.loading.results import PreparedValue
from magnus_cache._engine.loading.spend_gate import give_back
from magnus_cache._engine.policy.calendars import CalendarTtl
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.loop_end import cancel, loop_task
from magnus_cache._engine.runtime.recorder import code_of
from magnus_cache._engine.runtime.turns import Step, turn
from magnus_cache._engine.runtime.waiters import Failed, Loaded, Outcome
from magnus_cache._engine.store.batch_keys import RefMaker
from magnus_cache._engine.store.fills_many import Filling, FillOrigin
from magnus_cache._engine.store.lives import CalendarLife
from magnus_cache._engine.store.records import MISS, Began
from magnus_cache._engine.store.transactions import ValuesToWrite
from magnus_cache.freshness import NO_POLICY

__all__ = ["BatchResults", "Portion", "TogetherLoad"]

_TOGETHER: Final = 100
"""Values of one fill: a few hundred microseconds of the server's time, and as much of the event loop's."""

_BYTES: Final = 131_072
"""Bytes of one fill, about."""

_IN_FLIGHT: Final = 3
"""Fills that are on their way at a time: the server works on one while the next one is packed."""

_ALONE: Final = 50
"""Values that one turn of the loop begins to store alone."""


class TogetherLoad:
    """Keys that are loaded together, in parallel lists.

    :ivar group: their flights.
    :ivar leases: the lease of each; None for a key that is loaded alone.
    :ivar places: the places of the others.
    """

    __slots__ = ("acquirer", "group", "items", "leases", "places")

    def __init__(
        self, group: FlightGroup, items: Sequence[BatchItem], leases: Sequence[BatchLease | None],
        acquirer: ManyAcquirer,
    ) -> None:  # fmt: skip
        self.group = group
        self.items = items
        self.leases = leases
        self.acquirer = acquirer
        self.places = [place for place, lease in enumerate(leases) if lease is not None]

    def lease(self, place: int) -> BatchLease:
        """Return the lease of a key."""
        lease = self.leases[place]
        assert lease is not None
        return lease

    def fence(self, place: int) -> Fence:
        """Return the fence of one load, whose flight gets a look of its own: alone, each load writes its own."""
        flight = self.group.flights[place]
        if flight.look is self.acquirer.look:
            flight.look = self.acquirer.look.copy()
        return self.acquirer.fence(flight, self.lease(place))

    def close(self, places: Sequence[int] | None = None) -> None:
        """Release leases: of some keys, or all."""
        leases = self.leases if places is None else [self.leases[place] for place in places]
        self.acquirer.batch.close([lease for lease in leases if lease is not None])


class Portion(NamedTuple):
    """What has come of some keys of a load."""

    numbers: Sequence[int]
    """The numbers of the keys, among those that are loaded together, that `answer` knows something about."""
    answer: Callable[[int], Any]
    """Returns, by number, what the loader returned for a key; `MISS` if it omitted the key.

    Not a mapping by key: `warm_cache` loads both 1 and True, which a mapping could not tell apart.
    """
    errors: Mapping[int, Exception]
    """By number, the errors of keys whose loads have failed."""
    seconds: float | None
    """How long the loads took; None for one load of all, which began with the batch."""
    refused: bool = False
    """Whether the loader was not called, as a limit holds it back."""


class _Portion(NamedTuple):
    """Values that are filled together, in parallel lists."""

    places: list[int]
    values: list[Any]
    payloads: list[bytes]


class BatchResults:
    """The results of one call of a batch loader.

    :param source: identifies the batch loader.
    :param started: monotonic seconds when the load began.
    :ivar began: when the load began whose values were taken last.
    """

    def __init__(
        self, loads: Loads, request: BatchRequest, source: object, load: TogetherLoad, started: float
    ) -> None:  # fmt: skip
        self._loads = loads
        self._flights = loads.flights
        self._request = request
        self._source = source
        self._load = load
        self._started = started
        self._cost = 0.0
        self._marks = True
        item = load.items[0]
        ref, options = item.ref, request.options
        self._ref, self._tags = ref, item.tags
        self._refs = RefMaker.like(ref, loads.reads.state)
        decides = options.skip_if is not None or (options.tags is not None and options.tags.of_value is not None)
        decides = decides or (options.cost is not None and options.cost.of_value is not None)
        self._is_plain = not (decides or callable(options.ttl) or ref.namespace.compress or ref.namespace.seal)
        self._ttl = 0.0 if callable(options.ttl) else options.ttl_of(None, loads.reads.ttl(ref))
        self._sent: deque[tuple[_Portion, Filling]] = deque()
        self._alone: dict[int, Any] = {}
        self.began = Began(started)

    # -- values -----------------------------------------------------------------------------------------------------

    async def take(self, portion: Portion) -> None:
        """Store what the loader returned for some keys, and deliver it to all callers that wait for it."""
        places = self._load.places
        if portion.seconds is None:
            self._cost = monotonic() - self._started
            self.began = Began(self._load.group.flights[places[0]].began)
        else:
            self._cost = portion.seconds
            self.began = Began(self._loads.clock() - portion.seconds)
        # Of a load by itself, an exception that is returned is a value, which cannot be stored.
        self._marks = portion.seconds is None
        if portion.numbers:
            await self._store(portion.numbers, portion.answer)
        if portion.errors:
            errors = {places[number]: error for number, error in portion.errors.items()}
            await self.fail(errors, refused=portion.refused)

    async def _store(self, numbers: Sequence[int], answer: Callable[[int], Any]) -> None:
        load, group = self._load, self._load.group
        errors, omitted, unwanted = dict[int, Exception](), list[int](), list[int]()
        portion, size, step = _Portion([], [], []), 0, Step()
        try:
            for number in numbers:
                place = load.places[number]
                flight = group.flights[place]
                if flight.done or (flight.detached and not flight.waiters):
                    unwanted.append(place)
                    continue
                raised: Exception | None = None
                try:
                    value = answer(number)
                except Exception as error:  # noqa: BLE001  # raised by the loader's own mapping class
                    value = raised = error
                if value is MISS:
                    omitted.append(place)
                # A loader may fail for some keys only: an exception as a value marks such a key.
                elif isinstance(value, Exception) and (self._marks or value is raised):
                    errors[place] = value
                elif (encoded := self._encoded(value)) is None:
                    self._alone[place] = value
                else:
                    value, payload = encoded
                    portion.places.append(place)
                    portion.values.append(value)
                    portion.payloads.append(payload)
                    size += len(payload)
                    if len(portion.places) >= _TOGETHER or size >= _BYTES:
                        await self._fill(portion)
                        portion, size = _Portion([], [], []), 0
                    if step.done(len(payload)):
                        await turn()
            if portion.places:
                await self._fill(portion)
            load.close(unwanted)
            if errors:
                await self.fail(errors)
            if omitted:
                await self._leave_out(omitted)
            while self._sent:
                await self._confirmed()
            if self._alone:
                alone, self._alone = self._alone, {}
                await self._each({place: self._store_alone(place, value) for place, value in alone.items()})
        finally:
            while self._sent:
                self._loads.writes.give_up_fill(self._sent.popleft()[1])

    def _encoded(self, value: Any) -> tuple[Any, bytes] | None:
        """Return a value and its payload; None for a value that is to be stored alone."""
        if not self._is_plain or isinstance(value, Exception):
            return None
        if isinstance(value, PreparedValue):
            payload = value.payload
            if payload is None or value.record is None or value.error is not None or len(payload) >= codec.LARGE:
                return None
            return value.value, payload
        changed = codec.changed_so_far()
        try:
            payload = self._loads.reads.encoded_at_once(self._ref.namespace, value)
            if (own := self._ref.namespace.codec) is not None:
                if payload is None or len(payload) >= codec.LARGE:
                    return None
                # As later callers will read it. If that fails, it cannot be stored.
                return codec.decode_by(own, payload), payload
        except Exception:  # noqa: BLE001  # whatever it is, it is raised again where the value is stored alone
            return None
        # Of a value that changed on its way, callers get what later ones will read.
        return None if payload is None or codec.changed_so_far() != changed else (value, payload)

    async def _fill(self, portion: _Portion) -> None:
        """Send some values on their way to Redis."""
        load = self._load
        count = len(portion.places)
        void = [number for number, place in enumerate(portion.places) if load.lease(place).void]
        # Of one load for all of them, it is their share of its time.
        seconds = self._cost * count / (len(load.items) if self._marks else 1)
        names = [load.items[place].ref.name for place in portion.places]
        count_loads(self._loads.reads.state, self._ref, names, self._request.options, self._cost, seconds)
        if void:
            # Overtaken: delivered, and not stored.
            self._loads.writes.overtaken(self._ref.namespace, [names[number] for number in void])
            self._deliver(_some(portion, void))
            portion = _some(portion, [number for number in range(count) if number not in set(void)])
            if not portion.places:
                return
            names = [load.items[place].ref.name for place in portion.places]
        ttl = self._ttl
        life = CalendarLife(ttl, load.acquirer.known.at) if isinstance(ttl, CalendarTtl) else ttl
        values = ValuesToWrite(self._refs, names, portion.values, portion.payloads, life, self._tags, self.began)
        origin = FillOrigin(load.acquirer.batch, load.acquirer.known, self._cost, self._request.fresh)
        leases = [load.lease(place) for place in portion.places]
        filling = await self._loads.writes.begin_fill(values, leases, origin)
        if filling is None:
            self._again(portion, range(len(names)))
            return
        self._sent.append((portion, filling))
        if len(self._sent) >= _IN_FLIGHT:
            await self._confirmed()

    async def _confirmed(self) -> None:
        """Wait for the oldest fill, and deliver its values."""
        portion, filling = self._sent[0]
        refused = await self._loads.writes.end_fill(filling)
        self._sent.popleft()
        if refused:
            self._again(portion, refused)
            others = set(range(len(portion.places))).difference(refused)
            portion = _some(portion, sorted(others))
        if portion.places:
            await self._check_tags(portion.places)
            self._deliver(portion)

    def _again(self, portion: _Portion, numbers: Sequence[int]) -> None:
        """Have some values stored alone, that were to be filled together."""
        for number in numbers:
            self._alone[portion.places[number]] = portion.values[number]
        # They are counted again there.
        self._ref.counters.loads -= len(numbers)
        if (cost := self._request.options.cost) is not None:
            self._ref.counters.spent_nanos -= len(numbers) * cost.nanos

    async def _check_tags(self, places: Sequence[int]) -> None:
        """Find out whether the loads were overtaken by an invalidation of one of their tags."""
        look, load = self._load.acquirer.look, self._load
        if not self._tags:
            return
        # On a cluster, the epochs are those of several groups of slots.
        kinds = {load.items[place].ref.epoch_names: place for place in places}
        for place in kinds.values():
            if look.overtaken:
                return
            fence = load.acquirer.fence(load.group.flights[place], load.lease(place))
            ref = load.items[place].ref
            look.overtaken = await self._loads.acquirer.overtaken(ref, self._tags, self._tags, fence)

    def _deliver(self, portion: _Portion) -> None:
        """Deliver values: the loader's own objects to the batch's caller, equal ones to the others."""
        began = self.began

        def shared(number: int) -> Outcome:
            value, codec = portion.values[number], self._ref.namespace.codec
            loaded = LoadedValue(value, portion.payloads[number], user_codec=codec, began=began)
            loaded.take()
            return Loaded(loaded)

        if self._ref.freshness is not NO_POLICY:
            for place in portion.places:
                self._loads.throttle.succeeded(self._load.items[place].ref.name)
        self._load.close(portion.places)
        self._flights.settle_many(self._load.group, portion.places, portion.values, shared)

    async def _leave_out(self, places: Sequence[int]) -> None:
        """Deliver that the loader omitted some keys."""
        give_back(
            self._loads.reads.state, self._ref, self._request.options, [self._load.group.flights[at] for at in places]
        )
        self._load.close(places)
        for start in range(0, len(places), _TOGETHER):
            some = places[start : start + _TOGETHER]
            for place in some:
                flight = self._load.group.flights[place]
                # Valid for callers with the same loader; others that joined the load ask their own.
                flight.look = flight.look.copy()
                flight.look.left_out_by, flight.look.tags = self._source, self._tags
            self._flights.settle_many(self._load.group, some, [MISS] * len(some), _missing)
            await turn()

    # -- one by one -------------------------------------------------------------------------------------------------

    async def _store_alone(self, place: int, value: Any) -> None:
        request, fence, loads = self._request_of(place), self._load.fence(place), self._loads
        outcome: Outcome
        LOADING.set(fence.flight)  # in this task's own context
        try:
            cost = count_load(loads.reads.state, request, self._started)
            if isinstance(value, PreparedValue):
                loaded = await loads.stored(request, value, cost, fence)
            else:
                loaded = await loads.store_result(request, value, cost, fence)
        except Exception as error:  # noqa: BLE001  # raised by all callers that wait for this key
            outcome = Failed(error, error.__traceback__)
        else:
            outcome = Loaded(loaded)
        finally:
            fence.close()
        self._flights.settle_one(self._load.group, place, outcome)

    async def fail(self, errors: Mapping[int, Exception], *, refused: bool = False) -> None:
        """Deliver errors of the loader, by place, and release the leases.

        :param refused: whether it was not called: then nothing has failed.
        """
        if refused:
            pass
        elif self._ref.freshness is NO_POLICY:
            self._ref.counters.load_errors += len(errors)
            flights = [self._load.group.flights[place] for place in errors]
            give_back(self._loads.reads.state, self._ref, self._request.options, flights)
            names = [self._load.items[place].ref.name for place in errors]
            self._loads.reads.state.recorder.add_many(names, "load failed", code_of(self._request.options.function))
        else:
            await self._each({place: self._record_failure(place, error) for place, error in errors.items()})
        self._load.close(list(errors))
        for number, (place, error) in enumerate(errors.items(), 1):
            self._flights.settle_one(self._load.group, place, Failed(error, error.__traceback__))
            if number % _TOGETHER == 0:
                await turn()

    async def _record_failure(self, place: int, error: Exception) -> None:
        fence = self._load.fence(place)
        LOADING.set(fence.flight)  # in this task's own context
        await self._loads.record_failure(self._request_of(place), error, self._started, fence)

    def _request_of(self, place: int) -> LoadRequest[Any]:
        return self._request.of_key(self._load.items[place], self._source)

    async def _each(self, work: Mapping[int, Coroutine[Any, Any, None]]) -> None:
        """Do something for some keys, each in a task of its own."""
        tasks: list[asyncio.Task[None]] = []
        try:
            for number, coroutine in enumerate(work.values(), 1):
                tasks.append(loop_task(coroutine))
                if number % _ALONE == 0:
                    await asyncio.sleep(0)
                    await turn()
            await asyncio.gather(*tasks)
        finally:
            cancel(*tasks)
            for coroutine in list(work.values())[len(tasks) :]:
                coroutine.close()


def _missing(_: int) -> Outcome:
    return Loaded(LoadedValue(MISS, None))


def _some(portion: _Portion, numbers: Sequence[int]) -> _Portion:
    """Return some values of a portion."""
    places, values, payloads = portion
    return _Portion(
        [places[number] for number in numbers], [values[number] for number in numbers],
        [payloads[number] for number in numbers],
    )  # fmt: skip
