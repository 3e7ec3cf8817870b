"""A real set of a primary, its replicas and the sentinels that watch them, for tests."""

import secrets
from pathlib import Path
from typing import Any, Final

import hiredis

from magnus_cache.errors import CacheArgumentError
from magnus_cache.testing.servers.control import NodeError, wait_for
from magnus_cache.testing.servers.group import PATIENCE, ServerGroup
from magnus_cache.testing.servers.networks import Links
from magnus_cache.testing.servers.nodes import Plan, ServerNode
from magnus_cache.testing.servers.places import Place
from magnus_cache.testing.servers.programs import ServerTls, choose_program

__all__ = ["EmbeddedSentinels", "SentinelNode"]

_INFO_PERIOD: Final = 10_000
_WITH_DEBUG: Final = (7, 0, 0)


class SentinelNode(ServerNode):
    """One sentinel process."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._id = secrets.token_hex(20)

    @property
    def id(self) -> str:
        """The identity of the sentinel: 40 hexadecimal digits that survive a restart."""
        return self._id

    def prepare(self) -> None:
        """Give the sentinel a place, so that the others can be told before it starts."""
        self._place = self._plan.find_place()
        self.port = self._place.port

    def watch(self, lines: list[str]) -> None:
        """Write what the sentinel has to watch and whom it knows."""
        place = self.place
        if place.announced:
            lines = [f"announce-ip {place.host}", f"announce-port {place.port}", *lines]
        self._write(self._lines(place), "".join(f"sentinel {line}\n" for line in [f"myid {self.id}", *lines]))

    def _lines(self, place: Place) -> dict[str, str]:
        return self._own_lines(place)

    def _command(self, port: int) -> list[str]:
        return [*super()._command(port), "--sentinel"]


class EmbeddedSentinels(ServerGroup):
    """A primary, its replicas, and sentinels; a context manager that starts and stops them, ``with`` or ``async with``.

    By default, there are 2 replicas and 3 sentinels. The operations are plain methods that return once they are in
    effect. They block: in a coroutine, use ``await asyncio.to_thread(sentinels.promote)`` where the event loop must
    continue meanwhile. An operation takes a node as a `ServerNode` or as its port.

    :param replicas: how many servers replicate the primary.
    :param sentinels: an odd number, because most of them have to agree.
    :param service: the name of the primary for those who ask a sentinel.
    :param binary: the server to run; by default the embedded Valkey, or else one on the PATH. If
        there is none, `ServerNotFoundError` says how to install one.
    :param down_after: seconds until a server that does not answer counts as down (``down-after-milliseconds``).
    :param failover_timeout: seconds; after twice this time, a failover may be tried again (``failover-timeout``).
    :param tls: files for TLS, which the embedded Valkey does not have: the default is then a server on the PATH.
    :param links: True lets `partition`, `cut` and `delay` change the links between servers, and to clients: everything
        then goes through relays. ``"namespaces"`` does without relays, and without `delay`; it needs
        root.
    :param options: options for the primary and the replicas, such as ``maxmemory="10mb"``.
    :raises CacheArgumentError: for numbers and times that cannot work.
    """

    def __init__(
        self,
        replicas: int = 2,
        sentinels: int = 3,
        *,
        service: str = "magnus",
        binary: Path | None = None,
        down_after: float = 1.0,
        failover_timeout: float = 3.0,
        tls: ServerTls | None = None,
        links: Links = False,
        **options: str,
    ) -> None:
        _check(replicas, sentinels, service, {"down_after": down_after, "failover_timeout": failover_timeout})
        super().__init__(choose_program(binary, tls), options, tls=tls, links=links)
        self.service = service
        self._counts = (1 + replicas, sentinels)
        self._times = (round(down_after * 1000), round(failover_timeout * 1000))

    # -- what there is --------------------------------------------------------------------------------------

    @property
    def servers(self) -> tuple[ServerNode, ...]:
        """The primary and the replicas, those that are down included. At the start, the first one is the primary."""
        return tuple(node for node in self._nodes if not isinstance(node, SentinelNode))

    @property
    def sentinels(self) -> tuple[SentinelNode, ...]:
        """All sentinels, those that are down included."""
        return tuple(node for node in self._nodes if isinstance(node, SentinelNode))

    @property
    def primary(self) -> ServerNode:
        """The primary now, as the first sentinel that answers sees it."""
        return self.primary_by(self._answering())

    @property
    def replicas(self) -> tuple[ServerNode, ...]:
        """All servers but the primary."""
        primary = self.primary
        return tuple(node for node in self.servers if node is not primary)

    def primary_by(self, sentinel: ServerNode | int) -> ServerNode:
        """Return the primary as one sentinel sees it.

        :raises CacheArgumentError: for a node that is not a sentinel of this set.
        :raises NodeError: if it does not answer.
        """
        asked = self._sentinel(sentinel)
        host, port = asked.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        for node in self.servers:
            if (node.host, str(node.port)) == (host, port):
                return node
        raise NodeError(f"{asked} names {host}:{port}, which is not one of the servers")

    def _sentinel(self, which: ServerNode | int) -> SentinelNode:
        node = self.node(which)
        if not isinstance(node, SentinelNode):
            known = ", ".join(each.address for each in self.sentinels)
            raise CacheArgumentError("sentinel", f"{node} is not a sentinel; the sentinels are: {known}")
        return node

    def _answering(self) -> SentinelNode:
        for node in self.sentinels:
            if node.answers:
                return node
        raise NodeError("no sentinel runs; use `with EmbeddedSentinels() as sentinels`, or restart one")

    # -- roles ----------------------------------------------------------------------------------------------

    def promote(self, replica: ServerNode | int | None = None) -> ServerNode:
        """Make a replica the primary (SENTINEL FAILOVER), and return it once all running sentinels name it.

        They name it in reply to SENTINEL GET-MASTER-ADDR-BY-NAME. The old primary becomes a replica some seconds
        later; `settle` waits for that.

        :param replica: one to prefer, by its ``replica-priority``; None lets Sentinel choose.
        :raises CacheArgumentError: for a node that is not a replica of this set.
        :raises NodeError: if it does not succeed.
        """
        old, leader = self.primary, self._answering()
        if replica is not None:
            self._prefer(self._replica(replica, old), leader)

        def begun() -> bool:
            (reply,) = leader.try_all([("SENTINEL", "FAILOVER", self.service)])
            return not isinstance(reply, hiredis.ReplyError)

        wait_for(begun, PATIENCE, lambda: f"{leader} does not begin a failover")
        wait_for(lambda: self._agreed() not in (None, old), PATIENCE, lambda: f"{old} was not replaced")
        return self.primary

    def _replica(self, which: ServerNode | int, primary: ServerNode) -> ServerNode:
        node = self.node(which)
        if isinstance(node, SentinelNode) or node is primary:
            known = ", ".join(each.address for each in self.servers if each is not primary)
            raise CacheArgumentError("replica", f"{node} is not a replica; the replicas are: {known}")
        return node

    def _prefer(self, replica: ServerNode, leader: SentinelNode) -> None:
        for node in self.servers:
            if node.answers:
                node.configure(replica_priority="1" if node is replica else "100")
        # A sentinel asks its servers every 10 seconds; later versions can be made to ask more often.
        if quick := leader.version.number >= _WITH_DEBUG:
            leader.ask("SENTINEL", "DEBUG", "INFO-PERIOD", 100)
        try:
            wait_for(
                lambda: self._priorities(leader)[replica.port] == "1" and self._only_one_preferred(leader),
                PATIENCE,
                lambda: f"{leader} did not hear that {replica} is to be preferred",
            )
        finally:
            if quick:
                leader.ask("SENTINEL", "DEBUG", "INFO-PERIOD", _INFO_PERIOD)

    def _only_one_preferred(self, leader: SentinelNode) -> bool:
        return list(self._priorities(leader).values()).count("1") == 1

    def _priorities(self, leader: SentinelNode) -> dict[int, str]:
        replicas = map(_pairs, leader.ask("SENTINEL", "REPLICAS", self.service))
        return {int(each["port"]): each["slave-priority"] for each in replicas}

    def _agreed(self, *, all_but: int = 0) -> ServerNode | None:
        """Return the server that all running sentinels, but so many, name and that says so itself; None without one."""
        asked = [self.primary_by(node) for node in self.sentinels if node.answers]
        for node in self.servers:
            if asked.count(node) >= max(1, len(asked) - all_but) and node.answers and _role(node) == "master":
                return node
        return None

    def wait_for_primary(self, node: ServerNode | int, patience: float = PATIENCE) -> None:
        """Return once most running sentinels name a server as the primary, and it is one.

        :raises CacheArgumentError: for an unknown node.
        :raises NodeError: if that takes longer than `patience` seconds.
        """
        wanted = self.node(node)
        wait_for(lambda: self._most_agree_on() is wanted, patience, lambda: f"{wanted} did not become the primary")

    def wait_for_failover(self, old: ServerNode | int, patience: float = PATIENCE) -> ServerNode:
        """Return the new primary, once most running sentinels name another one than this and it is one.

        :raises CacheArgumentError: for an unknown node.
        :raises NodeError: if that takes longer than `patience` seconds.
        """
        found: list[ServerNode | None] = [gone := self.node(old)]

        def replaced() -> bool:
            found[0] = self._most_agree_on()
            return found[0] not in (None, gone)

        wait_for(replaced, patience, lambda: f"{gone} was not replaced")
        assert found[0] is not None
        return found[0]

    def _most_agree_on(self) -> ServerNode | None:
        return self._agreed(all_but=(len(self.sentinels) - 1) // 2)

    # -- the whole ------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Delete all keys of the primary.

        :raises NodeError: if it does not answer.
        """
        self.primary.ask("FLUSHALL")

    def _tidy(self) -> None:
        # Sentinel does the same, after ten seconds.
        primary = self.primary
        for node in self.servers:
            if node is primary:
                if _role(node) != "master":
                    node.ask("REPLICAOF", "NO", "ONE")
            elif not _replicates(node, primary):
                node.ask("REPLICAOF", primary.host, primary.port)

    def _wake(self, node: ServerNode) -> None:
        # A sentinel that notices that it was frozen does nothing for 30 seconds. A new process has not noticed.
        if isinstance(node, SentinelNode):
            node.kill()
        else:
            node.resume()

    def _missing(self) -> str:
        primary = self.primary
        for sentinel in self.sentinels:
            if sentinel.answers and (lacking := self._lacking(sentinel, primary)):
                return lacking
        for node in self.servers:
            if not node.answers:
                continue
            if node is primary and _role(node) != "master":
                return f"{node} is not a primary, though the sentinels say so"
            if node is not primary and not _replicates(node, primary):
                return f"{node} is not linked to the primary {primary}"
        return ""

    def _lacking(self, node: SentinelNode, primary: ServerNode) -> str:
        """Return what a sentinel does not see as it is."""
        if self.primary_by(node) is not primary:
            return f"{node} does not name {primary} as the primary"
        servers, sentinels = self._counts
        seen = _pairs(node.ask("SENTINEL", "MASTER", self.service))
        if primary.answers and seen["flags"] != "master":
            return f"{node} believes that the primary is {seen['flags']}"
        if (seen["num-slaves"], seen["num-other-sentinels"]) != (str(servers - 1), str(sentinels - 1)):
            return f"{node} knows {seen['num-slaves']} replicas and {seen['num-other-sentinels']} other sentinels"
        if node.info("sentinel").get("sentinel_tilt") != "0":
            return f"{node} was frozen and does nothing for 30 seconds"
        running = {each.port for each in (*self.servers, *self.sentinels) if each.answers}
        for kind in ("REPLICAS", "SENTINELS"):
            for each in map(_pairs, node.ask("SENTINEL", kind, self.service)):
                if int(each["port"]) in running and {"s_down", "disconnected"} & set(each["flags"].split(",")):
                    return f"{node} believes that {each['ip']}:{each['port']} is {each['flags']}"
        return ""

    # -- life -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        servers, sentinels = self._counts
        primary = self._add(ServerNode(self._plan())).start()
        for _ in range(servers - 1):
            replica = self._add(ServerNode(self._plan(replicaof=f"{primary.host} {primary.port}")))
            replica.start()
        # A sentinel asks the primary for its replicas at once, and then every ten seconds.
        wait_for(
            lambda: all(_replicates(node, primary) for node in self.servers[1:]),
            PATIENCE,
            lambda: f"the replicas were not linked to {primary}",
        )
        watchers = [SentinelNode(self._plan()) for _ in range(sentinels)]
        for node in watchers:
            self._add(node)
            node.prepare()
        for node in watchers:
            node.watch(self._watched(node, watchers))
            node.start()
        self.settle()

    def _watched(self, own: SentinelNode, watchers: list[SentinelNode]) -> list[str]:
        """Return what a sentinel knows after a while: it is told at once."""
        primary, *replicas = self.servers
        down_after, failover_timeout = self._times
        lines = [
            f"monitor {self.service} {primary.host} {primary.port} {len(watchers) // 2 + 1}",
            f"down-after-milliseconds {self.service} {down_after}",
            f"failover-timeout {self.service} {failover_timeout}",
        ]
        if primary.password is not None:
            lines.append(f"auth-pass {self.service} {primary.password}")
        lines += [f"known-replica {self.service} {node.host} {node.port}" for node in replicas]
        others = (node for node in watchers if node is not own)
        return lines + [f"known-sentinel {self.service} {node.host} {node.port} {node.id}" for node in others]


def _pairs(flat: list[Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _role(node: ServerNode) -> str:
    return str(node.ask("ROLE")[0])


def _replicates(node: ServerNode, primary: ServerNode) -> bool:
    return bool(node.ask("ROLE")[:4] == ["slave", primary.host, primary.port, "connected"])


def _check(replicas: int, sentinels: int, service: str, times: dict[str, float]) -> None:
    if replicas < 1:
        raise CacheArgumentError("replicas", f"a failover needs 1 replica or more, not {replicas}")
    if sentinels < 1 or not sentinels % 2:
        raise CacheArgumentError("sentinels", f"most have to agree, so use an odd number such as 3, not {sentinels}")
    if not service or not service.isascii() or not service.replace("-", "").replace("_", "").isalnum():
        raise CacheArgumentError("service", f"use letters, digits, dashes and underscores, not {service!r}")
    for name, seconds in times.items():
        # Sentinel looks ten times a second. With less, it takes servers for down that are only slow.
        if not 1 <= seconds <= 600:
            raise CacheArgumentError(name, f"use 1 to 600 seconds, not {seconds!r}")
