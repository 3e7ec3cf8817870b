"""LangChain: a cache for its models, a store for its embeddings, and its results as values of the cache.

`MagnusCache` takes the place of LangChain's own caches (``set_llm_cache``), and `MagnusStore` that of its byte stores
(``CacheBackedEmbeddings``). Importing this module also registers the models of ``langchain_core``: messages and their
chunks, generations and their results, documents, prompt values, and the decisions of agents. Import it once, in every
process that reads them.

:raises ImportError: if the library is not installed.
"""

import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from magnus_cache import AsyncCacheManager, CacheEncodeError, CacheManager, CacheTypeError, register_type
from magnus_cache.integrations.llm.keys import digest_of
from magnus_cache.integrations.llm.replies import is_unfinished
from magnus_cache.integrations.llm.usage import LLMUsage, Meter
from magnus_cache.integrations.models import library, models_of

try:
    from langchain_core.caches import BaseCache
    from langchain_core.outputs import Generation
    from langchain_core.stores import BaseStore
except ImportError:
    library("langchain_core", extra="langchain")
    raise

__all__ = ["MagnusCache", "MagnusStore", "register"]

_LOG = logging.getLogger("magnus_cache")


class MagnusCache(BaseCache):
    """A cache for LangChain's models: ``set_llm_cache(MagnusCache(cache))``, or ``cache=`` of a model. Thread-safe.

    LangChain looks up, calls the model itself, and stores. So callers that ask the same at the same time all call the
    model; `LLMCache` calls it once. LangChain does not look up streams, and knows no number of a sample: a prompt has
    one answer, at any temperature.

    :param cache: the cache for the answers, of either kind.
    :param namespace: where they are. `clear` removes all of it.
    :param ttl: how long an answer lives; None for the namespace's.
    :param prices: an `LLMPrice` for each model, to count what calls cost and what hits save.
    :param skip_if: called with each generation; if it returns true for one of them, the answer is not stored. See
        `is_unfinished`.
    :raises CacheTypeError: for something else than a cache.
    :raises CacheArgumentError: for prices that cannot be used.
    """

    def __init__(
        self, cache: CacheManager | AsyncCacheManager, namespace: str = "langchain", *, ttl: Any = None,
        prices: Mapping[str, Any] | None = None, skip_if: Callable[[Any], bool] = is_unfinished,
    ) -> None:  # fmt: skip
        self._aio, self._sync = _both(cache)
        self._namespace = namespace
        self._ttl = ttl
        self._skip_if = skip_if
        self._meter = Meter(prices, partial(cache.count_cost, namespace))

    def lookup(self, prompt: str, llm_string: str) -> Sequence[Generation] | None:
        """Return the stored answer to a prompt, or None."""
        return self._found(self._sync.get(self._namespace, _key(prompt, llm_string)))

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Store the answer to a prompt. One that cannot be stored is logged."""
        if self._is_worth_storing(return_val):
            try:
                self._sync.set(self._namespace, _key(prompt, llm_string), list(return_val), self._ttl)
            except CacheEncodeError as error:
                _LOG.warning("an answer of LangChain is not stored: %s", error)

    def clear(self, **kwargs: Any) -> None:
        """Remove all answers, in every process.

        :raises CacheUnavailableError: if Redis is there and refuses. If it is away, it is told once it is back.
        """
        self._sync.clear(self._namespace)

    async def alookup(self, prompt: str, llm_string: str) -> Sequence[Generation] | None:
        """Return the stored answer to a prompt, or None."""
        return self._found(await self._aio.get(self._namespace, _key(prompt, llm_string)))

    async def aupdate(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Store the answer to a prompt. One that cannot be stored is logged."""
        if self._is_worth_storing(return_val):
            try:
                await self._aio.set(self._namespace, _key(prompt, llm_string), list(return_val), self._ttl)
            except CacheEncodeError as error:
                _LOG.warning("an answer of LangChain is not stored: %s", error)

    async def aclear(self, **kwargs: Any) -> None:
        """Remove all answers, in every process.

        :raises CacheUnavailableError: if Redis is there and refuses. If it is away, it is told once it is back.
        """
        await self._aio.clear(self._namespace)

    def usage(self) -> dict[str, LLMUsage]:
        """Return what this process has used through this object, by model; see `LLMCache.usage`."""
        return self._meter.usage()

    def _is_worth_storing(self, answer: Sequence[Generation]) -> bool:
        """Count an answer that was paid for; return whether to store it."""
        self._meter.count(list(answer), None, paid=True)
        return bool(answer) and not any(map(self._skip_if, answer))

    def _found(self, answer: Sequence[Generation] | None) -> Sequence[Generation] | None:
        if answer is not None:
            self._meter.count(answer, None, paid=False)
        return answer


