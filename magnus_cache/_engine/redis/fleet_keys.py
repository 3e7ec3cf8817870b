"""The operations of the client on fleet statistics: what each process publishes, and the sums of all.

All these keys are of one slot of a cluster, so that one script can add to the sums and note that it has. A request
whose answer was lost is sent again under its number, and counts once.

The sums of the hours are for people: they end with their day. What loads cost and hits save is also added up by day, in
UTC and by the time of the report, for two months; the script takes these counts out of those of the hour. The total is
for monitoring systems: it only grows, as a counter of Prometheus must. Publishing costs nothing more for it: a reader
of the total adds the hours that have ended to it, once, and shows it with those that have not. A server that may have
lost the latest writes, after a failover or a restart, could show a slightly smaller one, which a monitoring system
would take for a restart at zero and count all of it again. So the total of such a server starts at zero, which is what
monitoring systems expect.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from magnus_cache._engine.keys.names import Keyspace
from magnus_cache._engine.redis import commands
from magnus_cache._engine.redis.exchange import IGNORED, as_it_is
from magnus_cache._engine.redis.replies import nonsense, number
from magnus_cache._engine.redis.scripts import Script
from magnus_cache.errors import CacheUnavailableError

if TYPE_CHECKING:
    from magnus_cache._engine.redis.exchange import Connection, Receive, Waiter
    from magnus_cache._engine.redis.wire import Wire

__all__ = ["DAYS", "MINUTES", "FleetKeys", "FleetNames", "Published", "Report", "gathered"]

_HOURS: Final = 24
"""Hours that a sum of the day has, the present one included."""

_HOUR_LIFE: Final = (_HOURS + 1) * 3_600
MINUTES: Final = 120
"""Minutes of which the totals are kept, for a chart."""

_MINUTE_LIFE: Final = (MINUTES + 1) * 60
DAYS: Final = 62
"""Days of which the ledger is kept, in UTC: this month and the last one."""

_DAY: Final = 86_400
_DAY_LIFE: Final = (DAYS + 1) * _DAY

_TOTAL_LIFE: Final = 30 * _DAY
"""Seconds for which the total stays when no process publishes any more."""

_MOST_TOTALS: Final = 10_000
"""Fields of the total and of a day; further namespaces and functions are counted together."""

_LONGEST_LIFE: Final = 3_600
"""Seconds after which a process that has published nothing has died, whatever its interval."""

_TOGETHER: Final = 500

_NUMBER: Final = 8
"""Digits of the number of a report, at the beginning of what a process publishes."""

_PUBLISH: Final = Script(
    "PUBLISH",
    """
local ledger = {h1 = true, h2 = true, m = true, l = true, us = true, ms = true, mv = true}
local fields, most = redis.call('HMGET', KEYS[6], 'fields')[1], tonumber(ARGV[12])
fields = tonumber(fields or '0')
local function note(field, count)
  local kind = string.match(field, '^[nf]:([^:]*):')
  if not kind or not ledger[kind] then return end
  if fields >= most and not redis.call('HMGET', KEYS[6], field)[1] then
    field = string.gsub(field, '^([nf]:[^:]*:).*$', '%1(other)')
  end
  if redis.call('HSETNX', KEYS[6], field, count) == 1 then
    fields = redis.call('HINCRBY', KEYS[6], 'fields', 1)
  else
    redis.call('HINCRBY', KEYS[6], field, count)
  end
end
local before = redis.pcall('GET', KEYS[1])
if type(before) ~= 'string' or string.sub(before, 1, #ARGV[1]) ~= ARGV[1] then
  local at = 13
  for sum = 3, 4 do
    local count = tonumber(ARGV[at])
    for place = at + 1, at + 2 * count, 2 do
      redis.call('HINCRBY', KEYS[sum], ARGV[place], ARGV[place + 1])
      if sum == 3 then note(ARGV[place], ARGV[place + 1]) end
    end
    at = at + 2 * count + 1
  end
  redis.call('EXPIRE', KEYS[3], ARGV[5])
  redis.call('EXPIRE', KEYS[4], ARGV[6])
  redis.call('EXPIRE', KEYS[6], ARGV[11])
  redis.call('HSETNX', KEYS[5], 'open', ARGV[10])
  redis.call('EXPIRE', KEYS[5], ARGV[9])
end
if ARGV[3] == '0' then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[4])
else
  redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2], 'EX', ARGV[3])
  redis.call('ZADD', KEYS[2], ARGV[7], ARGV[4])
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[8])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return 1
""",
)

# The first key is that of the total, the others are those of the hours of a day, up to the next one. `open` is the
# first hour that the total does not have yet. An hour is added when reports about it can no longer come.
_TOTAL: Final = Script(
    "TOTAL",
    """
