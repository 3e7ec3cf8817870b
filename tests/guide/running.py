"""Runs the guide's blocks as they are, and looks at what they did."""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import redis

from magnus_cache import CacheManager, get_cache_manager
from magnus_cache._engine.keys.names import KeyText
from tests.guide.document import BLOCKS, PATH, module_name, with_our_imports
from tests.guide.service import Service

TTL_SLACK = 5_000
"""Milliseconds that a test may take between storing a value and looking at it."""


@dataclass
class Guide:
    """Where the blocks of the guide are run.

    :ivar raw: a plain client of the server that the blocks use, or None where there is none.
    :ivar ran: the blocks that were run.
    """

    raw: redis.Redis | None
    service: Service
    monkeypatch: pytest.MonkeyPatch
    caplog: pytest.LogCaptureFixture
    capsys: pytest.CaptureFixture[str]
    ran: set[int] = field(default_factory=set)

    def run(self, index: int, /, **names: object) -> ModuleType:
        """Run a block, changed in nothing but its imports, and return the module it makes.

        :param names: what the block uses and the guide leaves to the reader.
        """
        return self.run_text(index, with_our_imports(BLOCKS[index]), **names)

    def run_text(self, index: int, text: str, /, **names: object) -> ModuleType:
        """Run what is left of a block, or has been put into it, in its place."""
        module = ModuleType(module_name(BLOCKS[index]))
        vars(module).update(names, logger=logging.getLogger("guide"))
        self.provide(module)
        exec(compile(text, f"{PATH.name}, block {index}", "exec"), vars(module))
        self.ran.add(index)
        return module

    def provide(self, module: ModuleType) -> None:
        """Let a module be imported by its name."""
        self.monkeypatch.setitem(sys.modules, module.__name__, module)

    def attached(self, module: ModuleType, cls: str, function: str, **attributes: object) -> type[Any]:
        """Return a class of the module with a function of the module as its method.

        The guide shows some methods alone, on the margin, without the class they belong to.
        """
        made = type(cls, (), {function: vars(module)[function], "__module__": module.__name__, **attributes})
        setattr(module, cls, made)
        return made

    @property
    def cache(self) -> CacheManager:
        return get_cache_manager()

    @property
    def hits_and_misses(self) -> tuple[int, int]:
        stats = self.cache.get_stats()
        assert stats["total_requests"] == stats["hit_count"] + stats["miss_count"]
        assert stats["redis_available"] is (self.raw is not None)
        return stats["hit_count"], stats["miss_count"]

    @property
    def printed(self) -> str:
        """What was printed since it was last asked for."""
        return self.capsys.readouterr().out

    @property
    def logged(self) -> list[tuple[str, str]]:
        """The level and text of each line that the guide's code logged."""
        records = [record for record in self.caplog.records if record.name == "guide"]
        return [(record.levelname, record.getMessage()) for record in records]

    def expect(self, values: Mapping[str, Any], *, ttl: int | Mapping[str, int]) -> None:
        """Check that exactly these values are stored, under exactly these names, for this long.

        :param values: by their full names in Redis.
        :param ttl: seconds; of all of them, or by name.
        """
        if self.raw is None:
            assert self.cache.get_stats()["in_memory_keys"] == len(values)
            return
        assert sorted(self.raw.scan_iter("magnus:*")) == sorted(name.encode() for name in values)
        for name in values:
            life = 1000 * (ttl if isinstance(ttl, int) else ttl[name])
            assert life - TTL_SLACK < self.raw.pttl(name) <= life, name
        # Somebody who was not there when they were stored can only have them from Redis.
        with CacheManager() as other:
            for name, value in values.items():
                _, namespace, key = name.split(":", 2)
                assert same(other.get(namespace, KeyText(key)), value), name
            assert other.get_stats()["levels"]["l1"]["count"] == 0


def same(one: object, other: object) -> bool:
    """Return whether two values are equal and nothing in them has changed its type."""
    return one == other and repr(one) == repr(other)
