"""Slots move from one node to another: classic, step by step; atomic, in one command; or without their keys."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from magnus_cache.errors import CacheArgumentError
from magnus_cache.testing.servers.control import Command, NodeError, wait_for
from magnus_cache.testing.servers.nodes import ServerNode
from magnus_cache.testing.servers.views import ranges

__all__ = ["SlotMigration", "give_away", "migrate_atomically"]

_PATIENCE: Final = 60.0
_KEYS: Final = 100
_TIMEOUT: Final = 5_000
"""Milliseconds that a MIGRATE may wait for the target."""


class SlotMigration:
    """A classic migration of slots from one primary to another, whose steps are taken one by one.

    Stop after any of them to leave the migration half done:

    1. `begin`: the target imports the slots, the source migrates them. Keys that are not there answer with ASK.
    2. `move_keys`: keys move with MIGRATE; some, or all.
    3. `finish`: the target owns the slots. Or `abandon`: the slots stay where they are, and keys that have moved
       already are out of reach.

    :ivar slots: the slots that move.
    :ivar source: the primary that owns them at first.
    :ivar target: the primary that owns them in the end.
    """

    def __init__(
        self, slots: Sequence[int], source: ServerNode, target: ServerNode, primaries: Sequence[ServerNode]
    ) -> None:
        self.slots = tuple(slots)
        self.source = source
        self.target = target
        self._primaries = tuple(primaries)

    def begin(self) -> None:
        """Open the slots: at the target first, else the source would refer to a target that refuses.

        :raises NodeError: if a node refuses.
        """
        self.target.ask_all([("CLUSTER", "SETSLOT", slot, "IMPORTING", self.source.id) for slot in self.slots])
        self.source.ask_all([("CLUSTER", "SETSLOT", slot, "MIGRATING", self.target.id) for slot in self.slots])

    def keys_left(self) -> int:
        """Return how many keys the source still has in these slots.

        :raises NodeError: if it does not answer.
        """
        return sum(self.source.ask_all([("CLUSTER", "COUNTKEYSINSLOT", slot) for slot in self.slots]))

    def move_keys(self, at_most: int | None = None) -> int:
        """Move keys to the target and return how many; None moves all of them.

        :raises NodeError: if a node refuses.
        """
        moved = 0
        for slot, present in self._filled():
            while present and (at_most is None or moved < at_most):
                wanted = _KEYS if at_most is None else min(_KEYS, at_most - moved)
                keys: list[str] = self.source.ask("CLUSTER", "GETKEYSINSLOT", slot, wanted)
                if not keys:
                    break
                self.source.ask(*self._migrate(keys))
                moved += len(keys)
        return moved

    def _filled(self) -> Iterator[tuple[int, int]]:
        counts = self.source.ask_all([("CLUSTER", "COUNTKEYSINSLOT", slot) for slot in self.slots])
        return zip(self.slots, counts, strict=True)

    def _migrate(self, keys: Sequence[str]) -> Command:
        place, password = self.target.place, self.target.password
        login = () if password is None else ("AUTH", password)
        return ("MIGRATE", place.host, place.port, "", 0, _TIMEOUT, *login, "KEYS", *keys)

    def finish(self) -> None:
        """Let the target own the slots, and tell all other primaries. Keys that did not move are deleted.

        :raises NodeError: if the target refuses or does not answer.
        """
        commands: list[Command] = [("CLUSTER", "SETSLOT", slot, "NODE", self.target.id) for slot in self.slots]
        self._take(commands)
        # The source refuses while it has keys; it deletes them once it hears of the new owner from others.
        for node in (self.source, *(each for each in self._primaries if each not in (self.source, self.target))):
            if node.answers:
                node.try_all(commands)

    def _take(self, commands: Sequence[Command]) -> None:
        """Let the target own the slots; Valkey refuses while its replicas do not follow, as right after their start."""
        refusal: list[NodeError] = []

        def is_decided() -> bool:
            refusal.clear()
            try:
                self.target.ask_all(list(commands))
            except NodeError as error:
                refusal.append(error)
            return not refusal or "NOREPLICAS" not in str(refusal[0])

        wait_for(is_decided, _PATIENCE, lambda: str(refusal[0]))
        if refusal:
            raise refusal[0]

    def abandon(self) -> None:
        """Close the slots: they stay with the source.

        :raises NodeError: if a node refuses.
        """
        for node in (self.source, self.target):
            node.ask_all([("CLUSTER", "SETSLOT", slot, "STABLE") for slot in self.slots])

    def complete(self) -> None:
        """Take all steps.

        :raises NodeError: if a node refuses.
        """
        self.begin()
        self.move_keys()
        self.finish()


def give_away(slots: Sequence[int], source: ServerNode, target: ServerNode) -> None:
    """Let the target own slots whose keys stay at the source, which deletes them once it hears of it.

    :raises NodeError: if the target refuses.
    """
    commands: list[Command] = []
    for slot in slots:
        commands += [
            ("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id), ("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        ]  # fmt: skip
    target.ask_all(commands)


def migrate_atomically(slots: Sequence[int], source: ServerNode, target: ServerNode) -> None:
    """Move slots and their keys with ``CLUSTER MIGRATESLOTS`` of Valkey 9, and wait for its end.

    :raises CacheArgumentError: if the server has no such command.
    :raises NodeError: if the source refuses, or the migration fails.
    """
    if not source.version.migrates_atomically:
        raise CacheArgumentError("atomic", f"{source.version} has no CLUSTER MIGRATESLOTS; use Valkey 9, or classic")
    known = set(_migrations(source))
    parts = [part for first, last in ranges(set(slots)) for part in (first, last)]
    source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", *parts, "NODE", target.id)
    job: dict[str, str] = {}

    def over() -> bool:
        job.update(next((each for name, each in _migrations(source).items() if name not in known), {}))
        return job.get("state") in {"success", "failed", "cancelled"}

    wait_for(over, _PATIENCE, lambda: f"the migration from {source} to {target} does not end: {job}")
    if job["state"] != "success":
        raise NodeError(f"the migration from {source} to {target} has {job['state']}: {job.get('message', '')}")


def _migrations(node: ServerNode) -> dict[str, dict[str, str]]:
    jobs: list[list[Any]] = node.ask("CLUSTER", "GETSLOTMIGRATIONS")
    found = (dict(zip(job[::2], job[1::2], strict=True)) for job in jobs)
    return {str(job["name"]): {str(name): str(value) for name, value in job.items()} for job in found}
