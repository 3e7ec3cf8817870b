"""Settings: where they come from, which one counts, and that no secret is ever shown."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from pydantic import SecretStr, ValidationError

from magnus_cache._engine.redis.endpoint import Endpoint, EndpointError, parse_url
from magnus_cache._engine.settings.keywords import SettingsOptions
from magnus_cache._engine.settings.settings import CacheSettings
from magnus_cache.errors import CacheSettingsError

GUIDE = "REDIS_HOST=localhost\nREDIS_PORT=6379\nREDIS_PASSWORD=  # Leave empty for local dev\n"


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no `.env` but the test's own."""
    for name in list(os.environ):
        if name.upper().startswith(("REDIS_", "MAGNUS_CACHE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def where(**options: Any) -> str:
    return CacheSettings(**options).endpoint().display


def password(**options: Any) -> str | None:
    secret = CacheSettings(**options).endpoint().password
    return secret.get_secret_value() if secret else None


def test_defaults() -> None:
    settings = CacheSettings()
    assert settings.endpoint() == Endpoint()
    assert (settings.prefix, settings.default_ttl, settings.op_timeout) == ("magnus", 300, 0.5)
    assert (settings.max_staleness, settings.wait_timeout) == (1, 30)
    assert (settings.l1_max_entries, settings.l1_max_bytes) == (10_000, 64 * 2**20)
    assert (settings.max_value_bytes, settings.max_pending) == (16 * 2**20, 65_536)


def test_the_guides_file() -> None:
    Path(".env").write_text(GUIDE + "OPENAI_API_KEY=other\nMAGNUS_UNRELATED=1\n")
    assert where() == "redis://localhost:6379/0"
    assert password() is None


def test_keyword_over_environment_over_file_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CacheSettings().redis_port == 6379
    Path(".env").write_text("REDIS_PORT=1001\nMAGNUS_CACHE_PREFIX=file\n")
    assert CacheSettings().redis_port == 1001
    monkeypatch.setenv("REDIS_PORT", "1002")
    assert CacheSettings().redis_port == 1002
    assert CacheSettings(redis_port=1003).redis_port == 1003
    assert CacheSettings().prefix == "file"


def test_a_url_and_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_HOST", "env-host")
    assert where(redis_url="redis://keyword:7/2") == "redis://keyword:7/2"
    monkeypatch.setenv("REDIS_URL", "redis://env-url:8/1")
    assert where() == "redis://env-url:8/1"
    assert where(redis_host="keyword") == "redis://keyword:6379/0"


def test_customary_and_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "REDIS_USERNAME": "me", "REDIS_PASSWORD": "hidden", "REDIS_DB": "3", "REDIS_SSL": "true",
        "MAGNUS_CACHE_OP_TIMEOUT": "250ms", "MAGNUS_CACHE_DEFAULT_TTL": "90", "MAGNUS_CACHE_REDIS_ENABLED": "no",
        "MAGNUS_CACHE_L1_MAX_ENTRIES": "5", "MAGNUS_CACHE_NO_SUCH": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    settings = CacheSettings()
    assert settings.endpoint().display == "rediss://localhost:6379/3"
    assert settings.endpoint().username == "me"
    assert password() == "hidden"
    assert (settings.op_timeout, settings.default_ttl, settings.redis_enabled, settings.l1_max_entries) == (
        0.25, 90, False, 5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"redis_port": "x"}, r"^redis_port \(REDIS_PORT\): "),
        ({"redis_port": 0}, r"^redis_port \(REDIS_PORT\): "),
        ({"redis_db": -1}, r"^redis_db \(REDIS_DB\): "),
        ({"redis_url": "http://h"}, r"^redis_url \(REDIS_URL\): "),
        ({"redis_url": "redis://a..b"}, r"^redis_url \(REDIS_URL\): the host is not a name"),
        ({"redis_host": "a" * 64}, r"^redis_host \(REDIS_HOST\): the host is not a name: between its dots"),
        ({"op_timeout": 0}, r"^op_timeout \(MAGNUS_CACHE_OP_TIMEOUT\): "),
        ({"op_timeout": "nan"}, r"^op_timeout \(MAGNUS_CACHE_OP_TIMEOUT\): "),
        ({"default_ttl": True}, r"^default_ttl \(MAGNUS_CACHE_DEFAULT_TTL\): "),
        ({"default_ttl": "soon"}, r"^default_ttl \(MAGNUS_CACHE_DEFAULT_TTL\): 'soon' is not a duration"),
        ({"prefix": "a:b"}, r"^prefix \(MAGNUS_CACHE_PREFIX\): "),
        ({"prefix": ""}, r"^prefix \(MAGNUS_CACHE_PREFIX\): "),
        ({"max_pending": 0}, r"^max_pending \(MAGNUS_CACHE_MAX_PENDING\): "),
        ({"redis_prot": 1}, r"^redis_prot: there is no such setting; did you mean redis_port\?"),
    ],
)
def test_a_wrong_setting_is_named(options: dict[str, Any], pattern: str) -> None:
    with pytest.raises(CacheSettingsError, match=pattern) as caught:
        CacheSettings(**options)
    assert isinstance(caught.value, ValueError)


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PORT", "many")
    with pytest.raises(CacheSettingsError, match=r"redis_port \(REDIS_PORT\)"):
        CacheSettings()


