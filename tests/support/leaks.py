"""What is left over after a test: threads, child processes, sockets. There must be nothing."""

import os
import threading
from pathlib import Path


def threads() -> set[str]:
    """Return the names of the threads of this package that live."""
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("magnus")}


def sockets() -> int:
    """Return how many sockets this process has open; 0 where the system does not tell."""
    folder = Path("/proc/self/fd")
    if not folder.exists():
        return 0
    count = 0
    for link in folder.iterdir():
        try:
            count += os.readlink(link).startswith("socket:")
        except OSError:
            continue
    return count
