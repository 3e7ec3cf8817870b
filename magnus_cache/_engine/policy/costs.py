"""What one load costs in money: a number, or a function of the value.

Money is counted in billionths of the caller's own unit, as whole numbers: sums are then exact, whoever adds them up.
"""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from magnus_cache._engine.runtime.numbers import number
from magnus_cache._engine.runtime.stats import NANOS
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["AnyCost", "Cost", "checked_cost", "nanos_of"]

AnyCost: TypeAlias = "float | Callable[[Any], float | None] | None"
"""What one load costs, in any unit: a number, or a function of the value that returns one; None if it costs nothing.
The function may return None, too."""

_MOST: Final = 1e9
"""Money of one call: Redis adds up in 64 bits."""


def nanos_of(amount: object, argument: str) -> int:
    """Return an amount of money in billionths.

    :raises CacheArgumentError: naming the argument, for anything but a number of 0 or more.
    """
    # Each call of `get_or_set` comes here, most with one of these.
    found = amount if type(amount) is float or type(amount) is int else number(amount)
    if found is None or not 0 <= found < _MOST:
        kind = CacheTypeError if found is None else CacheArgumentError
        raise kind(argument, f"an amount is a number of 0 or more and below a billion, not {amount!r}")
    return round(found * NANOS)


class Cost:
    """What one load costs.

    :ivar nanos: billionths of the unit, if each load costs the same.
    :ivar of_value: the caller's function of the value, or None.
    """

    __slots__ = ("nanos", "of_value")

    def __init__(self, nanos: int, of_value: Callable[[Any], Any] | None = None) -> None:
        self.nanos = nanos
        self.of_value = of_value

    def of(self, value: Any) -> int:
        """Return what the load of a value has cost, in billionths.

        :raises CacheArgumentError: naming `cost`, if its function does not return an amount.
        :raises Exception: what the function raises.
        """
        if self.of_value is None:
            return self.nanos
        amount = self.of_value(value)
        return 0 if amount is None else nanos_of(amount, "cost")

    def saved(self, paid: int) -> int:
        """Return what a hit saves, in billionths, without calling any code of the caller.

        :param paid: what the value notes of its own load.
        """
        return self.nanos if self.of_value is None else paid


def checked_cost(cost: AnyCost) -> Cost | None:
    """Return a caller's `cost`.

    :raises CacheArgumentError: naming `cost`, for what is neither an amount nor a function.
    """
    if cost is None:
        return None
    return Cost(0, cost) if callable(cost) else Cost(nanos_of(cost, "cost"))