def test_a_file_of_another_encoding_is_told() -> None:
    Path(".env").write_bytes(b"REDIS_HOST=\xff\xfe\n")
    with pytest.raises(CacheSettingsError, match=r"\.env.*UTF-8"):
        CacheSettings()


def test_a_byte_order_mark_and_a_directory_of_that_name() -> None:
    Path(".env").write_bytes(b"\xef\xbb\xbfREDIS_HOST=marked\n")
    assert where() == "redis://marked:6379/0"
    Path(".env").unlink()
    Path(".env").mkdir()
    assert where() == "redis://localhost:6379/0"


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError):
        CacheSettings().prefix = "other"


SECRET = "s3cr3t"


def test_no_secret_is_shown() -> None:
    for settings in (
        CacheSettings(redis_url=SecretStr(f"redis://me:{SECRET}@h:1/2")),
        CacheSettings(redis_password=SecretStr(SECRET)),
    ):
        shown = f"{settings!r} {settings} {settings.endpoint()!r} {settings.endpoint()} {settings.endpoint().display}"
        assert SECRET not in shown
        assert password(**settings.model_dump(exclude_unset=True)) == SECRET


@pytest.mark.parametrize(
    "options",
    [
        {"redis_url": f"http://:{SECRET}@h"},
        {"redis_url": f"redis://:{SECRET}@h:99999"},
        {"redis_url": f"redis://:{SECRET}/x@h"},
        {"redis_url": f"redis://:{SECRET}#x@h"},
        {"redis_url": f"redis://:{SECRET}@h/x"},
        {"redis_url": f"redis://h?password={SECRET}"},
        {"redis_url": [SECRET]},
        {"redis_password": [SECRET]},
    ],
)
def test_no_secret_is_in_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(CacheSettingsError) as caught:
        CacheSettings(**options)
    assert SECRET not in f"{caught.value} {caught.value!r}"


# -- URLs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "display"),
    [
        ("redis://", "redis://localhost:6379/0"),
        ("redis://h", "redis://h:6379/0"),
        ("redis://h:7/3", "redis://h:7/3"),
        ("redis://h?db=3", "redis://h:6379/3"),
        ("redis://[::1]:7/1", "redis://[::1]:7/1"),
        ("rediss://h", "rediss://h:6379/0"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock?db=0"),
        ("unix://me:pw@/run/redis.sock?db=2", "unix:///run/redis.sock?db=2"),
    ],
)
def test_urls(url: str, display: str) -> None:
    assert where(redis_url=url) == display


def test_credentials_in_a_url_are_unescaped() -> None:
    parts = parse_url("redis://m%40e:p%2F%3A%23w@h")
    assert parts["username"] == "m@e"
    assert parts["password"].get_secret_value() == "p/:#w"
    assert "username" not in parse_url("redis://:pw@h")


def test_options_of_tls_in_a_url() -> None:
    tls = parse_url("rediss://h?ssl_cert_reqs=none&ssl_check_hostname=False&ssl_ca_certs=/ca.pem")["tls"]
    assert tls == {"ssl_cert_reqs": "none", "ssl_check_hostname": False, "ssl_ca_certs": "/ca.pem"}


@pytest.mark.parametrize(
    "url",
    [
        "", "h:6379", "http://h", "redis+x://h", "redis://h:0", "redis://h:x", "redis://h:70000", "redis://h/x",
        "redis://h/-1", "redis://h/1/2", "redis://h/1?db=1", "redis://h?nonsense=1", "redis://h?ssl_cert_reqs=none",
        "rediss://h?ssl_cert_reqs=maybe", "rediss://h?ssl_check_hostname=2", "unix://", "unix://host/path",
        "redis://[::1", "redis://h#x",
    ],
)  # fmt: skip
def test_a_bad_url_is_refused(url: str) -> None:
    with pytest.raises(EndpointError):
        parse_url(url)


