"""The commands of a cluster: each touches the keys of one slot, and most touch one key.

While a slot is migrated key by key, a command with two keys of it is refused with TRYAGAIN as long as one of them is
missing, which may be for the whole migration. A command with one key works, at one of the two nodes.

An epoch is issued once, at the clock, and then raised in each group. Raising never lowers, so the order in which the
nodes are told makes no difference, and telling one of them twice does no harm.
"""

from collections.abc import Sequence
from typing import Any, Final

from magnus_cache._engine.coherence.epochs import LATEST_EPOCH, ControlNames
from magnus_cache._engine.coherence.group_epochs import logical_name
from magnus_cache._engine.keys.names import lease_name
from magnus_cache._engine.redis.commands import Command, pack
from magnus_cache._engine.redis.scripts import NUMBERS, OLD, PUT, Script

__all__ = [
    "NOTHING",
    "Steps",
    "acquire_one",
    "adopt_copy",
    "arrive",
    "asking",
    "asking_get",
    "in_one_step",
    "issue",
    "join",
    "last_issued",
    "learn_copy",
    "raise_copies",
    "reclaim",
    "reclaim_one",
    "remove_one",
    "store_one",
    "succeed",
]

NOTHING: Final = b""
"""The answer of a script that cannot decide without a new epoch."""

_ASKING: Final = pack(b"ASKING")

_NUMBERS: Final = NUMBERS + PUT

# The clock's value ends with the identity of the server that issued it. Another one may have lost the latest writes, so
# it has to learn the highest epoch of all groups before it issues one.
_ISSUE: Final = Script(
    "ISSUE",
    _NUMBERS
    + f"""
local digits, identity
local text = redis.pcall('GET', KEYS[1])
if type(text) == 'string' then digits, identity = string.match(text, '^(%d+) (.*)$') end
if identity ~= ARGV[2] and ARGV[3] == '' then return '' end
local epoch = math.max(now, number(digits) + 1, number(ARGV[1]) + 1)
if epoch > {LATEST_EPOCH} then return redis.error_reply('EPOCHS end before the time of the clock') end
text = string.format('%016.0f', epoch)
redis.call('SET', KEYS[1], text .. ' ' .. ARGV[2])
return text
""",
)

# The copy of a tag that the group does not have needs no epoch: no value of the group has the tag, and a later one is
# checked against the guard. It is made only if a value needs it now (ARGV[2]). Two that miss a copy at the same time
# both issue an epoch for it: the second one takes the first one's, or values stored in between would be invalid. A bump
# may have come in between as well, and has told the guard alone.
_RAISE: Final = Script(
    "RAISE",
    _NUMBERS
    + """
local epoch, highest, copies = tonumber(ARGV[1]), 0, {}
redis.pcall('HSETNX', KEYS[1], 'since', ARGV[1])
if number(redis.pcall('HGET', KEYS[1], 'last')) < epoch then redis.pcall('HSET', KEYS[1], 'last', ARGV[1]) end
for index = 2, #KEYS do
  local bucket = ARGV[index + 1]
  local last = number(redis.pcall('GET', KEYS[index]))
  local told = bucket ~= '' and bucket ~= '-' and number(redis.pcall('HGET', KEYS[1], bucket)) or 0
  if ARGV[2] ~= '' then
    if last == 0 then
      last = math.max(epoch, told)
      put(KEYS[index], string.format('%016.0f', last), bucket)
    end
  else
    if last < epoch and (last > 0 or bucket == '' or bucket == '-') then put(KEYS[index], ARGV[1], bucket) end
    if bucket ~= '' and bucket ~= '-' and told < epoch then redis.pcall('HSET', KEYS[1], bucket, ARGV[1]) end
  end
  highest = math.max(highest, last)
  copies[#copies + 1] = KEYS[index]
end
redis.call('EXISTS', unpack(copies))
if ARGV[2] == '' then highest = math.max(highest, epoch) end
return string.format('%016.0f', highest)
""",
)

