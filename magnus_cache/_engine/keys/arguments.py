"""The calls of a function: which arguments they have, and which of them are part of a key."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any, Final, TypeAlias

from magnus_cache._engine.keys.closures import closure_of
from magnus_cache._engine.keys.lambdas import place_of
from magnus_cache._engine.keys.partials import Prefilled, bound_to, prefilled
from magnus_cache._engine.keys.signatures import POSITIONAL, seen
from magnus_cache._engine.runtime.module_names import module_name
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["Args", "Call", "Kwargs"]

Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = Mapping[str, Any]

_FIRST: Final = frozenset({"self", "cls"})
_FIRST_IN_CLASS: Final = _FIRST | {"mcs", "mcls", "metacls"}


class Call:
    """A function's signature, and how its arguments are distinguished.

    :param function: the function that callers call.
    :param whole: whether the arguments that partials and bound methods fill in count like any others.
    :ivar function: the function called in the end.
    :ivar name: its module and qualified name; empty if it has none.
    :ivar owner: the module and qualified name of the class whose body defines it.
    :ivar in_class: whether what callers call is defined in a class body.
    :ivar instance: the name of the parameter that is the instance, or the class of a classmethod; None without one.
    :ivar thing: the object that a method written in C is bound to; None without one.
    :ivar guessed: whether a decorator between may fill some of the parameters, see `Seen`.
    :ivar closure: the variables that the function closes over; None without any.
    """

    __slots__ = (
        "_called", "_real", "closure", "filled", "function", "guessed", "in_class", "instance", "name", "owner",
        "parameters", "positional", "signature", "thing",
    )  # fmt: skip

    def __init__(self, function: Callable[..., Any], *, whole: bool = True) -> None:
        self._called = function
        within = prefilled(function)
        self.filled = within if whole else Prefilled(function)
        self.function = self.filled.function
        signature, self._real = seen(self.function)
        self.signature = signature
        self.guessed = self._real is not None
        self.parameters = signature.parameters
        self.positional = [name for name, parameter in self.parameters.items() if parameter.kind in POSITIONAL]
        self.thing = bound_to(within.function)
        qualname = getattr(within.function, "__qualname__", "")
        module = _module(within.function, self.thing)
        outer = qualname.rpartition(".")[0]
        of_class = bool(outer) and not outer.endswith("<locals>")
        self.owner = (module, outer)
        self.in_class = within.after > 0 or (of_class and within.function is function)
        self.name = f"{module_name(module)}.{qualname}{place_of(within.function)}" if qualname else ""
        self.closure = closure_of(within.function, self.name)
        self.instance: str | None = None
        if self.positional and self.positional[0] == next(iter(self.parameters)):
            first, names = self.positional[0], _FIRST_IN_CLASS if of_class else _FIRST
            if first in names or self.filled.bound or within.after:
                self.instance = first

    @property
    def plain(self) -> bool:
        """Whether callers call a function written in Python itself, and no partial or bound method of it."""
        return type(self._called) is FunctionType and self._called is self.function

    def bind(self, args: Args, kwargs: Kwargs) -> dict[str, Any]:
        """Return the arguments by parameter, defaults filled in.

        :raises TypeError: the one that calling the function raises.
        """
        if self.guessed:
            given, unplaced = self.given(args, kwargs)
            defaults = {name: p.default for name, p in self.parameters.items() if p.default is not p.empty}
            return {**defaults, **given} if not unplaced else given
        bound = self.check(args, kwargs)
        bound.apply_defaults()
        return bound.arguments

    def given(self, args: Args, kwargs: Kwargs) -> tuple[dict[str, Any], bool]:
        """Return the given arguments by parameter, and whether there are others whose parameter is unknown.

        :raises TypeError: the one that calling the function raises.
        """
        bound = self.check(args, kwargs)
        if self.fits(args, kwargs):
            return bound.arguments, False
        full, known = self.filled.full(args), dict(self.filled.keywords(kwargs))
        if self.instance is not None and full:
            known[self.instance] = full[0]
        return known, len(full) > (self.instance is not None)

    def check(self, args: Args, kwargs: Kwargs) -> inspect.BoundArguments:
        """Return the given arguments, including those that a partial or a bound method fills in.

        :raises TypeError: the one that calling the function raises.
        """
        filled = self.filled
        # Most functions are neither partials nor bound methods.
        full = filled.full(args) if filled.args else args
        keywords = filled.keywords(kwargs) if filled.kwargs else kwargs
        try:
            return self.signature.bind(*full, **keywords)
        except TypeError as error:
            problem = str(error)
        if self._real is not None:
            # The decorator adds arguments, so only its own signature is valid.
            return self._real.bind(*full, **keywords)
        if inspect.isfunction(self._called) and not hasattr(self._called, "__signature__"):
            # Raises before the body runs, with the interpreter's own message.
            self._called(*args, **kwargs)
        raise TypeError(f"{self.name or type(self.function).__name__}() {problem}")

    def fits(self, args: Args, kwargs: Kwargs) -> bool:
        """Return whether the signature has room for these arguments, where it is a guess."""
        try:
            self.signature.bind(*self.filled.full(args), **self.filled.keywords(kwargs))
        except TypeError:
            return False
        return True

    def check_exclude(self, exclude: Iterable[str]) -> frozenset[str]:
        """Return the names to leave out: parameters, and variables that the function closes over.

        :raises CacheTypeError: if it is not a collection of names.
        :raises CacheArgumentError: for a name that is neither.
        """
        if isinstance(exclude, str):
            exclude = (exclude,)
        if not isinstance(exclude, Iterable):
            raise CacheTypeError("exclude", f"give the names of parameters, not {type(exclude).__name__}")
        names = list(exclude)
        variables = self.closure.names if self.closure is not None else frozenset[str]()
        for name in names:
            if name not in self.parameters and name not in variables:
                there = ", ".join((*self.parameters, *sorted(variables))) or "none"
                raise CacheArgumentError("exclude", f"{name!r} is not a parameter of the function; there are: {there}")
        if self.closure is not None:
            self.closure = self.closure.without(frozenset(names))
        return frozenset(names) & self.parameters.keys()


def _module(function: object, thing: object | None) -> str:
    module = getattr(function, "__module__", None)
    if module is None and thing is not None:
        module = (thing if isinstance(thing, type) else type(thing)).__module__
    return module or ""
