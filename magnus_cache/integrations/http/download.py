"""A body on its way: the load reads all of it to store it, and its caller reads along as it arrives."""

import asyncio
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

from magnus_cache.integrations.http.parts import library_of, own_error, read_by

__all__ = ["Download", "Reading", "ended"]


class _LeftError(Exception):
    """The load was given up while its caller read along."""


class Download:
    """The body of a response that is read by a load, and at the same time by the caller that started the load.

    :param response: of httpx or httpx2; its stream is read as it is, not decoded.
    :param limit: the most bytes to keep. The caller reads the rest of a longer body by itself.
    """

    def __init__(self, response: Any, limit: int) -> None:
        self._response = response
        self._stream: AsyncIterator[bytes] = response.stream.__aiter__()
        self._limit = limit
        self._chunks = list[bytes]()
        self._error: BaseException | None = None
        self._ended = self._over = False
        self._changed = asyncio.Event()
        self.size = 0

    @property
    def is_over(self) -> bool:
        """Whether the body is longer than the limit."""
        return self._over

    @property
    def body(self) -> bytes:
        """What has been read."""
        return b"".join(self._chunks)

    async def run(self) -> bool:
        """Read to the end; return whether that is all of the body. Else it is longer than the limit, and still open."""
        try:
            async for chunk in self._stream:
                self._chunks.append(chunk)
                self.size += len(chunk)
                self._over = self.size > self._limit
                self._changed.set()
                if self._over:
                    return False
            self._ended = True
            await self._response.aclose()
        except BaseException as error:
            self._error = error
            self._changed.set()
            await self._response.aclose()
            raise
        self._changed.set()
        return True

    async def read(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives.

        :raises Exception: what reading it raised.
        :raises _LeftError: if the load was cancelled.
        """
        position = 0
        while True:
            self._changed.clear()
            while position < len(self._chunks):
                yield self._chunks[position]
                position += 1
            if self._ended:
                return
            if self._error is not None:
                if isinstance(self._error, Exception):
                    raise self._error
                raise _LeftError
            if self._over and position == len(self._chunks):
                break
            if not self._changed.is_set():
                await self._changed.wait()
        self._chunks.clear()
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        """Close the response, unless the load reads on."""
        if self._over:
            await self._response.aclose()


class Reading:
    """A download that a caller may read along with.

    :param response: what the server sent.
    """

    def __init__(self, request: Any, response: Any, download: Download) -> None:
        self._request = request
        self._response = response
        self._download = download
        self._task: asyncio.Task[Any] | None = None
        self._taken = self._closed = False

    def is_wanted(self, *, waits: bool) -> bool:
        """Whether the caller reads, or will.

        :param waits: whether it still waits for the response.
        """
        return not self._closed and (self._taken or waits)

    def response(self, task: asyncio.Task[Any] | None = None) -> Any:
        """Return the response for the caller.

        :param task: the caller's wait for the load. The load ends with it, unless others wait as well.
        """
        self._taken, self._task = True, task
        return read_by(self._request, self._response, _stream_of(library_of(self._request))(self))

    async def read(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives; once it has ended, it is stored.

        :raises Exception: what reading it raised; the library's ReadError if the cache gave the load up.
        """
        try:
            async for chunk in self._download.read():
                yield chunk
        except _LeftError:
            raise library_of(self._request).ReadError("the cache was closed while the response was read") from None
        except Exception as error:  # noqa: BLE001  # raised again
            raise own_error(error, self._request)  # noqa: B904  # it says itself where it comes from
        if self._task is not None:
            await asyncio.wait({self._task})

    async def aclose(self) -> None:
        """Stop reading. What others wait for is read on."""
        self._closed = True
        if self._task is not None:
            await ended(self._task)
        await self._download.aclose()


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task, unless it is done, and return when it has ended."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        # Whoever reads the response has had the error.
        task.exception()


@cache
def _stream_of(library: Any) -> Any:
    """Return the class of the streams for one library."""

    class Stream(library.AsyncByteStream):  # type: ignore[misc]  # httpx and httpx2 each have a class of their own
        def __init__(self, reading: Reading) -> None:
            self._reading = reading

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self._reading.read()

        async def aclose(self) -> None:
            await self._reading.aclose()

    return Stream
