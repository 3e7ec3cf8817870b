"""Keys of functions behind other decorators: by the signature that callers call, and awaited as callers await."""

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest

from magnus_cache import CacheManager, get_cache_manager
from magnus_cache._engine.keys.calls import CallKeyBuilder
from magnus_cache.errors import CacheArgumentError, CacheTypeError
from magnus_cache.testing import isolated


@pytest.fixture
def memory() -> Iterator[CacheManager]:
    with CacheManager(redis_enabled=False) as manager:
        yield manager


@pytest.fixture
def cache(url: str) -> Iterator[CacheManager]:
    with CacheManager(redis_url=url) as manager:
        yield manager


def with_session(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function("session", *args, **kwargs)

    return inner


def handed_on(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return inner


def named_session(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def inner(user_id: int = 0, page: int = 1) -> Any:
        return function("session", user_id, page)

    return inner


def user(session: Any, user_id: int = 0, page: int = 1) -> tuple[int, int]:
    return user_id, page


def book(session: Any, title: str) -> str:
    return title


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}), ((2,), {}), ((1, 0), {}), ((1, 1), {}), ((0,), {}), ((), {}), ((), {"user_id": 2}), ((1,), {"page": 0}),
    ((1,), {"page": 2}), ((2, 2), {}), ((), {"page": 0}), ((0, 1), {}),
]  # fmt: skip


# -- a decorator that hands arguments in ---------------------------------------------------------------------------


@pytest.mark.parametrize("decorator", [with_session, named_session])
@pytest.mark.parametrize("exclude", [(), ("session",)])
def test_a_session_that_a_decorator_hands_in_shifts_nothing(
    memory: CacheManager, decorator: Any, exclude: tuple[str, ...]
) -> None:
    if decorator is named_session and exclude:
        with pytest.raises(CacheArgumentError, match=r"^exclude: 'session' .*there are: user_id, page"):
            memory.cached("t", exclude=exclude)(decorator(user))
        return
    function = decorator(user)
    cached = memory.cached("t", exclude=exclude)(function)
    for _ in range(2):
        for args, kwargs in CALLS:
            assert cached(*args, **kwargs) == function(*args, **kwargs)
    assert cached.invalidate(1) is True
    assert cached.invalidate(1) is False


def test_a_required_parameter_behind_the_one_handed_in(memory: CacheManager) -> None:
    cached = memory.cached("t", exclude=("session",))(with_session(book))
    assert [cached("a"), cached("b"), cached(title="a"), cached("a")] == ["a", "b", "a", "a"]
    with pytest.raises(TypeError):
        cached()


