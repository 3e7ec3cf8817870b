"""Sealed values on the command line: none is shown unless that is asked for, with the keys."""

import json
from collections.abc import Callable, Iterator

import pytest

from magnus_cache import CacheManager, Namespace
from magnus_cache.cli.app import main
from tests.support.seals import new_key

KEY = new_key("k1")
SECRET, WHO = "correct-horse-battery", "alice@example.org"
USERS = Namespace("users", ttl=600, seal=True)

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def sealed(url: str) -> Iterator[CacheManager]:
    with CacheManager(redis_url=url, seal_keys=KEY) as cache:
        cache.set(USERS, WHO, {"password": SECRET})
        cache.set("open", "k", "shown")
        yield cache


@pytest.fixture
def command(url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process; return its exit code, and all that it prints."""

    def run(*arguments: str, keys: str = KEY) -> tuple[int, str]:
        monkeypatch.setenv("MAGNUS_CACHE_SEAL_KEYS", keys)
        code = main([*arguments, "--url", url])
        return code, "".join(capfd.readouterr())

    return run


def test_a_sealed_value_is_shown_with_reveal_alone(command: Command, sealed: CacheManager) -> None:
    (text,) = sealed.scan("users", "*")
    for key in (WHO, text):
        code, shown = command("get", "users", key)
        assert (code, shown) == (1, f"magnus-cache: users:{key}: the value is sealed; --reveal shows it\n")
        code, shown = command("get", "users", key, "--reveal")
        assert (code, json.loads(shown)) == (0, {"password": SECRET})
    assert command("get", "open", "k", "--reveal") == (0, '"shown"\n')
    assert command("get", "open", "k") == (0, '"shown"\n')
    code, shown = command("get", "users", "nobody", "--reveal")
    assert (code, shown) == (1, "magnus-cache: users:nobody: not there\n")


def test_nothing_secret_is_printed_without_reveal(command: Command, sealed: CacheManager) -> None:
    (text,) = sealed.scan("users", "*")
    assert command("ls", "users", "--json") == (0, f'["{text}"]\n')
    for arguments in (
        ("ls",), ("ls", "users"), ("get", "users", text), ("explain", "users", text),
        ("explain", "users", text, "--json"), ("ttl", "users", text), ("tags",), ("stats", "--json"), ("doctor",),
    ):  # fmt: skip
        for keys in (KEY, ""):
            _, shown = command(*arguments, keys=keys)
            assert shown
            for secret in (SECRET, WHO, "alice", KEY.partition(":")[2]):
                assert secret not in shown, arguments


def test_other_commands_find_sealed_values(command: Command, sealed: CacheManager) -> None:
    code, shown = command("explain", "users", WHO)
    assert code == 0
    assert "~sealed.k1:" in shown
    code, shown = command("ttl", "users", WHO)
    assert code == 0
    assert 500 < float(shown) <= 600
    assert command("set", "users", "bob", SECRET) == (0, "")
    assert sealed.get(USERS, "bob") == SECRET
    assert command("delete", "users", "bob")[0] == 0
    assert sealed.get(Namespace("users", seal=True, l1=False), "bob") is None


def test_without_the_keys_the_remedy_is_told(command: Command, sealed: CacheManager) -> None:
    code, shown = command("get", "users", WHO, "--reveal", keys="")
    assert (code, shown.count("\n")) == (2, 1)
    assert "set MAGNUS_CACHE_SEAL_KEYS" in shown
    (text,) = sealed.scan("users", "*")
    assert command("get", "users", text, keys="") == (
        1,
        f"magnus-cache: users:{text}: the value is sealed; --reveal shows it\n",
    )
    code, shown = command("get", "users", text, "--reveal", keys=new_key("k2"))
    assert (code, shown.count("\n")) == (1, 1)
    assert "not one of seal_keys" in shown
    code, shown = command("ls", keys="k1:nonsense")
    assert (code, shown.count("\n")) == (2, 1)
    assert "MAGNUS_CACHE_SEAL_KEYS" in shown
    assert "nonsense" not in shown
