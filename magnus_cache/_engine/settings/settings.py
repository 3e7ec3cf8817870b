"""The settings of a cache, from keywords, the environment and a `.env` file, in this order of precedence.

The variables of the connection have the names of the integration guide (``REDIS_HOST`` and so on). All others begin
with ``MAGNUS_CACHE_``. An error names the keyword and the variable, and never contains a secret.
"""

import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, Unpack

from dotenv import dotenv_values
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from magnus_cache._engine.keys.names import check_name
from magnus_cache._engine.redis.deployment import (
    Deployment,
    addresses,
    is_deployment_url,
    parse_deployment_url,
    remap_of,
)
from magnus_cache._engine.redis.endpoint import Endpoint, host_of, parse_url, variable_of
from magnus_cache._engine.runtime.durations import seconds
from magnus_cache._engine.runtime.log import say
from magnus_cache._engine.runtime.numbers import whole
from magnus_cache._engine.settings.certificates import check_certificates, check_file
from magnus_cache._engine.settings.combinations import deployment_problem
from magnus_cache._engine.settings.keywords import SettingsOptions
from magnus_cache._engine.settings.paths import RecordFolder, RecoveryFile
from magnus_cache._engine.settings.seal_keys import SealKeys, parsed_seal_keys
from magnus_cache.errors import CacheArgumentError, CacheSettingsError

__all__ = ["CacheSettings"]

_DOTENV = ".env"

_PLACE: Final = frozenset({"redis_host", "redis_port", "redis_db", "redis_ssl"})
_NUMBERS: Final = ("redis_port", "redis_db", "l1_max_entries", "l1_max_bytes", "max_value_bytes", "max_pending")
_LOGIN: Final = frozenset({"redis_username", "redis_password"})
_SENTINEL: Final = frozenset({
    "redis_sentinels", "redis_sentinel_service", "redis_sentinel_username", "redis_sentinel_password",
})  # fmt: skip
_SECRETS: Final = (*_LOGIN, "redis_sentinel_username", "redis_sentinel_password", "seal_keys")
_SENTINEL_PORT: Final = 26_379
_ADDRESS: Final = re.compile(r"tcp://(?P<host>[^/@\s]+):(?P<port>\d+)")
_OURS: Final = "MAGNUS_CACHE_"
_told: Final[set[str]] = set()
"""Unknown variables that were warned about. Each manager reads the environment again, and must not warn again."""


def _seconds(value: Any, *, zero: bool = False) -> float:
    # The environment contains text only. A plain number in it means seconds too.
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            pass
    return seconds(value, "value", zero=zero)


_Seconds = Annotated[float, BeforeValidator(_seconds)]

_SecondsOrNone = Annotated[float, BeforeValidator(partial(_seconds, zero=True))]
"""0 switches off what it is the interval of."""


def _layer(found: Mapping[str, str | None], variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings among some variables. An empty variable, as in ``REDIS_PASSWORD=``, counts as not set."""
    layer: dict[str, Any] = {}
    for field, variable in variables.items():
        # A file with a secret ends with a line break that is not part of it. Blanks may be part of it.
        if (text := found.get(variable)) and (value := text.strip("\r\n" if field in _SECRETS else None)):
            layer[field] = value
    if _ADDRESS.fullmatch(layer.get("redis_port", "")):
        # Kubernetes has set this, not a person; see `_injected`.
        del layer["redis_port"]
    return layer


def _injected(found: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the address of Redis that Kubernetes sets in every pod beside a service named ``redis``.

    Every host, port or URL that a person has set has precedence over it.
    """
    ref = _ADDRESS.fullmatch((found.get("REDIS_PORT") or "").strip())
    return {} if ref is None else {"redis_host": ref["host"].strip("[]"), "redis_port": ref["port"]}


def _warn_of_unknown(found: Iterable[str], variables: Mapping[str, str], where: str) -> None:
    """Warn once about unknown variables with our prefix: a misspelt one would be ignored in silence."""
    known = variables.values()
    for name in sorted(name for name in found if name.startswith(_OURS)):
        if name not in known and name not in _told:
            _told.add(name)
            bare = name.removeprefix(_OURS)
            near = [bare] if bare in known else difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(sorted(known))}"
            say(f"{name} ({where}) is not a setting and is ignored; {hint}")


