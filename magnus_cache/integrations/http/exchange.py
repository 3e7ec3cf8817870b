"""One request and what the cache does about it, decided without any I/O; the transports and the adapter act on it."""

import math
import threading
from collections.abc import Callable
from enum import Enum
from time import time
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from magnus_cache.errors import CacheBudgetError, RetryLater
from magnus_cache.freshness import FreshnessOptions, FreshnessState
from magnus_cache.integrations.http.answers import PASS, Answer, Refused, made, new_stamp, restored
from magnus_cache.integrations.http.fields import (
    Directives,
    Fields,
    directives,
    kept_fields,
    merged_fields,
    retry_after,
    same_tag,
    seconds_of,
    value_of,
    values_of,
)
from magnus_cache.integrations.http.freshness import Lifetime, lifetime_of, varies_by, windows_of
from magnus_cache.integrations.http.keys import (
    Head,
    address_of,
    has_credentials,
    key_of,
    resource_of,
    source_of,
    tag_of,
    variant_of,
)
from magnus_cache.integrations.http.options import SAFE, Policy
from magnus_cache.integrations.http.patience import outlasts, signed

__all__ = ["ORIGIN", "Exchange", "Step", "Way", "invalidated_by", "is_complete", "wall_clock", "way_of"]

ORIGIN: Final = "x-magnus-cache"
"""The response header that says where the response comes from: ``hit``, ``miss``, ``revalidated`` or ``stale``."""

_PASS_FOR: Final = 10.0
"""Seconds for which requests of a URL go to the server, each by itself, after a response that must not be stored."""

_FAILURES: Final = frozenset({500, 502, 503, 504})
_MANY: Final = 429
_CONDITIONS: Final = frozenset({
    "if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "range", "upgrade",
})  # fmt: skip
"""Fields of requests that are the caller's own business: such requests go to the server as they are."""

wall_clock: Callable[[], float] = time
"""Seconds since 1970: servers state dates, not monotonic seconds."""


class Way(Enum):
    """What is done about a request."""

    CACHE = "cache"
    ONLY_CACHE = "only-if-cached"
    PASS = "pass"
    CHANGE = "change"
    """It goes to the server, and what is stored of its URL is invalid then."""


class Step(Enum):
    """What is done about a response."""

    KEEP = "keep"
    """Read and store it."""
    UNMODIFIED = "unmodified"
    """The stored one is still current."""
    AGAIN = "again"
    """Ask again, without a condition: what is not modified is not what is stored."""
    REFUSED = "refused"
    """Read it; for all who wait it is the response, unless they have a stale one."""
    LIVE = "live"
    """Hand it to this caller as it is."""


def way_of(policy: Policy, head: Head) -> Way:
    """Return what is done about a request."""
    rule = policy.rule_of(address_of(head.url))
    methods = policy.methods if rule is None or rule.methods is None else rule.methods
    if head.method not in methods:
        return Way.PASS if head.method in SAFE else Way.CHANGE
    given = directives(head.fields)
    if "no-store" in given or (rule is not None and not rule.store):
        return Way.PASS
    if any(name in _CONDITIONS for name, _ in head.fields):
        return Way.PASS
    return Way.ONLY_CACHE if "only-if-cached" in given else Way.CACHE


def invalidated_by(policy: Policy, head: Head, status: int, fields: Fields) -> set[str]:
    """Return the tags that an unsafe request invalidates: of its URL, and of what its response names at the same host.

    :param status: of its response; 0 if none came. Neither that nor a failure of the server, such as a gateway's 504,
        says that nothing happened.
    """
    if 400 <= status < 500:
        return set()
    tags, origin = {tag_of(policy, head.url)}, urlsplit(resource_of(head.url))[:2]
    for name in ("location", "content-location"):
        for value in values_of(fields, name):
            other = urljoin(head.url, value).partition("#")[0]
            if urlsplit(resource_of(other))[:2] == origin:
                tags.add(tag_of(policy, other))
    return tags


def is_complete(method: str, status: int, fields: Fields, length: int, *, framed: bool) -> bool:
    """Whether a body that ended has all of its bytes.

    :param method: of the request.
    :param length: the bytes that came.
    :param framed: whether the protocol marks the end of a body, as HTTP/2 does.
    """
    if method == "HEAD" or status == 204:
        return True
    stated = value_of(fields, "content-length")
    if stated is not None:
        return stated.strip() == str(length)
    return framed or "chunked" in (value_of(fields, "transfer-encoding") or "").lower()


