"""Finding the pydantic models of a library."""

import importlib
import inspect
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from pydantic import BaseModel

__all__ = ["library", "models_of"]


def library(module: str, *, extra: str, edge: str | None = None) -> ModuleType:
    """Import and return a module of an optional library.

    :param edge: the module here that needs it, if it is not called like the extra.
    :raises ImportError: naming the extra that brings the library.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        needs = f"magnus_cache.integrations.{edge or extra} needs {module.partition('.')[0]}"
        raise ImportError(
            f'{needs}: pip install "magnus-cache[{extra}]"',
            name=error.name,
            path=error.path,
        ) from error


def models_of(modules: Iterable[str]) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models that modules make public; modules that a version lacks are left out."""
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        for public in getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]:
            found: Any = getattr(module, public, None)
            if inspect.isclass(found) and issubclass(found, BaseModel) and found is not BaseModel:
                yield found
