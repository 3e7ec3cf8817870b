"""`set_many`: all values are checked and encoded before the first one is stored."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.policy.calendars import CalendarTtl, Ttl
from magnus_cache._engine.policy.modes import Mode
from magnus_cache._engine.policy.options import check_mapping
from magnus_cache._engine.policy.tags import check_tags
from magnus_cache._engine.runtime.durations import seconds
from magnus_cache._engine.runtime.loops import check_loop
from magnus_cache._engine.runtime.portal import NoThreadError
from magnus_cache._engine.runtime.turns import Step, turn
from magnus_cache._engine.store.batch_keys import RefMaker, are_distinct
from magnus_cache._engine.store.records import Began, KeyRef
from magnus_cache._engine.store.transactions import ValuesToWrite

__all__ = ["set_many", "set_many_blocking"]


async def set_many(
    engine: Engine, namespace: str, mapping: Mapping[Any, Any], ttl: Ttl | None, tags: str | Iterable[str]
) -> bool:
    """Store many values, each as `set` does; return whether all of them are stored.

    :raises CacheArgumentError: for a namespace, key, ttl or tags that cannot be used; then nothing is stored.
    :raises CacheEncodeError: likewise, for a value of a type that cannot be stored.
    :raises CacheValueTooLargeError: likewise, for more bytes than the namespace allows.
    """
    check_loop()
    call = _Call(engine, namespace, mapping, ttl, tags)
    portion, coding = Step(), engine.reads
    for key, value in call.items:
        name, payload = call.prepared(key, value)
        if payload is None:
            payload = await coding.encode(call.refs.ref(name), value)
        call.add(name, value, payload)
        if portion.done(len(payload)):
            await turn()
    if not call.items:
        return True
    if engine.state.mode is Mode.DISABLED:
        # Nothing is stored, but the old values are outdated.
        await engine.remove(call.all_refs())
        return False
    values = call.values()
    engine.state.acts.setting(values.names)
    return await engine.writes.write_many(values)


def set_many_blocking(
    engine: Engine, namespace: str, mapping: Mapping[Any, Any], ttl: Ttl | None, tags: str | Iterable[str]
) -> bool:
    """Store many values, as `set_many`, in a blocked thread.

    A thread that must not wait stores them soon after, and gets False.

    :raises CacheArgumentError: as `set_many` does.
    :raises CacheEncodeError: as `set_many` does.
    :raises CacheValueTooLargeError: as `set_many` does.
    """
    call = _Call(engine, namespace, mapping, ttl, tags)
    for key, value in call.items:
        name, payload = call.prepared(key, value)
        if payload is None:
            payload = engine.reads.encoded(call.refs.ref(name), value)
        call.add(name, value, payload)
    state, deferred = engine.state, engine.deferred
    if state.mode is Mode.DISABLED:
        engine.remove_blocking(call.all_refs())
        return False
    if deferred.writes:
        for item in call.values().items() if call.items else ():
            state.recorder.add_act(item[0].name, "set")
            deferred.write(*item)
        return False
    state.check_open()
    if not call.items:
        return True
    values = call.values()
    state.acts.setting(values.names)
    try:
        stored: bool = state.portal.call(partial(engine.writes.write_many, values))
    except NoThreadError as error:
        deferred.record(call.all_refs(), error)
        return False
    return stored


class _Call:
    """The arguments of one call, checked, and its values as far as they are encoded.

    :ivar items: the keys and values.
    :ivar refs: makes the references of the values; not for a call without items.
    """

    refs: RefMaker

    def __init__(
        self, engine: Engine, namespace: str, mapping: Mapping[Any, Any], ttl: Ttl | None,
        tags: str | Iterable[str],
    ) -> None:  # fmt: skip
        check_mapping(mapping)
        self._began = Began(engine.state.clock())
        # A plain TTL costs no call more.
        life = ttl if ttl is None or isinstance(ttl, CalendarTtl) else seconds(ttl)
        self._tags = check_tags(tags)
        self.items = list(mapping.items())
        self._coding = engine.reads
        self._names: list[bytes] = []
        self._values: list[Any] = []
        self._payloads: list[bytes] = []
        if self.items:
            self.refs = RefMaker(engine.reads, namespace)
            self._ttl = life if isinstance(life, float) else engine.reads.life(self.refs.ref(b""), life)

    def prepared(self, key: Any, value: Any) -> tuple[bytes, bytes | None]:
        """Return the name of a key, and the payload of its value; None for one that takes long to encode.

        :raises CacheArgumentError: for a key that cannot be used.
        :raises CacheEncodeError: for a value that cannot be stored.
        """
        name = self.refs.name(key)
        return name, self._coding.encoded_at_once(self.refs.namespace, value)

    def add(self, name: bytes, value: Any, payload: bytes) -> None:
        """Add an encoded value."""
        self._names.append(name)
        self._values.append(value)
        self._payloads.append(payload)

    def all_refs(self) -> list[KeyRef]:
        """Return the references of all values."""
        return list(map(self.refs.ref, self._names)) if self.items else []

    def values(self) -> ValuesToWrite:
        """Return the values to write. Of two keys with the same name, the last one counts."""
        values = ValuesToWrite(self.refs, self._names, self._values, self._payloads, self._ttl, self._tags, self._began)
        if are_distinct(key for key, _ in self.items):
            return values
        return values.only(list({name: place for place, name in enumerate(self._names)}.values()))
