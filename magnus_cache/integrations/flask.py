"""A backend of Flask-Caching: ``CACHE_TYPE = "magnus_cache.integrations.flask.MagnusCache"``.

:raises ImportError: if Flask-Caching is not installed.
"""

from typing import Any
from urllib.parse import quote

from magnus_cache import register_type
from magnus_cache.integrations.models import library

library("flask_caching", extra="flask")

from flask import Flask  # noqa: E402  # after the error that names the extra
from flask_caching.backends.base import BaseCache  # noqa: E402  # as above
from markupsafe import Markup  # noqa: E402  # as above

from magnus_cache.integrations import cachelib  # noqa: E402  # as above

__all__ = ["MagnusCache"]

# The text of a template's fragment, which the tag ``{% cache %}`` stores.
register_type(Markup, encode=str.__str__, decode=Markup)


class MagnusCache(cachelib.MagnusCache, BaseCache):
    """The cache of `magnus_cache.integrations.cachelib` for Flask-Caching.

    Its namespace is named by ``CACHE_KEY_PREFIX``, so that clearing it is a single round trip, and applications with
    different prefixes do not share values. ``CACHE_OPTIONS`` may have ``cache``, ``codec``, ``namespace`` and
    ``key_prefix``. If it has a namespace, the keys in it begin with ``CACHE_KEY_PREFIX``.
    """

    @classmethod
    def factory(cls, app: Flask, config: dict[str, Any], args: list[Any], kwargs: dict[str, Any]) -> "MagnusCache":
        """Return the backend of an application, as Flask-Caching asks for it."""
        prefix = config.get("CACHE_KEY_PREFIX")
        if prefix and "namespace" not in kwargs and isinstance(prefix, str):
            kwargs["namespace"] = quote(prefix, safe="")
        elif prefix:
            kwargs.setdefault("key_prefix", prefix)
        return cls(*args, **kwargs)
