"""A real HTTP server that tests program: it counts its requests, and answers as each path says."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

__all__ = ["Origin", "Reply", "Seen", "serving"]


class Seen(NamedTuple):
    """A request that came, with the names of its headers in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


class Reply(NamedTuple):
    """What is answered.

    :ivar body: bytes, or parts that are sent as chunks.
    :ivar length: the Content-Length that is claimed; None for the right one.
    :ivar framed: False to end the body by ending the connection.
    """

    fields: Mapping[str, str] = {}
    body: bytes | Iterable[bytes] = b"{}"
    status: int = 200
    length: int | None = None
    framed: bool = True


class Origin:
    """The server, as tests see it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen = list[Seen]()
        self.replies: dict[str, Callable[[Seen], Reply]] = {}

    def says(self, path: str, reply: Reply | Callable[[Seen], Reply]) -> str:
        """Answer a path so from now on; return its URL."""
        self.replies[path] = reply if callable(reply) else lambda _: reply
        return self.url + path

    def counts(self, path: str, **fields: str) -> str:
        """Answer a path with the number of its request, and these fields (``_`` for ``-``); return its URL."""
        named = {name.replace("_", "-"): value for name, value in fields.items()}

        def numbered(_: Seen) -> Reply:
            return Reply(named, str(self.count(path)).encode())

        return self.says(path, numbered)

    def count(self, path: str, method: str | None = None) -> int:
        """Return how many requests came for a path."""
        return sum(each.target == path and method in (None, each.method) for each in list(self.seen))


@contextmanager
def serving() -> Iterator[Origin]:
    """Give a server, until the end of the block."""

    connections = set[socket.socket]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # The headers and the body of an answer are two writes: else each waits for the client's acknowledgement.
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            connections.add(self.connection)

        def finish(self) -> None:
            connections.discard(self.connection)
            super().finish()

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen = Seen(self.command, self.path, headers, body)
            origin.seen.append(seen)
            found = origin.replies.get(self.path.partition("?")[0])
            try:
                reply = Reply(status=404) if found is None else found(seen)
            except OSError:
                # The connection ends without an answer.
                self.close_connection = True
                return
            self.send_response_only(reply.status)
            for name, value in reply.fields.items():
                self.send_header(name, value)
            try:
                self._send(reply)
            except OSError:
                self.close_connection = True

        def _send(self, reply: Reply) -> None:
            if isinstance(reply.body, bytes):
                if reply.framed and reply.status != 304:
                    self.send_header("content-length", str(len(reply.body) if reply.length is None else reply.length))
                self.end_headers()
                if self.command != "HEAD" and reply.status != 304:
                    self.wfile.write(reply.body)
                if not reply.framed or reply.length is not None:
                    self.close_connection = True
                return
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for part in reply.body:
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            if reply.length is not None:
                # Broken off.
                self.close_connection = True
                return
            self.wfile.write(b"0\r\n\r\n")

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = answer

    class Server(ThreadingHTTPServer):
        daemon_threads = False
        request_queue_size = 256

    with Server(("127.0.0.1", 0), Handler) as server:
        origin = Origin(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield origin
        finally:
            server.shutdown()
            thread.join()
            # A client whose error has kept a connection open is no reason to wait for it.
            for connection in list(connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
