"""The skill for coding agents: it is found, it is short, and what it says is so. Its examples run with the others."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from magnus_cache import CacheManager, errors
from magnus_cache.integrations import pytest as plugin
from magnus_cache.protocols import Cached
from tests.support.documents import EXAMPLES, SKILL

_FRONT: Final = re.compile(r"---\nname: (\S+)\ndescription: >-\n((?:  .+\n)+)---\n")


def test_it_has_a_name_and_says_when_to_use_it() -> None:
    found = _FRONT.match(SKILL.text)
    assert found is not None
    assert found[1] == SKILL.path.parent.name == "magnus-cache"
    assert re.fullmatch(r"[a-z0-9-]{1,64}", found[1])
    description = " ".join(found[2].split())
    assert "Use it when" in description
    # What agents read of each skill, before they choose one.
    assert len(description) <= 1_024
    assert len(SKILL.text.splitlines()) <= 220


def test_its_examples_are_run() -> None:
    assert len([example for example in EXAMPLES if example.document == SKILL.name]) == len(SKILL.examples) >= 6


def test_it_leads_to_nothing_that_the_package_does_not_have() -> None:
    assert SKILL.links == []


def test_the_names_that_it_tells_are_there() -> None:
    told = set(re.findall(r"`(Cache\w+Error)`", SKILL.text)) | set(re.findall(r"`(Cache\w+Error):", SKILL.text))
    assert len(told) > 5
    assert told <= set(errors.__all__)
    assert set(re.findall(r"`(magnus_\w+)`", SKILL.section("Test it"))) - {"magnus_cache"} <= set(plugin.__all__)
    for name in re.findall(r"\bcache\.(\w+)\(", SKILL.text):
        assert hasattr(CacheManager, name), name
    for name in re.findall(r"\b(?:user|orders|price)\.(\w+)\(", SKILL.text):
        assert hasattr(Cached, name), name


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`magnus-cache (\w+)", SKILL.text))))
def test_the_commands_that_it_tells_are_there(command: str, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import sys; from magnus_cache.__main__ import main; sys.exit(main())", command]
    done = subprocess.run(
        [*program, "--help"], env={"PYTHONPATH": str(SKILL.path.parents[4]), "COLUMNS": "80"}, cwd=tmp_path,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
