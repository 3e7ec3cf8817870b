"""What the cache knows of one key: for people who ask why a value is served, or why it is not."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from magnus_cache.addresses import Address
from magnus_cache.codec import envelope
from magnus_cache.entries import Entry
from magnus_cache.errors import CacheDecodeError, CacheUnavailableError
from magnus_cache.function_tags import visible_tags
from magnus_cache.local_values import shown_tags
from magnus_cache.reads import Reads
from magnus_cache.redis import commands, replies, scripts
from magnus_cache.revalidation import tags_of

if TYPE_CHECKING:
    from magnus_cache.redis.pipeline import Source
    from magnus_cache.redis.wire import Wire

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The state of one key; never its value.

    :ivar namespace: the namespace's name.
    :ivar name: the value's full name in Redis.
    :ivar level: where a `get` would find it now: ``"l1"``, ``"l2"``, or None for a miss.
    :ivar verdict: what there is, or why it is a miss, in words.
    :ivar age: seconds since it was stored, or None if that is not known.
    :ivar left: seconds that it has left to live, or None.
    :ivar epoch: the highest epoch that its maker had seen before it was loaded, or None.
    :ivar floor: the epoch below which such a value is invalid, or None.
    :ivar tags: its tags.
    :ivar cost: seconds that its load took, or None.
    :ivar size: bytes of the encoded value, or None.
    :ivar lease_holder: who is loading it: host, process and acquisition, or None.
    :ivar lease_left: seconds until that lease runs out unless it is renewed, or None.
    """

    namespace: str
    name: str
    level: str | None
    verdict: str
    age: float | None = None
    left: float | None = None
    epoch: int | None = None
    floor: int | None = None
    tags: tuple[str, ...] = ()
    cost: float | None = None
    size: int | None = None
    lease_holder: str | None = None
    lease_left: float | None = None

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.verdict}"]
        told: list[str] = []
        if self.age is not None:
            told.append(f"stored {_duration(self.age)} ago")
        if self.left is not None:
            told.append(
                f"expires in {_duration(self.left)}" if self.left > 0 else f"expired {_duration(-self.left)} ago"
            )
        if self.cost:
            told.append(f"loaded in {_duration(self.cost)}")
        if self.size is not None:
            told.append(f"size {_size(self.size)}")
        if self.tags:
            told.append(f"tags {', '.join(self.tags)}")
        if told:
            lines.append(f"  {'; '.join(told)}")
        if self.epoch is not None:
            lines.append(f"  epoch {self.epoch}; values are valid from epoch {self.floor} on")
        if self.lease_holder is not None:
            lines.append(
                f"  being loaded by {self.lease_holder}; its lease ends in {_duration(self.lease_left or 0.0)}"
            )
        return "\n".join(lines)


_SPANS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def _duration(seconds: float) -> str:
    """Return a duration for people, with its two largest units: ``2 d 3 h``, ``1 min 5 s``, ``2.5 s``, ``350 ms``."""
    if seconds < 0.9995:
        return f"{round(seconds * 1000, 1):g} ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    left, parts = round(seconds), list[str]()
    for span, unit in _SPANS:
        count, left = divmod(left, span)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def _size(count: int) -> str:
    """Return a size for people: ``1 byte``, ``900 bytes``, ``4.2 kB``."""
    if count < 1000:
        return "1 byte" if count == 1 else f"{count} bytes"
    value, units = float(count), iter(("kB", "MB", "GB"))
    unit = ""
    while value >= 1000 and (larger := next(units, "")):
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


async def explain(reads: Reads, address: Address) -> Explanation:
    """Return the state of one key. It is not counted, and nothing is brought near."""
    state = reads.state
    name = address.name.decode()
    near = state.memory.hit(address.name)
    wire = state.wire()
    if address.namespace.local:
        return await _by_reference(reads, address, name)
    if wire is None:
        entry = near or state.memory.past(address.name, trusted=False)
        return _local(reads, address, entry, "no Redis is configured")
    try:
        await reads.caught_up(wire, address)
        raw, holder, left = await wire.execute(commands.look(address.name, database=wire.database), _looked)
        facts = await _facts(reads, wire, address, raw)
    except CacheUnavailableError as error:
        entry, why = near or reads.last(address), f"Redis is away ({error.reason})"
        return _local(reads, address, entry, why) if entry is not None else _not_served(reads, address, why)
    if near is not None:
        facts["level"], facts["verdict"] = "l1", f"in memory, and {facts['verdict']} in Redis"
        # What is near has its own end, which may be sooner.
        facts["left"] = near.fresh_until - state.clock()
    lease = {"lease_holder": holder.decode("utf-8", "replace"), "lease_left": left / 1000} if holder else {}
    return Explanation(str(address.namespace), name, **facts, **lease)


