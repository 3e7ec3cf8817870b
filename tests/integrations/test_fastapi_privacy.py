"""No response that was made for one user is given to another: not from the cache, not as a 304, not while it loads."""

import asyncio
import itertools
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection

from magnus_cache import AsyncCacheManager, CacheArgumentError
from magnus_cache.integrations.fastapi import Cached, cache_response
from tests.integrations.test_fastapi import asking
from tests.support.parameters import shown
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.anyio

ADA, GRACE, ANYONE = {"authorization": "Bearer ada"}, {"authorization": "Bearer grace"}, dict[str, str]()


def user_of(request: HTTPConnection) -> str | None:
    """Return who asks, by any of the ways that the applications here know."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    return given or request.cookies.get("session") or request.headers.get("x-user") or None


def app_of(cache: AsyncCacheManager, way: str = "decorated", **options: Any) -> FastAPI:
    """Return an application that tells each user who they are, and counts the calls of its endpoint."""
    app = FastAPI()
    app.state.calls = 0
    dependencies = [Depends(Cached("pages", cache=cache, **options))] if way == "dependency" else []
    decorate: Any = cache_response("pages", cache=cache, **options) if way == "decorated" else lambda function: function

    @app.get("/me", dependencies=dependencies)
    @decorate
    async def me(request: Request) -> str:
        app.state.calls += 1
        await asyncio.sleep(0)
        return user_of(request) or "anyone"

    return app


@pytest.mark.parametrize("way", ["decorated", "dependency"])
@pytest.mark.parametrize("kind", ["authorization", "cookie"])
async def test_nothing_is_stored_for_a_request_with_credentials(cache: AsyncCacheManager, way: str, kind: str) -> None:
    """PITFALLS, 32: one user's body was served to another, and to an anonymous caller."""
    app = app_of(cache, way)
    ada, grace = (
        {"authorization": f"Bearer {user}"} if kind == "authorization" else {"cookie": f"session={user}"}
        for user in ("ada", "grace")
    )
    async with asking(app) as client:
        for headers, name in (
            (ada, "ada"),
            (grace, "grace"),
            ({}, "anyone"),
            (ada, "ada"),
            (grace, "grace"),
            ({}, "anyone"),
        ):
            found = await client.get("/me", headers=headers)
            assert found.json() == name
            assert ("etag" in found.headers) is (name == "anyone")
            assert (found.headers["cache-control"] == "private") is (name != "anyone")
        etag = (await client.get("/me")).headers["etag"]
        assert (await client.get("/me", headers={**ada, "if-none-match": etag})).json() == "ada"
        asked = await client.get("/me", headers={**ada, "cache-control": "only-if-cached"})
        assert asked.status_code == 504
    assert app.state.calls == 6
    assert len([key async for key in cache.scan("pages")]) == 1


async def test_users_who_ask_at_once_do_not_share_a_load(cache: AsyncCacheManager) -> None:
    app = app_of(cache)
    async with asking(app) as client:
        requests = (client.get("/me", headers={"authorization": f"Bearer {number % 3}"}) for number in range(12))
        found = [response.json() for response in await asyncio.gather(*requests)]
    assert found == [str(number % 3) for number in range(12)]
    assert app.state.calls == 12


async def bearer(given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]) -> Any:
    return None if given is None else given.credentials


VARIES: dict[str, Any] = {
    "header": "Authorization",
    "several": ["Accept-Language", "authorization"],
    "function": lambda request: user_of(request),
    "annotated": user_of,
    "dependency": Depends(bearer),
    "plain dependency": bearer,
}


