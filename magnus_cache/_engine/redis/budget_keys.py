"""The operations of the client on budgets: one bucket for each source, and the pauses of sources without a bucket.

A bucket is one hash, so that a script touches one key of one slot. Its tokens come back a window after they were taken:
Redis keeps the time of each (``t<number>``), from the oldest that is not back (``o``) to the next one (``n``). So no
window has more loads than the budget, and a source that was idle may be asked as often at once.

Loads that find no token are noted in ``w``, with their order: callers before background loads, those with more callers
first, then those that came first. The script answers when each load's turn is due, and its process asks again then, not
before. Tokens are held for those who are due. A process that does not come within a second of its turn has died, and
the others get its tokens.

A missing bucket counts as full. A process that knew an earlier one (``g``) tells a new one how many tokens it has taken
in the last window; so a bucket that was lost, with a server or by an eviction, allows at most what the processes have
taken that have not asked again yet.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from magnus_cache._engine.redis.replies import nonsense
from magnus_cache._engine.redis.scripts import Script
from magnus_cache._engine.runtime.clock import MICROSECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from magnus_cache._engine.redis.exchange import Connection, Receive, Waiter
    from magnus_cache._engine.redis.wire import Wire

__all__ = ["Ask", "BucketKeys", "BucketReply", "Wanted"]

_PATIENCE: Final = 1_000_000
"""Microseconds after its turn was due when a process that has not come counts as dead."""

_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2] + ahead
"""

_HELD: Final = """
local function text(number) return string.format('%.0f', number) end
local function at(place) return tonumber(redis.call('HMGET', KEYS[1], 't' .. text(place))[1]) or 0 end
local head = redis.pcall('HMGET', KEYS[1], 'n', 'o', 'g', 'u', 'w', 'l')
if head['err'] then
  redis.call('DEL', KEYS[1])
  head = {false, false, false, false, false, false}
end
local upto, oldest = tonumber(head[1]) or 0, tonumber(head[2]) or 0
local until_ = tonumber(head[4]) or 0
"""

# After a clock that was set back, times lie ahead. Tokens count as taken now, or the source would rest until then. The
# end of a pause, and the turns of those that wait, move back as the clock did.
_TAKE: Final = Script(
    "TAKE",
    f"""
local size, window, owner, known = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local ahead = tonumber(ARGV[7])
{_NOW}{_HELD}
local generation, taken = head[3], tonumber(ARGV[5])
if not generation or (known ~= '' and known ~= generation) then
  if known ~= '' then taken = tonumber(ARGV[6]) end
  generation = generation or text(now)
end
local back = math.max((tonumber(head[6]) or 0) - now, 0)
if back > 0 then
  for place = oldest, upto - 1 do
    if at(place) > now then redis.call('HSET', KEYS[1], 't' .. text(place), text(now)) end
  end
  until_ = math.max(until_ - back, 0)
  redis.call('HSET', KEYS[1], 'u', text(until_))
end
local low, high = oldest, upto
while low < high do
  local middle = math.floor((low + high) / 2)
  if at(middle) + window <= now then low = middle + 1 else high = middle end
end
while oldest < low do
  local names = {{}}
  while oldest < low and #names < 500 do
    names[#names + 1] = 't' .. text(oldest)
    oldest = oldest + 1
  end
  redis.call('HDEL', KEYS[1], unpack(names))
end
local function take(tokens)
  for _ = 1, tokens do
    redis.call('HSET', KEYS[1], 't' .. text(upto), text(now))
    upto = upto + 1
  end
end
take(math.min(taken, size))
local waiting = {{}}
if head[5] then
  local packed, found = pcall(cmsgpack.unpack, head[5])
  if packed and type(found) == 'table' then waiting = found end
end
waiting[owner] = nil
local order, mine = {{}}, {{}}
for other, told in pairs(waiting) do
  told[1] = told[1] - back
  if told[1] + {_PATIENCE} < now then
    waiting[other] = nil
  else
    for place = 2, #told do
      told[place][3] = told[place][3] - back
      order[#order + 1] = told[place]
    end
  end
end
for place = 8, #ARGV, 3 do
  local load = {{tonumber(ARGV[place]), tonumber(ARGV[place + 1]), now - tonumber(ARGV[place + 2]), #mine + 1}}
  mine[#mine + 1] = load
  order[#order + 1] = load
end
table.sort(order, function(a, b)
  if a[2] ~= b[2] then return a[2] < b[2] end
  if a[3] ~= b[3] then return a[3] < b[3] end
  return (a[4] or 0) < (b[4] or 0)
end)
local free, before, granted = size - (upto - oldest), 0, {{}}
for _, load in ipairs(order) do
  if load[4] and until_ <= now and before + load[1] <= free then
    granted[load[4]] = upto
    take(load[1])
  end
  before = before + load[1]
end
free, before = size - (upto - oldest), 0
local answer, told = {{}}, {{0}}
for _, load in ipairs(order) do
  if not (load[4] and granted[load[4]]) then
    before = before + load[1]
    if load[4] then
      local place, due = before - 1 - free, now
      if place >= 0 then
        local rounds = math.max(math.ceil((place - (upto - oldest) + 1) / size), 0)
        local turn = place - rounds * size
        due = (turn >= 0 and at(oldest + turn) + window or now) + window * rounds
      end
      due = math.max(due, until_, now)
      answer[load[4]] = due - now
      if #told == 1 then told[1] = due end
      told[#told + 1] = {{load[1], load[2], load[3]}}
    end
  end
end
if #told > 1 then waiting[owner] = told end
redis.call('HSET', KEYS[1], 'n', text(upto), 'o', text(oldest), 'g', generation, 'l', text(now))
if next(waiting) then
  redis.call('HSET', KEYS[1], 'w', cmsgpack.pack(waiting))
elseif head[5] then
  redis.call('HDEL', KEYS[1], 'w')
end
redis.call('PEXPIRE', KEYS[1], text(math.ceil((window + math.max(until_ - now, 0)) / 1000) + 1000))
local reply = {{generation, math.max(until_ - now, 0), math.max(free, 0)}}
for place = 1, #mine do
  reply[#reply + 1] = granted[place] and -1 - granted[place] or math.ceil(answer[place])
end
return reply
""",
)

