"""Names of a test's parameters that all workers of pytest-xdist agree on."""

import re
from pprint import pformat
from typing import Final

__all__ = ["shown"]

_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")


def shown(value: object) -> str:
    """Return a parameter as text: with sets in order, and without the addresses of objects."""
    # Only what does not fit into a line is put in order.
    return _ADDRESS.sub("", " ".join(pformat(value, width=1).split()))
