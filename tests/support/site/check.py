"""Look through the built site: `python -m tests.support.site.check .reports/site`, the last step of `nox -s docs`.

The strict build knows links between pages. This sees the site as a browser does: each link and picture leads to a file
of the site, each anchor is there, nothing is loaded from other servers, and each public name has its place.
"""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.documents import public_names

__all__ = ["problems"]

_SOURCES = {"a": "href", "img": "src", "link": "href", "script": "src"}
_UNLIKE_A_PAGE = {"404.html"}
"""Pages whose links start at the root of a server."""


class _Page(HTMLParser):
    """The anchors of a page, and the links and pictures that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {name for name in (found.get("id"), found.get("name") if tag == "a" else None) if name}
        target = found.get(_SOURCES.get(tag, ""))
        if target:
            self.links.append(target)
            if tag != "a" and found.get("rel") not in ("canonical", "prev", "next"):
                self.loaded.append(target)


def _leads_to(site: Path, page: Path, target: str) -> tuple[Path, str] | None:
    """Return the file and the anchor of a link within the site, or None for a link to another one."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return None
    place = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    return (place / "index.html" if place.is_dir() else place), unquote(parts.fragment)


def _broken(site: Path, pages: dict[Path, _Page]) -> Iterator[str]:
    for path, page in pages.items():
        for target in page.links:
            leads_to = _leads_to(site, path, target)
            if leads_to is None:
                continue
            file, anchor = leads_to
            if not file.is_file() or not file.is_relative_to(site):
                yield f"{path.relative_to(site)}: {target} leads to no file of the site"
            elif anchor and file in pages and anchor not in pages[file].anchors:
                yield f"{path.relative_to(site)}: {target} leads to no anchor"
        for target in page.loaded:
            if urlsplit(target).netloc:
                yield f"{path.relative_to(site)}: {target} is loaded from another server"


def problems(site: Path) -> list[str]:
    """Return what is wrong with a site, a line each."""
    site = site.resolve()
    files = [path for path in sorted(site.rglob("*.html")) if path.name not in _UNLIKE_A_PAGE]
    pages = {path: _Page(path) for path in files}
    anchors = {anchor for page in pages.values() for anchor in page.anchors}
    missing = [f"{name} has no place in the reference" for name in sorted(public_names() - anchors)]
    return [*_broken(site, pages), *missing]


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]))
    print("\n".join(found) or "the site is whole")
    sys.exit(bool(found))
