"""Diagnosis of connection errors and error replies: a reason in one word, and a message with the remedy."""

import re
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from redis import exceptions as errors

from magnus_cache.errors import CacheUnavailableError, Reason

if TYPE_CHECKING:
    from magnus_cache._engine.redis.endpoint import Endpoint

__all__ = [
    "CLUSTER_GRANTS",
    "GRANTS",
    "IS_SENTINEL",
    "SENTINEL_GRANTS",
    "TopologyError",
    "cause",
    "explain",
    "none_of",
    "refused",
    "unable",
]


class TopologyError(Exception):
    """A server is not what the settings say, or not what its cluster needs. The message has the remedy.

    :ivar reason: the reason in one word.
    """

    def __init__(self, message: str, reason: Reason = "topology") -> None:
        super().__init__(message)
        self.reason: Reason = reason


def refused(error: Exception, command: str) -> CacheUnavailableError:
    """Return the error for an error reply to one command; the connection itself works."""
    if isinstance(error, errors.OutOfMemoryError):
        reason: Reason = "oom"
        problem = "it is out of memory; raise maxmemory or evict"
    elif isinstance(error, errors.ReadOnlyError):
        reason, problem = "readonly", "it is a replica; connect to the primary"
    elif isinstance(error, errors.NoPermissionError) or _FORBIDDEN.search(str(error)):
        reason, problem = "noperm", f"its ACL forbids it; {_grant(error)}"
    else:
        reason, problem = "error", _code(error)
    return CacheUnavailableError(reason, f"Redis refused {command}: {problem}", refused=True)


_FORBIDDEN: Final = re.compile(r"ACL failure in script|user executing the script can't", re.IGNORECASE)
"""The error of an allowed script that calls a forbidden command: in Redis 7 and Valkey, and in Redis 6."""


_IN_SCRIPT: Final = re.compile(r"@user_script: ?\d+: -(OOM|READONLY) (.*)", re.DOTALL)
"""What a command within a script was refused with, in Redis 6: the error of the script as a whole begins with ERR."""

_REFUSALS: Final = {"OOM": errors.OutOfMemoryError, "READONLY": errors.ReadOnlyError}


def cause(error: Exception) -> Exception:
    """Return an error reply as servers from Redis 7.0 on send it: with the code of the command within a script."""
    within = _IN_SCRIPT.search(str(error))
    return error if within is None else _REFUSALS[within[1]](within[2])


GRANTS: Final = (
    "+get +mget +getrange +set +del +unlink +exists +pttl +pexpire +hmget +hset +hdel +hsetnx +hgetall +hincrby "
    "+expire +zadd +zrem +zrangebyscore +zremrangebyscore +scan +dbsize +multi +exec +eval +evalsha +time +info "
    "+client|tracking +client|id +client|kill"
)
"""The rights that suffice for a single server, and for the servers that Sentinel watches."""

CLUSTER_GRANTS: Final = "+cluster|myid +cluster|info +cluster|shards +asking +hget"
"""The rights that a Redis Cluster needs besides; before Redis 7.0, CLUSTER SLOTS in place of CLUSTER SHARDS."""

SENTINEL_GRANTS: Final = (
    "+sentinel|myid +sentinel|master +sentinel|get-master-addr-by-name +sentinel|replicas +sentinel|sentinels"
)
"""The rights that a user of the sentinels themselves needs."""

IS_SENTINEL: Final = (
    "it is a sentinel, and the settings say a Redis server; use redis+sentinel://host:port/service, or set "
    "REDIS_SENTINELS and REDIS_SENTINEL_SERVICE"
)


def _grant(error: object) -> str:
    """Return what to grant: the command that an ACL error names, and the full list, to avoid the next refusal."""
    match = re.search(r"run the '([\w|]+)' command", str(error))
    needed = (
        f"{GRANTS}, on a Redis Cluster also {CLUSTER_GRANTS}, before Redis 7.0 +cluster|slots for +cluster|shards, on "
        "the keys '<prefix>*' and '{<prefix>*'"
    )
    return f"grant the user +{match[1]} (in all it needs {needed})" if match else f"grant the user {needed}"


