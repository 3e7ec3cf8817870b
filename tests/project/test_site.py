"""The site of the documentation, as far as it can be checked without building it; `nox -s docs` does the rest."""

import inspect
import re
import tomllib
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.support.documents import PAGES, PUBLIC, REFERENCE, ROOT, Document, public_names
from tests.support.site.check import problems

SITE = tomllib.loads((ROOT / ".zensical.toml").read_text(encoding="utf-8"))["project"]
DIRECTIVES = [path for page in REFERENCE for path in re.findall(r"^::: ([\w.]+)$", page.text, re.MULTILINE)]


def _pages(navigation: list[Any]) -> list[str]:
    found: list[str] = []
    for entry in navigation:
        if isinstance(entry, dict):
            for inner in entry.values():
                found += _pages(inner if isinstance(inner, list) else [inner])
        else:
            found.append(entry)
    return found


def test_the_navigation_has_every_page_once() -> None:
    pages = [path.relative_to(ROOT / ".docs").as_posix() for path in (ROOT / ".docs").rglob("*.md")]
    assert Counter(_pages(SITE["nav"])) == Counter(pages), "a new page belongs into the navigation of .zensical.toml"


def test_the_navigation_goes_from_the_start_to_the_inside() -> None:
    assert [title for part in SITE["nav"] for title in part] == [
        "Start", "Guides", "Features", "Operations", "Recipes", "Frameworks", "Migration", "Reference", "Internals",
    ]  # fmt: skip


def test_git_ignores_what_the_build_writes() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert f"/{SITE['site_dir'].partition('/')[0]}/" in ignored
    assert "/.cache/" in ignored


def test_the_reference_has_every_public_name() -> None:
    modules = tuple(f"{module}." for module in PUBLIC[1:] if module in DIRECTIVES)
    missing = {name for name in public_names() if name not in DIRECTIVES and not name.startswith(modules)}
    assert missing == set(), "add `::: NAME` to a page of .docs/reference"


def test_the_reference_has_nothing_twice_and_nothing_else() -> None:
    assert [path for path, times in Counter(DIRECTIVES).items() if times > 1] == []
    assert set(DIRECTIVES) - set(PUBLIC) - public_names() == set()


def test_the_comments_on_the_design_are_those_of_modules() -> None:
    named = re.findall(r"^::: ([\w.]+)$", PAGES["design"].text, re.MULTILINE)
    assert len(named) > 5
    for module in named:
        assert "\n---" in (inspect.getdoc(import_module(module)) or ""), module
    linked = {target.relative_to(ROOT).with_suffix("").as_posix() for _, target, _ in PAGES["design"].linked()}
    assert {name.replace(".", "/") for name in named} <= linked


@pytest.mark.parametrize("page", [*PAGES.values(), *REFERENCE], ids=str)
def test_a_heading_has_one_anchor_on_github_and_on_the_site(page: Document) -> None:
    """GitHub makes a hyphen of each space, the site one of several, and drops what is not ASCII."""
    for title in re.findall(r"^#+ (.+)$", page.prose, re.MULTILINE):
        on_github = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        on_the_site = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title.strip().lower(), flags=re.ASCII))
        assert on_github == on_the_site, title


@pytest.mark.parametrize("page", REFERENCE, ids=str)
def test_a_page_of_the_reference_opens_with_what_it_comes_down_to(page: Document) -> None:
    assert re.match(r"# .+\n\n\*\*TL;DR\*\*: ", page.text)


def test_an_example_that_does_not_run_is_of_a_library_that_is_not_installed() -> None:
    """They are marked `py`, and show what another library does."""
    shown = {
        page.name: re.findall(r"^```py\n(.*?)^```", page.text, re.MULTILINE | re.DOTALL) for page in PAGES.values()
    }
    assert {name for name, blocks in shown.items() if blocks} == {".docs/migration.md"}
    for block in shown[".docs/migration.md"]:
        assert re.search("^(?:import|from) (?:streamlit|django|flask_caching)", block, re.MULTILINE), block


# -- the check of the built site ----------------------------------------------------------------------------


def _site(folder: Path, body: str) -> list[str]:
    names = "".join(f'<h2 id="{name}"></h2>' for name in public_names())
    (folder / "page").mkdir(parents=True)
    (folder / "index.html").write_text(f'<h1 id="here"></h1>{names}', encoding="utf-8")
    (folder / "page" / "index.html").write_text(f'<h1 id="there"></h1>{body}', encoding="utf-8")
    return problems(folder)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ('<a href="#there">x</a><a href="..">x</a><a href="../#here">x</a><a href="https://example.org/">x</a>', None),
        ('<a href="../none/">x</a>', "page/index.html: ../none/ leads to no file of the site"),
        ('<a href="../#there">x</a>', "page/index.html: ../#there leads to no anchor"),
        ('<a href="#none">x</a>', "page/index.html: #none leads to no anchor"),
        ('<a href="../../secret.py">x</a>', "page/index.html: ../../secret.py leads to no file of the site"),
        ('<img src="none.png">', "page/index.html: none.png leads to no file of the site"),
        (
            '<script src="https://example.org/x.js"></script>',
            "page/index.html: https://example.org/x.js is loaded from another server",
        ),
    ],
)
def test_the_check_of_the_site_finds_what_is_broken(body: str, found: str | None, tmp_path: Path) -> None:
    (tmp_path / "secret.py").write_text("")
    assert _site(tmp_path / "site", body) == ([] if found is None else [found])


def test_the_check_of_the_site_misses_public_names(tmp_path: Path) -> None:
    _site(tmp_path / "site", "")
    page = tmp_path / "site" / "index.html"
    page.write_text(page.read_text().replace('id="magnus_cache.CacheManager"', ""))
    assert problems(tmp_path / "site") == ["magnus_cache.CacheManager has no place in the reference"]
