"""What of Django's types is stored as it is, what is refused, and codecs of the user's choice."""

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache import cache
from django.db import connection
from django.db.models import Count
from django.http import (
    HttpResponse,
    HttpResponseNotModified,
    HttpResponseRedirect,
    JsonResponse,
    QueryDict,
    StreamingHttpResponse,
)
from django.template import engines
from django.template.response import TemplateResponse
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import reverse_lazy
from django.utils.datastructures import MultiValueDict
from django.utils.functional import Promise, SimpleLazyObject, lazystr
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext_lazy, ngettext_lazy, override, pgettext_lazy

from magnus_cache.integrations.django import UnstorableError, models
from tests.support import django_site as site
from tests.support.django_site import on


class Apps:
    """Applications that have no models any more."""

    def get_model(self, label: str) -> Any:
        raise LookupError(label)


# -- values -----------------------------------------------------------------------------------------------------


def test_text_stays_safe_or_lazy(use: str) -> None:
    cache.set("k", {"safe": mark_safe("<b>"), "html": format_html("<i>{}</i>", "&")})
    found = cache.get("k")
    assert type(found["safe"]) is type(found["html"]) is SafeString
    assert found == {"safe": "<b>", "html": "<i>&amp;</i>"}
    texts = [gettext_lazy("Yes"), ngettext_lazy("%(n)d day", "%(n)d days", "n"), pgettext_lazy("month", "May")]
    cache.set("k", [*texts, reverse_lazy("visits")])
    yes, days, month, place = cache.get("k")
    assert isinstance(place, Promise)
    assert place == "/visits"
    assert month == "May"
    with override("de"):
        assert yes == "Ja"
    assert yes == "Yes"
    assert days % {"n": 2} == "2 days"
    # A lazy text of another function is stored as what it is now.
    cache.set("k", [lazystr("text"), ngettext_lazy("day", "days", 2)])
    assert cache.get("k") == ["text", "days"]


def test_responses_are_stored_as_clients_get_them(use: str) -> None:
    page = JsonResponse({"a": 1}, status=201, reason="Well made")
    page.set_cookie("one", 'quoted; "é', max_age=5, secure=True, samesite="Lax")
    page.delete_cookie("two")
    page.headers["X-List"] = "1, 2"
    texts = HttpResponse("ä".encode("latin-1"), content_type="text/plain; charset=latin-1")
    for response in (page, texts, HttpResponseRedirect("/there"), HttpResponseNotModified(), HttpResponse()):
        cache.set("k", response)
        found = cache.get("k")
        assert type(found) is type(response)
        assert found.serialize() == response.serialize()
        assert (found.status_code, found.reason_phrase) == (response.status_code, response.reason_phrase)
        assert found.cookies == response.cookies
        assert found.cookies.output() == response.cookies.output()
        assert found.charset == response.charset

    class Own(JsonResponse):
        pass

    cache.set("k", Own({}))
    assert type(cache.get("k")) is JsonResponse


def test_a_template_response_is_stored_once_it_is_rendered(use: str) -> None:
    template = engines["django"].from_string("{{ name }}")
    response = TemplateResponse(RequestFactory().get("/"), template, {"name": "<Ada>"})
    with pytest.raises(UnstorableError, match="not rendered"):
        cache.set("k", response)
    cache.set("k", response.render())
    assert cache.get("k").content == b"&lt;Ada&gt;"


def test_queries_of_requests(use: str) -> None:
    query = QueryDict("a=1&a=2&b=%C3%A4", mutable=True)
    several = MultiValueDict({"a": [1, 2]})
    cache.set("k", (query, several))
    found = cache.get("k")
    assert found == (query, several)
    found[0]["a"] = "3"


@pytest.fixture
def tables() -> Iterator[None]:
    with connection.schema_editor() as editor:
        editor.create_model(site.Author)
        editor.create_model(site.Book)
    yield
    connection.close()


