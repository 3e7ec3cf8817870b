"""What the callers call for: families of keys, each a namespace, its policy and its tags."""

from typing import Any, Final, NamedTuple

from magnus_cache import Namespace

__all__ = ["ALL", "CALLERS", "FAMILIES", "GRACE", "NUMBERS", "TTL", "WORKERS", "Family", "Key", "own_key"]

WORKERS: Final = 4
CALLERS: Final = 16
"""Of each worker, at most: each has a key that it alone writes."""

TTL, GRACE = 0.4, 1.5
"""Seconds, of the family with a policy."""


class Key(NamedTuple):
    """One key; its number stands for it in records."""

    number: int
    namespace: str
    name: str
    tags: tuple[str, ...]


class Family(NamedTuple):
    """The keys of one namespace. Every value of a key is stored with the tags of that key."""

    namespace: str
    ttl: float | None
    keys: tuple[Key, ...]


FAMILIES: Final[dict[str, Family]] = {}
ALL: Final[list[Key]] = []
NUMBERS: Final[dict[tuple[str, str], Key]] = {}


def _family(name: str, namespace: str, names: list[str], tags: int = 0, ttl: float | None = 60.0) -> None:
    keys: list[Key] = []
    for place, text in enumerate(names):
        key = Key(len(ALL), namespace, text, (f"tag-{name}-{place % tags}",) if tags else ())
        ALL.append(key)
        NUMBERS[str(namespace), text] = key
        keys.append(key)
    FAMILIES[name] = Family(namespace, ttl, tuple(keys))


def _numbered(letter: str, count: int) -> list[str]:
    return [f"{letter}{number}" for number in range(count)]


_POLICY: Final[dict[str, Any]] = {"soft_timeout": 0.05, "early": 20, "retry": 0.2, "jitter": 0.1}

_family("plain", "stress", _numbered("k", 24), tags=4)
_family("policy", Namespace("stress-policy", ttl=TTL, grace=GRACE, **_POLICY), _numbered("p", 12), tags=2, ttl=None)
_family("absent", Namespace("stress-absent", ttl=60, negative={LookupError: 60}), _numbered("a", 6), tags=1)
_family("called", "stress-called", _numbered("f", 12), tags=3)
_family("bulky", "stress-bulky", _numbered("b", 2), tags=1)
# Nobody invalidates these: they are loaded again and again because they end, each time by one caller of all.
_family("steady", "stress-steady", _numbered("s", 4), tags=1, ttl=0.2)
_family("tight", "stress-tight", _numbered("t", 2))
_family("own", "stress-own", [f"o{worker}-{caller}" for worker in range(WORKERS) for caller in range(CALLERS)])


def own_key(worker: int, caller: int) -> Key:
    """Return the key that one caller alone writes."""
    return FAMILIES["own"].keys[worker * CALLERS + caller]
