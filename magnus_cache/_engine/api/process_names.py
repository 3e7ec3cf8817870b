"""How functions that follow the process-wide cache are named."""

from typing import Any

__all__ = ["ProcessWide"]


class ProcessWide:
    """Names a function that follows the process-wide cache, whichever that is."""

    def __init__(self, name: str, namespace: str, follower: Any) -> None:
        self._text = f"{name}, namespace {str(namespace)!r}, process-wide cache"
        self._follower = follower

    def place(self) -> Any:
        """Return what the function goes to now."""
        return self._follower.present()

    def describe(self) -> str:
        """Return the name of the function, and of its namespace and cache."""
        return self._text
