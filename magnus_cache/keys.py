"""Names in Redis: the text of a key, the names built from it, and what a clear covers.

- a value is at ``magnus:<namespace>:<text>``, its lease at ``{magnus:<namespace>:<text>}:lease``, in the same slot
  of a cluster;
- everything else is under ``magnus!``, so that ``redis-cli --scan --pattern 'magnus:*'`` lists values only.

Redis announces changes of names without the number of their database. So leases and control keys of a database other
than 0 carry its number, as in ``{magnus:<namespace>:<text>}:lease@3`` and ``magnus!epoch@3:<namespace>``: what happens
to another database's is no news here. Values have the same names everywhere: to hear of another one costs a miss.

The text of a plain string is that string, as long as it is short and all of it can be seen. Everything else is
marked with ``~``, which a plain string never contains unescaped, so no two keys share a text.
"""

import re
from hashlib import blake2b
from typing import Final, NamedTuple, TypeAlias, Union
from uuid import UUID

from magnus_cache.canonical import encode, escape, escape_bytes, int_text
from magnus_cache.errors import CacheArgumentError, CacheTypeError
from magnus_cache.namespaces import check_name

__all__ = [
    "LONGEST_TEXT",
    "Key",
    "KeyText",
    "Keyspace",
    "Scope",
    "is_pattern",
    "key_text",
    "lease_name",
    "pattern_regex",
    "shorten",
    "value_name",
]

Key: TypeAlias = Union[str, int, bytes, UUID, "tuple[Key, ...]"]
"""What can be a key."""

LONGEST_TEXT: Final = 200
"""Bytes of UTF-8 up to which a key's text is kept; longer ones are hashed."""

_SHOWN: Final = 60
"""Characters of a long text that stay readable before its digest."""

_DEEPEST: Final = 50

_PLAIN: Final = re.compile(r"[!-$&-z|]{1,200}").fullmatch
"""Tells a string that is its own text: visible ASCII but for ``%``, braces and ``~``."""

_MOST_HEADS: Final = 1024


class KeyText(str):
    """The finished text of a key, as `cache_key` of a cached function returns it: taken as it is."""

    __slots__ = ()


def key_text(key: Key, argument: str = "key") -> str:
    """Return the text of a key: the same for equal keys, never the same for two that differ in value or type.

    A subclass of `str` counts as its text, a named tuple as a tuple, and a `KeyText` is returned as it is.

    :param key: a str, int, bytes, UUID or a tuple of these.
    :param argument: the argument's name for the error message.
    :raises CacheTypeError: (a `TypeError`) for any other type.
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
    within = "a tuple nested too deeply" if isinstance(key, tuple) else f"{'in a tuple, ' * (depth > 0)}a"
    raise CacheTypeError(
        argument,
        f"a key is a str, int, bytes, UUID or a tuple of these, not {within} {type(key).__qualname__}; "
        "make a str or a tuple of what identifies the value",
    )


def shorten(text: str) -> str:
    """Return a text as it is, or if it is long, its beginning and its BLAKE2b digest of 128 bits.

    ``~#`` is in no text that was not shortened.
    """
    data = text.encode()
    if len(data) <= LONGEST_TEXT:
        return text
    # Not in the midst of an escape; what is shown is for people only, as the digest is of all of it.
    shown = re.sub(r"%.?$", "", text[:_SHOWN])
    return f"{shown}~#{blake2b(data, digest_size=16).hexdigest()}"


def lease_name(value_name: bytes, database: int = 0) -> bytes:
    """Return the name of a value's lease, in the value's slot of a cluster: a key's own braces are escaped."""
    return b"{%b}:lease%b" % (value_name, _at(database).encode())


def value_name(lease: bytes) -> bytes:
    """Return the name of the value that a lease is about."""
    return lease[1:].rpartition(b"}")[0]


def _at(database: int) -> str:
    return f"@{database}" if database else ""


class Scope(NamedTuple):
    """What a clear covers, as full Redis names.

    :ivar prefix: all names covered begin with this.
    :ivar pattern: the glob for SCAN MATCH. It may match more than is covered where `regex` is given.
    :ivar regex: matches, in full, exactly the names covered; None means all that begin with `prefix`.
    """

    prefix: bytes
    pattern: bytes
    regex: re.Pattern[bytes] | None

    def covers(self, name: bytes) -> bool:
        """Return whether a full Redis name is covered."""
        return name.startswith(self.prefix) and (self.regex is None or self.regex.fullmatch(name) is not None)


