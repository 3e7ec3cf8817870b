"""A web service of FastAPI with cached pages, for uvicorn with several workers; the settings come from the environment.

``GET /pages/<page>`` answers with the numbers of the worker whose endpoint ran, and of the page's version;
``PUT /pages/<page>`` raises the version. ``GET /me`` answers with the user of the request, ``GET /worker`` with the
number of the worker.
"""

import os
from typing import Annotated

from fastapi import Depends, FastAPI, Header

from magnus_cache import get_async_cache_manager
from magnus_cache.integrations.fastapi import Cached, cache_response, evict, lifespan

__all__ = ["app"]

app = FastAPI(lifespan=lifespan)
cache = get_async_cache_manager()
versions: dict[str, int] = {}


@app.get("/pages/{page}")
@cache_response("pages", "1m", grace="10m")
async def read(page: str) -> dict[str, int]:
    return {"worker": os.getpid(), "version": versions.get(page, 0)}


@app.put("/pages/{page}")
@evict(paths="/pages/{page}")
async def write(page: str) -> dict[str, int]:
    versions[page] = versions.get(page, 0) + 1
    return {"worker": os.getpid(), "version": versions[page]}


async def user(authorization: Annotated[str, Header()]) -> str:
    return authorization


@app.get("/me", dependencies=[Depends(Cached("users", "1m", vary=Depends(user)))])
def me(user: Annotated[str, Depends(user)]) -> dict[str, str | int]:
    return {"worker": os.getpid(), "user": user}


@app.get("/worker")
async def worker() -> dict[str, int]:
    return {"worker": os.getpid()}
