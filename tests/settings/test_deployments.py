"""Settings of a cluster and of Sentinel: where they come from, and which combinations make no sense."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from magnus_cache._engine.redis.deployment import Deployment, addresses, parse_deployment_url, remap_of
from magnus_cache._engine.redis.endpoint import EndpointError
from magnus_cache._engine.settings.settings import CacheSettings
from magnus_cache.errors import CacheSettingsError

SECRET = "s3cr3t"


def deployment(**options: Any) -> Deployment:
    return CacheSettings(**options).deployment()


# -- where they come from ---------------------------------------------------------------------------------------------


def test_a_single_server_is_as_it_was() -> None:
    assert deployment() == Deployment()
    assert deployment(redis_url="redis://h:7/3").display == "redis://h:7/3"
    assert deployment(redis_host="h", redis_port=7).endpoint == CacheSettings(redis_host="h", redis_port=7).endpoint()


@pytest.mark.parametrize(
    ("url", "display"),
    [
        ("redis+cluster://h", "redis+cluster://h:6379"),
        ("redis+cluster://a:7001,b:7002,[::1]:7003", "redis+cluster://a:7001,b:7002,[::1]:7003"),
        ("redis+cluster://a:7001,a:7001/", "redis+cluster://a:7001"),
        ("valkey+cluster://a/0", "redis+cluster://a:6379"),
        ("rediss+cluster://a?db=0&ssl_cert_reqs=none", "rediss+cluster://a:6379"),
        ("valkeys+cluster://me:p%2Cw@a,b", "rediss+cluster://a:6379,b:6379"),
        ("redis+sentinel://a,b:7/mymaster", "redis+sentinel://a:26379,b:7/mymaster/0"),
        ("rediss+sentinel://me:pw@[fd00::1]/my%20master/3", "rediss+sentinel://[fd00::1]:26379/my master/3"),
        ("REDIS+SENTINEL://a/m?db=2", "redis+sentinel://a:26379/m/2"),
    ],
)
def test_urls(url: str, display: str) -> None:
    assert deployment(redis_url=url).display == display


def test_what_a_url_says_of_the_servers() -> None:
    found = deployment(redis_url="rediss+cluster://me:p%2Cw%40@a:1,b:2?ssl_check_hostname=false&ssl_ca_certs=")
    assert (found.kind, found.seeds) == ("cluster", (("a", 1), ("b", 2)))
    assert found.endpoint.username == "me"
    assert found.endpoint.password is not None
    assert found.endpoint.password.get_secret_value() == "p,w@"
    node = found.at("10.0.0.9", 7009)
    assert (node.display, node.username, node.tls) == ("rediss://10.0.0.9:7009/0", "me", found.endpoint.tls)
    assert node.tls["ssl_check_hostname"] is False


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_HOST", "node")
    monkeypatch.setenv("REDIS_PORT", "7001")
    monkeypatch.setenv("REDIS_CLUSTER", "true")
    monkeypatch.setenv("MAGNUS_CACHE_ADDRESS_REMAP", "10.0.0.1:6379=here:7001")
    found = deployment()
    assert found.display == "redis+cluster://node:7001"
    assert found.remap is not None
    assert found.remap(("10.0.0.1", 6379)) == ("here", 7001)


def test_variables_of_sentinel(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "REDIS_SENTINELS": "a:1, b ,[::1]:3", "REDIS_SENTINEL_SERVICE": "mymaster", "REDIS_DB": "2",
        "REDIS_SENTINEL_USERNAME": "watch", "REDIS_SENTINEL_PASSWORD": f"{SECRET}\n", "REDIS_PASSWORD": "of-servers",
        "REDIS_PORT": "tcp://10.96.0.12:6380",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    found = deployment()
    assert found.display == "redis+sentinel://a:1,b:26379,[::1]:3/mymaster/2"
    assert found.sentinel_username == "watch"
    assert found.sentinel_password is not None
    assert found.sentinel_password.get_secret_value() == SECRET
    assert found.at("p", 6379).display == "redis://p:6379/2"
    assert SECRET not in f"{found!r} {found} {CacheSettings()!r}"


def test_keywords() -> None:
    found = deployment(redis_sentinels=["a:1", "b"], redis_sentinel_service="m", address_remap={"a": "b"})
    assert found.seeds == (("a", 1), ("b", 26379))
    assert deployment(redis_url="redis://h:7", redis_cluster=True).seeds == (("h", 7),)
    assert deployment(redis_sentinels=("a",), redis_sentinel_service="m").seeds == (("a", 26379),)


def test_an_address_comes_from_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_SENTINELS", "a")
    monkeypatch.setenv("REDIS_SENTINEL_SERVICE", "m")
    monkeypatch.setenv("REDIS_SENTINEL_PASSWORD", "of-another")
    assert deployment(redis_url="redis://h").kind == "standalone"
    assert deployment(redis_host="h").display == "redis://h:6379/0"
    monkeypatch.delenv("REDIS_SENTINELS")
    monkeypatch.delenv("REDIS_SENTINEL_SERVICE")
    monkeypatch.delenv("REDIS_SENTINEL_PASSWORD")
    monkeypatch.setenv("REDIS_CLUSTER", "true")
    monkeypatch.setenv("REDIS_HOST", "h")
    assert deployment().kind == "cluster"
    assert deployment(redis_url="redis://other").kind == "standalone"
    found = deployment(redis_sentinels="a", redis_sentinel_service="m")
    assert found.display == "redis+sentinel://a:26379/m/0"
    # As with REDIS_SSL: what kind of server it is stays, its address changes.
    assert deployment(redis_host="other").display == "redis+cluster://other:6379"


def test_settings_may_be_changed_and_stay_themselves() -> None:
    settings = CacheSettings(redis_sentinels=["a", "b"], redis_sentinel_service="m", address_remap={"a": "b:1"})
    changed = settings.changed({"prefix": "desk"})
    assert (changed.prefix, changed.deployment().seeds) == ("desk", settings.deployment().seeds)
    assert changed.changed({"redis_url": "redis+cluster://c"}).deployment().display == "redis+cluster://c:6379"


# -- combinations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"redis_cluster": True, "redis_db": 1}, r"database 0 only; remove redis_db \(REDIS_DB\)"),
        ({"redis_url": "redis+cluster://h/1"}, r"database 0 only; remove the number .* redis_url \(REDIS_URL\)"),
        ({"redis_url": "redis://h/1", "redis_cluster": True}, "database 0 only; remove the number"),
        ({"redis_url": "redis+cluster://h", "redis_cluster": False}, "use a redis:// URL"),
        ({"redis_url": "unix:///x", "redis_cluster": True}, "not reached through a UNIX socket"),
        (
            {"redis_cluster": True, "redis_sentinels": "a", "redis_sentinel_service": "m"},
            r"^redis_cluster \(REDIS_CLUSTER\) .* redis_sentinels \(REDIS_SENTINELS\) exclude each other.*remove one",
        ),
        ({"redis_cluster": True, "redis_url": "redis+sentinel://a/m"}, r"redis_url \(REDIS_URL\) exclude each other"),
        ({"redis_sentinels": "a"}, r"needs redis_sentinel_service \(REDIS_SENTINEL_SERVICE\)"),
        ({"redis_sentinel_service": "m"}, r"redis_sentinel_service .* needs redis_sentinels \(REDIS_SENTINELS\)"),
        ({"redis_sentinel_password": "x"}, r"redis_sentinel_password .* needs redis_sentinels"),
        ({"redis_sentinel_username": "x", "redis_cluster": True}, r"redis_sentinel_username .* needs redis_sentinels"),
        (
            {"redis_sentinels": "a", "redis_sentinel_service": "m", "redis_host": "h"},
            r"redis_host \(REDIS_HOST\) has no meaning with Sentinel, which names the primary; remove it",
        ),
        ({"redis_sentinels": "a", "redis_sentinel_service": "m", "redis_port": 1}, "redis_port .* remove it"),
        ({"redis_sentinels": "a", "redis_url": "redis://h"}, "both say where Redis is; remove one"),
        ({"redis_url": "redis+sentinel://a/m", "redis_sentinel_service": "m"}, "the URL has the service already"),
        ({"address_remap": {"a": "b"}}, r"address_remap \(MAGNUS_CACHE_ADDRESS_REMAP\) is for the nodes of a cluster"),
        ({"redis_sentinels": "a:x", "redis_sentinel_service": "m"}, r"^redis_sentinels \(REDIS_SENTINELS\): a port"),
        ({"redis_cluster": True, "address_remap": "a"}, r"^address_remap .*: it is a list such as"),
        ({"redis_url": "redis+cluster://a,b..c"}, r"^redis_url \(REDIS_URL\): the host is not a name"),
        ({"redis_url": "redis+cluster://"}, r"^redis_url \(REDIS_URL\): there is no address"),
        ({"redis_url": "redis+sentinel://a"}, r"^redis_url \(REDIS_URL\): it must end with the service"),
        ({"redis_url": "redis://a:1,b:2"}, r"^redis_url \(REDIS_URL\): .*port"),
    ],
)
def test_what_makes_no_sense_is_told_with_the_remedy(options: dict[str, Any], pattern: str) -> None:
    with pytest.raises(CacheSettingsError, match=pattern) as caught:
        CacheSettings(**options)
    assert "\n" not in str(caught.value)


def test_nothing_is_checked_that_is_not_used() -> None:
    assert not CacheSettings(redis_enabled=False, redis_cluster=True, redis_db=3).redis_enabled


@pytest.mark.parametrize(
    "url",
    [
        f"redis+cluster://:{SECRET}@", f"redis+cluster://:{SECRET}@h:99999", f"redis+cluster://:{SECRET}@h/x",
        f"redis+cluster://:{SECRET}/x@h", f"redis+cluster://:{SECRET}#x@h", f"redis+sentinel://:{SECRET}@h",
        f"redis+cluster://h?password={SECRET}", f"redis+sentinel://:{SECRET}@h/m/0?db=1",
    ],
)  # fmt: skip
def test_no_secret_is_in_an_error(url: str) -> None:
    with pytest.raises(CacheSettingsError) as caught:
        CacheSettings(redis_url=SecretStr(url))
    assert SECRET not in f"{caught.value} {caught.value!r}"


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["h:", "h:0", "h:x", "h:70000", ":7", "[::1", "[::1]7", "[]:7", "a b", "a/b", "a@b", "", ",", "h:1:2]", "h:-1"],
)
def test_a_bad_address_is_refused(text: str) -> None:
    with pytest.raises(EndpointError):
        addresses(text, 6379)


def test_an_ipv6_address_without_brackets_has_no_port() -> None:
    assert addresses("::1,fd00::2", 7) == (("::1", 7), ("fd00::2", 7))


_HOSTS = st.one_of(
    st.from_regex(r"[a-z][a-z0-9-]{0,9}(\.[a-z0-9-]{1,9})*\.?", fullmatch=True),
    st.from_regex(r"[0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}", fullmatch=True),
)


@given(st.lists(st.tuples(_HOSTS, st.integers(1, 65_535)), min_size=1, max_size=5))
def test_addresses_come_back(found: list[tuple[str, int]]) -> None:
    text = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in found)
    assert addresses(text, 1) == tuple(dict.fromkeys(found))
    assert parse_deployment_url(f"redis+cluster://{text}")["seeds"] == tuple(dict.fromkeys(found))
    assert deployment(redis_url=deployment(redis_url=f"redis+cluster://{text}").display).seeds == addresses(text, 1)


def test_a_remap() -> None:
    for value in ("10.0.0.1:6379=here:7001,10.0.0.2=there,::1=v6:9", {
        "10.0.0.1:6379": "here:7001", "10.0.0.2": "there", "::1": "v6:9",
    }):  # fmt: skip
        remap = remap_of(value)
        assert remap is not None
        assert remap(("10.0.0.1", 6379)) == ("here", 7001)
        assert remap(("10.0.0.1", 6380)) == ("10.0.0.1", 6380)
        assert remap(("10.0.0.2", 5)) == ("there", 5)
        assert remap(("::1", 5)) == ("v6", 9)
    assert remap_of(None) is None

    def own(address: tuple[str, int]) -> tuple[str, int]:
        return address

    assert remap_of(own) is own
