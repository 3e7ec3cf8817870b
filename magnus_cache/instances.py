"""What `self` counts for in the key of a cached method: the data of one instance is not another's.

An instance counts as what its ``__cache_key__()`` returns; as nothing, if its class is constructed without
arguments, so that one instance is as good as another (assigning attributes afterwards, or in a classmethod, does
not change that: define ``__cache_key__``); or else as itself alone, by a token.
"""

import enum
import inspect
from collections.abc import Callable
from typing import Any

from magnus_cache.canonical import UnsupportedError, class_name, encode
from magnus_cache.errors import CacheTypeError
from magnus_cache.identity import IdentityMap, tokens
from magnus_cache.notices import say_once

__all__ = ["Owner", "constructed_without_arguments"]

_Rule = Callable[[Any], str]


class Owner:
    """Says what the first argument of one method counts for.

    :param function: the method's name, for messages.
    :param owner: the module and qualified name of the class whose body defines the method. An instance of just
        that class need not name it again: the function's name does.
    :param argument: what the method calls its first argument.
    """

    __slots__ = ("_argument", "_function", "_of_classes", "_owner", "_rules")

    def __init__(self, function: str, owner: tuple[str, str], argument: str) -> None:
        self._function = function
        self._owner = owner
        self._argument = argument
        self._rules: IdentityMap[_Rule] = IdentityMap()
        self._of_classes: IdentityMap[_Rule] = IdentityMap()

    def part(self, instance: object) -> str:
        """Return the text that stands for an instance, or for the class in a classmethod; empty for nothing.

        :raises CacheTypeError: if its ``__cache_key__`` returns what cannot be part of a key, or if it has none
            and cannot be told from another instance.
        """
        # A class as the first argument is a classmethod's, and each class is a case of its own.
        cls = instance if isinstance(instance, type) else type(instance)
        rules = self._of_classes if cls is instance else self._rules
        rule = rules.get(cls)
        if rule is None:
            rule = _always(encode(cls)) if cls is instance else self._rule_for(cls)
            rules.put(cls, rule)
        return rule(instance)

    def _rule_for(self, cls: type) -> _Rule:
        name = class_name(cls)
        if callable(getattr(cls, "__cache_key__", None)):
            return self._by_its_key
        if issubclass(cls, enum.Enum):
            return lambda instance: encode(instance)
        if constructed_without_arguments(cls):
            # Which class it is matters all the same: a subclass may override what the method calls.
            return _always("" if (cls.__module__, cls.__qualname__) == self._owner else f"~self:{name}")
        _warn_once(cls, self._function, self._argument)
        return lambda instance: f"~self:{name}({self._token(instance)})"

    def _by_its_key(self, instance: Any) -> str:
        try:
            return encode(instance)
        except UnsupportedError as error:
            problem = error.problem
        raise CacheTypeError(
            self._argument,
            f"__cache_key__ of {type(instance).__qualname__} returned what cannot be part of a key: {problem}",
        )

    def _token(self, instance: object) -> str:
        try:
            return tokens.of(instance)
        except TypeError:
            cls = type(instance).__qualname__
        raise CacheTypeError(
            self._argument,
            f"instances of {cls} cannot be told apart, as their class has __slots__ without '__weakref__'; "
            f"define __cache_key__() on {cls}, returning what its data depend on",
        )


def _always(text: str) -> _Rule:
    return lambda _: text


def _warn_once(cls: type, function: str, argument: str) -> None:
    # By its name: where a module is executed again and again, as a Streamlit page is, its class is a new one each time.
    say_once(
        f"instance:{cls.__module__}:{cls.__qualname__}",
        f"{function} caches for each instance of {cls.__qualname__} alone, as the class is constructed with arguments: "
        "nothing is shared with other instances, processes or restarts. To share, define __cache_key__() on the class, "
        "returning what its data depend on (such as an account's id), or leave the instance out with "
        f"exclude=({argument!r},)",
    )


def constructed_without_arguments(cls: type) -> bool:
    """Return whether the class takes no argument to construct, not even an optional one."""
    init, new = inspect.getattr_static(cls, "__init__"), inspect.getattr_static(cls, "__new__")
    if init is not object.__init__:
        # Whatever `__new__` may take, `type.__call__` hands the same arguments to both.
        return _takes_only_self(init)
    return new is object.__new__ or _takes_only_self(new.__func__ if isinstance(new, staticmethod) else new)


def _takes_only_self(function: object) -> bool:
    return inspect.isfunction(function) and len(inspect.signature(function).parameters) == 1
