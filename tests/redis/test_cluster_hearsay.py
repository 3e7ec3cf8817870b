"""Which node believes what of whom, in all orders: a model of a cluster whose nodes hear of each other late.

Each node has a map of its own. What a node claims for itself, with its configuration epoch, is all that others take
from it, as servers do. A primary is cut off; a value is deleted there, so what its replica has is old. Slots move on
from the replica. The process asks nodes for their maps at any moment.

What the model takes for granted: a replica that takes over tells it to all nodes that it reaches, before it passes a
slot on; and a node that has lost all of its slots becomes a replica, as with ``cluster-allow-replica-migration yes``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from magnus_cache._engine.redis.cluster_origins import Standing, Word, has_passed_on, standing
from magnus_cache._engine.redis.cluster_view import ClusterView
from magnus_cache._engine.redis.slots import ClusterNode, SlotMap
from tests.support.effort import examples

PRIMARY, REPLICA, OTHER, TARGET = "prot"
SLOTS = (0, 1, 2)
"""Of one group. The other nodes have a slot each in other groups, so that they are primaries."""

HOMES = {OTHER: 300, TARGET: 600}
PLACES = {name: ClusterNode(name, "h", port) for port, name in enumerate("prot", start=1)}
ORIGINS = {PRIMARY: b"run-p:x"}


@dataclass
class Server:
    """One node: who owns which slot, and since which configuration epoch, as far as it knows."""

    name: str
    epoch: int
    owners: dict[int, tuple[str, int]]
    old: set[int] = field(default_factory=set)
    """The slots of which it has old data."""

    @property
    def claims(self) -> list[int]:
        return [slot for slot, (owner, _) in self.owners.items() if owner == self.name]

    def hear(self, other: "Server") -> None:
        for slot in other.claims:
            if self.owners[slot][1] < other.epoch:
                self.owners[slot] = other.name, other.epoch

    def map(self, *, told: bool = True) -> SlotMap:
        """What it answers; CLUSTER SHARDS leaves out a successor that is listed beside a primary that is not missed."""
        return SlotMap(
            (slot, slot, PLACES[owner]) for slot, (owner, _) in self.owners.items() if told or owner != REPLICA
        )


class Model:
    """A cluster, and a process that has connections to all nodes."""

    def __init__(self) -> None:
        owners = dict.fromkeys(SLOTS, (PRIMARY, 1))
        owners |= {slot: (name, epoch) for epoch, (name, slot) in enumerate(HOMES.items(), start=2)}
        epochs = {PRIMARY: 1, REPLICA: 0, OTHER: 2, TARGET: 3}
        self.servers = {name: Server(name, epoch, dict(owners)) for name, epoch in epochs.items()}
        self.epoch, self.now = 3, 1.0
        self.is_apart = False
        self.view = ClusterView(lambda _: True, lambda _: None, lambda *_: None)
        self.words: dict[str, Word] = {}
        for name in self.servers:
            self.ask(name)

    def apart(self, one: str, other: str) -> bool:
        return self.is_apart and (one == PRIMARY) != (other == PRIMARY)

    # -- what happens -------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """The primary is cut off, and what is deleted there reaches no other node."""
        if not self.is_apart:
            self.is_apart = True
            self.servers[REPLICA].old |= set(self.servers[PRIMARY].claims) & set(SLOTS)

    def heal(self) -> None:
        self.is_apart = False

    def take_over(self) -> None:
        replica = self.servers[REPLICA]
        slots = [slot for slot, (owner, _) in replica.owners.items() if owner == PRIMARY]
        # By force: while the primary is there as well, it is told at once, and has no time to acknowledge more.
        if self.is_apart and slots and not replica.claims:
            self.epoch += 1
            replica.epoch = self.epoch
            replica.owners |= dict.fromkeys(slots, (REPLICA, self.epoch))
            for name in (OTHER, TARGET):
                self.tell(REPLICA, name)

    def move(self, slot: int, name: str, target: str, *, heard: bool = False) -> None:
        """A slot is moved, with the data that its source has.

        :param heard: whether the other nodes hear of it at once.
        """
        source, node = self.servers[name], self.servers[target]
        agreed = {source.owners[slot][0], node.owners[slot][0]} == {name}
        if name == target or self.apart(name, target) or not agreed or not node.claims:
            return
        self.epoch += 1
        node.epoch = self.epoch
        for each in node.claims:
            node.owners[each] = target, self.epoch
        node.owners[slot] = source.owners[slot] = target, self.epoch
        node.old.discard(slot)
        if slot in source.old:
            node.old.add(slot)
        for each in self.servers if heard else ():
            self.tell(target, each)

    def tell(self, name: str, other: str) -> None:
        if not self.apart(name, other):
            self.servers[other].hear(self.servers[name])

    def ask(self, name: str, *, told: bool = True) -> None:
        """The process asks a node for its map."""
        self.now += 1
        found = self.servers[name].map(told=told)
        self.words[name] = Word(name, found, self.now)
        self.view.adopt(found, name, self.now)
        self.view.confirm(found, name, self.now)

    def read(self, slot: int) -> None:
        """The process asks for a value, and is sent elsewhere."""
        node = self.view.map.owner(slot)
        assert node is not None
        owner = self.servers[node.id].owners[slot][0]
        if owner != node.id:
            self.now += 1
            self.view.moved(slot, PLACES[owner], self.now)

    # -- what the process makes of it ---------------------------------------------------------------------------

    def standing_of(self, name: str) -> Standing:
        slots = self.view.map.slots_of(name, 0)
        since = max((self.view.moved_at[slot] for slot in slots), default=0.0)

        def present(node: str) -> bytes | None:
            if node not in self.view.map.nodes:
                return None
            return ORIGINS[node] if has_passed_on(slots, since, self.words[node], self.words[name]) else None

        return standing(ORIGINS, name, b"run-%b:y" % name.encode(), present)

    def check(self) -> None:
        for name in (OTHER, TARGET):
            server = self.servers[name]
            slots = [slot for slot in self.view.map.slots_of(name, 0) if slot in server.claims]
            if any(slot in server.old for slot in slots):
                assert self.standing_of(name) is Standing.UNKNOWN


names, slots = st.sampled_from([PRIMARY, REPLICA, OTHER, TARGET]), st.sampled_from(SLOTS)
STEPS: st.SearchStrategy[Callable[[Model], None]] = st.one_of(
    st.builds(lambda name, told: lambda model: model.ask(name, told=told), names, st.booleans()),
    st.builds(
        lambda slot, name, other, heard: lambda model: model.move(slot, name, other, heard=heard),
        slots, st.sampled_from([REPLICA, REPLICA, TARGET, OTHER, PRIMARY]), st.sampled_from([TARGET, OTHER, PRIMARY]),
        st.booleans(),
    ),
    st.builds(lambda name, other: lambda model: model.tell(name, other), names, names),
    st.builds(lambda slot: lambda model: model.read(slot), slots),
    st.just(Model.heal),
)  # fmt: skip


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(STEPS, max_size=4), st.lists(STEPS, max_size=12))
def test_invariant_7_no_order_of_maps_makes_old_data_count(
    before: list[Callable[[Model], None]], after: list[Callable[[Model], None]]
) -> None:
    model = Model()
    for step in (*before, Model.cut, Model.take_over, *after):
        step(model)
        model.check()


def test_a_slot_that_its_owner_has_passed_on_itself_brings_all_that_it_had() -> None:
    """It is no suspect, once both nodes have told so."""
    model = Model()
    model.move(0, PRIMARY, TARGET)
    model.tell(TARGET, OTHER)
    model.ask(OTHER)
    assert model.standing_of(TARGET) is Standing.UNKNOWN
    for name in (PRIMARY, TARGET):
        model.ask(name)
    assert model.standing_of(TARGET) is Standing.NEW