class Exchange:
    """One request that may be answered from the cache. Its loader may run later than its caller waits.

    :ivar key: of the response that is looked for; `select` may change it.
    :ivar seen: the stored response that was found last, or None.
    :ivar state: how fresh that was.
    :ivar served: the age of what is served, in seconds.
    :ivar waits: whether the caller still waits for a response.
    :ivar on_offer: called when there is a live response, if the caller waits for one.
    """

    def __init__(self, policy: Policy, head: Head, body: bytes) -> None:
        self.policy = policy
        self.head = head
        self.rule = policy.rule_of(address_of(head.url))
        self.key = self._first_key = key_of(policy, head, body)
        self.tags = (tag_of(policy, head.url),)
        self.seen: Answer | None = None
        self.state = FreshnessState.GONE
        self.served = 0.0
        self._wants: Directives = directives(head.fields)
        if not self._wants and value_of(head.fields, "pragma") == "no-cache":
            self._wants = {"no-cache": ""}
        self._fetched: dict[bytes, str] = {}
        self._lock = threading.Lock()
        self.waits = True
        self._has_failed = self._has_asked_again = False
        self._refusal: Answer | None = None
        self._live: Any = None
        self.on_offer: Callable[[], object] | None = None

    # -- what is stored -----------------------------------------------------------------------------------------

    @property
    def options(self) -> FreshnessOptions:
        """The options of freshness that a load of this edge must not have."""
        policy = self.policy.resolved
        # A lifetime from the server is not shortened at random, and refreshed early by what it says itself.
        found: FreshnessOptions = {}
        if policy.jitter:
            found["jitter"] = None
        if policy.early:
            found["early"] = None
        return found

    @staticmethod
    def life_of(value: tuple[Any, ...]) -> float | None:
        """Return for how long to store an answer."""
        return Answer(*value).life or None

    @staticmethod
    def is_skipped(value: tuple[Any, ...]) -> bool:
        """Whether not to store an answer."""
        return Answer(*value).life <= 0

    def state_of(self, value: object, stored_for: float) -> FreshnessState:
        """Return how fresh a stored answer is for this request; see `CacheManager.get_or_set`."""
        answer = restored(value)
        self.state = FreshnessState.GONE if answer is None else self._state_of(answer, stored_for)
        self.seen = answer
        self.served = 0.0 if answer is None or math.isinf(stored_for) else answer.age + stored_for
        return self.state

    def _state_of(self, answer: Answer, stored_for: float) -> FreshnessState:
        if answer.status == PASS:
            return FreshnessState.FRESH if stored_for < answer.life else FreshnessState.GONE
        age, wants = answer.age + stored_for, self._wants
        if not self.is_selected(answer):
            # Another form of the response stays as it is while it is fresh; this one has a key of its own.
            return FreshnessState.FRESH if age < answer.fresh else FreshnessState.GONE
        most, ahead = seconds_of(wants, "max-age"), seconds_of(wants, "min-fresh") or 0
        if "no-cache" in wants or (most is not None and age > most):
            return FreshnessState.GONE
        if age + ahead < answer.fresh:
            return FreshnessState.FRESH
        if age < answer.fresh:
            # Fresh, but not for as long as is wanted.
            return FreshnessState.GONE
        given: Directives = {} if self._overrides else directives(answer.fields)
        windows, stale = windows_of(given, self.policy.resolved.grace, shared=self.policy.shared), age - answer.fresh
        if windows is None:
            return FreshnessState.GONE
        if "max-stale" in wants and (not wants["max-stale"] or stale < (seconds_of(wants, "max-stale") or 0)):
            return FreshnessState.FRESH
        if stale < windows.refreshing:
            return FreshnessState.EARLY
        return FreshnessState.STALE if stale < windows.failing else FreshnessState.GONE

    @property
    def _overrides(self) -> bool:
        return self.rule is not None and self.rule.override

    def is_selected(self, answer: Answer) -> bool:
        """Whether this request selects an answer, by the fields that its Vary names."""
        return answer.vary == variant_of(self.policy, self.head, (name for name, _ in answer.vary))

    def select(self, answer: Answer) -> bool:
        """Turn to the key of this request's own form of the response; return whether there is another one to try.

        :param answer: what is at the present key: another form.
        """
        names = tuple(name for name, _ in answer.vary)
        hashes = b"".join(value for _, value in variant_of(self.policy, self.head, names)).hex()
        key = f"{self._first_key}~{','.join(names)}:{hashes}"
        if self.key != self._first_key or key == self.key:
            return False
        self.key, self.seen = key, None
        return True

    # -- what the server says -----------------------------------------------------------------------------------

    @property
    def source(self) -> str:
        """The key of the server's word to be left alone."""
        return source_of(self.policy, self.head)

    def condition(self) -> list[tuple[str, str]]:
        """Return the fields that ask the server for a response only if the stored one is no longer current."""
        seen = self.seen
        if seen is None or seen.status == PASS or not self.is_selected(seen):
            return []
        tag, date = value_of(seen.fields, "etag"), value_of(seen.fields, "last-modified")
        fields = [("if-none-match", tag)] if tag else []
        return [*fields, ("if-modified-since", date)] if date else fields

    def received(self, answer: Answer, *, asked: bool, delay: float) -> tuple[Step, Answer]:
        """Return what to do about a response, and the answer that it makes.

        :param answer: its status and fields; its body is still to be read.
        :param asked: whether the request had the condition.
        :param delay: seconds between request and response.
        """
        now = wall_clock()
        if asked and answer.status == 304 and self.seen is not None:
            tag, known = value_of(answer.fields, "etag"), value_of(self.seen.fields, "etag")
            if tag is not None and (known is None or not same_tag(tag, known)):
                return Step.AGAIN, answer
            whole = self.seen._replace(stamp=new_stamp(), fields=merged_fields(self.seen.fields, answer.fields))
            if (names := varies_by(whole.fields)) is not None:
                # The 304 may name fields that the response did not: it is of this request's form then.
                whole = whole._replace(vary=variant_of(self.policy, self.head, names))
            # The age is that of the 304.
            aged = whole._replace(fields=(*whole.fields, *((n, v) for n, v in answer.fields if n == "age")))
            lifetime = lifetime_of(self.policy, self.head, self.rule, aged, now=now, delay=delay)
            if lifetime is None and self.policy.shared:
                # It has a cookie, or is private: not for those who wait for the same as well.
                return Step.AGAIN, answer
            return Step.UNMODIFIED, self._timed(whole, lifetime, "revalidated")
        if answer.status == _MANY or (answer.status in _FAILURES and self._is_failure(answer)):
            wait = retry_after(answer.fields, now) if answer.status in {_MANY, 503} else None
            life = 0.0 if wait is None else min(wait, self.policy.max_pause)
            self._fetched[answer.stamp] = "miss"
            return Step.REFUSED, answer._replace(fields=kept_fields(answer.fields, ("set-cookie",)), life=life)
        lifetime = lifetime_of(self.policy, self.head, self.rule, answer, now=now, delay=delay)
        if lifetime is None or self._is_too_long(answer):
            return Step.LIVE, answer
        return Step.KEEP, self._timed(answer._replace(
            fields=kept_fields(answer.fields), vary=variant_of(self.policy, self.head, varies_by(answer.fields) or ())
        ), lifetime, "miss")  # fmt: skip

    def _is_failure(self, answer: Answer) -> bool:
        """Whether an error is one for all who wait. One with no-store is not, unless they have a stale response.

        Gateways put no-store on their errors, for which `stale-if-error` is meant as well.
        """
        has_stale = self.state in {FreshnessState.STALE, FreshnessState.EARLY}
        return has_stale or "no-store" not in directives(answer.fields)

    def _is_too_long(self, answer: Answer) -> bool:
        stated = (value_of(answer.fields, "content-length") or "0").strip()
        return self.head.method != "HEAD" and stated.isdecimal() and int(stated) > self.policy.max_body_bytes

    def _timed(self, answer: Answer, lifetime: Lifetime | None, origin: str) -> Answer:
        self._fetched[answer.stamp] = origin
        if lifetime is None:
            return answer._replace(age=0.0, fresh=0.0, life=0.0)
        return answer._replace(age=lifetime.age, fresh=lifetime.fresh, life=lifetime.life)

    def mark(self) -> Answer:
        """Return what is stored in place of a response that must not be stored."""
        answer = made(PASS, life=_PASS_FOR)
        self._fetched[answer.stamp] = "miss"
        return answer

    # -- what the caller gets -----------------------------------------------------------------------------------

    def origin_of(self, answer: Answer) -> str:
        """Return where an answer comes from, for the header `ORIGIN`."""
        if self.seen is not None and answer.stamp == self.seen.stamp:
            is_fresh = self.state is FreshnessState.FRESH and self.served < answer.fresh
            return "hit" if is_fresh else "stale"
        self.served = answer.age
        return self._fetched.get(answer.stamp, "hit")

    def fields_for(self, answer: Answer) -> list[tuple[str, str]]:
        """Return the header fields of a response from the cache, with its origin and its age."""
        origin = self.origin_of(answer)
        fields = [(name, value) for name, value in answer.fields if name != ORIGIN]
        if origin != "miss":
            fields = [*(field for field in fields if field[0] != "age"), ("age", str(int(self.served)))]
        return [*fields, (ORIGIN, origin)]

    def is_for_caller(self, refused: Refused) -> bool:
        """Whether an error response is for this caller: in a shared store, that to another user's request is not."""
        alone = self.policy.shared and has_credentials(self.head)
        return not alone or refused.answer.stamp in self._fetched

    @property
    def may_serve(self) -> bool:
        """Whether the stored answer may be served without a question to the server."""
        return self.state in {FreshnessState.FRESH, FreshnessState.EARLY}

    @staticmethod
    def unsatisfied() -> Refused:
        """Return the error for a request that wants a stored response, and there is none to serve."""
        return Refused(made(504, reason="Gateway Timeout", fields=(("content-length", "0"),)))

    # -- a response that is not read by the loader --------------------------------------------------------------

    def refused(self, answer: Answer) -> RetryLater | None:
        """Note the server's word to be left alone; return what tells the fleet, if the source of this URL has a budget.

        Then its callers wait, or get this response. Without a budget, they all get the response until the time is over.
        """
        rules = self.policy.resolved.budgets
        if rules is None or rules.source(self.key) is None:
            return None
        self._refusal = answer
        return RetryLater(answer.life)

    def held_back(self, error: CacheBudgetError) -> Refused:
        """Return the error for a request that a limit holds back for longer than its caller may wait: a 429."""
        answer = self._refusal
        if answer is None:
            answer = made(429, reason="Too Many Requests", fields=(("content-length", "0"),))
        self._fetched[answer.stamp] = "miss"
        return Refused(_asking_to_wait(answer, error.retry_after))

    def offer(self, live: Any) -> bool:
        """Hand a live response to the caller; return False if the caller has left, so that the loader closes it."""
        with self._lock:
            if not self.waits:
                return False
            self._live = live
        if self.on_offer is not None:
            self.on_offer()
        return True

    def take(self) -> Any:
        """Return the live response, once; None without one."""
        with self._lock:
            live, self._live = self._live, None
            return live

    def leave(self) -> Any:
        """Let the caller go. Returns a live response that it has not taken, to be closed."""
        with self._lock:
            self.waits = False
            live, self._live = self._live, None
            return live

    def failed(self, error: Exception) -> None:
        """Note that the load of this caller raised an error, which those who wait get as well."""
        self._has_failed = True
        signed(error, self.head.patience)

    def asks_again(self, error: Exception) -> bool:
        """Return whether to ask once more after an error: the request of a caller with shorter timeouts timed out."""
        if self._has_failed or self._has_asked_again or not outlasts(self.head.patience, error):
            return False
        self._has_asked_again = True
        return True

    def paused(self, stored: object, left: float | None) -> Refused | None:
        """Return the error for a server that asked to be left alone; None if it did not.

        :param stored: what is at `source`.
        :param left: for how many seconds more.
        """
        answer = restored(stored)
        if answer is None:
            return None
        self._fetched[answer.stamp] = "miss"
        return Refused(_asking_to_wait(answer, answer.life if left is None else left))


def _asking_to_wait(answer: Answer, seconds: float) -> Answer:
    """Return an answer with a Retry-After of some seconds, at least one."""
    fields = [(name, value) for name, value in answer.fields if name != "retry-after"]
    return answer._replace(fields=(*fields, ("retry-after", str(max(1, math.ceil(seconds))))))
