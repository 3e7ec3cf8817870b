"""The settings of a cache, from keywords, the environment and a `.env` file, in this order of precedence.

The connection's settings have the guide's names (``REDIS_HOST`` and so on); all others begin with ``MAGNUS_CACHE_``.
What is wrong is told with the keyword and the variable, and never with a secret.
"""

import difflib
import inspect
import os
import re
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self, Unpack

from dotenv import dotenv_values
from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from magnus_cache._engine.keys.names import check_name
from magnus_cache._engine.redis.endpoint import Endpoint, parse_url
from magnus_cache._engine.runtime.durations import seconds
from magnus_cache._engine.runtime.log import say
from magnus_cache._engine.runtime.numbers import whole
from magnus_cache._engine.settings.keywords import SettingsOptions
from magnus_cache.errors import CacheArgumentError, CacheSettingsError

__all__ = ["CacheSettings"]

_DOTENV = ".env"

_PLACE: Final = frozenset({"redis_host", "redis_port", "redis_db", "redis_ssl"})
_NUMBERS: Final = ("redis_port", "redis_db", "l1_max_entries", "l1_max_bytes", "max_value_bytes", "max_pending")
_LOGIN: Final = frozenset({"redis_username", "redis_password"})
_ADDRESS: Final = re.compile(r"tcp://(?P<host>[^/@\s]+):(?P<port>\d+)")
_OURS: Final = "MAGNUS_CACHE_"
_told: Final[set[str]] = set()
"""Unknown variables that were told already: each manager reads the environment anew."""


def _seconds(value: Any) -> float:
    # The environment has text only, in which a plain number means seconds too.
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            pass
    return seconds(value, "value")


_Seconds = Annotated[float, BeforeValidator(_seconds)]


def _variable(field: str) -> str:
    """Return the environment variable of a setting."""
    plain = field.startswith("redis_") and field != "redis_enabled"
    return field.upper() if plain else f"MAGNUS_CACHE_{field.upper()}"


def _layer(found: Mapping[str, str | None], fields: Iterable[str]) -> dict[str, Any]:
    """Return the settings among some variables; one that is empty, as the guide's ``REDIS_PASSWORD=``, is not set."""
    # A file with a secret ends in a new line, which is no part of it; blanks may be.
    values = {field: (found.get(_variable(field)) or "").strip("\r\n" if field in _LOGIN else None) for field in fields}
    layer: dict[str, Any] = {field: value for field, value in values.items() if value}
    if _ADDRESS.fullmatch(layer.get("redis_port", "")):
        # No port that anybody has set; see `_injected`.
        del layer["redis_port"]
    return layer


def _injected(found: Mapping[str, str | None]) -> dict[str, Any]:
    """Return where Redis is by the address that Kubernetes sets in every pod beside a service named ``redis``.

    It is below all that somebody has written down: a host, a port, or a URL, wherever that stands.
    """
    ref = _ADDRESS.fullmatch((found.get("REDIS_PORT") or "").strip())
    return {} if ref is None else {"redis_host": ref["host"].strip("[]"), "redis_port": ref["port"]}


def _warn_of_unknown(found: Iterable[str], fields: Iterable[str], where: str) -> None:
    """Say once which of our own variables have no meaning: a misspelt one would be ignored in silence."""
    known = [_variable(field) for field in fields]
    for name in sorted(found):
        if name.startswith(_OURS) and name not in known and name not in _told:
            _told.add(name)
            bare = name.removeprefix(_OURS)
            near = [bare] if bare in known else difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            say(f"{name} ({where}) is no setting and is ignored; {hint}")


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
    """Return one layer of settings over another.

    Where Redis is, is said by one of them as a whole: a URL does not go with the other's host, nor with the password
    meant for that; a host does not go with the other's URL.
    """
    below = dict(lower)
    if upper.get("redis_url"):
        below = {name: value for name, value in below.items() if name not in {*_PLACE, *_LOGIN}}
    elif _PLACE & upper.keys():
        below.pop("redis_url", None)
    return below | dict(upper)