class Keyspace:
    """All Redis names of one deployment.

    :param prefix: what every name begins with; no ``:``, ``!``, braces, white space or glob characters.
    :param database: the number of the Redis database.
    :raises CacheArgumentError: for a prefix that cannot be one.
    """

    __slots__ = ("_at", "_heads", "prefix")

    def __init__(self, prefix: str = "magnus", database: int = 0) -> None:
        self.prefix: Final = check_name(prefix, "prefix", also="!")
        self._at = _at(database)
        # Checked namespaces and what their names begin with: one look-up for each call.
        self._heads: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Keyspace({self.prefix!r})"

    def check_namespace(self, namespace: str) -> str:
        """Return a namespace's name as a plain str.

        :raises CacheTypeError: for anything but a `str`.
        :raises CacheArgumentError: for a name that cannot be one, see `namespaces.check_name`.
        """
        return check_name(namespace)

    def value_name(self, namespace: str, key: Key) -> bytes:
        """Return the name of a value.

        :raises CacheTypeError: for a namespace or key of the wrong type.
        :raises CacheArgumentError: for an empty key, or a namespace that cannot be one.
        """
        return f"{self._head(namespace)}{key_text(key)}".encode()

    def namespace_prefix(self, namespace: str) -> bytes:
        """Return what the names of all values of a namespace, and of no other, begin with."""
        return self._head(namespace).encode()

    def control_name(self, kind: str, text: str = "") -> bytes:
        """Return the name of a control key, such as ``magnus!epoch:portfolio``; `text` is escaped."""
        name = f"{self.prefix}!{kind}{self._at}"
        return (f"{name}:{escape(text, alone=True)}" if text else name).encode()

    def prefix_pattern(self, prefix: bytes) -> bytes:
        """Return the glob for SCAN MATCH that matches the names that begin with these bytes."""
        return re.sub(rb"([*?\[\]\\^])", rb"\\\1", prefix) + b"*"

    def scope(self, target: str) -> Scope:
        r"""Return what ``clear(target)`` covers: never a name outside this prefix, never a control key.

        - a plain name is that namespace, and nothing of one that only begins alike;
        - a glob (``* ? [a-c] [^a]`` and backslash escapes, as Redis has them) is matched with the full names,
          as in ``magnus:*``, and with the names without the prefix, as in ``portfolio:us*``.

        :raises CacheTypeError: for anything but a `str`.
        :raises CacheArgumentError: for a name that cannot be a namespace.
        """
        if not isinstance(target, str) or not is_pattern(target):
            prefix = self.namespace_prefix(check_name(target, "namespace_or_pattern"))
            return Scope(prefix, self.prefix_pattern(prefix), None)
        glob, root = str.__str__(target).encode("utf-8", "surrogatepass"), f"{self.prefix}:".encode()
        if not glob.strip(b"*"):
            glob = root + b"*"
        head = _literal_head(glob)[: len(root)]
        if head and not root.startswith(head):
            # No full name begins like this, so it can only be meant without the prefix.
            glob = root + glob
        if not glob.startswith(root):
            full, relative = _expression(glob), re.escape(root) + _expression(glob)
            regex = re.compile(rb"(?s:(?=%b)(?:%b|%b))\Z" % (re.escape(root), full, relative))
            return Scope(root, self.prefix_pattern(root), regex)
        literal = _literal_head(glob)
        only_prefix = glob == literal + b"*"
        return Scope(literal, glob, None if only_prefix else pattern_regex(glob))

    def _head(self, namespace: str) -> str:
        try:
            head = self._heads.get(namespace)
        except TypeError:  # not hashable, so no name: told below
            head = None
        if head is None:
            head = f"{self.prefix}:{check_name(namespace)}:"
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            self._heads[namespace] = head
        return head


# -- globs --------------------------------------------------------------------------------------------------


def is_pattern(text: str) -> bool:
    """Return whether text has glob characters, as no namespace has."""
    return any(character in text for character in "*?[\\")


def pattern_regex(glob: str | bytes) -> re.Pattern[bytes]:
    """Return the expression that matches in full what SCAN MATCH matches, oddities of Redis' globs included."""
    data = glob.encode("utf-8", "surrogatepass") if isinstance(glob, str) else glob
    return re.compile(rb"(?s:%b)\Z" % _expression(data))


def _literal_head(glob: bytes) -> bytes:
    found = re.match(rb"[^*?\[\\]*", glob)
    return found.group() if found else b""


def _expression(glob: bytes) -> bytes:
    """Translate a glob. After the first star, each stretch between stars is matched where it first fits, for good.

    Giving it up again could not help, and would take exponential time.
    """
    stretches: list[list[bytes]] = [[]]
    place = 0
    while place < len(glob):
        character = glob[place : place + 1]
        place += 1
        if character == b"*":
            stretches.append([])
        elif character == b"?":
            stretches[-1].append(b".")
        elif character == b"[":
            item, place = _class(glob, place)
            stretches[-1].append(item)
        else:
            if character == b"\\" and place < len(glob):
                character = glob[place : place + 1]
                place += 1
            stretches[-1].append(re.escape(character))
    head, *rest = (b"".join(stretch) for stretch in stretches)
    if not rest:
        return head
    *middle, last = rest
    return head + b"".join(b"(?>.*?%b)" % stretch for stretch in middle if stretch) + b".*" + last


def _class(glob: bytes, place: int) -> tuple[bytes, int]:
    """Translate what follows ``[`` up to its ``]``, or to the end of the glob, as Redis has it."""
    negated = glob[place : place + 1] == b"^"
    place += negated
    members: set[int] = set()
    while place < len(glob):
        left = len(glob) - place
        if glob[place] == 0x5C and left >= 2:
            members.add(glob[place + 1])
            place += 2
        elif glob[place] == 0x5D:
            place += 1
            break
        elif left >= 3 and glob[place + 1] == 0x2D:
            low, high = sorted((glob[place], glob[place + 2]))
            members.update(range(low, high + 1))
            place += 3
        else:
            members.add(glob[place])
            place += 1
    if negated:
        members = set(range(256)) - members
    if not members:
        return b"(?!)", place
    return b"[%b]" % b"".join(b"\\x%02x" % member for member in sorted(members)), place
