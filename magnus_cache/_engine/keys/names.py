"""Names in Redis: the text of a key, the names built from it, and the names that a clear covers.

- a value is at ``magnus:<namespace>:<text>``, its lease at ``{magnus:<namespace>:<text>}:lease``, in the same slot
  of a cluster;
- everything else is under ``magnus!``, so that ``redis-cli --scan --pattern 'magnus:*'`` lists values only.

Redis announces changes of names without the number of their database. So leases and control keys of databases other
than 0 have the number in their names, as in ``{magnus:<namespace>:<text>}:lease@3`` and
``magnus!epoch@3:<namespace>``: announcements from other databases do not match. Values have the same names in all
databases, where such an announcement costs a miss.

The text of a short, visible string is the string itself. All other text is marked with ``~``, which a plain string
contains only in escaped form, so no two keys share a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, TypeAlias, Union
from uuid import UUID

from magnus_cache._engine.keys.canonical import (
    UnsupportedError,
    counts_by_fields,
    encode,
    escape,
    escape_bytes,
    int_text,
)
from magnus_cache._engine.keys.globs import ClearScope, Glob, is_pattern, key_pattern, literal_head, prefix_pattern
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = [
    "DEFAULT_PREFIX",
    "LONGEST_TEXT",
    "Key",
    "KeyText",
    "Keyspace",
    "check_name",
    "key_text",
    "lease_name",
    "shorten",
    "shown_name",
    "value_name",
]

Key: TypeAlias = Union[str, int, bytes, UUID, "tuple[Key, ...]"]
"""The types of keys; also those that count by their fields or content, see `key_text`."""

LONGEST_TEXT: Final = 200
"""Longest text of a key, in bytes of UTF-8; a longer one is hashed."""

_SHOWN: Final = 60
"""Characters of a long text before its digest."""

_DEEPEST: Final = 50

_PLAIN: Final = re.compile(r"[!-$&-z|]{1,200}").fullmatch
"""Matches a string that is its own text: visible ASCII except ``%``, braces and ``~``."""

_MOST_HEADS: Final = 1024

DEFAULT_PREFIX: Final = "magnus"
"""The default prefix of every name in Redis."""

_PARTS_OF_A_NAME: Final = 3
"""Prefix, namespace and text of a value's name."""


class KeyText(str):
    """The finished text of a key, as `cache_key` of a cached function returns it; used unchanged."""

    __slots__ = ()


def key_text(key: Key, argument: str = "key") -> str:
    """Return the text of a key: the same for equal keys, never the same for two that differ in value or type.

    A subclass of `str` counts as its text, a named tuple as a tuple, a NumPy scalar as the plain value that it equals,
    and a `KeyText` is returned as it is.

    :param key: a str, int, bytes, UUID or a tuple of these; a path, IP address or NumPy scalar; a dataclass, attrs or
        msgspec instance, a pydantic model, or an object with ``__cache_key__()``; an array or frame of at most 4 MiB.
    :param argument: the argument's name for the error message.
    :raises CacheTypeError: (a `TypeError`) for any other type, and for more than 4 MiB.
    :raises CacheArgumentError: (a `ValueError`) for an empty str, bytes or tuple.
    """
    if type(key) is str and _PLAIN(key):
        return key
    if type(key) is KeyText:
        return key
    if isinstance(key, str | bytes | tuple) and len(key) == 0:
        raise CacheArgumentError(argument, f"the key is an empty {type(key).__name__}")
    text = escape(str.__str__(key), alone=True) if isinstance(key, str) else _public(key, argument, 0)
    return shorten(text)


def _public(key: object, argument: str, depth: int) -> str:
    if isinstance(key, str):
        return encode(str.__str__(key))
    if isinstance(key, bool):
        return f"~{bool(key)}"
    if isinstance(key, int):
        return int_text(int(key))
    if isinstance(key, bytes):
        return f"~b:{escape_bytes(bytes(key))}"
    if isinstance(key, UUID):
        return f"~uuid:{UUID.__str__(key)}"
    if isinstance(key, tuple) and depth < _DEEPEST:
        return f"~({','.join([_public(part, argument, depth + 1) for part in key])})"
    if counts_by_fields(key):
        try:
            return encode(key, depth)
        except UnsupportedError as error:
            problem = f"{error.problem}; make a str or a tuple of what identifies the value"
        raise CacheTypeError(argument, problem)
    within = "a tuple nested too deeply" if isinstance(key, tuple) else f"{'in a tuple, ' * (depth > 0)}a"
    raise CacheTypeError(
        argument,
        f"a key is a str, int, bytes, UUID or a tuple of these, not {within} {type(key).__qualname__}; "
        "make a str or a tuple of what identifies the value",
    )


