"""Importing the libraries of monitoring systems, which are extras."""

import importlib
from typing import Any

__all__ = ["library"]


def library(module: str, *, extra: str) -> Any:
    """Import and return a module of an optional library.

    :raises ImportError: naming the extra that brings the library.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # An older one, without what is needed, is no help either.
        raise ImportError(
            f'magnus_cache.observability.{extra} needs {module.partition(".")[0]}: pip install "magnus-cache[{extra}]"',
            name=error.name,
            path=error.path,
        ) from error