local total, names, size = {}, redis.call('HGETALL', KEYS[1]), 0
for at = 1, #names, 2 do
  total[names[at]] = names[at + 1]
  size = size + 1
end
if not total['open'] then return {} end
local now, open = tonumber(ARGV[2]), tonumber(total['open'])
local oldest = now + 3 - #KEYS
local function add(hour, sign)
  local fields = redis.call('HGETALL', KEYS[hour - oldest + 2])
  for at = 1, #fields, 2 do
    local field, count = fields[at], tonumber(fields[at + 1])
    if not total[field] and size >= tonumber(ARGV[3]) then
      field = string.gsub(field, '^([nf]:[^:]*:).*$', '%1(other)')
    end
    if not total[field] then
      total[field] = '0'
      size = size + 1
    end
    if count then redis.pcall('HINCRBY', KEYS[1], field, string.format('%.0f', sign * count)) end
  end
end
if (total['server'] and total['server'] ~= ARGV[1]) or open < oldest then
  redis.call('DEL', KEYS[1])
  total, size, open = {}, 0, now - 1
  for hour = open, now + 1 do add(hour, -1) end
end
for hour = open, now - 2 do add(hour, 1) end
open = math.max(open, now - 1)
redis.call('HSET', KEYS[1], 'server', ARGV[1], 'open', string.format('%.0f', open))
redis.call('EXPIRE', KEYS[1], ARGV[4])
local found = {redis.call('HGETALL', KEYS[1])}
for hour = open, now + 1 do found[#found + 1] = redis.call('HGETALL', KEYS[hour - oldest + 2]) end
return found
""",
)

_NOTED: Final = 512
"""Records of what processes have done; each further one takes the place of the oldest."""

_NOTE: Final = Script(
    "NOTE",
    """
local at = redis.call('HINCRBY', KEYS[1], 'n', #ARGV - 2)
for place = 3, #ARGV do
  redis.call('HSET', KEYS[1], (at - #ARGV + place) % tonumber(ARGV[1]), ARGV[place])
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
""",
)


class FleetNames:
    """The names of the keys of fleet statistics.

    :param tag: ends all of them, to have them in one slot of a cluster; empty on a single server.
    """

    def __init__(self, keyspace: Keyspace, tag: bytes = b"") -> None:
        self._keyspace = keyspace
        self._tag = tag
        self.index = keyspace.control_name("fleet") + tag
        self.total = keyspace.control_name("fleet", "total") + tag
        self.notes = keyspace.control_name("fleet", "log") + tag
        self.secret = keyspace.control_name("fleet", "secret") + tag

    def process(self, instance: str) -> bytes:
        """Return the name of what a process publishes."""
        return self._keyspace.control_name("stats", instance) + self._tag

    def hour(self, second: float) -> bytes:
        """Return the name of the sums of an hour, by a second of the epoch in it."""
        return self._keyspace.control_name("fleet", f"h{int(second // 3_600)}") + self._tag

    def minute(self, second: float) -> bytes:
        """Return the name of the totals of a minute, by a second of the epoch in it."""
        return self._keyspace.control_name("fleet", f"m{int(second // 60)}") + self._tag

    def day(self, second: float) -> bytes:
        """Return the name of the ledger of a day, by a second of the epoch in it."""
        return self._keyspace.control_name("fleet", f"d{int(second // _DAY)}") + self._tag

    def shared(self, second: float) -> list[bytes]:
        """Return the names of all keys that processes share, whether they exist or not."""
        hours = [self.hour(second - 3_600 * back) for back in range(-1, _HOURS + 1)]
        minutes = [self.minute(second - 60 * back) for back in range(-1, MINUTES + 1)]
        days = [self.day(second - _DAY * back) for back in range(-1, DAYS + 1)]
        return [self.index, self.total, self.notes, self.secret, *hours, *minutes, *days]


class Report(NamedTuple):
    """What a process publishes at a time."""

    number: int
    """Reports of one process have ascending numbers; one that is sent again has the same."""
    second: float
    """When, in Redis' time."""
    about: bytes
    """What the process is and has now."""
    life: int
    """Seconds for which that counts; 0 at the end of the process."""
    fields: Mapping[str, int]
    """What was counted since the last report, for the sums of the day."""
    totals: Mapping[str, int]
    """The same, without namespaces and functions, for the minutes."""


class Published(NamedTuple):
    """What the processes of a fleet have published."""

    processes: Sequence[bytes]
    """What each process that runs is and has, see `Report`."""
    sums: Sequence[Mapping[bytes, bytes]]
    """The sums of the last hours."""


class FleetKeys:
    """The operations on fleet statistics; a part of the `Client`."""

    _wire: "Callable[[bytes], Wire]"

    def publish(self, names: FleetNames, instance: str, report: Report, oldest: float, waiter: "Waiter") -> None:
        """Publish a report; `waiter` gets 1.

        :param oldest: second in Redis' time up to which processes that were last heard of then have died.
        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        process, second = names.process(instance), int(report.second)
        command = _PUBLISH.command(
            (process, names.index, names.hour(second), names.minute(second), names.total, names.day(second)),
            f"{report.number % 10**_NUMBER:0{_NUMBER}}".encode(), report.about, report.life, instance.encode(),
            _HOUR_LIFE, _MINUTE_LIFE, second, int(oldest), _TOTAL_LIFE, second // 3_600,
            _DAY_LIFE, _MOST_TOTALS,
            *_pairs(report.fields), *_pairs(report.totals),
        )  # fmt: skip
        self._wire(process).call(command, lambda reply, _connection, _sent: reply, waiter)

    def note(self, names: FleetNames, records: Sequence[bytes], waiter: "Waiter") -> None:
        """Add records to what the fleet has done; `waiter` gets 1. A repeated request may add them twice.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        command = _NOTE.command((names.notes,), _NOTED, _HOUR_LIFE, *records)
        self._wire(names.notes).call(command, lambda reply, _connection, _sent: reply, waiter)

    def share_secret(self, names: FleetNames, offered: bytes, life: int, waiter: "Waiter") -> None:
        """Ask for the secret of the fleet; if there is none, the offered one becomes it. `waiter` gets the secret.

        :param life: seconds for which it stays when no process asks for it any more.
        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        wire, name, seconds = self._wire(names.secret), names.secret, b"%d" % life
        # In this order through one connection: the answer is the secret that stands.
        wire.call(_command(b"SET", name, offered, b"NX", b"EX", seconds), as_it_is, IGNORED)
        wire.call(_command(b"EXPIRE", name, seconds), as_it_is, IGNORED)
        wire.call(_command(b"GET", name), as_it_is, waiter)

    async def noted(self, names: FleetNames) -> list[bytes]:
        """Return the records of what the fleet has done, in no order.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        found = _hash(await self._wire(names.notes).execute(_command(b"HGETALL", names.notes)))
        return [record for field, record in found.items() if field != b"n"]

    async def published(self, names: FleetNames, second: float, life: int) -> Published:
        """Return what the fleet has published.

        :param second: now, in Redis' time.
        :param life: seconds for which the report of a process counts.
        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        wire, processes = self._wire(names.index), await self.processes(names, second, life)
        asked = [wire.execute(_command(b"HGETALL", names.hour(second - 3_600 * back))) for back in range(_HOURS)]
        return Published(processes, [_hash(reply) for reply in await gathered(asked)])

    async def total(self, names: FleetNames, second: float) -> list[Mapping[bytes, bytes]]:
        """Return what the fleet has counted since the total began, in parts; a later call returns no less.

        :param second: now, in Redis' time.
        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        hours = [names.hour(second - 3_600 * back) for back in range(_HOURS - 1, -2, -1)]
        while True:
            wire = self._wire(names.total)
            if not wire.up:
                await wire.renew()
            identity = wire.identity
            words = identity, int(second // 3_600), _MOST_TOTALS, _TOTAL_LIFE
            reply = await wire.execute(_TOTAL.command((names.total, *hours), *words))
            # Else the connection was lost meanwhile, and the answer is of a server that was not asked about.
            if wire.identity == identity:
                return [_hash(part) for part in _parts(reply)]

    async def processes(self, names: FleetNames, second: float, life: int) -> list[bytes]:
        """Return what the processes that run have published.

        :param second: now, in Redis' time.
        :param life: seconds for which the report of a process counts.
        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        found: list[bytes] = []
        reporting = await self.reporting(names, second, life)
        wire = self._wire(names.index)
        for start in range(0, len(reporting), _TOGETHER):
            reports = await wire.execute(_command(b"MGET", *reporting[start : start + _TOGETHER]))
            found += [report[_NUMBER:] for report in _texts(reports, missing=True)]
        return found

    async def reporting(self, names: FleetNames, second: float, life: int) -> list[bytes]:
        """Return the names of what the processes that run have published.

        :param second: now, in Redis' time.
        :param life: seconds for which the report of a process counts.
        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        # The reader's own interval tells nothing about that of the others, and may be none: what they publish expires.
        bounds = (b"%d" % (int(second) - max(life, _LONGEST_LIFE)), b"+inf")
        found = await self._wire(names.index).execute(_command(b"ZRANGEBYSCORE", names.index, *bounds))
        return [names.process(instance.decode("utf-8", "replace")) for instance in _texts(found)]

    def running(self, names: FleetNames, receive: "Receive[int]", waiter: "Waiter") -> None:
        """Count the processes that have published something lately.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        # Each report that is published removes the processes that have died; see `_PUBLISH`.
        command = _command(b"ZCARD", names.index)

        def took(reply: Any, connection: "Connection", sent: float) -> Any:
            return receive(number(reply), connection, sent)

        self._wire(names.index).call(command, took, waiter)

    async def minutes(self, names: FleetNames, second: float, count: int) -> list[Mapping[bytes, bytes]]:
        """Return the totals of the last minutes, the present one last.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        wire = self._wire(names.index)
        backs = range(min(count, MINUTES) - 1, -1, -1)
        asked = [wire.execute(_command(b"HGETALL", names.minute(second - 60 * back))) for back in backs]
        return [_hash(reply) for reply in await gathered(asked)]

    async def days(self, names: FleetNames, second: float, count: int) -> list[Mapping[bytes, bytes]]:
        """Return the ledgers of the last days, the present one last.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        wire = self._wire(names.index)
        backs = range(min(count, DAYS) - 1, -1, -1)
        asked = [wire.execute(_command(b"HGETALL", names.day(second - _DAY * back))) for back in backs]
        return [_hash(reply) for reply in await gathered(asked)]


async def gathered(asked: Sequence[Awaitable[Any]]) -> list[Any]:
    """Return the answers to commands that were sent together; the first error is raised when all have ended."""
    answers: list[Any] = []
    error: CacheUnavailableError | None = None
    for each in asked:
        try:
            answers.append(await each)
        except CacheUnavailableError as refused:
            error = error or refused
    if error is not None:
        raise error
    return answers


def _command(name: bytes, *arguments: bytes) -> commands.Command:
    return commands.Command(name.decode(), commands.pack(name, *arguments))


def _pairs(fields: Mapping[str, int]) -> list[bytes | int]:
    pairs: list[bytes | int] = [len(fields)]
    for name, count in fields.items():
        pairs += [name.encode("utf-8", "surrogatepass"), count]
    return pairs


def _texts(reply: Any, *, missing: bool = False) -> list[bytes]:
    if type(reply) is not list:
        raise nonsense("a list is expected")
    found = [part for part in reply if not (missing and part is None)]
    if not {type(part) for part in found} <= {bytes}:
        raise nonsense("a list of texts is expected")
    return found


def _parts(reply: Any) -> list[Any]:
    if type(reply) is not list:
        raise nonsense("a list is expected")
    return reply


def _hash(reply: Any) -> Mapping[bytes, bytes]:
    if type(reply) is dict:
        found: dict[bytes, bytes] = reply
        return found
    flat = _texts(reply)
    return dict(zip(flat[::2], flat[1::2], strict=False))
