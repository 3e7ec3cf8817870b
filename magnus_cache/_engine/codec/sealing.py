"""Sealed values: encrypted and authenticated in the process, so that Redis has neither their content nor their keys.

AES-256-GCM with a random nonce of 96 bits. Each namespace has keys of its own, derived from those of the settings by
HKDF-SHA-256: one for values, one for the text of keys. Algorithm and key come from the configuration and the name that
the reader asked for, never from the bytes that Redis has.

A sealed value is a stored value (see `envelope`) with the flag `SEALED`. Header and tags stay readable, for scripts and
tools; the names of tags are keys in Redis anyway. In place of the rest of the body (validator and payload, compressed
or not) stands the nonce, and that rest as ciphertext with its mark of 128 bits.

The associated data bind a value to its place. Each part with its length in front: header without checksum and tags,
prefix, namespace, full name. So a value moved to another key, namespace or prefix cannot be opened, nor one whose end,
epoch, flags or tags were changed. What remains to those who can write to Redis: to remove values, and to put an older
value of the same key back until its end.

The name of a sealed value has the id of its key, and in place of the key's text its HMAC-SHA-256, of 128 bits.
"""

import hmac
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from magnus_cache._engine.codec import envelope
from magnus_cache.errors import CacheArgumentError, CacheDecodeError, CacheSettingsError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["SEAL_FAILURES", "SealRing", "is_sealed_text"]

SEAL_FAILURES: Final = frozenset({"seal", "unsealed"})
"""Reasons of `CacheDecodeError`: a value that cannot be opened, and one that is not sealed but has to be."""

_NONCE: Final = 12
_KEY: Final = 32
_MARK: Final = 16
"""Bytes that show that nothing was changed, at the end of the ciphertext."""

_TEXT: Final = 16
"""Bytes of an HMAC in the text of a key."""

_PURPOSE: Final = b"magnus_cache sealed values 1"
_MOST_DERIVED: Final = 4_096

_SEALED_TEXT: Final = re.compile(r"~sealed\.(?P<id>[A-Za-z0-9_.-]+):[0-9a-f]{32}(?:~n:.*)?", re.DOTALL)
"""The text of a sealed key; at its end may be the version of its namespace."""


class _Keys(NamedTuple):
    """What is derived from one key for one namespace."""

    cipher: "AESGCM"
    texts: bytes


def is_sealed_text(text: str) -> bool:
    """Return whether a text is that of a sealed key, as `SealRing.texts` makes it."""
    return _SEALED_TEXT.fullmatch(text) is not None


