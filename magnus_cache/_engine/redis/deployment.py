"""Where Redis is and how its servers are found: one server, a cluster, or the primary that Sentinel names.

The parts come from a URL or from single settings, and are checked before anything is connected:

- ``redis+cluster://[user:password@]host[:port][,host[:port]...]``, and ``rediss+cluster://`` with TLS;
- ``redis+sentinel://[user:password@]host[:port][,...]/service[/db]``, and ``rediss+sentinel://``; the hosts are
  those of the sentinels, user and password those of the Redis servers;
- `valkey` and `valkeys` in place of `redis` and `rediss`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from magnus_cache._engine.redis.endpoint import (
    ESCAPES,
    MOST_PORT,
    Address,
    Endpoint,
    EndpointError,
    Remap,
    credentials,
    database_of,
    host_of,
    query_of,
    shown,
    tls_of,
)

__all__ = ["Deployment", "addresses", "is_deployment_url", "parse_deployment_url", "remap_of"]

_SCHEME: Final = re.compile(r"(?i)(?P<server>redis|rediss|valkey|valkeys)\+(?P<kind>cluster|sentinel)://(?P<rest>.*)")

_TLS: Final = ("rediss", "valkeys")

_PORTS: Final = {"cluster": 6379, "sentinel": 26379}

_FORM: Final = "addresses are host:port, separated by commas, as in 10.0.0.1:6379,10.0.0.2:6379"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Redis as the settings describe it.

    :ivar kind: ``"standalone"``, ``"cluster"`` or ``"sentinel"``.
    :ivar endpoint: the server; of a cluster its first known node; with Sentinel only what all servers have in common:
        credentials, TLS, database.
    :ivar seeds: addresses of nodes of the cluster, or of the sentinels; empty for one server.
    :ivar service: the name under which the sentinels know the primary.
    :ivar sentinel_username: of the sentinels themselves.
    :ivar remap: returns the address at which this process reaches a node, given the one that the cluster or the
        sentinels announce; None where they are the same.
    """

    kind: Literal["standalone", "cluster", "sentinel"] = "standalone"
    endpoint: Endpoint = field(default_factory=Endpoint)
    seeds: tuple[Address, ...] = ()
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: SecretStr | None = None
    remap: Remap | None = None

    def at(self, host: str, port: int) -> Endpoint:
        """Return the endpoint of one of the servers: with the credentials and the TLS options of all."""
        announced = (host, port) not in self.seeds
        return replace(self.endpoint, host=host, port=port, kind=self.kind, announced=announced)

    def sentinel_at(self, host: str, port: int) -> Endpoint:
        """Return the endpoint of one of the sentinels: with their own credentials, and the TLS options of the servers.

        Its messages name the settings of the sentinels.
        """
        named = self.endpoint.name
        place = named("redis_sentinels")
        names = {
            "redis_host": place, "redis_port": place, "redis_username": "REDIS_SENTINEL_USERNAME",
            "redis_password": "REDIS_SENTINEL_PASSWORD", "redis_sentinels": place,
            "redis_sentinel_service": named("redis_sentinel_service"), "redis_ssl": named("redis_ssl"),
        }  # fmt: skip
        # A URL has the credentials of the servers.
        others = {setting: name for setting, name in self.endpoint.names.items() if setting != "redis_url"}
        own = {"redis_username": "redis_sentinel_username", "redis_password": "redis_sentinel_password"}
        names |= {setting: self.endpoint.names[name] for setting, name in own.items() if name in self.endpoint.names}
        return replace(
            self.endpoint, host=host, port=port, db=0, username=self.sentinel_username,
            password=self.sentinel_password, names=others | names, kind=self.kind,
            announced=(host, port) not in self.seeds,
        )  # fmt: skip

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The server, or the nodes of the cluster that the settings name."""
        return tuple(self.at(*seed) for seed in self.seeds) if self.kind == "cluster" else (self.endpoint,)

    @property
    def display(self) -> str:
        """All of it as a URL without credentials, for people."""
        if self.kind == "standalone":
            return self.endpoint.display
        scheme = "rediss" if self.endpoint.scheme == "tls" else "redis"
        hosts = ",".join(shown(*seed) for seed in self.seeds)
        path = f"/{self.service}/{self.endpoint.db}" if self.kind == "sentinel" else ""
        return f"{scheme}+{self.kind}://{hosts}{path}"


def is_deployment_url(url: str) -> bool:
    """Return whether a URL names a cluster or sentinels."""
    return _SCHEME.match(url.strip()) is not None


def parse_deployment_url(url: str) -> dict[str, Any]:
    """Return the parts of a URL of a cluster or of sentinels: `kind`, `seeds`, `service`, and those of an `Endpoint`.

    :raises EndpointError: for anything else. The message quotes no part that may be a secret.
    """
    match = _SCHEME.match(url.strip())
    if match is None:
        raise EndpointError("it names neither a cluster nor sentinels")
    kind, scheme = match["kind"].lower(), "tls" if match["server"].lower() in _TLS else "tcp"
    # Under a scheme for which it looks for a host; only the port would be read wrongly.
    split = urlsplit(f"redis://{match['rest']}")
    login, _, hosts = split.netloc.rpartition("@")
    if "@" in split.path:
        raise EndpointError(f"there is an '@' after the slash; {ESCAPES}")
    query = query_of(split)
    username, _, password = login.partition(":")
    parts: dict[str, Any] = {"kind": kind, "scheme": scheme, "seeds": addresses(hosts, _PORTS[kind])}
    parts |= credentials(username, password)
    path = [unquote(part) for part in split.path.split("/") if part]
    if kind == "sentinel":
        if not path:
            raise EndpointError("it must end with the service that the sentinels watch, as in /mymaster or /mymaster/0")
        parts["service"] = path.pop(0)
    if database := query.pop("db", None):
        path.append(database)
    if len(path) > 1:
        raise EndpointError("it has more than one database after the hosts")
    if path:
        parts["db"] = database_of(path[0])
    parts["tls"] = tls_of(query, scheme)
    return parts


def addresses(value: str | Sequence[str], port: int) -> tuple[Address, ...]:
    """Return the addresses in a list, or in a text with commas; each once.

    :param port: the port of those without one.
    :raises EndpointError: for anything else, and without any.
    """
    items = value.split(",") if isinstance(value, str) else value
    found = [_split(item) for item in items if not isinstance(item, str) or item.strip()]
    if not found:
        raise EndpointError(f"there is no address; {_FORM}")
    return tuple(dict.fromkeys((host, given or port) for host, given in found))


def _split(text: Any) -> Address:
    """Return the host and the port in ``host``, ``host:port`` or ``[IPv6]:port``; 0 where there is no port.

    :raises EndpointError: for anything else.
    """
    text = text.strip() if isinstance(text, str) else ""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        given = rest.removeprefix(":")
        if not closed or (rest and rest == given):
            raise EndpointError("an IPv6 address with a port is written as in [::1]:6379")
    elif text.count(":") > 1:
        host, given = text, ""
    else:
        host, colon, given = text.partition(":")
        if colon and not given:
            raise EndpointError(f"a port is missing; {_FORM}")
    port = int(given[:9]) if given.isascii() and given.isdecimal() else -1 if given else 0
    if not 0 <= port <= MOST_PORT or (given and not port):
        raise EndpointError("a port is a number from 1 to 65535")
    host = unquote(host)
    if not host or any(character.isspace() or character in "\"'/@?#,[]=" for character in host):
        raise EndpointError(f"a host is a name or an address; {_FORM}")
    return host_of(host), port


class _Table:
    """Remaps by a table; an address that is not in it stays as it is. In the table, port 0 stands for any port."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[Address, Address]) -> None:
        self._entries = entries

    def __call__(self, announced: Address) -> Address:
        host, port = announced
        found = self._entries.get(announced) or self._entries.get((host, 0))
        return announced if found is None else (found[0], found[1] or port)


def remap_of(value: "str | Mapping[str, str] | Remap | None") -> "Remap | None":
    """Return the function that the setting `address_remap` stands for.

    :param value: a function, a mapping, or text such as ``10.0.0.1:6379=127.0.0.1:7001,10.0.0.2=gateway``.
    :raises EndpointError: for a table with something that is no address.
    """
    if value is None or callable(value):
        return value
    if isinstance(value, str):
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if not all(sign for _, sign, _ in pairs):
            raise EndpointError("it is a list such as 10.0.0.1:6379=127.0.0.1:7001,10.0.0.2=gateway")
        value = {announced: reached for announced, _, reached in pairs}
    return _Table({_split(announced): _split(reached) for announced, reached in value.items()})
