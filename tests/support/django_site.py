"""A small Django site for the tests: settings, models and views, all on the cache of `CACHES`."""

from collections.abc import Callable
from typing import Any

import django
from django.conf import settings

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        CACHES={"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}},
        CACHE_MIDDLEWARE_SECONDS=60,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"],
        LANGUAGE_CODE="en",
        REST_FRAMEWORK={
            "DEFAULT_AUTHENTICATION_CLASSES": [],
            "DEFAULT_THROTTLE_RATES": {"anon": "3/min"},
            "UNAUTHENTICATED_USER": None,
        },
        ROOT_URLCONF=__name__,
        SECRET_KEY="of the tests",
        SESSION_ENGINE="django.contrib.sessions.backends.cache",
        SILENCED_SYSTEM_CHECKS=["django_ratelimit.E003", "django_ratelimit.W001"],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
        USE_TZ=True,
    )
    django.setup()

from asgiref.sync import async_to_sync
from django.core.cache import cache, caches
from django.db import models
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import override_settings
from django.urls import path
from django.views.decorators.cache import cache_page
from django.views.decorators.vary import vary_on_headers
from django_ratelimit.decorators import ratelimit
from rest_framework.response import Response
from rest_framework.throttling import AnonRateThrottle
from rest_framework.views import APIView

BACKEND = "magnus_cache.integrations.django.MagnusCache"

calls: list[str] = []
"""The views that have run."""


def entry(url: Any, **more: Any) -> dict[str, Any]:
    """Return an entry of ``CACHES``."""
    return {"BACKEND": BACKEND, "LOCATION": url, **more}


def on(url: str, *, others: dict[str, dict[str, Any]] | None = None, **more: Any) -> Any:
    """Use a server for the default cache of Django, and for other ones."""
    further = {name: entry(url, **options) for name, options in (others or {}).items()}
    return override_settings(CACHES={"default": entry(url, **more), **further})


class Awaited:
    """The methods of a cache of Django that begin with ``a``, each awaited on an event loop of its own."""

    def __init__(self, alias: str = "default") -> None:
        self._alias = alias

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*args: Any, **options: Any) -> Any:
            return await getattr(caches[self._alias], f"a{name}")(*args, **options)

        return async_to_sync(call)


class Author(models.Model):
    name = models.CharField(max_length=20)
    photo = models.FileField(blank=True)
    key = models.BinaryField(default=b"")

    class Meta:
        app_label = "auth"


class Book(models.Model):
    class Kind(models.TextChoices):
        NOVEL = "n", "Novel"

    title = models.CharField(max_length=20)
    kind = models.CharField(max_length=1, choices=Kind.choices)
    author = models.ForeignKey(Author, models.CASCADE)

    class Meta:
        app_label = "auth"


def plain(request: HttpRequest) -> HttpResponse:
    calls.append(request.get_full_path())
    response = HttpResponse(f"{len(calls)} for {request.headers.get('X-Who', 'all')}")
    response.set_cookie("seen", "yes", max_age=60)
    return response


def page(request: HttpRequest) -> TemplateResponse:
    calls.append(request.path)
    template = engines["django"].from_string("{{ name }} & {{ count }}")
    return TemplateResponse(request, template, {"name": "<Ada>", "count": len(calls)})


loads: dict[str, Callable[[], str]] = {}
"""What the view `slow` loads by, for each key."""


def slow(request: HttpRequest) -> HttpResponse:
    key = request.GET["key"]
    return HttpResponse(cache.get_or_set(key, loads[key]))


def visits(request: HttpRequest) -> JsonResponse:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return JsonResponse({"visits": request.session["visits"]})


def leave(request: HttpRequest) -> HttpResponse:
    request.session.flush()
    return HttpResponse("bye")


@ratelimit(key="ip", rate="3/h", block=True)
def limited(request: HttpRequest) -> HttpResponse:
    return HttpResponse("fine")


class Throttled(APIView):
    throttle_classes = (AnonRateThrottle,)

    def get(self, request: Any) -> Response:
        return Response({"fine": True})


async def awaited(request: HttpRequest) -> JsonResponse:
    await cache.aset("seen", [1], 60)
    return JsonResponse({"seen": await cache.aget("seen"), "count": await cache.aget_or_set("count", lambda: 5)})


urlpatterns = [
    path("slow", slow),
    path("plain", vary_on_headers("X-Who")(plain)),
    path("page", cache_page(60)(page)),
    path("visits", visits, name="visits"),
    path("leave", leave),
    path("limited", limited),
    path("throttled", Throttled.as_view()),
    path("awaited", awaited),
]
