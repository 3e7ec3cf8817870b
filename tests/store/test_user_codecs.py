"""`Namespace(codec=)`: what only the two functions of the user can store and read, and what others make of it."""

import asyncio
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from magnus_cache import AsyncCacheManager, CacheManager, Namespace
from magnus_cache._engine.codec import encode
from magnus_cache._engine.memory.records import Bases, pack, unpack
from magnus_cache.embedded import EmbeddedServer
from magnus_cache.errors import (
    CacheArgumentError,
    CacheEncodeError,
    CacheTypeError,
    CacheUnavailableError,
    CacheValueTooLargeError,
)
from magnus_cache.testing import Proxy
from tests.conftest import SERVERS, emptied
from tests.support.inside import state_of
from tests.support.managers import managers
from tests.support.wait import wait_until_answered

pytestmark = pytest.mark.anyio

CALLS: Counter[str] = Counter()


class Model:
    """What the cache's own format does not know."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and other.number == self.number

    __hash__ = None  # type: ignore[assignment]  # it can be changed


def dumps(value: Any) -> bytes:
    CALLS["dumps"] += 1
    return pickle.dumps(value)


def loads(data: bytes) -> Any:
    CALLS["loads"] += 1
    assert type(data) is bytes
    return pickle.loads(data)  # the user's choice


def broken(data: bytes) -> Any:
    raise LookupError(data)


PICKLED = Namespace("models", codec=(dumps, loads), ttl=600)
KINDS = {
    "near": PICKLED,
    "far": Namespace("models", codec=(dumps, loads), ttl=600, l1=False),
    "shared": Namespace("models", codec=(dumps, loads), ttl=600, share=True),
    "compressed": Namespace("models", codec=(dumps, loads), ttl=600, compress=True),
    "graceful": Namespace("models", codec=(dumps, loads), ttl=600, grace=600, early=1),
}
PLAIN = Namespace("models", ttl=600)
BROKEN = Namespace("models", codec=(dumps, broken), ttl=600)


@pytest.fixture(autouse=True)
def _counted_from_zero() -> None:
    CALLS.clear()


@pytest.fixture
def url(running: Callable[[str], EmbeddedServer]) -> str:
    """The server. To it, the values are bytes like others, so one kind of server is enough."""
    return emptied(running(SERVERS[0])).url


@pytest.fixture(params=["redis", "memory"])
def settings(request: pytest.FixtureRequest, url: str) -> dict[str, Any]:
    """Where values are: in Redis and in memory; in a memory alone that packs what does not fit the hot table."""
    if request.param == "redis":
        return {"redis_url": url}
    return {"redis_enabled": False, "l1_max_entries": 40_000}


@pytest.fixture
def manager(settings: dict[str, Any]) -> Iterator[CacheManager]:
    with CacheManager(**settings) as manager:
        yield manager


def unreadable(manager: CacheManager, namespace: str = "models") -> int:
    return int(manager.get_stats()["namespaces"][namespace]["unreadable"])


# -- every operation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_blocking_operation_has_what_the_codec_returns(manager: CacheManager, kind: str) -> None:
    space = KINDS[kind]
    if kind == "far" and state_of(manager).endpoint is None:
        return  # then nothing is stored
    assert manager.set(space, "a", Model(1), tags=["x"])
    assert manager.get(space, "a") == manager.get(space, "a") == Model(1)
    assert manager.set_many(space, {"b": Model(2), "c": Model(3), "n": 4})
    assert manager.get_many(space, ["a", "b", "c", "n"]) == {"a": Model(1), "b": Model(2), "c": Model(3), "n": 4}
    assert manager.get_or_set(space, "b", Model) == Model(2)
    assert manager.get_or_set(space, "d", lambda: Model(4)) == Model(4)
    loaded = manager.get_or_set_many(space, ["d", "e"], lambda keys: {key: Model(5) for key in keys})
    assert loaded == {"d": Model(4), "e": Model(5)}
    assert manager.get(space, "e") == Model(5)
    assert manager.add(space, "a", Model(6)) is False
    assert manager.add(space, "f", Model(6)) is True
    assert manager.update(space, "f", lambda model: Model(model.number + 1)) == Model(7)
    assert manager.update(space, "g", lambda model: model, default=Model(8)) == Model(8)
    assert manager.get(space, "f") == Model(7)
    assert manager.get(space, "g") == Model(8)
    assert manager.incr(space, "n", 3) == 7
    assert manager.incr(space, "fresh", initial=5) == 6
    assert manager.get(space, "n") == 7
    with pytest.raises(CacheTypeError, match="Model"):
        manager.incr(space, "a")
    assert manager.touch(space, "a", 60)
    assert manager.get(space, "a") == Model(1)
    assert 0 < (manager.ttl(space, "a") or 0) <= 60
    report = manager.warm_cache(space, Model, [11, 12])
    assert report.failed == 0
    assert manager.get(space, 12) == Model(12)
    manager.invalidate_tags("x")
    assert manager.get(space, "a") is None
    manager.clear(space)
    assert manager.get_many(space, ["b", "c", 12]) == {}


@pytest.mark.parametrize("kind", KINDS)
async def test_every_async_operation_has_what_the_codec_returns(settings: dict[str, Any], kind: str) -> None:
    space = KINDS[kind]
    async with AsyncCacheManager(**settings) as manager:
        if kind == "far" and state_of(manager).endpoint is None:
            return  # then nothing is stored
        assert await manager.set(space, "a", Model(1))
        assert await manager.get(space, "a") == await manager.get(space, "a") == Model(1)
        assert await manager.set_many(space, {"b": Model(2), "big": ["x" * 300_000]})
        assert await manager.get_many(space, ["a", "b"]) == {"a": Model(1), "b": Model(2)}
        assert await manager.get(space, "big") == await manager.get(space, "big") == ["x" * 300_000]
        loaded = await manager.get_or_set_many(
            space, ["b", "c", "wide"], lambda keys: {key: Model(3) if key == "c" else ["y" * 300_000] for key in keys}
        )
        assert loaded == {"b": Model(2), "c": Model(3), "wide": ["y" * 300_000]}
        assert await manager.get(space, "wide") == ["y" * 300_000]
        assert await manager.add(space, "a", Model(6)) is False
        assert await manager.add(space, "f", Model(6)) is True
        assert await manager.update(space, "f", lambda model: Model(model.number + 1)) == Model(7)
        assert await manager.get(space, "f") == Model(7)
        await manager.set(space, "n", 2**70)
        assert await manager.incr(space, "n") == 2**70 + 1
        assert await manager.get(space, "n") == 2**70 + 1
        with pytest.raises(CacheTypeError, match="Model"):
            await manager.incr(space, "a")

        @manager.cached(space)
        async def model(number: int) -> Model:
            return Model(number)

        @manager.cached_many(space)
        async def models(numbers: list[int]) -> dict[int, Model]:
            return {number: Model(number) for number in numbers}

        assert [await model(5) for _ in range(4)] == [Model(5)] * 4
        assert await models([1, 2]) == await models([1, 2]) == {1: Model(1), 2: Model(2)}


async def test_another_process_reads_it_and_hears_of_changes(url: str) -> None:
    async with managers(url) as (one, other):
        await one.set(PICKLED, "k", Model(1))
        assert await other.get(PICKLED, "k") == Model(1)
        await one.update(PICKLED, "k", lambda model: Model(2))

        async def is_new() -> bool:
            return bool(await other.get(PICKLED, "k") == Model(2))

        await wait_until_answered(is_new)
        await one.delete(PICKLED, "k")

        async def is_gone() -> bool:
            return await other.get(PICKLED, "k") is None

        await wait_until_answered(is_gone)


async def test_operations_on_a_cluster(cluster: Any) -> None:
    async with AsyncCacheManager(redis_url=cluster.url, redis_cluster=True) as manager:
        await manager.set_many(PICKLED, {str(number): Model(number) for number in range(20)})
        assert len(await manager.get_many(PICKLED, list(map(str, range(20))))) == 20
        assert await manager.add(PICKLED, "1", Model(0)) is False
        assert await manager.update(PICKLED, "1", lambda model: Model(model.number + 5)) == Model(6)
        assert await manager.get(PICKLED, "1") == Model(6)
        await manager.set(PICKLED, "n", 1)
        assert await manager.incr(PICKLED, "n") == 2


async def test_in_an_outage_memory_serves_and_keeps(proxy: Proxy) -> None:
    async with AsyncCacheManager(redis_url=proxy.url) as manager:
        await manager.set(PICKLED, "k", Model(1))
        await manager.set(PICKLED, "n", 1)
        proxy.refuse()
        proxy.cut()
        assert await manager.get(PICKLED, "k") == Model(1)
        assert await manager.update(PICKLED, "k", lambda model: Model(2), offline="local") == Model(2)
        assert await manager.get(PICKLED, "k") == Model(2)
        assert await manager.incr(PICKLED, "n", offline="local") == 2
        with pytest.raises(CacheUnavailableError):
            await manager.incr(PICKLED, "n")


# -- whose object it is -----------------------------------------------------------------------------------------


def test_no_two_callers_share_an_object(manager: CacheManager) -> None:
    kept = Model(1)
    found: list[Any] = [manager.get_or_set(PICKLED, "k", lambda: kept)]
    found += [manager.get(PICKLED, "k") for _ in range(3)]
    found += [manager.get_many(PICKLED, ["k"])["k"], manager.get_or_set(PICKLED, "k", lambda: kept)]
    assert found == [Model(1)] * 6
    assert len({id(each) for each in [kept, *found]}) == 7


def test_the_first_caller_gets_the_kind_that_later_ones_get(manager: CacheManager) -> None:
    as_text = Namespace("texts", codec=(lambda value: repr(value).encode(), lambda data: data.decode()))
    assert manager.get_or_set(as_text, "k", lambda: (1, 2)) == manager.get(as_text, "k") == "(1, 2)"
    loaded = manager.get_or_set_many(as_text, ["a", "k"], lambda keys: {key: [3] for key in keys})
    assert loaded == manager.get_many(as_text, ["a", "k"]) == {"a": "[3]", "k": "(1, 2)"}


async def test_those_who_join_a_load_get_objects_of_their_own(settings: dict[str, Any]) -> None:
    async with AsyncCacheManager(**settings) as manager:
        begun, go = asyncio.Event(), asyncio.Event()

        async def load() -> Model:
            begun.set()
            await go.wait()
            return Model(1)

        calls = [asyncio.ensure_future(manager.get_or_set(PICKLED, "k", load)) for _ in range(5)]
        await begun.wait()
        go.set()
        found = await asyncio.gather(*calls)
        assert found == [Model(1)] * 5
        assert len(set(map(id, found))) == 5


@pytest.mark.parametrize(("value", "kind", "decoded"), [
    (Model(1), "near", 3), (Model(1), "shared", 1), ((1, "text"), "near", 1), (None, "near", 1), (True, "shared", 1),
])  # fmt: skip
def test_a_hit_in_memory_loads_unless_callers_may_share(
    manager: CacheManager, value: Any, kind: str, decoded: int
) -> None:
    space = KINDS[kind]
    manager.set(space, "k", value)
    assert CALLS == {"dumps": 1}
    found = [manager.get(space, "k", default="none") for _ in range(3)]
    assert found == [value] * 3
    assert CALLS["loads"] == decoded
    assert (len({id(each) for each in found}) == 1) is (decoded == 1)


def test_another_policy_of_the_name_shares_nothing(manager: CacheManager) -> None:
    """In one process, a namespace of the same name may have another codec, or share what it decodes."""
    text = Namespace("models", codec=(dumps, lambda data: f"{len(data)} bytes"), ttl=600)
    for value in (Model(1), (1, 2)):
        manager.set(PICKLED, "k", value)
        for _ in range(3):
            shared = manager.get(KINDS["shared"], "k")
            assert shared == value == manager.get(PICKLED, "k")
            assert value == (1, 2) or manager.get(PICKLED, "k") is not shared
            assert manager.get(text, "k").endswith(" bytes")
            assert manager.get(PLAIN, "k") is None
    for value in ("text", [1], {"a": 1}):
        manager.set(PLAIN, "k", value)
        for _ in range(3):
            assert manager.get(PLAIN, "k") == value
            assert manager.get(PICKLED, "k") is None
            assert manager.get_many(PICKLED, ["k"]) == {}


def test_functions_of_another_policy_share_nothing(manager: CacheManager) -> None:
    """The memo of a function's calls holds only what its own namespace may have."""

    def of(space: Namespace) -> Callable[[int], Any]:
        def load(number: int) -> Any:
            return str(number)

        return manager.cached(space)(load)

    pickled, plain = of(PICKLED), of(PLAIN)
    for _ in range(4):
        assert pickled(1) == plain(1) == "1"


