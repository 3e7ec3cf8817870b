"""A cache backend for Django, and Django's own types as values of this cache.

In ``settings.py``::

    CACHES = {
        "default": {
            "BACKEND": "magnus_cache.integrations.django.MagnusCache",
            "LOCATION": "redis://127.0.0.1:6379/0",
        }
    }

Importing this module also registers responses, safe and lazy text, models and query dicts, see `values`, so that cached
functions can return them.

:raises ImportError: if Django is not installed.
"""

from magnus_cache.integrations.models import library

library("django", extra="django")

from magnus_cache.integrations.django.backend import MagnusCache, UnstorableError  # noqa: E402  # after the error

__all__ = ["MagnusCache", "UnstorableError"]
