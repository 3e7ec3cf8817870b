"""A main module for the tests of names: run as a script, with ``python -m``, and by spawned processes."""

import dataclasses
import enum
import multiprocessing
import os
import sys
from typing import Any

from magnus_cache import CacheManager, register_type
from magnus_cache._engine.codec import decode, encode
from magnus_cache._engine.codec.markers import type_name
from magnus_cache._engine.keys.calls import CallKeyBuilder


@register_type
@dataclasses.dataclass
class Quote:
    price: float


class Side(enum.Enum):
    BUY = 1


class Missing(LookupError):
    pass


class Desk:
    def load(self, ticker: str) -> str:
        return ticker


def load(ticker: object) -> str:
    return f"{ticker} {os.environ.get('VERSION')}"


def facts() -> list[object]:
    """Return what the names of this module come to."""
    later = CallKeyBuilder.of(lambda x: x)
    return [
        CallKeyBuilder.of(load).key(("A",), {}),
        CallKeyBuilder.of(load).key((Side.BUY,), {}),
        CallKeyBuilder.of(load).key((Desk,), {}),
        CallKeyBuilder.of(Desk.load).key((Desk(), "A"), {}),
        later.key(("A",), {}),
        type_name(Quote),
    ]


AT_IMPORT = facts()


def work(url: str, payload: bytes, answers: Any) -> None:
    with CacheManager(redis_url=url, prefix="app") as cache:
        price = cache.cached("prices", ttl=60, negative={Missing: 60})(load)
        try:
            cache.get_or_set("errors", "k", lambda: "loaded here", negative={Missing: 60})
        except Missing as error:
            remembered = repr(error)
        else:
            remembered = "none"
        answers.put((AT_IMPORT, facts(), price("A"), repr(decode(payload)), remembered))


def main(url: str) -> None:
    answers = multiprocessing.get_context("spawn").Queue()
    with CacheManager(redis_url=url, prefix="app") as cache:
        price = cache.cached("prices", ttl=60)(load)

        def fail() -> None:
            raise Missing("k")

        try:
            cache.get_or_set("errors", "k", fail, negative={Missing: 60})
        except Missing:
            pass
        for version in ("old", "new"):
            os.environ["VERSION"] = version
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=work, args=(url, encode(Quote(1.0)), answers))
            process.start()
            at_import, then, value, quote, error = answers.get(timeout=60)
            process.join()
            print(repr((AT_IMPORT, facts(), at_import, then, value, quote, error)))
            price.invalidate("A")


if __name__ == "__main__":
    main(sys.argv[1])
