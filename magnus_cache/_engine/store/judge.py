"""The judge: whether a stored value may be served, and if not, why.

`judge` decides and does nothing else: no I/O, no clock, no state. All paths from Redis ask it: single reads and
batches, the comparison after a reconnection, lease acquisition, writes that keep their value in memory, objects of
local namespaces, `ttl`, `touch`, `add`, `incr` and `update`. `explain` prints its verdict for what Redis has, so people
read the true reason. `verdict` and `settled_verdict` collect what it decides by. Only `batches` and `portions` have its
comparisons written out, for small values that are certainly valid; whatever is in doubt there comes here.

What a value in Redis is judged by
----------------------------------
Each condition excludes a race. Without it, a caller would get a value that it was told is gone.

- **Pending invalidations.** A delete, a clear or an overwrite was made while Redis was away, and waits in the outbox.
  Redis still has the old value and calls it valid. This process knows better, so what waits wins over everything.
  The same goes for an answer to a request that left before Redis was told: a replay through another connection may
  empty the outbox while the old value is still on its way.
- **Epochs.** A value carries the highest epoch that its maker had seen before the load began. A clear or a tag
  invalidation raises an epoch. A load that was under way then writes the old data *after* the clear removed it; its
  epoch is below the minimum, which tells. The same goes for values that a clear has not reclaimed yet.
- **Known epochs.** The minimum counts only if this connection has read all epochs that the value depends on: then
  Redis announces each change on the same connection, in the same order as the replies. Otherwise the value may have
  been invalidated before the connection stood. The verdict is UNKNOWN, and the caller asks again, epochs first.
- **Impossible epochs.** An epoch a century ahead is damage, or was written by a server with a wrong clock. No clear
  would ever be higher, so the value could never be invalidated.
- **End of life.** Redis removes expired values by its own clock, rounded up to a millisecond, and later by the grace
  that the *writer* had. The reader decides by its own grace, and by an estimate of Redis' clock that errs early.
- **Remembered errors.** They are an answer only for callers whose policy remembers errors, and never stale.

Order of the evidence
---------------------
The outbox is looked at *before* the epochs. A replay raises the epoch first and then empties the outbox. In the other
order another thread could do both in between: the reader would have the old minimum, find nothing waiting, and serve
what was invalidated. The memory's generation and the tag stamps of a new entry are taken even before: an invalidation
that comes after the verdict then finds the entry older than itself.

What a value in memory is judged by
-----------------------------------
The local cache serves a hit by the trust of the entry (`Trust`) and by what was cleared since (`ClearLog`, `TagStamp`).
While Redis is away no trust stands. Then `judge_offline` decides whether memory may serve:

- Only values that were good when *this* outage began. A value from before an earlier outage may have been invalidated
  unheard in between: the process did not ask for it then, so Redis did not announce the change.
- Only for the namespace's `offline`, counted from the last confirmation: others may change values in a Redis that only
  this process cannot reach.

How much of a life is left, and what may be done then (early refresh, stale), is `magnus_cache.freshness.classify`.
Whether a *load* was overtaken is another question: see `Fence` and `JoiningCaller`.
"""

from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Final

from magnus_cache._engine.store.records import KeyRef, Record
from magnus_cache.freshness import Freshness

if TYPE_CHECKING:
    from magnus_cache._engine.coordination.state import State
    from magnus_cache._engine.redis.exchange import Connection

__all__ = ["Verdict", "covered", "judge", "judge_offline", "settled_verdict", "verdict"]


class Verdict(Enum):
    """Whether a value may be served, and if not, why.

    :ivar words: the same for people, as `explain` prints it.
    :ivar serves: whether the value may be served.
    :ivar is_invalidated: whether no caller may have it any more, whatever the caller's policy.
    """

    FRESH = ("valid", True, False)
    STALE = ("past its end, and may be served stale", True, False)
    PENDING = ("invalidated by this process while Redis was away; Redis has not been told yet", False, True)
    UNWANTED = ("an error that loading raised, which this policy does not remember", False, False)
    EXPIRED = ("past its end", False, False)
    UNKNOWN = ("not judged: the epochs that it depends on are not known", False, False)
    OUTDATED = ("invalidated: its namespace or one of its tags was cleared after it was loaded", False, True)
    IMPOSSIBLE = ("counts as invalidated: its epoch is further ahead than any epoch can be", False, True)
    UNCONFIRMED = (
        "Redis is reachable through another connection of this process and must confirm the value first", False, False,
    )  # fmt: skip
    CUT_OFF = ("contact was lost longer ago than its namespace allows", False, False)
    UNHEARD = ("it may have been changed unheard since Redis last confirmed it", False, False)

    def __init__(self, words: str, serves: bool, is_invalidated: bool) -> None:
        self.words = words
        self.serves = serves
        self.is_invalidated = is_invalidated


