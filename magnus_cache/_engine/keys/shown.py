"""Keys as people see and write them: the strings of programs where that is possible, and the stored texts elsewhere.

What is shown is one line that a terminal can print. A name that another program has written in bytes that are no UTF-8
is shown with these bytes percent-escaped: no key of a cache has such a text.
"""

import re
from typing import Final
from urllib.parse import unquote, unquote_to_bytes

from magnus_cache._engine.keys.names import KeyText, key_text

__all__ = ["key_of", "key_shown"]

_ESCAPED: Final = re.compile(r"(?:[^%]|%[0-9A-F]{2})+").fullmatch
"""Matches a text in which each percent sign begins an escape."""

_VISIBLE: Final = frozenset(range(0x21, 0x7F)) - set(b"%~")


def key_shown(text: str) -> str:
    """Return how the text of a key is shown: as the string that its program wrote, if it is one that `key_of` takes."""
    if not text.isascii() and _is_foreign(data := text.encode("utf-8", "surrogateescape")):
        # Without a tilde and other percent signs, so that it is read as it is meant.
        return "".join([chr(byte) if byte in _VISIBLE else f"%{byte:02X}" for byte in data])
    plain = unquote(text, errors="surrogateescape")
    is_one = plain == text or (plain.isprintable() and plain and key_text(key_of(plain)) == text)
    return plain if is_one else text


def key_of(shown: str) -> str:
    """Return the key that is meant: one that `key_shown` shows, or a string as a program writes it."""
    if "~" not in shown and "%" in shown and _ESCAPED(shown) is not None:
        data = unquote_to_bytes(shown)
        if _is_foreign(data):
            return KeyText(data.decode("utf-8", "surrogateescape"))
    # A text of a key that is no plain string has a tilde, which that of a plain one has only in escaped form.
    is_text = "~" in shown or ("%" in shown and _ESCAPED(shown) is not None and key_shown(shown) == shown)
    return KeyText(shown) if is_text else shown


def _is_foreign(data: bytes) -> bool:
    """Return whether these bytes are no text of a key: that is UTF-8, in which a lone surrogate is escaped."""
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return True
    return False
