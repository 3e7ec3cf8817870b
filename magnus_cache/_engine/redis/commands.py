"""The commands this package sends, packed to bytes once, in the calling thread.

`hiredis.pack_command` is about seven times as fast as redis-py's own packing in Python.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from hiredis import pack_command

from magnus_cache._engine.coherence.epochs import LARGE_BYTES
from magnus_cache._engine.keys.names import lease_name

__all__ = [
    "CLIENT_ID",
    "DB_SIZE",
    "INFO_MEMORY",
    "INFO_REPLICATION",
    "INFO_SERVER",
    "NAME_LIBRARY",
    "NOTES",
    "TIME",
    "TRACKING",
    "TRACKING_ALL",
    "TRACKING_OFF",
    "Command",
    "acquire_many",
    "announce_all",
    "announce_more",
    "announce_to",
    "call_of",
    "count",
    "get",
    "get_many",
    "guarded",
    "head",
    "info",
    "kill",
    "look",
    "pack",
    "pack_large",
    "read",
    "recognize",
    "remove",
    "remove_keys",
    "restore",
    "scan",
    "store",
    "store_many",
]


class Command:
    """A command: packed bytes, the number of replies to expect, and a name for messages.

    :ivar again: returns the command to send if the server does not know the script; None if it is no script.
    :ivar writes: how many commands it has, in its transaction if it is one, whose changes the server must not announce
        to us; 0 if it may announce them.
    """

    __slots__ = ("again", "name", "packed", "replies", "writes")

    def __init__(
        self,
        name: str,
        packed: bytes,
        replies: int = 1,
        again: "Callable[[], Command] | None" = None,
        writes: int = 0,
    ) -> None:
        self.name = name
        self.packed = packed
        self.replies = replies
        self.again = again
        self.writes = writes

    def quiet(self) -> tuple[list[bytes | memoryview], int]:
        """Return the bytes to send so that the server does not announce our own changes, and the number of replies.

        NOLOOP is switched on for these commands only. Before each command, the server may evict other keys or stop
        tracking some, and it must announce that.

        Not used for commands that only remove: their announcement does no harm, and Redis 7 refuses transactions when
        it is out of memory.
        """
        body: bytes | memoryview = self.packed
        if self.replies > self.writes:
            body = memoryview(self.packed)[len(_MULTI) : -len(_EXEC)]
        return [_QUIET, body, _LOUD], self.writes + 4

    def reply(self, replies: list[Any]) -> Any:
        """Return the command's reply from the reply to the transaction that `quiet` makes of it."""
        own = replies[1:-1]
        if self.replies > self.writes:
            return own
        return next((reply for reply in own if isinstance(reply, Exception)), own[-1])


def pack(*words: bytes | str | int) -> bytes:
    """Return one command in the Redis protocol."""
    # Its stub wrongly declares a tuple of one word, and no result.
    packed: bytes = pack_command(words)  # type: ignore[arg-type]
    return packed


def call_of(
    name: str, words: Sequence[bytes | str | int], packing: Callable[..., bytes], again: Callable[[], Command],
    writes: int,
) -> Command:  # fmt: skip
    """Return the call of a script; for the arguments, see `Command`."""
    return Command(name, packing(*words), again=again, writes=writes)


def pack_large(*words: bytes | str | int) -> bytes:
    """Return the same as `pack`, for a command with a large value.

    hiredis lets its buffer grow, and copies it each time: 20 ms for sixteen megabytes, instead of 1.
    """
    return b"".join(_pieces(*words))


def _pieces(*words: bytes | str | int) -> list[bytes]:
    pieces = [b"*%d\r\n" % len(words)]
    for word in words:
        text = word if isinstance(word, bytes) else str(word).encode()
        pieces += (b"$%d\r\n" % len(text), text, b"\r\n")
    return pieces


_MULTI: Final = pack(b"MULTI")
_EXEC: Final = pack(b"EXEC")
_QUIET: Final = _MULTI + pack(b"CLIENT", b"TRACKING", b"ON", b"NOLOOP")
_TRACKING_ALL: Final = pack(b"CLIENT", b"TRACKING", b"ON")
_LOUD: Final = _TRACKING_ALL + _EXEC

