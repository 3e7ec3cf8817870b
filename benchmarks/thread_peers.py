"""The contenders of hits in Redis from threads, by plain gets and by decorated functions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Final

import msgpack
import redis

from benchmarks.contenders import if_installed
from benchmarks.plan import PREFIX, SMALL_DICT, Plan
from benchmarks.redis_peers import NO_L1, django_cache
from benchmarks.tables import OURS, Table
from magnus_cache import CacheManager, Namespace

__all__ = ["L1_ON", "THREAD_KEYS", "BlockingGet", "decorated", "getters"]

BlockingGet = Callable[[str], Any]

L1_ON: Final = f"{OURS}, L1 on"
"""Ours with its near cache, in which no key is: there are many more keys than room."""

THREAD_KEYS: Final = [f"{PREFIX}:quote:{number}" for number in range(2048)]

_WITH_L1: Final = Namespace("exchange-near", ttl=3600)
_SMALL_L1: Final[dict[str, Any]] = {"l1_max_entries": 128}
_TTL: Final = 3600


def getters(plan: Plan, table: Table, stack: ExitStack) -> dict[str, BlockingGet]:
    """Return how each contender gets a value, by name; they live as long as the stack."""
    offered: dict[str, Callable[[Plan], AbstractContextManager[BlockingGet]]] = {
        OURS: _ours,
        L1_ON: _ours_near,
        "dogpile.cache": _dogpile,
        "django-cachex": _django_cachex,
        "redis-py": _redis_py,
    }
    if not plan.address:
        offered["valkey-glide-sync"] = _glide
    return _entered(plan, table, stack, offered)


def decorated(plan: Plan, table: Table, stack: ExitStack) -> dict[str, BlockingGet]:
    """Return a decorated function of each contender, all of whose values are in Redis."""
    offered: Mapping[str, Callable[[Plan], AbstractContextManager[BlockingGet]]] = {
        OURS: _our_function,
        L1_ON: _our_near_function,
        "dogpile.cache": _dogpile_function,
    }
    return _entered(plan, table, stack, offered)


def _entered(
    plan: Plan,
    table: Table,
    stack: ExitStack,
    offered: Mapping[str, Callable[[Plan], AbstractContextManager[BlockingGet]]],
) -> dict[str, BlockingGet]:
    found: dict[str, BlockingGet] = {}
    for name, offer in offered.items():
        with if_installed(table, name):
            found[name] = stack.enter_context(offer(plan))
    return found


# -- get ----------------------------------------------------------------------------------------------------------


@contextmanager
def _ours(plan: Plan) -> Iterator[BlockingGet]:
    with CacheManager(redis_url=plan.url, prefix=PREFIX) as manager:
        manager.set_many(NO_L1, dict.fromkeys(THREAD_KEYS, SMALL_DICT))
        yield partial(manager.get, NO_L1)


@contextmanager
def _ours_near(plan: Plan) -> Iterator[BlockingGet]:
    with CacheManager(redis_url=plan.url, prefix=PREFIX, **_SMALL_L1) as manager:
        manager.set_many(_WITH_L1, dict.fromkeys(THREAD_KEYS, SMALL_DICT))
        yield partial(manager.get, _WITH_L1)


@contextmanager
def _region(plan: Plan) -> Iterator[Any]:
    from dogpile.cache import make_region

    arguments = {"url": plan.url, "redis_expiration_time": 2 * _TTL}
    region = make_region(key_mangler=lambda key: f"{PREFIX}-dogpile:{key}")
    region.configure("dogpile.cache.redis", expiration_time=_TTL, arguments=arguments)
    try:
        yield region
    finally:
        region.backend.reader_client.close()


@contextmanager
def _dogpile(plan: Plan) -> Iterator[BlockingGet]:
    with _region(plan) as region:
        region.set_multi(dict.fromkeys(THREAD_KEYS, SMALL_DICT))
        yield region.get


@contextmanager
def _django_cachex(plan: Plan) -> Iterator[BlockingGet]:
    cache = django_cache(plan)
    cache.set_many(dict.fromkeys(THREAD_KEYS, SMALL_DICT), timeout=_TTL)
    yield cache.get


@contextmanager
def _redis_py(plan: Plan) -> Iterator[BlockingGet]:
    with redis.Redis.from_url(plan.url) as client:
        client.mset(dict.fromkeys(THREAD_KEYS, msgpack.packb(SMALL_DICT)))
        yield lambda key: msgpack.unpackb(client.get(key))


@contextmanager
def _glide(plan: Plan) -> Iterator[BlockingGet]:
    """Read what `_redis_py` has written."""
    import glide_sync

    config = glide_sync.GlideClientConfiguration(
        [glide_sync.NodeAddress(plan.host, plan.port)], request_timeout=5000
    )  # fmt: skip
    client = glide_sync.GlideClient.create(config)
    try:
        yield lambda key: msgpack.unpackb(client.get(key))
    finally:
        client.close()


# -- decorated functions ------------------------------------------------------------------------------------------


def load_quote(ticker: str) -> dict[str, object]:
    """Return what is cached."""
    return SMALL_DICT


def _our_decorated(manager: CacheManager, namespace: Namespace) -> BlockingGet:
    quote = manager.cached(namespace)(load_quote)
    manager.set_many(namespace, {quote.cache_key(key): SMALL_DICT for key in THREAD_KEYS})
    return quote


@contextmanager
def _our_function(plan: Plan) -> Iterator[BlockingGet]:
    with CacheManager(redis_url=plan.url, prefix=PREFIX) as manager:
        yield _our_decorated(manager, NO_L1)


@contextmanager
def _our_near_function(plan: Plan) -> Iterator[BlockingGet]:
    with CacheManager(redis_url=plan.url, prefix=PREFIX, **_SMALL_L1) as manager:
        yield _our_decorated(manager, _WITH_L1)


@contextmanager
def _dogpile_function(plan: Plan) -> Iterator[BlockingGet]:
    with _region(plan) as region:
        quote: Any = region.cache_on_arguments()(load_quote)
        for key in THREAD_KEYS:
            quote.set(SMALL_DICT, key)
        yield quote
