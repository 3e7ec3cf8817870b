"""The settings as keywords, for editors and type checkers; `CacheSettings` has their meaning and defaults."""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Literal, TypedDict

from magnus_cache._engine.runtime.durations import Duration

if TYPE_CHECKING:
    # pydantic takes longer to import than the rest of this package.
    from pydantic import SecretStr

__all__ = ["SettingsOptions"]


class SettingsOptions(TypedDict, total=False):
    """Every setting as a keyword of the managers and of `CacheSettings`. Durations are seconds or text, sizes bytes."""

    redis_url: "str | SecretStr | None"
    redis_host: str
    redis_port: int
    redis_username: str | None
    redis_password: "str | SecretStr | None"
    redis_db: int
    redis_ssl: bool
    redis_ssl_ca_certs: str | None
    redis_ssl_certfile: str | None
    redis_ssl_keyfile: str | None
    redis_ssl_check_hostname: bool
    redis_cluster: bool
    redis_sentinels: "str | tuple[str, ...] | list[str] | None"
    redis_sentinel_service: str | None
    redis_sentinel_username: str | None
    redis_sentinel_password: "str | SecretStr | None"
    address_remap: "str | Mapping[str, str] | Callable[[tuple[str, int]], tuple[str, int]] | None"
    redis_enabled: bool
    prefix: str
    default_ttl: Duration
    op_timeout: Duration
    max_staleness: Duration
    tracking: Literal["keys", "prefix", "off"]
    lease: Duration
    wait_timeout: Duration
    l1_max_entries: int
    l1_max_bytes: int
    l1_policy: Literal["car", "lru", "clock", "sieve", "s3fifo"]
    max_value_bytes: int
    max_pending: int
    stats_interval: Duration
    currency: str
    recorder_keys: int
    seal_keys: "str | SecretStr | None"
    recovery_path: str | PathLike[str] | None
    record: str | PathLike[str] | None
    record_share: float
    record_max_bytes: int
