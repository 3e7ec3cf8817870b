"""What this process still has of a value while Redis is away, and whether it may be served."""

import math

from magnus_cache._engine.coordination.state import State
from magnus_cache._engine.memory.entry import Entry
from magnus_cache._engine.memory.placeholder import Placeholder
from magnus_cache._engine.store.judge import Verdict, judge_offline
from magnus_cache._engine.store.records import KeyRef, Record
from magnus_cache._engine.store.values import Coding
from magnus_cache.errors import CacheUnavailableError

__all__ = ["Fallback"]


class Fallback(Coding):
    """The answers of memory where Redis cannot be asked."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._memory = state.memory

    def without_loop(self, ref: KeyRef, error: CacheUnavailableError) -> Entry | None:
        """Count a read that had no background loop to go to, and return what this process has."""
        ref.counters.errors += 1
        self.state.without_loop(error)
        return self.fallback(ref)

    def fallback(self, ref: KeyRef) -> Entry | None:
        """Return the fresh value that this process still holds, if its server is away; if it is not, nothing."""
        return None if self.state.reaches(ref.name) else self._still_served(ref, self._memory.get_untrusted(ref.name))

    def last(self, ref: KeyRef) -> Entry | None:
        """Return what this process still holds of a value, be it stale, if Redis is away; if it is not, nothing.

        It need not be trusted, but must have been until the outage.
        """
        if self.state.reaches(ref.name):
            return None
        return self._still_served(ref, self._memory.get_stale(ref.name, trusted=False))

    def _still_served(self, ref: KeyRef, entry: Entry | None) -> Entry | None:
        return entry if entry is not None and self.offline_verdict(ref, entry).serves else None

    def is_fresh(self, entry: Entry | None) -> bool:
        """Return whether an entry has a value that is not stale; a remembered error is none."""
        return entry is not None and not entry.negative and self._clock() < entry.fresh_until

    def failed(self, ref: KeyRef, error: CacheUnavailableError) -> None:
        """Count an exchange with Redis that failed."""
        ref.counters.errors += 1
        self.state.stats.failed(error.reason)

    def _gone(self, placeholder: Placeholder | None) -> None:
        """Let go of what is still here of a value that Redis has no more, or the next outage would bring it back."""
        if placeholder is not None:
            self._memory.drop(placeholder)

    def _is_replaced(self, placeholder: Placeholder, record: Record) -> bool:
        """Return whether what is here is not what Redis has, which is of no use to this caller."""
        near = self._memory.get_stale(placeholder.name, trusted=False)
        return near is not None and near.version != record.version

    def offline_verdict(self, ref: KeyRef, entry: Entry) -> Verdict:
        """Return whether memory may serve what it holds although Redis cannot confirm it, and if not, why."""
        generations, offline, now = self.state.generations, ref.namespace.offline, self._clock()
        # The caller that brought it into memory may have had another grace than this one.
        grace = min(ref.freshness.grace, entry.end - entry.fresh_until)
        allowed = math.inf if offline is None else generations.served_until(entry.trust, offline, ref.name) - now
        return judge_offline(
            entry.fresh_until - now, grace, reachable=self.state.reaches(ref.name),
            heard=generations.heard(entry.trust, ref.name), allowed=allowed,
        )  # fmt: skip