def test_a_method_behind_such_a_decorator(memory: CacheManager) -> None:
    def injected(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def inner(self: Any, *args: Any, **kwargs: Any) -> Any:
            return function(self, "session", *args, **kwargs)

        return inner

    class Users:
        @memory.cached("t", exclude=("session",))
        @injected
        def user(self, session: str, user_id: int = 0, page: int = 1) -> tuple[int, int]:
            return user_id, page

        @memory.cached("t", exclude=("session",))
        @injected
        def book(self, session: str, title: str) -> str:
            return title

    users: Any = Users()
    for _ in range(2):
        assert [users.user(*args, **kwargs) for args, kwargs in CALLS] == [
            user("session", *args, **kwargs) for args, kwargs in CALLS
        ]
        assert [users.book("a"), users.book("b")] == ["a", "b"]


def test_the_signature_of_the_decorator_counts_where_it_has_one() -> None:
    keys = CallKeyBuilder.of(named_session(user))
    assert keys.parameters == ["user_id", "page"]
    assert keys.key((), {}) == keys.key((0,), {}) == keys.key((), {"page": 1})

    declared = with_session(user)
    declared.__signature__ = inspect.Signature([inspect.Parameter("number", inspect.Parameter.POSITIONAL_OR_KEYWORD)])
    assert CallKeyBuilder.of(declared).parameters == ["number"]


def test_a_template_does_not_guess_which_argument_is_meant(memory: CacheManager) -> None:
    cached = memory.cached("t", key="{user_id}:{page}", exclude=("session",))(with_session(user))
    assert cached(user_id=1, page=2) == cached(user_id=1, page=2) == (1, 2)
    with pytest.raises(CacheArgumentError, match=r"^key: a decorator of .*user may add .*'page'.*key_func="):
        cached(1)
    with pytest.raises(CacheArgumentError, match=r"^key: a decorator of .*book may add"):
        memory.cached("t", key="{title}")(with_session(book))("a")


def test_tags_of_named_arguments(memory: CacheManager) -> None:
    cached = memory.cached("t", tags="book:{title}", exclude=("session",))(with_session(book))
    assert cached(title="a") == "a"
    memory.invalidate_tags("book:a")
    assert cached(title="a") == "a"
    assert cached.cache_info().loads == 2
    with pytest.raises(CacheArgumentError, match="^tags: .*book"):
        cached("a")


def test_many_keys_behind_such_a_decorator(memory: CacheManager) -> None:
    def load(session: str, ids: list[int]) -> dict[int, int]:
        return {number: -number for number in ids}

    cached = memory.cached_many("t", exclude=("session",))(with_session(load))
    assert cached([1, 2]) == cached([1, 2]) == {1: -1, 2: -2}
    assert cached.cache_info().loads == 2


# -- a decorator that hands all on ---------------------------------------------------------------------------------


def quote(db: object, ticker: str, depth: int = 5) -> tuple[str, int]:
    return ticker, depth


def test_a_decorator_that_hands_all_on_changes_no_key() -> None:
    plain, keys = CallKeyBuilder.of(quote), CallKeyBuilder.of(handed_on(quote))
    for args, kwargs in [(("d", "A"), {}), (("d",), {"ticker": "A"}), ((), {"db": "d", "ticker": "A", "depth": 5})]:
        assert keys.key(args, kwargs).endswith(plain.key(args, kwargs).partition("quote")[2][2:])


def test_leaving_out_works_behind_it(memory: CacheManager) -> None:
    cached = memory.cached("t", exclude=("db",))(handed_on(quote))
    assert cached(object(), "A") == cached(object(), ticker="A") == cached(db="other", ticker="A") == ("A", 5)
    assert cached.cache_info().loads == 1
    assert CallKeyBuilder.of(handed_on(quote), key="{ticker}").key((object(), "A"), {}) == "A"
    assert CallKeyBuilder.of(handed_on(quote), key_func=lambda db, ticker: ticker).key((None, "A"), {}) == "A"


def test_lru_cache_is_seen_through(memory: CacheManager) -> None:
    keys = CallKeyBuilder.of(functools.lru_cache(quote), exclude=("db",))
    assert keys.key(("d", "A"), {}) == CallKeyBuilder.of(quote, exclude=("db",)).key(("e", "A", 5), {})


def test_so_is_a_function_that_is_cached_already(memory: CacheManager) -> None:
    keys = CallKeyBuilder.of(memory.cached("t")(quote), exclude=("db",))
    assert keys.key(("d", "A"), {}) == CallKeyBuilder.of(quote, exclude=("db",)).key(("e", "A", 5), {})


# -- called or awaited ---------------------------------------------------------------------------------------------


def run(function: Callable[..., Coroutine[Any, Any, Any]]) -> Any:
    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(function(*args, **kwargs))

    return inner


async def double(x: int) -> list[int]:
    await asyncio.sleep(0)
    return [2 * x]


@pytest.mark.anyio
@pytest.mark.parametrize("policy", [{}, {"grace": 60, "soft_timeout": 1}])
async def test_a_plain_wrapper_around_a_coroutine_function_is_awaited(
    cache: CacheManager, policy: dict[str, Any]
) -> None:
    loads: list[int] = []

    async def load(x: int) -> list[int]:
        loads.append(x)
        return await double(x)

    function = handed_on(load)
    cached: Any = cache.cached("t", key="{x}", **policy)(function)
    assert await asyncio.gather(*(cached(2) for _ in range(20))) == [[4]] * 20
    assert await cached(2) == [4]
    assert loads == [2]
    # In another process the value is there before the first call.
    again: Any = cache.cached("t", key="{x}", **policy)(function)
    assert await again(2) == await again(2) == [4]
    assert loads == [2]
    assert await again.invalidate(2) is True
    assert await again.refresh(2) == [4]
    assert again.cache_key(2) == "2"
    assert loads == [2, 2]


def test_it_follows_the_process_wide_cache() -> None:
    loads: list[int] = []

    async def load(x: int) -> int:
        loads.append(x)
        return 2 * x

    def start(x: int) -> Awaitable[int]:
        return load(x)

    with isolated():
        wrapped: Any = get_cache_manager().cached("t")(handed_on(load))
        said: Any = get_cache_manager().cached("u")(start)

        async def main() -> list[int]:
            return [await wrapped(2), await wrapped(2), await said(3), await said(3)]

        assert asyncio.run(main()) == [4, 4, 6, 6]
    assert loads == [2, 3]
    with isolated():
        assert asyncio.run(main()) == [4, 4, 6, 6]
    assert loads == [2, 3, 2, 3]


@pytest.mark.anyio
async def test_its_operations_are_awaited_before_it_was_ever_called(memory: CacheManager) -> None:
    first: Any = memory.cached("t")(handed_on(double))
    assert await first.refresh(2) == [4]
    second: Any = memory.cached("t")(handed_on(double))
    assert await second.invalidate(2) is True


def test_a_wrapper_that_runs_the_coroutine_is_called(cache: CacheManager) -> None:
    cached: Any = cache.cached("t")(run(double))
    assert cached.invalidate(2) is False
    assert cached(2) == cached(2) == [4]
    assert cached.cache_info().loads == 1
    assert cached.invalidate(2) is True
    assert cached.refresh(2) == [4]
    again: Any = cache.cached("t")(run(double))
    assert again(2) == [4]


def test_methods_behind_a_plain_wrapper(memory: CacheManager) -> None:
    class Service:
        @memory.cached("t")
        @handed_on
        async def double(self, x: int) -> int:
            return 2 * x

    async def main() -> Any:
        service: Any = Service()
        return await service.double(2), await service.double(2), await service.double.invalidate(2)

    assert asyncio.run(main()) == (4, 4, True)


@pytest.mark.anyio
@pytest.mark.parametrize("annotation", [Awaitable[list[int]], "Awaitable[list[int]]", "asyncio.Task[list[int]]"])
async def test_a_function_that_says_it_returns_an_awaitable_is_awaited(memory: CacheManager, annotation: Any) -> None:
    threads: list[threading.Thread] = []

    def start(x: int) -> Any:
        threads.append(threading.current_thread())
        return asyncio.ensure_future(double(x))

    start.__annotations__["return"] = annotation
    cached: Any = memory.cached("t")(start)
    assert inspect.iscoroutinefunction(cached)
    assert await cached(2) == await cached(2) == [4]
    # On the loop of the caller, which is what a task needs.
    assert threads == [threading.current_thread()]


@pytest.mark.anyio
@pytest.mark.parametrize("policy", [{}, {"hard_timeout": 60}])
async def test_a_function_that_returns_one_unsaid_gets_a_clear_error(
    memory: CacheManager, policy: dict[str, Any]
) -> None:
    def plain(x: int):  # type: ignore[no-untyped-def]  # what is tested
        return double(x)

    cached: Any = memory.cached("t", **policy)(plain)
    for _ in range(2):
        with pytest.raises(CacheTypeError, match=r"^function: .*plain is a plain function .*coroutine.*async def"):
            await asyncio.to_thread(cached, 2)


@pytest.mark.anyio
async def test_many_keys_awaited(memory: CacheManager) -> None:
    def start(ids: list[int]) -> Awaitable[dict[int, int]]:
        async def load() -> dict[int, int]:
            return {number: -number for number in ids}

        return load()

    cached: Any = memory.cached_many("t")(start)
    assert await cached([1, 2]) == await cached([2, 1]) == {1: -1, 2: -2}
    with pytest.raises(CacheTypeError, match="around a coroutine function"):
        memory.cached_many("t")(handed_on(double))

    def unsaid(ids: list[int]):  # type: ignore[no-untyped-def]  # what is tested
        return start(ids)

    with pytest.raises(CacheTypeError, match="unsaid is a plain function"):
        await asyncio.to_thread(memory.cached_many("t")(unsaid), [1])
