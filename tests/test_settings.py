"""Settings: where they come from, which one counts, and that no secret is ever shown."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from magnus_cache.endpoints import Endpoint, EndpointError, parse_url
from magnus_cache.errors import CacheSettingsError
from magnus_cache.settings import CacheSettings

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
        ({"op_timeout": 0}, r"^op_timeout \(MAGNUS_CACHE_OP_TIMEOUT\): "),
        ({"op_timeout": "nan"}, r"^op_timeout \(MAGNUS_CACHE_OP_TIMEOUT\): "),
        ({"default_ttl": True}, r"^default_ttl \(MAGNUS_CACHE_DEFAULT_TTL\): "),
        ({"default_ttl": "soon"}, r"^default_ttl \(MAGNUS_CACHE_DEFAULT_TTL\): 'soon' is no duration"),
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
