"""What sentinels and servers have told, and which primary follows from it. Pure: no I/O.

Whose word counts
-----------------
The word of a majority of the sentinels. Those that belong to a majority may not all have heard of a failover yet: the
highest configuration epoch among them names the primary, because each failover is numbered anew by its leader, whom a
majority has elected.

The sentinels tell of a planned failover a second late, and the former primary goes on to answer, and calls itself the
primary, for several seconds. So all servers are asked for their role as well. One that calls itself the primary, and
is not the named one, puts the named one in doubt, unless it is known to be a former one:

- its history of writes is the one that the named server has continued; or
- the sentinels have named it before.

The races that this excludes
----------------------------
- A replica is promoted, takes writes, and the sentinels still name the former primary: it is in doubt as soon as the
  replica was asked, and what was read from it is not served until the sentinels have decided.
- A process starts after a failover, while the former primary still calls itself one: the named server has continued its
  history, so it raises no doubt.
- A primary that was replaced is made the primary again. The sentinels have named it before; but now it has continued
  the history of the named server, which puts that one in doubt.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from magnus_cache._engine.redis.commands import info
from magnus_cache._engine.redis.endpoint import MOST_PORT, Address

__all__ = ["Claim", "Listed", "SentinelView", "Verdict", "Word", "claim_in", "word_in"]

_MOST_NODES: Final = 256
"""Servers, or sentinels, of one service that are taken notice of."""

_MOST_NAMED: Final = 64
_MOST_EPOCH: Final = (1 << 63) - 1
_ID_BYTES: Final = 64


class Word(NamedTuple):
    """The answer of one sentinel."""

    primary: Address
    """Which server it names."""
    epoch: int
    """The configuration epoch of that."""
    replicas: tuple[Address, ...]
    """The other servers that it knows."""
    sentinels: Mapping[str, Address]
    """The other sentinels that it knows, by id."""
    id: str
    """Its own id; empty if it does not tell."""
    sent: float
    """The monotonic second at which it was asked."""

    @property
    def known(self) -> int:
        """How many sentinels watch the service, itself included."""
        return len(self.sentinels) + 1


class Claim(NamedTuple):
    """What a server has said of itself."""

    is_primary: bool
    history: str
    """Identifies its history of writes."""
    former: str
    """Identifies the history that it has continued when it became a primary."""
    sent: float
    """The monotonic second at which it was asked."""


class Verdict(NamedTuple):
    """What follows from all that was told."""

    primary: Address | None
    """The primary, as a majority of the sentinels names it; None without one."""
    at: float
    """The monotonic second from which that counts; minus infinity while it does not."""
    doubted_by: Address | None
    """Another server that calls itself the primary."""
    needed: int
    """How many sentinels are a majority."""


class Listed(NamedTuple):
    """What the sentinels list as parts of the service."""

    servers: frozenset[Address]
    sentinels: frozenset[Address]


class SentinelView:
    """See the module.

    :ivar words: the last answer of each sentinel.
    :ivar claims: the last answer of each server.
    """

    def __init__(self) -> None:
        self.words: dict[str, Word] = {}
        self.claims: dict[Address, Claim] = {}
        self._named: dict[Address, None] = {}

    def heard(self, sentinel: str, word: Word) -> None:
        """Take the answer of a sentinel.

        :param sentinel: what tells it from the others.
        """
        self.words[sentinel] = word

    def claimed(self, server: Address, claim: Claim) -> None:
        """Take the answer of a server."""
        self.claims[server] = claim

    def forget(self, servers: Iterable[Address]) -> None:
        """Forget servers that the sentinels do not watch any more."""
        for server in servers:
            self.claims.pop(server, None)

    def listed(self, fresh: float) -> Listed | None:
        """Return what any of the sentinels lists; None while no majority of them answers.

        :param fresh: the monotonic second from which answers count.
        """
        words = [word for word in self.words.values() if word.sent >= fresh]
        if len(words) < _majority(words):
            return None
        servers = (place for word in words for place in (word.primary, *word.replicas))
        return Listed(frozenset(servers), frozenset(place for word in words for place in word.sentinels.values()))

    def verdict(self, fresh: float, awaited: Iterable[Address]) -> Verdict:
        """Return what follows from all that was told.

        :param fresh: the monotonic second from which answers count.
        :param awaited: the servers whose answers count as well: those that answer at all.
        """
        words = sorted((word for word in self.words.values() if word.sent >= fresh), key=lambda word: -word.sent)
        needed = _majority(words)
        if len(words) < needed:
            return Verdict(None, -math.inf, None, needed)
        # Asked at the same time, a sentinel that was told of a failover has the higher one.
        primary = max(words, key=lambda word: word.epoch).primary
        doubted_by = next((server for server in self.claims if self._doubts(server, primary)), None)
        if primary not in self._named:
            self._named[primary] = None
            while len(self._named) > _MOST_NAMED:
                del self._named[next(iter(self._named))]
        if doubted_by is not None:
            return Verdict(primary, -math.inf, doubted_by, needed)
        asked = [self.claims[server].sent for server in awaited if server in self.claims]
        return Verdict(primary, min([words[needed - 1].sent, *asked]), None, needed)

    def _doubts(self, server: Address, primary: Address) -> bool:
        """Return whether a server puts the primary in doubt by what it says."""
        claim, named = self.claims[server], self.claims.get(primary)
        if not claim.is_primary or server == primary:
            return False
        if named is not None and claim.history and named.history:
            if claim.former == named.history:
                return True
            if claim.history == named.former:
                return False
        return server not in self._named


def _majority(words: Iterable[Word]) -> int:
    return max((word.known for word in words), default=1) // 2 + 1


def word_in(replies: list[Any], sent: float) -> Word:
    """Return the word in the answers to SENTINEL MYID, MASTER, GET-MASTER-ADDR-BY-NAME, REPLICAS and SENTINELS.

    The leader of a failover tells the new epoch along with the former address in the answer to MASTER, until all
    replicas follow the new primary. So the address is that of the next answer: asked for after the epoch, it is never
    older than that.

    :raises ValueError: for nonsense.
    """
    own, primary, named, replicas, others = replies
    epoch, address = _fields(primary).get("config-epoch", ""), None
    if isinstance(named, list) and len(named) == 2:
        address = _address(_fields([b"ip", named[0], b"port", named[1]]))
    if address is None or not (epoch.isdecimal() and len(epoch) < 20 and int(epoch) <= _MOST_EPOCH):
        raise ValueError("what came is no answer of a sentinel")
    found = [_address(_fields(each)) for each in _listed(replicas)]
    sentinels = {
        each["runid"]: place
        for each in map(_fields, _listed(others))
        if (place := _address(each)) is not None and 0 < len(each.get("runid", "")) <= _ID_BYTES
    }
    name = own.decode("ascii", "replace") if type(own) is bytes and len(own) <= _ID_BYTES else ""
    return Word(address, int(epoch), tuple(each for each in found if each is not None), sentinels, name, sent)


def claim_in(reply: Any, sent: float) -> Claim:
    """Return what a server says of itself in its answer to INFO replication."""
    history, former = info(reply, b"master_replid") or "", info(reply, b"master_replid2") or ""
    # All zeros: it has continued no other's.
    return Claim(info(reply, b"role") == "master", history, former if former.strip("0") else "", sent)


def _listed(reply: Any) -> list[Any]:
    return reply[:_MOST_NODES] if isinstance(reply, list) else []


def _fields(reply: Any) -> dict[str, str]:
    """Return the fields of an answer: a map, or a list of names and values in turn."""
    if isinstance(reply, list):
        reply = dict(zip(reply[::2], reply[1::2], strict=False)) if all(type(each) is bytes for each in reply) else {}
    if not isinstance(reply, dict):
        return {}
    return {
        name.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for name, value in reply.items()
        if type(name) is bytes and type(value) is bytes
    }


def _address(fields: Mapping[str, str]) -> Address | None:
    host, port = fields.get("ip", ""), fields.get("port", "")
    if not host or not (port.isdecimal() and len(port) <= 5 and 0 < int(port) <= MOST_PORT):
        return None
    return host, int(port)
