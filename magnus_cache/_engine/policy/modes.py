"""Modes: how the calls of a context use the cache."""

from contextvars import ContextVar
from enum import Enum
from typing import Final

__all__ = ["MODE", "Mode"]


class Mode(Enum):
    """How calls treat the cache."""

    NORMAL = "normal"
    BYPASS = "bypass"
    """Read nothing from the cache, but store what is loaded: a one-off fresh read."""
    DISABLED = "disabled"
    """As if there were no cache at all."""


MODE: Final[ContextVar[Mode]] = ContextVar("magnus_cache_mode", default=Mode.NORMAL)
