"""What `doctor` finds on servers that something is wrong with, and `drill` in applications."""

import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from pexpect import EOF

from magnus_cache import CacheManager, Namespace, market, until
from magnus_cache._engine.policy import trading_hours
from magnus_cache._engine.redis.diagnosis import GRANTS
from magnus_cache.cli import checks
from magnus_cache.cli.checks import findings
from magnus_cache.testing import EmbeddedCluster, EmbeddedSentinels, slot_of
from tests.cli.test_commands import Run, parsed, printed, run
from tests.cli.test_terminal import Terminal, terminal
from tests.support import rights
from tests.support.groups import url_of

__all__ = ["run", "terminal"]


_SET_UP = {"maxmemory": "100mb", "maxmemory_policy": "volatile-lru"}


def found(url: str, **settings: Any) -> dict[str, str]:
    """Return the checks that found something to mend or to advise, and what."""
    with CacheManager(redis_url=url, **settings) as cache:
        health = cache.ping()
        return {
            f"{finding.check}:{finding.level}": f"{finding.text} {finding.remedy}"
            for finding in findings(cache, health)
            if finding.level != "ok"
        }


def test_all_is_well(private_server_with: Callable[..., Any]) -> None:
    server = private_server_with(maxmemory="100mb", maxmemory_policy="volatile-lru")
    assert found(server.url, prefix="mine") == {}


def test_each_finding_has_a_remedy_and_a_code(run: Run, private_server_with: Callable[..., Any]) -> None:
    server = private_server_with(maxmemory="100mb", maxmemory_policy="noeviction")
    shown = parsed(run("doctor", "--json", "--url", server.url), 1)
    (finding,) = [each for each in shown if each["level"] == "fix"]
    assert finding["check"] == "memory"
    assert "noeviction" in finding["text"]
    assert "volatile-lru" in finding["remedy"]
    assert "1 to mend" in printed(run("doctor", "--url", server.url), 1)
    assert "noeviction" in printed(run("doctor", "--url", server.url, COLUMNS="40"), 1)


@pytest.mark.parametrize(
    ("options", "finding"),
    [
        ({"maxmemory_policy": "noeviction", "maxmemory": "100mb"}, "memory:fix"),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": "100mb"}, "memory:advice"),
        ({"maxmemory": "0"}, "memory:advice"),
        ({**_SET_UP, "tracking_table_max_keys": "1"}, "tracking table:fix"),
    ],
)  # fmt: skip
def test_a_server_that_is_not_set_up_for_a_cache(
    private_server_with: Callable[..., Any], options: dict[str, str], finding: str
) -> None:
    assert set(found(private_server_with(**options).url, prefix="mine")) == {finding}


@pytest.mark.parametrize(("blocked", "problems"), [(["CONFIG"], set()), (["CONFIG", "CLIENT"], {"tracking:fix"})])
def test_a_managed_server_lacks_only_what_the_cache_needs(
    blocked: list[str], problems: set[str], private_server_with: Callable[..., Any], tmp_path: Path
) -> None:
    """Such a server does not know commands that are left to its owner."""
    options = tmp_path / "managed.conf"
    options.write_text("".join(f'rename-command {command} ""\n' for command in blocked))
    server = private_server_with(**_SET_UP, include=str(options))
    assert set(found(server.url, prefix="mine")) == problems


def test_grants_are_tried(private_server_with: Callable[..., Any]) -> None:
    server = private_server_with(maxmemory="100mb", maxmemory_policy="volatile-lru")
    with redis.Redis(port=server.port) as client:
        client.execute_command(
            "ACL",
            "SETUSER",
            "app",
            "on",
            ">secret",
            "~mine*",
            "~{mine*",
            "+@all",
            "-time",
            "-client|kill",
            "-eval",
        )  # type: ignore[no-untyped-call]  # redis-py leaves it without
    url = server.url.replace("redis://", "redis://app:secret@")
    problems = found(url, prefix="mine")
    assert problems["grants:fix"].startswith("the user lacks +eval +time +client|kill at 127.0.0.1")
    assert "ACL SETUSER app +eval +time +client|kill" in problems["grants:fix"]