_UNABLE: Final[dict[str, tuple[Reason, str]]] = {
    "LOADING": ("loading", "it is still loading its data; the cache waits for it"),
    "BUSY": ("busy", "it is busy with a script or a function; the cache waits for it (SCRIPT KILL ends one)"),
    "MASTERDOWN": ("masterdown", "it is a replica that has lost its primary; the cache waits for it"),
    "CLUSTERDOWN": (
        "clusterdown",
        "its cluster is down, because slots have no owner or most primaries cannot be reached; the cache waits for it "
        "(redis-cli --cluster check says what is wrong)",
    ),
    "NOAUTH": ("auth", "it wants a password"),
}
"""The errors of a server that is up but serves no command at all, by their code."""


def unable(error: Exception) -> tuple[Reason, str] | None:
    """Return why a server serves no command at all: reason and message; None if it only refused this command."""
    if isinstance(error, errors.ClusterDownError) and _UNSERVED in str(error):
        return None
    for kind, code in _KINDS:
        if isinstance(error, kind):
            return _UNABLE[code]
    return _UNABLE.get(_code(error))


_UNSERVED: Final = "slot not served"
"""In the error of a cluster that works, about a key whose slot has no owner."""


_KINDS: Final = (
    (errors.BusyLoadingError, "LOADING"),
    (errors.MasterDownError, "MASTERDOWN"),
    (errors.ClusterDownError, "CLUSTERDOWN"),
)
"""Errors whose code redis-py removes from the text. The second is a subclass of the third."""


def _code(error: Exception) -> str:
    # redis-py moves codes that it knows, such as OOM, from the text to an attribute.
    return getattr(error, "status_code", None) or str(error).split(" ", 1)[0]


def explain(error: BaseException, endpoint: "Endpoint", *, worked: bool = False) -> CacheUnavailableError:
    """Return the error for a failed or lost connection, with a reason and the remedy.

    This is the one place that classifies the errors of redis-py and of sockets.

    :param worked: whether the connection has worked before: then its settings are right.
    """
    reason, problem = _diagnose(error, endpoint, worked)
    return CacheUnavailableError(reason, f"Redis at {endpoint.display}: {problem}")


def none_of(place: str, failures: Sequence[CacheUnavailableError]) -> CacheUnavailableError:
    """Return the error for several servers of which any one would do, none of which can be used.

    :param place: all of them, for people.
    """
    telling = [error for error in failures if error.reason not in {"refused", "timeout", "lost", "down"}]
    first = (telling or failures)[0]
    if len(failures) == 1:
        return first
    more = "" if telling else " (nor can any other one be used)"
    return CacheUnavailableError(first.reason, f"none of the nodes of {place} can be used: {first.problem}{more}")


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        chain += [argument for argument in current.args if isinstance(argument, BaseException)]
        current = current.__cause__ or current.__context__
    return chain


def _diagnose(error: BaseException, endpoint: "Endpoint", worked: bool) -> tuple[Reason, str]:
    chain = _causes(error)
    text = " ".join(str(link) for link in chain)
    if _any(chain, errors.AuthenticationError) or any(code in text for code in ("WRONGPASS", "NOAUTH", "AUTH failed")):
        return "auth", f"it refused the user or password; {_login(endpoint)}"
    for link in chain:
        if isinstance(link, TopologyError):
            return link.reason, str(link)
        if isinstance(link, Exception) and (why := unable(link)) is not None:
            return why
        if isinstance(link, errors.NoPermissionError):
            return "noperm", f"its ACL forbids what the cache cannot do without; {_grant(link)}"
    if (problem := _tls_problem(chain, endpoint)) is not None:
        return "tls", problem
    if ("unknown command" in text and "HELLO" in text.upper()) or "NOPROTO" in text:
        return "version", "it does not know RESP3; the cache requires Redis 6 or newer, or Valkey"
    if _any(chain, errors.InvalidResponse) or "Protocol error" in text:
        return "protocol", f"what answers there is not Redis; check {_place(endpoint)}"
    if _any(chain, ConnectionRefusedError):
        return "refused", f"nothing listens there; start redis-server, or check {_place(endpoint)}"
    if _any(chain, FileNotFoundError):
        return "refused", f"that socket does not exist; check the path in {endpoint.name('redis_url')}"
    if _any(chain, TimeoutError) or _any(chain, errors.TimeoutError):
        hint = "" if worked or endpoint.scheme != "tls" else f"; if it speaks plain Redis there, {_switch(endpoint)}"
        return "timeout", f"it did not answer in time ({endpoint.name('op_timeout')}){hint}"
    if "invalid DB index" in text or "DB index is out of range" in text:
        return "database", f"it has no database {endpoint.db}; set {endpoint.name('redis_db')}"
    if "unknown command" in text and "select" in text.lower():
        return "topology", IS_SENTINEL
    if _any(chain, errors.ResponseError):
        return "error", f"it refused the handshake: {text.split(' ', 1)[0]}"
    if "name or service not known" in text.lower() or "getaddrinfo" in text or "name resolution" in text:
        return "unknown_host", f"no such host; check {endpoint.name('redis_host')}"
    hint = ""
    if not worked and endpoint.scheme == "tcp":
        hint = f" (if it wants TLS, {_switch(endpoint)})"
    elif not worked and endpoint.scheme == "tls":
        # With TLS 1.3, a server says so when the handshake is over here, and hangs up.
        which = "another" if endpoint.tls.get("ssl_certfile") else "a"
        hint = f" (if it wants {which} certificate of this client, {_own_certificate(endpoint)})"
    return "lost", f"the connection was lost{hint}"


