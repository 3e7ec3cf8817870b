"""`scan`: the keys of a namespace, for administration."""

from collections.abc import AsyncGenerator

from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.keys.globs import is_pattern
from magnus_cache._engine.keys.names import KeyText, check_name
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["scan"]


async def scan(engine: Engine, namespace: str, match: str) -> AsyncGenerator[KeyText]:
    """Yield the keys of a namespace that match a glob, each once, as texts that every operation takes as keys.

    :raises CacheArgumentError: for a namespace that cannot be used, or an empty glob.
    :raises CacheTypeError: for a glob that is no text.
    :raises CacheUnavailableError: when Redis does not answer, or refuses.
    """
    state = engine.state
    state.check_open()
    if not isinstance(match, str):
        raise CacheTypeError("match", f"a glob is a str, not {type(match).__name__}")
    if not match:
        raise CacheArgumentError("match", "a glob is not empty; '*' matches all keys")
    # A text without a star is a glob as well: with its first character quoted.
    glob = match if is_pattern(match) else f"\\{match}"
    scope = state.keyspace.scope(f"{state.keyspace.prefix}:{check_name(namespace)}:{glob}")
    start, seen = len(state.keyspace.namespace_prefix(namespace)), set[bytes]()
    if state.endpoint is None:
        for name in filter(scope.covers, state.memory.names()):
            entry = state.memory.get_untrusted(name)
            if entry is not None and state.clock() < entry.fresh_until:
                yield _text(name[start:])
        return
    async for names in state.client.scan(scope):
        for name in names:
            # A SCAN may bring a name twice.
            if name not in seen:
                seen.add(name)
                yield _text(name[start:])


def _text(key: bytes) -> KeyText:
    return KeyText(key.decode("utf-8", "surrogateescape"))
