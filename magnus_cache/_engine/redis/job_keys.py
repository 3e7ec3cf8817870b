"""The operations of the client on jobs of the fleet: work that one process at a time does for all.

A job has a lease: a key that expires, with the token of its holder and what the holder tells about the job. The holder
renews it, and with that says what it has done since. An index has the names of all jobs, by the time at which their
leases end. All these keys are of one slot of a cluster, so that one script can change both.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.redis import commands, replies
from magnus_cache._engine.redis.scripts import Script
from magnus_cache._engine.runtime.loop_end import cancel

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Waiter
    from magnus_cache._engine.redis.wire import Wire

__all__ = ["HeldJob", "JobKeys", "JobNames"]

_INDEX_LIFE: Final = 86_400_000
"""Milliseconds for which the index stays when no job is renewed any more."""

_TOGETHER: Final = 250

_SEPARATOR: Final = b"\n"

# A lease without a TTL is no lease. One that is ours is renewed: the answer that granted it may have been lost.
_HOLD: Final = Script(
    "HOLD",
    f"""
local held = redis.pcall('GET', KEYS[1])
if type(held) == 'string' and held ~= '' and string.sub(held, 1, #ARGV[1]) ~= ARGV[1] then
  local left = redis.call('PTTL', KEYS[1])
  if left >= 0 then return left + 1 end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[3]), ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[2], {_INDEX_LIFE})
return 0
""",
    writes=0,
)

_GIVE_UP: Final = Script(
    "GIVEUP",
    """
local held = redis.pcall('GET', KEYS[1])
if type(held) ~= 'string' or string.sub(held, 1, #ARGV[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[2])
return 1
""",
    writes=0,
)


class JobNames:
    """The names of the keys of jobs.

    :param tag: ends all of them, to have them in one slot of a cluster; empty on a single server.
    """

    def __init__(self, keyspace: Keyspace, tag: bytes = b"") -> None:
        self._keyspace = keyspace
        self._tag = tag
        self.index = keyspace.control_name("warm") + tag

    def lease(self, job: str) -> bytes:
        """Return the name of the lease of a job."""
        return self._keyspace.control_name("warm", job) + self._tag


class HeldJob(NamedTuple):
    """A job that a process holds."""

    name: str
    holder: bytes
    """The token of the process."""
    about: bytes
    """What it has told."""


class JobKeys:
    """The operations on jobs; a part of the `Client`."""

    _wire: "Callable[[bytes], Wire]"

    async def hold_job(self, names: JobNames, job: str, token: bytes, about: bytes, milliseconds: int) -> float:
        """Take the lease of a job, or renew it; return 0, or the seconds until another's lease ends.

        :param about: what to tell about the job.
        :param milliseconds: the duration of the lease, from now.
        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        lease = names.lease(job)
        words = token + _SEPARATOR, about, milliseconds, job.encode("utf-8", "surrogatepass")
        asked = self._wire(lease).execute(_HOLD.command((lease, names.index), *words))
        try:
            reply = await asked
        finally:
            # If the loop is closed by hand, no one reads the answer, and asyncio would report an error.
            cancel(asked)
            if asked.done() and not asked.cancelled():
                asked.exception()
        return replies.number(reply, replies.LONGEST_WAIT) / 1000

    def give_up_job(self, names: JobNames, job: str, token: bytes, waiter: "Waiter") -> None:
        """End the lease of a job if it is still ours; `waiter` gets 1, or 0 if it was not.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        lease = names.lease(job)
        words = token + _SEPARATOR, job.encode("utf-8", "surrogatepass")
        command = _GIVE_UP.command((lease, names.index), *words)
        self._wire(lease).call(command, lambda reply, _connection, _sent: reply, waiter)

    async def held_jobs(self, names: JobNames) -> list[HeldJob]:
        """Return the jobs that are held by any process.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        wire = self._wire(names.index)
        found = await wire.execute(_command(b"ZRANGEBYSCORE", names.index, b"-inf", b"+inf"))
        jobs = [job.decode("utf-8", "surrogatepass") for job in _texts(found)]
        held: list[HeldJob] = []
        for start in range(0, len(jobs), _TOGETHER):
            some = jobs[start : start + _TOGETHER]
            leases = await wire.execute(_command(b"MGET", *map(names.lease, some)))
            # One that has expired is still in the index until another job is renewed.
            held += [_held(job, lease) for job, lease in zip(some, _list(leases), strict=True) if type(lease) is bytes]
        return held


def _held(job: str, lease: bytes) -> HeldJob:
    token, _, about = lease.partition(_SEPARATOR)
    return HeldJob(job, token, about)


def _command(name: bytes, *arguments: bytes) -> commands.Command:
    return commands.Command(name.decode(), commands.pack(name, *arguments))


def _list(reply: Any) -> Sequence[Any]:
    if type(reply) is not list:
        raise replies.nonsense("a list is expected")
    return reply


def _texts(reply: Any) -> Sequence[bytes]:
    found = _list(reply)
    if not {type(part) for part in found} <= {bytes}:
        raise replies.nonsense("a list of texts is expected")
    return found