def shorten(text: str) -> str:
    """Return a text as it is, or if it is long, its beginning and its BLAKE2b digest of 128 bits.

    Only shortened texts contain ``~#``.
    """
    data = text.encode()
    if len(data) <= LONGEST_TEXT:
        return text
    # Without half an escape at the end. The digest covers the whole text; the beginning is for readers.
    shown = re.sub(r"%.?$", "", text[:_SHOWN])
    return f"{shown}~#{blake2b(data, digest_size=16).hexdigest()}"


def shown_name(name: bytes) -> str:
    """Return a name as people read it, also one that another program has written in bytes that are no UTF-8."""
    return name.decode("utf-8", "backslashreplace")


def lease_name(value_name: bytes, database: int = 0) -> bytes:
    """Return the name of a value's lease, in the value's slot of a cluster: a key's own braces are escaped."""
    return b"{%b}:lease%b" % (value_name, _at(database).encode()) if database else b"{%b}:lease" % value_name


def value_name(lease: bytes) -> bytes:
    """Return the name of the value that a lease is about."""
    return lease[1:].rpartition(b"}")[0]


def _at(database: int) -> str:
    return f"@{database}" if database else ""


class Keyspace:
    """All Redis names of one deployment.

    :param prefix: the prefix of every name; no ``:``, ``!``, braces, white space or glob characters.
    :param database: the number of the Redis database.
    :param namespaces: the registered namespaces; a glob may begin with the default prefix if that is one of them.
    :raises CacheArgumentError: for a prefix that cannot be one.
    """

    __slots__ = ("_at", "_heads", "_namespaces", "prefix")

    def __init__(self, prefix: str = DEFAULT_PREFIX, database: int = 0, namespaces: Iterable[str] = ()) -> None:
        self.prefix: Final = check_name(prefix, "prefix", also="!")
        self._at = _at(database)
        self._namespaces = namespaces
        # Checked namespaces with the prefix of their names: one look-up for each call.
        self._heads: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Keyspace({self.prefix!r})"

    def check_namespace(self, namespace: str) -> str:
        """Return a namespace's name as a plain str.

        :raises CacheTypeError: for anything but a `str`.
        :raises CacheArgumentError: for a name that cannot be one, see `check_name`.
        """
        return check_name(namespace)

    def value_name(self, namespace: str, key: Key) -> bytes:
        """Return the name of a value.

        :raises CacheTypeError: for a namespace or key of the wrong type.
        :raises CacheArgumentError: for an empty key, or a namespace that cannot be one.
        """
        name = f"{self._head(namespace)}{key_text(key)}"
        try:
            return name.encode()
        except UnicodeEncodeError:
            # Of a `KeyText` alone, as `scan` finds it: another program has written bytes that are no UTF-8.
            return name.encode("utf-8", "surrogateescape")

    def namespace_prefix(self, namespace: str) -> bytes:
        """Return the prefix of the names of all values of a namespace, and of no other."""
        return self._head(namespace).encode()

    def control_name(self, kind: str, text: str = "") -> bytes:
        """Return the name of a control key, such as ``magnus!epoch:portfolio``; `text` is escaped."""
        name = f"{self.prefix}!{kind}{self._at}"
        return (f"{name}:{escape(text, alone=True)}" if text else name).encode()

    def scope(self, target: str) -> ClearScope:
        r"""Return what ``clear(target)`` covers: never a name outside this prefix, never a control key.

        - a plain name is that namespace, and no other that begins with the same letters;
        - a glob (``* ? [a-c] [^a]`` and backslash escapes, as Redis has them) is matched with the full names,
          as in ``magnus:*``, and with the names without the prefix, as in ``portfolio:us*``, with keys as their callers
          wrote them; see `globs`.

        :raises CacheTypeError: for anything but a `str`.
        :raises CacheArgumentError: for a name that cannot be a namespace; and for a glob that begins with the default
            prefix where this is not the default one.
        """
        if not isinstance(target, str) or not is_pattern(target):
            prefix = self.namespace_prefix(_plain_target(target))
            return ClearScope(prefix, prefix_pattern(prefix))
        glob, root = str.__str__(target), f"{self.prefix}:"
        if not glob.strip("*"):
            glob = f"{root}*"
        head, relative = literal_head(glob), ""
        if head and not root.startswith(head[: len(root)]):
            # No full name begins like this, so the glob is relative to the prefix.
            relative = head.partition(":")[0] if ":" in head else ""
            default = DEFAULT_PREFIX in (relative, glob.removesuffix("*"))
            if default and DEFAULT_PREFIX not in map(str, self._namespaces):
                raise self.other_prefix(DEFAULT_PREFIX, glob)
            glob, head = root + glob, root + head
        if not glob.startswith(root):
            return ClearScope(root.encode(), prefix_pattern(root.encode()), Glob(root.encode(), glob, root + glob))
        parts = head.split(":", 2)
        # Redis names contain a namespace unchanged, but a key in a form that depends on its type.
        prefix = (head if len(parts) < _PARTS_OF_A_NAME else f"{parts[0]}:{parts[1]}:").encode("utf-8", "surrogatepass")
        if glob == head + "*" and prefix.decode("utf-8", "surrogatepass") == head:
            return ClearScope(prefix, prefix_pattern(prefix), relative=relative)
        pattern = key_pattern(prefix, parts[2] if len(parts) == _PARTS_OF_A_NAME else "")
        return ClearScope(prefix, pattern, Glob(prefix, glob), relative)

    def other_prefix(self, other: str, glob: str) -> CacheArgumentError:
        """Return the error for a glob that begins with another cache's prefix, with what to write instead."""
        right = f"{self.prefix}:{glob.removeprefix(other).removeprefix(':')}"
        return CacheArgumentError(
            "namespace_or_pattern",
            f"{glob!r} names the prefix {other!r}, and this cache's is {self.prefix!r}: write clear({right!r}). "
            f"For a namespace {other!r}, write clear({other!r}) or clear({f'{self.prefix}:{glob}'!r})",
        )

    def uses(self, namespace: str) -> bool:
        """Return whether this process has used a namespace lately."""
        return namespace in self._heads

    def clock_of(self, prefix: str) -> bytes:
        """Return the name of the control key that exists in this database while caches with a prefix use it."""
        return f"{prefix}!clock{self._at}".encode("utf-8", "surrogatepass")

    def _head(self, namespace: str) -> str:
        try:
            head = self._heads.get(namespace)
        except TypeError:  # not hashable, so it is no name; `check_name` raises the error
            head = None
        if head is None:
            head = f"{self.prefix}:{check_name(namespace)}:"
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            self._heads[namespace] = head
        return head


