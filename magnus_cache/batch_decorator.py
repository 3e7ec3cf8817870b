"""`cached_many`: a decorator for functions that take many keys and return a mapping of them to values.

Each key is cached for itself, as if the function had been called with that key alone; it is called with the keys that
are missing. Its other arguments are part of every key.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from magnus_cache.batch_calls import listed, load_many, load_many_blocking
from magnus_cache.batches import Wanted
from magnus_cache.callkeys import CallKeys
from magnus_cache.decorators import Decorator, Site, decorator_for
from magnus_cache.engine import Engine
from magnus_cache.errors import CacheTypeError
from magnus_cache.loads import Rule, is_async

__all__ = ["make_batch_decorator"]


def make_batch_decorator(
    engine: Engine, namespace: str, rule: Callable[[CallKeys], Rule], *,
    key_func: Callable[..., Any] | None, key: str | None, exclude: Iterable[str],
) -> Decorator:  # fmt: skip
    """Return the decorator; see `CacheManager.cached_many`.

    :raises CacheArgumentError: naming the option that cannot be used.
    """
    return decorator_for(engine, namespace, rule, _BatchSite, key_func=key_func, key=key, exclude=exclude)


class _BatchSite(Site):
    """One decorated batch loader."""

    def wrapper(self) -> Any:
        """Return the function that stands in for the decorated one."""
        if self.keys.first is None:
            raise CacheTypeError("function", "a batch loader takes the keys as its first positional parameter")
        make = self._async_many() if is_async(self.function) else self._blocking_many()
        functools.update_wrapper(make, self.function)
        make.cache_key = lambda *args, **kwargs: self.keys.key(args, kwargs)
        make.cache_info = self.info
        return make

    def _wanted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Wanted], Callable[[list[Any]], Any]]:
        """Return what a call wants, and the function that loads some of its keys."""
        first = self.keys.first
        assert first is not None
        place, name = first
        if name in kwargs:
            many, rest = kwargs[name], {other: value for other, value in kwargs.items() if other != name}
            args_of: Callable[[Any], tuple[Any, ...]] = lambda keys: (*args, keys)  # noqa: E731  # one of two
        else:
            # Too few arguments: calling the function tells, in its own words.
            many, rest = args[place] if len(args) > place else self.keys.bind(args, kwargs), kwargs
            args_of = lambda keys: (*args[:place], keys, *args[place + 1 :])  # noqa: E731  # the other
        wanted = [
            Wanted(key, self.address(args_of(key), rest), self.tags(args_of(key), rest)) for key in listed(many, name)
        ]
        return wanted, lambda keys: self.function(*args_of(keys), **rest)

    def _async_many(self) -> Any:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            wanted, loader = self._wanted(args, kwargs)
            return await load_many(self.engine, wanted, loader, self.rule)

        async def invalidate(*args: Any, **kwargs: Any) -> bool:
            wanted, _ = self._wanted(args, kwargs)
            return await self.engine.writes.remove([item.address for item in wanted]) > 0

        async def refresh(*args: Any, **kwargs: Any) -> Any:
            wanted, loader = self._wanted(args, kwargs)
            return await load_many(self.engine, wanted, loader, self.rule, fresh=True)

        return _with(wrapper, invalidate, refresh)

    def _blocking_many(self) -> Any:
        state = self.engine.state

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            wanted, loader = self._wanted(args, kwargs)
            state.check_open()
            return load_many_blocking(self.engine, wanted, loader, self.rule)

        def invalidate(*args: Any, **kwargs: Any) -> bool:
            wanted, _ = self._wanted(args, kwargs)
            state.check_open()
            return state.portal.call(self.engine.writes.remove, [item.address for item in wanted]) > 0

        def refresh(*args: Any, **kwargs: Any) -> Any:
            wanted, loader = self._wanted(args, kwargs)
            state.check_open()
            return load_many_blocking(self.engine, wanted, loader, self.rule, fresh=True)

        return _with(wrapper, invalidate, refresh)


def _with(wrapper: Any, invalidate: Callable[..., Any], refresh: Callable[..., Any]) -> Any:
    wrapper.invalidate, wrapper.refresh = invalidate, refresh
    return wrapper