# Looking members up in the class costs more than all the rest of `judge`.
_FRESH: Final = Verdict.FRESH
_STALE: Final = Verdict.STALE
_PENDING: Final = Verdict.PENDING
_UNWANTED: Final = Verdict.UNWANTED
_EXPIRED: Final = Verdict.EXPIRED
_UNKNOWN: Final = Verdict.UNKNOWN
_OUTDATED: Final = Verdict.OUTDATED
_IMPOSSIBLE: Final = Verdict.IMPOSSIBLE


def judge(
    record: Record, left: float, policy: Freshness, minimum: int | None, horizon: int, pending: bool
) -> Verdict:  # fmt: skip
    """Return whether a value that Redis has may be served now; of several reasons against it, the first in this order.

    :param left: seconds until the value's end; negative past it.
    :param policy: the caller's, not that of the writer.
    :param minimum: the epoch below which such a value is invalid; None if that is not known.
    :param horizon: the highest epoch that is possible, see `RedisTime.horizon`.
    :param pending: whether an invalidation of it waits to be told to Redis.
    """
    if pending:
        return _PENDING
    if record.negative and not policy.negative:
        return _UNWANTED
    if left <= 0 and (record.negative or left + policy.grace <= 0):
        return _EXPIRED
    if minimum is None:
        return _UNKNOWN
    if record.epoch < minimum:
        return _OUTDATED
    if record.epoch > horizon:
        return _IMPOSSIBLE
    return _FRESH if left > 0 else _STALE


def judge_offline(left: float, grace: float, *, reachable: bool, heard: bool, allowed: float) -> Verdict:
    """Return whether memory may serve a value whose trust has ended; see the module.

    :param left: seconds until the value's end; negative past it.
    :param grace: seconds after it for which the caller takes it, stale.
    :param reachable: whether Redis can be asked; then it has to be.
    :param heard: whether the value was good when this outage began.
    :param allowed: seconds for which its namespace may still be served without contact; infinity without a bound.
    """
    if reachable:
        return Verdict.UNCONFIRMED
    if allowed <= 0:
        return Verdict.CUT_OFF
    if not heard:
        return Verdict.UNHEARD
    if left > 0:
        return _FRESH
    return _STALE if left + grace > 0 else _EXPIRED


def covered(state: "State", ref: KeyRef, tags: Iterable[str]) -> bool:
    """Return whether an invalidation that waits to be told to Redis is about such a value."""
    outbox = state.outbox
    return outbox.pending and outbox.covers(ref.name, map(state.epochs.tag_name, tags))


def verdict(state: "State", ref: KeyRef, record: Record, left: float, source: "Connection", asked: float) -> Verdict:
    """Return the verdict on a value that has just come through a connection. Runs inside the reader.

    :param left: seconds until its end; negative past it.
    :param asked: the monotonic second when the request left.
    """
    # In this order, see the module.
    outbox, epochs = state.outbox, state.epochs
    pending = outbox.pending and outbox.covers(ref.name, map(epochs.tag_name, record.tags))
    pending = pending or (asked < outbox.confirmed_at and outbox.was_covered(ref.name, asked))
    minimum = epochs.lowest_valid(source.known, ref.epoch_names, record.tags)
    return judge(record, left, ref.freshness, minimum, source.time.horizon, pending)


def settled_verdict(
    state: "State", ref: KeyRef, record: Record, left: float, source: "Connection", asked: float
) -> Verdict:
    """Return the verdict on a value whose epochs were read after it: see `EpochSync.settled`, to be awaited before.

    By all that this process has seen of them: an announcement that followed is about what came later.

    :param left: seconds until its end; negative past it.
    :param asked: the monotonic second when Redis was asked for the value, or later.
    """
    pending = covered(state, ref, record.tags) or state.outbox.was_covered(ref.name, asked)
    minimum = state.epochs.lowest_valid_seen(ref.epoch_names, record.tags)
    return judge(record, left, ref.freshness, minimum, source.time.horizon, pending)
