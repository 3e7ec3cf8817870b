"""`set_many`: all values are checked and encoded before the first one is stored."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.policy.options import check_mapping
from magnus_cache._engine.policy.tags import check_tags
from magnus_cache._engine.runtime.durations import Duration, seconds
from magnus_cache._engine.runtime.loops import check_loop
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.runtime.turns import Step, turn
from magnus_cache._engine.store.records import KeyRef

__all__ = ["set_many", "set_many_blocking"]

_Item: TypeAlias = tuple[KeyRef, Any, bytes, float, tuple[str, ...]]


async def set_many(
    engine: Engine, namespace: str, mapping: Mapping[Any, Any], ttl: Duration | None, tags: str | Iterable[str]
) -> bool:
    """Store many values, each as `set` does; return whether all of them are stored.

    :raises CacheArgumentError: for a namespace, key, ttl or tags that cannot be used; then nothing is stored.
    :raises CacheEncodeError: likewise, for a value of a type that cannot be stored.
    :raises CacheValueTooLargeError: likewise, for more bytes than the namespace allows.
    """
    check_loop()
    items: list[_Item] = []
    portion = Step()
    for ref, value, life, names in _wanted(engine, namespace, mapping, ttl, tags):
        payload = await engine.reads.encode(ref, value)
        items.append((ref, value, payload, life, names))
        if portion.done(len(payload)):
            await turn()
    if engine.state.mode is Mode.DISABLED:
        # Nothing is stored, but the old values are outdated.
        await engine.writes.remove([item[0] for item in items])
        return False
    return await engine.writes.write_many(items)


def set_many_blocking(
    engine: Engine, namespace: str, mapping: Mapping[Any, Any], ttl: Duration | None, tags: str | Iterable[str]
) -> bool:
    """Store many values, as `set_many`, in a blocked thread.

    A thread that must not wait stores them soon after, and gets False.

    :raises CacheArgumentError: as `set_many` does.
    :raises CacheEncodeError: as `set_many` does.
    :raises CacheValueTooLargeError: as `set_many` does.
    """
    items: list[_Item] = []
    for ref, value, life, names in _wanted(engine, namespace, mapping, ttl, tags):
        items.append((ref, value, engine.reads.encoded(ref, value), life, names))
    state, deferred = engine.state, engine.deferred
    if state.mode is Mode.DISABLED:
        refs = [item[0] for item in items]
        state.check_open()
        deferred.removed(refs)
        return False
    if deferred.writes:
        for item in items:
            deferred.write(*item)
        return False
    state.check_open()
    try:
        stored: bool = state.portal.call(partial(engine.writes.write_many, items))
    except NoThreadError as error:
        deferred.record([item[0] for item in items], error)
        return False
    return stored


def _wanted(
    engine: Engine, namespace: str, mapping: Mapping[Any, Any], ttl: Duration | None, tags: str | Iterable[str]
) -> Iterator[tuple[KeyRef, Any, float, tuple[str, ...]]]:
    check_mapping(mapping)
    life, names = None if ttl is None else seconds(ttl), check_tags(tags)
    for key, value in list(mapping.items()):
        ref = engine.reads.ref(namespace, key)
        yield ref, value, life or engine.reads.ttl(ref), names