# The same in commands of one key each, for a slot that is half moved. The guard first: who makes a missing copy between
# two of them finds there that the tag was invalidated.
_TELL: Final = Script(
    "TELL",
    _NUMBERS
    + """
local epoch = tonumber(ARGV[1])
redis.pcall('HSETNX', KEYS[1], 'since', ARGV[1])
if number(redis.pcall('HGET', KEYS[1], 'last')) < epoch then redis.pcall('HSET', KEYS[1], 'last', ARGV[1]) end
for index = 2, #ARGV do
  local told = number(redis.pcall('HGET', KEYS[1], ARGV[index]))
  if told < epoch then redis.pcall('HSET', KEYS[1], ARGV[index], ARGV[1]) end
end
return ARGV[1]
""",
)

_RAISE_ONE: Final = Script(
    "RAISE",
    _NUMBERS
    + """
local epoch, bucket = tonumber(ARGV[1]), ARGV[2]
local last = number(redis.pcall('GET', KEYS[1]))
if last < epoch and (last > 0 or bucket == '' or bucket == '-') then put(KEYS[1], ARGV[1], bucket) end
redis.call('EXISTS', KEYS[1])
return string.format('%016.0f', math.max(last, epoch))
""",
)

# A server that may lack writes of a group: the first process that meets it invalidates the group, in one step with the
# note that this is done. The others find the note, and look again.
_ARRIVE: Final = Script(
    "ARRIVE",
    _NUMBERS
    + """
local stored = redis.pcall('GET', KEYS[2])
if (type(stored) == 'string' and stored or '') ~= ARGV[2] then return '' end
local text = string.format('%016.0f', math.max(tonumber(ARGV[1]), number(redis.pcall('GET', KEYS[1])) + 1))
redis.call('SET', KEYS[1], text)
redis.call('SET', KEYS[2], ARGV[3])
redis.pcall('HSETNX', KEYS[3], 'since', text)
redis.pcall('HSET', KEYS[3], 'last', text)
redis.call('EXISTS', KEYS[1])
return text
""",
)

# Slots of a group have moved to a node: it is noted beside the others. Where they are not noted any more, the next
# process finds that.
_JOIN: Final = Script(
    "JOIN",
    """
local text = redis.pcall('GET', KEYS[1])
if type(text) ~= 'string' or text == '' then return 0 end
if not string.find(text, ARGV[1], 1, true) then redis.call('SET', KEYS[1], text .. ' ' .. ARGV[1]) end
return 1
""",
)

# A server that lacks nothing of a group is noted in the place of the former primary, unless another process was faster.
_SUCCEED: Final = Script(
    "SUCCEED",
    """
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
""",
)

_LEARN: Final = Script(
    "LEARN",
    _NUMBERS
    + """
local text = redis.pcall('GET', KEYS[1])
local epoch, known = number(text), number(ARGV[1])
if epoch == 0 then return '' end
if epoch < known then
  text = string.format('%016.0f', known)
  put(KEYS[1], text, ARGV[2])
end
redis.call('EXISTS', KEYS[1])
return text
""",
)

_ADOPT: Final = Script(
    "ADOPT",
    _NUMBERS
    + """
local text = redis.pcall('GET', KEYS[2])
local epoch, known = number(text), number(ARGV[1])
if epoch > 0 and epoch >= known then return text end
local captured = tonumber(ARGV[2])
local guard = redis.pcall('HMGET', KEYS[1], 'since', ARGV[3])
local since, last = tonumber(guard[1] or ''), tonumber(guard[2] or '0')
if captured <= latest and since and since <= captured and last and last <= captured and known <= captured then
  text = string.format('%016.0f', captured)
  put(KEYS[2], text, ARGV[3])
  redis.call('EXISTS', KEYS[2])
  return text
end
return ''
""",
)

# A slot may have moved since its keys were listed, or be half moved: such names are left for their new node.
_RECLAIM: Final = Script(
    "RECLAIM",
    OLD
    + """
local removed, left = 0, {}
for index = 2, #ARGV do
  local name = ARGV[index]
  if is_old(name, ARGV[1]) then
    local done = redis.pcall('UNLINK', name)
    if type(done) == 'number' then removed = removed + done else left[#left + 1] = name end
  end
end
return {removed, left}
""",
    writes=0,
)

