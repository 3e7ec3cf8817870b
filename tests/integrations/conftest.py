"""Fixtures of the edges' tests: caches on the server under test, a web server to program, and Django's cache."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import httpx2
import pytest

from magnus_cache import AsyncCacheManager, CacheManager
from tests.support.llm_server import LLMServer
from tests.support.origin import Origin, serving


@pytest.fixture
async def cache(url: str) -> AsyncIterator[AsyncCacheManager]:
    async with AsyncCacheManager(redis_url=url) as cache:
        yield cache


@pytest.fixture
def manager(url: str) -> Iterator[CacheManager]:
    with CacheManager(redis_url=url) as manager:
        yield manager


@pytest.fixture
def blocking(manager: CacheManager) -> CacheManager:
    """The blocking cache, in tests that have an awaited one beside it."""
    return manager


@pytest.fixture
def origin() -> Iterator[Origin]:
    with serving() as origin:
        yield origin


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def service() -> Iterator[LLMServer]:
    with LLMServer() as started:
        yield started


@pytest.fixture
def use(url: str) -> Iterator[str]:
    """Use the server for Django's default cache."""
    # Not above: it sets Django up, which the other edges' tests do not need.
    from tests.support.django_site import on

    with on(url):
        yield url


@pytest.fixture(params=["blocking", "awaited"])
def face(request: pytest.FixtureRequest, use: str) -> Any:
    """Django's default cache, and its methods that are awaited."""
    from django.core.cache import caches

    from tests.support.django_site import Awaited

    return caches["default"] if request.param == "blocking" else Awaited()
