"""`explain`: what the cache knows about one key, and why its value is served or not."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from magnus_cache._engine.api.history import history_of, writer_of
from magnus_cache._engine.codec import encode, envelope, header_times, is_opaque, mismatch
from magnus_cache._engine.keys.names import shown_name
from magnus_cache._engine.loading.permits import source_of
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.policy.calendars import CalendarTtl
from magnus_cache._engine.policy.function_tags import visible_tags
from magnus_cache._engine.policy.options import LoadOptions
from magnus_cache._engine.store.explanation import Explanation, duration_text
from magnus_cache._engine.store.judge import Verdict, settled_verdict
from magnus_cache._engine.store.local_values import shown_tags
from magnus_cache._engine.store.reads import Reads
from magnus_cache._engine.store.records import KeyRef, Record, age_of
from magnus_cache._engine.store.revalidation import tags_of
from magnus_cache.errors import CacheDecodeError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["explain"]


async def explain(reads: Reads, ref: KeyRef, options: LoadOptions | None = None) -> Explanation:
    """Return the state of one key. This counts as no request and stores nothing in memory.

    :param options: of the function that loads it, whose budget is asked about; None for the namespace's.
    """
    for other in ref.others:
        # By which of its names a sealed value is there; for none, the first one's answer.
        if (found := await explain(reads, other, options)).level is not None:
            return found
    found, topology = await _explained(reads, ref), reads.state.topology
    history = await history_of(reads.state, ref.name, found.tags)
    slot = topology.slot_of(ref.name)
    node = None if slot is None else topology.node_of(ref.name)
    ttl = ref.namespace.ttl
    calendar = repr(ttl) if isinstance(ttl, CalendarTtl) else None
    tags = visible_tags(shown_tags(found.tags))
    if ref.namespace.limited or reads.state.sources.active:
        found = replace(found, verdict=found.verdict + await _held_back(reads, ref, options))
    return replace(found, tags=tags, slot=slot, node=node, history=history, calendar=calendar)


async def _held_back(reads: Reads, ref: KeyRef, options: LoadOptions | None) -> str:
    """Return why a load of the key would be held back now; empty if it would not."""
    source = source_of(ref, options, ref.name)
    try:
        state = await reads.state.sources.state_of(source)
    except CacheUnavailableError:
        return ""
    if state.paused > 0:
        return f"; its source {source.name!r} is paused for {duration_text(state.paused)} more"
    if source.budget is not None and not state.free:
        return f"; the budget of {source.budget.limit} of its source {source.name!r} is used up"
    return ""


async def _explained(reads: Reads, ref: KeyRef) -> Explanation:
    state = reads.state
    name = shown_name(ref.name)
    near = state.memory.hit(ref.name)
    wire = state.client.connection(ref.name)
    if ref.namespace.local:
        return await _by_reference(reads, ref, name)
    if wire is None:
        entry = near or state.memory.get_stale(ref.name, trusted=False)
        return _local(reads, ref, entry, "no Redis is configured")
    try:
        await reads.caught_up(wire, ref)
        asked = state.clock()
        raw, holder, left = await state.client.inspect(ref.name)
        found = await _in_redis(reads, wire, ref, raw, asked)
    except CacheUnavailableError as error:
        entry, why = near or reads.last(ref), _away(reads, ref, f" ({error.reason})")
        return _local(reads, ref, entry, why) if entry is not None else _not_served(reads, ref, why)
    if near is not None:
        unwanted = (near.negative and not ref.freshness.negative) or _misread(ref, near) is not None
        # The end of the entry in memory, which may be sooner than the end in Redis.
        until_end = near.fresh_until - state.clock()
        verdict = f"in memory, and {found.verdict} in Redis"
        found = replace(found, level=None if unwanted else "l1", verdict=verdict, left=until_end)
    elif found.level is not None and (limit := _limit(reads, ref)):
        found = replace(found, verdict=f"{found.verdict}; {limit}")
    return replace(found, lease_holder=holder.decode("utf-8", "replace"), lease_left=left) if holder else found


def _limit(reads: Reads, ref: KeyRef) -> str | None:
    """Return why a value may not be in memory: its namespace has as many entries there as it may have."""
    head = reads.state.keyspace.namespace_prefix(ref.namespace)
    entries, most, _ = reads.state.memory.limited().get(head, (0, None, 0))
    if most is None or entries < most:
        return None
    return f"not in memory, where its namespace has all of its l1_max_entries={most}"


def _away(reads: Reads, ref: KeyRef, why: str = "") -> str:
    node = reads.state.topology.node_of(ref.name)
    return f"{'Redis' if node is None else f'node {node}'} is away{why}"


def _local(reads: Reads, ref: KeyRef, entry: Entry | None, why: str) -> Explanation:
    """Return the state of a key as this process alone knows it.

    :param entry: the entry that this process may serve, fresh or stale, or None.
    """
    namespace, state = ref.namespace, reads.state
    name, now = shown_name(ref.name), state.clock()
    if entry is None:
        return Explanation(str(namespace), name, None, f"{_limit(reads, ref) or 'not there'}; {why}")
    left, verdict = entry.fresh_until - now, "in this process"
    level: str | None = "l1"
    if left <= 0:
        level, verdict = None, _past_its_end(_grace_left(ref, entry, now))
    elif entry.negative and ref.freshness.negative:
        verdict = "an error that loading raised, remembered in this process"
    elif entry.negative:
        level, verdict = None, Verdict.UNWANTED.words
    elif (problem := _misread(ref, entry)) is not None:
        level, verdict = None, problem
    if namespace.offline is not None and state.endpoint is not None:
        left = state.generations.served_until(entry.trust, namespace.offline, ref.name) - now
        why += f", and memory may serve it for {duration_text(left)} more"
    return _explanation(reads, ref, entry, level, f"{verdict}; {why}")


def _not_served(reads: Reads, ref: KeyRef, why: str) -> Explanation:
    """Return the state of a key whose entry this process may not serve, with the reason."""
    namespace, state = ref.namespace, reads.state
    entry = state.memory.get_stale(ref.name, trusted=False)
    if entry is None:
        return _local(reads, ref, None, why)
    now = state.clock()
    judged, offline = reads.offline_verdict(ref, entry), namespace.offline
    problem = judged.words
    if judged is Verdict.CUT_OFF and offline is not None:
        lost = duration_text(now - state.generations.served_until(entry.trust, offline, ref.name) + offline)
        problem = f"contact was lost {lost} ago, and namespace {str(namespace)!r} has offline={offline:g}"
    return _explanation(reads, ref, entry, None, f"in this process, but not served: {why}; {problem}")


def _stored_form(entry: Entry) -> bytes | None:
    """Return the payload of an entry that is no remembered error, if memory has it."""
    if entry.negative:
        return None
    return entry.payload if entry.payload is not None else entry.encoded


def _misread(ref: KeyRef, entry: Entry) -> str | None:
    """Return why this namespace cannot read what another one of its name has stored, with or without a codec."""
    payload, codec = _stored_form(entry), ref.namespace.codec
    if entry.negative or (payload is None and codec is None):
        return None
    problem = mismatch(codec, encode(entry.value) if payload is None else payload)
    return None if problem is None else f"a miss here: {problem}"


def _explanation(reads: Reads, ref: KeyRef, entry: Entry, level: str | None, verdict: str) -> Explanation:
    now = reads.state.clock()
    age = _known(age_of(entry.as_of, reads.state.topology.time_of(ref.name), now))
    payload = _stored_form(entry)
    opaque = payload is not None and is_opaque(payload)
    return Explanation(
        str(ref.namespace), shown_name(ref.name), level, verdict, age=age, left=entry.fresh_until - now,
        size=len(payload) if payload is not None and opaque else entry.length, tags=tuple(tags_of(entry)),
        opaque=opaque,
    )  # fmt: skip


def _known(age: float) -> float | None:
    return None if age == math.inf else age


def _grace_left(ref: KeyRef, entry: Entry, now: float) -> float:
    """Return the seconds for which this caller may get the value stale; the caller that stored it may have more."""
    return min(entry.end, entry.fresh_until + ref.freshness.grace) - now


def _past_its_end(grace: float) -> str:
    return f"{Verdict.STALE.words} for {duration_text(grace)} more" if grace > 0 else Verdict.EXPIRED.words


async def _by_reference(reads: Reads, ref: KeyRef, name: str) -> Explanation:
    """Return the state of a key of a local namespace."""
    entry = reads.state.memory.hit(ref.name) or await reads.read(ref)
    if reads.state.endpoint is not None and not reads.state.reaches(ref.name):
        entry, why = entry or reads.last(ref), f"its namespace is local, and {_away(reads, ref)}"
        return _local(reads, ref, entry, why) if entry is not None else _not_served(reads, ref, why)
    entry = entry or (reads.state.memory.get_stale(ref.name, trusted=False) if reads.state.endpoint is None else None)
    if entry is None:
        return Explanation(str(ref.namespace), name, None, "not there; its namespace is local to each process")
    now = reads.state.clock()
    left, verdict = entry.fresh_until - now, "in this process by reference, as its namespace is local"
    if left <= 0:
        verdict = _past_its_end(_grace_left(ref, entry, now))
    elif entry.negative:
        verdict = "an error that loading raised, remembered in this process"
    return Explanation(
        str(ref.namespace), name, "l1" if left > 0 else None, verdict, left=left, size=entry.size,
        tags=tuple(tags_of(entry)),
    )  # fmt: skip


async def _in_redis(reads: Reads, wire: "Connection", ref: KeyRef, raw: bytes | None, asked: float) -> Explanation:
    """Return the state of a key as Redis has it.

    :param asked: monotonic second at which Redis was asked for `raw`.
    """
    unknown = Explanation(str(ref.namespace), shown_name(ref.name), None, "not there")
    if raw is None:
        return unknown
    try:
        plain = reads.plain(ref, raw)
        header = envelope.read_header(plain)
        tags, _ = envelope.read_tags(plain, header)
        payload = envelope.open_payload(plain, header, reads.limit(ref))
    except CacheDecodeError as error:
        return replace(unknown, verdict=f"unreadable: {error}", size=len(raw))
    lowest_valid = await reads.epoch_sync.settled(wire, ref.epoch_names, tags)
    now = reads.state.clock()
    left = wire.time.end(header.fresh_until, header.life, now) - now
    negative = bool(header.flags & envelope.NEGATIVE)
    record = Record(None, None, len(raw), header.version, header.epoch, tags, header.cost, negative)
    judged = settled_verdict(reads.state, ref, record, left, wire, asked)
    verdict = judged.words
    if judged is Verdict.STALE:
        verdict = _past_its_end(left + ref.freshness.grace)
    elif judged is Verdict.FRESH and negative:
        verdict = "an error that loading raised, remembered"
    served = judged is Verdict.FRESH
    opaque = served and not negative and is_opaque(payload)
    if served and not negative and (problem := mismatch(ref.namespace.codec, payload)) is not None:
        served, verdict = False, f"a miss here: {problem}"
    return replace(
        unknown, level="l2" if served else None, verdict=verdict, opaque=opaque,
        age=_known(age_of(header_times.as_of(header.fresh_until, header.life), wire.time, now)), left=left,
        epoch=header.epoch,
        lowest_valid_epoch=lowest_valid, tags=tuple(tags), cost=header.cost, size=len(raw) - envelope.HEADER_BYTES,
        stored_by=await writer_of(reads.state, wire, header.version),
    )  # fmt: skip
