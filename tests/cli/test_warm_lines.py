"""What `top` and `doctor` tell of the jobs of `keep_warm`."""

import json
from dataclasses import replace
from typing import Any

import pytest

from magnus_cache import CacheManager, Namespace, WarmJob
from magnus_cache.cli.app import main
from tests.support.wait import wait_until


def test_jobs_that_keep_values_warm(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    def top(*words: str) -> bool:
        main(["top", "--once", "--url", url])
        shown = capsys.readouterr().out
        return all(word in shown for word in words)

    def doctor() -> dict[str, str]:
        main(["doctor", "--json", "--url", url])
        (found,) = [each for each in json.loads(capsys.readouterr().out) if each["check"] == "keep_warm"]
        return dict(found)

    with CacheManager(redis_url=url) as cache:

        @cache.cached(Namespace("q", ttl=600, budget="2/h", hard_timeout=1), key="{key}")
        def quote(key: str) -> str:
            return key

        with cache.keep_warm(quote, ["A", "B", "C"], every=2.0, name="mine"):
            # As its process tells with its next renewal.
            wait_until(lambda: top("keep_warm q:", "3 keys", "2 loaded", "held back by limits", "by "))
            found = doctor()
            assert (found["level"], "keeps 3 keys" in found["text"]) == ("ok", True)
            (job,) = cache.warm_jobs()
        for other, word in (
            (job.elsewhere(), "no process"),
            (replace(job, failed=7, error="OSError"), "OSError"),
        ):
            jobs: list[WarmJob] = [other]
            monkeypatch.setattr(CacheManager, "warm_jobs", lambda _, jobs=jobs: jobs)
            assert top(word)
            found = doctor()
            assert (found["level"], word in found["text"]) == ("advice", True)
