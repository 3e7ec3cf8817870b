"""Jobs of the fleet: work that one process at a time does for all, as long as it holds the job's lease.

The lease is a key in Redis that expires. Its holder renews it after each third of its duration; the others ask for it
when it would end. So if the holder is killed, another process takes over within one lease. A holder that ends gives it
up.

A process that is cut off from Redis does not learn that another one holds its job. So it counts for itself: its lease
ends by its own clock, from the moment when it *sent* the last renewal that was answered, which is earlier than Redis'
count. Two processes can hold a job at the same time only if Redis has forgotten the lease (a flush, an eviction, a
failover to a server that had not got it), and then until the first of them asks to renew it.
"""

import asyncio
import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Protocol

from magnus_cache._engine.coordination.leases import new_token
from magnus_cache._engine.redis.exchange import Callback
from magnus_cache._engine.redis.job_keys import HeldJob, JobNames
from magnus_cache._engine.runtime.clock import Clock
from magnus_cache._engine.runtime.critical import section
from magnus_cache._engine.runtime.waiters import running_loop
from magnus_cache._engine.runtime.warm_figures import WarmJob
from magnus_cache.errors import CacheError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.client import Client

__all__ = ["Job", "JobLease", "Jobs"]


class Job(Protocol):
    """A job of this process.

    :ivar loop: the event loop that it runs on.
    :ivar ended: done when it has ended and has given up its lease.
    """

    loop: asyncio.AbstractEventLoop
    ended: "Future[None]"

    def stop(self) -> None:
        """Ask it to end, from any thread."""
        ...

    def forget(self) -> None:
        """Count as ended, in a forked child: the job is its parent's."""
        ...

    def figures(self) -> WarmJob:
        """Return what it has done."""
        ...


class JobLease:
    """The right of this process to do one job, while it lasts.

    :param seconds: how long it lasts without a renewal.
    :ivar job: the name of the job.
    """

    def __init__(self, client: "Client", names: JobNames, job: str, seconds: float, clock: Clock) -> None:
        self._client = client
        self._names = names
        self.job = job
        self.seconds = seconds
        self._clock = clock
        self._token = new_token()
        self._until = -math.inf
        self._requested = False

    @property
    def held(self) -> bool:
        """Whether this process holds the job, whatever has become of its connection."""
        return self._clock() < self._until

    async def request(self, about: bytes) -> float:
        """Take or renew the lease; return 0, or the seconds until another process' lease ends.

        :param about: what to tell about the job.
        :raises CacheUnavailableError: when Redis does not answer, or refuses. Then a lease that is held ends in time.
        """
        self._requested, sent = True, self._clock()
        left = await self._client.hold_job(self._names, self.job, self._token, about, round(self.seconds * 1000))
        self._until = -math.inf if left else sent + self.seconds
        return left

    def give_up(self, ended: Callable[[], object]) -> None:
        """End the lease, without waiting; on the loop that has requested it.

        :param ended: called when Redis has answered, or will not: then the lease expires.
        """
        self._until = -math.inf
        if not self._requested:
            ended()
            return

        def over(_: object) -> None:
            ended()

        # After a request that is still under way, as commands keep their order.
        waiter = Callback(over, over)
        try:
            self._client.give_up_job(self._names, self.job, self._token, waiter)
        except CacheError as error:
            waiter.set_exception(error)


class Jobs:
    """The jobs of one cache in this process. Thread-safe."""

    def __init__(self, client: "Client", names: JobNames, clock: Clock) -> None:
        self._client = client
        self._names = names
        self._clock = clock
        self._running: dict[Job, None] = {}

    def reset(self) -> None:
        """Forget all, as in a forked child."""
        running, self._running = self._running, {}
        for job in running:
            job.forget()

    def lease(self, job: str, seconds: float) -> JobLease:
        """Return a lease of a job, which is still to be requested."""
        return JobLease(self._client, self._names, job, seconds, self._clock)

    def add(self, job: Job) -> None:
        """Note that a job has begun."""
        with section():
            self._running[job] = None

    def discard(self, job: Job) -> None:
        """Note that a job has ended."""
        with section():
            self._running.pop(job, None)

    def running(self) -> list[Job]:
        """Return the jobs that have not ended."""
        with section():
            return list(self._running)

    def end(self) -> "list[Future[None]]":
        """Ask all to end; return what is done when they have, of those whose loops run."""
        jobs = self.running()
        for job in jobs:
            job.stop()
        return [job.ended for job in jobs if job.loop.is_running()]

    def close(self, timeout: float) -> None:
        """Ask all to end, and wait for those that do not run on the loop that this thread blocks."""
        here = running_loop()
        blocked = {id(job.ended) for job in self.running() if job.loop is here}
        wait([ended for ended in self.end() if id(ended) not in blocked], timeout)

    async def aclose(self, timeout: float) -> None:
        """Ask all to end, and wait for them without blocking the running loop."""
        if ended := [asyncio.wrap_future(each) for each in self.end()]:
            await asyncio.wait(ended, timeout=timeout)

    def figures(self) -> list[WarmJob]:
        """Return what the jobs of this process have done; of several with one name, the one that is being done."""
        return _by_name(job.figures() for job in self.running())

    async def held(self) -> list[HeldJob]:
        """Return the jobs that any process holds.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        return await self._client.held_jobs(self._names)


def _by_name(jobs: Iterable[WarmJob]) -> list[WarmJob]:
    found: dict[str, WarmJob] = {}
    for job in jobs:
        if job.here or job.name not in found:
            found[job.name] = job
    return list(found.values())
