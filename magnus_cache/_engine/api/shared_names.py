"""A warning for applications that may unknowingly share the keys of their functions.

The functions of two programs with a ``main.py`` have the same names. On one Redis, with the default prefix, each
program would read what the other stored.
"""

import sys
from typing import TYPE_CHECKING

from magnus_cache._engine.runtime.log import say

if TYPE_CHECKING:
    from magnus_cache._engine.coordination.state import State

__all__ = ["warn_of_shared_names"]

_warned: list[str] = []


def warn_of_shared_names(state: "State", name: str, module: str) -> None:
    """Warn, once for each process, if the keys of a function may be those of another application's.

    :param name: the function's name in its keys.
    :param module: the name of its module in this process.
    """
    if _warned or state.endpoint is None or "prefix" in state.settings.model_fields_set:
        return
    if "." in module or hasattr(sys.modules.get(module), "__path__"):
        return
    _warned.append(name)
    say(
        f"the keys of {name} begin with the name of a single file, and with the default prefix "
        f"{state.keyspace.prefix!r}: another application with a file of that name on the same Redis reads and "
        "overwrites its values. Give each application a prefix of its own (prefix=..., MAGNUS_CACHE_PREFIX)"
    )
