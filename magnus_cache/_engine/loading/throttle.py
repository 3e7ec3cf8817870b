"""Which keys are not to be loaded again for a while, because that has just failed."""

from typing import Final

from magnus_cache._engine.runtime.clock import Clock

__all__ = ["RetryThrottle"]

_MOST: Final = 10_000


class RetryThrottle:
    """Remembers failures of loads for a time; at most ten thousand, the oldest make room. Thread-safe."""

    __slots__ = ("_clock", "_until")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[bytes, float] = {}

    def failed(self, name: bytes, pause: float) -> None:
        """Hold back further loads of a key for some seconds."""
        # Anew, so that the dictionary's order is that of time.
        self._until.pop(name, None)
        self._until[name] = self._clock() + pause
        while len(self._until) > _MOST:
            try:
                self._until.pop(next(iter(self._until)), None)
            except (RuntimeError, StopIteration):
                break  # Another thread does the same.

    def succeeded(self, name: bytes) -> None:
        """Hold back nothing."""
        if self._until:
            self._until.pop(name, None)

    def holds(self, name: bytes) -> bool:
        """Return whether a key is not to be loaded now."""
        until = self._until.get(name)
        if until is None:
            return False
        if until > self._clock():
            return True
        self._until.pop(name, None)
        return False
