"""The watch of one event loop over a service of Sentinel: who is the primary, by the word of a majority.

It has a connection to each sentinel, those that the settings name and those that they tell of, and one to each server
of the service. All are asked at once, about four times within `max_staleness` while the cache is in use. What follows
from the answers is `SentinelView`.

A server that does not answer is waited for only for a moment: it would hold up the word of all others. If it was made
the primary and only this process cannot reach it, the sentinels' word decides, which comes a second later.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from magnus_cache._engine.redis import commands
from magnus_cache._engine.redis.commands import pack
from magnus_cache._engine.redis.diagnosis import SENTINEL_GRANTS
from magnus_cache._engine.redis.endpoint import Address, shown
from magnus_cache._engine.redis.informant import Informant
from magnus_cache._engine.redis.sentinel_view import Listed, SentinelView, Verdict, claim_in, word_in
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.deployment import Deployment
    from magnus_cache._engine.redis.endpoint import Endpoint
    from magnus_cache._engine.redis.events import WireLimits
    from magnus_cache._engine.runtime.clock import Clock

__all__ = ["SentinelWatch", "Watched"]

_PART: Final = 4
"""All are asked after 1/`_PART` of the staleness bound; a server that is silent for as long is not waited for."""

_URGENT: Final = 0.02
"""Seconds between two urgent rounds."""

_MOST_SENTINELS: Final = 64
_MOST_SERVERS: Final = 64

_MISSING: Final = "no such"
_UNKNOWN_COMMAND: Final = "unknown command"

Watched = Callable[[Verdict], object]
"""Told what follows from each answer."""


class SentinelWatch:
    """See the module. Everything is called on its loop.

    :ivar verdict: what follows from all that was told.
    :ivar pause: seconds between two rounds of questions that are not urgent.
    """

    def __init__(self, deployment: "Deployment", limits: "WireLimits", clock: "Clock", watched: Watched) -> None:
        self._deployment = deployment
        self._timeout = limits.op_timeout
        self._max_staleness = limits.max_staleness
        self.pause = limits.max_staleness / _PART
        self._clock = clock
        self._watched = watched
        self._loop = asyncio.get_running_loop()
        self._view = SentinelView()
        self.verdict = Verdict(None, -math.inf, None, 1)
        self._sentinels: dict[Address, Informant] = {}
        self._servers: dict[Address, Informant] = {}
        self._ids: dict[str, Address] = {}
        self._problems: dict[Informant, CacheUnavailableError] = {}
        self._leaving: set[Informant] = set()
        self._asked_at = -math.inf
        self._news = asyncio.Event()
        self._over = False
        service = deployment.service.encode()
        self._questions = (
            pack(b"SENTINEL", b"MYID"), pack(b"SENTINEL", b"MASTER", service),
            pack(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service), pack(b"SENTINEL", b"REPLICAS", service),
            pack(b"SENTINEL", b"SENTINELS", service),
        )  # fmt: skip
        for seed in deployment.seeds:
            self._add_sentinel(seed)

    @property
    def started(self) -> bool:
        """Whether anything was asked."""
        return self._asked_at > -math.inf

    def at(self, server: Address) -> float:
        """Return the monotonic second from which the word counts that a server is the primary."""
        return self.verdict.at if self.verdict.primary == server else -math.inf

    # -- asking ---------------------------------------------------------------------------------------------

    def confirm(self, *, urgent: bool = False) -> None:
        """Ask all, unless that was done just now."""
        now = self._clock()
        if self._over or now < self._asked_at + (_URGENT if urgent else self.pause):
            return
        self._asked_at = now
        for informant in (*self._sentinels.values(), *self._servers.values()):
            informant.ask()

    async def primary(self) -> "Endpoint":
        """Return where the primary is, as most sentinels say now; within `op_timeout`.

        :raises CacheUnavailableError: if that cannot be told, with the reason and the remedy.
        """
        began = self._clock()
        for informant in self._sentinels.values():
            informant.hurry()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                while True:
                    self._news.clear()
                    self.confirm(urgent=True)
                    if self.verdict.primary is not None and self.verdict.at >= began - self.pause:
                        return self._deployment.at(*self.verdict.primary)
                    if self.verdict.doubted_by is None and all(
                        each.error is not None or each.answered >= began for each in self._sentinels.values()
                    ):
                        break
                    # Again at times: one that did not answer, or does not know of a failover yet, may do so now.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(2 * _URGENT):
                            await self._news.wait()
        raise self._problem()

    def _problem(self) -> CacheUnavailableError:
        """Return why there is no primary."""
        place, verdict, fresh = self._deployment.display, self.verdict, self._clock() - self._max_staleness
        if verdict.doubted_by is not None:
            return CacheUnavailableError(
                "down", f"{place}: a failover is under way; the cache waits for what the sentinels decide"
            )
        heard = sum(word.sent >= fresh for word in self._view.words.values())
        problems = [each for each in self._problems.values() if each.reason in {"topology", "auth", "noperm", "tls"}]
        error = next(iter(problems or self._problems.values()), None)
        if error is None:
            setting = self._deployment.endpoint.name("op_timeout")
            return CacheUnavailableError("timeout", f"{place}: the sentinels did not answer in time ({setting})")
        if not heard:
            more = " (nor any other one)" if len(self._sentinels) > 1 and not problems else ""
            return CacheUnavailableError(error.reason, f"{place}: no sentinel names the primary: {error.problem}{more}")
        return CacheUnavailableError(
            error.reason,
            f"{place}: no majority of the sentinels answers ({heard} did, {verdict.needed} must): {error.problem}",
        )

    # -- what is told ---------------------------------------------------------------------------------------

    def told(self, informant: Informant, replies: list[Any], sent: float) -> None:
        """Take the answers of a sentinel or a server.

        :raises ValueError: for nonsense.
        """
        if informant in self._sentinels.values():
            self._told_by_sentinel(informant, replies, sent)
        elif not isinstance(replies[0], Exception):
            self._view.claimed((informant.endpoint.host, informant.endpoint.port), claim_in(replies[0], sent))
        self._judge()

    def _told_by_sentinel(self, informant: Informant, replies: list[Any], sent: float) -> None:
        here = (informant.endpoint.host, informant.endpoint.port)
        # Only its id may be missing. Without the other sentinels it would count as the only one, and as a majority.
        if refusal := next((reply for reply in replies[1:] if isinstance(reply, ResponseError)), None):
            self._problems[informant] = self._refusal(informant, refusal)
            return
        word = word_in(replies, sent)
        self._problems.pop(informant, None)
        remap = self._deployment.remap
        if remap is not None:
            word = word._replace(
                primary=remap(word.primary), replicas=tuple(map(remap, word.replicas)),
                sentinels={name: remap(place) for name, place in word.sentinels.items()},
            )  # fmt: skip
        if word.id:
            self._ids[word.id] = here
        # One sentinel may have two addresses, such as a name in the settings and a number that the others tell.
        self._view.heard(word.id or shown(*here), word)
        for name, place in word.sentinels.items():
            if name not in self._ids and place not in self._sentinels and len(self._sentinels) < _MOST_SENTINELS:
                self._ids[name] = place
                self._add_sentinel(place)
                self._sentinels[place].ask()
        for place in (word.primary, *word.replicas):
            if place not in self._servers and len(self._servers) < _MOST_SERVERS:
                endpoint = replace(self._deployment.at(*place), db=0)
                question = (commands.INFO_REPLICATION.packed,)
                self._servers[place] = Informant(endpoint, question, self._timeout, self._clock, self)
                self._servers[place].ask()

        self._leave_removed(self._view.listed(self._clock() - self._max_staleness))

    def _leave_removed(self, listed: Listed | None) -> None:
        """Ask no more what the sentinels have removed from the service, as SENTINEL RESET does.

        Such a server may be used for something else, as a primary of its own, and would put the named one in doubt.
        """
        if listed is None:
            return
        removed = [place for place in self._servers if place not in listed.servers]
        self._view.forget(removed)
        away = {
            place: each for place, each in self._sentinels.items()
            if each.error is not None and place not in listed.sentinels and place not in self._deployment.seeds
        }  # fmt: skip
        self._ids = {name: place for name, place in self._ids.items() if place not in away}
        for each in [*map(self._servers.pop, removed), *map(self._sentinels.pop, away)]:
            self._problems.pop(each, None)
            if each.end(partial(self._leaving.discard, each)):
                # Until its connection is closed, it has to be waited for.
                self._leaving.add(each)

    def _add_sentinel(self, place: Address) -> None:
        endpoint = self._deployment.sentinel_at(*place)
        self._sentinels[place] = Informant(endpoint, self._questions, self._timeout, self._clock, self)

    def _refusal(self, informant: Informant, error: ResponseError) -> CacheUnavailableError:
        address, name = shown(informant.endpoint.host, informant.endpoint.port), informant.endpoint.name
        text = str(error).lower()
        if _MISSING in text:
            setting = name("redis_sentinel_service")
            return CacheUnavailableError(
                "topology", f"the sentinel at {address} knows no service {self._deployment.service!r}; check {setting}"
            )
        if _UNKNOWN_COMMAND in text:
            return CacheUnavailableError(
                "topology",
                f"what answers at {address} is a Redis server and no sentinel; check {name('redis_sentinels')} "
                "(sentinels usually have port 26379), or use a redis:// URL",
            )
        if "noperm" in text or "no permissions" in text:
            problem = f"the sentinel at {address} forbids it; grant its user {SENTINEL_GRANTS}"
            return CacheUnavailableError("noperm", problem)
        return CacheUnavailableError("error", f"the sentinel at {address} refused: {str(error).split(' ', 1)[0]}")

    def untold(self, informant: Informant) -> None:
        """Note that a sentinel or a server does not answer."""
        assert informant.error is not None
        if informant in self._sentinels.values():
            problem = informant.error.problem.replace("Redis at redis", "the sentinel at redis", 1)
            self._problems[informant] = CacheUnavailableError(informant.error.reason, problem)
        self._judge()

    def _judge(self) -> None:
        now = self._clock()
        present = [
            place for place, each in self._servers.items()
            if each.error is None and (each.answered >= each.asked or now < each.asked + self.pause)
        ]  # fmt: skip
        # What a server said that answers no more is not held against another one for good.
        self._view.forget(
            place for place, each in self._servers.items()
            if each.error is not None and place in self._view.claims
        )  # fmt: skip
        self.verdict = self._view.verdict(now - self._max_staleness, present)
        self._news.set()
        self._watched(self.verdict)

    # -- its end --------------------------------------------------------------------------------------------

    def end(self, ended: Callable[[], object]) -> None:
        """Close all connections, and call `ended` when they are closed."""
        self._over = True
        informants = [*self._sentinels.values(), *self._servers.values(), *self._leaving]
        left = 0

        def one_ended() -> None:
            nonlocal left
            left -= 1
            if not left:
                ended()

        if not self._loop.is_closed():
            left = sum([each.end(one_ended) for each in informants])
        if not left:
            ended()
