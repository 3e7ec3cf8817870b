"""The Lua scripts: operations that Redis must execute in one step.

They compare bytes and epochs; whether a value may be served is decided in `store/judge`.

A script is sent as EVALSHA. A server that does not know it, after a restart or SCRIPT FLUSH, gets the text once. A
script that writes a key of which this process must hear reads it afterwards: our own write under NOLOOP (see
`Command.quiet`) ends the tracking of the key for us, and the read starts it again.
"""

from collections.abc import Sequence
from enum import Enum
from hashlib import sha1
from typing import Final

from magnus_cache._engine.codec.envelope import EPOCH_AT, VERSION_AT
from magnus_cache._engine.coherence.epochs import LARGE_BYTES, LATEST_EPOCH, ControlNames
from magnus_cache._engine.keys.names import lease_name
from magnus_cache._engine.redis.commands import Command, call_of, pack, pack_large
from magnus_cache._engine.runtime.clock import MICROSECONDS
from magnus_cache._engine.runtime.durations import LONGEST

__all__ = [
    "EPOCH_LIFE",
    "LEASED",
    "NUMBERS",
    "OLD",
    "PASSED",
    "PUT",
    "UNSTORABLE",
    "LeaseAttempt",
    "Script",
    "acquire",
    "adopt",
    "arrive",
    "bump",
    "compare",
    "fill",
    "learn",
    "prolong",
    "reclaim",
    "release",
    "renew",
    "replace",
]

EPOCH_LIFE: Final = 30 * 86_400_000
"""Milliseconds until the epoch of a namespace or tag expires after its issue or renewal; its values expire with it."""

_DAY: Final = 86_400_000
"""Milliseconds."""

LEASED: Final = 0
"""The answer of `acquire` that grants the lease."""

UNSTORABLE: Final = -1
"""The answer of `acquire` to a waiting caller: load without a lease, because the value cannot be stored."""

PASSED: Final = b"unstorable"
"""Replaces a lease's token for a moment when the value of its load cannot be stored. It is not a lease."""

_PASSING: Final = 250
"""Milliseconds that `PASSED` lives. That is enough, because waiting processes wake at once."""


class Script:
    """One script: its name for messages, its text, and its digest for EVALSHA.

    :ivar writes: 1 if the server must not announce its changes to us, else 0.
    """

    __slots__ = ("digest", "name", "text", "writes")

    def __init__(self, name: str, text: str, writes: int = 1) -> None:
        self.name = name
        self.text = text
        self.writes = writes
        self.digest = sha1(text.encode(), usedforsecurity=False).hexdigest()

    def command(self, keys: Sequence[bytes], *arguments: bytes | int, size: int = 0) -> Command:
        """Pack a call; if the server does not know the script, the wire sends the result of `again`.

        :param size: bytes of a value among the arguments.
        """
        rest = (len(keys), *keys, *arguments)
        packing = pack_large if size >= LARGE_BYTES else pack

        def again() -> Command:
            return Command(self.name, packing("EVAL", self.text, *rest), writes=self.writes)

        return call_of(self.name, ("EVALSHA", self.digest, *rest), packing, again, self.writes)


_ACQUIRE: Final = Script(
    "ACQ",
    """
local value = redis.pcall('GET', KEYS[1])
if type(value) == 'string' and value ~= '' and ARGV[4] == ''
    and (ARGV[1] == '' or string.sub(value, 1, #ARGV[1]) ~= ARGV[1]) then
  return value
end
local left = 0
if ARGV[4] ~= '' then
  redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
elseif not redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) then
  left = redis.call('PTTL', KEYS[2]) + 1
  local holder = redis.pcall('GET', KEYS[2])
  local passed = holder == 'unstorable'
  -- Without a TTL, it is not a lease. With our token, the lease was granted by an answer that was lost on its way.
  if left <= 0 or holder == ARGV[2] or (passed and ARGV[5] == '') then
    redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
    left = 0
  elseif passed then
    -- The first load could not be stored, so most likely the next cannot either: let all load at the same time.
    left = -1
  end
end
redis.call('EXISTS', KEYS[2])
return left
""",
)

