"""Audits: some hits are loaded again in the background and compared, to measure how often cached values are wrong.

An audit only measures. It stores nothing: to keep the fresh value would make audited keys younger than others, and so
change what is measured. It takes no lease and wakes no peer. It is one of the background loads of its namespace, within
their limit, and is not begun while Redis is away, when the source has enough to do.

A value is checked once for each range of ages, and by one audit at a time: checks of one value within a moment all say
the same, and a hot key would be loaded more often than without a cache.
"""

import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from magnus_cache._engine import codec
from magnus_cache._engine.flights.context import CurrentLoad, as_current_load, modified
from magnus_cache._engine.flights.flight import Flight
from magnus_cache._engine.loading.loads import Loads
from magnus_cache._engine.loading.money import paid_for
from magnus_cache._engine.loading.request import BatchItem, BatchRequest, LoadRequest
from magnus_cache._engine.loading.spend_gate import give_back
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.policy.audits import Sampler
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.policy.namespaces import Namespace
from magnus_cache._engine.runtime.audit_counts import bucket_of
from magnus_cache._engine.runtime.clock import monotonic
from magnus_cache._engine.runtime.turns import in_turns
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache._engine.store.records import MISS, age_of
from magnus_cache.errors import CacheBudgetError, CacheEncodeError, RetryLater

__all__ = ["Auditor", "is_same"]

_MOST: Final = 4_096
"""Keys of which it is remembered what was checked; when there are more, remembering starts over."""

_NAME: Final = b"\0"
"""Before the name of a value: the flight of its audit, which no caller can join. Budgets find the key in it."""


def is_same(cached: tuple[bytes | None, Any], fresh: tuple[bytes | None, Any]) -> bool | None:
    """Return whether two values are equal; None if that cannot be told.

    Equal bytes are equal values, NaN and arrays included. Else ``==`` decides, where it gives a bool: equal dicts may
    have different bytes. Where it raises, or gives an array, different bytes are different values.

    :param cached: its payload, or None without one, and the value.
    :param fresh: likewise.
    """
    (payload, value), (other_payload, other) = cached, fresh
    if payload is not None and payload == other_payload:
        return True
    try:
        equal = value == other
    except Exception:  # noqa: BLE001  # raised by the value's own class
        equal = None
    if isinstance(equal, bool):
        return equal
    return False if payload is not None and other_payload is not None else None


