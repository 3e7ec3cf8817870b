"""Run Django's own tests of caches on our backend: ``python -m tests.foreign.django FOLDER``, of an unpacked sdist.

They run twice: with the types that this cache stores, and with the codec ``"pickle"``. A test that fails without being
listed here, and one that is listed and passes, is an error. ``nox -s foreign -- django`` does all of it.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import django

from magnus_cache.embedded import EmbeddedServer

ROOT: Final = Path(__file__).resolve().parents[2]

BACKEND: Final = "cache.tests.RedisCacheTests"
"""Django's `BaseCacheTests`, and what it tests of its own backend for Redis."""

SUITE: Final = {
    "The backend": (BACKEND,),
    "Cache middleware, `cache_page`, `caches`": (
        "cache.tests.CacheMiddlewareTest", "cache.tests.CacheUtils", "cache.tests.PrefixedCacheUtils",
        "cache.tests.CacheHEADTest", "cache.tests.CacheI18nTest", "cache.tests.PrefixedCacheI18nTest",
        "cache.tests.TestWithTemplateResponse", "cache.tests.CacheHandlerTest",
    ),
    "Sessions in the cache": (
        "sessions_tests.tests.CacheSessionTests", "sessions_tests.tests.CacheDBSessionTests",
        "sessions_tests.tests.CacheDBSessionWithTimeZoneTests",
    ),
    "The template tag": ("template_tests.syntax_tests.test_cache",),
}  # fmt: skip
"""What is run, by what it is about."""

_POOL: Final = "about the pool and the client of redis-py, which this cache does not have"
_CULLING: Final = "about culling, which Redis does by itself; Django skips it for Redis too"

NOT_APPLICABLE: Final = {
    f"{BACKEND}.{name}": reason
    for reason, names in {
        _POOL: (
            "test_cache_client_class", "test_client_driver_info", "test_get_client", "test_get_connection_pool",
            "test_get_connection_pool_index", "test_incr_write_connection", "test_redis_pool_options",
            "test_serializer_dumps",
        ),
        _CULLING: ("test_cull", "test_cull_delete_when_store_empty", "test_zero_cull"),
    }.items()
    for name in names
}  # fmt: skip
"""Why a test does not apply, whatever the codec is."""

NEEDS_PICKLE: Final = {
    f"{BACKEND}.test_data_types": "stores a function and a class",
    f"{BACKEND}.test_cache_read_for_model_instance_with_deferred": "stores a queryset",
    f"{BACKEND}.test_cache_write_for_model_instance_with_deferred": "stores a queryset",
}
"""What passes with the codec ``"pickle"`` only, and why."""


def outcomes(folder: Path, codec: str, report: Path) -> dict[str, str]:
    """Run the tests, and return what became of each."""
    labels = [label for some in SUITE.values() for label in some]
    command = [sys.executable, "runtests.py", "--settings", "tests.foreign.django_settings", "--parallel=1", *labels]
    report.unlink(missing_ok=True)
    with EmbeddedServer() as server:
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "MAGNUS_FOREIGN_URL": server.url, "MAGNUS_FOREIGN_CODEC": codec,
            "MAGNUS_FOREIGN_REPORT": str(report),
        }  # fmt: skip
        subprocess.run(command, cwd=folder / "tests", env=environment, check=False)
    found: dict[str, str] = json.loads(report.read_text("utf-8"))
    return found


def surprises(found: dict[str, str], codec: str) -> list[str]:
    """Return the tests that did not end as they should."""
    listed = NOT_APPLICABLE if codec else NOT_APPLICABLE | NEEDS_PICKLE
    wrong = [
        f"{test}: {outcome}, and " + ("listed as one that fails" if test in listed else "not listed")
        for test, outcome in found.items()
        if (outcome == "passed") is (test in listed)
    ]
    missing = [label for some in SUITE.values() for label in some if not any(test.startswith(label) for test in found)]
    return [*wrong, *(f"{label}: no test has run" for label in missing)]


def table(found: dict[str, str], codec: str) -> str:
    """Return the rows of the table in the documentation."""
    codec_shown = f'codec "{codec}"' if codec else "no codec"
    rows = [f"Django {django.__version__}, {codec_shown}"]
    for topic, labels in SUITE.items():
        count = Counter(outcome for test, outcome in found.items() if test.startswith(labels))
        rows.append(f"| {topic} | {count['passed']} | {count.total() - count['passed']} |")
    return "\n".join(rows)


def main(folder: Path) -> int:
    wrong: list[str] = []
    tables: list[str] = []
    for codec in ("", "pickle"):
        found = outcomes(folder, codec, folder / f"report-{codec or 'plain'}.json")
        tables.append(table(found, codec))
        wrong += surprises(found, codec)
    print(*tables, sep="\n")
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
