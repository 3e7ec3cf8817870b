"""Diagnosis of connection errors and error replies: a reason in one word, and a message with the remedy."""

import re
import ssl
from typing import TYPE_CHECKING, Final

from redis import exceptions as errors

from magnus_cache.errors import CacheUnavailableError, Reason

if TYPE_CHECKING:
    from magnus_cache._engine.redis.endpoint import Endpoint

__all__ = ["TopologyError", "explain", "refused", "unable"]


class TopologyError(Exception):
    """A server is not what the settings say: one of a cluster, or a single one. The message has the remedy."""


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


_GRANTS: Final = "+@read +@write +@transaction +@scripting +time +info +client|tracking +client|id +client|kill"


def _grant(error: object) -> str:
    """Return what to grant: the command that an ACL error names, and the full list, to avoid the next refusal."""
    match = re.search(r"run the '([\w|]+)' command", str(error))
    needed = f"{_GRANTS}, on the keys '<prefix>*' and '{{<prefix>*'"
    return f"grant the user +{match[1]} (in all it needs {needed})" if match else f"grant the user {needed}"


_UNABLE: Final[dict[str, tuple[Reason, str]]] = {
    "LOADING": ("loading", "it is still loading its data; the cache waits for it"),
    "BUSY": ("busy", "it is busy with a script or a function; the cache waits for it (SCRIPT KILL ends one)"),
    "MASTERDOWN": ("masterdown", "it is a replica that has lost its primary; the cache waits for it"),
    "CLUSTERDOWN": ("clusterdown", "its cluster is down; the cache waits for it"),
    "NOAUTH": ("auth", "it wants a password"),
}
"""The errors of a server that is up but serves no command at all, by their code."""


def unable(error: Exception) -> tuple[Reason, str] | None:
    """Return why a server serves no command at all: reason and message; None if it only refused this command."""
    for kind, code in _KINDS:
        if isinstance(error, kind):
            return _UNABLE[code]
    return _UNABLE.get(_code(error))


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
            return "topology", str(link)
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
    if _any(chain, errors.ResponseError):
        return "error", f"it refused the handshake: {text.split(' ', 1)[0]}"
    if "name or service not known" in text.lower() or "getaddrinfo" in text or "name resolution" in text:
        return "unknown_host", f"no such host; check {endpoint.name('redis_host')}"
    hint = "" if worked or endpoint.scheme != "tcp" else f" (if it wants TLS, {_switch(endpoint)})"
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


def _switch(endpoint: "Endpoint") -> str:
    """Return how to switch TLS on, or off where it is on."""
    name, is_on = endpoint.name("redis_ssl"), endpoint.scheme == "tls"
    if name == endpoint.names.get("redis_url"):
        return f"use {'redis' if is_on else 'rediss'}:// in {name}"
    return f"set {name}={str(not is_on).lower() if name.isupper() else not is_on}"


_OTHER_HOST: Final = frozenset({62, 64})
"""OpenSSL's codes for a certificate of another host name, or of another address."""

_EXPIRED: Final = 10


def _tls_problem(chain: list[BaseException], endpoint: "Endpoint") -> str | None:
    for link in chain:
        if isinstance(link, ssl.SSLCertVerificationError):
            if link.verify_code in _OTHER_HOST:
                remedy = f"connect by a name that is in it, or set {endpoint.name('redis_ssl_check_hostname')}=false"
                return f"its TLS certificate is not for {endpoint.host!r}; {remedy}"
            if link.verify_code == _EXPIRED:
                return "its TLS certificate has expired; renew it"
            remedy = f"set {endpoint.name('redis_ssl_ca_certs')} to the file of the authority that signed it"
            return f"its TLS certificate is not trusted; {remedy}"
    if _any(chain, ssl.SSLError):
        return f"the TLS handshake failed; if it speaks plain Redis there, {_switch(endpoint)}"
    return None
