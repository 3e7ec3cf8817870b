"""Checks of certificate files when settings are made, so that a mistake is found then and not in an outage."""

import ssl
from collections.abc import Mapping
from typing import Any

__all__ = ["check_certificates", "check_file"]


def check_file(name: str, path: str) -> None:
    """:raises ValueError: naming the setting, if its file cannot be read."""
    try:
        with open(path, "rb"):
            return
    except OSError as error:
        problem = "the file does not exist" if isinstance(error, FileNotFoundError) else f"{error.strerror}"
    raise ValueError(f"{name}: {path}: {problem}")


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")


def check_certificates(tls: Mapping[str, Any]) -> None:
    """Load the files as a connection would, so that a mistake is found now and not in an outage.

    :raises ValueError: naming the setting.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    what = "redis_ssl_ca_certs (REDIS_SSL_CA_CERTS)"
    try:
        if tls.get("ssl_ca_certs"):
            context.load_verify_locations(cafile=tls["ssl_ca_certs"])
        if tls.get("ssl_certfile"):
            what = "redis_ssl_certfile and redis_ssl_keyfile (REDIS_SSL_CERTFILE, REDIS_SSL_KEYFILE)"
            # Without a function, OpenSSL would ask for a passphrase on the terminal.
            context.load_cert_chain(tls["ssl_certfile"], tls.get("ssl_keyfile"), password=_no_passphrase)
    except ssl.SSLError:
        problem = f"not a certificate{' and the key that belongs to it' if 'keyfile' in what else ''} in PEM form"
    except ValueError as error:
        problem = f"{error}; decrypt it for the cache"
    else:
        return
    raise ValueError(f"{what}: {problem}")
