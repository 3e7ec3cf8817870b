"""A request of a model, for tests and for programs that have to find the same key for it."""

from typing import Any

from pydantic import BaseModel


class Base(BaseModel):
    text: str


class Human(Base):
    pass


REQUEST: dict[str, Any] = {
    "model": "gpt-4o", "temperature": 0.7,
    "messages": [{"role": "user", "content": [{"image": b"\x00\xff", "names": {"b", "a", "c"}}]}],
    "tools": [{"name": "f", "parameters": {"z": 1, "a": 2.0}}], "response_format": Human,
}  # fmt: skip


def ask(**request: Any) -> str:
    return str(request)