TIME: Final = Command("TIME", pack(b"TIME"))
TRACKING: Final = Command("CLIENT TRACKING", pack(b"CLIENT", b"TRACKING", b"ON", b"NOLOOP"))
CLIENT_ID: Final = Command("CLIENT ID", pack(b"CLIENT", b"ID"))
TRACKING_OFF: Final = Command("CLIENT TRACKING", pack(b"CLIENT", b"TRACKING", b"OFF"))
TRACKING_ALL: Final = (_MULTI, _TRACKING_ALL, _EXEC)
DB_SIZE: Final = Command("DBSIZE", pack(b"DBSIZE"))
INFO_MEMORY: Final = Command("INFO", pack(b"INFO", b"memory"))
INFO_SERVER: Final = Command("INFO", pack(b"INFO", b"server"))
INFO_REPLICATION: Final = Command("INFO", pack(b"INFO", b"replication"))
NAME_LIBRARY: Final = (
    pack(b"CLIENT", b"SETINFO", b"LIB-NAME", b"magnus-cache"),
    # Not an import: the package imports the engine, and is there before any part of it.
    pack(b"CLIENT", b"SETINFO", b"LIB-VER", sys.modules["magnus_cache"].__version__),
)
"""Shows in CLIENT LIST what a connection is of; servers before Redis 7.2 refuse it, which is no error here."""


NOTES: Final = frozenset({"PUBLISH", "NOTE"})
"""The names of the scripts by which a process tells about itself, see `fleet_keys`. If refused, nothing is amiss."""


def info(reply: Any, field: bytes) -> str | None:
    """Return a field of an INFO reply; None without it, and for any other reply, such as an error."""
    # In RESP3 the reply is a verbatim string, which some parsers wrap in a type of their own.
    text = getattr(reply, "data", reply)
    if not isinstance(text, bytes):
        return None
    for line in text.splitlines():
        name, _, value = line.partition(b":")
        if name == field:
            return value.decode("utf-8", "replace")
    return None


def announce_all(prefixes: Iterable[bytes]) -> bytes:
    """Pack the request to announce every change of a name that begins with one of some prefixes."""
    return pack(b"CLIENT", b"TRACKING", b"ON", b"BCAST", *(word for prefix in prefixes for word in (b"PREFIX", prefix)))


def announce_more(prefix: bytes) -> Command:
    """Pack the request to announce the names with one more prefix, too, on a connection that announces by prefix."""
    return Command("CLIENT TRACKING", announce_all((prefix,)))


def announce_to(client: int) -> Command:
    """Pack the request to announce what this connection reads to another one, by its number at the server."""
    return Command("CLIENT TRACKING", pack(b"CLIENT", b"TRACKING", b"ON", b"REDIRECT", client))


def kill(client: int) -> Command:
    """Pack CLIENT KILL for a connection, by its id at the server; the reply is 1, or 0 without such a connection."""
    return Command("CLIENT KILL", pack(b"CLIENT", b"KILL", b"ID", client))


def recognize(probe: bytes) -> Command:
    """Pack the question which history of writes a server has; the reply is that to INFO.

    The read comes first: a server that is loading another's data answers INFO as if it still had its own.
    """
    return Command("INFO", get_many((probe,)) + INFO_REPLICATION.packed, replies=2)


def get(name: bytes) -> Command:
    """Pack the read of one value; the reply is the value."""
    return Command("GET", pack(b"GET", name))


def guarded(guard: bytes, bucket: bytes) -> Command:
    """Pack the read of a guard: since when it has noted invalidations, and the last one of a bucket of tags."""
    return Command("HMGET", pack(b"HMGET", guard, b"since", bucket))


def get_many(names: Iterable[bytes]) -> bytes:
    """Pack the read of some values; the reply has nil for missing ones, and for keys of another Redis type."""
    return pack(b"MGET", *names)


def read(name: bytes) -> Command:
    """Pack the read of one value without a batch; the reply is ``[value]``."""
    return Command("MGET", get_many((name,)))


def head(name: bytes, size: int) -> Command:
    """Pack the read of a value's first bytes; the reply is empty without a value."""
    return Command("GETRANGE", pack(b"GETRANGE", name, 0, size - 1))


