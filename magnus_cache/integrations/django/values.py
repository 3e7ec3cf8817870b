"""Django's own types as values: text, responses, lazy objects, query dicts and models (see `models`).

Nothing is pickled. What is stored of a response is what a client gets: status, headers, cookies and content. Attributes
that a program has added to it are not.
"""

from collections.abc import Callable
from http.cookies import SimpleCookie
from typing import Any, Final

from django.db.models import Model, QuerySet
from django.http import (
    HttpResponse,
    HttpResponseBadRequest,
    HttpResponseBase,
    HttpResponseForbidden,
    HttpResponseGone,
    HttpResponseNotAllowed,
    HttpResponseNotFound,
    HttpResponseNotModified,
    HttpResponsePermanentRedirect,
    HttpResponseRedirect,
    HttpResponseServerError,
    JsonResponse,
    QueryDict,
)
from django.urls import reverse, reverse_lazy
from django.utils import translation
from django.utils.datastructures import MultiValueDict
from django.utils.functional import LazyObject, Promise
from django.utils.safestring import SafeString

from magnus_cache import CacheEncodeError, register_type
from magnus_cache.integrations.django.models import model_from, model_state

__all__ = ["register"]

_RESPONSES: Final[dict[str, Any]] = {
    kind.__name__: kind
    for kind in (
        HttpResponse, HttpResponseBadRequest, HttpResponseForbidden, HttpResponseGone, HttpResponseNotAllowed,
        HttpResponseNotFound, HttpResponseNotModified, HttpResponsePermanentRedirect, HttpResponseRedirect,
        HttpResponseServerError, JsonResponse,
    )
}  # fmt: skip
"""The classes that come back as they are; any other comes back as the nearest base among them."""

_LAZY: Final[dict[str, tuple[Callable[..., Any], Callable[..., Any]]]] = {
    "gettext": (translation.gettext, translation.gettext_lazy),
    "ngettext": (translation.ngettext, translation.ngettext_lazy),
    "pgettext": (translation.pgettext, translation.pgettext_lazy),
    "npgettext": (translation.npgettext, translation.npgettext_lazy),
    "reverse": (reverse, reverse_lazy),
}
"""The functions whose lazy results stay lazy, so that each reader gets a text in its own language."""


def _response_state(response: Any) -> list[Any]:
    if not isinstance(response, HttpResponse):
        raise _refusal(response, "a streaming response can be read only once: store its content")
    if not getattr(response, "is_rendered", True):
        raise _refusal(response, "it is not rendered: call its render() first, or store it in a post-render callback")
    kind = next(base.__name__ for base in type(response).__mro__ if _RESPONSES.get(base.__name__) is base)
    cookies = [
        [morsel.key, morsel.value, morsel.coded_value, {name: value for name, value in morsel.items() if value != ""}]
        for morsel in response.cookies.values()
    ]
    # The private ones are None unless they were set, and then follow from the status and the headers.
    how = [response.status_code, response._reason_phrase, response._charset]
    return [kind, how, list(response.headers.items()), cookies, response.content]


def _response_from(state: list[Any]) -> Any:
    kind, (status, reason, charset), headers, cookies, content = state
    response = _RESPONSES[kind].__new__(_RESPONSES[kind])
    # Not that of its own class, which takes other arguments, such as where to redirect to.
    HttpResponse.__init__(response, b"", status=status, reason=reason, charset=charset)
    for name in list(response.headers):
        del response.headers[name]
    for name, value in headers:
        response.headers[name] = value
    if content:
        response.content = content
    jar: SimpleCookie = response.cookies
    for key, value, coded, attributes in cookies:
        jar[key] = value
        jar[key].set(key, value, coded)
        jar[key].update(attributes)
    return response


def _lazy_state(lazy: Any) -> list[Any]:
    """Return the function of a lazy object with its arguments, or its value if the function is not in `_LAZY`."""
    arguments = lazy.__reduce__()[1]
    function, args, kwargs = arguments[:3]
    if not isinstance(args, tuple):
        # A plural whose number comes with its first use.
        function, _, number, given = arguments
        args, kwargs = (), {**given, "number": number}
    for name, (plain, _) in _LAZY.items():
        if function is plain:
            return [name, list(args), dict(kwargs)]
    return [None, function(*args, **kwargs)]


def _lazy_from(state: list[Any]) -> Any:
    if state[0] is None:
        return state[1]
    name, args, kwargs = state
    return _LAZY[name][1](*args, **kwargs)


def _wrapped(lazy: Any) -> Any:
    """Return the object that a lazy object stands for; ``request.user`` is one."""
    return lazy.__reduce__()[1][0]


def _refuse_queryset(queryset: Any) -> Any:
    raise _refusal(queryset, "a query is not a value: store its rows, such as list(queryset)")


def _refusal(value: Any, problem: str) -> CacheEncodeError:
    kind = type(value)
    return CacheEncodeError(f"{kind.__module__}.{kind.__qualname__}", f"{kind.__name__}: {problem}")


def _query_state(query: Any) -> list[Any]:
    return [query.urlencode(), query.encoding, query._mutable]


def _query_from(state: list[Any]) -> Any:
    text, encoding, mutable = state
    return QueryDict(text, mutable=mutable, encoding=encoding)


def _unchanged(value: Any) -> Any:
    return value


def register() -> None:
    """Register Django's types. Importing the backend does this; call it again after a reload of Django."""
    register_type(SafeString, name="django.SafeString", encode=str.__str__, decode=SafeString)
    register_type(
        HttpResponseBase, name="django.HttpResponse", encode=_response_state, decode=_response_from, subclasses=True
    )
    register_type(Promise, name="django.lazy", encode=_lazy_state, decode=_lazy_from, subclasses=True)
    register_type(LazyObject, name="django.LazyObject", encode=_wrapped, decode=_unchanged, subclasses=True)
    register_type(QueryDict, name="django.QueryDict", encode=_query_state, decode=_query_from)
    register_type(
        MultiValueDict, name="django.MultiValueDict", encode=lambda several: [*several.lists()], decode=MultiValueDict
    )
    register_type(Model, name="django.Model", encode=model_state, decode=model_from, subclasses=True)
    register_type(QuerySet, name="django.QuerySet", encode=_refuse_queryset, decode=_unchanged, subclasses=True)
