"""One connection to one Redis: how it is opened, what its parser keeps, and what its errors mean.

Built on the public surface of redis-py alone: a `redis.asyncio.Connection` with a parser of our own. redis-py's
parsers read RESP3 push frames and then drop the ones nobody registered for on a *private* attribute; ours hands
every frame to whoever reads, in order with the replies, which is what makes client-side caching sound.
"""

import asyncio
import contextlib
import re
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as errors
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection, DefaultParser

from magnus_cache.errors import CacheUnavailableError, Reason
from magnus_cache.redis.commands import info

if TYPE_CHECKING:
    from magnus_cache.endpoints import Endpoint

__all__ = ["Push", "answers", "explain", "opened", "refused", "server_identity", "unable"]

_READ_BYTES: Final = 256 * 1024
"""How much one read from the socket may take: large enough that a batch of 256 small values is one read."""

_AT_ONCE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER that throws away what the kernel has not delivered."""


class Push:
    """A frame that the server sent unasked, such as ``[b"invalidate", [name, ...]]``."""

    __slots__ = ("frame",)

    def __init__(self, frame: list[Any]) -> None:
        self.frame = frame


class _PushParser(DefaultParser):  # type: ignore[misc, valid-type]  # the alias is chosen at run time by redis-py
    """redis-py's parser, except that push frames are returned instead of swallowed."""

    async def handle_push_response(self, response: list[Any], **_: Any) -> Push:
        return Push(response)


def _build(endpoint: "Endpoint", timeout: float) -> AbstractConnection:
    options: dict[str, Any] = {
        "db": endpoint.db,
        "username": endpoint.username,
        "password": endpoint.password.get_secret_value() if endpoint.password else None,
        "protocol": 3,
        "parser_class": _PushParser,
        # No timeout per command: redis-py's costs a timer and a task each. The wire has one for all.
        "socket_timeout": None,
        "socket_connect_timeout": timeout,
        "socket_read_size": _READ_BYTES,
    }
    if endpoint.scheme == "unix":
        return UnixDomainSocketConnection(path=endpoint.path or "", **options)
    options |= {"host": endpoint.host, "port": endpoint.port}
    if endpoint.scheme == "tls":
        return SSLConnection(**options, **endpoint.tls)
    return Connection(**options)


@contextlib.asynccontextmanager
async def opened(
    endpoint: "Endpoint", timeout: float, settled: Callable[[], bool] = lambda: False
) -> AsyncGenerator[AbstractConnection]:
    """Connect, authenticate and select the database; disconnect on the way out, whatever happens.

    :param timeout: seconds for the connection and its handshake together are the caller's to bound; this one
        bounds the TCP and TLS part inside redis-py.
    :param settled: whether all was answered that was asked; else what is still on its way is not to arrive any more.
    """
    connection = _build(endpoint, timeout)
    writer: asyncio.StreamWriter | None = None
    orderly = False
    try:
        await connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it without
        # redis-py has no public name for it. Without it, the end is an ordinary one.
        writer = getattr(connection, "_writer", None)
        yield connection
    except asyncio.CancelledError:
        orderly = True
        raise
    finally:
        if writer is not None and not settled():
            _abort(writer.transport)
        # A peer that failed must not keep us. On an orderly end the loop itself may be about to end, and a transport
        # (a TLS one takes several turns to close) must not be left to it half-closed; redis-py bounds that wait.
        with contextlib.suppress(errors.RedisError, OSError):
            await connection.disconnect(nowait=not orderly)


def _abort(transport: asyncio.WriteTransport) -> None:
    """End a connection by a reset.

    Closed in the ordinary way, it would have the kernel deliver what was sent for many minutes to come: a value that
    was deleted meanwhile, and a socket that stays for as long.
    """
    own = transport.get_extra_info("socket")
    # It may be closed already (a ValueError by uvloop), or no socket of the kernel's.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    transport.abort()


async def answers(connection: AbstractConnection, *packed: bytes) -> list[Any]:
    """Send some commands during the handshake, and return the answers, errors to single ones included.

    What a server says that serves nobody at all is raised, as redis-py's own error.
    """
    await connection.send_packed_command(list(packed), check_health=False)
    replies: list[Any] = []
    while len(replies) < len(packed):
        try:
            reply = await connection.read_response(disable_decoding=True, push_request=True)
        except errors.ResponseError as error:
            reply = error
            if unable(error) is not None:
                raise
        if not isinstance(reply, Push):
            replies.append(reply)
    return replies


def server_identity(server: Any, replication: Any) -> bytes:
    """Return what tells one server's history of writes from another's; nothing where it is not told.

    It changes when the server is started anew, and when it becomes a primary: either may have lost the latest writes.

    :param server: the reply to INFO server, an error, or None for what only tells when it became a primary.
    :param replication: the reply to INFO replication, an error, or None to tell its starts apart alone.
    """
    parts: list[str] = []
    for reply, field in ((server, b"run_id"), (replication, b"master_replid")):
        if reply is not None and not isinstance(reply, Exception) and (value := info(reply, field)):
            parts.append(value)
    return ":".join(parts).encode()


def refused(error: Exception, command: str) -> CacheUnavailableError:
    """Return what an error reply to one command means; the connection itself is sound."""
    if isinstance(error, errors.OutOfMemoryError):
        reason: Reason = "oom"
        problem = "it is out of memory; raise maxmemory or evict"
    elif isinstance(error, errors.ReadOnlyError):
        reason, problem = "readonly", "it is a replica; point REDIS_HOST at the primary"
    elif isinstance(error, errors.NoPermissionError) or _FORBIDDEN.search(str(error)):
        what = _forbidden(error) or _GRANTS
        reason = "noperm"
        problem = f"its ACL forbids it; grant the user {what}, on the keys '<prefix>*' and '{{<prefix>*'"
    else:
        reason, problem = "error", _code(error)
    return CacheUnavailableError(reason, f"Redis refused {command}: {problem}", refused=True)


