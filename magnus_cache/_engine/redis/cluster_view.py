"""What all event loops of a process know of a cluster: the slot map, when slots moved, which node was confirmed when.

Whose word counts
-----------------
A node that was cut off does not know that another one has taken its place. So what a node says *of itself* never takes
slots from another node that lives. What it says of the others counts: it is the word of a second node.

The races that this excludes
----------------------------
- A read left for the old owner of a slot, the slot moved, and the answer comes afterwards. The old owner announces no
  later change. `moved_at` is later than the request, so what it brought is not kept; see `ClusterTopology.trust`.
- Entries in memory were read from a node, and slots of it moved, or were given away without a word: a server of Redis 7
  deletes such keys and announces nothing. Everything that was read through a connection to one of the nodes concerned
  is distrusted at once, and is compared with what Redis has when it is asked for next.
"""

import math
from collections.abc import Callable
from itertools import pairwise

from magnus_cache._engine.redis.slots import SLOTS, ClusterNode, SlotMap, changes
from magnus_cache._engine.runtime.critical import section

__all__ = ["ClusterView"]

_MOST_KNOWN = 1_024


class ClusterView:
    """See the module. Thread-safe.

    :param lives: returns whether a node answers this process, by its id.
    :param changed: called with the ids of the nodes that slots have moved from or to.
    :param confirmed: called with a node's id and the monotonic second at which another node was asked about it.
    :ivar map: the present map.
    :ivar known: all nodes that were ever in it.
    :ivar moved_at: for each slot, the monotonic second at which this process learned that it has moved.
    :ivar last_move: the latest of these seconds.
    :ivar vouched: by node, the monotonic second at which another node was asked that has confirmed it.
    """

    def __init__(
        self, lives: Callable[[str], bool], changed: Callable[[set[str]], object],
        confirmed: Callable[[str, float], object],
    ) -> None:  # fmt: skip
        self._lives = lives
        self._changed = changed
        self._confirmed = confirmed
        self.reset()

    def reset(self) -> None:
        """Forget everything, as in a forked child."""
        self._lock = section()
        self.map = SlotMap()
        self.known: dict[ClusterNode, None] = {}
        self.moved_at, self.last_move = [-math.inf] * SLOTS, -math.inf
        self.vouched: dict[str, float] = {}

    def adopt(self, found: SlotMap, teller: str, now: float) -> None:
        """Take a map.

        :param teller: the id of the node that has sent it.
        """
        with self._lock:
            before = self.map
            if found == before:
                return
            affected = self._put(self._merged(before, found, teller) if before.covered else found, now)
        if affected:
            self._changed(affected)

    def moved(self, slot: int, node: ClusterNode, now: float) -> None:
        """Take a redirection: another node owns a slot."""
        with self._lock:
            affected = set[str]() if self.map.owner(slot) == node else self._put(self.map.with_owner(slot, node), now)
        if affected:
            self._changed(affected)

    def confirm(self, found: SlotMap, teller: str, sent: float) -> None:
        """Note that a node has named the others as primaries.

        :param sent: the monotonic second at which it was asked.
        """
        for node_id in found.nodes:
            # The only primary of a cluster has no other that could confirm it, or be put in its place.
            if (node_id != teller or len(found.nodes) == 1) and node_id in self.map.nodes:
                if sent > self.vouched.get(node_id, -math.inf):
                    self.vouched[node_id] = sent
                self._confirmed(node_id, sent)

    def _merged(self, before: SlotMap, found: SlotMap, teller: str) -> SlotMap:
        cuts = {0, SLOTS}
        for first, last, _ in (*before.ranges, *found.ranges):
            cuts |= {first, last + 1}
        ranges: list[tuple[int, int, ClusterNode]] = []
        for begin, end in pairwise(sorted(cuts)):
            old, new = before.owner(begin), found.owner(begin)
            if new is None or (
                new.id == teller and old is not None and old.id != teller
                and (old.id in found.nodes or self._lives(old.id))
            ):  # fmt: skip
                # A node whose address has changed has one only.
                new = old if old is None else found.nodes.get(old.id, old)
            if new is not None:
                ranges.append((begin, end - 1, new))
        return SlotMap(ranges)

    def _put(self, after: SlotMap, now: float) -> set[str]:
        before = self.map
        found = changes(before, after)
        affected: set[str] = set()
        for first, last in found.slots:
            self.moved_at[first : last + 1] = [now] * (last + 1 - first)
        if found.slots:
            # Afterwards: a thread that sees it looks at the slots.
            self.last_move = now
        if before.covered:
            for first, last, node in (*before.ranges, *after.ranges):
                if any(first <= end and begin <= last for begin, end in found.slots):
                    affected.add(node.id)
        else:
            # Nothing was read before.
            self.moved_at, self.last_move = [-math.inf] * SLOTS, -math.inf
        self.known.update(dict.fromkeys(after.nodes.values()))
        while len(self.known) > _MOST_KNOWN:
            del self.known[next(iter(self.known))]
        self.map = after
        return affected