@pytest.mark.parametrize("way", ["decorated", "dependency"])
@pytest.mark.parametrize("vary", VARIES)
async def test_what_varies_by_user_is_stored_for_each(cache: AsyncCacheManager, way: str, vary: str) -> None:
    app = app_of(cache, way, vary=VARIES[vary])
    etags = dict[str, str]()
    async with asking(app) as client:
        for headers, name in ((ADA, "ada"), (GRACE, "grace"), (ANYONE, "anyone")) * 2:
            found = await client.get("/me", headers=headers)
            assert found.json() == name
            assert found.headers["cache-control"] == "private, max-age=300"
            etags[name] = found.headers["etag"]
        assert app.state.calls == 3
        assert len(set(etags.values())) == 3
        # A 304 is for the user whose ETag it is.
        for headers, status in ((ADA, 304), (GRACE, 200), (ANYONE, 200)):
            found = await client.get("/me", headers={**headers, "if-none-match": etags["ada"]})
            assert found.status_code == status
    if vary == "header":
        assert "authorization" in found.headers["vary"].lower()


@pytest.mark.parametrize("vary", ["Authorization", user_of, Depends(bearer)])
async def test_no_credential_can_be_read_in_a_key(cache: AsyncCacheManager, vary: Any) -> None:
    async with asking(app_of(cache, vary=vary)) as client:
        assert (await client.get("/me", headers=ADA)).json() == "ada"
    (key,) = [key async for key in cache.scan("pages")]
    assert "/me" in str(key)
    assert "ada" not in str(key)


async def test_a_user_header_of_a_gateway(cache: AsyncCacheManager) -> None:
    app = app_of(cache, vary="X-User")
    async with asking(app) as client:
        for headers in (
            {"x-user": "ada"},
            {"x-user": "grace"},
            {"x-user": "ada", "cookie": "tracking=1"},
            {},
            {"x-user": ""},
        ):
            assert (await client.get("/me", headers=headers)).json() == (headers.get("x-user") or "anyone")
        assert app.state.calls == 4
        # The gateway has not said who this is.
        for name in ("ada", "grace"):
            found = await client.get("/me", headers={"cookie": f"session={name}"})
            assert found.json() == name


@pytest.mark.parametrize(
    ("vary", "headers"),
    [
        ("Accept-Language", {"authorization": "Bearer ada"}),
        ("Accept", {"cookie": "session=ada"}),
        (("Origin", "User-Agent"), {"cookie": "session=ada"}),
        ("Authorization", {"cookie": "session=ada"}),
        ("Cookie", {"authorization": "Bearer ada"}),
        ("Authorization", {"authorization": "Bearer ada", "cookie": "session=ada"}),
        (("Authorization", "X-User"), {"authorization": "Bearer ada", "cookie": "session=ada"}),
        (lambda request: None, {"cookie": "session=ada"}),
        (Depends(bearer), {"cookie": "session=ada"}),
    ],
    ids=shown,
)
async def test_a_vary_that_does_not_say_who_asks_stores_nothing(
    cache: AsyncCacheManager, vary: Any, headers: dict[str, str]
) -> None:
    app = app_of(cache, vary=vary)
    async with asking(app) as client:
        for _ in range(2):
            assert (await client.get("/me", headers=headers)).json() == "ada"
    assert app.state.calls == 2
    assert [key async for key in cache.scan("pages")] == []


async def test_the_number_zero_is_a_user_and_no_user_is_another(cache: AsyncCacheManager) -> None:
    users: dict[str, Any] = {"0": 0, "": "", "none": None, "false": "False"}
    app, calls = FastAPI(), itertools.count()

    @app.get("/me")
    @cache_response("pages", cache=cache, vary=lambda request: users[request.headers["x-case"]])
    async def me() -> int:
        return next(calls)

    async with asking(app) as client:
        found = [(await client.get("/me", headers={"x-case": name})).json() for name in [*users] * 2]
    assert found == [0, 1, 2, 3] * 2


async def test_what_is_no_key_is_an_error(cache: AsyncCacheManager) -> None:
    app = app_of(cache, vary=lambda request: object())
    async with asking(app) as client:
        with pytest.raises(CacheArgumentError, match="key"):
            await client.get("/me")