_FORBIDDEN: Final = re.compile(r"ACL failure in script|user executing the script can't", re.IGNORECASE)
"""What a script meets that may be called, but not call what it calls: Redis 7 and Valkey, Redis 6."""


_GRANTS: Final = "+@read +@write +@transaction +@scripting +time +info"


def _forbidden(error: object) -> str | None:
    """Return the grant that an error of the ACL says is missing, such as ``+time``."""
    match = re.search(r"run the '([\w|]+)' command", str(error))
    return f"+{match[1]}" if match else None


_UNABLE: Final[dict[str, tuple[Reason, str]]] = {
    "LOADING": ("loading", "it is still loading its data; the cache waits for it"),
    "BUSY": ("busy", "it is busy with a script or a function; the cache waits for it (SCRIPT KILL ends one)"),
    "MASTERDOWN": ("masterdown", "it is a replica that has lost its primary; the cache waits for it"),
    "CLUSTERDOWN": ("clusterdown", "its cluster is down; the cache waits for it"),
    "NOAUTH": ("auth", "it wants a password; set REDIS_PASSWORD (and REDIS_USERNAME for an ACL user)"),
}
"""What a server answers to everything, by the code of its error: it is there, and cannot serve."""


def unable(error: Exception) -> tuple[Reason, str] | None:
    """Return why a server serves nobody at all, in one word and in a sentence; None if it only refused one command."""
    for kind, code in _KINDS:
        if isinstance(error, kind):
            return _UNABLE[code]
    return _UNABLE.get(_code(error))


_KINDS: Final = (
    (errors.BusyLoadingError, "LOADING"),
    (errors.MasterDownError, "MASTERDOWN"),
    (errors.ClusterDownError, "CLUSTERDOWN"),
)
"""Errors from whose text redis-py takes the code away. The second is a kind of the third."""


def _code(error: Exception) -> str:
    # redis-py moves a code it knows, such as OOM, from the text to an attribute.
    return getattr(error, "status_code", None) or str(error).split(" ", 1)[0]


def explain(error: BaseException, endpoint: "Endpoint") -> CacheUnavailableError:
    """Return what a failed or lost connection means, in words that tell what to do about it.

    The one place where redis-py's and the socket's errors are told apart.
    """
    reason, problem = _diagnose(error, endpoint)
    return CacheUnavailableError(reason, f"Redis at {endpoint.display}: {problem}")


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        chain += [argument for argument in current.args if isinstance(argument, BaseException)]
        current = current.__cause__ or current.__context__
    return chain


def _diagnose(error: BaseException, endpoint: "Endpoint") -> tuple[Reason, str]:
    chain = _causes(error)
    text = " ".join(str(link) for link in chain)
    if _any(chain, errors.AuthenticationError) or any(code in text for code in ("WRONGPASS", "NOAUTH", "AUTH failed")):
        return "auth", "it refused the user or password; set REDIS_PASSWORD (and REDIS_USERNAME for an ACL user)"
    for link in chain:
        if isinstance(link, Exception) and (why := unable(link)) is not None:
            return why
        if isinstance(link, errors.NoPermissionError):
            what = _forbidden(link) or _GRANTS
            return "noperm", f"its ACL forbids what the cache cannot do without; grant the user {what}"
    if _any(chain, ssl.SSLCertVerificationError):
        return "tls", "its TLS certificate is not trusted; set REDIS_SSL_CA_CERTS to the authority's file"
    if _any(chain, ssl.SSLError):
        return "tls", "the TLS handshake failed; if it speaks plain Redis there, use redis:// or REDIS_SSL=false"
    if ("unknown command" in text and "HELLO" in text.upper()) or "NOPROTO" in text:
        return "version", "it does not know RESP3; Redis 6, Valkey or newer is needed"
    if _any(chain, errors.InvalidResponse) or "Protocol error" in text:
        return "protocol", "what answers there is not Redis; check REDIS_HOST and REDIS_PORT"
    if _any(chain, ConnectionRefusedError):
        return "refused", "nothing listens there; start redis-server, or set REDIS_HOST and REDIS_PORT"
    if _any(chain, FileNotFoundError):
        return "refused", "that socket does not exist; check the path in REDIS_URL"
    if _any(chain, TimeoutError) or _any(chain, errors.TimeoutError):
        hint = "; if it does not speak TLS there, use redis:// or REDIS_SSL=false" if endpoint.scheme == "tls" else ""
        return "timeout", f"it did not answer in time (MAGNUS_CACHE_OP_TIMEOUT){hint}"
    if "invalid DB index" in text or "DB index is out of range" in text:
        return "database", f"it has no database {endpoint.db}; set REDIS_DB"
    if _any(chain, errors.ResponseError):
        return "error", f"it refused the handshake: {text.split(' ', 1)[0]}"
    if "name or service not known" in text.lower() or "getaddrinfo" in text or "name resolution" in text:
        return "unknown_host", "no such host; check REDIS_HOST"
    hint = "" if endpoint.scheme != "tcp" else " (if it wants TLS, use rediss:// or REDIS_SSL=true)"
    return "lost", f"the connection was lost{hint}"


def _any(chain: list[BaseException], kind: type[BaseException]) -> bool:
    return any(isinstance(link, kind) for link in chain)
