"""The command `audit`."""

import json

import pytest

from magnus_cache import CacheManager, Namespace
from magnus_cache.cli.app import main
from tests.support.inside import state_of
from tests.support.wait import wait_until


def test_the_command_shows_what_audits_have_found(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    quotes = Namespace("quotes", ttl="1h", audit=1)
    with CacheManager(redis_url=url) as cache:
        source = iter([1, 2])
        for _ in range(2):
            assert cache.get_or_set(quotes, "k", lambda: next(source)) == 1
        wait_until(lambda: any(found.wrong for found in state_of(cache).stats.audits.of("quotes").values()))
    assert main(["audit", "quotes", "--url", url]) == 0
    shown = capsys.readouterr().out
    assert "About 100.00% of all hits got a wrong value." in shown
    assert "Too few checks: 1." in shown
    assert main(["audit", "quotes", "--json", "--share", "0.05", "--url", url]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["checked"], told["wrong"], told["proposal"]["ttl"]) == (1, 1, None)
    assert main(["audit", "nothing", "--url", url]) == 0
    assert "No hit of nothing was audited" in capsys.readouterr().out
