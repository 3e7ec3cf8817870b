"""Run the tests of cachelib and Flask-Caching on our edges: ``python -m tests.foreign.flask NAME FOLDER``.

The folder is that of an unpacked sdist. The tests run twice: with the types that this cache stores, and with the codec
``"pickle"``. A test that fails without being listed here, and one that is listed and passes, is an error.
``nox -s foreign -- cachelib flask-caching`` does all of it.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Final

from magnus_cache.embedded import EmbeddedServer

ROOT: Final = Path(__file__).resolve().parents[2]

ARGUMENTS: Final = {
    # Our own conftest.py is for our own tests.
    "cachelib": ("--noconftest", str(ROOT / "tests" / "foreign" / "cachelib_suite.py")),
    "flask-caching": (
        "-p",
        "tests.foreign.flask_plugin",
        ".",
        "-k",
        "not FileSystemCache and not NullCache and not RedisCache and not MemcachedCache and not redis",
        "--ignore=test_init.py",
        "--ignore=test_py314_annotations.py",
    ),
}
"""What pytest runs, in the folder of the tests."""

_OTHER: Final = "about another backend, whose server or options it needs"
_SERIALIZER: Final = "about cachelib's own serializer, or the bytes that SimpleCache has in its dict"
_RESPONSE: Final = "stores a response of Flask"

NOT_APPLICABLE: Final[dict[str, dict[str, str]]] = {
    "cachelib": {},
    "flask-caching": {
        "test_backend_cache.TestSimpleCache::test_purge": "about the threshold of SimpleCache",
        "test_backend_cache.TestSimpleCache::test_deprecated_ignore_errors": "about an option that SimpleCache had",
        "test_basic_app::test_init_app_multi_apps": _OTHER,
        "test_cache::test_cache_unlink": _OTHER,
        "test_cachelib::test_backend_uses_cachelib_serializer": _SERIALIZER,
        "test_serializer::test_default_keeps_the_cachelib_serializer": _SERIALIZER,
        "test_serializer::test_values_are_stored_in_the_configured_format": _SERIALIZER,
    },
}
"""Why a test does not apply, by the project and the name of the test."""

NEEDS_PICKLE: Final[dict[str, dict[str, str]]] = {
    "cachelib": {},
    "flask-caching": {
        "test_view::test_cache_timeout_dynamic_via_cached_reponse": _RESPONSE,
        "test_view::test_cached_view_http_exception": _RESPONSE,
        "test_view::test_cached_view_http_exception_runs_error_handler": _RESPONSE,
        "test_view::test_cached_view_http_exception_expires": _RESPONSE,
    },
}
"""What passes with the codec ``"pickle"`` only, and why."""


def outcomes(name: str, folder: Path, codec: str) -> dict[str, str]:
    """Run the tests, and return what became of each."""
    report = folder / f"report-{codec or 'plain'}.xml"
    report.unlink(missing_ok=True)
    options = ("-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-W", "default", f"--junit-xml={report}")
    tests = folder / "tests"
    with EmbeddedServer() as server:
        environment = {
            **os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tests}", "MAGNUS_FOREIGN_URL": server.url,
            "MAGNUS_FOREIGN_CODEC": codec,
        }  # fmt: skip
        command = [sys.executable, "-m", "pytest", *options, "-c", os.devnull, f"--rootdir={tests}", *ARGUMENTS[name]]
        subprocess.run(command, cwd=tests, env=environment, check=False)
    found = dict[str, str]()
    for case in ET.parse(report).getroot().iter("testcase"):
        parts = {child.tag for child in case}
        found[f"{case.get('classname')}::{case.get('name')}"] = (
            "failed" if parts & {"failure", "error"} else "skipped" if "skipped" in parts else "passed"
        )
    return found


def surprises(name: str, found: dict[str, str], codec: str) -> list[str]:
    """Return the tests that did not end as they should."""
    listed = NOT_APPLICABLE[name] if codec else {**NOT_APPLICABLE[name], **NEEDS_PICKLE[name]}
    wrong = [
        f"{test}: {outcome}, and {'listed as one that does not apply' if is_listed else 'not listed'}"
        for test, outcome in found.items()
        for is_listed in [test.partition("[")[0] in listed]
        if (outcome == "passed") is is_listed
    ]
    unknown = set(listed) - {test.partition("[")[0] for test in found}
    return [*wrong, *(f"{each}: no test has this name" for each in sorted(unknown))]


def main(name: str, folder: Path) -> int:
    wrong = list[str]()
    for codec in ("", "pickle"):
        found = outcomes(name, folder, codec)
        count = Counter(found.values())
        passed, others = count["passed"], count.total() - count["passed"]
        wrong += surprises(name, found, codec)
        print(f"| {name} {version(name)} | {codec or 'none'} | {passed} | {others} |")
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]).resolve()))
