"""The operation of the client on limits of spending: one hash for each namespace with a limit.

It has the number of the period (``p``), what was spent in it (``s``, billionths), and for each process the number of
the last report that was added (``o:<process>``): a report that is sent again, as its answer was lost, counts once. The
limit (``l``) is there for people; each process goes by its own.
The first request of a new period starts at 0. Periods are those of UTC by the clock of Redis; after a clock that was
set back, the later period goes on.

A load whose price is known is counted before it begins, if it fits: so many of them at a time never pass the limit.
What else a load has cost is reported at once after it.
"""

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from magnus_cache._engine.redis.replies import nonsense
from magnus_cache._engine.redis.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Callable

    from magnus_cache._engine.redis.exchange import Connection, Receive, Waiter
    from magnus_cache._engine.redis.wire import Wire

__all__ = ["SpendAsk", "SpendKeys", "SpendReply", "Spent"]

# Months by the algorithm of Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
_SPEND: Final = Script(
    "SPEND",
    """
local now = tonumber(redis.call('TIME')[1]) + tonumber(ARGV[2])
local function days_of(year, month)
  if month <= 2 then year = year - 1 end
  local era = math.floor(year / 400)
  local of_era = year - era * 400
  local day = math.floor((153 * ((month + 9) % 12) + 2) / 5)
  return era * 146097 + of_era * 365 + math.floor(of_era / 4) - math.floor(of_era / 100) + day - 719468
end
local function period(kind)
  if kind ~= 'month' then
    local length = kind == 'hour' and 3600 or 86400
    local number = math.floor(now / length)
    return number, (number + 1) * length
  end
  local day = math.floor(now / 86400) + 719468
  local era = math.floor(day / 146097)
  local of_era = day - era * 146097
  local year = math.floor((of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524)
    - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * of_year + 2) / 153)
  month = month < 10 and month + 3 or month - 9
  year = year + era * 400 + (month <= 2 and 1 or 0)
  local ends = month == 12 and days_of(year + 1, 1) or days_of(year, month + 1)
  return 12 * year + month, ends * 86400
end
local number, ends = period(ARGV[1])
local owner = 'o:' .. ARGV[3]
local head = redis.pcall('HMGET', KEYS[1], 'p', 's', owner, 'l')
if head['err'] or (tonumber(head[1]) or -1) < number then
  redis.call('DEL', KEYS[1])
  head = {false, '0', false, false}
  redis.call('HSET', KEYS[1], 'p', string.format('%.0f', number), 's', '0')
end
local spent = head[2] or '0'
if not tonumber(spent) then
  spent = '0'
  redis.call('HSET', KEYS[1], 's', spent)
end
if head[4] ~= ARGV[6] then redis.call('HSET', KEYS[1], 'l', ARGV[6]) end
local function add(amount)
  local sum = redis.pcall('HINCRBY', KEYS[1], 's', amount)
  if type(sum) ~= 'number' or sum < 0 then
    sum = 0
    redis.call('HSET', KEYS[1], 's', '0')
  end
  spent = redis.call('HMGET', KEYS[1], 's')[1]
end
if ARGV[4] ~= '0' and (tonumber(head[3]) or 0) < tonumber(ARGV[4]) then
  redis.call('HSET', KEYS[1], owner, ARGV[4])
  add(ARGV[5])
end
local limit, price, more = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local known, allowed = (tonumber(spent) or 0) + more, 1
if price > 0 then
  if known + price > limit then allowed = 0 end
elseif known >= limit then
  allowed = 0
end
if allowed == 1 and price > 0 then add(ARGV[7]) end
redis.call('EXPIRE', KEYS[1], string.format('%.0f', math.max(ends - now, 0) + 86400))
return {allowed, spent, math.max(ends - now, 0)}
""",
)


_SPENT: Final = Script(
    "SPENT",
    """
local found = redis.pcall('HMGET', KEYS[1], 'p', 's', 'l')
if found['err'] then return {0, '0', '0', 0} end
return {tonumber(found[1]) or -1, found[2] or '0', found[3] or '0', tonumber(redis.call('TIME')[1])}
""",
    writes=0,
)


class SpendAsk(NamedTuple):
    """What a process reports, and asks for a load."""

    period: str
    owner: bytes
    """What identifies the process."""
    number: int
    """Of the report; 0 for none."""
    amount: int
    """What was spent since the last report, in billionths; below 0 for what was given back."""
    limit: int
    price: int
    """What is to be counted for a load before it begins; 0 if that is not known."""
    more: int
    """What this process has spent that is in no report yet."""
    ahead: float
    """Seconds that tests have put the clock ahead."""


class SpendReply(NamedTuple):
    """What Redis has answered."""

    allowed: bool
    spent: int
    """Billionths, in the present period."""
    left: float
    """Seconds of the period that are left."""


class Spent(NamedTuple):
    """What is known of a limit, for people."""

    number: int
    """Of the period."""
    spent: int
    """Billionths, in that period."""
    limit: int
    """Billionths; 0 if it is not known."""
    second: int
    """Of Redis' clock."""


class SpendKeys:
    """The operation on limits of spending; a part of the `Client`."""

    _wire: "Callable[[bytes], Wire]"

    def spend(self, key: bytes, ask: SpendAsk, receive: "Receive[SpendReply]", waiter: "Waiter") -> None:
        """Report what was spent, and ask whether a load may begin.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        command = _SPEND.command(
            (key,), ask.period.encode(), int(ask.ahead), ask.owner, ask.number, ask.amount, ask.limit, ask.price,
            ask.more,
        )  # fmt: skip

        def took(reply: Any, connection: "Connection", sent: float) -> Any:
            return receive(_reply(reply), connection, sent)

        self._wire(key).call(command, took, waiter)

    async def spent(self, key: bytes) -> Spent:
        """Return what is known of a limit.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        found: Spent = await self._wire(key).execute(_SPENT.command((key,)), _spent)
        return found


def _spent(reply: Any, _connection: "Connection | None" = None, _sent: float = 0.0) -> Spent:
    if type(reply) is not list or [type(part) for part in reply] != [int, bytes, bytes, int]:
        raise nonsense("what was spent is expected")
    number, spent, limit, second = reply
    try:
        return Spent(number, int(spent), int(limit), second)
    except ValueError:
        raise nonsense("what was spent is expected") from None


def _reply(reply: Any) -> SpendReply:
    if type(reply) is not list or [type(part) for part in reply] != [int, bytes, int]:
        raise nonsense("what was spent is expected")
    allowed, spent, left = reply
    try:
        return SpendReply(bool(allowed), int(spent), float(left))
    except ValueError:
        raise nonsense("what was spent is expected") from None