class MagnusStore(BaseStore[str, Any]):
    """A key-value store of LangChain: ``CacheBackedEmbeddings.from_bytes_store(embeddings, MagnusStore(cache), ...)``.

    Thread-safe. The values of a store of bytes are bytes; others may be whatever the cache stores.

    :param cache: the cache for the values, of either kind.
    :param namespace: where they are.
    :param ttl: how long a value lives; None for the namespace's.
    :raises CacheTypeError: for something else than a cache.
    """

    def __init__(
        self, cache: CacheManager | AsyncCacheManager, namespace: str = "embeddings", *, ttl: Any = None
    ) -> None:
        self._aio, self._sync = _both(cache)
        self._namespace = namespace
        self._ttl = ttl

    def mget(self, keys: Sequence[str]) -> list[Any]:
        """Return the values of some keys, and None for a key without one."""
        found = self._sync.get_many(self._namespace, keys)
        return [found.get(key) for key in keys]

    async def amget(self, keys: Sequence[str]) -> list[Any]:
        """Return the values of some keys, and None for a key without one."""
        found = await self._aio.get_many(self._namespace, keys)
        return [found.get(key) for key in keys]

    def mset(self, key_value_pairs: Sequence[tuple[str, Any]]) -> None:
        """Store some values; of several for one key, the last.

        :raises CacheEncodeError: for a value that cannot be stored, naming its type.
        """
        self._sync.set_many(self._namespace, dict(key_value_pairs), self._ttl)

    async def amset(self, key_value_pairs: Sequence[tuple[str, Any]]) -> None:
        """Store some values; of several for one key, the last.

        :raises CacheEncodeError: for a value that cannot be stored, naming its type.
        """
        await self._aio.set_many(self._namespace, dict(key_value_pairs), self._ttl)

    def mdelete(self, keys: Sequence[str]) -> None:
        """Remove the values of some keys, in every process."""
        self._sync.delete_many(self._namespace, keys)

    async def amdelete(self, keys: Sequence[str]) -> None:
        """Remove the values of some keys, in every process."""
        await self._aio.delete_many(self._namespace, keys)

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """Yield the keys that begin with a prefix: for administration, as Redis looks through its whole database.

        A key of more than 200 bytes, or with other than visible ASCII characters, comes as the text that it is stored
        under. All methods take that for the key, too.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        yield from self._sync.scan(self._namespace, _glob(prefix))

    async def ayield_keys(  # pyright: ignore[reportIncompatibleMethodOverride]  # that of the base has no yield
        self, *, prefix: str | None = None
    ) -> AsyncIterator[str]:
        """Yield the keys that begin with a prefix; see `yield_keys`.

        :raises CacheUnavailableError: when Redis does not answer, or refuses.
        """
        async for key in self._aio.scan(self._namespace, _glob(prefix)):
            yield key


def _both(cache: Any) -> tuple[AsyncCacheManager, CacheManager]:
    if not isinstance(cache, CacheManager | AsyncCacheManager):
        raise CacheTypeError("cache", f"give a CacheManager or AsyncCacheManager, not {type(cache).__name__}")
    return cache.aio, cache.sync


def _key(prompt: str, llm_string: str) -> str:
    return digest_of([prompt, llm_string])


def _glob(prefix: str | None) -> str:
    return re.sub(r"([*?\[\]\\^])", r"\\\1", prefix or "") + "*"


def register() -> None:
    """Register the models. Importing this module does this; call it again after a reload of the library."""
    modules = (
        "langchain_core.messages",
        "langchain_core.outputs",
        "langchain_core.documents",
        "langchain_core.prompt_values",
        "langchain_core.agents",
    )
    for model in models_of(modules):
        register_type(model)
    # The text of a message, a str that can also be called.
    text: Any = getattr(library("langchain_core.messages.base", extra="langchain"), "TextAccessor", None)
    if text is not None:
        register_type(text, encode=str.__str__, decode=text)


register()
