"""What a job that keeps values warm has done, for people and for the other processes of the fleet."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import msgpack

__all__ = ["WarmJob", "packed", "read"]

_LONGEST: Final = 4_096
"""Bytes of what a process tells, which are read."""


@dataclass(frozen=True, slots=True)
class WarmJob:
    """A job of `keep_warm`, as the process tells that refreshes its values.

    :ivar name: its name in the fleet: namespace, function, and what tells its keys from those of other jobs.
    :ivar namespace: where the values live.
    :ivar function: the name of the function that loads them.
    :ivar process: the process that refreshes the values, as ``"host:pid"``; None if no process does at the moment.
    :ivar here: whether it is this process.
    :ivar keys: how many keys there are.
    :ivar every: seconds between two loads of a key; None if it follows from the TTL.
    :ivar since: seconds since the process took the job.
    :ivar last_round: seconds since the keys were last asked for and looked at; None before the first time.
    :ivar rounds: how often they were.
    :ivar refreshed: values that were loaded.
    :ivar failed: loads that failed.
    :ivar error: the class of the last error, such as ``"TimeoutError"``; None without one.
    :ivar held_back: attempts that a budget, a limit of spending or a paused source held back; they are no failures.
    """

    name: str
    namespace: str
    function: str
    process: str | None = None
    here: bool = False
    keys: int = 0
    every: float | None = None
    since: float = 0.0
    last_round: float | None = None
    rounds: int = 0
    refreshed: int = 0
    failed: int = 0
    error: str | None = None
    held_back: int = 0

    def elsewhere(self) -> "WarmJob":
        """Return the same job without a process that refreshes its values."""
        return replace(self, process=None, here=False)


def packed(job: WarmJob) -> bytes:
    """Return a job as a process publishes it."""
    raw: bytes | None = msgpack.packb(asdict(job), unicode_errors="surrogatepass")
    assert raw is not None
    return raw


def read(raw: bytes) -> WarmJob | None:
    """Return a job as another process has published it; None for nonsense."""
    if len(raw) > _LONGEST:
        return None
    try:
        told: Any = msgpack.unpackb(raw, unicode_errors="surrogatepass")
        # A later version may tell more.
        known = {name: told[name] for name in WarmJob.__slots__ if name in told}
        job = WarmJob(**known)
    except Exception:  # noqa: BLE001  # whatever msgpack raises for what another program has stored there
        return None
    return replace(job, here=False) if _is_sound(job) else None


def _is_sound(job: WarmJob) -> bool:
    texts = job.name, job.namespace, job.function, job.process or "", job.error or ""
    numbers = (
        job.keys, job.every or 0, job.since, job.last_round or 0, job.rounds, job.refreshed, job.failed, job.held_back,
    )  # fmt: skip
    return all(type(text) is str for text in texts) and all(type(number) in {int, float} for number in numbers)