@pytest.mark.usefixtures("tables")
def test_models_come_back_as_read_from_the_database(use: str) -> None:
    author = site.Author.objects.create(name="Ada", photo="ada.png", key=b"\x00k")
    assert author.photo.name == "ada.png"  # which makes a FieldFile of it
    site.Book.objects.create(title="Notes", kind=site.Book.Kind.NOVEL, author=author)
    book = site.Book.objects.select_related("author").annotate(count=Count("author")).defer("kind").get()
    cache.set("k", [book, author, SimpleLazyObject(lambda: author), site.Book(kind=site.Book.Kind.NOVEL)])
    found, same, lazy, unsaved = cache.get("k")
    assert found == book
    assert same == lazy == author
    assert type(lazy) is site.Author
    assert found.count == 1
    assert found.get_deferred_fields() == {"kind"}
    assert found._state.db == "default"
    assert same.photo.name == "ada.png"
    assert bytes(same.key) == b"\x00k"
    assert unsaved._state.adding
    assert type(unsaved.kind) is str
    assert not same._state.adding
    with CaptureQueriesContext(connection) as queries:
        assert found.author.name == "Ada"
    assert len(queries) == 0
    assert found.kind == "n"  # which is read now
    found.title = "Letters"
    found.save()
    assert site.Book.objects.get().title == "Letters"


def test_a_model_with_other_fields_than_before_is_a_miss(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.set("k", site.Author(name="Ada"))
    cache.set("gone", site.Author(name="Ada"))
    fields = site.Author._meta.concrete_fields
    monkeypatch.setitem(site.Author._meta.__dict__, "concrete_fields", fields[:-1])
    assert cache.get("k") is None
    monkeypatch.setitem(site.Author._meta.__dict__, "concrete_fields", (*fields, site.Book._meta.get_field("title")))
    assert cache.get("k") is None
    monkeypatch.undo()
    monkeypatch.setattr(models, "apps", Apps())
    assert cache.get("gone") is None
    with pytest.raises(UnstorableError, match=r"the model auth.Author cannot be stored: it is not in INSTALLED_APPS"):
        cache.set("k", site.Author(name="Ada"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), r"value is of type object.*OPTIONS\[\"codec\"\] = \"pickle\""),
        ({"rows": [site.Book.objects.all()]}, r'value\["rows"\]\[0\]: QuerySet: .*list\(queryset\).*codec'),
        (StreamingHttpResponse([b"x"]), "read only once"),
        (SimpleLazyObject(object), r"cannot store builtins\.object.*codec"),
        (site.Author(name=object()), "object.*codec"),
    ],
    ids=["object", "query", "stream", "lazy", "field"],
)
def test_what_cannot_be_stored_is_a_clear_error(face: Any, value: Any, message: str) -> None:
    for write in (face.set, face.add):
        with pytest.raises(UnstorableError, match=message) as caught:
            write("k", value)
    # Code for Django's other caches expects this one.
    assert isinstance(caught.value, pickle.PicklingError)
    assert not face.has_key("k")


# -- pickle and other codecs ------------------------------------------------------------------------------------


class Own:
    """An object that only the user can store."""

    def __init__(self, name: str) -> None:
        self.name = name


def dumps(value: Own) -> bytes:
    return value.name.encode()


def loads(data: bytes) -> Own:
    return Own(data.decode())


class Serializer:
    def dumps(self, value: Own) -> bytes:
        return dumps(value)

    def loads(self, data: bytes) -> Own:
        return loads(data)


PAIR = (dumps, loads)
CODECS: list[Any] = [
    "pickle", PAIR, [dumps, loads], f"{__name__}.PAIR", f"{__name__}.Serializer", Serializer, Serializer(), __name__,
]  # fmt: skip


@pytest.mark.parametrize("codec", CODECS, ids=range(len(CODECS)))
def test_a_codec_of_the_users_choice(url: str, codec: Any) -> None:
    with on(url, OPTIONS={"codec": codec}):
        cache.set("k", Own("Ada"))
        cache.manager.clear("other")  # what is near is decoded again
        assert cache.get("k").name == "Ada"
        cache.set("n", 1)
        assert cache.incr("n") == 2


def test_what_was_not_asked_for_is_never_unpickled(url: str) -> None:
    with on(url, OPTIONS={"codec": "pickle"}):
        cache.set("k", Own("Ada"))
        with pytest.raises(UnstorableError, match="PicklingError|AttributeError") as caught:
            cache.set("other", lambda: 1)
        assert "OPTIONS" not in str(caught.value)
    with on(url):
        assert cache.get("k") is None
        cache.set("k", "plain")
    with on(url, OPTIONS={"codec": "pickle"}):
        assert cache.get("k") is None
