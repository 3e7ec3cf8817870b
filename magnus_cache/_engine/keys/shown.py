"""Keys as people see and write them: the strings of programs where that is possible, and the stored texts elsewhere."""

import re
from typing import Final
from urllib.parse import unquote

from magnus_cache._engine.keys.names import KeyText, key_text

__all__ = ["key_of", "key_shown"]

_ESCAPED: Final = re.compile(r"(?:[^%]|%[0-9A-F]{2})+").fullmatch
"""Matches a text in which each percent sign begins an escape."""


def key_shown(text: str) -> str:
    """Return how the text of a key is shown: as the string that its program wrote, if it is one that `key_of` takes."""
    plain = unquote(text, errors="surrogateescape")
    return plain if plain == text or (plain and key_text(key_of(plain)) == text) else text


def key_of(shown: str) -> str:
    """Return the key that is meant: one that `key_shown` shows, or a string as a program writes it."""
    # A text of a key that is no plain string has a tilde, which that of a plain one has only in escaped form.
    is_text = "~" in shown or ("%" in shown and _ESCAPED(shown) is not None and key_shown(shown) == shown)
    return KeyText(shown) if is_text else shown
