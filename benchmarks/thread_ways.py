"""Hits in Redis from threads over a UNIX socket and over TLS, each on a server of its own."""

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.contenders import if_installed
from benchmarks.plan import Plan
from benchmarks.tables import Table
from benchmarks.thread_hits import hits_of_get
from magnus_cache.embedded import EmbeddedServer, ServerNotFoundError, find_redis

__all__ = ["tls_hits", "unix_hits"]


def unix_hits(plan: Plan) -> Table:
    """Return thousands of gets a second over a UNIX socket, by number of threads."""
    table = Table("l2-threads-unix", "L2 hits of get by threads, over a UNIX socket", "k/s", less_is_better=False)
    with tempfile.TemporaryDirectory(prefix="magnus-bench-") as directory:
        path = Path(directory) / "redis.sock"
        with EmbeddedServer(unixsocket=str(path)):
            hits_of_get(replace(plan, address=f"unix://{path}"), table)
    return table


def tls_hits(plan: Plan) -> Table:
    """Return thousands of gets a second over TLS, by number of threads; none without a server that speaks it."""
    table = Table("l2-threads-tls", "L2 hits of get by threads, over TLS", "k/s", less_is_better=False)
    with tempfile.TemporaryDirectory(prefix="magnus-bench-") as directory, if_installed(table, "trustme"):
        try:
            with _tls_server(Path(directory)) as url:
                hits_of_get(replace(plan, address=url), table)
        except (ServerNotFoundError, RuntimeError):
            table.note("There is no redis-server with TLS on this machine.")
    return table


@contextmanager
def _tls_server(directory: Path) -> Iterator[str]:
    """Run a server behind TLS and give its URL.

    :raises RuntimeError: if the server was built without TLS.
    """
    import trustme

    authority = trustme.CA()
    files = {name: directory / f"{name}.pem" for name in ("authority", "cert", "key")}
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(files["authority"])
    issued.cert_chain_pems[0].write_to_path(files["cert"])
    issued.private_key_pem.write_to_path(files["key"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = EmbeddedServer(
        find_redis(), tls_port=str(port), tls_cert_file=str(files["cert"]), tls_key_file=str(files["key"]),
        tls_ca_cert_file=str(files["authority"]), tls_auth_clients="no",
    )  # fmt: skip
    with server:
        yield f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={files['authority']}"
