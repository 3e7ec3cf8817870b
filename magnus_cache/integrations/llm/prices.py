"""What a reply has used, read from its `usage`, and what that costs by the prices that the program gives."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from magnus_cache import CacheArgumentError, CacheTypeError

__all__ = ["LLMPrice", "Prices", "TokenCounts", "field_of", "model_of", "tokens_of"]

_MILLION: Final = 1e6


class LLMPrice(NamedTuple):
    """The prices of a model, per million tokens, in a currency of yours: the same one for all models.

    :ivar input: of tokens that are sent.
    :ivar output: of tokens that are generated.
    :ivar cached_input: of tokens that the provider had in its own prompt cache; None for the price of input.
    :ivar cache_write: of tokens that the provider stores in it; None for the price of input.
    """

    input: float
    output: float = 0.0
    cached_input: float | None = None
    cache_write: float | None = None


class TokenCounts(NamedTuple):
    """The tokens of a reply; no token is counted twice.

    :ivar input: sent, and read by the model.
    :ivar output: generated.
    :ivar cached_input: sent, and found in the provider's prompt cache.
    :ivar cache_write: sent, and stored in it.
    """

    input: int = 0
    output: int = 0
    cached_input: int = 0
    cache_write: int = 0


class Prices:
    """A checked table of prices by model.

    :param table: an `LLMPrice` for each model, or a tuple or dict of the same parts.
    :raises CacheArgumentError: for a table that cannot be used, naming the model.
    """

    __slots__ = ("_table",)

    def __init__(self, table: Mapping[str, Any]) -> None:
        if not isinstance(table, Mapping):
            raise CacheTypeError("prices", f"give a dict of models to LLMPrice, not {type(table).__name__}")
        self._table = {model: _price(model, price) for model, price in table.items()}

    def cost(self, models: Iterable[str], tokens: TokenCounts) -> float | None:
        """Return what some tokens cost, by the first of these names that has a price; None if none has."""
        price = next((self._table[model] for model in models if model in self._table), None)
        if price is None:
            return None
        cached = price.input if price.cached_input is None else price.cached_input
        write = price.input if price.cache_write is None else price.cache_write
        return (
            tokens.input * price.input + tokens.output * price.output + tokens.cached_input * cached
            + tokens.cache_write * write
        ) / _MILLION  # fmt: skip


def _price(model: object, given: Any) -> LLMPrice:
    try:
        price = LLMPrice(**given) if isinstance(given, Mapping) else LLMPrice(*given)
    except TypeError:
        price = None
    numbers = [number for number in price or () if number is not None]
    if price is None or not all(type(number) in (int, float) and 0 <= number < 1e9 for number in numbers):
        problem = f"the price of {model!r} is an LLMPrice of numbers of 0 or more, per million tokens"
        raise CacheArgumentError("prices", problem)
    return price


def field_of(thing: Any, name: str) -> Any:
    """Return a field of a response, which may be an object or a dict; None if it has none."""
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def _count(thing: Any, *names: str) -> int:
    for name in names:
        count = field_of(thing, name)
        if isinstance(count, int) and not isinstance(count, bool):
            return count
    return 0


def model_of(reply: Any) -> str | None:
    """Return the model that a reply, or the chunks of one, names."""
    for part in _parts(reply):
        # LangChain has it among the data about the response.
        for place, name in ((part, "model"), (field_of(part, "response_metadata"), "model_name")):
            if isinstance(model := field_of(place, name), str):
                return model
    return None


def tokens_of(reply: Any) -> TokenCounts | None:
    """Return the tokens that a reply, or the chunks of one, has used; None if it does not say.

    Understood are the forms of openai (``prompt_tokens`` or ``input_tokens``, in which tokens of the prompt cache are
    included), of anthropic (``input_tokens``, in which they are not) and of LangChain (``usage_metadata``).
    """
    found = [tokens for part in _parts(reply) for tokens in _usages(part)]
    if not found:
        return None
    # The chunks of a stream tell what they know up to then: the last and largest number of each counts.
    return TokenCounts(*(max(column) for column in zip(*found, strict=True)))


def _parts(reply: Any) -> Iterator[Any]:
    """Yield what may have the usage of a reply: itself or its chunks, and what the events of a stream are about."""
    for part in reply if isinstance(reply, list | tuple) else (reply,):
        yield part
        # Of anthropic's `message_start`, and of `response.completed` of openai's responses.
        for name in ("message", "response"):
            if (within := field_of(part, name)) is not None and not isinstance(within, str):
                yield within


def _usages(part: Any) -> Iterator[TokenCounts]:
    for name in ("usage", "usage_metadata"):
        usage = field_of(part, name)
        if usage is None:
            continue
        if (read := _count(usage, "cache_read_input_tokens")) or field_of(usage, "cache_creation_input_tokens"):
            # anthropic: apart from the input.
            write = _count(usage, "cache_creation_input_tokens")
            yield TokenCounts(_count(usage, "input_tokens"), _count(usage, "output_tokens"), read, write)
            continue
        details = next(
            (
                found
                for kind in ("prompt_tokens_details", "input_tokens_details", "input_token_details")
                if (found := field_of(usage, kind)) is not None
            ),
            None,
        )
        cached, write = _count(details, "cached_tokens", "cache_read"), _count(details, "cache_creation")
        total = _count(usage, "prompt_tokens", "input_tokens")
        output = _count(usage, "completion_tokens", "output_tokens")
        yield TokenCounts(max(0, total - cached - write), output, cached, write)