_GIVE_BACK: Final = Script(
    "GIVEBACK",
    f"""
{_HELD}
local place, tokens = tonumber(ARGV[2]), tonumber(ARGV[3])
if head[3] ~= ARGV[1] or place < oldest or place + tokens > upto then return 0 end
for each = place, upto - 1 - tokens do
  redis.call('HSET', KEYS[1], 't' .. text(each), text(at(each + tokens)))
end
for each = upto - tokens, upto - 1 do redis.call('HDEL', KEYS[1], 't' .. text(each)) end
redis.call('HSET', KEYS[1], 'n', text(upto - tokens))
return 1
""",
)

_PAUSE: Final = Script(
    "PAUSE",
    f"""
local ahead = tonumber(ARGV[3])
{_NOW}{_HELD}
local back = math.max((tonumber(head[6]) or 0) - now, 0)
until_ = math.max(until_, now + back + tonumber(ARGV[1]))
redis.call('HSET', KEYS[1], 'u', text(until_), 'g', head[3] or text(now), 'l', text(now + back))
redis.call('PEXPIRE', KEYS[1], text(math.ceil((tonumber(ARGV[2]) + until_ - back - now) / 1000) + 1000))
return math.ceil(until_ - back - now)
""",
)

# One key has all pauses of sources without a bucket. Processes have read it, so its change is announced to them.
_PAUSE_ALONE: Final = Script(
    "PAUSEALONE",
    f"""
local ahead = tonumber(ARGV[3])
{_NOW}
local found = redis.pcall('HGETALL', KEYS[1])
if found['err'] then
  redis.call('DEL', KEYS[1])
  found = {{}}
end
local ends, last = now + tonumber(ARGV[2]), 0
for place = 1, #found, 2 do
  local other = tonumber(found[place + 1]) or 0
  if found[place] == ARGV[1] then ends = math.max(ends, other) end
  if other <= now then redis.call('HDEL', KEYS[1], found[place]) end
  last = math.max(last, other)
end
last = math.max(last, ends)
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', ends))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.ceil((last - now) / 1000) + 1000))
redis.call('EXISTS', KEYS[1])
return math.ceil(ends - now)
""",
)

_PAUSES: Final = Script(
    "PAUSES",
    f"""
local ahead = tonumber(ARGV[1])
{_NOW}
local found, reply = redis.pcall('HGETALL', KEYS[1]), {{}}
if found['err'] then return reply end
for place = 1, #found, 2 do
  local left = (tonumber(found[place + 1]) or 0) - now
  if left > 0 then
    reply[#reply + 1] = found[place]
    reply[#reply + 1] = math.ceil(left)
  end
end
return reply
""",
    writes=0,
)


class Wanted(NamedTuple):
    """A load that asks for tokens."""

    tokens: int
    rank: int
    """Loads with a lower one come first."""
    waited: float
    """Seconds."""