def test_a_url_in_the_code_does_not_get_the_environments_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "of-another-server")
    assert CacheSettings(redis_url="redis://here:1/0").endpoint().password is None


def test_a_password_in_the_code_goes_with_the_environments_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://there:2/1")
    endpoint = CacheSettings(redis_password="secret").endpoint()
    assert (endpoint.host, endpoint.port, endpoint.db) == ("there", 2, 1)
    assert endpoint.password is not None


def test_the_environments_host_is_over_the_files_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("REDIS_URL=redis://file:3/0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDIS_HOST", "environment")
    assert CacheSettings().endpoint().host == "environment"


def test_empty_variables_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_PORT", "MAGNUS_CACHE_PREFIX", "REDIS_URL", "REDIS_PASSWORD", "MAGNUS_CACHE_OP_TIMEOUT"):
        monkeypatch.setenv(name, "")
    settings = CacheSettings()
    assert (settings.redis_port, settings.prefix, settings.op_timeout) == (6379, "magnus", 0.5)


def test_a_bool_is_no_number() -> None:
    with pytest.raises(CacheSettingsError, match=r"l1_max_entries \(MAGNUS_CACHE_L1_MAX_ENTRIES\).*bool"):
        CacheSettings(l1_max_entries=True)


def test_no_secret_comes_along_with_an_error() -> None:
    """Invariant 12: neither the message nor what a crash reporter would follow from it."""
    with pytest.raises(CacheSettingsError) as caught:
        CacheSettings(redis_url="redis://:top-secret@host:notaport/0")
    assert caught.value.__context__ is None
    assert "top-secret" not in repr(caught.value)


def test_settings_may_be_changed_for_one_manager() -> None:
    settings = CacheSettings(redis_host="one", redis_password="of-one", prefix="desk")
    changed = settings.changed({"redis_url": "redis://two:5/0"})
    assert (changed.prefix, changed.endpoint().host, changed.endpoint().password) == ("desk", "two", None)


# -- what surrounds a program ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "keywords", "expected"),
    [
        ({}, {}, "redis://10.96.0.12:6380/0"),
        ({"REDIS_HOST": "redis"}, {}, "redis://redis:6380/0"),
        ({}, {"redis_host": "here"}, "redis://here:6380/0"),
        ({"REDIS_URL": "redis://there:7/1"}, {}, "redis://there:7/1"),
        ({}, {"redis_url": "redis://there:7/1"}, "redis://there:7/1"),
        ({}, {"redis_port": 5}, "redis://10.96.0.12:5/0"),
    ],
)
def test_a_port_that_kubernetes_injects_is_an_address(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], keywords: dict[str, Any], expected: str
) -> None:
    monkeypatch.setenv("REDIS_PORT", "tcp://10.96.0.12:6380")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert where(**keywords) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("REDIS_URL=redis://from-file:7/1", "redis://from-file:7/1"),
        ("REDIS_HOST=from-file", "redis://from-file:6380/0"),
        ("REDIS_HOST=from-file\nREDIS_PORT=7", "redis://from-file:7/0"),
    ],
)
def test_a_port_that_kubernetes_injects_is_below_what_the_file_says(
    monkeypatch: pytest.MonkeyPatch, line: str, expected: str
) -> None:
    monkeypatch.setenv("REDIS_PORT", "tcp://10.96.0.12:6380")
    Path(".env").write_text(f"{line}\n")
    assert where() == expected


def test_messages_name_the_variable_that_kubernetes_has_injected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PORT", "tcp://10.96.0.12:6380")
    assert CacheSettings().endpoint().name("redis_host") == "REDIS_PORT"
    assert CacheSettings(redis_host="here").endpoint().name("redis_host") == "redis_host"


def test_a_port_that_kubernetes_injects_does_no_harm_without_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PORT", "tcp://[fd00::1]:6380")
    assert not CacheSettings(redis_enabled=False).redis_enabled
    assert where() == "redis://[fd00::1]:6380/0"


def test_the_new_line_at_the_end_of_a_secret_file_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", " blank counts \n")
    monkeypatch.setenv("REDIS_HOST", "redis\n")
    assert password() == " blank counts "
    assert where() == "redis://redis:6379/0"