def store(name: bytes, raw: bytes, milliseconds: int, *, database: int = 0) -> Command:
    """Pack the write of a value, which voids its lease; the reply to EXEC is ``[0 or 1, OK, 1]``.

    The EXISTS inside the same transaction makes the server track the key for us *after* our write. Without it,
    NOLOOP ends the tracking, and a later write of another process would never be announced. As two commands without
    a transaction, a write between them would not be announced either.
    """
    lease = pack(b"DEL", lease_name(name, database))
    words = b"SET", name, raw, b"PX", milliseconds
    value = _pieces(*words) if len(raw) >= LARGE_BYTES else (pack(*words),)
    # One copy, however large the value is.
    packed = b"".join((_MULTI, lease, *value, pack(b"EXISTS", name), _EXEC))
    return Command("SET", packed, replies=5, writes=3)


def store_many(
    names: Sequence[bytes], values: Iterable[bytes], milliseconds: Iterable[int], *, database: int = 0
) -> Command:
    """Pack the writes of some values, which void their leases, as one transaction.

    The reply to EXEC is ``[number of leases, OK for each value, number of values]``. The last one, of EXISTS, makes the
    server track the keys for us; see `store`.
    """
    leases = [lease_name(name, database) for name in names]
    sets = [
        pack_command((b"SET", name, value, b"PX", life))  # type: ignore[arg-type]  # as in `pack`
        for name, value, life in zip(names, values, milliseconds, strict=True)
    ]
    packed = b"".join((_MULTI, pack(b"DEL", *leases), *sets, pack(b"EXISTS", *names), _EXEC))
    return Command("SET", packed, replies=len(sets) + 4, writes=len(sets) + 2)


def acquire_many(
    names: Sequence[bytes], token: bytes, milliseconds: int, *, database: int = 0, force: bool = False
) -> Command:
    """Pack the requests for the leases of some values, under one token, as one transaction.

    The reply to EXEC is ``[values, OK or nil for each lease, tokens]``; if forced, it lacks the values. The tokens are
    read last, so that the server tracks the leases after our own writes.

    :param force: whether to take each lease from any holder, even if a value is stored.
    """
    leases = [lease_name(name, database) for name in names]
    condition = () if force else (b"NX",)
    sets = [pack(b"SET", lease, token, *condition, b"PX", milliseconds) for lease in leases]
    values = b"" if force else get_many(names)
    packed = b"".join((_MULTI, values, *sets, get_many(leases), _EXEC))
    writes = len(sets) + (1 if force else 2)
    return Command("SET", packed, replies=writes + 2, writes=writes)


def restore(name: bytes, value: bytes) -> Command:
    """Pack the write of a key without a TTL, unless it exists; the reply is 1.

    The server announces its next change.
    """
    return Command("SET", pack(b"SET", name, value, b"NX") + pack(b"EXISTS", name), replies=2, writes=2)


def remove(names: Sequence[bytes], *, database: int = 0) -> Command:
    """Pack the removal of some values and their leases; the reply is how many values there were.

    The leases go first: a fill in between is refused, and the value of an earlier fill is removed.
    """
    leases = [lease_name(name, database) for name in names]
    return Command("UNLINK", pack(b"DEL", *leases) + pack(b"UNLINK", *names), replies=2)


def remove_keys(names: Sequence[bytes]) -> Command:
    """Pack the removal of any keys; the reply is how many there were."""
    return Command("UNLINK", pack(b"UNLINK", *names))


def count(names: Sequence[bytes]) -> Command:
    """Pack the question how many of some keys exist."""
    return Command("EXISTS", pack(b"EXISTS", *names))


def look(name: bytes, *, database: int = 0) -> Command:
    """Pack the read of a value and its lease; the reply to EXEC is ``[value, token, milliseconds left]``."""
    lease = lease_name(name, database)
    packed = _MULTI + pack(b"GET", name) + pack(b"GET", lease) + pack(b"PTTL", lease) + _EXEC
    return Command("GET", packed, replies=5)


def scan(cursor: bytes, pattern: bytes, count: int) -> Command:
    """Pack one step through the keys that match a glob; the reply is ``[next cursor, [name, ...]]``."""
    return Command("SCAN", pack(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", count))
