"""Scripts that read a value and write it in one step: a counter, and a write that depends on what is stored.

Like all scripts, they compare bytes and numbers of the header. What they cannot decide, the caller judges: it gets the
stored bytes, and asks again with their header in `reject` if they count as nothing, see `judge`.
"""

from collections.abc import Sequence
from typing import Final

from magnus_cache._engine.codec.envelope import EPOCH_AT, HEADER_BYTES, PREFIX, SUMMED_FROM, TAGGED, VERSION_AT
from magnus_cache._engine.redis.commands import Command
from magnus_cache._engine.redis.scripts import Script

__all__ = ["EXACT", "increment", "swap"]

EXACT: Final = 1 << 53
"""Integers up to here are exact in Lua, whose numbers are floats of 64 bits."""

_MOST_BYTES: Final = 1_024
"""Bytes of a counter with its header and tags, up to which the script counts. Lua takes 0.2 microseconds a byte."""


def _crc_table() -> str:
    """Return the 256 words of CRC-32 in Lua's syntax."""
    words: list[int] = []
    for word in range(256):
        for _ in range(8):
            word = word >> 1 ^ (0xEDB88320 if word & 1 else 0)
        words.append(word)
    return ",".join(map(str, words))


# A counter is stored as any other int, so that all other operations work on it, and reads know nothing of counters. The
# script checks the header and its checksum, and changes the number and the version. The end, the tags and the epoch
# stay: what has invalidated the old number invalidates the new one. Anything else than a plain fresh int is the
# caller's to judge: an error, a stale or compressed value, foreign bytes.
_INCREMENT: Final = Script(
    "INCR",
    f"""
local reject, created, milliseconds, lowest, delta, version = unpack(ARGV)
local function finish(answer)
  if KEYS[2] then redis.call('DEL', KEYS[2]) end
  redis.call('EXISTS', KEYS[1])
  return {{1, answer}}
end
local value = redis.pcall('GETRANGE', KEYS[1], 0, {_MOST_BYTES - 1})
if type(value) ~= 'string' or value == '' or (reject ~= '' and string.sub(value, 1, #reject) == reject) then
  if created == '' then return {{0, false}} end
  redis.call('SET', KEYS[1], created, 'PX', milliseconds)
  return finish(false)
end
local function foreign() return {{0, redis.call('GET', KEYS[1])}} end
local time = redis.call('TIME')
local flags = string.byte(value, {SUMMED_FROM + 1})
if delta == '' or #value <= {HEADER_BYTES} or #value >= {_MOST_BYTES}
    or string.sub(value, 1, {len(PREFIX)}) ~= string.char({", ".join(map(str, PREFIX))})
    or (flags ~= 0 and flags ~= {TAGGED})
    or struct.unpack('>I4', value, {HEADER_BYTES - 3}) ~= #value - {HEADER_BYTES}
    or struct.unpack('>I8', value, {EPOCH_AT + 1}) < tonumber(lowest)
    or struct.unpack('>i8', value, {VERSION_AT + 9}) <= time[1] * 1000000 + time[2] then
  return foreign()
end
local words, bxor, band, rshift = {{{_crc_table()}}}, bit.bxor, bit.band, bit.rshift
local function sum(text)
  local crc, bytes = -1, {{string.byte(text, 1, -1)}}
  for index = 1, #bytes do crc = bxor(words[band(bxor(crc, bytes[index]), 255) + 1], rshift(crc, 8)) end
  crc = bit.bnot(crc)
  return struct.pack('>I4', crc < 0 and crc + 4294967296 or crc)
end
if sum(string.sub(value, {SUMMED_FROM + 1})) ~= string.sub(value, {len(PREFIX) + 1}, {SUMMED_FROM}) then
  return foreign()
end
local place = {HEADER_BYTES + 1}
if flags == {TAGGED} then
  local tags = string.byte(value, place)
  place = place + 1
  for _ = 1, tags do
    if place + 1 > #value then return foreign() end
    place = place + 2 + struct.unpack('>I2', value, place)
  end
end
local forms = {{[204] = '>I1', [205] = '>I2', [206] = '>I4', [207] = '>I8',
  [208] = '>i1', [209] = '>i2', [210] = '>i4', [211] = '>i8'}}
local head, left, number = string.byte(value, place), #value - place, nil
if head and left == 0 and head < 128 then number = head
elseif head and left == 0 and head >= 224 then number = head - 256
elseif head and forms[head] and left == struct.size(forms[head]) then
  number = struct.unpack(forms[head], value, place + 1)
end
if not number or math.abs(number) > {EXACT} then return foreign() end
number = number + tonumber(delta)
if math.abs(number) > {EXACT} then return foreign() end
local rest = string.sub(value, {SUMMED_FROM + 1}, {VERSION_AT}) .. version
    .. string.sub(value, {VERSION_AT + 9}, {HEADER_BYTES - 4})
local tags = string.sub(value, {HEADER_BYTES + 1}, place - 1)
local body = tags .. string.char(211) .. struct.pack('>i8', number)
rest = rest .. struct.pack('>I4', #body) .. body
local raw = string.sub(value, 1, {len(PREFIX)}) .. sum(rest) .. rest
redis.call('SET', KEYS[1], raw, 'KEEPTTL')
return finish(raw)
""",
)

# Stores a value in place of the one that the caller has judged, or where there is none, if the caller allows that. The
# lease goes, so that no load that began before stores over it.
_SWAP: Final = Script(
    "SWAP",
    f"""
local expected, raw, milliseconds, absent = unpack(ARGV)
local head = redis.pcall('GETRANGE', KEYS[1], 0, {HEADER_BYTES - 1})
if type(head) ~= 'string' then head = '' end
if head == '' then
  if absent == '' then return {{0, false}} end
elseif expected == '' or head ~= expected then
  return {{0, redis.call('GET', KEYS[1])}}
end
if KEYS[2] then redis.call('DEL', KEYS[2]) end
redis.call('SET', KEYS[1], raw, 'PX', milliseconds)
redis.call('EXISTS', KEYS[1])
return {{1, false}}
""",
)


def increment(
    keys: Sequence[bytes], reject: bytes, created: tuple[bytes, int], change: tuple[int, int, int]
) -> Command:
    """Pack the increment of a counter; the reply is ``[1, new value]``, ``[1, nil]`` if created, or ``[0, value]``.

    ``[0, nil]`` means that there is none, and `created` is empty.

    :param keys: the name of the value, and that of its lease unless it is removed by another command.
    :param reject: the header of a stored value that counts as nothing; empty for none.
    :param created: the value to store if there is none, or nothing, and its life in milliseconds.
    :param change: the lowest epoch of a valid value, what to add, and the version of the new value.
    """
    lowest, delta, version = change
    counted = delta if abs(delta) <= EXACT else b""
    return _INCREMENT.command(keys, reject, *created, lowest, counted, version.to_bytes(8, "big"))


def swap(keys: Sequence[bytes], expected: bytes, raw: bytes, milliseconds: int, *, absent: bool) -> Command:
    """Pack a write in place of a value with this header; the reply is ``[1, nil]``, or ``[0, the other value or nil]``.

    :param keys: as for `increment`.
    :param absent: whether there may be no value.
    """
    return _SWAP.command(keys, expected, raw, milliseconds, b"1" if absent else b"")
