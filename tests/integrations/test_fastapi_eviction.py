"""A write makes stored responses invalid: after it has succeeded, before its response, and after its commit."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from magnus_cache import AsyncCacheManager
from magnus_cache.integrations.fastapi import cache_response, evict
from tests.integrations.test_fastapi import asking

pytestmark = pytest.mark.anyio


def app_of(cache: AsyncCacheManager, way: str = "decorated", *namespaces: str, **targets: Any) -> FastAPI:
    """Return an application with cached pages, and writes of all outcomes."""
    app, calls = FastAPI(), itertools.count(1)
    evicts = evict(*namespaces, cache=cache, **targets)
    decorate: Any = evicts if way == "decorated" else lambda function: function
    router = APIRouter(dependencies=[Depends(evicts)] if way == "dependency" else [])

    @app.get("/users/{user}")
    @app.get("/users/{user}/orders")
    @cache_response("pages", cache=cache, tags="user:{user}")
    async def page(user: str) -> int:
        return next(calls)

    @router.api_route("/users/{user}", methods=["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    @decorate
    async def write(user: str, outcome: str = "done") -> Any:
        match outcome:
            case "error":
                raise HTTPException(409)
            case "moved":
                raise HTTPException(303, headers={"location": "/"})
            case "redirect":
                return RedirectResponse("/", status_code=303)
            case "refused":
                return JSONResponse({}, status_code=400)
            case _:
                return {"user": user}

    @router.delete("/blocking/{user}", status_code=204)
    @decorate
    def remove(user: str) -> None:
        return None

    app.include_router(router)
    return app


async def pages(client: Any) -> list[str]:
    paths = ("/users/1", "/users/1?page=2", "/users/1/orders", "/users/2")
    return [(await client.get(path)).text for path in paths]


BEFORE = ["1", "2", "3", "4"]
TARGETS: dict[str, tuple[tuple[str, ...], dict[str, Any], list[str]]] = {
    "tags": ((), {"tags": "user:{user}"}, ["5", "6", "7", "4"]),
    "tags of the request": (
        (),
        {"tags": lambda request: [f"user:{request.path_params['user']}"]},
        ["5", "6", "7", "4"],
    ),
    "path": ((), {"paths": "/users/{user}"}, ["5", "6", "3", "4"]),
    "paths": ((), {"paths": ["/users/{user}/orders", "/users/2"]}, ["1", "2", "5", "6"]),
    "namespace": (("pages",), {}, ["5", "6", "7", "8"]),
    "all": (("other",), {"tags": "user:2", "paths": "/users/1"}, ["5", "6", "3", "7"]),
}


@pytest.mark.parametrize("way", ["decorated", "dependency"])
@pytest.mark.parametrize("what", TARGETS)
async def test_a_write_invalidates_what_it_names(cache: AsyncCacheManager, way: str, what: str) -> None:
    namespaces, targets, after = TARGETS[what]
    async with asking(app_of(cache, way, *namespaces, **targets)) as client:
        assert await pages(client) == await pages(client) == BEFORE
        assert (await client.put("/users/1")).json() == {"user": "1"}
        assert await pages(client) == after


@pytest.mark.parametrize("way", ["decorated", "dependency"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_every_unsafe_method_invalidates(cache: AsyncCacheManager, way: str, method: str) -> None:
    async with asking(app_of(cache, way, "pages")) as client:
        assert await pages(client) == BEFORE
        await client.request(method, "/users/1")
        assert await pages(client) == ["5", "6", "7", "8"]
        assert (await client.delete("/blocking/1")).status_code == 204
        assert (await pages(client))[0] == "9"


@pytest.mark.parametrize("way", ["decorated", "dependency"])
@pytest.mark.parametrize(
    ("query", "method", "status", "invalid"),
    [
        ("error", "POST", 409, False), ("refused", "POST", 400, False), ("done", "OPTIONS", 200, False),
        ("redirect", "POST", 303, True), ("moved", "POST", 303, True),
    ],
)  # fmt: skip
async def test_a_request_that_fails_or_changes_nothing_invalidates_nothing(
    cache: AsyncCacheManager, way: str, query: str, method: str, status: int, invalid: bool
) -> None:
    async with asking(app_of(cache, way, "pages")) as client:
        assert await pages(client) == BEFORE
        found = await client.request(method, "/users/1", params={"outcome": query})
        assert found.status_code == status
        assert (await pages(client) != BEFORE) is invalid


@pytest.mark.parametrize("way", ["decorated", "dependency"])
async def test_what_was_read_before_the_commit_does_not_stay(cache: AsyncCacheManager, way: str) -> None:
    """A dependency commits after the endpoint, and another client has read, and stored, the old row in between."""
    app, database = FastAPI(), {"name": "old"}
    written, read = asyncio.Event(), asyncio.Event()
    evicts = evict(paths="/name", cache=cache)
    decorate: Any = evicts if way == "decorated" else lambda function: function

    async def session() -> AsyncIterator[dict[str, str]]:
        changes = dict[str, str]()
        yield changes
        written.set()
        await read.wait()
        database.update(changes)

    @app.get("/name")
    @cache_response("pages", cache=cache)
    async def name() -> str:
        return database["name"]

    @app.put("/name", dependencies=[] if way == "decorated" else [Depends(evicts)])
    @decorate
    async def rename(changes: Annotated[dict[str, str], Depends(session)]) -> None:
        changes["name"] = "new"

    async with asking(app) as client:
        assert (await client.get("/name")).json() == "old"
        write = asyncio.create_task(client.put("/name"))
        await written.wait()
        assert (await client.get("/name")).json() == "old"
        read.set()
        await write
        assert (await client.get("/name")).json() == "new"


async def test_a_load_that_a_write_overtakes_is_not_stored(cache: AsyncCacheManager) -> None:
    app, release, begun = FastAPI(), asyncio.Event(), asyncio.Event()
    database = {"name": "old"}

    @app.get("/name")
    @cache_response("pages", cache=cache)
    async def name() -> str:
        found = database["name"]
        begun.set()
        await release.wait()
        return found

    @app.put("/name")
    @evict(paths="/name", cache=cache)
    async def rename() -> None:
        database["name"] = "new"

    async with asking(app) as client:
        reading = asyncio.create_task(client.get("/name"))
        await begun.wait()
        await client.put("/name")
        release.set()
        assert (await reading).json() == "old"
        assert (await client.get("/name")).json() == "new"


async def test_paths_are_those_below_the_same_mount(cache: AsyncCacheManager) -> None:
    inner = app_of(cache, "decorated", paths="/users/{user}")
    outer = FastAPI()
    outer.mount("/api", inner)
    async with asking(outer) as client:
        assert [(await client.get("/api/users/1")).text for _ in range(2)] == ["1", "1"]
        await client.put("/api/users/1")
        assert (await client.get("/api/users/1")).text == "2"


@pytest.mark.parametrize("path", ["/p/ü x", "/p/a%2Fb", "/p/" + "long" * 200, "/p/%00"])
async def test_every_path_can_be_invalidated(cache: AsyncCacheManager, path: str) -> None:
    app, calls = FastAPI(), itertools.count(1)

    @app.get("/p/{rest:path}")
    @cache_response("pages", cache=cache)
    async def page() -> int:
        return next(calls)

    @app.post("/p/{rest:path}")
    @evict(paths=lambda request: request.scope["path"], cache=cache)
    async def write(request: Request) -> Response:
        return Response(status_code=204)

    async with asking(app) as client:
        assert [(await client.get(path)).text for _ in range(2)] == ["1", "1"]
        await client.post(path)
        assert (await client.get(path)).text == "2"