def test_it_stays_what_it_is_when_it_is_packed() -> None:
    """A large memory packs its entries: with the payload, also of what was decoded."""
    with CacheManager(redis_enabled=False, l1_max_entries=40_000) as manager:
        manager.set(PICKLED, "k", (1, 2))
        assert manager.get(PICKLED, "k") == (1, 2)
        entry, bases = state_of(manager).memory.get_untrusted(b"magnus:models:k"), Bases()
        assert entry is not None
        assert entry.payload is None
        again = unpack(pack(entry, bases), bases)
        assert again.payload == b"\xc1" + pickle.dumps((1, 2))


def test_classes_that_are_registered_anew_are_loaded_again() -> None:
    with CacheManager(redis_enabled=False) as manager:
        manager.set(PICKLED, "k", (1, "a"))
        assert manager.get(PICKLED, "k") == manager.get(PICKLED, "k") == (1, "a")
        before = CALLS["loads"]
        memory: Any = state_of(manager).memory
        memory.types_replaced()
        assert manager.get(PICKLED, "k") == manager.get(PICKLED, "k") == (1, "a")
        assert CALLS["loads"] == before + 1


# -- what cannot be stored --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["get_or_set", "cached", "many"])
def test_a_load_never_loses_its_result(manager: CacheManager, how: str, caplog: pytest.LogCaptureFixture) -> None:
    lock = threading.Lock()

    def load(_key: Any = None) -> Any:
        return lock

    cached = manager.cached(PICKLED)(load)
    calls: dict[str, Callable[[], Any]] = {
        "get_or_set": lambda: manager.get_or_set(PICKLED, "k", load),
        "cached": lambda: cached(1),
        "many": lambda: manager.get_or_set_many(PICKLED, ["k"], lambda keys: dict.fromkeys(keys, lock))["k"],
    }
    assert calls[how]() is calls[how]() is lock
    assert manager.get_stats()["namespaces"]["models"]["unstorable"] == 2
    lines = [record.getMessage() for record in caplog.records if "is not cached" in record.getMessage()]
    assert len(lines) == 1
    assert "dumps raised TypeError" in lines[0]