class Ask(NamedTuple):
    """A request for the tokens of some loads of one owner, in their order; those of an earlier request are replaced."""

    size: int
    """Tokens of a full bucket."""
    window: float
    """Seconds after which a token comes back."""
    owner: bytes
    known: bytes
    """The generation of the bucket that the process knows; empty for none."""
    unreported: int
    """Tokens that the process has taken without asking, such as in an outage."""
    own: int
    """Tokens that it has taken in the last window in all."""
    ahead: float
    """Seconds that tests have put the clock ahead."""
    loads: Sequence[Wanted]


class BucketReply(NamedTuple):
    """What a bucket has answered."""

    generation: bytes
    paused: float
    """Seconds for which the source is paused; 0 if it is not."""
    free: int
    """Tokens that are left."""
    turns: Sequence[float | int]
    """For each load, the seconds until its turn; or as an int, the number of its first token."""


class BucketKeys:
    """The operations on budgets; a part of the `Client`."""

    _wire: "Callable[[bytes], Wire]"

    def take_tokens(self, bucket: bytes, ask: Ask, receive: "Receive[BucketReply]", waiter: "Waiter") -> None:
        """Ask for tokens.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        words: list[bytes | int] = [
            ask.size, _micros(ask.window), ask.owner, ask.known, ask.unreported, ask.own, _micros(ask.ahead),
        ]  # fmt: skip
        for load in ask.loads:
            words += [load.tokens, load.rank, _micros(max(0.0, load.waited))]
        count = len(ask.loads)

        def took(reply: Any, connection: "Connection", sent: float) -> Any:
            return receive(_bucket_reply(reply, count), connection, sent)

        self._wire(bucket).call(_TAKE.command((bucket,), *words), took, waiter)

    def give_back_tokens(self, bucket: bytes, generation: bytes, place: int, tokens: int, waiter: "Waiter") -> None:
        """Give back tokens that were not used.

        :param place: the number of the first one.
        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """
        command = _GIVE_BACK.command((bucket,), generation, place, tokens)
        self._wire(bucket).call(command, _left, waiter)

    async def pause_bucket(self, bucket: bytes, seconds: float, window: float, ahead: float) -> float:
        """Pause a source that has a bucket, and return the seconds that are left of its pause.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        command = _PAUSE.command((bucket,), _micros(seconds), _micros(window), _micros(ahead))
        left: float = await self._wire(bucket).execute(command, _left)
        return left

    async def pause_source(self, pauses: bytes, source: bytes, seconds: float, ahead: float) -> float:
        """Pause a source without a bucket, and return the seconds that are left of its pause.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        command = _PAUSE_ALONE.command((pauses,), source, _micros(seconds), _micros(ahead))
        left: float = await self._wire(pauses).execute(command, _left)
        return left

    def read_pauses(
        self, pauses: bytes, ahead: float, receive: "Receive[dict[str, float]]", waiter: "Waiter"
    ) -> None:  # fmt: skip
        """Read the pauses of sources without a bucket: the seconds that are left, by source.

        :raises CacheUnavailableError: at once, when Redis is known to be away or the queue is full.
        """

        def took(reply: Any, connection: "Connection", sent: float) -> Any:
            return receive(_pauses(reply), connection, sent)

        self._wire(pauses).call(_PAUSES.command((pauses,), _micros(ahead)), took, waiter)


def _micros(seconds: float) -> int:
    return round(seconds * MICROSECONDS)


def _left(reply: Any, _connection: "Connection | None" = None, _sent: float = 0.0) -> float:
    if type(reply) is not int or reply < 0:
        raise nonsense("a number is expected")
    return reply / MICROSECONDS


def _bucket_reply(reply: Any, count: int) -> BucketReply:
    if type(reply) is not list or len(reply) != count + 3:
        raise nonsense("the state of a bucket is expected")
    generation, paused, free, *turns = reply
    if type(generation) is not bytes or any(type(part) is not int for part in (paused, free, *turns)):
        raise nonsense("the state of a bucket is expected")
    return BucketReply(
        generation, paused / MICROSECONDS, free, [-1 - turn if turn < 0 else turn / MICROSECONDS for turn in turns]
    )


def _pauses(reply: Any) -> dict[str, float]:
    if type(reply) is not list or len(reply) % 2:
        raise nonsense("pauses of sources are expected")
    names, lefts = reply[::2], reply[1::2]
    if any(type(name) is not bytes for name in names) or any(type(left) is not int for left in lefts):
        raise nonsense("pauses of sources are expected")
    return {name.decode("utf-8", "replace"): left / MICROSECONDS for name, left in zip(names, lefts, strict=True)}
