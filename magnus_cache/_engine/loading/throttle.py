"""The pause before a key whose load has failed is loaded again."""

from typing import Final

from magnus_cache._engine.runtime.clock import Clock

__all__ = ["RetryThrottle"]

_MOST: Final = 10_000


class RetryThrottle:
    """Remembers the last ten thousand failed loads, each for its pause. Thread-safe."""

    __slots__ = ("_clock", "_until")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[bytes, float] = {}

    def failed(self, name: bytes, pause: float) -> None:
        """Pause the loads of a key for some seconds."""
        # Removed first: the dictionary's order is that of time.
        self._until.pop(name, None)
        self._until[name] = self._clock() + pause
        while len(self._until) > _MOST:
            try:
                self._until.pop(next(iter(self._until)), None)
            except (RuntimeError, StopIteration):
                break  # Another thread does the same.

    def succeeded(self, name: bytes) -> None:
        """End the pause of a key."""
        if self._until:
            self._until.pop(name, None)

    def holds(self, name: bytes) -> bool:
        """Return whether the loads of a key are paused now."""
        until = self._until.get(name)
        if until is None:
            return False
        if until > self._clock():
            return True
        self._until.pop(name, None)
        return False
