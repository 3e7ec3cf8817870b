"""The parts of a replay: the policy of a source as a candidate has it, values, loads under way, and Redis."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from magnus_cache.simulation.candidates import Candidate
from magnus_cache.simulation.trace import ACCESS, DELETE, WRITE, Op, Outcome

__all__ = ["Far", "Flight", "Rules", "Value", "lapse", "next_uses", "rules_of"]

_NEVER: Final = float("inf")


class Rules(NamedTuple):
    """The policy of a source, as a candidate has it."""

    namespace: str
    ttl: float | None
    grace: float
    soft: float | None
    early: float
    jitter: float
    retry: float
    negative: float | None
    l1: bool
    l1_ttl: float | None
    most: int | None
    local: bool
    plain: bool
    """Whether there is no policy of freshness: what is not fresh is not looked at."""


class Value:
    """A value, wherever it is."""

    __slots__ = ("began", "cost", "end", "fresh", "is_error", "outcome")

    def __init__(self, began: float, fresh: float, end: float, outcome: Outcome, *, is_error: bool = False) -> None:
        self.began = began
        self.fresh = fresh
        self.end = end
        self.outcome = outcome
        self.cost = outcome.busy
        self.is_error = is_error


class Flight:
    """A load under way."""

    __slots__ = ("began", "key", "outcome", "process", "source", "users", "void", "waiting")

    def __init__(self, began: float, key: int, process: int, source: int, outcome: Outcome) -> None:
        self.began = began
        self.key = key
        self.process = process
        self.source = source
        self.outcome = outcome
        self.users = {process}
        self.waiting = 0
        self.void = False


class Far:
    """Redis: values by key. With a bound, the least recently used go."""

    def __init__(self, most: int | None) -> None:
        self._values: dict[int, Value] = {}
        self._most = most
        self._bytes = 0

    def get(self, key: int) -> Value | None:
        """Return a value, expired or not."""
        value = self._values.get(key)
        if value is not None and self._most is not None:
            del self._values[key]
            self._values[key] = value
        return value

    def put(self, key: int, value: Value) -> None:
        """Store a value."""
        self.pop(key)
        self._values[key] = value
        if self._most is None:
            return
        self._bytes += _far_bytes(value)
        while self._bytes > self._most:
            self.pop(next(iter(self._values)))

    def pop(self, key: int) -> Value | None:
        """Remove a value, and return it."""
        value = self._values.pop(key, None)
        if value is not None and self._most is not None:
            self._bytes -= _far_bytes(value)
        return value


_FAR_OVERHEAD: Final = 150
"""Bytes that a value takes in Redis beyond its name and payload: the envelope, and the server's own tables."""


def _far_bytes(value: Value) -> int:
    return value.outcome.size + value.outcome.name_bytes + _FAR_OVERHEAD


def rules_of(policy: Any, namespace: str, candidate: Candidate) -> Rules:
    """Return the policy of a source as a candidate has it."""
    applies = not candidate.namespaces or namespace in candidate.namespaces

    def either(name: str, recorded: Any) -> Any:
        value = getattr(candidate, name) if applies else None
        return recorded if value is None else value

    grace, early = either("grace", policy["grace"]), either("early", policy["early"])
    negative = either("negative", None)
    # Recorded lives have their jitter already; one that is asked for applies to all.
    jitter = either("jitter", policy["jitter"] if either("ttl", None) is not None else 0.0)
    soft = policy["soft_timeout"]
    local = bool(policy["local"])
    plain = not (grace or early or negative or not policy["plain"])
    return Rules(
        namespace, either("ttl", None), grace, soft, early, jitter, policy["retry"], negative,
        bool(either("l1", policy["l1"])) or local, either("l1_ttl", policy["l1_ttl"]), policy["l1_max_entries"], local,
        plain,
    )  # fmt: skip


def lapse(header: Mapping[str, Any]) -> float:
    """Return after how many seconds without a call a process asks Redis before it serves what is in memory."""
    bound = header.get("max_staleness")
    # A heartbeat is sent after a fourth of the bound, once more after the last call.
    return bound * 1.125 if header["redis"] and bound else _NEVER


def next_uses(ops: list[Op]) -> list[float]:
    """Return for each access when the same process uses the same key next; infinity if it changes before, or never."""
    uses, following = [_NEVER] * len(ops), dict[tuple[int, int], float]()
    for place in range(len(ops) - 1, -1, -1):
        at, what, process, _, key, _ = ops[place]
        if what == ACCESS:
            uses[place] = following.get((process, key), _NEVER)
            following[process, key] = at
        elif key >= 0 and what in (WRITE, DELETE):
            for pair in [pair for pair in following if pair[1] == key]:
                del following[pair]
    return uses
