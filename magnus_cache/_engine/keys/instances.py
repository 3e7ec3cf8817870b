"""`self` as part of the key of a cached method, so that instances do not share data.

An instance counts as

- the result of its ``__cache_key__()``;
- nothing, if its class is constructed without arguments, so that all instances are alike (if attributes are assigned
  later, or in a classmethod, define ``__cache_key__``);
- its fields, if it is immutable and equal by them: a named tuple, a frozen dataclass, attrs or pydantic class;
- its fields, if it cannot have a token, as with ``@dataclass(slots=True)``;
- otherwise itself, by a token.

``Repo[int]()`` and ``Repo[str]()`` differ if the instance has an ``__orig_class__``.
"""

import dataclasses
import enum
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from magnus_cache._engine.keys.canonical import UnsupportedError, class_name, encode, escape
from magnus_cache._engine.keys.identity import IdentityMap, tokens
from magnus_cache._engine.runtime.log import say_once
from magnus_cache.errors import CacheTypeError

__all__ = ["InstanceKey", "Lasting", "constructed_without_arguments", "content", "is_value_class"]

_Rule = Callable[[Any], str]


class Lasting(enum.Enum):
    """For what the part of an instance is the same from now on."""

    CLASS = "all instances of its class"
    INSTANCE = "this very object"
    CALL = "this call only: the next one has to ask again"


class InstanceKey:
    """Turns the first argument of one method into a part of the key.

    :param function: the method's name, for messages.
    :param owner: the module and qualified name of the class whose body defines the method. An instance of exactly
        that class adds no name: the function's name has it.
    :param argument: the method's name for its first argument.
    """

    __slots__ = ("_argument", "_function", "_of_classes", "_owner", "_rules")

    def __init__(self, function: str, owner: tuple[str, str], argument: str) -> None:
        self._function = function
        self._owner = owner
        self._argument = argument
        self._rules: IdentityMap[_Rule] = IdentityMap()
        self._of_classes: IdentityMap[_Rule] = IdentityMap()

    def part(self, instance: object) -> str:
        """Return the text for an instance, or for the class in a classmethod; empty if it does not count.

        :raises CacheTypeError: if its ``__cache_key__`` returns a value that cannot be part of a key, or if it has
            none and cannot be distinguished from other instances.
        """
        # In a classmethod, the first argument is a class; each class has its own rule.
        cls = instance if isinstance(instance, type) else type(instance)
        rules = self._of_classes if cls is instance else self._rules
        rule = rules.get(cls)
        if rule is None:
            rule = _Always(encode(cls)) if cls is instance else self._rule_for(cls)
            rules.put(cls, rule)
        return rule(instance)

    def lasting(self, instance: object) -> Lasting:
        """Return for what the part of an instance is the same from now on.

        :raises CacheTypeError: as `part` does.
        """
        self.part(instance)
        rule = None if isinstance(instance, type) else self._rules.get(type(instance))
        if isinstance(rule, _Always):
            return Lasting.CLASS
        return Lasting.INSTANCE if rule is None or rule == self._by_identity else Lasting.CALL

    def _rule_for(self, cls: type) -> _Rule:
        name = class_name(cls)
        if callable(getattr(cls, "__cache_key__", None)):
            return self._by_its_key
        if issubclass(cls, enum.Enum):
            return lambda instance: encode(instance)
        if constructed_without_arguments(cls):
            # The class still counts: a subclass may override methods that the cached one calls. A class defined in a
            # function is a new class on every call, under the same name.
            own = (cls.__module__, cls.__qualname__) == self._owner and "<locals>" not in cls.__qualname__
            return self._generic(cls, "" if own else f"~self:{name}")
        if is_value_class(cls) or not cls.__weakrefoffset__:
            return self._by_content
        return self._by_identity

    def _generic(self, cls: type, text: str) -> _Rule:
        if typing.Generic not in cls.__mro__:
            return _Always(text)

        def rule(instance: Any) -> str:
            alias = getattr(instance, "__orig_class__", None)
            if alias is None:
                return text
            try:
                return f"~self:{class_name(cls)}[{_type_texts(typing.get_args(alias))}]"
            except UnsupportedError:
                # A type variable, for example, has no name that is valid in other processes.
                return self._by_identity(instance)

        return rule

    def _by_its_key(self, instance: Any) -> str:
        try:
            return encode(instance)
        except UnsupportedError as error:
            problem = error.problem
        raise CacheTypeError(
            self._argument,
            f"__cache_key__ of {type(instance).__qualname__} returned a value that cannot be part of a key: {problem}",
        )

    def _by_content(self, instance: Any) -> str:
        try:
            return content(instance)
        except UnsupportedError:
            return self._by_identity(instance)

    def _by_identity(self, instance: object) -> str:
        cls = type(instance)
        try:
            token = tokens.of(instance)
        except TypeError:
            pass
        else:
            _warn_once(cls, self._function, self._argument)
            return f"~self:{class_name(cls)}({token})"
        raise CacheTypeError(
            self._argument,
            f"{self._function} cannot be cached: instances of {cls.__qualname__} are not distinguishable. They "
            "can have no token (their class has __slots__ without '__weakref__'), and a field of theirs cannot be part "
            f"of a key. Define __cache_key__() on {cls.__qualname__}; it returns what the data depend on",
        )