def _lengths(*parts: bytes) -> bytes:
    """Return parts, each with its length in front: no two lists of parts give the same bytes."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


class SealRing:
    """Seals and opens the values of one cache, by all its keys. Thread-safe.

    :param keys: id and 32 bytes of each; the first seals, all open.
    :param prefix: that of the cache's names in Redis.
    """

    __slots__ = ("_derived", "_ids", "_keys", "_prefix")

    def __init__(self, keys: Sequence[tuple[str, bytes]], prefix: str) -> None:
        self._keys = dict(keys)
        self._ids = tuple(self._keys)
        self._prefix = prefix.encode()
        self._derived: dict[tuple[str, str], _Keys] = {}
        if keys:
            # Now: the first call may run on an event loop, which an import would stall. Without the library, the error
            # is that of the namespace.
            try:
                _aead()
            except ImportError:
                pass

    def texts(self, namespace: str, text: str) -> list[str]:
        """Return the texts in Redis that stand for the text of a key, one for each key of the ring.

        :raises CacheSettingsError: if there are no keys.
        """
        if not self._ids:
            raise CacheSettingsError(
                f"namespace {str(namespace)!r} is sealed, and there is no key: set seal_keys (MAGNUS_CACHE_SEAL_KEYS) "
                "to id:base64, where base64 is that of 32 random bytes"
            )
        data = text.encode()
        return [f"~sealed.{each}:{self._text(each, namespace, data)}" for each in self._ids]

    def _text(self, key: str, namespace: str, data: bytes) -> str:
        return hmac.digest(self._of(key, namespace).texts, data, "sha256")[:_TEXT].hex()

    def _of(self, key: str, namespace: str) -> _Keys:
        place = key, str(namespace)
        found = self._derived.get(place)
        if found is None:
            if len(self._derived) >= _MOST_DERIVED:
                self._derived.clear()
            aead, hkdf, sha256 = _aead()
            info = _PURPOSE + _lengths(self._prefix, place[1].encode())
            both = hkdf(algorithm=sha256(), length=2 * _KEY, salt=None, info=info).derive(self._keys[key])
            found = self._derived[place] = _Keys(aead(both[:_KEY]), both[_KEY:])
        return found

    def _key_of(self, namespace: str, name: bytes) -> _Keys:
        """Return the keys that a name was made with.

        :raises CacheDecodeError: with the reason ``"seal"``, if they are not in the ring.
        """
        text = name[len(self._prefix) + len(namespace.encode()) + 2 :].decode("utf-8", "replace")
        found = _SEALED_TEXT.fullmatch(text)
        if found is None or found["id"] not in self._keys:
            raise CacheDecodeError("seal", "the value is sealed with a key that is not one of seal_keys")
        return self._of(found["id"], namespace)

    def sealed(self, namespace: str, name: bytes, raw: bytes) -> bytes:
        """Return a stored value sealed for its place.

        :param name: its name in Redis, made with one of `texts`.
        :param raw: a sound value, as `envelope.pack` returns it.
        :raises CacheArgumentError: for a name that none of the keys can have made.
        """
        try:
            keys = self._key_of(namespace, name)
        except CacheDecodeError as error:
            raise CacheArgumentError("key", error.problem) from error
        header, tags, body = envelope.parted(raw)
        clear = envelope.clear_part(raw, header.flags | envelope.SEALED, tags, _NONCE + len(body) + _MARK)
        nonce = os.urandom(_NONCE)
        hidden = keys.cipher.encrypt(nonce, body, self._associated(namespace, name, clear))
        return envelope.joined(clear, nonce + hidden)

    def opened(self, namespace: str, name: bytes, raw: bytes) -> bytes:
        """Return the stored value that was sealed for a place.

        :raises CacheDecodeError: with the reason ``"unsealed"`` for a sound value that is not sealed, and else
            ``"seal"``.
        """
        try:
            header, tags, body = envelope.parted(raw)
        except CacheDecodeError as error:
            raise CacheDecodeError("seal", f"in place of a sealed value: {error}") from error
        if not header.flags & envelope.SEALED:
            raise CacheDecodeError("unsealed", "the stored value is not sealed, and its namespace is")
        keys = self._key_of(namespace, name)
        clear = envelope.clear_part(raw, header.flags, tags, len(body))
        try:
            plain = keys.cipher.decrypt(body[:_NONCE], body[_NONCE:], self._associated(namespace, name, clear))
        # Of any kind: whatever the bytes are, they are a miss.
        except Exception as error:  # `InvalidTag`, and ValueError for what is too short
            raise CacheDecodeError("seal", "the sealed value was changed, or belongs elsewhere") from error
        flags = header.flags & ~envelope.SEALED
        return envelope.joined(envelope.clear_part(raw, flags, tags, len(plain)), plain)

    def _associated(self, namespace: str, name: bytes, clear: bytes) -> bytes:
        return _lengths(clear, self._prefix, namespace.encode(), name)


def _aead() -> Any:
    """Return the classes of the library: the cipher, the derivation of keys, and its hash.

    :raises ImportError: naming the extra.
    """
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError as error:
        raise ImportError(
            'seal=True needs cryptography: pip install "magnus-cache[crypto]"', name="cryptography"
        ) from error
    return AESGCM, HKDF, SHA256