async def test_an_api_key_of_a_security_dependency_is_a_credential(cache: AsyncCacheManager) -> None:
    app, calls = FastAPI(), itertools.count(1)
    scheme = APIKeyHeader(name="X-API-Key", auto_error=False)

    async def user(key: Annotated[str | None, Depends(scheme)]) -> str | None:
        return key

    @app.get("/me")
    @cache_response("pages", cache=cache)
    async def me(user: Annotated[str | None, Depends(user)]) -> str:
        return f"{user} {next(calls)}"

    @app.get("/mine")
    @cache_response("pages", cache=cache, vary=Depends(user))
    async def mine(user: Annotated[str | None, Depends(user)]) -> str:
        return f"{user} {next(calls)}"

    async with asking(app) as client:
        for number, key in enumerate(("ada", "ada", "grace"), 1):
            assert (await client.get("/me", headers={"x-api-key": key})).json() == f"{key} {number}"
        for key, number in (("ada", 4), ("ada", 4), ("grace", 5)):
            assert (await client.get("/mine", headers={"x-api-key": key})).json() == f"{key} {number}"


# -- cookies and sessions -----------------------------------------------------------------------------------


async def test_a_response_that_sets_a_cookie_is_its_callers_alone(cache: AsyncCacheManager) -> None:
    app, visitors = FastAPI(), itertools.count(1)
    begun, release = itertools.count(), asyncio.Event()

    def visited(response: Response) -> str:
        visitor = next(visitors)
        response.set_cookie("visitor", str(visitor))
        return f"visitor {visitor}"

    @app.get("/parameter")
    @cache_response("pages", cache=cache)
    async def parameter(response: Response) -> str:
        next(begun)
        await release.wait()
        return visited(response)

    @app.get("/returned")
    @cache_response("pages", cache=cache)
    async def returned() -> Response:
        next(begun)
        await release.wait()
        response = PlainTextResponse()
        response.body = visited(response).encode()
        response.headers["content-length"] = str(len(response.body))
        return response

    async def dependency(response: Response) -> str:
        return visited(response)

    @app.get("/dependency")
    @cache_response("pages", cache=cache)
    async def depending(visitor: Annotated[str, Depends(dependency)]) -> str:
        next(begun)
        await release.wait()
        return visitor

    for number, path in enumerate(("/parameter", "/returned", "/dependency")):
        release.clear()
        before = cache._engine.state.flights.joined
        requests = []
        for _ in range(4):
            # A client of its own for each: httpx keeps cookies.
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
            requests.append(asyncio.create_task(_got(client, path)))
        await wait_until_async(lambda before=before: cache._engine.state.flights.joined == before + 3)  # type: ignore[misc]
        release.set()
        found = await asyncio.gather(*requests)
        for response in found:
            visitor = response.cookies["visitor"]
            assert response.text.strip('"') == f"visitor {visitor}"
            assert "etag" not in response.headers
        assert len({response.text for response in found}) == 4, number
    assert [key async for key in cache.scan("pages")] == []


async def _got(client: httpx.AsyncClient, path: str) -> httpx.Response:
    async with client:
        return await client.get(path)