_FILL: Final = Script(
    "FILL",
    """
if redis.pcall('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[2])
return redis.call('EXISTS', KEYS[1])
""",
)

_RENEW: Final = Script(
    "RENEW",
    """
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('EXISTS', KEYS[1])
""",
)

_RELEASE: Final = Script(
    "RELEASE",
    """
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
-- Processes that wait now load for themselves, all at the same time. Later callers take the lease over.
if ARGV[2] ~= '' and not redis.pcall('SET', KEYS[1], 'unstorable', 'PX', ARGV[2])['err'] then return 1 end
return redis.call('DEL', KEYS[1])
""",
    writes=0,
)

# An epoch more than a century ahead of the server's clock is nonsense, which the cache never issues: it counts as
# missing. So nonsense cannot raise the epochs to the largest number, because that bound grows faster than epochs are
# issued. A caller that knows a nonsensical epoch gets a lower one, and forgets all that it knows.
NUMBERS: Final = f"""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local latest = math.min(now + {int(LONGEST * MICROSECONDS)}, {LATEST_EPOCH})
local function number(text)
  local epoch = type(text) == 'string' and #text <= 16 and string.find(text, '^%d+$') and tonumber(text)
  return epoch and epoch <= latest and epoch or 0
end
"""
"""Lua: the server's time, the latest possible epoch, and what tells the epoch in a text, 0 for nonsense."""

PUT: Final = f"""\
-- All epochs but the root's expire, as the number of tags and namespaces has no bound. A missing epoch is safe.
local function put(name, text, bucket)
  redis.call('SET', name, text)
  if bucket ~= '' then redis.call('PEXPIRE', name, {EPOCH_LIFE}) end
end
"""
"""Lua: what stores an epoch."""

# A hybrid clock: microseconds of the server's clock, but higher than the last issued epoch, the epochs of the keys at
# hand, and the highest epoch that the caller knows. Each of these may be the only one left: an eviction removes the
# clock's key, a failover loses the last writes, an operator sets the server's clock back. The last issued epoch is kept
# in two keys.
_ISSUE: Final = f"""{NUMBERS}local function read(name)
  local text = redis.pcall('GET', name)
  return number(text), text
end
{PUT}local function issue(known, buckets)
  local names = {{}}
  for index in ipairs(buckets) do names[index] = KEYS[index + 2] end
  local guard = redis.pcall('HMGET', KEYS[2], 'last')
  local last = math.max(read(KEYS[1]), number(guard[1]), number(known))
  -- One read for all: at each read in a script, a tracking server remembers all keys of the script.
  for _, text in ipairs(redis.call('MGET', unpack(names))) do last = math.max(last, number(text)) end
  local epoch = math.max(now, last + 1)
  if epoch > {LATEST_EPOCH} then return redis.error_reply('EPOCHS end before the time of the clock') end
  local text = string.format('%016.0f', epoch)
  redis.call('SET', KEYS[1], text)
  for index, bucket in ipairs(buckets) do put(names[index], text, bucket) end
  redis.call('EXISTS', unpack(names))
  redis.pcall('HSETNX', KEYS[2], 'since', text)
  redis.pcall('HSET', KEYS[2], 'last', text)
  return text
end
"""

_BUMP: Final = Script(
    "BUMP",
    _ISSUE
    + """
local buckets = {}
for index = 2, #ARGV do buckets[index - 1] = ARGV[index] end
local text = issue(ARGV[1], buckets)
if type(text) == 'table' then return text end
for _, bucket in ipairs(buckets) do
  if bucket ~= '' and bucket ~= '-' then redis.pcall('HSET', KEYS[2], bucket, text) end
end
return text
""",
)

