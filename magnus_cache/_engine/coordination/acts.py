"""What the program itself does to the cache: it is recorded with the line that called, and told to observers.

An act is recorded before it takes effect: what it causes, such as the refusal of a value that is being loaded, comes
after it in the history of a key. Observers hear of it once it is done, as they hear how many values there were.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from magnus_cache._engine.coordination.fleet_log import FleetLog
from magnus_cache._engine.coordination.happenings import Happenings
from magnus_cache._engine.runtime.observers import Cleared, Deleted, Observers, TagsInvalidated, Touched, text, texts
from magnus_cache._engine.runtime.recorder import CallSite, Recorder, call_site, site_text

if TYPE_CHECKING:
    from magnus_cache._engine.keys.globs import ClearScope

__all__ = ["ActParts", "Acts"]


class ActParts(Protocol):
    """The parts of a `State` that acts are noted in. The observers may be exchanged."""

    elsewhere: Happenings
    recorder: Recorder
    fleet_log: FleetLog
    observers: Observers


class Acts:
    """Notes what the program does to one cache. Each method is called by what the program calls, in its thread."""

    def __init__(self, parts: ActParts) -> None:
        self._parts = parts

    def setting(self, names: Sequence[bytes]) -> None:
        """Note that values are about to be set; `Stored` is told where they are stored."""
        self._parts.recorder.add_many(names, "set", call_site())

    def touched(self, namespace: str, name: bytes, ttl: float) -> None:
        """Note that a value has got a new time to live, in seconds."""
        self._parts.recorder.add_act(name, "touched", ttl)
        if self._parts.observers.active:
            if (log := self._parts.observers.log) is not None:
                log.touched(name, ttl)
            self._parts.observers.tell(Touched, str(namespace), text(name), ttl)

    def deleting(self, names: Sequence[bytes]) -> CallSite | None:
        """Note that values are about to be removed; return the place in the program, for `deleted`."""
        site, parts = call_site(), self._parts
        now = parts.elsewhere.expect(names)
        parts.recorder.add_many(names, "deleted", site)
        parts.fleet_log.note(now, "deleted", site, names)
        return site

    def deleted(self, namespace: str, names: Sequence[bytes], removed: int, site: CallSite | None) -> None:
        """Tell that values were removed, and how many there were."""
        if self._parts.observers.active:
            if (log := self._parts.observers.log) is not None:
                log.deleted(names)
            fields = str(namespace), texts(names), removed, site_text(site), len(names)
            self._parts.observers.tell(Deleted, *fields)

    def clearing(self, target: str, scope: "ClearScope") -> CallSite | None:
        """Note that values are about to be cleared; return the place in the program, for `cleared`."""
        site = call_site()
        now = self._parts.elsewhere.expect_scope(scope, over=False)
        self._parts.recorder.add_all(lambda name, _: scope.covers(name), "cleared", site, target)
        self._parts.fleet_log.note(now, "cleared", site, target=str(target))
        return site

    def cleared(self, target: str, scope: "ClearScope", removed: int, site: CallSite | None) -> None:
        """Tell that values were cleared, and how many of them Redis has removed."""
        self._parts.elsewhere.expect_scope(scope, over=True)
        if self._parts.observers.active:
            if (log := self._parts.observers.log) is not None:
                log.cleared(scope)
            self._parts.observers.tell(Cleared, str(target), removed, site_text(site))

    def invalidating(self, tags: Sequence[str], function: str | None = None) -> CallSite | None:
        """Note that tags are about to be invalidated; return the place in the program, for `invalidated`.

        :param function: the name of the function whose values have this tag, if it is that of a function.
        """
        site, every = call_site(), frozenset(tags)
        what = "tag invalidated" if function is None else "function cleared"
        self._parts.recorder.add_all(lambda _, its: not every.isdisjoint(its), what, site, function)
        self._parts.fleet_log.note(self._parts.fleet_log.clock(), what, site, tags=tuple(map(str, tags)))
        return site

    def invalidated(self, tags: Sequence[str], site: CallSite | None, function: str | None = None) -> None:
        """Tell that tags were invalidated."""
        if not self._parts.observers.active:
            return
        if (log := self._parts.observers.log) is not None:
            log.invalidated(tags)
        if function is None:
            self._parts.observers.tell(TagsInvalidated, tuple(map(str, tags)), site_text(site))
        else:
            self._parts.observers.tell(Cleared, function, 0, site_text(site))
