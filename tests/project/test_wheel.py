"""What is released: the files of wheel and sdist, what they tell of the package, and the changelog."""

import re
import tarfile
import tomllib
import zipfile
from datetime import date
from email.parser import Parser
from itertools import pairwise
from typing import Any, Final

import pytest
from trove_classifiers import classifiers as known_classifiers

from magnus_cache import __version__
from tests.support.distributions import ROOT, Distributions, built_in

PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CHANGELOG: Final = (ROOT / "CHANGELOG.md").read_text("utf-8")
DATA: Final = {
    "magnus_cache/py.typed",
    "magnus_cache/.agents/skills/magnus-cache/SKILL.md",
    "magnus_cache/observability/grafana.json",
}
"""Files of the package that are no modules, and that something breaks without."""

SECTIONS: Final = ("Breaking", "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    return built_in(tmp_path_factory.mktemp("dist"))


def in_wheel(built: Distributions) -> set[str]:
    with zipfile.ZipFile(built.wheel) as archive:
        return set(archive.namelist())


def in_sdist(built: Distributions) -> set[str]:
    with tarfile.open(built.sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def of_package() -> set[str]:
    files = (ROOT / "magnus_cache").rglob("*")
    return {
        path.relative_to(ROOT).as_posix()
        for path in files
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


def test_the_wheel_has_the_package_and_nothing_else(built: Distributions) -> None:
    found = in_wheel(built)
    assert of_package() >= DATA
    assert {name for name in found if not name.startswith(f"magnus_cache-{__version__}.dist-info/")} == of_package()
    assert built.wheel.name == f"magnus_cache-{__version__}-py3-none-any.whl"


def test_the_sdist_has_what_is_needed_to_build_and_to_test(built: Distributions) -> None:
    found = in_sdist(built)
    assert found >= of_package() | {
        "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "noxfile.py", "tests/conftest.py",
        "benchmarks/__main__.py", ".docs/observability.md", "PKG-INFO",
    }  # fmt: skip
    assert not {name for name in found if "__pycache__" in name or name.endswith((".pyc", ".rdb"))}


def test_what_the_wheel_tells_of_itself(built: Distributions) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        told = Parser().parsestr(archive.read(f"magnus_cache-{__version__}.dist-info/METADATA").decode())
        entry_points = archive.read(f"magnus_cache-{__version__}.dist-info/entry_points.txt").decode()
    assert (told["Name"], told["Version"]) == ("magnus-cache", __version__)
    assert told["License-Expression"] == "MIT"
    assert told["Summary"] == PROJECT["description"]
    assert told["Description-Content-Type"] == "text/markdown"
    assert told["Requires-Python"] == ">=3.11"
    assert set(told.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert sorted(told.get_all("Classifier", [])) == sorted(PROJECT["classifiers"])
    assert "magnus-cache = magnus_cache.__main__:main" in entry_points
    assert "magnus_cache = magnus_cache.integrations.pytest" in entry_points


def test_classifiers_are_known_and_in_order() -> None:
    told: list[str] = PROJECT["classifiers"]
    assert set(told) <= set(known_classifiers)
    assert len(set(told)) == len(told)
    kinds = [each.partition(" ::")[0] for each in told]
    assert kinds == sorted(kinds)
    assert "Typing :: Typed" in told
    # The licence stands in its expression: the index refuses both together.
    assert "License" not in kinds
    oldest = min(int(minor) for minor in re.findall(r"Python :: 3\.(\d+)", "\n".join(told)))
    assert PROJECT["requires-python"] == f">=3.{oldest}"


# -- the changelog ----------------------------------------------------------------------------------------------


def releases(text: str) -> list[tuple[str, date | None, str]]:
    """Return the version, day and text of each release, as they stand; one that is to come has no day.

    :raises ValueError: for a heading of another form.
    """
    found = list[tuple[str, date | None, str]]()
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        if title == "Unreleased":
            found.append((title, None, body))
            continue
        match = re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d{2}-\d{2})", title)
        if match is None:
            raise ValueError(f"not a release: {title}")
        found.append((match[1], date.fromisoformat(match[2]), body))
    return found


def faults(text: str) -> list[str]:
    """Return what is wrong with the form of a changelog."""
    found = list[str]()
    every = releases(text)
    if [name for name, _, _ in every[1:] if name == "Unreleased"]:
        found.append("what is unreleased comes first")
    numbered = [(tuple(map(int, name.split("."))), day) for name, day, _ in every if day is not None]
    for (newer, its_day), (older, day) in pairwise(numbered):
        if newer <= older or (its_day and day and its_day < day):
            found.append(f"{newer} is not later than {older}")
    for name, _, body in every:
        sections = re.findall(r"^### (.+)$", body, re.MULTILINE)
        if sections != sorted(sections, key=lambda each: SECTIONS.index(each) if each in SECTIONS else -1):
            found.append(f"{name}: the sections are not in their order: {', '.join(sections)}")
        found += [f"{name}: no such section: {each}" for each in sections if each not in SECTIONS]
        if len(set(sections)) < len(sections):
            found.append(f"{name}: a section is there twice")
        for entry in re.findall(r"^- (.*(?:\n  .*)*)", body, re.MULTILINE):
            if not re.match(r"[A-Z`\[0-9]", entry) or not re.search(r"[.)`]$", entry):
                found.append(f"{name}: not a sentence: {entry[:60]}")
    return found


def test_the_changelog_keeps_its_form() -> None:
    assert faults(CHANGELOG) == []
    names = [name for name, _, _ in releases(CHANGELOG)]
    assert names[0] in {"Unreleased", __version__}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("## 1.0\n", "not a release"),
        ("## 1.0.0 - 2026-13-01\n", "month"),
        ("## 1.0.0 - 2026-01-01\n## Unreleased\n", "comes first"),
        ("## 1.0.0 - 2026-01-01\n## 1.1.0 - 2025-01-01\n", "is not later"),
        ("## Unreleased\n### Fixed\n- A.\n### Added\n- B.\n", "order"),
        ("## Unreleased\n### News\n- A.\n", "no such section"),
        ("## Unreleased\n### Added\n- A.\n### Added\n- B.\n", "twice"),
        ("## Unreleased\n### Added\n- a thing\n", "not a sentence"),
    ],
)
def test_the_check_of_the_changelog_finds_faults(text: str, fault: str) -> None:
    try:
        found = faults(text)
    except ValueError as error:
        found = [str(error)]
    assert any(fault in each for each in found), found
