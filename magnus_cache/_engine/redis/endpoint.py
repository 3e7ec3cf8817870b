"""The endpoint of Redis: address, credentials and TLS options, from a URL or from its parts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pydantic import SecretStr

__all__ = [
    "ESCAPES",
    "MOST_PORT",
    "Address",
    "Endpoint",
    "EndpointError",
    "Remap",
    "credentials",
    "database_of",
    "host_of",
    "parse_url",
    "query_of",
    "shown",
    "tls_of",
    "variable_of",
]

Address: TypeAlias = tuple[str, int]
"""Host, without brackets, and port."""

Remap: TypeAlias = Callable[[Address], Address]
"""Returns the address at which this process reaches a server, given the one that the servers announce."""

MOST_PORT: Final = 65_535

_SCHEMES: Final[dict[str, Literal["tcp", "tls", "unix"]]] = {
    "redis": "tcp", "valkey": "tcp", "rediss": "tls", "valkeys": "tls", "unix": "unix",
}  # fmt: skip
_IN_URL: Final = frozenset({
    "redis_host", "redis_port", "redis_db", "redis_ssl", "redis_username", "redis_password", "redis_cluster",
    "redis_sentinels", "redis_sentinel_service",
})  # fmt: skip
_TLS_OPTIONS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_CERT_REQS: Final = ("required", "optional", "none")
ESCAPES: Final = "in a user or password write / ? # @ : as %2F %3F %23 %40 %3A"
_FLAGS: Final = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off"), False)


class EndpointError(ValueError):
    """A URL is invalid. The message quotes no part of it that may be a secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One Redis server.

    :ivar scheme: ``"tcp"``, ``"tls"`` or ``"unix"``.
    :ivar host: name or address, without brackets; unused for a UNIX socket.
    :ivar path: of the UNIX socket.
    :ivar db: the number of the database.
    :ivar tls: options for redis-py's `SSLConnection`; empty without TLS.
    :ivar names: the name of each setting in effect, a keyword or a variable; for messages.
    :ivar kind: of the deployment that it belongs to: ``"standalone"``, ``"cluster"`` or ``"sentinel"``; for messages.
    :ivar announced: whether servers have told its host and port, and not the settings; for messages.
    """

    scheme: Literal["tcp", "tls", "unix"] = "tcp"
    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    db: int = 0
    username: str | None = None
    password: SecretStr | None = None
    tls: Mapping[str, Any] = field(default_factory=dict, hash=False)
    names: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    kind: Literal["standalone", "cluster", "sentinel"] = field(default="standalone", compare=False, repr=False)
    announced: bool = field(default=False, compare=False, repr=False)

    def name(self, setting: str) -> str:
        """Return the name of the setting that a user must change, such as ``REDIS_PORT``.

        :param setting: a field of `CacheSettings`. If a URL is in effect and covers the field, the result is the URL's
            name.
        """
        if "redis_url" in self.names and setting in _IN_URL:
            return self.names["redis_url"]
        return self.names.get(setting) or variable_of(setting)

    @property
    def display(self) -> str:
        """The address as a URL without credentials, for people."""
        if self.scheme == "unix":
            return f"unix://{self.path}?db={self.db}"
        return f"{'rediss' if self.scheme == 'tls' else 'redis'}://{shown(self.host, self.port)}/{self.db}"


def shown(host: str, port: int) -> str:
    """Return an address for people: ``host:port``, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def variable_of(setting: str) -> str:
    """Return the environment variable of a setting."""
    plain = setting.startswith("redis_") and setting != "redis_enabled"
    return setting.upper() if plain else f"MAGNUS_CACHE_{setting.upper()}"