async def test_a_cookie_is_not_stored_with_a_users_response(cache: AsyncCacheManager) -> None:
    app, calls = FastAPI(), itertools.count(1)

    @app.get("/me")
    @cache_response("pages", cache=cache, vary="Authorization")
    async def me(request: Request, response: Response) -> str:
        call = next(calls)
        response.set_cookie("call", str(call))
        return f"{user_of(request)} {call}"

    first, second = [
        await _got(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=ADA), "/me")
        for _ in range(2)
    ]
    assert first.json() == second.json() == "ada 1"
    assert first.cookies["call"] == "1"
    assert "set-cookie" not in second.headers
    again = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=ADA)
    assert (await _got(again, "/me")).status_code == 200
    # Of an anonymous caller it is not stored: the next one is another.
    strangers = [
        await _got(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test"), "/me")
        for _ in range(2)
    ]
    assert [response.json() for response in strangers] == ["None 2", "None 3"]


async def test_a_login_on_the_way(cache: AsyncCacheManager) -> None:
    """A session begins within a request that came without a cookie; its middleware sets the cookie after the cache."""
    app, calls = FastAPI(middleware=[Middleware(SessionMiddleware, secret_key="secret")]), itertools.count(1)

    @app.get("/page")
    @cache_response("pages", cache=cache)
    async def page(request: Request, login: str = "") -> str:
        if login:
            request.session["user"] = login
        return f"{request.session.get('user')} {next(calls)}"

    async with asking(app) as ada, asking(app) as stranger:
        assert (await stranger.get("/page")).json() == (await ada.get("/page")).json() == "None 1"
        assert (await ada.get("/page?login=ada")).json() == "ada 2"
        assert (await stranger.get("/page?login=ada")).json() == "ada 3"
        stranger.cookies.clear()
        assert (await ada.get("/page")).json() == "ada 4"
        assert (await stranger.get("/page")).json() == "None 1"
        ada.cookies.clear()
        assert (await ada.get("/page")).json() == "None 1"


async def test_a_user_that_a_middleware_knows(cache: AsyncCacheManager) -> None:
    class ByAddress(AuthenticationBackend):
        async def authenticate(self, conn: HTTPConnection) -> Any:
            name = conn.headers.get("x-certificate")
            return None if name is None else (AuthCredentials(["authenticated"]), SimpleUser(name))

    app = FastAPI(middleware=[Middleware(AuthenticationMiddleware, backend=ByAddress())])
    calls = itertools.count(1)

    @app.get("/me")
    @cache_response("pages", cache=cache)
    async def me(request: Request) -> str:
        return f"{request.user.display_name} {next(calls)}"

    async with asking(app) as client:
        for number, name in enumerate(("ada", "grace", "ada"), 1):
            assert (await client.get("/me", headers={"x-certificate": name})).json() == f"{name} {number}"
        assert (await client.get("/me")).json() == (await client.get("/me")).json() == " 4"


async def test_an_error_for_a_user_is_not_anothers(cache: AsyncCacheManager) -> None:
    app = FastAPI()

    @app.get("/me")
    @cache_response("pages", cache=cache, vary="Authorization", negative={HTTPException: 60})
    async def me(request: Request) -> str:
        raise HTTPException(403, detail=user_of(request))

    async with asking(app) as client:
        found = [(await client.get("/me", headers=headers)).json()["detail"] for headers in (ADA, GRACE, ADA)]
    assert found == ["ada", "grace", "ada"]


async def test_a_header_parameter_tells_users_apart(cache: AsyncCacheManager) -> None:
    app = FastAPI()

    @app.get("/me")
    @cache_response("pages", cache=cache)
    async def me(x_user: Annotated[str, Header()] = "anyone") -> str:
        return x_user

    async with asking(app) as client:
        for name in ("ada", "grace"):
            assert (await client.get("/me", headers={"x-user": name})).json() == name
        assert (await client.get("/me")).json() == "anyone"


# -- what says nothing about who asks ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vary",
    [
        "HX-Request", "Turbo-Frame", "X-Requested-With", "X-Inertia", "Sec-Fetch-Dest", "Sec-CH-UA", "Accept-Version",
        "X-API-Version", "X-Forwarded-Proto", "X-Country", "CF-IPCountry", "X-Timezone", "Device-Memory",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["authorization", "cookie"])
async def test_a_header_that_only_selects_a_form_is_no_user(cache: AsyncCacheManager, vary: str, kind: str) -> None:
    app = app_of(cache, vary=vary)
    async with asking(app) as client:
        for name in ("ada", "grace"):
            who = {"authorization": f"Bearer {name}"} if kind == "authorization" else {"cookie": f"session={name}"}
            assert (await client.get("/me", headers={vary: "1", **who})).json() == name
        assert [key async for key in cache.scan("pages")] == []
        # Without credentials it is part of the key, like any other.
        for value in ("1", "2", "1"):
            assert (await client.get("/me", headers={vary: value})).json() == "anyone"
    assert app.state.calls == 4


@pytest.mark.parametrize(
    "vary",
    ["X-User", lambda request: request.headers.get("x-user", ""), lambda request: request.cookies.get("user", "")],
    ids=["header", "function", "cookie"],
)
@pytest.mark.parametrize("empty", [{}, {"x-user": ""}], ids=["absent", "empty"])
async def test_an_empty_name_is_no_user(cache: AsyncCacheManager, vary: Any, empty: dict[str, str]) -> None:
    """As from a gateway that has not said who this is, or a function with an empty default."""
    app = app_of(cache, vary=vary)
    async with asking(app) as client:
        for name in ("ada", "grace"):
            assert (await client.get("/me", headers={**empty, "authorization": f"Bearer {name}"})).json() == name
            assert (await client.get("/me", headers={**empty, "cookie": f"session={name}"})).json() == name
        assert (await client.get("/me", headers=empty)).json() == "anyone"


@pytest.mark.parametrize(
    "name", ["X-API-Key", "X-Auth-Token", "X-Forwarded-User", "X-Amzn-Oidc-Identity", "Cf-Access-Jwt-Assertion"]
)
async def test_a_header_that_often_has_a_credential_keeps_a_response_private(
    cache: AsyncCacheManager, name: str
) -> None:  # fmt: skip
    """The endpoint may read it from the request itself, of which no declaration tells."""
    app, calls = FastAPI(), itertools.count(1)

    @app.get("/me")
    @cache_response("pages", cache=cache)
    async def me(request: Request) -> str:
        return f"{request.headers.get(name, 'anyone')} {next(calls)}"

    @app.get("/mine")
    @cache_response("pages", cache=cache, vary=name)
    async def mine(request: Request) -> str:
        return f"{request.headers.get(name, 'anyone')} {next(calls)}"

    async with asking(app) as client:
        for number, who in enumerate(("ada", "ada", "grace"), 1):
            answer = await client.get("/me", headers={name: who})
            assert (answer.json(), answer.headers["cache-control"]) == (f"{who} {number}", "private")
        for who, number in (("ada", 4), ("ada", 4), ("grace", 5)):
            assert (await client.get("/mine", headers={name: who})).json() == f"{who} {number}"


@pytest.mark.parametrize(
    "condition",
    [
        {"if-none-match": '"v1"'},
        {"if-none-match": "*"},
        {"if-modified-since": "Mon, 01 Jan 2024 00:00:00 GMT"},
    ],
    ids=["etag", "any", "date"],
)
async def test_a_304_by_an_etag_of_the_endpoint_is_not_another_users(
    cache: AsyncCacheManager, condition: dict[str, str]
) -> None:  # fmt: skip
    """One that an endpoint sets is that of a version of its data, and may be the same for all users."""
    app = FastAPI()

    @app.get("/me")
    @cache_response("pages", cache=cache, vary=user_of)
    async def me(request: Request) -> Response:
        headers = {"etag": '"v1"', "last-modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        return PlainTextResponse(user_of(request) or "anyone", headers=headers)

    async with asking(app) as client:
        for _ in range(2):
            for who, name in ((ADA, "ada"), (GRACE, "grace")):
                assert (await client.get("/me", headers={**who, **condition})).text == name
        # After a logout in the same browser.
        for _ in range(2):
            assert (await client.get("/me", headers=condition)).text == "anyone"


# -- any mix of requests ------------------------------------------------------------------------------------

NAMES = ("ada", "grace", "joan")
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "authorization": st.sampled_from(NAMES).map("Bearer {}".format),
        "cookie": st.sampled_from((*(f"session={name}" for name in NAMES), "tracking=1")),
        "x-user": st.sampled_from((*NAMES, "")),
        "accept-language": st.sampled_from(("de", "fr")),
        "cache-control": st.sampled_from(("no-cache", "no-store", "max-age=0", "only-if-cached", "max-age=60")),
    },
)
ASKED = st.tuples(HEADERS, st.sampled_from(("/me", "/me?login=1", "/mine")), st.booleans())
MIXES: dict[str, Any] = {
    "nothing": (), "language": "Accept-Language", "authorization": "Authorization", "cookie": "Cookie",
    "both": ("Authorization", "Cookie"), "user": "X-User", "function": user_of, "dependency": Depends(user_of),
}  # fmt: skip


