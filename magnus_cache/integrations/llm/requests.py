"""The request behind a call: which function asks which service for what, and the key that this makes."""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, Final

from magnus_cache import CacheArgumentError, CacheTypeError
from magnus_cache.integrations.llm.clients import address_of, client_of, headers_in_key
from magnus_cache.integrations.llm.keys import DEEPEST, digest_of, is_unset

__all__ = ["NOT_IN_KEYS", "Request", "RequestMaker"]

NOT_IN_KEYS: Final = frozenset({
    "api_key", "default_headers", "extra_headers", "headers", "http_client", "max_retries", "num_retries", "timeout",
    "request_timeout", "user_agent",
})  # fmt: skip
"""Parameters that say how to reach a service, and not what to ask it. Of headers, see `headers_in_key`."""

_REGISTRATIONS: Final = frozenset({"openai", "anthropic"})
_PLAIN: Final = re.compile(r"[\w.:/@+-]{1,64}")


class Request:
    """A call of a model.

    :ivar function: the function to call.
    :ivar arguments: by keyword. Lists and dicts are copies: the call may run later, as a refresh, when the program has
        added to its list of messages. The key is that of the present ones.
    :ivar key: in the namespace: the model and a digest.
    :ivar model: the name of the model, or None.
    :ivar streams: whether the function returns a stream.
    """

    __slots__ = ("arguments", "function", "key", "model", "streams")

    def __init__(self, function: Callable[..., Any], arguments: Mapping[str, Any], key: str) -> None:
        self.function = function
        self.arguments = {name: _copied(value) for name, value in arguments.items()}
        self.key = key
        model = arguments.get("model")
        self.model = model if isinstance(model, str) else None
        self.streams = _is_stream(function, arguments)

    def call(self) -> Any:
        """Return what the function returns."""
        return self.function(**self.arguments)


class RequestMaker:
    """Makes requests.

    :param exclude: names of further parameters and headers that are not part of keys.
    :param scope: a value that is part of every key.
    :raises CacheTypeError: for names that are no collection of text, and a scope that cannot be part of a key.
    """

    __slots__ = ("_excluded", "_headers", "_scope")

    def __init__(self, exclude: Iterable[str], scope: Any) -> None:
        names = [exclude] if isinstance(exclude, str) else list(exclude)
        if not all(isinstance(name, str) for name in names):
            raise CacheTypeError("exclude", "give the names of parameters")
        self._excluded = NOT_IN_KEYS.union(names)
        self._headers = frozenset(name.lower() for name in names)
        digest_of(scope, "scope")
        self._scope = scope

    def make(self, function: Callable[..., Any], arguments: Mapping[str, Any], sample: int) -> Request:
        """Return the request of a call.

        :param sample: which of several answers to the same request is meant, 0 or more.
        :raises CacheTypeError: for a function that cannot be called, and an argument that cannot be part of a key.
        :raises CacheArgumentError: for a function that cannot be told from others, and a sample that is none.
        """
        if not callable(function):
            raise CacheTypeError("function", f"a function that calls a model is needed, not {type(function).__name__}")
        if not isinstance(sample, int) or isinstance(sample, bool) or sample < 0:
            raise CacheArgumentError("sample", f"the number of a sample is an int of 0 or more, not {sample!r}")
        while isinstance(function, functools.partial):
            if function.args:
                raise CacheArgumentError("function", "a partial with positional arguments; give them by keyword")
            arguments, function = {**function.keywords, **arguments}, function.func
        _register_types(function)
        asked = {name: value for name, value in arguments.items() if name not in self._excluded}
        asked = {name: value for name, value in asked.items() if not is_unset(value)}
        client = client_of(function)
        headers = headers_in_key(client, arguments, self._headers)
        parts = (_identity(function, client, scoped=self._scope is not None), self._scope, headers)
        number = None if _is_exact(asked) else int(sample)
        digest = digest_of([digest_of(list(parts), "scope"), digest_of(asked, "request"), number])
        model = asked.get("model")
        plain = isinstance(model, str) and _PLAIN.fullmatch(model)
        return Request(function, arguments, f"{model}/{digest}" if plain else digest)


def _copied(value: Any, depth: int = 0) -> Any:
    """Return a value with copies of its lists and dicts. What is in them otherwise is not copied."""
    if depth > DEEPEST:
        return value
    if type(value) in (list, tuple):
        return type(value)(_copied(item, depth + 1) for item in value)
    return {name: _copied(item, depth + 1) for name, item in value.items()} if type(value) is dict else value


def _is_exact(arguments: Mapping[str, Any]) -> bool:
    """Return whether the temperature is 0: then a request has one answer, not several samples.

    A request without a temperature has its provider's, which is above 0 everywhere.
    """
    body = arguments.get("extra_body")
    further = body.get("temperature", 0) if isinstance(body, Mapping) else 0
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and value == 0
        for value in (arguments.get("temperature"), further)
    )


def _is_stream(function: Callable[..., Any], arguments: Mapping[str, Any]) -> bool:
    """Return whether a call returns a stream: it asks for one, or the function is a generator function."""
    function = inspect.unwrap(function)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return True
    stream = arguments.get("stream")
    return bool(stream) and not is_unset(stream)


def _identity(function: Any, client: Any, *, scoped: bool) -> list[Any]:
    """Return what tells a function, and the service that it asks, from others.

    :param scoped: whether the program says itself what does.
    :raises CacheArgumentError: if only its name is known, and others may have that name too.
    """
    inner = inspect.unwrap(function)
    module, name = getattr(inner, "__module__", None), getattr(inner, "__qualname__", None)
    address = None if client is None else address_of(client)
    if not scoped and address is None and not _is_importable(function, module, name):
        problem = "only its name tells it from others; give LLMCache a scope= that says what it asks, such as a URL"
        raise CacheArgumentError("function", problem)
    # A blocking client and an awaited one ask the same.
    return [module, (name or "").replace("Async", ""), address]


def _is_importable(function: Any, module: Any, name: Any) -> bool:
    found: Any = sys.modules.get(module) if isinstance(module, str) else None
    for part in name.split(".") if isinstance(name, str) else ("",):
        found = getattr(found, part, None)
    # A method of a class is equal to itself; one of an instance is not found, as that may have settings of its own.
    return found is not None and found == function


def _register_types(function: Any) -> None:
    """Make the responses of a known client storable: before the first look-up, which may find one."""
    library = (getattr(inspect.unwrap(function), "__module__", None) or "").partition(".")[0]
    if library in _REGISTRATIONS and f"magnus_cache.integrations.{library}" not in sys.modules:
        import_module(f"magnus_cache.integrations.{library}")