def _any(chain: list[BaseException], kind: type[BaseException]) -> bool:
    return any(isinstance(link, kind) for link in chain)


# -- the settings to change, by the names in effect ----------------------------------------------------------


def _place(endpoint: "Endpoint") -> str:
    host, port = endpoint.name("redis_host"), endpoint.name("redis_port")
    return host if host == port else f"{host} and {port}"


def _login(endpoint: "Endpoint") -> str:
    user, password = endpoint.name("redis_username"), endpoint.name("redis_password")
    if user == password:
        return f"check the user and password in {user}"
    return f"set {password} (and {user} for an ACL user)"


def _own_certificate(endpoint: "Endpoint") -> str:
    return f"set {endpoint.name('redis_ssl_certfile')} and {endpoint.name('redis_ssl_keyfile')}"


def _switch(endpoint: "Endpoint") -> str:
    """Return how to switch TLS on, or off where it is on."""
    name, is_on = endpoint.name("redis_ssl"), endpoint.scheme == "tls"
    if name.lower() == "redis_url":
        kind = "" if endpoint.kind == "standalone" else f"+{endpoint.kind}"
        return f"use {'redis' if is_on else 'rediss'}{kind}:// in {name}"
    return f"set {name}={str(not is_on).lower() if name.isupper() else not is_on}"


_OTHER_HOST: Final = frozenset({62, 64})
"""OpenSSL's codes for a certificate of another host name, or of another address."""

_EXPIRED: Final = 10

_WANTS_CERTIFICATE: Final = (
    "ALERT_HANDSHAKE_FAILURE", "ALERT_CERTIFICATE_REQUIRED", "ALERT_BAD_CERTIFICATE", "ALERT_UNKNOWN_CA",
    "ALERT_CERTIFICATE_UNKNOWN", "ALERT_CERTIFICATE_EXPIRED",
)  # fmt: skip
"""What a server says that wants another certificate of its client, or any."""

_ANNOUNCING: Final = {
    "cluster": "cluster-announce-hostname, with cluster-preferred-endpoint-type hostname",
    "sentinel": "sentinel resolve-hostnames and announce-hostnames, with replica-announce-ip",
}


def _tls_problem(chain: list[BaseException], endpoint: "Endpoint") -> str | None:
    for link in chain:
        if isinstance(link, ssl.SSLCertVerificationError):
            if link.verify_code in _OTHER_HOST:
                unchecked = f"set {endpoint.name('redis_ssl_check_hostname')}=false"
                problem = f"its TLS certificate is not for {endpoint.host!r}"
                if endpoint.announced:
                    names = _ANNOUNCING[endpoint.kind]
                    remap = f"set {endpoint.name('address_remap')}"
                    return f"{problem}, as it is announced; announce its name ({names}), {remap}, or {unchecked}"
                return f"{problem}; connect by a name that is in it, or {unchecked}"
            if link.verify_code == _EXPIRED:
                return "its TLS certificate has expired; renew it"
            remedy = f"set {endpoint.name('redis_ssl_ca_certs')} to the file of the authority that signed it"
            return f"its TLS certificate is not trusted; {remedy}"
    if _any(chain, ssl.SSLError):
        text = " ".join(str(link) for link in chain)
        if any(alert in text for alert in _WANTS_CERTIFICATE):
            if not endpoint.tls.get("ssl_certfile"):
                return f"it wants a TLS certificate of this client; {_own_certificate(endpoint)}"
            return f"it refused the TLS certificate of this client; {_own_certificate(endpoint)} to one that it trusts"
        return f"the TLS handshake failed; if it speaks plain Redis there, {_switch(endpoint)}"
    return None
