"""The circuit breaker, which decides when to try Redis again, without any I/O.

All connections of the process to one Redis share one breaker, so that a failure of one of them spares the others a
timeout::

    unknown -> closed -> open -> half-open -> closed      it is back: waiting callers continue at once
                                     `-----> open         the pause grows
"""

import math
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from magnus_cache._engine.runtime.critical import section

__all__ = ["Breaker", "Outage", "Transition"]

_FIRST: Final = 0.2
_LONGEST: Final = 3.0
_EVENTS: Final = 32
"""State changes remembered: about the last minute of an outage, at the longest pause."""


class Transition(NamedTuple):
    """A change of the breaker's state.

    :ivar at: monotonic seconds.
    :ivar state: ``"closed"``, ``"open"`` or ``"half-open"``.
    :ivar reason: why, in one word as in `CacheUnavailableError`; None unless it opened.
    """

    at: float
    state: str
    reason: str | None = None


class Outage(NamedTuple):
    """The current outage, or the last one.

    :ivar reason: one word, as in `CacheUnavailableError`.
    :ivar began: monotonic seconds.
    :ivar attempts: failed attempts to connect, the first failure included.
    """

    reason: str
    began: float
    attempts: int


class Breaker:
    """Closed while Redis answers; open from a failure until the next success. Thread-safe.

    While it is open, one connection attempt is due after each pause, and only one is allowed at a time. Each failed one
    doubles the pause (0.2 s to 3 s), shortened at random by up to a half so that a fleet does not return in step.

    :param trial: seconds after which a trial without an outcome counts as lost, because its event loop may be.
    :ivar outages: how many outages there were.
    :ivar outage: the current or last one, or None.
    :ivar succeeded_at: monotonic seconds of the last success.
    :ivar changes: the latest changes of state, the last one at the end; at most 32.
    """

    __slots__ = (
        "_callbacks", "_failures", "_known", "_lock", "_random", "_retry_at", "_trial", "_trial_until", "changes",
        "outage", "outages", "succeeded_at",
    )  # fmt: skip

    def __init__(self, trial: float = 1.0, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._trial = trial
        self._random = uniform
        self.reset()

    def reset(self) -> None:
        """Forget everything, as in a forked child."""
        self._lock = section()
        self._callbacks: set[Callable[[], object]] = set()
        self._failures = self.outages = 0
        self._known = False
        self.succeeded_at = -math.inf
        self._retry_at = 0.0
        self._trial_until = -math.inf
        self.outage: Outage | None = None
        self.changes: deque[Transition] = deque(maxlen=_EVENTS)

    @property
    def closed(self) -> bool:
        """Whether the last exchange with Redis succeeded; False before the first."""
        return self._known and not self._failures

    @property
    def unknown(self) -> bool:
        """Whether no exchange with Redis has had an outcome yet."""
        return not self._known and not self._failures

    @property
    def open(self) -> bool:
        """Whether the last exchange with Redis failed; False before the first."""
        return self._failures > 0

    def try_acquire(self, now: float) -> float:
        """Return 0 if the caller may make an attempt now, else the seconds until an attempt may be made.

        The caller ends its attempt by `failed`, `succeeded` or `withdrawn`.
        """
        with self._lock:
            if not self._failures:
                return 0.0
            wait = max(self._retry_at, self._trial_until) - now
            if wait > 0:
                return wait
            self._trial_until = now + self._trial
            self.changes.append(Transition(now, "half-open"))
            return 0.0

    def retry_now(self) -> None:
        """Make the next attempt due now."""
        with self._lock:
            self._retry_at = 0.0
        self._notify()

    def withdrawn(self, now: float) -> None:
        """Note that an attempt was abandoned without an outcome: another may be made."""
        with self._lock:
            if self._trial_until > now:
                self.changes.append(Transition(now, "open", "withdrawn"))
            self._trial_until = -math.inf
        self._notify()

    def failed(self, now: float, reason: str = "") -> float:
        """Note a failure and return the pause until the next attempt, in seconds."""
        try:
            return self._failed(now, reason)
        finally:
            self._notify()

    def _failed(self, now: float, reason: str) -> float:
        with self._lock:
            self._trial_until = -math.inf
            # A second connection that reports the same outage must not push the attempt further away.
            if self._failures and now < self._retry_at:
                return self._retry_at - now
            pause = min(_LONGEST, _FIRST * math.exp2(min(self._failures, 10))) * self._random(0.5, 1.0)
            if not self._failures or self.outage is None:
                self.outages += 1
                self.outage = Outage(reason, now, 0)
            self._failures += 1
            self.outage = Outage(reason, self.outage.began, self._failures)
            self._retry_at = now + pause
            self.changes.append(Transition(now, "open", reason))
            return pause

    def succeeded(self, now: float) -> None:
        """Note that Redis answered."""
        with self._lock:
            self.succeeded_at = now
            if self._failures or not self._known:
                self.changes.append(Transition(now, "closed"))
            self._known, self._failures, self._retry_at, self._trial_until = True, 0, 0.0, -math.inf
        self._notify()

    def _notify(self) -> None:
        with self._lock:
            callbacks, self._callbacks = self._callbacks, set()
        for callback in callbacks:
            callback()

    def subscribe(self, callback: Callable[[], object]) -> None:
        """Call this once, in any thread, when an attempt has ended; immediately if Redis answers."""
        with self._lock:
            if self._failures:
                self._callbacks.add(callback)
                return
        callback()

    def unsubscribe(self, callback: Callable[[], object]) -> None:
        """Remove a callback."""
        with self._lock:
            self._callbacks.discard(callback)

    def as_dict(self, now: float) -> dict[str, Any]:
        """Return the state, the number of outages, when and why the last one began, and the latest changes."""
        with self._lock:
            outage, failing, changes = self.outage, self._failures > 0, list(self.changes)
        state = "unknown" if not self._known and not failing else "closed"
        if failing:
            state = "half-open" if self._trial_until > now else "open"
        return {
            "state": state,
            "outages": self.outages,
            "reason": outage.reason if outage else None,
            "seconds_ago": round(now - outage.began, 3) if outage else None,
            "attempts": outage.attempts if outage else 0,
            "events": [
                {"state": change.state, "reason": change.reason, "seconds_ago": round(now - change.at, 3)}
                for change in changes
            ],
        }