class CacheSettings(BaseSettings):
    """All there is to set. Durations are seconds, or text such as ``"500ms"``; sizes are bytes.

    :raises CacheSettingsError: for a wrong or unknown setting, naming it and its environment variable.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    redis_url: SecretStr | None = Field(
        None, description="redis://, valkey://, rediss:// (TLS), valkeys:// or unix://; instead of the next five"
    )
    redis_host: str = Field("localhost", min_length=1)
    redis_port: int = Field(6379, ge=1, le=65_535)
    redis_username: str | None = None
    redis_password: SecretStr | None = None
    redis_db: int = Field(0, ge=0)
    redis_ssl: bool = False
    redis_ssl_ca_certs: str | None = Field(
        None, description="file of the authority that signed the server's certificate"
    )
    redis_ssl_certfile: str | None = Field(None, description="file of this client's certificate")
    redis_ssl_keyfile: str | None = Field(None, description="file of this client's key")
    redis_ssl_check_hostname: bool = True
    redis_enabled: bool = Field(True, description="False: this process's memory only")
    prefix: str = Field("magnus", description="what all names in Redis begin with")
    default_ttl: _Seconds = Field(300.0, description="time to live where neither call nor namespace gives one")
    op_timeout: _Seconds = Field(0.5, description="the longest that Redis may take to answer, or to be connected to")
    max_staleness: _Seconds = Field(1.0, description="the longest that a change made elsewhere may go unnoticed")
    lease: _Seconds = Field(5.0, description="the longest that a load's key stays locked after its process died")
    wait_timeout: _Seconds = Field(30.0, description="the longest that a caller waits for somebody else's load")
    l1_max_entries: int = Field(10_000, ge=0)
    l1_max_bytes: int = Field(64 * 2**20, ge=0)
    max_value_bytes: int = Field(16 * 2**20, ge=1)
    max_pending: int = Field(65_536, ge=1, description="requests that may wait for Redis at a time, per event loop")
    recovery_path: Path | None = Field(
        None, description="file that keeps what Redis could not be told, so that it outlives this process"
    )

    _names: dict[str, str] = PrivateAttr(default_factory=dict)
    """What the caller or the environment has set, by the name it was given under."""

    def __init__(self, **values: Unpack[SettingsOptions]) -> None:
        fields = type(self).model_fields
        unknown = values.keys() - fields.keys()
        if unknown:
            raise CacheSettingsError("; ".join(_unknown(name, list(fields)) for name in sorted(unknown)))
        file = _dotenv()
        _warn_of_unknown(os.environ, fields, "in the environment")
        _warn_of_unknown(file, fields, f"in {_DOTENV}")
        surroundings = _over(_layer(os.environ, fields), _layer(file, fields))
        given = _over(values, surroundings)
        injected = {} if given.get("redis_url") else _injected(os.environ)
        names = dict.fromkeys(injected, "REDIS_PORT")
        names |= {field: field if field in values else _variable(field) for field in given}
        given = injected | given
        try:
            super().__init__(**given)
        except ValidationError as error:
            problem = _explained(error)
        else:
            self._names = names
            return
        # Raised here and not above: pydantic's own error holds the input, and must not come along as the context.
        raise CacheSettingsError(problem)

    def changed(self, overrides: Mapping[str, Any]) -> "CacheSettings":
        """Return these settings with some of them replaced.

        :raises CacheSettingsError: for a wrong or unknown setting, naming it.
        """
        changed = type(self)(**_over(overrides, self.model_dump(exclude_unset=True)))
        kept = {field: name for field, name in self._names.items() if field not in overrides}
        changed._names = changed._names | {field: name for field, name in kept.items() if field in changed._names}
        return changed

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return one source, the layers that `__init__` has merged.

        pydantic-settings merges its sources field by field, under one prefix. Here a layer says as a whole where Redis
        is: a URL in the environment must not be joined with a host in `.env`. There are two prefixes, an empty
        variable counts as not set, and an error names the variable that is wrong. Types, bounds and secrets are
        pydantic's.
        """
        return (init_settings,)

    @field_validator("redis_url", "redis_password", "redis_username", "recovery_path", mode="before")
    @classmethod
    def _absent(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator(*_NUMBERS, mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        # One of NumPy's is no `bool`, and pydantic takes it for a number.
        if isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b":
            raise ValueError(f"{value!r} is a bool, not a number")  # the kind that pydantic reports
        found = whole(value)
        return value if found is None else found

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
        return host

    @field_validator("prefix")
    @classmethod
    def _usable_prefix(cls, value: str) -> str:
        try:
            return check_name(value, "prefix", also="!")
        except CacheArgumentError as error:
            raise ValueError(error.problem) from None

    @field_validator("recovery_path")
    @classmethod
    def _usable_path(cls, value: Path | None) -> Path | None:
        # Told at the start, where somebody looks: in an outage, all that is left is a line in the log.
        if value is None:
            return None
        if value.name == ":memory:":
            raise ValueError("what is in memory does not outlive the process; name a file")
        path = value.expanduser().absolute()
        if path.is_dir():
            raise ValueError("it is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise ValueError("it is there, and no ordinary file; name another")
        if not path.parent.is_dir():
            raise ValueError("its folder does not exist; make it, for files that only this user may read")
        if not os.access(path.parent, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.R_OK | os.W_OK)):
            raise ValueError("this user may not write there; the file and its folder must be writable")
        return path

    @field_validator("redis_url")
    @classmethod
    def _readable_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_url(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _whole_pair(self) -> Self:
        if (self.redis_ssl_keyfile is None) is not (self.redis_ssl_certfile is None):
            raise ValueError(
                "redis_ssl_certfile and redis_ssl_keyfile (REDIS_SSL_CERTFILE, REDIS_SSL_KEYFILE) go together"
            )
        return self

    @model_validator(mode="after")
    def _usable_files(self) -> Self:
        if self.redis_enabled and (tls := self.endpoint().tls):
            for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
                if tls.get(name):
                    _check_file(f"redis_{name} ({_variable(f'redis_{name}')})", tls[name])
            _check_certificates(tls)
        return self

    def endpoint(self) -> Endpoint:
        """Return where Redis is: what `redis_url` says, else what the single settings say."""
        files = {
            "ssl_ca_certs": self.redis_ssl_ca_certs, "ssl_certfile": self.redis_ssl_certfile,
            "ssl_keyfile": self.redis_ssl_keyfile, "ssl_check_hostname": self.redis_ssl_check_hostname,
        }  # fmt: skip
        tls = {name: value for name, value in files.items() if value is not None}
        if self.redis_url is None:
            return Endpoint(
                scheme="tls" if self.redis_ssl else "tcp", host=self.redis_host, port=self.redis_port, db=self.redis_db,
                username=self.redis_username, password=self.redis_password, tls=tls if self.redis_ssl else {},
                names=self._names,
            )  # fmt: skip
        parts = parse_url(self.redis_url.get_secret_value())
        if parts["scheme"] == "tls":
            parts["tls"] = {**tls, **parts["tls"]}
        known: dict[str, Any] = {"username": self.redis_username, "password": self.redis_password}
        return Endpoint(**(known | parts), names=self._names)


def _check_file(name: str, path: str) -> None:
    """:raises ValueError: naming the setting, if its file cannot be read."""
    try:
        with open(path, "rb"):
            return
    except OSError as error:
        problem = "there is no such file" if isinstance(error, FileNotFoundError) else f"{error.strerror}"
    raise ValueError(f"{name}: {path}: {problem}")


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")


def _check_certificates(tls: Mapping[str, Any]) -> None:
    """Load the files as a connection would: what is wrong with them is told now, not in an outage.

    :raises ValueError: naming the setting.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    what = "redis_ssl_ca_certs (REDIS_SSL_CA_CERTS)"
    try:
        if tls.get("ssl_ca_certs"):
            context.load_verify_locations(cafile=tls["ssl_ca_certs"])
        if tls.get("ssl_certfile"):
            what = "redis_ssl_certfile and redis_ssl_keyfile (REDIS_SSL_CERTFILE, REDIS_SSL_KEYFILE)"
            # Without a function, OpenSSL would ask for a passphrase on the terminal.
            context.load_cert_chain(tls["ssl_certfile"], tls.get("ssl_keyfile"), password=_no_passphrase)
    except ssl.SSLError:
        problem = "not a certificate (and key that belongs to it) in PEM form"
    except ValueError as error:
        problem = f"{error}; decrypt it for the cache"
    else:
        return
    raise ValueError(f"{what}: {problem}")


def _unknown(name: str, known: list[str]) -> str:
    near = [f"redis_{name}"] if f"redis_{name}" in known else difflib.get_close_matches(name, known, n=1)
    return f"{name}: there is no such setting{f'; did you mean {near[0]}?' if near else ''}"


def _explained(error: ValidationError) -> str:
    problems: list[str] = []
    # What a model validator raises has no place of its own; it names its setting itself.
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        message = problem["msg"].removeprefix("Value error, ").removeprefix("value: ")
        place = problem["loc"]
        problems.append(f"{place[0]} ({_variable(str(place[0]))}): {message}" if place else message)
    return "; ".join(problems)


def _without_constraints(parameter: inspect.Parameter) -> inspect.Parameter:
    annotation = parameter.annotation
    return parameter.replace(annotation=annotation.__origin__) if hasattr(annotation, "__metadata__") else parameter


# `help()` is to show types and defaults, not how each is checked.
_shown = inspect.signature(CacheSettings)
CacheSettings.__signature__ = _shown.replace(parameters=list(map(_without_constraints, _shown.parameters.values())))