def test_set_and_strict_loads_raise_with_the_cause(manager: CacheManager) -> None:
    lock = threading.Lock()
    for call in (
        lambda: manager.set(PICKLED, "k", lock),
        lambda: manager.set_many(PICKLED, {"k": lock}),
        lambda: manager.add(PICKLED, "k", lock),
        lambda: manager.update(PICKLED, "k", lambda _: lock),
        lambda: manager.get_or_set(PICKLED, "k", lambda: lock, strict=True),
    ):
        with pytest.raises(CacheEncodeError, match=r"codec of the namespace cannot store .*lock: .*dumps raised TypeE"):
            call()
    with pytest.raises(CacheEncodeError) as caught:
        manager.set(PICKLED, "k", lock)
    assert isinstance(caught.value.__cause__, TypeError)
    text = Namespace("models", codec=(repr, str))  # type: ignore[arg-type]
    with pytest.raises(CacheEncodeError, match="repr returned str, and has to return bytes"):
        manager.set(text, "k", [])


@pytest.mark.parametrize("many", [False, True])
def test_what_cannot_be_read_back_is_not_stored(
    manager: CacheManager, many: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model(1)
    for _ in range(2):
        if many:
            assert manager.get_or_set_many(BROKEN, ["k"], lambda keys: dict.fromkeys(keys, model))["k"] is model
        else:
            assert manager.get_or_set(BROKEN, "k", lambda: model) is model
    assert manager.get_stats()["namespaces"]["models"]["unstorable"] == 2
    (line,) = [record.getMessage() for record in caplog.records if "is not cached" in record.getMessage()]
    assert "broken raised LookupError" in line
    assert manager.ttl(BROKEN, "k") is None


def test_the_limit_is_of_the_bytes(manager: CacheManager) -> None:
    small = Namespace("models", codec=(dumps, loads), max_value_bytes=1000)
    with pytest.raises(CacheValueTooLargeError):
        manager.set(small, "k", ["x" * 1000])
    with pytest.raises(CacheValueTooLargeError):
        manager.set_many(small, {"k": ["x" * 1000]})
    assert manager.get_or_set(small, "k", lambda: ["x" * 1000]) == ["x" * 1000]
    assert manager.get(small, "k") is None
    assert manager.set(small, "k", ["x" * 900])
    assert manager.get(small, "k") == ["x" * 900]


def test_not_modified_is_for_loaders(manager: CacheManager) -> None:
    from magnus_cache import NOT_MODIFIED

    with pytest.raises(CacheTypeError, match="NOT_MODIFIED"):
        manager.set(PICKLED, "k", NOT_MODIFIED)


# -- what cannot be read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["near", "far"])
def test_what_loads_refuses_is_a_counted_miss_and_one_line(
    url: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    space = Namespace("models", codec=(dumps, broken), l1=kind != "far")
    with CacheManager(redis_url=url) as manager:
        manager.set(space, "k", Model(1))
        assert [manager.get(space, "k") for _ in range(3)] == [None] * 3
        assert manager.get_many(space, ["k"]) == {}
        assert unreadable(manager) >= 4
        assert manager.get_stats()["namespaces"]["models"]["hit_rate_percent"] == 0
        lines = [record.getMessage() for record in caplog.records if "counts as a miss" in record.getMessage()]
        assert len(lines) == 1
        assert "broken raised LookupError" in lines[0]
        assert "Model" not in lines[0]
        # For the operations that look for a value, too, there is none.
        assert manager.add(space, "k", Model(2)) is True
        assert manager.update(space, "k", lambda model: model or Model(3)) == Model(3)
        assert manager.incr(space, "k", 5) == 5
        assert manager.get(space, "k") == 5


def test_a_coroutine_from_loads_is_no_value(manager: CacheManager) -> None:
    async def later(data: bytes) -> Any:
        return data

    space = Namespace("models", codec=(dumps, lambda data: later(data)))
    manager.set(space, "k", Model(1))
    assert manager.get(space, "k") is None
    assert unreadable(manager) >= 1


@pytest.mark.parametrize("kind", ["near", "far", "compressed"])
def test_without_the_codec_it_is_a_miss_and_never_unpickled(url: str, kind: str) -> None:
    plain = Namespace("models", l1=kind != "far")
    with CacheManager(redis_url=url) as writer, CacheManager(redis_url=url) as reader:
        writer.set_many(KINDS[kind], {"k": Model(1), "j": ["x"] * 2000, "n": 7})
        for _ in range(2):
            assert reader.get(plain, "k") is None
            assert reader.get_many(plain, ["k", "j", "n"]) == {"n": 7}
        assert unreadable(reader) >= 6
        assert reader.add(plain, "k", "mine") is True
        assert reader.get(plain, "k") == "mine"
        assert reader.incr(plain, "j") == 1
        assert reader.update(plain, "n", lambda number: number + 1) == 8
        assert CALLS["loads"] == 0


def test_with_the_codec_what_was_stored_without_it_is_a_miss(url: str) -> None:
    with CacheManager(redis_url=url) as writer, CacheManager(redis_url=url) as reader:
        writer.set_many(PLAIN, {"k": "text", "bytes": pickle.dumps(Model(1)), "n": 7, "list": [1]})
        for _ in range(2):
            assert reader.get_many(PICKLED, ["k", "bytes", "n", "list"]) == {"n": 7}
            assert reader.get(PICKLED, "k") is None
        assert CALLS["loads"] == 0
        assert reader.get_or_set(PICKLED, "k", lambda: Model(1)) == Model(1)
        assert reader.add(PICKLED, "bytes", Model(2)) is True
        assert reader.incr(PICKLED, "list") == 1


async def test_bytes_that_were_changed_do_not_reach_the_codec(url: str) -> None:
    """The checksum is no signature, but what is damaged is never given to a codec."""
    with redis.Redis.from_url(url, protocol=2) as raw:
        await _damaged(url, raw)


async def _damaged(url: str, raw: Any) -> None:
    async with AsyncCacheManager(redis_url=url) as manager:
        await manager.set(KINDS["far"], "k", Model(1))
        stored = raw.get("magnus:models:k")
        raw.set("magnus:models:k", stored[:-1] + bytes([stored[-1] ^ 1]), ex=60)
        assert await manager.get(KINDS["far"], "k") is None
        assert CALLS["loads"] == 0


# -- for people -------------------------------------------------------------------------------------------------


def test_explain_tells_of_opaque_bytes(manager: CacheManager) -> None:
    manager.set(PICKLED, "k", Model(1))
    size = len(encode(b"")) - 1 + len(pickle.dumps(Model(1)))
    with_codec, without = manager.explain(PICKLED, "k"), manager.explain(PLAIN, "k")
    assert with_codec.level == "l1"
    assert without.level is None
    assert with_codec.opaque
    assert without.opaque
    assert with_codec.size == without.size == size
    assert "opaque bytes of a codec" in str(without)
    assert "a miss here: it was stored by the codec of a namespace" in without.verdict
    manager.set(PLAIN, "k", "text")
    found = manager.explain(PICKLED, "k")
    assert (found.level, found.opaque) == (None, False)
    assert "stored without the codec of its namespace" in found.verdict
    manager.set(PICKLED, "k", 7)
    assert manager.explain(PLAIN, "k").level == manager.explain(PICKLED, "k").level == "l1"


@pytest.mark.parametrize(("codec", "problem"), [
    (pickle.dumps, "two functions"), ((pickle.dumps,), "a tuple of 1"), ([pickle.dumps, pickle.loads], "not list"),
    ((pickle.dumps, "loads"), "loads has to be a function, not str"), ((None, pickle.loads), "dumps has to be"),
])  # fmt: skip
def test_what_is_no_codec_is_refused(codec: Any, problem: str) -> None:
    with pytest.raises(CacheTypeError, match=problem) as caught:
        Namespace("t", codec=codec)
    assert caught.value.argument == "codec"


def test_what_contradicts_a_codec_is_refused() -> None:
    async def later(data: bytes) -> Any:
        return data

    with pytest.raises(CacheArgumentError, match="loads is a coroutine function"):
        Namespace("t", codec=(pickle.dumps, later))
    with pytest.raises(CacheArgumentError, match="leave out codec"):
        Namespace("t", codec=(pickle.dumps, pickle.loads), local=True)


def test_a_namespace_with_a_codec_is_one_like_others() -> None:
    space = Namespace("t", codec=(pickle.dumps, pickle.loads))
    assert pickle.loads(pickle.dumps(space)).policy == space.policy  # our own
    assert "codec=(<built-in function dumps>" in repr(space)
    assert space.policy != Namespace("t").policy