# A new server, or a new primary, may have lost the latest writes: deleted values may be back. The first process that
# connects invalidates everything; later processes find the identity of the server, and keep their values.
_ARRIVE: Final = Script(
    "ARRIVE",
    _ISSUE
    + """
if redis.pcall('GET', KEYS[4]) == ARGV[2] then return '' end
local text = issue(ARGV[1], {''})
if type(text) == 'table' then return text end
redis.call('SET', KEYS[4], ARGV[2])
return text
""",
)

_LEARN: Final = Script(
    "LEARN",
    _ISSUE
    + """
local epoch, text = read(KEYS[3])
if epoch > 0 and epoch >= number(ARGV[1]) then return text end
return issue(ARGV[1], {ARGV[2]})
""",
)

# A new tag has no epoch. A new epoch would invalidate the value that has just been loaded. If no tag of its bucket was
# invalidated since the load began, the load's own epoch is safe. The guard is a hash with the last invalidation of each
# bucket. If it was lost, it begins later than the load, and a new epoch is issued.
_ADOPT: Final = Script(
    "ADOPT",
    _ISSUE
    + """
local epoch, text = read(KEYS[3])
if epoch > 0 and epoch >= number(ARGV[1]) then return text end
local captured = tonumber(ARGV[2])
local guard = redis.pcall('HMGET', KEYS[2], 'since', ARGV[3])
local since, last = tonumber(guard[1] or ''), tonumber(guard[2] or '0')
if captured <= latest and since and since <= captured and last and last <= captured
    and number(ARGV[1]) <= captured then
  text = string.format('%016.0f', captured)
  put(KEYS[3], text, ARGV[3])
  redis.call('EXISTS', KEYS[3])
  return text
end
return issue(ARGV[1], {ARGV[3]})
""",
)

# Compares numbers, because Lua's comparison of strings depends on the server's locale.
OLD: Final = f"""
local function is_old(name, lowest)
  local epoch = redis.pcall('GETRANGE', name, {EPOCH_AT}, {EPOCH_AT + 7})
  local stamp = type(epoch) == 'string' and #epoch == 8 and struct.unpack('>I8', epoch)
  return not stamp or stamp < tonumber(lowest) or stamp > {LATEST_EPOCH}
end
"""
"""Lua: what tells whether a value is older than an epoch."""

# Removes values older than an epoch. The names are arguments, not keys: at each read in a script, a tracking server
# remembers all of its keys (for 500 keys, Redis 7.0 takes 18 ms), and these need no announcement.
_RECLAIM: Final = Script(
    "RECLAIM",
    OLD
    + """
local removed = 0
for index = 2, #ARGV do
  local name = ARGV[index]
  if is_old(name, ARGV[1]) then removed = removed + redis.call('UNLINK', name) end
end
return removed
""",
    writes=0,
)

_REPLACE: Final = Script(
    "REPLACE",
    """
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return redis.call('EXISTS', KEYS[1])
""",
)


# Each change is announced to every process that knows the epoch, so only the first call of a day changes the TTL. Ends
# with a read, so that the server continues to track the key.
_PROLONG: Final = Script(
    "PROLONG",
    f"""
local left = redis.call('PTTL', KEYS[1])
if left > 0 and left < {EPOCH_LIFE - _DAY} then redis.call('PEXPIRE', KEYS[1], {EPOCH_LIFE}) end
return redis.call('EXISTS', KEYS[1])
""",
)

_COMPARE: Final = Script(
    "COMPARE",
    f"""
local head = redis.call('GETRANGE', KEYS[1], 0, ARGV[2] - 1)
if string.sub(head, {VERSION_AT + 1}, {VERSION_AT + 8}) == ARGV[1] then return {{1, head}} end
return {{0, redis.call('GET', KEYS[1])}}
""",
    writes=0,
)


class LeaseAttempt(Enum):
    """What a request for a lease may take: the fourth and fifth argument of ACQ."""

    FIRST = (b"", b"")
    """A value, a free lease, or `PASSED`."""
    WAITED = (b"", b"1")
    """A value or a free lease. The caller has waited, so `PASSED` is answered by `UNSTORABLE`."""
    FORCED = (b"1", b"")
    """The lease, from any holder, even if a value is stored."""


