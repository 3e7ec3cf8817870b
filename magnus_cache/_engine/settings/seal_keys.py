"""The keys of sealed values, as they are written in the settings."""

import base64
import binascii
import re
from typing import Annotated, Final

from pydantic import AfterValidator, SecretStr

__all__ = ["SealKeys", "parsed_seal_keys"]

_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}").fullmatch
_BYTES: Final = 32


def parsed_seal_keys(text: str) -> list[tuple[str, bytes]]:
    """Return id and bytes of each key, in their order.

    :raises ValueError: naming the place of the key that is wrong, and nothing that it contains: what stands in the
        place of an id may be the secret.
    """
    found: dict[str, bytes] = {}
    for place, entry in enumerate(text.split(","), 1):
        key, colon, secret = entry.strip().partition(":")
        if not colon:
            raise ValueError(f"key {place} is not written as id:base64")
        if not _ID(key):
            raise ValueError(f"the id of key {place} is not 1 to 32 letters, digits, dots, dashes or underscores")
        if key in found:
            raise ValueError(f"the id of key {place} is that of an earlier one; give each key an id of its own")
        try:
            found[key] = base64.b64decode(secret.strip().translate(_URL_SAFE), validate=True)
        except (binascii.Error, ValueError):
            # Not as its cause: errors of the library may show the text.
            found[key] = b""
        if not found[key]:
            raise ValueError(f"key {place} is not base64, such as `openssl rand -base64 32` prints it")
        if len(found[key]) != _BYTES:
            raise ValueError(f"key {place} has {len(found[key])} bytes; {_BYTES} random bytes are needed")
    return list(found.items())


_URL_SAFE: Final = str.maketrans("-_", "+/")


def _checked(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        parsed_seal_keys(value.get_secret_value())
    return value


SealKeys = Annotated[SecretStr | None, AfterValidator(_checked)]
"""Keys of sealed values: ``id:base64`` of 32 bytes, with commas."""
