"""A dashboard for Grafana: ``python -m magnus_cache.observability.grafana > dashboard.json``, to be imported there.

Its panels query the series of `magnus_cache.observability.prometheus` with the scope "fleet". It asks for the data
source and the job.
"""

import sys
from importlib.resources import files

__all__ = ["dashboard"]


def dashboard() -> str:
    """Return the dashboard as JSON."""
    return (files("magnus_cache.observability") / "grafana.json").read_text("utf-8")


if __name__ == "__main__":
    sys.stdout.write(dashboard())