_RECLAIM_ONE: Final = Script(
    "RECLAIM",
    OLD
    + """
if not is_old(KEYS[1], ARGV[1]) then return 0 end
return redis.call('UNLINK', KEYS[1])
""",
    writes=0,
)

# One lease of a batch: granted even if a value is stored, which the caller gets as well, and judges. Only the token
# says whether it is granted: a request is repeated when its answer is lost, and the first one may have been granted.
_LEASE: Final = Script(
    "ACQ",
    """
local value = false
if ARGV[3] == '' then
  value = redis.pcall('GET', KEYS[1])
  redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2])
else
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
end
return {type(value) == 'string' and value, redis.pcall('GET', KEYS[2]) == ARGV[1] and 1 or 0}
""",
)

_STORE: Final = Script(
    "SET",
    """
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return redis.call('EXISTS', KEYS[1])
""",
)


class Steps(Command):
    """Several commands, each of one key, that are sent together; the reply is that of the last one.

    :ivar parts: the commands.
    """

    __slots__ = ("parts",)

    def __init__(self, name: str, parts: Sequence[Command], writes: int) -> None:
        last = parts[-1]
        super().__init__(name, b"".join(part.packed for part in parts), len(parts), last.again, writes)
        self.parts = parts

    def combined(self, replies: Sequence[Any]) -> Any:
        """Return the reply from the replies to all parts, which were sent one after the other."""
        return replies[-1]


class _Divisible(Steps):
    """A command of several keys, and the commands of one key that are sent in its place where it is refused."""

    __slots__ = ("_whole",)

    def __init__(self, whole: Command, parts: Sequence[Command]) -> None:
        super().__init__(whole.name, parts, whole.writes)
        self.packed, self.replies, self._whole = whole.packed, whole.replies, whole
        self.again = None if whole.again is None else self._said_again

    def _said_again(self) -> Command:
        assert self._whole.again is not None
        return _Divisible(self._whole.again(), self.parts)

    def combined(self, replies: Sequence[Any]) -> Any:
        """Return the digits of the highest epoch."""
        return max(replies) if all(type(reply) is bytes for reply in replies) else replies[-1]


def asking(command: Command) -> Command | None:
    """Return a command as it is sent to the node that a slot is being moved to; None for a transaction.

    Each of its parts is preceded by ASKING, which is about one command only.
    """
    parts = command.parts if isinstance(command, Steps) else (command,)
    if any(part.replies > 1 for part in parts):
        return None
    again = command.again
    packed = b"".join(_ASKING + part.packed for part in parts)

    def said_again() -> Command:
        assert again is not None
        return Command(command.name, _ASKING + again().packed, 2)

    return Command(command.name, packed, 2 * len(parts), None if again is None else said_again)


def asking_get(name: bytes) -> Command:
    """Pack the read of one value at the node that its slot is being moved to; the reply is the value."""
    return Command("GET", _ASKING + pack(b"GET", name), 2)


def issue(clock: bytes, known: int, identity: bytes, *, adopt: bool = False) -> Command:
    """Pack the issue of an epoch higher than `known`; the reply has its digits, or is `NOTHING` for an unknown server.

    :param identity: identifies the server's history.
    :param adopt: whether `known` is at least the highest epoch of all groups, so that any server may issue.
    """
    return _ISSUE.command((clock,), known, identity, b"1" if adopt else b"")


def raise_copies(names: ControlNames, copies: Sequence[bytes], suffix: bytes, epoch: int, *, make: bool) -> Command:
    """Pack the raising of one group's copies to an epoch; the reply has the digits of the highest that they have now.

    :param suffix: the anchor tag of the group, in braces.
    :param make: whether to make copies that the group does not have, and leave the others as they are.
    """
    buckets, text = [names.bucket(logical_name(copy)) for copy in copies], b"%016d" % epoch
    whole = _RAISE.command((names.guard + suffix, *copies), text, b"1" if make else b"", *buckets)
    if make:
        # In one step: it depends on the guard which epoch the copy gets.
        return whole
    told = [bucket for bucket in buckets if bucket not in (b"", b"-")]
    each = [_RAISE_ONE.command((copy,), text, bucket) for copy, bucket in zip(copies, buckets, strict=True)]
    return _Divisible(whole, [_TELL.command((names.guard + suffix,), text, *told), *each])