def _looked(reply: Any, _source: "Source", _sent: float) -> tuple[bytes | None, bytes | None, int]:
    """Take the reply to a look; what is no lease's time counts as none."""
    value, holder, left = reply
    if type(holder) is not bytes or holder == scripts.PASSED:
        holder = None
    if type(left) is not int or not 0 <= left <= replies.LONGEST_WAIT:
        left = 0
    return replies.single([value]), holder, left


def _local(reads: Reads, address: Address, entry: Entry | None, why: str) -> Explanation:
    """Return what this process alone knows.

    :param entry: what it may serve of the value, be it stale.
    """
    namespace, state = address.namespace, reads.state
    name, now = address.name.decode(), state.clock()
    if entry is None:
        return Explanation(str(namespace), name, None, f"not there; {why}")
    left, verdict = entry.fresh_until - now, "in this process"
    level: str | None = "l1"
    if left <= 0:
        grace = min(entry.end - now, left + address.freshness.grace)
        level, verdict = None, _past_its_end(grace)
    elif entry.negative:
        verdict = "an error that loading raised, remembered in this process"
    if namespace.offline is not None and state.endpoint is not None:
        why += f", and memory may serve it for {_duration(state.eras.ends(entry.trust, namespace.offline) - now)} more"
    return _explanation(address, entry, level, f"{verdict}; {why}", now)


def _not_served(reads: Reads, address: Address, why: str) -> Explanation:
    """Return why this process does not serve what it holds, if it holds anything."""
    namespace, state = address.namespace, reads.state
    entry = state.memory.past(address.name, trusted=False)
    if entry is None:
        return _local(reads, address, None, why)
    now = state.clock()
    if state.reachable:
        problem = "it is there for other connections of this process, and has to confirm the value first"
    elif state.cut_off(namespace):
        lost = _duration(now - state.contact())
        problem = f"contact was lost {lost} ago, and namespace {str(namespace)!r} has offline={namespace.offline:g}"
    else:
        problem = "it may have been changed unheard since Redis last confirmed it"
    return _explanation(address, entry, None, f"in this process, but not served: {why}; {problem}", now)


def _explanation(address: Address, entry: Entry, level: str | None, verdict: str, now: float) -> Explanation:
    age = None if entry.born is None else max(0.0, now - entry.born)
    return Explanation(
        str(address.namespace), address.name.decode(), level, verdict, age=age, left=entry.fresh_until - now,
        size=entry.length, tags=tags_of(entry),
    )  # fmt: skip


def _past_its_end(grace: float) -> str:
    return f"past its end, and may be served stale for {_duration(grace)} more" if grace > 0 else "past its end"


async def _by_reference(reads: Reads, address: Address, name: str) -> Explanation:
    """Return the state of a key of a local namespace."""
    entry = reads.state.memory.hit(address.name) or await reads.read(address)
    entry = entry or (reads.state.memory.past(address.name, trusted=False) if reads.state.endpoint is None else None)
    if entry is None:
        return Explanation(str(address.namespace), name, None, "not there; its namespace is local to each process")
    left, verdict = entry.fresh_until - reads.state.clock(), "in this process by reference, as its namespace is local"
    if entry.negative:
        verdict = "an error that loading raised, remembered in this process"
    elif left <= 0:
        verdict = f"past its end, and may be served stale for {_duration(left + address.freshness.grace)} more"
    return Explanation(
        str(address.namespace), name, "l1" if left > 0 else None, verdict, left=left, size=entry.size,
        tags=visible_tags(shown_tags(tags_of(entry))),
    )  # fmt: skip


async def _facts(reads: Reads, wire: "Wire", address: Address, raw: bytes | None) -> dict[str, Any]:
    if raw is None:
        return {"level": None, "verdict": "not there"}
    try:
        header = envelope.read_header(raw)
        tags, _ = envelope.read_tags(raw, header)
        envelope.open_payload(raw, header, reads.limit(address))
    except CacheDecodeError as error:
        return {"level": None, "verdict": f"unreadable: {error}", "size": len(raw)}
    floor = await reads.epochs.settled(wire, address.realm, tags)
    now = reads.state.clock()
    left = wire.time.end(header.fresh_until, header.life, now) - now
    facts: dict[str, Any] = {
        "level": None, "left": left, "epoch": header.epoch, "floor": floor,
        "tags": visible_tags(shown_tags(tags)), "cost": header.cost,
        "size": len(raw) - envelope.HEADER_BYTES, "age": header.life - left if header.life else None,
    }  # fmt: skip
    grace = left + address.freshness.grace
    if left <= 0:
        verdict = _past_its_end(grace)
    elif not floor <= header.epoch <= wire.time.horizon:
        verdict = "invalidated: its namespace or one of its tags was cleared after it was loaded"
    elif reads.state.recovery.pending and reads.covered(address, tags):
        verdict = "invalidated by this process while Redis was away, which is not told yet"
    else:
        facts["level"], verdict = "l2", "valid"
        if header.flags & envelope.NEGATIVE:
            verdict = "an error that loading raised, remembered"
    return facts | {"verdict": verdict}
