"""Keys of sealed values for tests, and what is never to be seen of what they seal."""

import base64
import os

__all__ = ["new_key", "ring"]


def new_key(name: str) -> str:
    """Return a new key, as the settings take it."""
    return f"{name}:{base64.b64encode(os.urandom(32)).decode()}"


def ring(*keys: str) -> str:
    """Return the setting for several keys."""
    return ",".join(keys)
