"""TLS for the lane, apart from its socket: bytes in, bytes out.

Python's TLS socket takes over the file descriptor of a plain one, in steps. An interrupt (Ctrl-C) in between would
leave a descriptor that is closed twice, or by the collector. Here the plain socket is the only one, with or without
TLS, and one deadline covers all that an exchange sends and receives.
"""

import ssl
from typing import Final

__all__ = ["LaneTls"]

_RECORD_BYTES: Final = 16_384
"""The most bytes of content in one TLS record."""


class LaneTls:
    """The TLS session of one connection.

    :param host: name or address of the server, for its certificate.
    """

    __slots__ = ("_incoming", "_outgoing", "_session")

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def handshake(self, received: bytes) -> tuple[bytes, bool]:
        """Return the bytes to send next, and whether the handshake is complete after that.

        :param received: what has come since the call before; empty at first.
        :raises OSError: if there is no session, such as for a certificate that is not trusted.
        """
        self._incoming.write(received)
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            return self._outgoing.read(), False
        return self._outgoing.read(), True

    def encrypted(self, data: bytes) -> bytes:
        """Return the bytes to send for some content."""
        self._session.write(data)
        return self._outgoing.read()

    def decrypted(self, received: bytes) -> bytes:
        """Return the content of all records that are complete now, perhaps none.

        :raises OSError: at the end of the session, for what follows it, and for what belongs to none.
        """
        incoming, session, parts = self._incoming, self._session, list[bytes]()
        incoming.write(received)
        try:
            while incoming.pending or session.pending():
                part = session.read(_RECORD_BYTES)
                if not part:
                    # What follows the end is never read, so it would stay pending for ever.
                    if parts:
                        break
                    raise ConnectionError("Redis has ended the TLS session")
                parts.append(part)
        except ssl.SSLWantReadError:
            pass  # It ends within a record, or there was no content, as in a session ticket.
        return b"".join(parts)
