"""What `explain` tells of the past of a key: from the flight recorder of this process and the log of the fleet."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from magnus_cache._engine.codec.versions import is_own
from magnus_cache._engine.coordination.fleet_log import Elsewhere
from magnus_cache._engine.coordination.happenings import ELSEWHERE
from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.runtime.recorder import Fact, site_text
from magnus_cache._engine.store.explanation import KeyEvent, duration_text
from magnus_cache.errors import CacheArgumentError, CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["history_of", "writer_of"]

_MOST: Final = 12
"""Events that are told."""

_TOGETHER: Final = 1.0
"""Seconds within which a change that was noticed here is the one that another process tells of."""


async def history_of(state: State, name: bytes, tags: Sequence[str]) -> tuple[KeyEvent, ...]:
    """Return the last things that happened to a key, the latest first.

    :param tags: all tags of its value, as far as they are known.
    """
    theirs = [event async for event in _theirs(state, name, tags)]
    found = [*theirs, *_ours(state, name, tags, theirs)]
    return tuple(sorted(found, key=lambda event: event.age)[:_MOST])


def _ours(state: State, name: bytes, tags: Sequence[str], theirs: Sequence[KeyEvent]) -> Iterator[KeyEvent]:
    now, process = state.clock(), state.fleet_log.process
    for fact in state.recorder.of(name, tags):
        age = max(0.0, now - fact.at)
        told = fact.what.endswith(ELSEWHERE) and any(abs(event.age - age) < _TOGETHER for event in theirs)
        if not told:
            yield KeyEvent(fact.what, age, process, here=True, site=site_text(fact.by), detail=_detail(fact))


def _detail(fact: Fact) -> str | None:
    if isinstance(fact.detail, float | int):
        start = {"loaded": "in ", "Redis back": "after "}.get(fact.what, "")
        return f"{start}{duration_text(fact.detail)}"
    return None if fact.detail is None else str(fact.detail)


async def _theirs(state: State, name: bytes, tags: Sequence[str]) -> AsyncIterator[KeyEvent]:
    connection = state.client.connection(state.epochs.root)
    if connection is None:
        return
    try:
        records = await state.fleet_log.others()
    except CacheUnavailableError:
        # Redis is away, or denies it; the rest is known all the same.
        return
    now = connection.time.at(state.clock())
    for record in records:
        if _covers(state, record, name, tags):
            age = max(0.0, (now - record.at) / MICROSECONDS)
            yield KeyEvent(record.what, age, record.process, here=False, site=record.site, detail=record.target)


def _covers(state: State, record: Elsewhere, name: bytes, tags: Sequence[str]) -> bool:
    """Return whether something that another process has done was about a key."""
    if record.target is not None:
        try:
            return state.keyspace.scope(record.target).covers(name)
        except CacheArgumentError:
            return False
    return name in record.names or not set(record.tags).isdisjoint(tags)


async def writer_of(state: State, connection: "Connection", version: int) -> str | None:
    """Return the process that has stored a value, by the value's version; None if it is not known."""
    if is_own(version):
        return state.fleet_log.process
    try:
        return await state.fleet_stats.writer(connection, version)
    except CacheUnavailableError:
        return None