def test_the_grants_of_the_page_are_enough_for_it(private_server_with: Callable[..., Any]) -> None:
    server = private_server_with(**_SET_UP)
    with redis.Redis(port=server.port) as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~mine*", "~{mine*", *GRANTS.split())  # type: ignore[no-untyped-call]  # as above
    problems = found(server.url.replace("redis://", "redis://app:secret@"), prefix="mine")
    assert problems == {}


def test_the_user_of_the_page_lacks_nothing(private_server_with: Callable[..., Any]) -> None:
    server = private_server_with(**_SET_UP)
    url = server.url.replace("redis://", f"redis://{rights.USER}@")
    with redis.Redis(port=server.port) as client:
        client.execute_command(*rights.LINE.split())  # type: ignore[no-untyped-call]  # redis-py leaves it without
        # Its prefix is the default one.
        assert set(found(url)) == {"settings:advice"}
        for word in (*GRANTS.split(), "~magnus*", "~{magnus*"):
            reset = ["ACL", "SETUSER", "app", "reset"]
            client.execute_command(*reset)  # type: ignore[no-untyped-call]  # as above
            line = [each for each in rights.LINE.split() if each != word]
            client.execute_command(*line)  # type: ignore[no-untyped-call]  # as above
            assert word in _lacking(url), word


def _lacking(url: str) -> list[str]:
    with CacheManager(redis_url=url) as cache:
        (grants,) = [each for each in findings(cache, cache.ping()) if each.check == "grants"]
        assert grants.remedy.startswith("ACL SETUSER app ")
        return grants.remedy.split()[3:]


def test_the_user_of_the_page_lacks_nothing_on_a_cluster(cluster: EmbeddedCluster) -> None:
    rights.apply(cluster.nodes, rights.LINE, rights.CLUSTER_LINE)
    assert {each for each in found(url_of(cluster, user=rights.USER)) if each.endswith("fix")} == set()
    rights.apply(cluster.nodes, rights.LINE.replace(" +hsetnx", ""), rights.CLUSTER_LINE.replace(" +asking", ""))
    assert {"+asking", "+hsetnx"} == set(_lacking(url_of(cluster, user=rights.USER)))


def test_a_setting_is_no_finding(private_server_with: Callable[..., Any]) -> None:
    assert found(private_server_with(**_SET_UP).url, prefix="mine", tracking="off") == {}


def test_a_replica_is_told(private_server_with: Callable[..., Any], server: Any) -> None:
    replica = private_server_with(
        replicaof=f"127.0.0.1 {server.port}", maxmemory="100mb", maxmemory_policy="volatile-lru"
    )
    with redis.Redis(port=replica.port) as client:
        while client.info("replication")["master_link_status"] != "up":  # type: ignore[index]  # no coroutine
            pass
    assert "role:fix" in found(replica.url, prefix="mine")


def test_keys_of_another_program_are_found(url: str, raw: Any) -> None:
    with CacheManager(redis_url=url, prefix="mine") as cache:
        cache.set("t", "k", 1)
    raw.set("mine:session", "{}")
    assert (
        "1 of 2 keys were written by another program, such as 'mine:session'" in found(url, prefix="mine")["keys:fix"]
    )


def test_settings_that_contradict_each_other(url: str) -> None:
    problems = found(url, prefix="mine", lease=0.5, op_timeout=0.4, wait_timeout=0.2)
    assert {"settings:fix", "settings:advice"} <= set(problems)
    assert "prefix" in found(url)["settings:advice"]


def test_a_namespace_with_grace_needs_a_timeout(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from magnus_cache import Namespace, register_namespace\n"
        "register_namespace(Namespace('slow', grace=60))\n"
        "register_namespace(Namespace('good', grace=60, soft_timeout=0.5))\n"
    )
    shown = parsed(run("doctor", "--app", "mine", "--json"))
    (finding,) = [each for each in shown if each["check"] == "namespaces"]
    assert "'slow'" in finding["text"]
    assert "soft_timeout" in finding["remedy"]
    assert "module 'none' cannot be imported" in run("doctor", "--app", "none").stderr


def test_each_primary_of_a_cluster_is_looked_at(cluster: EmbeddedCluster) -> None:
    url = "redis+cluster://" + cluster.primaries[0].address
    problems = found(url, prefix="mine")
    assert any(f":{node.port}" in problems["memory:advice"] for node in cluster.primaries)


def test_a_node_that_is_away_is_a_finding_and_the_others_are_used(run: Run) -> None:
    with EmbeddedCluster(replicas=0, cluster_require_full_coverage="no") as cluster:
        away, *_, other = cluster.primaries
        url = f"redis+cluster://{other.address}"
        # Not beside a border between two nodes, where a key needs both.
        owned = cluster.slots_of(other)
        slots = ((str(number), slot_of(f"magnus:t:{number}")) for number in range(10_000))
        key = next(text for text, slot in slots if {slot - 256, slot + 256} <= owned)
        printed(run("set", "t", key, "7", "--url", url))
        cluster.kill(away)
        assert printed(run("get", "t", key, "--url", url)) == "7\n"
        shown = parsed(run("doctor", "--json", "--url", url), 1)
        (finding,) = [each for each in shown if each["level"] == "fix"]
        assert (finding["check"], finding["remedy"] != "") == ("connection", True)
        assert away.address in finding["text"]


def test_the_primary_that_sentinel_names_is_looked_at(sentinels: EmbeddedSentinels) -> None:
    url = f"redis+sentinel://{sentinels.sentinels[0].address}/{sentinels.service}"
    assert "role:fix" not in found(url, prefix="mine")


# -- drill ------------------------------------------------------------------------------------------------------

_APPLICATION = """
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from magnus_cache import CacheManager
cache = CacheManager(redis_url=sys.argv[1], op_timeout=0.2)
class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        cache.get_or_set("t", str(time.time()), lambda: 1)
        self.send_response(int(sys.argv[2]))
        self.end_headers()
    def log_message(self, *_): pass
server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), Page)
print("ready", flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_an_application_is_struck(terminal: Terminal, status: int, code: int) -> None:
    # The drill prints the address that the application needs, and is told the page of the application before.
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port = chosen.getsockname()[1]
    program = terminal("drill", "--check", f"http://127.0.0.1:{port}/", "--seconds", "0.4")
    program.expect("redis://127.0.0.1:[0-9]+/0")
    address: Any = program.after
    command = [sys.executable, "-c", _APPLICATION, address, str(status), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as page:
        try:
            assert page.stdout is not None
            page.stdout.readline()
            first = threading.Thread(target=_request, args=(port,))
            first.start()
            program.expect(EOF)
            program.close()
            shown: Any = program.before
            assert program.exitstatus == code, shown
            assert f"verdict: {4 if code == 0 else 0} of 4 faults passed" in shown
            first.join()
        finally:
            page.kill()


def _request(port: int) -> None:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).close()
    except urllib.error.HTTPError as error:
        error.close()


def test_only_a_single_server_is_struck(run: Run, cluster: EmbeddedCluster, sentinels: EmbeddedSentinels) -> None:
    for url in (
        f"redis+cluster://{cluster.primaries[0].address}",
        f"redis+sentinel://{sentinels.sentinels[0].address}/{sentinels.service}",
    ):
        done = run("drill", "--wait", "0.2", "--url", url)
        assert (done.returncode, done.stdout) == (2, "")
        assert "drill strikes a single server" in done.stderr


def test_no_application_comes(run: Run) -> None:
    done = run("drill", "--wait", "0.2")
    assert done.returncode == 1
    assert "no application has connected" in done.stderr
    assert done.stdout == ""


def test_it_looks_at_the_calendars_of_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange that does not exist is told before the first value is stored."""
    misspelt = Namespace("quotes", ttl=market("XNYSE", open="15s"))
    known = Namespace("closing", ttl=market("XNYS", open="15s"))
    daily = Namespace("daily", ttl=until("16:05", tz="America/New_York"))
    monkeypatch.setattr(checks, "default_registry", [misspelt, known, daily])
    (found,) = checks._namespaces()
    assert (found.check, found.level, found.page) == ("namespaces", "fix", "calendars.md")
    assert "'quotes'" in found.text
    assert "XNYS" in found.text


def test_it_tells_of_a_calendar_that_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trading_hours, "_TABLES", {})
    now = int(time.time()) * 1_000_000
    hour = 3_600 * 1_000_000
    ends = trading_hours.TradingHours("XSHG", ((now - hour, -1, -1, now + hour),), now - hour, now + hour, final=True)
    monkeypatch.setitem(trading_hours._TABLES, "XSHG", ends)
    monkeypatch.setattr(checks, "default_registry", [Namespace("quotes", ttl=market("XSHG", open="15s"))])
    (found,) = checks._namespaces()
    assert (found.level, found.remedy) == ("advice", "pip install -U exchange-calendars")