def arrive(names: ControlNames, suffix: bytes, epoch: int, before: bytes, after: bytes) -> Command:
    """Pack the first contact of a group with a server; the reply has the digits of its new root epoch.

    It is `NOTHING`, and nothing happens, if another process was faster.

    :param suffix: the anchor tag of the group, in braces.
    :param epoch: a new one, which becomes the root epoch.
    :param before: the origins of the group, as they were judged; empty for none.
    :param after: its origins after that.
    """
    return _ARRIVE.command((names.root + suffix, names.server + suffix, names.guard + suffix), epoch, before, after)


def join(server: bytes, entry: bytes) -> Command:
    """Pack the note of a node beside the other origins of a group."""
    return _JOIN.command((server,), entry)


def succeed(server: bytes, before: bytes, after: bytes) -> Command:
    """Pack the note of other origins of a group in place of those that were judged; the reply is 0 if they changed."""
    return _SUCCEED.command((server,), before, after)


def learn_copy(names: ControlNames, copy: bytes, known: int) -> Command:
    """Pack the read of a copy, which is raised if it is below `known`; the reply has its digits, or is `NOTHING`."""
    return _LEARN.command((copy,), known, names.bucket(logical_name(copy)))


def adopt_copy(names: ControlNames, copy: bytes, known: int, captured: int) -> Command:
    """Pack the read of a tag's copy; if it is missing, a load's epoch becomes it if that is safe, else `NOTHING`."""
    logical = logical_name(copy)
    return _ADOPT.command((names.guard + copy[len(logical) :], copy), known, captured, names.bucket(logical))


def last_issued(guard: bytes) -> Command:
    """Pack the question for the last epoch that was raised in a group; the reply has its digits, or is nil."""
    return Command("HGET", pack(b"HGET", guard, b"last"))


def reclaim(names: Sequence[bytes], epoch: int) -> Command:
    """Pack the removal of those of a node's values that are older than an epoch.

    The reply is their number, and the names that do not belong to the node any more.
    """
    return _RECLAIM.command((), epoch, *names)


def reclaim_one(name: bytes, epoch: int) -> Command:
    """Pack the removal of a value if it is older than an epoch; the reply is 1 or 0."""
    return _RECLAIM_ONE.command((name,), epoch)


def acquire_one(name: bytes, token: bytes, milliseconds: int, *, force: bool = False) -> Command:
    """Pack the request for one of many leases; the reply is ``[value or nil, 1 or 0]``, without the value if forced.

    :param force: whether to take the lease from any holder, even if a value is stored.
    """
    return _LEASE.command((name, lease_name(name)), token, milliseconds, b"1" if force else b"")


def store_one(name: bytes, raw: bytes, milliseconds: int) -> Command:
    """Pack the write of a value, which voids its lease first; the reply is 1.

    A load that takes the lease in between began after the caller's write of the source, so it may store.
    """
    lease = Command("DEL", pack(b"DEL", lease_name(name)))
    return Steps("SET", (lease, _STORE.command((name,), raw, milliseconds, size=len(raw))), 2)


def in_one_step(name: bytes, whole: Command, alone: Command) -> Command:
    """Return a command that voids the lease of a value in the step in which it writes the value.

    While the slot is moved, the lease goes first. A load that takes it in between may store over what is written.

    :param whole: the command with both keys. It is refused as a whole, so nothing of it is done twice.
    :param alone: the same without the lease.
    """
    return _Divisible(whole, (Command("DEL", pack(b"DEL", lease_name(name))), alone))


def remove_one(name: bytes) -> Command:
    """Pack the removal of a value and its lease, the lease first; the reply is 1 if there was a value."""
    return Steps(
        "UNLINK", (Command("DEL", pack(b"DEL", lease_name(name))), Command("UNLINK", pack(b"UNLINK", name))), 0
    )
