"""Links to modules lead to their design comments: an extension of Markdown for the site.

On GitHub a page links to ``../magnus_cache/_engine/store/judge.py``. The site has no source code. There such a link
leads to the docstring of the module, which `design.md` shows. A module without one there fails the build.
"""

import re
from typing import Any
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor

__all__ = ["makeExtension"]

_MODULE = re.compile(r"(?:\.\./)+(magnus_cache/[\w/]+)\.py")


class _Modules(Treeprocessor):
    def run(self, root: Element) -> None:
        for link in root.iter("a"):
            found = _MODULE.fullmatch(link.get("href", ""))
            if found is not None:
                # mkdocstrings resolves these, and the strict build fails for one that it cannot resolve.
                link.tag = "autoref"
                link.attrib = {"identifier": found[1].replace("/", ".")}


class _ModuleLinks(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.treeprocessors.register(_Modules(md), "module_links", 5)


def makeExtension(**options: Any) -> Extension:
    """Return the extension: the name by which Markdown calls a module's factory."""
    return _ModuleLinks(**options)