class _Always:
    """A rule that has one text for all."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __call__(self, _: object) -> str:
        return self._text


def _warn_once(cls: type, function: str, argument: str) -> None:
    # By name: a module that is executed repeatedly, such as a Streamlit page, makes a new class each time.
    say_once(
        f"instance:{cls.__module__}:{cls.__qualname__}",
        f"{function} caches for each instance of {cls.__qualname__} separately, because the class is constructed with "
        "arguments: nothing is shared with other instances, processes or restarts. To share, define __cache_key__() on "
        "the class, which returns what the data depend on (such as an account's id), or leave the instance out with "
        f"exclude=({argument!r},)",
    )


def constructed_without_arguments(cls: type) -> bool:
    """Return whether the class takes no argument to construct, not even an optional one."""
    if not _passes_arguments_on(type(cls)):
        try:
            return not inspect.signature(cls).parameters
        except (TypeError, ValueError):
            return False  # some classes written in C have no signature
    init, new = inspect.getattr_static(cls, "__init__"), inspect.getattr_static(cls, "__new__")
    if init is not object.__init__:
        # `type.__call__` passes the same arguments to `__new__` and `__init__`.
        return _takes_only_self(init)
    return new is object.__new__ or _takes_only_self(new.__func__ if isinstance(new, staticmethod) else new)


def _passes_arguments_on(metaclass: type) -> bool:
    """Return whether `__new__` and `__init__` get the arguments of a call of the class, as they do from `type`.

    The metaclass of msgspec takes them itself, so its classes have neither. One that is written ``(*args, **kwargs)``,
    as for singletons, passes them on.
    """
    call = inspect.getattr_static(metaclass, "__call__")
    if not inspect.isfunction(call):
        return call is type.__call__
    _, *rest = inspect.signature(call).parameters.values()
    return all(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in rest)


def _takes_only_self(function: object) -> bool:
    return inspect.isfunction(function) and len(inspect.signature(function).parameters) == 1


# -- instances that count by their fields -----------------------------------------------------------------------------


def is_value_class(cls: Any) -> bool:
    """Return whether instances of a class are immutable and equal by their fields."""
    if issubclass(cls, tuple):
        return isinstance(getattr(cls, "_fields", None), tuple)
    # Exactly this class: a subclass that is no dataclass itself may hold state outside its fields.
    dataclass = vars(cls).get("__dataclass_params__")
    if dataclass is not None:
        return bool(dataclass.frozen and dataclass.eq)
    if "__attrs_attrs__" in vars(cls):
        return cls.__setattr__.__name__ == "_frozen_setattrs" and cls.__eq__ is not object.__eq__
    if "__struct_config__" in dir(cls):
        return bool(cls.__struct_config__.frozen and cls.__struct_config__.eq)
    config = getattr(cls, "model_config", None)
    return isinstance(config, dict) and hasattr(cls, "__pydantic_decorators__") and bool(config.get("frozen"))


def content(instance: Any) -> str:
    """Return the text of an instance's class and fields.

    :raises UnsupportedError: if a field has none, or if it may hold more than its fields.
    """
    cls = type(instance)
    if "__dataclass_params__" in vars(cls):
        # Fields that are not compared do not distinguish instances.
        every = not is_value_class(cls)
        fields = (field for field in dataclasses.fields(cls) if every or field.compare)
        text = ",".join(f"{escape(field.name)}={encode(getattr(instance, field.name))}" for field in fields)
    elif isinstance(instance, tuple) and getattr(instance, "__dict__", None):
        raise UnsupportedError("it has attributes beside its fields")
    else:
        text = encode(instance)
    return f"~self:{class_name(cls)}({text})"


def _type_texts(args: tuple[Any, ...]) -> str:
    return ",".join(map(_type_text, args))


def _type_text(annotation: Any) -> str:
    """Return the text of a type argument of a generic class.

    :raises UnsupportedError: for types without a name that is valid in other processes, such as a type variable.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return f"~literal({','.join(map(encode, args))})"
    if origin in (typing.Union, types.UnionType):
        return f"~union({_type_texts(args)})"
    if origin is not None and isinstance(origin, type):
        return f"{encode(origin)}[{_type_texts(args)}]"
    if isinstance(annotation, list):
        return f"~list({_type_texts(tuple(annotation))})"
    if annotation is typing.Any:
        return "~any"
    if annotation is None or annotation is types.NoneType or annotation is Ellipsis:
        return "~ellipsis" if annotation is Ellipsis else "~None"
    if isinstance(annotation, type):
        return encode(annotation)
    raise UnsupportedError("it has no name that is valid in other processes")
