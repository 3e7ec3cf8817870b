"""Globs: which values a clear covers, matched with the keys as their callers wrote them.

A name in Redis contains a key's text. That text escapes invisible characters, marks types other than str, and ends in a
digest if the key is long. Callers need not know that: a glob is matched with the key that they wrote.

- A string is matched as it is: ``clear("users:hello w*")`` covers the key ``"hello world"``.
- A number, UUID, path or address is matched as `str` writes it: ``clear("years:2025*")`` covers the key ``2025``.
- A tuple is matched in three spellings: ``AAPL:2025``, ``(AAPL,2025)`` and ``('AAPL', 2025)``.
- A call of a cached function is matched as its ``cache_key()`` says, and without the marks and escapes of that.
- Of a long key only the beginning is known. It is covered unless the beginning rules it out: that may cost a miss, but
  never leaves an old value.

A question mark, and a class such as ``[a-c]``, stand for one character, not for one byte as in Redis.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple
from uuid import UUID

from magnus_cache._engine.keys.canonical import escape

__all__ = [
    "ClearScope",
    "Glob",
    "is_pattern",
    "key_pattern",
    "literal_head",
    "prefix_pattern",
    "spellings",
]

_SPECIAL: Final = re.compile(r"[*?\[\\]")
_QUOTED: Final = re.compile(rb"([*?\[\]\\^\-])")
_STAR: Final = ""
"""The token for any number of characters; other tokens are expressions for one character each."""

_PARTS_OF_A_NAME: Final = 3
"""Prefix, namespace, and the text of the key."""

_NUMBER: Final = re.compile(rb"~(-?[0-9]+)")
_DIGEST: Final = re.compile(r"(.*)~#[0-9a-f]{32}", re.DOTALL)
_ESCAPED: Final = re.compile(rb"%([0-9A-F]{2})")
_LONGEST_CHARACTER: Final = 4
"""Bytes of a character in UTF-8 at most."""

_MARKS: Final = re.compile(r"~(?:[a-z]+(?:<[^>]*>)?:)?")
_BETWEEN: Final = frozenset("),")
_PARTS: Final = re.compile(r"~\(|~''|~[a-zA-Z0-9]+:|~|[(),=]|[^~(),=]+")


class ClearScope(NamedTuple):
    """The full Redis names that a clear covers.

    :ivar prefix: all names covered begin with this.
    :ivar pattern: the glob for SCAN MATCH. It may match more than is covered where `glob` is given.
    :ivar glob: tells which names are covered; None means all that begin with `prefix`.
    :ivar relative: the first part of a glob that does not begin with the cache's own prefix: its namespace, or else
        another cache's prefix.
    """

    prefix: bytes
    pattern: bytes
    glob: "Glob | None" = None
    relative: str = ""

    def covers(self, name: bytes) -> bool:
        """Return whether a full Redis name is covered."""
        return name.startswith(self.prefix) and (self.glob is None or self.glob.fullmatch(name) is not None)


class Glob:
    """Tells which full names some globs cover, any of them.

    :param prefix: the required prefix of names.
    :param globs: globs of full names, with keys as their callers wrote them.
    :ivar prefix: as given.
    """

    __slots__ = ("_globs", "_shapes", "prefix")

    def __init__(self, prefix: bytes, *globs: str) -> None:
        self.prefix = prefix
        self._globs = globs
        self._shapes = [_Shape.of(glob) for glob in globs]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Glob) and (self.prefix, self._globs) == (other.prefix, other._globs)

    def __hash__(self) -> int:
        return hash((self.prefix, self._globs))

    def fullmatch(self, name: bytes) -> bytes | None:
        """Return a full Redis name if the clear covers it, else None, like `re.Pattern.fullmatch`."""
        if not name.startswith(self.prefix):
            return None
        shapes = self._shapes
        if b"~" not in name and b"%" not in name:
            # Most names: they are plain text.
            text = _decoded(name)
            for shape in shapes:
                if shape.regex.fullmatch(text):
                    return name
            return None
        parts = name.split(b":", 2)
        if len(parts) < _PARTS_OF_A_NAME:
            return None
        head = _decoded(name[: -len(parts[2])])
        for spelled, whole in spellings(parts[2]):
            for shape in shapes:
                if shape.regex.fullmatch(head + spelled) if whole else shape.may_match(head + spelled):
                    return name
        return None


class _Shape(NamedTuple):
    """A glob, ready to be matched.

    :ivar regex: fully matches the names that it covers.
    :ivar head: an expression for each character before its first star.
    :ivar bounded: whether it has no star.
    """

    regex: re.Pattern[str]
    head: tuple[re.Pattern[str], ...]
    bounded: bool

    @classmethod
    def of(cls, glob: str) -> "_Shape":
        tokens = _tokens(glob)
        bounded = _STAR not in tokens
        head = tokens if bounded else tokens[: tokens.index(_STAR)]
        return cls(_regex(tokens), tuple(re.compile(f"(?s:{token})") for token in head), bounded)

    def may_match(self, beginning: str) -> bool:
        """Return whether it matches any longer text with this beginning.

        From its first star on anything can follow: the star takes the rest of the beginning.
        """
        if self.bounded and len(self.head) <= len(beginning):
            return False
        return all(token.match(character) for token, character in zip(self.head, beginning, strict=False))


# -- a key as its caller wrote it ---------------------------------------------------------------------------------


def spellings(text: bytes) -> Iterator[tuple[str, bool]]:
    """Yield the spellings of a key by its text, the last part of its name, and whether each is complete.

    Text that another program has written is read as far as possible.
    """
    if b"~" not in text:
        yield _unescaped(text), True
        return
    if number := _NUMBER.fullmatch(text):
        yield number.group(1).decode(), True
        return
    encoded = _decoded(text)
    digest = _DIGEST.fullmatch(encoded)
    shown, whole = (encoded, True) if digest is None else (digest.group(1), False)
    if shown.startswith("~"):
        yield from _typed(shown, whole=whole)
    elif "~" not in shown:
        yield _readable(shown, cut=not whole), whole
    else:
        yield shown, whole
        yield _readable(shown, cut=not whole), whole
        yield _readable(_MARKS.sub("", shown), cut=not whole), whole


def _typed(text: str, *, whole: bool) -> Iterator[tuple[str, bool]]:
    """Yield the spellings of a part other than a string: of a tuple as written, and with parentheses or colons only."""
    spelled = _Spelled()
    parts = _PARTS.findall(text)
    kind = ""
    for number, part in enumerate(parts, 1):
        if kind and part in _BETWEEN:
            # An empty atom, such as empty bytes.
            spelled.add(*_atom(kind, ""))
            kind = ""
        if part in ("~(", "("):
            spelled.open()
        elif part == ")":
            spelled.close()
        elif part == ",":
            spelled.separate()
        elif part == "=":
            spelled.add("=", "=")
        elif part[0] == "~" and part != "~''":
            kind = part
        elif whole or number < len(parts):
            spelled.add(*_atom(kind, "" if part == "~''" else part))
            kind = ""
        else:
            # The last part may have been cut.
            spelled.add("" if kind == "~" else _readable(part, cut=True), None)
    yield "".join(spelled.colons), whole
    if spelled.nested:
        yield "".join(spelled.compact), whole
    yield "".join(spelled.written), whole


class _Spelled:
    """The spellings of a key, built piece by piece."""

    __slots__ = ("_cut", "_lengths", "colons", "compact", "nested", "written")

    def __init__(self) -> None:
        self.colons: list[str] = []
        self.compact: list[str] = []
        self.written: list[str] = []
        self.nested = False
        self._lengths: list[int] = []
        self._cut = False

    def open(self) -> None:
        self.nested = True
        self._lengths.append(1)
        self.add("", "(", "(")

    def close(self) -> None:
        single = bool(self._lengths) and self._lengths.pop() == 1 and self.written[-1:] != ["("]
        self.add("", ",)" if single else ")", ")")

    def separate(self) -> None:
        if self._lengths:
            self._lengths[-1] += 1
        self.add(":", ", ", ",")

    def add(self, plain: str, written: str | None, compact: str | None = None) -> None:
        """Add a piece. If its written form is unknown, the spelling `written` ends before it."""
        self.colons.append(plain)
        self.compact.append(plain if compact is None else compact)
        self._cut = self._cut or written is None
        if written is not None and not self._cut:
            self.written.append(written)


def _atom(kind: str, text: str) -> tuple[str, str]:
    """Return an atom of a key as it is shown, and as it was written."""
    if kind == "~":
        number = str(int(text, 16)) if re.fullmatch(r"-?0x[0-9a-f]+", text) else text
        return number, number
    plain = _readable(text)
    if kind == "":
        return plain, repr(plain)
    if kind == "~b:":
        return plain, repr(_raw(text.encode("utf-8", "surrogatepass")))
    if kind == "~uuid:":
        try:
            return plain, repr(UUID(plain))
        except ValueError:
            return plain, plain
    return plain, plain


def _readable(text: str, *, cut: bool = False) -> str:
    return _unescaped(text.encode("utf-8", "surrogatepass"), cut=cut)


def _unescaped(text: bytes, *, cut: bool = False) -> str:
    return _decoded(_raw(text) if b"%" in text else text, cut=cut)


def _raw(text: bytes) -> bytes:
    return _ESCAPED.sub(lambda match: bytes((int(match.group(1), 16),)), text)


def _decoded(data: bytes, *, cut: bool = False) -> str:
    """Return the text of some bytes, even of lone surrogates and of invalid UTF-8.

    :param cut: whether the bytes may end within a character, which is then left out.
    """
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        if cut and error.start >= len(data) - _LONGEST_CHARACTER:
            return data[: error.start].decode("utf-8", "surrogatepass")
        text = data.decode("utf-8", "surrogateescape")
        return text[: -_LONGEST_CHARACTER + 1] if cut else text


# -- globs --------------------------------------------------------------------------------------------------------


def is_pattern(text: str) -> bool:
    """Return whether text has glob characters, as no namespace has."""
    return _SPECIAL.search(text) is not None


def literal_head(glob: str) -> str:
    """Return the text before the first glob character."""
    special = _SPECIAL.search(glob)
    return glob if special is None else glob[: special.start()]


def prefix_pattern(prefix: bytes) -> bytes:
    """Return the glob for SCAN MATCH that matches the names that begin with these bytes."""
    return re.sub(rb"([*?\[\]\\^])", rb"\\\1", prefix) + b"*"


def key_pattern(prefix: bytes, literal: str) -> bytes:
    """Return a glob for SCAN MATCH that matches all names of a namespace whose keys are spelled with a beginning.

    A glob cannot list alternatives, so it constrains the first byte only: that of the text, that of its escape, or the
    mark of a type other than str.

    :param prefix: the prefix of the namespace's names.
    """
    if not literal:
        return prefix_pattern(prefix)
    first = literal[0]
    starts = {b"~", first.encode("utf-8", "surrogatepass")[:1], escape(first, alone=True).encode()[:1]}
    members = b"".join(_QUOTED.sub(rb"\\\1", start) for start in sorted(starts))
    return prefix_pattern(prefix)[:-1] + b"[" + members + b"]*"


def _tokens(glob: str) -> list[str]:
    tokens: list[str] = []
    place = 0
    while place < len(glob):
        character = glob[place]
        place += 1
        if character == "*":
            tokens.append(_STAR)
        elif character == "?":
            tokens.append(".")
        elif character == "[":
            token, place = _class(glob, place)
            tokens.append(token)
        else:
            if character == "\\" and place < len(glob):
                character = glob[place]
                place += 1
            tokens.append(re.escape(character))
    return tokens


def _regex(tokens: list[str]) -> re.Pattern[str]:
    """Return the expression that fully matches what a glob matches in Redis, one character for one byte there.

    After the first star, each stretch between stars is matched at its first match only (an atomic group). Trying later
    matches could not help, and would take exponential time.
    """
    stretches: list[str] = [""]
    for token in tokens:
        if token == _STAR:
            stretches.append("")
        else:
            stretches[-1] += token
    head, *rest = stretches
    if rest:
        *middle, last = rest
        head += "".join(f"(?>.*?{stretch})" for stretch in middle if stretch) + ".*" + last
    return re.compile(rf"(?s:{head})\Z")


def _class(glob: str, place: int) -> tuple[str, int]:
    """Translate the text after ``[`` up to its ``]``, or to the end of the glob, as Redis does."""
    negated = glob[place : place + 1] == "^"
    place += negated
    members: list[str] = []
    while place < len(glob):
        left = len(glob) - place
        if glob[place] == "\\" and left >= 2:
            members.append(_member(glob[place + 1]))
            place += 2
        elif glob[place] == "]":
            place += 1
            break
        elif left >= 3 and glob[place + 1] == "-":
            low, high = sorted((glob[place], glob[place + 2]))
            members.append(f"{_member(low)}-{_member(high)}")
            place += 3
        else:
            members.append(_member(glob[place]))
            place += 1
    if not members:
        return ("." if negated else "(?!)"), place
    return f"[{'^' * negated}{''.join(members)}]", place


def _member(character: str) -> str:
    return f"\\U{ord(character):08x}"
