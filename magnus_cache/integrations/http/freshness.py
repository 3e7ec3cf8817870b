"""How long responses are fresh, and which may be stored: the arithmetic of RFC 9111 and RFC 5861, without any I/O.

No two clocks of hosts are compared, but for what RFC 9111 derives from the server's Date when a response arrives. From
then on its age is counted by the cache, on Redis' clock and the process's own monotonic one.
"""

from typing import Final, NamedTuple

from magnus_cache.integrations.http.answers import Answer
from magnus_cache.integrations.http.fields import (
    Directives,
    Fields,
    age_of,
    date_of,
    directives,
    seconds_of,
    value_of,
    values_of,
)
from magnus_cache.integrations.http.keys import Head, has_credentials
from magnus_cache.integrations.http.options import Policy, Rule

__all__ = ["Lifetime", "Windows", "lifetime_of", "varies_by", "windows_of"]

_BY_DEFAULT: Final = frozenset({200, 203, 204, 300, 301, 308})
"""Statuses of responses that are stored without a word of the server about how long they are fresh."""

_KNOWN: Final = _BY_DEFAULT | {302, 303, 307, 404, 405, 410, 414, 451, 501}
"""Statuses of responses that are stored if the server says how long they are fresh."""

_MOST_HEURISTIC: Final = 86400.0
_LEAST_LIFE: Final = 0.05


class Lifetime(NamedTuple):
    """When a response becomes stale, and for how long it is kept.

    :ivar age: how old it was when it arrived, in seconds.
    :ivar fresh: the age at which it becomes stale, in seconds.
    :ivar life: for how many seconds it is kept, beyond the grace of the namespace.
    """

    age: float
    fresh: float
    life: float


class Windows(NamedTuple):
    """For how many seconds after it became stale a response may be served: while it is refreshed, or if that fails."""

    refreshing: float
    failing: float


def windows_of(given: Directives, grace: float, *, shared: bool) -> Windows | None:
    """Return for how long a response may be served stale; None if never, not even to requests with a max-stale.

    :param given: the response's directives.
    :param grace: seconds, of the namespace.
    """
    never = "must-revalidate" in given or "no-cache" in given
    if never or (shared and ("proxy-revalidate" in given or "s-maxage" in given)):
        return None
    refreshing = float(seconds_of(given, "stale-while-revalidate") or 0)
    return Windows(refreshing, max(float(seconds_of(given, "stale-if-error") or 0), grace))


def varies_by(fields: Fields) -> tuple[str, ...] | None:
    """Return the names of the request's fields that select a response; None if no request can be told to.

    An encoded response is also selected by Accept-Encoding: another client may not be able to decode it.
    """
    names = {name.strip().lower() for value in values_of(fields, "vary") for name in value.split(",")} - {""}
    if "*" in names:
        return None
    if value_of(fields, "content-encoding") not in (None, "", "identity"):
        names.add("accept-encoding")
    return tuple(sorted(names))


def _stated(policy: Policy, fields: Fields, given: Directives, now: float) -> float | None:
    """Return for how many seconds a response is fresh by what its server says; None if it does not say."""
    if "no-cache" in given:
        return 0.0
    stated = seconds_of(given, "s-maxage") if policy.shared else None
    stated = seconds_of(given, "max-age") if stated is None else stated
    if stated is not None:
        return float(stated)
    expires = value_of(fields, "expires")
    if expires is None:
        return None
    # An invalid date is in the past (RFC 9111, 5.3).
    end, sent = date_of(expires), date_of(value_of(fields, "date"))
    return 0.0 if end is None else max(0.0, end - (now if sent is None else sent))


def _heuristic(fields: Fields, now: float) -> float | None:
    changed, sent = date_of(value_of(fields, "last-modified")), date_of(value_of(fields, "date"))
    if changed is None:
        return None
    return min(max(0.0, (now if sent is None else sent) - changed) / 10, _MOST_HEURISTIC)


def _fresh_for(policy: Policy, rule: Rule | None, status: int, fields: Fields, now: float) -> float | None:
    """Return for how many seconds a response is fresh, zero included; None if it must not be stored."""
    given = directives(fields)
    by_default = status in _BY_DEFAULT
    if rule is not None and rule.override and by_default:
        return rule.ttl
    if "no-store" in given or status not in _KNOWN:
        return None
    stated = _stated(policy, fields, given, now)
    if stated is not None or not by_default:
        return stated
    ttl = policy.ttl if rule is None or rule.ttl is None else rule.ttl
    if ttl is None and policy.heuristic:
        ttl = _heuristic(fields, now)
    # Without a lifetime, each use asks the server whether the response is still current.
    return 0.0 if ttl is None else ttl


def _may_store(policy: Policy, head: Head, rule: Rule | None, fields: Fields) -> bool:
    """Whether a response may be stored for its user, or for all users if the store is shared."""
    if value_of(fields, "set-cookie") is not None and not policy.store_cookies:
        return False
    if not policy.shared:
        return True
    given = directives(fields)
    if "private" in given:
        return False
    return not has_credentials(head) or "public" in given or "s-maxage" in given


def lifetime_of(
    policy: Policy, head: Head, rule: Rule | None, answer: Answer, *, now: float, delay: float
) -> Lifetime | None:
    """Return how long a response that has just arrived is fresh and kept; None if it must not be stored.

    :param answer: its status and fields.
    :param now: when it arrived, seconds since 1970.
    :param delay: seconds between request and response.
    """
    fields = answer.fields
    fresh = _fresh_for(policy, rule, answer.status, fields, now)
    if fresh is None or not _may_store(policy, head, rule, fields) or varies_by(fields) is None:
        return None
    overridden = rule is not None and rule.override
    given: Directives = {} if overridden else directives(fields)
    grace = policy.resolved.grace
    windows = windows_of(given, grace, shared=policy.shared)
    age = 0.0 if overridden else age_of(fields, now, delay)
    checkable = value_of(fields, "etag") is not None or value_of(fields, "last-modified") is not None
    further = policy.keep if checkable else 0.0
    if windows is not None:
        further = max(further, windows.refreshing, windows.failing - grace)
    life = max(0.0, fresh - age) + further
    if life <= 0 and (windows is None or not windows.failing):
        # It could never be served, nor checked.
        return None
    return Lifetime(age, fresh, max(life, _LEAST_LIFE))
