"""Values of NumPy that newer versions of it warn of."""

import warnings
from typing import Any

__all__ = ["unitless"]


def unitless(kind: type[Any], amount: Any) -> Any:
    """Return a time or a time span without a unit: NumPy will have none one day, but programs still do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return kind(amount)
