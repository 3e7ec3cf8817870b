"""A plug-in for pytest that puts our backend in the place of Flask-Caching's SimpleCache, for Flask-Caching's tests."""

import itertools
import os
import sys
from collections.abc import Iterator
from typing import Any

import flask_caching
import pytest
from flask_caching import backends
from flask_caching.backends import simplecache

from magnus_cache import CacheManager
from magnus_cache.integrations.flask import MagnusCache
from magnus_cache.testing import virtual_clock

_numbers = itertools.count()
_manager = CacheManager(redis_url=os.environ["MAGNUS_FOREIGN_URL"])


class SimpleCache(MagnusCache):
    """A backend that is empty when it is made, as SimpleCache is."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options = {"codec": os.environ["MAGNUS_FOREIGN_CODEC"] or None, "namespace": f"n{next(_numbers)}", **options}
        super().__init__(_manager, *args, **options)

    @classmethod
    def factory(cls, app: Any, config: dict[str, Any], args: list[Any], kwargs: dict[str, Any]) -> MagnusCache:
        return cls(*args, **kwargs)


for module in (backends, simplecache, flask_caching):
    module.SimpleCache = SimpleCache  # type: ignore[attr-defined]


@pytest.fixture(scope="session", autouse=True)
def _one_clock() -> Iterator[None]:
    """Let the clock of Flask-Caching's tests be the one of the cache as well."""
    clocks: Any = sys.modules["conftest"]._Clock
    with virtual_clock() as clock:
        advance = clocks.advance

        def both(self: Any, seconds: float) -> None:
            advance(self, seconds)
            clock.advance(seconds)

        clocks.advance = both
        yield
        # Before the clock goes back.
        _manager.close()
