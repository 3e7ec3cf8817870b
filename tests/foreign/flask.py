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
    "cachelib": (str(ROOT / "tests" / "foreign" / "cachelib_suite.py"),),
    "flask-caching": ("-p", "tests.foreign.flask_plugin", "."),
}
"""What pytest runs, in the folder of the tests."""

NOT_APPLICABLE: Final[dict[str, dict[str, str]]] = {
    "cachelib": {},
    "flask-caching": {},
}
"""Why a test does not apply, by the project and the beginning of the test's name."""

NEEDS_PICKLE: Final[dict[str, dict[str, str]]] = {"cachelib": {}, "flask-caching": {}}
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
        for is_listed in [any(test.startswith(each) for each in listed)]
        if (outcome == "passed") is is_listed
    ]
    unknown = [each for each in listed if not any(test.startswith(each) for test in found)]
    return [*wrong, *(f"{each}: no test has this name" for each in unknown)]


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