@pytest.mark.parametrize("vary", MIXES)
@settings(max_examples=12)
@given(rounds=st.lists(st.lists(ASKED, min_size=1, max_size=5), min_size=1, max_size=4))
def test_no_response_made_for_one_user_is_given_to_another(vary: str, rounds: list[list[Any]]) -> None:
    """Whatever users and strangers ask, one after another and at once, with their ETags of any URL and user."""
    asyncio.run(_mixed(MIXES[vary], rounds))


async def _mixed(vary: Any, rounds: list[list[Any]]) -> None:
    async with AsyncCacheManager(redis_enabled=False) as cache:
        app, logins = FastAPI(), itertools.count(1)

        @app.get("/me")
        @app.get("/mine")
        @cache_response("pages", 60, cache=cache, vary=vary)
        async def me(request: Request, response: Response, login: int = 0) -> dict[str, Any]:
            await asyncio.sleep(0)
            known = {name: request.headers.get(name) for name in ("authorization", "cookie")}
            if vary in (MIXES["user"], user_of):
                known["x-user"] = request.headers.get("x-user") or None
            who: dict[str, Any] = {"known": known, "path": request.url.path}
            if login:
                # A session begins: the response is this caller's alone.
                who["login"] = str(next(logins))
                response.set_cookie("session", who["login"])
            return who

        etags: dict[str, list[Any]] = {}
        for asked in rounds:
            await asyncio.gather(*(_checked(app, vary, etags, *each) for each in asked))


