"""What all event loops of a process know of a cluster: the slot map, when slots moved, which node was confirmed when.

Whose word counts
-----------------
A node that was cut off does not know that another one has taken its place. So what a node says *of itself* never takes
slots from another node that lives, or that others have confirmed later than the node itself. What it says of the others
counts: it is the word of a second node.

The races that this excludes
----------------------------
- A read left for the old owner of a slot, the slot moved, and the answer comes afterwards. The old owner announces no
  later change. `moved_at` is later than the request, so what it brought is not kept; see `is_doubtful`.
- Entries in memory were read from a node, and slots of it moved, or were given away without a word: a server of Redis 7
  deletes such keys and announces nothing. Everything in these slots is distrusted at once, and is compared with what
  Redis has when it is asked for next.
- A slot has no owner any more, and no other one yet. The node that says so announces nothing about it, so the slot
  counts as moved.
"""

import math
from collections.abc import Callable
from itertools import pairwise

from magnus_cache._engine.redis.slots import SLOTS, ClusterNode, MapChanges, SlotMap, changes
from magnus_cache._engine.runtime.critical import section

__all__ = ["ClusterView"]

_MOST_KNOWN = 1_024


class ClusterView:
    """See the module. Thread-safe.

    :param lives: returns whether a node answers this process, by its id.
    :param changed: called with the slots that have moved.
    :param confirmed: called with a node's id and the monotonic second at which another node was asked about it.
    :ivar map: the present map.
    :ivar known: all nodes that were ever in it.
    :ivar moved_at: for each slot, the monotonic second at which this process learned that it has moved.
    :ivar vouched: by node, the monotonic second at which another node was asked that has confirmed it.
    """

    def __init__(
        self, lives: Callable[[str], bool], changed: Callable[[MapChanges], object],
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
        self.moved_at = [-math.inf] * SLOTS
        self.vouched: dict[str, float] = {}
        self._asked: dict[int, float] = {}

    def adopt(self, found: SlotMap, teller: str, now: float) -> None:
        """Take a map.

        :param teller: the id of the node that has sent it.
        """
        with self._lock:
            before = self.map
            if found == before:
                return
            moved = self._put(self._merged(before, found, teller) if before.covered else found, now)
        if moved:
            self._changed(moved)

    def is_foreign(self, found: SlotMap) -> bool:
        """Return whether a map is that of another cluster: it has none of the nodes that are known."""
        known = {node.id for node in self.known}
        return bool(known) and bool(found.nodes) and known.isdisjoint(found.nodes)

    def moved(self, slot: int, node: ClusterNode, now: float) -> None:
        """Take a redirection: another node owns a slot."""
        with self._lock:
            moved = None if self.map.owner(slot) == node else self._put(self.map.with_owner(slot, node), now)
        if moved:
            self._changed(moved)

    def answered_elsewhere(self, slot: int, now: float) -> None:
        """Note that an answer has come just now from the node that a slot is being moved to."""
        self._asked[slot] = now

    def is_doubtful(self, slot: int, sent: float) -> bool:
        """Return whether a slot has moved, or was asked for elsewhere, since a request for it left."""
        return self.moved_at[slot] >= sent or self._asked.get(slot, -math.inf) >= sent

    def abandoned(self, slot: int, now: float) -> None:
        """Note that the owner of a slot has said that no node owns it."""
        with self._lock:
            self.moved_at[slot] = now
        self._changed(MapChanges(((slot, slot),)))

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
                new.id == teller and old is not None and old.id != teller and self._outweighs(old.id, found, teller)
            ):
                # A node whose address has changed has one only.
                new = old if old is None else found.nodes.get(old.id, old)
            if new is not None:
                ranges.append((begin, end - 1, new))
        return SlotMap(ranges)

    def _outweighs(self, owner: str, found: SlotMap, teller: str) -> bool:
        """Return whether a node keeps its slots although another one claims them for itself."""
        if owner in found.nodes or self._lives(owner):
            return True
        # No process has a connection to a replica that was promoted just now. The only primary has no other to name it.
        vouched = self.vouched
        return len(found.nodes) > 1 and vouched.get(owner, -math.inf) > vouched.get(teller, -math.inf)

    def _put(self, after: SlotMap, now: float) -> MapChanges | None:
        """Take a map; return what has moved, or None if this is the first one: nothing was read before."""
        before = self.map
        found = changes(before, after) if before.covered else None
        for first, last in () if found is None else found.slots:
            self.moved_at[first : last + 1] = [now] * (last + 1 - first)
        self.known.update(dict.fromkeys(after.nodes.values()))
        while len(self.known) > _MOST_KNOWN:
            del self.known[next(iter(self.known))]
        self.map = after
        return found
