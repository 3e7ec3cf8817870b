"""Settings for Django's own tests, in which our backend stands in for Django's backends for Redis and for memory.

Its tests name these two by their classes. So all that it tests of caches, sessions, middleware and templates runs on
ours. ``MAGNUS_FOREIGN_URL`` names a server, ``MAGNUS_FOREIGN_CODEC`` the codec, if there is to be one.
"""

import os
from collections.abc import Mapping
from typing import Any

from django.core.cache.backends import locmem, redis

from magnus_cache.integrations.django import MagnusCache

URL = os.environ["MAGNUS_FOREIGN_URL"]
_CODEC = os.environ.get("MAGNUS_FOREIGN_CODEC")


def _options(params: Mapping[str, Any], **more: str) -> dict[str, Any]:
    options = {**params.get("OPTIONS", {}), **more} | ({"codec": _CODEC} if _CODEC else {})
    return {**params, "OPTIONS": options}


class InPlaceOfRedis(MagnusCache):
    def __init__(self, location: Any, params: Mapping[str, Any]) -> None:
        super().__init__(location, _options(params))


class InPlaceOfMemory(MagnusCache):
    """Its location is the name of a part of the memory: here, of a namespace."""

    def __init__(self, location: Any, params: Mapping[str, Any]) -> None:
        super().__init__(URL, _options(params, namespace=f"memory-{location or 'default'}"))


redis.RedisCache = InPlaceOfRedis  # type: ignore[misc]
locmem.LocMemCache = InPlaceOfMemory  # type: ignore[misc]

CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": URL}}
DATABASES = {alias: {"ENGINE": "django.db.backends.sqlite3"} for alias in ("default", "other")}
SECRET_KEY = "of the tests"  # no secret
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
TEST_RUNNER = "tests.foreign.django_runner.Runner"
