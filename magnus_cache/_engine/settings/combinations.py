"""Settings that are right each for itself, and make no sense together."""

from collections.abc import Mapping
from typing import Any, Final

from magnus_cache._engine.redis.deployment import Deployment
from magnus_cache._engine.redis.endpoint import variable_of

__all__ = ["deployment_problem"]

_SENTINEL_LOGIN: Final = ("redis_sentinel_username", "redis_sentinel_password")
_HOST: Final = ("redis_host", "redis_port")


def deployment_problem(deployment: Deployment, given: Mapping[str, Any]) -> str | None:
    """Return what is wrong with settings that say where Redis is, and the remedy; None if nothing is.

    :param deployment: what was made of them.
    :param given: all settings that are set, by field.
    """
    given = {name: value for name, value in given.items() if value is not None and value != ""}
    problem = _contradiction(deployment, given)
    if problem is None and deployment.kind == "cluster":
        problem = _cluster_problem(deployment, given)
    if problem is None and deployment.kind == "sentinel":
        problem = _sentinel_problem(deployment, given)
    if problem is None and deployment.kind == "standalone":
        problem = _standalone_problem(given)
    return problem


def _name(field: str) -> str:
    return f"{field} ({variable_of(field)})"


def _contradiction(deployment: Deployment, given: Mapping[str, Any]) -> str | None:
    cluster, url, sentinels = map(_name, ("redis_cluster", "redis_url", "redis_sentinels"))
    if deployment.kind == "sentinel" and given.get("redis_cluster"):
        other = sentinels if "redis_sentinels" in given else url
        return f"{cluster} and the sentinels of {other} exclude each other: a cluster needs no Sentinel; remove one"
    if "redis_sentinels" in given and "redis_url" in given:
        return f"{url} and {sentinels} both say where Redis is; remove one"
    if deployment.kind == "cluster" and given.get("redis_cluster") is False:
        return f"{url} is that of a cluster and {cluster} is false; use a redis:// URL for a single server"
    return None


def _cluster_problem(deployment: Deployment, given: Mapping[str, Any]) -> str | None:
    if deployment.endpoint.db:
        place = "the number at the end of redis_url (REDIS_URL)" if "redis_url" in given else _name("redis_db")
        return f"a Redis Cluster has database 0 only; remove {place}, and set a prefix of its own for each application"
    if deployment.endpoint.scheme == "unix":
        return "a cluster is not reached through a UNIX socket; use redis+cluster://host:port"
    return _needless_sentinel(given)


def _sentinel_problem(deployment: Deployment, given: Mapping[str, Any]) -> str | None:
    for field in _HOST:
        if field in given:
            return f"{_name(field)} has no meaning with Sentinel, which names the primary; remove it"
    if not deployment.service:
        service = _name("redis_sentinel_service")
        return f"{_name('redis_sentinels')} needs {service}: the primary's name in the sentinels' configuration"
    if "redis_url" in given and "redis_sentinel_service" in given:
        return f"the URL has the service already; remove {_name('redis_sentinel_service')}"
    return None


def _standalone_problem(given: Mapping[str, Any]) -> str | None:
    if "address_remap" in given:
        needs = f"{_name('redis_cluster')} or {_name('redis_sentinels')}"
        return f"{_name('address_remap')} is for the nodes of a cluster or of Sentinel; set {needs}, or remove it"
    return _needless_sentinel(given)


def _needless_sentinel(given: Mapping[str, Any]) -> str | None:
    for field in ("redis_sentinel_service", *_SENTINEL_LOGIN):
        if field in given:
            return f"{_name(field)} needs {_name('redis_sentinels')}; set both or neither"
    return None