@pytest.mark.parametrize(
    ("host", "remedy"),
    [('"localhost"', "without quotes"), ("a b", "white space"), ("redis://h", "redis_url"), ("h:6379", "redis_port")],
)
def test_a_host_that_is_more_than_a_host_is_told(host: str, remedy: str) -> None:
    with pytest.raises(CacheSettingsError, match=rf"^redis_host \(REDIS_HOST\): .*{remedy}"):
        CacheSettings(redis_host=host)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MAGNUS_CACHE_L1_MAX_ENTRYS", "MAGNUS_CACHE_L1_MAX_ENTRIES"),
        ("MAGNUS_CACHE_REDIS_URL", "REDIS_URL"),
        ("MAGNUS_CACHE_PREFX", "MAGNUS_CACHE_PREFIX"),
    ],
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_a_misspelt_variable_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, meant: str, place: str
) -> None:
    monkeypatch.setattr("magnus_cache._engine.settings.settings._told", set())
    if place == ".env":
        Path(".env").write_text(f"{name}=5\n")
    else:
        monkeypatch.setenv(name, "5")
    with caplog.at_level(logging.WARNING, "magnus_cache"):
        CacheSettings()
        CacheSettings()
    (line,) = caplog.messages
    assert name in line
    assert place in line
    assert f"did you mean {meant}?" in line


def test_variables_of_others_are_none_of_ours(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("REDIS_SERVICE_HOST", "REDIS_PORT_6379_TCP", "MAGNUS_CACHES"):
        monkeypatch.setenv(name, "x")
    CacheSettings()
    assert not caplog.messages


def test_all_unknown_keywords_are_named_with_what_was_meant() -> None:
    with pytest.raises(CacheSettingsError, match=r"bar: .*; host: .*did you mean redis_host\?"):
        CacheSettings(host="x", bar=2)  # type: ignore[call-arg]


def test_every_setting_is_a_typed_keyword() -> None:
    assert set(SettingsOptions.__annotations__) == set(CacheSettings.model_fields)


# -- files of TLS ------------------------------------------------------------------------------------------------


def test_the_files_of_tls_are_looked_at_when_settings_are_made(tmp_path: Path) -> None:
    authority, garbage = tmp_path / "ca.pem", tmp_path / "garbage.pem"
    trustme.CA().cert_pem.write_to_path(authority)
    garbage.write_text("no certificate")
    CacheSettings(redis_ssl=True, redis_ssl_ca_certs=str(authority))
    for path, problem in ((tmp_path / "missing.pem", "the file does not exist"), (garbage, "PEM")):
        for keywords in (
            {"redis_ssl": True, "redis_ssl_ca_certs": str(path)},
            {"redis_url": f"rediss://h?ssl_ca_certs={path}"},
        ):
            with pytest.raises(CacheSettingsError, match=rf"redis_ssl_ca_certs \(REDIS_SSL_CA_CERTS\).*{problem}"):
                CacheSettings(**keywords)  # type: ignore[arg-type]
    with pytest.raises(CacheSettingsError, match=r"redis_ssl_certfile.*the file does not exist"):
        CacheSettings(redis_ssl=True, redis_ssl_certfile="/missing.pem", redis_ssl_keyfile="/missing.key")
    CacheSettings(redis_ssl_ca_certs="/missing.pem")  # without TLS, nothing reads it


def test_a_key_with_a_passphrase_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(certificate)
    private = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    encryption = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, form, encryption))
    with pytest.raises(CacheSettingsError, match="passphrase"):
        CacheSettings(redis_ssl=True, redis_ssl_certfile=str(certificate), redis_ssl_keyfile=str(key))


def test_an_at_sign_behind_the_slash_is_told_to_be_of_a_password() -> None:
    with pytest.raises(CacheSettingsError, match=r"%2F"):
        CacheSettings(redis_url="redis://:p@ss/w@localhost:6399/0")


# -- the names under which settings are in effect ----------------------------------------------------------------


def test_messages_name_what_is_in_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CacheSettings().endpoint().name("redis_host") == "REDIS_HOST"
    monkeypatch.setenv("REDIS_HOST", "h")
    endpoint = CacheSettings(redis_port=7, op_timeout=1).endpoint()
    assert [endpoint.name(name) for name in ("redis_host", "redis_port", "op_timeout", "redis_ssl_ca_certs")] == [
        "REDIS_HOST", "redis_port", "op_timeout", "REDIS_SSL_CA_CERTS",
    ]  # fmt: skip
    assert CacheSettings(redis_url="redis://x").endpoint().name("redis_port") == "redis_url"
    monkeypatch.setenv("REDIS_URL", "redis://x")
    assert CacheSettings().endpoint().name("redis_password") == "REDIS_URL"
    assert CacheSettings().changed({"prefix": "desk"}).endpoint().name("redis_host") == "REDIS_URL"
    assert CacheSettings().changed({"redis_host": "other"}).endpoint().name("redis_host") == "redis_host"