def parse_url(url: str) -> dict[str, Any]:
    """Return the parts of an `Endpoint` from a URL; `tls` has the options of its query.

    ``redis://[user:password@]host[:port][/db]``, ``rediss://`` likewise, ``unix://[user:password@]/path[?db=1]``;
    ``valkey://`` and ``valkeys://`` are the first two.

    :raises EndpointError: for anything else.
    """
    try:
        split = urlsplit(url.strip())
        port = split.port
    except ValueError:
        raise EndpointError(f"it is no URL: the port must be a number up to 65535, and {ESCAPES}") from None
    scheme = _SCHEMES.get(split.scheme)
    if scheme is None:
        raise EndpointError(
            "it must begin with redis:// (or valkey://), rediss:// (TLS; or valkeys://), unix://, redis+cluster:// or "
            "redis+sentinel://"
        )
    if scheme != "unix" and "@" in split.path:
        raise EndpointError(f"there is an '@' after the slash; {ESCAPES}")
    query = query_of(split)
    parts: dict[str, Any] = {"scheme": scheme, **credentials(split.username or "", split.password or "")}
    parts |= _place(split, port, query)
    db = query.pop("db", None)
    if db is not None:
        parts["db"] = database_of(db)
    parts["tls"] = tls_of(query, scheme)
    return parts


def host_of(name: str) -> str:
    """Return a host if the resolver can be asked for it.

    :raises EndpointError: if it cannot: its labels have 1 to 63 characters.
    """
    try:
        name.encode("idna")
    except UnicodeError as error:
        # Not quoted: it may be a password that should stand elsewhere.
        raise EndpointError("the host is not a name: between its dots are 1 to 63 characters") from error
    return name


def credentials(username: str, password: str) -> dict[str, Any]:
    """Return those of both that a URL has, unescaped."""
    parts: dict[str, Any] = {}
    if username:
        parts["username"] = unquote(username)
    if password:
        parts["password"] = SecretStr(unquote(password))
    return parts


def _place(split: SplitResult, port: int | None, query: Mapping[str, str]) -> dict[str, Any]:
    if split.scheme == "unix":
        if split.hostname or not split.path.strip("/"):
            raise EndpointError("a UNIX socket's path begins with a slash, as in unix:///run/redis.sock")
        return {"path": unquote(split.path)}
    if port == 0:
        raise EndpointError("the port must be a number from 1 to 65535")
    place: dict[str, Any] = {"host": host_of(unquote(split.hostname or "localhost")), "port": port or 6379}
    database = split.path.strip("/")
    if database:
        if "db" in query:
            raise EndpointError("it gives the database twice, in the path and as ?db=")
        place["db"] = database_of(database)
    return place


def query_of(split: SplitResult) -> dict[str, str]:
    """Return the options after the question mark: those of TLS, and `db`.

    :raises EndpointError: for others.
    """
    query = dict(parse_qsl(split.query, keep_blank_values=True))
    unknown = [name for name in query if name not in _TLS_OPTIONS and name != "db"]
    if unknown:
        raise EndpointError(f"an option after the question mark is unknown; there are db, {', '.join(_TLS_OPTIONS)}")
    if split.fragment:
        raise EndpointError("it contains a '#', which in a password must be written as %23")
    return query


def database_of(text: str) -> int:
    """Return the number of a database.

    :raises EndpointError: for anything else.
    """
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise EndpointError("the database after the slash must be 0 or more")
    return int(text)


def tls_of(query: Mapping[str, str], scheme: str) -> dict[str, Any]:
    """Return the options of TLS in a URL, checked.

    :raises EndpointError: for a wrong one.
    """
    options: dict[str, Any] = dict(query)
    if options and scheme != "tls":
        raise EndpointError("options of TLS need rediss://")
    reqs = options.get("ssl_cert_reqs", "required")
    if reqs not in _CERT_REQS:
        raise EndpointError(f"ssl_cert_reqs must be one of {', '.join(_CERT_REQS)}")
    if "ssl_check_hostname" in options:
        flag = _FLAGS.get(options["ssl_check_hostname"].lower())
        if flag is None:
            raise EndpointError("ssl_check_hostname must be true or false")
        options["ssl_check_hostname"] = flag
    return options
