"""Responses as they are stored: plain tuples of text, bytes and numbers, for the clients of every library."""

import os
from typing import Any, Final, NamedTuple

from magnus_cache.integrations.http.fields import Fields

__all__ = ["PASS", "Answer", "Refused", "bodiless", "made", "new_stamp", "restored"]

_FORMAT: Final = 1

PASS: Final = -1
"""The status of a mark in place of a response that must not be stored: requests go to the server, each by itself."""


class Answer(NamedTuple):
    """A response, or the mark that there is none to share.

    :ivar form: the version of this format.
    :ivar stamp: tells this response from all others, of the same URL too.
    :ivar status: the status code, or `PASS`.
    :ivar fields: the header fields, names in lower case.
    :ivar body: the body, encoded as Content-Encoding says.
    :ivar age: how many seconds old it was when it was stored.
    :ivar fresh: at which age it becomes stale, seconds.
    :ivar life: for how many seconds it is kept.
    :ivar vary: the names of the request's fields that select it, and a hash of their values.
    """

    form: int
    stamp: bytes
    status: int
    reason: str
    fields: Fields
    body: bytes
    age: float
    fresh: float
    life: float
    vary: tuple[tuple[str, bytes], ...]


def new_stamp() -> bytes:
    """Return what no other answer is marked with."""
    return os.urandom(8)


def made(status: int, **parts: Any) -> Answer:
    """Return an answer with some parts; the others are empty."""
    empty: dict[str, Any] = {
        "reason": "", "fields": (), "body": b"", "age": 0.0, "fresh": 0.0, "life": 0.0, "vary": (),
    }  # fmt: skip
    return Answer(_FORMAT, new_stamp(), status, **{**empty, **parts})


def bodiless(answer: Answer) -> Answer:
    """Return an answer without its body, which may be too large to be stored."""
    about = {"content-encoding", "content-length", "content-type"}
    return answer._replace(body=b"", fields=tuple(field for field in answer.fields if field[0] not in about))


def restored(value: object) -> Answer | None:
    """Return an answer that was stored as a tuple; None for one of another version."""
    if not isinstance(value, tuple) or len(value) != len(Answer._fields) or value[0] != _FORMAT:
        return None
    return Answer(*value)


class Refused(Exception):  # noqa: N818  # not an error to the caller: it becomes a response
    """The server answered that it cannot answer now, or is left alone because it did so before.

    :ivar answer: its response, for all who waited.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"the server answered {answer.status}")
        self.answer = answer
