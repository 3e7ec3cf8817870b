"""`cached_many`: a decorator for functions that take many keys and return a mapping of them to values.

Each value is cached separately, as if the function had been called with one key. The function is called with the keys
that are missing. Its other arguments are part of every key.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, cast

from magnus_cache._engine.api.awaitables import Kind, awaited, blocking, kind_of
from magnus_cache._engine.api.cached import FunctionCache, KeyOptions, LoadOptionsFactory, decorator_for
from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.api.function_operations import add_operations
from magnus_cache._engine.api.many import as_list, load_many, load_many_blocking
from magnus_cache._engine.api.stamped import load_many_stamped, load_many_stamped_blocking
from magnus_cache._engine.loading.request import BatchItem, BatchRequest
from magnus_cache._engine.store.records import KeyRef
from magnus_cache.errors import CacheTypeError
from magnus_cache.protocols import BatchDecorator

__all__ = ["BatchFunctionCache", "make_batch_decorator"]


def make_batch_decorator(
    engine: Engine, namespace: str, make_options: LoadOptionsFactory, key_options: KeyOptions
) -> BatchDecorator:
    """Return the decorator; see `CacheManager.cached_many`.

    :raises CacheArgumentError: naming the option that cannot be used.
    """
    return cast("BatchDecorator", decorator_for(engine, namespace, make_options, key_options, BatchFunctionCache))


class _BatchArguments(NamedTuple):
    """The arguments of one call: the keys, and the other arguments before and after them."""

    cache: FunctionCache
    many: list[Any]
    before: tuple[Any, ...]
    after: tuple[Any, ...]
    kwargs: dict[str, Any]

    def locate(self, key: Any) -> BatchItem:
        """Return the item of one key: the key, its reference and its tags.

        :raises CacheTypeError: for a key that is not hashable.
        """
        if not isinstance(key, Hashable):
            raise CacheTypeError("keys", f"a key must be hashable, and a {type(key).__name__} is not")
        args = (*self.before, key, *self.after)
        return BatchItem(key, self.cache.ref(args, self.kwargs), self.cache.tags(args, self.kwargs))

    def load(self, keys: list[Any]) -> Any:
        """Call the function with some of the keys."""
        return self.cache.loader(*self.before, keys, *self.after, **self.kwargs)

    def request(self, *, fresh: bool = False) -> BatchRequest:
        """Return the request for the values of all keys."""
        cache = self.cache
        return BatchRequest(self.many, self.locate, self.load, cache.options, cache.function, fresh)


class BatchFunctionCache(FunctionCache):
    """One decorated batch loader."""

    def wrapper(self) -> Any:
        """Return the function that replaces the decorated one."""
        if self.keys.first_parameter is None:
            raise CacheTypeError("function", "a batch loader takes the keys as its first positional parameter")
        kind = kind_of(self.function)
        if kind is Kind.EITHER:
            raise CacheTypeError(
                "function",
                f"{self.keys.name} is a plain function around a coroutine function, so its kind is not known; put "
                "`cached_many` next to the coroutine function, or write the decorator in between with `async def`",
            )
        self.awaited = kind is Kind.ASYNC
        if self.awaited:
            self.loader = awaited(self.function)
            make = self._async_many()
        else:
            self.loader = blocking(self.function, self.keys.name)
            make = self._blocking_many()
        functools.update_wrapper(make, self.function)
        make.cache_key = lambda *args, **kwargs: self.keys.key(args, kwargs)
        make.cache_info = self.info
        return make

    def single(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> KeyRef:
        """Return the reference of one key, given in place of the keys.

        :raises CacheTypeError: for many keys.
        """
        assert self.keys.first_parameter is not None
        name = self.keys.first_parameter[1]
        key = self.keys.bind(args, kwargs)[name]
        if not isinstance(key, Hashable):
            raise CacheTypeError(
                name, f"this operation takes one key, given in place of the keys, not a {type(key).__name__}"
            )
        return self.ref(args, kwargs)

    def grouped(self, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]) -> list[_BatchArguments]:
        """Return calls with one key each as calls with many keys, which have their other arguments in common."""
        first = self.keys.first_parameter
        assert first is not None
        groups: list[_BatchArguments] = []
        for args, kwargs in calls:
            place, name = first
            one = {**kwargs, name: [kwargs[name]]} if name in kwargs else kwargs
            call = self._call(args if name in kwargs else (*args[:place], [args[place]], *args[place + 1 :]), one)
            for group in groups:
                if (group.before, group.after, group.kwargs) == (call.before, call.after, call.kwargs):
                    group.many.extend(call.many)
                    break
            else:
                groups.append(call)
        return groups

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "_BatchArguments":
        """Return the arguments of a call, with the keys apart from the others."""
        first = self.keys.first_parameter
        assert first is not None
        place, name = first
        if name in kwargs:
            rest = {other: value for other, value in kwargs.items() if other != name}
            return _BatchArguments(self, as_list(kwargs[name], name), args, (), rest)
        if len(args) <= place:
            # The default of the parameter. With too few arguments, `bind` raises as the function would.
            return _BatchArguments(self, as_list(self.keys.bind(args, kwargs)[name], name), args, (), kwargs)
        return _BatchArguments(self, as_list(args[place], name), args[:place], args[place + 1 :], kwargs)

    def _async_many(self) -> Any:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = self._call(args, kwargs)
            return await load_many(self.engine, call.request())

        async def invalidate(*args: Any, **kwargs: Any) -> bool:
            call = self._call(args, kwargs)
            return await self.engine.remove([call.locate(key).ref for key in call.many]) > 0

        async def refresh(*args: Any, **kwargs: Any) -> Any:
            call = self._call(args, kwargs)
            return await load_many(self.engine, call.request(fresh=True))

        async def stamped(*args: Any, **kwargs: Any) -> Any:
            call = self._call(args, kwargs)
            return await load_many_stamped(self.engine, call.request())

        return _with(add_operations(wrapper, self, awaited=True), invalidate, refresh, stamped)

    def _blocking_many(self) -> Any:
        state = self.engine.state

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = self._call(args, kwargs)
            state.check_open()
            return load_many_blocking(self.engine, call.request())

        def invalidate(*args: Any, **kwargs: Any) -> bool:
            call = self._call(args, kwargs)
            return self.engine.remove_blocking([call.locate(key).ref for key in call.many]) > 0

        def refresh(*args: Any, **kwargs: Any) -> Any:
            call = self._call(args, kwargs)
            state.check_open()
            return load_many_blocking(self.engine, call.request(fresh=True))

        def stamped(*args: Any, **kwargs: Any) -> Any:
            call = self._call(args, kwargs)
            state.check_open()
            return load_many_stamped_blocking(self.engine, call.request())

        return _with(add_operations(wrapper, self, awaited=False), invalidate, refresh, stamped)


def _with(
    wrapper: Any, invalidate: Callable[..., Any], refresh: Callable[..., Any], stamped: Callable[..., Any]
) -> Any:
    wrapper.invalidate, wrapper.refresh, wrapper.stamped = invalidate, refresh, stamped
    return wrapper
