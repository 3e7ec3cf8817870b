"""Which replies are worth storing: those that a later caller would want in place of a call of its own."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from magnus_cache.integrations.llm.prices import field_of

__all__ = ["is_unfinished"]

_CUT_SHORT: Final = frozenset({
    # openai; anthropic; Google
    "length", "content_filter", "error",
    "max_tokens", "refusal", "pause_turn", "model_context_window_exceeded",
    "MAX_TOKENS", "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII",
})  # fmt: skip
"""Reasons to finish other than that the answer was complete."""

_UNFINISHED: Final = frozenset({"failed", "incomplete", "in_progress", "queued", "cancelled"})
"""What the status of a response of openai is if that is no answer, or not yet."""

_FAILED_EVENTS: Final = frozenset({"error", "response.failed", "response.incomplete"})
_END_EVENTS: Final = frozenset({"message_stop", "response.completed"})
_EVENTS: Final = ("response.", "message_", "content_block_")

_RUN_BY_PROVIDER: Final = frozenset({"server_tool_use", "server_tool_call", "mcp_tool_use"})
_RUN_BY_PROGRAM: Final = frozenset({
    "function_call", "custom_tool_call", "tool_call", "computer_call", "local_shell_call", "shell_call",
    "apply_patch_call",
})  # fmt: skip


def is_unfinished(reply: Any) -> bool:
    """Return whether a reply is not worth storing: the default of `LLMCache`'s ``skip_if``.

    - It is empty, or it is an error.
    - It was cut short (``finish_reason="length"``, ``stop_reason="max_tokens"``), refused, filtered, or has not ended.
    - The provider has run tools for it, such as a search: what they did and found is of that moment.

    A reply that asks the program to call tools is stored: running them is not part of the reply.

    :param reply: a reply of openai, anthropic or LangChain, a dict like one, or the list of the chunks of one. Of
        anything else, only None and what is empty is unfinished.
    """
    if reply is None or (isinstance(reply, str | bytes | list | tuple | dict) and not reply):
        return True
    if isinstance(reply, list | tuple):
        return any(map(_is_cut_short, reply)) or not _has_ended(reply)
    # An event of a stream has a status as well, while the response is under way.
    if field_of(reply, "object") == "response" and field_of(reply, "status") in _UNFINISHED:
        return True
    return _is_cut_short(reply)


def _is_cut_short(part: Any) -> bool:
    if isinstance(part, str | bytes | int | float):
        return False
    if field_of(part, "error") is not None or field_of(part, "type") in _FAILED_EVENTS:
        return True
    return any(map(_says_so, _places(part)))


def _places(part: Any) -> Iterator[Any]:
    """Yield the places of a reply or of a chunk that say how it ended, and what it has run."""
    yield part
    for name in ("message", "delta", "generation_info", "response_metadata", "item", "content_block"):
        if (within := field_of(part, name)) is not None:
            yield within
            # LangChain
            yield field_of(within, "response_metadata")
    for name in ("choices", "candidates", "output", "content"):
        for each in _items(part, name):
            yield each
            yield field_of(each, "message")
            yield field_of(each, "delta")
            yield from _items(each, "content")


def _items(part: Any, name: str) -> Sequence[Any]:
    found = field_of(part, name)
    return found if isinstance(found, list | tuple) else ()


def _says_so(place: Any) -> bool:
    kind = field_of(place, "type")
    return (
        _is_one_of(field_of(place, "finish_reason"), _CUT_SHORT)
        or _is_one_of(field_of(place, "stop_reason"), _CUT_SHORT)
        or bool(field_of(place, "refusal"))
        or kind == "refusal"
        or _is_one_of(kind, _RUN_BY_PROVIDER)
        or (isinstance(kind, str) and kind.endswith("_call") and kind not in _RUN_BY_PROGRAM)
    )


def _is_one_of(word: Any, words: frozenset[str]) -> bool:
    return isinstance(word, str) and word in words


def _has_ended(chunks: Sequence[Any]) -> bool:
    """Return whether a stream has told that its reply is complete, if it is of a kind that does.

    A server that stops in the middle may close the connection as if all were well.
    """
    kinds = [kind for chunk in chunks if isinstance(kind := field_of(chunk, "type"), str) and kind.startswith(_EVENTS)]
    if kinds:
        return any(kind in _END_EVENTS for kind in kinds)
    told = any(isinstance(field_of(chunk, "choices"), list | tuple) for chunk in chunks)
    begun, ended = set[Any](), set[Any]()
    for choice in (choice for chunk in chunks for choice in _items(chunk, "choices")):
        begun.add(field_of(choice, "index"))
        if field_of(choice, "finish_reason"):
            ended.add(field_of(choice, "index"))
    # Azure tells what it thinks of the prompt before the first choice.
    return begun == ended and (bool(begun) or not told)
