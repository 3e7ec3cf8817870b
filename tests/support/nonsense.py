"""A server that is in order until it is told to talk nonsense, and then after a correct handshake."""

import asyncio
import contextlib
import time
from typing import Any, Final

import hiredis

from tests.support.relay import Relay

_INFO: Final = b"# Server\r\nredis_version:7.2.0\r\nrun_id:%s\r\nrole:master\r\nmaster_replid:%s\r\n" % (
    b"a" * 40,
    b"b" * 40,
)
_HELLO: Final = b"%3\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.2.0\r\n$5\r\nproto\r\n:3\r\n"
_NIL: Final = b"_\r\n"


class Nonsense(Relay):
    """Relays to a server while its block lasts; or answers by itself.

    :ivar answer: what a new connection is answered to each command, in the bytes of the protocol; None to relay.
    :ivar sane: what makes sense all the same, so that more is asked for: 1 for times and reads, 2 for epochs as well.
    :ivar asked: the names of the commands that were answered so.
    """

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.answer: bytes | None = None
        self.sane = 0
        self.asked: set[bytes] = set()
        self._epochs: dict[bytes, bytes] = {}
        self._open: set[asyncio.StreamWriter] = set()

    def hang_up(self) -> None:
        """End all connections."""
        for link in self.links:
            link.cut()
        for writer in self._open:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.answer is None:
            super()._accept(reader, writer)
            return
        task = asyncio.get_running_loop().create_task(self._talk(reader, writer, self.answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
        self._open.add(writer)
        parser = hiredis.Reader()
        queued: list[bytes] | None = None
        greeted = False
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(1 << 16):
                    parser.feed(data)
                    while (words := parser.gets()) is not False:
                        name = words[0].upper()
                        # The last question of the handshake; what follows is what the cache is for.
                        known = self._sense(words) if not greeted or self.sane >= _level(words) else None
                        greeted = greeted or words == [b"MGET", b"magnus!server"]
                        if name == b"MULTI":
                            queued = []
                            writer.write(b"+OK\r\n")
                        elif name == b"EXEC" and queued is not None:
                            writer.write(b"*%d\r\n" % len(queued) + b"".join(queued))
                            queued = None
                        else:
                            if known is None:
                                self.asked.add(name)
                            reply = answer if known is None else known
                            if queued is None:
                                writer.write(reply)
                            else:
                                queued.append(b"+OK\r\n" if name == b"CLIENT" else reply)
                                writer.write(b"+QUEUED\r\n")
                    await writer.drain()
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    def _sense(self, words: list[Any]) -> bytes:
        match words[0].upper():
            case b"HELLO":
                return _HELLO
            case b"TIME":
                return b"*2\r\n$10\r\n%010d\r\n$1\r\n0\r\n" % int(time.time())
            case b"MGET":
                return b"*%d\r\n" % (len(words) - 1) + b"".join(self._epochs.get(name, _NIL) for name in words[1:])
            case b"INFO":
                return b"=%d\r\ntxt:%b\r\n" % (len(_INFO) + 4, _INFO)
            case b"CLIENT" if words[1].upper() == b"ID":
                return b":5\r\n"
            case b"EVAL" | b"EVALSHA":
                issued = b"$16\r\n%016d\r\n" % int(time.time() * 1e6)
                self._epochs |= dict.fromkeys(words[5 : 3 + int(words[2])], issued)
                return issued
        return b"+OK\r\n"


def _level(words: list[Any]) -> int:
    """Return from which level of `Nonsense.sane` on a command is answered with sense."""
    match words[0].upper():
        case b"TIME" | b"INFO" | b"MGET":
            return 1
        case b"EVAL" | b"EVALSHA" if words[3:4] == [b"magnus!clock"]:
            return 2
    return 3
