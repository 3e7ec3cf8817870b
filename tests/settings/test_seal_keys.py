"""The keys of sealed values as a setting: what is wrong is named by its place, and nothing of it is shown."""

import base64
import os
import pickle

import pytest
from pydantic import SecretStr

from magnus_cache import CacheManager, CacheSettings
from magnus_cache.errors import CacheSettingsError
from tests.support.seals import ring


def _key(name: str, count: int) -> str:
    # Always the same: it is in the name of a test, which all workers of pytest-xdist have to agree on.
    return f"{name}:{base64.b64encode(bytes(range(count))).decode()}"


GOOD = _key("k1", 32)


def test_keys_are_read_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = os.urandom(32)
    plain, safe = base64.b64encode(secret).decode(), base64.urlsafe_b64encode(secret).decode()
    assert CacheSettings().sealed_by() == []
    assert CacheSettings(seal_keys="").sealed_by() == []
    for text in (f"a:{plain}", f" a:{plain} ", f"a:{safe}"):
        assert CacheSettings(seal_keys=text).sealed_by() == [("a", secret)]
    monkeypatch.setenv("MAGNUS_CACHE_SEAL_KEYS", f"2026-01:{plain}, k.2_x:{GOOD[3:]}\n")
    assert [key for key, _ in CacheSettings().sealed_by()] == ["2026-01", "k.2_x"]
    assert CacheSettings(seal_keys=SecretStr(GOOD)).sealed_by() == [("k1", base64.b64decode(GOOD[3:]))]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (GOOD[3:], "key 1 is not written as id:base64"),
        (f"{GOOD},", "key 2 is not written as id:base64"),
        (f":{GOOD[3:]}", "the id of key 1"),
        (f"an id:{GOOD[3:]}", "the id of key 1"),
        (f"{GOOD[3:]}:k1", "the id of key 1"),
        (f"{'x' * 33}:{GOOD[3:]}", "the id of key 1"),
        (ring(GOOD, GOOD), "the id of key 2 is that of an earlier one"),
        ("k1:not base64!", "key 1 is not base64"),
        (f"k1:{GOOD[3:-1]}", "key 1 is not base64"),
        ("k1:", "key 1 is not base64"),
        (ring(GOOD, _key("k2", 31)), "key 2 has 31 bytes; 32"),
        (_key("k1", 16), "key 1 has 16 bytes"),
        (_key("k1", 64), "key 1 has 64 bytes"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(text: str, problem: str) -> None:
    with pytest.raises(CacheSettingsError, match=r"^seal_keys \(MAGNUS_CACHE_SEAL_KEYS\): .*") as caught:
        CacheSettings(seal_keys=text)
    assert problem in str(caught.value)
    for secret in (GOOD[3:], text.partition(":")[2] or text):
        assert not secret or secret not in str(caught.value) + repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_no_repr_shows_a_key(url: str) -> None:
    settings = CacheSettings(seal_keys=GOOD, redis_url=url)
    with CacheManager(settings) as cache:
        shown = [repr(settings), str(settings), repr(settings.model_dump()), repr(cache), settings.model_dump_json()]
    assert not any(GOOD[3:] in text for text in shown)


def test_settings_with_keys_are_copied_and_changed() -> None:
    settings = CacheSettings(seal_keys=GOOD)
    assert settings.changed({"prefix": "other"}).sealed_by() == settings.sealed_by()
    assert pickle.loads(pickle.dumps(settings)).sealed_by() == settings.sealed_by()