async def _checked(
    app: FastAPI, vary: Any, etags: dict[str, list[Any]], headers: dict[str, str], path: str, conditional: bool
) -> None:
    given = {"if-none-match": ", ".join(etags)} if conditional and etags else {}
    async with asking(app) as client:
        found = await client.get(path, headers={**headers, **given})
    if found.status_code == 504:
        assert headers["cache-control"] == "only-if-cached"
        return
    who = (headers.get("authorization"), headers.get("cookie"))
    url = path.partition("?")[0]
    if found.status_code == 304:
        # The client has this response from this URL, as this user.
        answers = etags[found.headers["etag"]]
    else:
        answers = [(found.json(), headers, path)]
        if "etag" in found.headers:
            etags.setdefault(found.headers["etag"], []).append(answers[0])
    for answer, of, its_path in answers:
        assert (answer["path"], its_path) == (url, path)
        told = answer["known"]
        if vary == "X-User" and headers.get("x-user") is not None:
            # The user is whom the gateway names, whatever else the request has.
            assert told["x-user"] == (headers["x-user"] or None)
            continue
        if vary in (MIXES["function"], MIXES["dependency"]) and _name(headers) is not None:
            assert _name(of) == _name(headers)
            continue
        assert (told["authorization"], told["cookie"]) == who
        if "login" in answer and not any(who):
            # Nothing says who this is, and so nobody else gets it.
            assert found.status_code == 200
            assert found.cookies["session"] == answer["login"]


def _name(headers: dict[str, str]) -> str | None:
    request = Request({"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]})
    return user_of(request)
