"""What is tried in a simulation: the settings as recorded, with some of them replaced."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any, Final

from magnus_cache._engine.runtime.durations import Duration, seconds
from magnus_cache._engine.runtime.numbers import number, whole
from magnus_cache.errors import CacheArgumentError, CacheTypeError
from magnus_cache.simulation.memories import RULES

__all__ = ["AS_RECORDED", "Candidate", "combinations"]

_DURATIONS: Final = ("ttl", "grace", "l1_ttl", "negative")
_MOST: Final = 200
"""Candidates of one simulation."""

_SHORTEST: Final = 60
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"))
_SIZES: Final = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings to try; None leaves a setting as it was recorded, for each namespace, function and process.

    :ivar ttl: how long values live, in seconds or text such as ``"5m"``; for values with a TTL of their own, too.
    :ivar grace: for how long an expired value may be served.
    :ivar early: how eagerly values are refreshed before they expire.
    :ivar jitter: the largest share of a TTL by which it is shortened at random. Recorded lives have theirs already.
    :ivar negative: for how long errors are remembered, also those that were not; 0 for none.
    :ivar l1: whether values are kept in memory.
    :ivar l1_ttl: how long they are kept there at most.
    :ivar l1_max_entries: entries in the memory of each process, 0 or more.
    :ivar l1_max_bytes: bytes in the memory of each process.
    :ivar policy: the rule of eviction in memory, one of `RULES`.
    :ivar l2_max_bytes: bytes of values that Redis has room for; the least recently used go. None: as much as comes.
    :ivar namespaces: those to which `ttl`, `grace`, `early`, `jitter`, `negative`, `l1` and `l1_ttl` apply; empty for
        all.
    """

    ttl: Duration | None = None
    grace: Duration | None = None
    early: float | None = None
    jitter: float | None = None
    negative: Duration | None = None
    l1: bool | None = None
    l1_ttl: Duration | None = None
    l1_max_entries: int | None = None
    l1_max_bytes: int | None = None
    policy: str | None = None
    l2_max_bytes: int | None = None
    namespaces: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in _DURATIONS:
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, seconds(value, name, zero=name in ("grace", "negative")))
        for name in ("l1_max_entries", "l1_max_bytes", "l2_max_bytes"):
            if (value := getattr(self, name)) is not None and ((size := whole(value)) is None or size < 0):
                raise CacheArgumentError(name, f"a number of 0 or more is needed, got {value!r}")
        for name, most in (("early", float("inf")), ("jitter", 1.0)):
            given = getattr(self, name)
            if given is not None and ((found := number(given)) is None or not 0 <= found < most):
                raise CacheArgumentError(name, f"a number from 0 to below {most:g} is needed, got {given!r}")
        if self.policy is not None and self.policy not in RULES:
            raise CacheArgumentError("policy", f"{self.policy!r} is none of {', '.join(RULES)}")
        namespaces: Any = self.namespaces
        if isinstance(namespaces, str):
            raise CacheTypeError("namespaces", "give a tuple of names, not a text")

    @property
    def label(self) -> str:
        """What is replaced, for people: ``"ttl=5m, l1_max_entries=10000"``; "as recorded" if nothing is."""
        found = [
            f"{each.name}={_shown(each.name, getattr(self, each.name))}"
            for each in fields(self)
            if each.name != "namespaces" and getattr(self, each.name) is not None
        ]
        return ", ".join(found) or "as recorded"


AS_RECORDED: Final = Candidate()


def combinations(options: dict[str, Sequence[Any]], namespaces: tuple[str, ...] = ()) -> list[Candidate]:
    """Return a candidate for each combination of some values: two TTLs and three sizes are six.

    :param options: values by the names of the fields of `Candidate`; no values leave a field as recorded.
    :raises CacheArgumentError: for a value that cannot be used, and for too many candidates.
    """
    given = {name: list(dict.fromkeys(values)) for name, values in options.items() if values}
    if not given:
        return []
    count = 1
    for values in given.values():
        count *= len(values)
    if count > _MOST:
        raise CacheArgumentError(
            "candidates", f"these are {count} combinations, more than {_MOST}; try fewer at a time"
        )
    return [
        Candidate(**dict(zip(given, each, strict=True)), namespaces=namespaces) for each in product(*given.values())
    ]


def _shown(name: str, value: Any) -> str:
    if name in _DURATIONS:
        for unit, text in _UNITS:
            if value >= unit and value % unit == 0:
                return f"{value // unit:g}{text}"
        return f"{value:g}s"
    if name.endswith("_bytes"):
        for unit, text in _SIZES:
            if value >= unit and value % unit == 0:
                return f"{value // unit}{text}"
    return str(value)
