"""Lua scripts about many leases at once. They hold by the rules of `scripts`, and treat each key by itself.

At each read within a script, a tracking server remembers all keys of the script. So each script reads all leases with
one command and all values with another: for a hundred keys that is some dozens of microseconds of the server's time.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from magnus_cache._engine.keys.names import lease_name
from magnus_cache._engine.redis.commands import Command
from magnus_cache._engine.redis.scripts import Script

__all__ = ["FILLED", "NOT_OURS", "fill_many", "release_many", "renew_many"]

NOT_OURS: Final = 0
"""What is reported of a key whose lease has another token, or is gone: nothing was done about it."""

FILLED: Final = 1
"""What is reported of a value that is stored. Any other number: Redis refused it, and its lease stands."""

_FILL_MANY: Final = Script(
    "FILL",
    """
local count, outcomes, leases, stored, freed = #KEYS / 2, {}, {}, {}, {}
for index = 1, count do leases[index] = KEYS[count + index] end
local held = redis.call('MGET', unpack(leases))
for index = 1, count do
  outcomes[index] = 0
  if held[index] == ARGV[1] then
    local outcome = redis.pcall('SET', KEYS[index], ARGV[2 * index], 'PX', ARGV[2 * index + 1])
    if outcome['err'] then
      outcomes[index] = 2
    else
      outcomes[index] = 1
      stored[#stored + 1], freed[#freed + 1] = KEYS[index], leases[index]
    end
  end
end
if #stored == 0 then return {outcomes, 0} end
redis.call('DEL', unpack(freed))
return {outcomes, redis.call('EXISTS', unpack(stored))}
""",
)

_RENEW_MANY: Final = Script(
    "RENEW",
    """
local outcomes = {}
for index, token in ipairs(redis.call('MGET', unpack(KEYS))) do
  outcomes[index] = 0
  if token == ARGV[1] then
    redis.call('PEXPIRE', KEYS[index], ARGV[2])
    outcomes[index] = 1
  end
end
redis.call('EXISTS', unpack(KEYS))
return outcomes
""",
)

_RELEASE_MANY: Final = Script(
    "RELEASE",
    """
local ours = {}
for index, token in ipairs(redis.call('MGET', unpack(KEYS))) do
  if token == ARGV[1] then ours[#ours + 1] = KEYS[index] end
end
if #ours == 0 then return 0 end
return redis.call('DEL', unpack(ours))
""",
    writes=0,
)


def fill_many(
    names: Sequence[bytes], token: bytes, raws: Iterable[bytes], milliseconds: Iterable[int], *, database: int = 0
) -> Command:
    """Pack the fills of some values whose leases have one token.

    The reply is ``[[1, 0 or 2 for each value], number of values]``.
    """
    values = [part for pair in zip(raws, milliseconds, strict=True) for part in pair]
    return _FILL_MANY.command([*names, *_leases(names, database)], token, *values)


def renew_many(names: Sequence[bytes], token: bytes, milliseconds: int, *, database: int = 0) -> Command:
    """Pack the renewals of some leases with one token; the reply is, for each, 1, or 0 if it is no longer ours."""
    return _RENEW_MANY.command(_leases(names, database), token, milliseconds)


def release_many(names: Sequence[bytes], token: bytes, *, database: int = 0) -> Command:
    """Pack the ends of some leases with one token, without values; the reply is how many of them were still ours."""
    return _RELEASE_MANY.command(_leases(names, database), token)


def _leases(names: Iterable[bytes], database: int) -> list[bytes]:
    return [lease_name(name, database) for name in names]
