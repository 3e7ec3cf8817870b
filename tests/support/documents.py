"""What the documents of the repository hold: their Python examples, tables, headings and links."""

import ast
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


class Example(NamedTuple):
    """A Python block of a document, and the line on which it begins."""

    document: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


class Document:
    """A Markdown file of the repository."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.relative_to(ROOT).as_posix()

    def __repr__(self) -> str:
        return self.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        """The text without its blocks of code."""
        return _FENCE.sub("", self.text)

    @property
    def examples(self) -> list[Example]:
        """The Python blocks."""
        found = re.finditer(r"^```python\n(.*?)^```", self.text, re.MULTILINE | re.DOTALL)
        return [Example(self.name, self.text.count("\n", 0, match.start()) + 1, match[1]) for match in found]

    def section(self, title: str) -> str:
        """Return what stands under a heading, up to the next one."""
        parts = re.split(rf"^#+ {re.escape(title)}\n", self.text, flags=re.MULTILINE)
        assert len(parts) == 2, f"{self.name} has not one section {title!r}"
        return re.split(r"^#", parts[1], flags=re.MULTILINE)[0]

    @property
    def anchors(self) -> set[str]:
        """The names by which its headings are linked to, as GitHub and PyPI make them."""
        found: list[str] = []
        for title in re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE):
            plain = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
            found.append(f"{plain}-{found.count(plain)}" if plain in found else plain)
        return set(found)

    @property
    def links(self) -> list[str]:
        """The targets of all links."""
        return _LINK.findall(self.prose)

    def linked(self) -> Iterator[tuple[str, Path, str]]:
        """Yield each link within the repository: as it is written, the file, and the anchor or an empty text."""
        for link in self.links:
            if "://" in link or link.startswith("mailto:"):
                continue
            place, _, anchor = link.partition("#")
            yield link, (self.path.parent / place).resolve() if place else self.path, anchor


def broken_links(document: Document) -> list[str]:
    """Return the links of a document that lead to no file, or to no heading of it."""
    broken: list[str] = []
    for link, target, anchor in document.linked():
        leads_there = target.is_file() and target.is_relative_to(ROOT)
        if leads_there and anchor:
            leads_there = anchor in (document if target == document.path else Document(target)).anchors
        if not leads_there:
            broken.append(link)
    return broken


def first_column(text: str) -> set[str]:
    """Return what stands between backticks in the first column of the tables."""
    rows = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


PUBLIC = tuple(
    filter(
        _is_module,
        (
            "magnus_cache", "magnus_cache.dashboard", "magnus_cache.embedded", "magnus_cache.errors",
            "magnus_cache.events", "magnus_cache.freshness", "magnus_cache.integrations.anthropic",
            "magnus_cache.integrations.cachelib", "magnus_cache.integrations.django",
            "magnus_cache.integrations.fastapi", "magnus_cache.integrations.flask", "magnus_cache.integrations.http",
            "magnus_cache.integrations.langchain", "magnus_cache.integrations.litellm", "magnus_cache.integrations.llm",
            "magnus_cache.integrations.openai", "magnus_cache.integrations.pytest",
            "magnus_cache.integrations.sqlalchemy", "magnus_cache.observability.grafana",
            "magnus_cache.observability.opentelemetry", "magnus_cache.observability.prometheus",
            "magnus_cache.protocols", "magnus_cache.simulation", "magnus_cache.testing",
        ),
    )
)  # fmt: skip
"""The modules whose names the reference explains. `redis_cache_manager` has names of `magnus_cache` alone."""


def public_names() -> set[str]:
    """Return every public name, with its module: errors, for instance, with `magnus_cache.errors` alone."""
    names = {f"{module}.{name}" for module in PUBLIC[1:] for name in _listed(module)}
    elsewhere = {name.rpartition(".")[2] for name in names}
    return names | {f"{PUBLIC[0]}.{name}" for name in _listed(PUBLIC[0]) if name not in elsewhere}


def _listed(module: str) -> list[str]:
    """Return the `__all__` of a module, also of one whose library is not installed."""
    path = ROOT / module.replace(".", "/")
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    raise AssertionError(f"{module} has no __all__")


README = Document(ROOT / "README.md")
PAGES = {path.stem: Document(path) for path in sorted((ROOT / ".docs").glob("*.md"))}
"""The topic pages by their names."""

REFERENCE = [Document(path) for path in sorted((ROOT / ".docs" / "reference").glob("*.md"))]
"""The pages of the reference. The site fills them in from the docstrings."""

SKILL = Document(ROOT / "magnus_cache" / ".agents" / "skills" / "magnus-cache" / "SKILL.md")
"""Instructions for coding agents, which are part of the package."""

OTHERS = [Document(ROOT / "CHANGELOG.md"), *map(Document, sorted((ROOT / ".github").glob("*.md")))]
ALL = [README, *PAGES.values(), *REFERENCE, SKILL, *OTHERS]
FOR_USERS = [README, *PAGES.values()]
EXAMPLES = [example for document in (*FOR_USERS, SKILL) for example in document.examples]