def _plain_target(target: object) -> str:
    """Return the name of a namespace to clear.

    :raises CacheTypeError: for anything but a `str`.
    :raises CacheArgumentError: for a name that cannot be a namespace.
    """
    try:
        return check_name(target, "namespace_or_pattern")
    except CacheArgumentError as error:
        if not isinstance(target, str) or ":" not in target:
            raise
        problem = error.problem
    raise CacheArgumentError(
        "namespace_or_pattern", f"{problem}; delete(namespace, key) removes one value, and a pattern has one of * ? ["
    )


_LONGEST_NAME: Final = 100


# ':' separates a namespace from its keys, braces mark a cluster's hash tag, and the glob characters would make
# `clear` ambiguous. The ranges are spelled out because `str.isprintable` depends on the Python version, and all
# processes of a fleet must agree on which names are valid.
_FORBIDDEN: Final = re.compile(
    "[:{}*?\\[\\]\\\\^\\s\x00-\x20\x7f-\xa0\xad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ud800-\udfff\ufeff]"
)


def check_name(name: object, argument: str = "namespace", *, also: str = "") -> str:
    r"""Return a name as a plain `str`, if it can be part of Redis keys.

    :param name: the name that the caller passed.
    :param argument: the argument's name, for the error message.
    :param also: other characters that this kind of name must not contain.
    :raises CacheTypeError: (a `TypeError`) for anything but a `str`.
    :raises CacheArgumentError: (a `ValueError`) for an empty or over-long name and for one with ``:``, braces,
        white space, control characters or the glob characters ``* ? [ ] \ ^``.
    """
    if not isinstance(name, str):
        raise CacheTypeError(argument, f"a name is a str or a Namespace, not {type(name).__name__}")
    # A `str` enumeration's `str()` is not its text.
    text = str.__str__(name)
    if not text:
        raise CacheArgumentError(argument, "the name is empty")
    if len(text) > _LONGEST_NAME:
        raise CacheArgumentError(argument, f"the name has {len(text)} characters, more than {_LONGEST_NAME}")
    bad = _FORBIDDEN.search(text) or (re.search(f"[{re.escape(also)}]", text) if also else None)
    if bad:
        raise CacheArgumentError(
            argument,
            f"{text!r} contains {bad.group()!r}; a name has no colon, braces, white space, control or glob characters",
        )
    return text
