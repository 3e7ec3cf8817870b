"""cachelib's own tests, for our cache. pytest runs this file with cachelib's folder of tests on the path."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

# Of cachelib's sdist.
from clear import ClearTests
from common import CommonTests
from conftest import key_prefix  # noqa: F401  # a fixture
from delete_many_with_prefix import DeleteManyWithPrefixTests
from has import HasTests
from serializer import SerializerTests
from test_interface_uniformity import TestInterfaceUniformity as Uniformity

from magnus_cache import CacheManager
from magnus_cache.integrations.cachelib import MagnusCache


@pytest.fixture(scope="session")
def manager() -> Iterator[CacheManager]:
    with CacheManager(redis_url=os.environ["MAGNUS_FOREIGN_URL"]) as manager:
        yield manager


@pytest.fixture(autouse=True)
def cache_factory(request: pytest.FixtureRequest, manager: CacheManager, key_prefix: str | None) -> None:  # noqa: F811
    def factory(_: Any, *args: Any, **options: Any) -> MagnusCache:
        options = {"key_prefix": key_prefix, "codec": os.environ["MAGNUS_FOREIGN_CODEC"] or None, **options}
        manager.clear("cachelib")
        return MagnusCache(manager, *args, **options)

    request.cls.cache_factory = factory
    request.cls.cache_list = [factory(None)]


class TestMagnusCache(CommonTests, ClearTests, HasTests, DeleteManyWithPrefixTests, SerializerTests):  # type: ignore[misc]
    """All of the tests that cachelib has for its RedisCache."""

    test_types_have_all_base_methods = Uniformity.test_types_have_all_base_methods


del Uniformity
