"""The docstrings that the package has when it is imported: an extension of Griffe for the site.

Griffe reads the source. The blocking operations get their docstrings at import, from those for coroutines. In the
docstrings, public names stand in backticks; the site makes links of them, and a wrong one fails the build.
"""

import inspect
import re
from typing import Any

from griffe import Docstring, Extension, Function, Object, dynamic_import

import magnus_cache

__all__ = ["RuntimeDocstrings"]

_DEFERRED = re.compile(r"Do what `\w+\.\w+` does")
_NAME = re.compile(r"(?<![`\[])`([A-Za-z]\w+)(?:\.(\w+))?`(?![`\]])")


def linked(text: str) -> str:
    """Return the text with references in place of the public names in backticks."""

    def reference(found: "re.Match[str]") -> str:
        name, member = found.groups()
        if name not in magnus_cache.__all__:
            return found[0]
        path = f"{name}.{member}" if member else name
        return f"[`{path}`][magnus_cache.{path}]"

    return _NAME.sub(reference, text)


class RuntimeDocstrings(Extension):
    """Takes the docstrings of operations from the imported package, and links the names in all docstrings."""

    def on_function(self, *, func: Function, **_: Any) -> None:
        """Replace a docstring that names another one by the text that `help()` shows."""
        if func.docstring is not None and _DEFERRED.match(func.docstring.value):
            text = inspect.getdoc(dynamic_import(func.path)) or ""
            func.docstring = Docstring(text, parent=func, lineno=func.docstring.lineno)

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Make links of the public names in a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = linked(obj.docstring.value)