class Auditor:
    """The audits of one cache. Nothing of it waits or raises."""

    def __init__(self, loads: Loads) -> None:
        self._loads = loads
        self._reads = loads.reads
        self._state = loads.reads.state
        self._checked: dict[bytes, tuple[int, int]] = {}
        self._samplers: dict[tuple[Namespace, float], Sampler] = {}

    def loadable(self, request: LoadRequest[Any], entry: Entry | bytes | None) -> None:
        """Count a hit whose namespace or function audits, and audit it if it is drawn."""
        sampler = self._sampler(request.ref.namespace, request.options.audit)
        if sampler is not None and sampler.drawn():
            self.hit(lambda: request, entry)

    def batch(self, request: BatchRequest, found: Iterable[tuple[BatchItem, Entry | None]]) -> None:
        """Count the hits of a batch whose namespace or function audits, and audit those that are drawn."""
        hits = list(found)
        sampler = self._sampler(hits[0][0].ref.namespace, request.options.audit) if hits else None
        if sampler is None:
            return
        if sampler.left >= len(hits):
            sampler.left -= len(hits)  # none of them is drawn
            return
        for item, entry in hits:
            if sampler.drawn():
                self.hit(partial(self._of_key, request, item), entry)

    def _of_key(self, request: BatchRequest, item: BatchItem) -> LoadRequest[Any]:
        """Return the request for one key of a batch, whose loader calls the batch loader with this key."""
        key, namespace = item.key, str(item.ref.namespace)

        async def load() -> Any:
            answers: Any = await self._loads.call(partial(request.loader, [key]), namespace)
            value = answers.get(key, MISS)
            if isinstance(value, Exception):
                raise value
            return value

        return request.of_key(item)._replace(loader=load)

    def _sampler(self, namespace: Namespace, own: float | None) -> Sampler | None:
        """Return what draws the hits that no wrapper of a function counts; None if none is audited."""
        known = namespace, namespace.audit if own is None else own
        if not known[1]:
            return None
        sampler = self._samplers.get(known)
        if sampler is None:
            if len(self._samplers) >= _MOST:
                self._samplers.clear()
            sampler = self._samplers[known] = Sampler(known[1])
        return sampler

    def called(
        self, sampler: Sampler, make: Callable[[], LoadRequest[Any]], entry: Entry | bytes | None
    ) -> None:  # fmt: skip
        """Count a hit of a cached function, and audit it if it is drawn."""
        if sampler.drawn():
            self.hit(make, entry)

    def hit(self, make: Callable[[], LoadRequest[Any]], entry: Entry | bytes | None) -> None:
        """Audit a hit that was drawn, soon.

        :param make: returns the request that would load its value.
        :param entry: what was served.
        """
        with contextlib.suppress(Exception):
            state = self._state
            if not isinstance(entry, Entry) or not entry.as_of or entry.negative or state.mode is not Mode.NORMAL:
                return
            request = make()
            name, namespace = request.ref.name, str(request.ref.namespace)
            bucket = bucket_of(self._age(name, entry))
            state.stats.audits.count(namespace, bucket, "hits")
            if state.closed or (state.endpoint is not None and not state.reaches(name)):
                return
            if len(self._checked) >= _MOST:
                self._checked.clear()
            if self._checked.get(name) == (entry.version, bucket):
                return
            self._checked[name] = entry.version, bucket
            if state.portal.engaged:
                return  # in the midst of a step of the cache
            begin = partial(self._begin, request, entry)
            if running_loop() is not None:
                begin()
            else:
                state.portal.submit(begin)

    def _age(self, name: bytes, entry: Entry) -> float:
        return age_of(entry.as_of, self._state.topology.time_of(name), self._state.clock())

    def _begin(self, request: LoadRequest[Any], entry: Entry) -> None:
        ref = request.ref
        self._state.flights.start_background(
            _NAME + ref.name, partial(self._audit, request, entry), str(ref.namespace)
        )  # fmt: skip

    async def _audit(self, request: LoadRequest[Any], entry: Entry, flight: Flight) -> None:
        ref, counts = request.ref, self._state.stats.audits
        bucket = bucket_of(self._age(ref.name, entry))
        permits, namespace = self._loads.permits, str(ref.namespace)
        same: bool | None = None
        began = monotonic()
        if permits.limits(ref):
            try:
                # Behind all loads that callers wait for.
                await permits.enter(request, flight, began)
            except CacheBudgetError:
                return
        try:
            # When the source is asked, not when the value was served: that is what the two have in common.
            bucket = bucket_of(self._age(ref.name, entry))
            with as_current_load(CurrentLoad()):
                value = modified(await self._loads.call(request.loader, namespace))
            self._count_spent(request, value)
            same = await self._compared(request, entry, value)
        except RetryLater as later:
            await permits.paused(request, flight, later, began)
            return
        except Exception as error:  # noqa: BLE001  # raised by the loader: it is counted, and concerns no caller
            give_back(self._state, ref, request.options, (flight,))
            if isinstance(error, CacheBudgetError):
                return  # of another load that this one needs
            same = None
        counts.count(namespace, bucket, "failed" if same is None else "checked")
        if same is False:
            counts.count(namespace, bucket, "wrong")

    def _count_spent(self, request: LoadRequest[Any], value: Any) -> None:
        """Count what an audit has cost: the source does not ask what a load is for."""
        if request.options.cost is not None:
            request.ref.counters.spent_nanos += request.options.cost.nanos
            paid_for(self._state, request, value)

    async def _compared(self, request: LoadRequest[Any], entry: Entry, value: Any) -> bool | None:
        """Return whether a loaded value is the cached one; None if that cannot be told."""
        ref, reads = request.ref, self._reads
        if value is MISS:
            return False  # a batch loader has left the key out: the source has it no more
        if ref.namespace.local:
            return await _same_objects(entry.value, value)
        cached = await reads.open_anyway(ref, entry)
        if cached is MISS:
            return None
        payload = await in_turns(reads.payload_steps(entry))
        try:
            fresh = await in_turns(reads.encoding(ref.namespace, value))
        except CacheEncodeError:
            return None
        # As callers of the cache would get it: rows and tuples of other types may be equal to what comes back.
        value = codec.decode_by(ref.namespace.codec, fresh, reads.limit(ref))
        return is_same((payload, cached), (fresh, value))


async def _same_objects(cached: Any, fresh: Any) -> bool | None:
    """Return whether two objects of a local namespace are equal; None if that cannot be told.

    Any object can be in one. Those that could be stored elsewhere, such as frames and arrays, have bytes to compare.
    """
    same = is_same((None, cached), (None, fresh))
    if same:
        return True
    try:
        payloads = [await in_turns(codec.encode_steps(value)) for value in (cached, fresh)]
    except CacheEncodeError:
        return same
    return is_same((payloads[0], cached), (payloads[1], fresh))