def acquire(
    name: bytes,
    reject: bytes,
    token: bytes,
    milliseconds: int,
    *,
    database: int = 0,
    attempt: LeaseAttempt = LeaseAttempt.FIRST,
) -> Command:
    """Pack ACQ: the reply is a value stored meanwhile, `LEASED`, or the milliseconds until another's lease expires.

    For a caller that has waited for the lease, it may be `UNSTORABLE`.

    :param reject: the header of the value that was judged unusable; empty if there was none.
    :param attempt: what the request may take.
    """
    keys = (name, lease_name(name, database))
    return _ACQUIRE.command(keys, reject, token, milliseconds, *attempt.value)


def compare(name: bytes, version: int, size: int) -> Command:
    """Pack a read of a value of which the caller has one version; the reply is ``[1, first bytes]`` or ``[0, value]``.

    :param size: how many of its first bytes to return if it is still that version.
    """
    return _COMPARE.command((name,), version.to_bytes(8, "big"), size)


def fill(name: bytes, token: bytes, raw: bytes, milliseconds: int, *, database: int = 0) -> Command:
    """Pack FILL: store a value and end its lease; the reply is 1, or 0 if the lease is no longer ours."""
    return _FILL.command((name, lease_name(name, database)), token, raw, milliseconds, size=len(raw))


def renew(name: bytes, token: bytes, milliseconds: int, *, database: int = 0) -> Command:
    """Pack the renewal of a lease; the reply is 1, or 0 if it is no longer ours."""
    return _RENEW.command((lease_name(name, database),), token, milliseconds)


def release(name: bytes, token: bytes, *, database: int = 0, unstorable: bool = False) -> Command:
    """Pack the end of a lease without a value; the reply is 1, or 0 if it was no longer ours.

    :param unstorable: whether the load has a value that cannot be stored: then all waiting processes load at once.
    """
    return _RELEASE.command((lease_name(name, database),), token, _PASSING if unstorable else b"")


def bump(names: ControlNames, controls: Sequence[bytes], known: int) -> Command:
    """Pack the issue of a new epoch, higher than `known`, to some control keys; the reply has its digits."""
    buckets = [names.bucket(control) for control in controls]
    return _BUMP.command((names.clock, names.guard, *controls), known, *buckets)


def arrive(names: ControlNames, identity: bytes, known: int) -> Command:
    """Pack the first contact with a server; the reply has the digits of the epoch that invalidated all, or is empty.

    :param identity: identifies the server's history.
    """
    return _ARRIVE.command((names.clock, names.guard, names.root, names.server), known, identity)


def learn(names: ControlNames, control: bytes, known: int) -> Command:
    """Pack the read of an epoch, which is issued if it is missing or below `known`; the reply has its digits."""
    return _LEARN.command((names.clock, names.guard, control), known, names.bucket(control))


def adopt(names: ControlNames, control: bytes, known: int, captured: int) -> Command:
    """Pack the read of a tag's epoch; if it is missing, the epoch of the load that made the tag, if that is safe."""
    return _ADOPT.command((names.clock, names.guard, control), known, captured, names.bucket(control))


def prolong(control: bytes) -> Command:
    """Pack the renewal of an epoch's TTL if a day of it has passed; the reply is 1 if the epoch exists, else 0."""
    return _PROLONG.command((control,))


def reclaim(names: Sequence[bytes], epoch: int) -> Command:
    """Pack the removal of those values that are older than an epoch; the reply is their number."""
    return _RECLAIM.command((), epoch, *names)


def replace(name: bytes, header: bytes, raw: bytes, milliseconds: int) -> Command:
    """Pack a write that happens only while the stored value still begins with `header`; the reply is 1 or 0."""
    return _REPLACE.command((name,), header, raw, milliseconds, size=len(raw))
