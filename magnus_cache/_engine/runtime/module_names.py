"""A module's name as every process of a fleet knows it: one rule for keys, registered types and remembered errors."""

import re
import sys
from typing import Final

__all__ = ["file_stem", "module_name"]

_MAIN: Final = frozenset({"__main__", "__mp_main__"})
"""The main module, and what `multiprocessing` calls it in a process that it has spawned."""


def module_name(module: str | None) -> str:
    """Return a module's name as other processes know it.

    The main module's name is the one that ``python -m`` was given, or else its file's, because another process may
    import it. A spawned process calls it ``__mp_main__``; that is the same module. A main module without a file, as in
    a notebook, is ``__main__``.
    """
    if module not in _MAIN:
        return module or ""
    # While a spawned process still runs the main module's file, `__main__` is the spawner's own.
    main = sys.modules.get(module) or sys.modules.get("__main__")
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if isinstance(name, str) and name not in _MAIN:
        return name
    path = getattr(main, "__file__", None)
    if not isinstance(path, str):
        return "__main__"
    folder, _, file = path.replace("\\", "/").rpartition("/")
    # A folder or an archive that Python runs contains this file, and gives the program its name.
    return file_stem(folder) if file == "__main__.py" and folder else file_stem(file)


def file_stem(path: str) -> str:
    """Return the last part of a path of any system, without the suffix of Python files."""
    return re.sub(r"\.py[cw]?$", "", re.split(r"[/\\]", path)[-1])