def _dotenv() -> Mapping[str, str | None]:
    path = Path(_DOTENV)
    if not path.is_file():
        return {}
    try:
        return dotenv_values(path, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{_DOTENV} cannot be read ({type(error).__name__}); save it as UTF-8 text"
    raise CacheSettingsError(problem)


def _over(upper: Mapping[str, Any], lower: Mapping[str, Any]) -> dict[str, Any]:
    """Return one layer of settings merged over another.

    The address of Redis comes from one layer as a whole. A URL is not combined with the other layer's host, nor with
    the password for that host. A host is not combined with the other layer's URL, and neither with its sentinels.
    """
    if upper.get("redis_url"):
        replaced = _PLACE | _LOGIN | _SENTINEL | {"redis_cluster"}
    elif upper.get("redis_sentinels"):
        replaced = _SENTINEL | {"redis_url", "redis_host", "redis_port", "redis_cluster"}
    elif _PLACE & upper.keys():
        replaced = _SENTINEL | {"redis_url"}
    else:
        replaced = frozenset()
    return {name: value for name, value in lower.items() if name not in replaced} | dict(upper)


class CacheSettings(BaseSettings):
    """All settings of a cache. Durations are seconds, or text such as ``"500ms"``; sizes are bytes.

    :raises CacheSettingsError: for a wrong or unknown setting, naming it and its environment variable.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    redis_url: SecretStr | None = Field(
        None,
        description="redis://, valkey://, rediss:// (TLS), valkeys://, unix://, redis+cluster:// or redis+sentinel://; "
        "use it instead of the next five",
    )
    redis_host: str = Field("localhost", min_length=1)
    redis_port: int = Field(6379, ge=1, le=65_535)
    redis_username: str | None = None
    redis_password: SecretStr | None = None
    redis_db: int = Field(0, ge=0)
    redis_ssl: bool = False
    redis_ssl_ca_certs: str | None = Field(None, description="file with the authority of the server's certificate")
    redis_ssl_certfile: str | None = Field(None, description="file with this client's certificate")
    redis_ssl_keyfile: str | None = Field(None, description="file with this client's key")
    redis_ssl_check_hostname: bool = True
    redis_cluster: bool = Field(False, description="whether the address is that of a node of a Redis Cluster")
    redis_sentinels: str | tuple[str, ...] | None = Field(
        None, description="addresses of the sentinels, host:port with commas; they name the primary"
    )
    redis_sentinel_service: str | None = Field(None, description="the name under which the sentinels know the primary")
    redis_sentinel_username: str | None = None
    redis_sentinel_password: SecretStr | None = None
    address_remap: str | Mapping[str, str] | Callable[..., tuple[str, int]] | None = Field(
        None,
        description="addresses at which this process reaches nodes that announce other ones, as behind a NAT: a "
        "function, a mapping, or text such as 10.0.0.1:6379=127.0.0.1:7001,10.0.0.2=gateway",
    )
    redis_enabled: bool = Field(True, description="False: use the memory of this process only")
    prefix: str = Field("magnus", description="prefix of every Redis key")
    default_ttl: _Seconds = Field(300.0, description="TTL in seconds, if neither the call nor the namespace has one")
    op_timeout: _Seconds = Field(0.5, description="timeout per Redis operation and per connection attempt, seconds")
    max_staleness: _Seconds = Field(1.0, description="how long a change made elsewhere can go unnoticed, seconds")
    tracking: Literal["keys", "prefix", "off"] = Field(
        "keys", description="changes that Redis announces: of keys read here, of all keys of the prefix, or none"
    )
    lease: _Seconds = Field(
        5.0, description="lease duration, seconds: how long a key stays locked after its loader's process died"
    )
    wait_timeout: _Seconds = Field(30.0, description="how long a caller waits for another caller's load, seconds")
    l1_max_entries: int = Field(10_000, ge=0)
    l1_max_bytes: int = Field(64 * 2**20, ge=0)
    l1_policy: Literal["car", "lru", "clock", "sieve", "s3fifo"] = Field(
        "car", description="which value leaves a full memory; see the documentation of eviction"
    )
    max_value_bytes: int = Field(16 * 2**20, ge=1)
    max_pending: int = Field(65_536, ge=1, description="how many requests may wait for Redis at a time, per event loop")
    stats_interval: _SecondsOrNone = Field(
        10.0, description="seconds between two reports of a process to the statistics of the fleet; 0 for none"
    )
    currency: str = Field("", max_length=16, description="that of `cost`, for display: a sign such as $, or a word")
    recorder_keys: int = Field(
        4_096, ge=0, description="of how many keys `explain` knows what happened to them lately; 0 for none"
    )
    recovery_path: RecoveryFile = Field(
        None, description="file that keeps the invalidations Redis missed, so that they outlive this process"
    )
    record: RecordFolder = Field(
        None, description="folder for recorded accesses, which `magnus-cache simulate` replays; values are not recorded"
    )
    record_share: float = Field(1.0, gt=0, le=1, description="share of the keys that are recorded")
    record_max_bytes: int = Field(
        256 * 2**20, ge=2**16, description="size of the recordings of one process; beyond it, the oldest part goes"
    )

    seal_keys: SealKeys = Field(None, description="keys of sealed values, as id:base64; the first seals, all open")

    _names: dict[str, str] = PrivateAttr(default_factory=dict)
    """For each setting that is set: the keyword or variable that set it."""

    def __init__(self, **values: Unpack[SettingsOptions]) -> None:
        fields = type(self).model_fields
        unknown = values.keys() - fields.keys()
        if unknown:
            raise CacheSettingsError("; ".join(_unknown(name, list(fields)) for name in sorted(unknown)))
        # Once for all: `os.environ` decodes what it is asked for, each time.
        environment, file = dict(os.environ), _dotenv()
        variables = {field: variable_of(field) for field in fields}
        _warn_of_unknown(environment, variables, "in the environment")
        _warn_of_unknown(file, variables, f"in {_DOTENV}")
        surroundings = _over(_layer(environment, variables), _layer(file, variables))
        given = _over(values, surroundings)
        injected = {} if given.get("redis_url") or given.get("redis_sentinels") else _injected(environment)
        names = dict.fromkeys(injected, "REDIS_PORT")
        names |= {field: field if field in values else variables[field] for field in given}
        given = injected | given
        try:
            # Not the one of `BaseSettings`, which makes five sources of settings to use one, the layers merged here.
            # It merges sources field by field, under one prefix. Here a layer says as a whole where Redis is: a URL in
            # the environment must not be joined with a host in `.env`. There are two prefixes, an empty variable counts
            # as not set, and an error names the variable that is wrong. Types, bounds and secrets are pydantic's.
            BaseModel.__init__(self, **given)
        except ValidationError as error:
            problem = _explained(error)
        else:
            self._names = names
            return
        # Raised here and not above: pydantic's error contains the input, and must not become the context.
        raise CacheSettingsError(problem)

    def changed(self, overrides: Mapping[str, Any]) -> "CacheSettings":
        """Return a copy with some settings replaced.

        :raises CacheSettingsError: for a wrong or unknown setting, naming it.
        """
        changed = type(self)(**_over(overrides, self.model_dump(exclude_unset=True)))
        kept = {field: name for field, name in self._names.items() if field not in overrides}
        changed._names = changed._names | {field: name for field, name in kept.items() if field in changed._names}
        return changed

    @field_validator("redis_url", *_SECRETS, "redis_sentinel_service", "address_remap", mode="before")
    @classmethod
    def _absent(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator(*_NUMBERS, mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        # A bool of NumPy is not a `bool`, and pydantic takes it for a number.
        if isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b":
            raise ValueError(f"{value!r} is a bool, not a number")  # the kind that pydantic reports
        found = whole(value)
        return value if found is None else found

    @field_validator("tracking", mode="before")
    @classmethod
    def _tracking(cls, value: Any) -> Any:
        if value is False or (isinstance(value, str) and value.lower() in {"false", "no", "0"}):
            # YAML reads off, without quotes, as false.
            raise ValueError("it is 'keys', 'prefix' or 'off'; in YAML, write 'off' in quotes")
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("redis_host")
    @classmethod
    def _usable_host(cls, value: str) -> str:
        host = value.strip()
        if "://" in host:
            raise ValueError("it is a URL; set redis_url (REDIS_URL) instead")
        if not host or any(character.isspace() or character in "\"'/@" for character in host):
            raise ValueError("a host is a name or an address, without quotes, white space or slashes")
        if host.count(":") == 1:
            raise ValueError("a host has no port; set redis_port (REDIS_PORT)")
        return host_of(host)

    @field_validator("prefix")
    @classmethod
    def _usable_prefix(cls, value: str) -> str:
        try:
            return check_name(value, "prefix", also="!")
        except CacheArgumentError as error:
            raise ValueError(error.problem) from None

    @field_validator("redis_url")
    @classmethod
    def _readable_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            url = value.get_secret_value()
            (parse_deployment_url if is_deployment_url(url) else parse_url)(url)
        return value

    @field_validator("redis_sentinels")
    @classmethod
    def _usable_sentinels(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if not value:
            return None
        addresses(value, _SENTINEL_PORT)
        return value

    @field_validator("address_remap")
    @classmethod
    def _usable_remap(cls, value: Any) -> Any:
        remap_of(value)
        return value

    @model_validator(mode="after")
    def _one_deployment(self) -> Self:
        if self.redis_enabled and (
            problem := deployment_problem(self.deployment(), self.model_dump(exclude_unset=True))
        ):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _whole_pair(self) -> Self:
        if (self.redis_ssl_keyfile is None) is not (self.redis_ssl_certfile is None):
            raise ValueError(
                "set both redis_ssl_certfile and redis_ssl_keyfile (REDIS_SSL_CERTFILE, REDIS_SSL_KEYFILE), or neither"
            )
        return self

    @model_validator(mode="after")
    def _usable_files(self) -> Self:
        if self.redis_enabled and (tls := self.endpoint().tls):
            for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
                if tls.get(name):
                    check_file(f"redis_{name} ({variable_of(f'redis_{name}')})", tls[name])
            check_certificates(tls)
        return self

    def sealed_by(self) -> list[tuple[str, bytes]]:
        """Return id and bytes of each key that opens sealed values; the first seals."""
        return [] if self.seal_keys is None else parsed_seal_keys(self.seal_keys.get_secret_value())

    def endpoint(self) -> Endpoint:
        """Return the address of Redis: that of `redis_url`, or else that of the single settings.

        Of a cluster it is the first known node. With Sentinel it has only what all servers have in common.
        """
        return self.deployment().endpoint

    def deployment(self) -> Deployment:
        """Return where Redis is, and how its servers are found."""
        files = {
            "ssl_ca_certs": self.redis_ssl_ca_certs, "ssl_certfile": self.redis_ssl_certfile,
            "ssl_keyfile": self.redis_ssl_keyfile, "ssl_check_hostname": self.redis_ssl_check_hostname,
        }  # fmt: skip
        parts: dict[str, Any] = {
            "scheme": "tls" if self.redis_ssl else "tcp", "host": self.redis_host, "port": self.redis_port,
            "db": self.redis_db, "tls": {},
        }  # fmt: skip
        if self.redis_url is not None:
            url = self.redis_url.get_secret_value()
            parts = parse_deployment_url(url) if is_deployment_url(url) else parse_url(url)
        if parts["scheme"] == "tls":
            parts["tls"] = {name: value for name, value in files.items() if value is not None} | parts["tls"]
        known: dict[str, Any] = {"username": self.redis_username, "password": self.redis_password}
        found = {name: parts.pop(name) for name in ("kind", "seeds", "service") if name in parts}
        if self.redis_sentinels:
            found |= {"kind": "sentinel", "seeds": addresses(self.redis_sentinels, _SENTINEL_PORT)}
        if self.redis_sentinel_service:
            found["service"] = self.redis_sentinel_service
        if self.redis_cluster:
            found.setdefault("kind", "cluster")
        if "kind" in found and "seeds" in found:
            parts["host"], parts["port"] = found["seeds"][0]
        endpoint = Endpoint(**(known | parts), names=self._names)
        if found.get("kind") == "cluster":
            found.setdefault("seeds", ((endpoint.host, endpoint.port),))
        return Deployment(
            endpoint=endpoint, **found, sentinel_username=self.redis_sentinel_username,
            sentinel_password=self.redis_sentinel_password, remap=remap_of(self.address_remap),
        )  # fmt: skip


def _unknown(name: str, known: list[str]) -> str:
    near = [f"redis_{name}"] if f"redis_{name}" in known else difflib.get_close_matches(name, known, n=1)
    return f"{name}: there is no such setting{f'; did you mean {near[0]}?' if near else ''}"


def _explained(error: ValidationError) -> str:
    problems: list[str] = []
    # An error of a model validator has no location; its message names the setting.
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        message = problem["msg"].removeprefix("Value error, ").removeprefix("value: ")
        place = problem["loc"]
        problems.append(f"{place[0]} ({variable_of(str(place[0]))}): {message}" if place else message)
    return "; ".join(problems)


def _without_constraints(parameter: inspect.Parameter) -> inspect.Parameter:
    annotation = parameter.annotation
    return parameter.replace(annotation=annotation.__origin__) if hasattr(annotation, "__metadata__") else parameter


# `help()` shows types and defaults, not how each is checked.
_shown = inspect.signature(CacheSettings)
CacheSettings.__signature__ = _shown.replace(parameters=list(map(_without_constraints, _shown.parameters.values())))
