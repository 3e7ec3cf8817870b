"""`scan`: the keys of a namespace, for administration; and how a name in Redis becomes such a key."""

from collections.abc import AsyncGenerator, Callable

from magnus_cache._engine.api.engine import Engine
from magnus_cache._engine.keys.globs import ClearScope, is_pattern
from magnus_cache._engine.keys.names import KeyText, check_name
from magnus_cache._engine.keys.versions import version_suffix
from magnus_cache.errors import CacheArgumentError, CacheTypeError

__all__ = ["keys_by_name", "scan"]


async def scan(engine: Engine, namespace: str, match: str) -> AsyncGenerator[KeyText]:
    """Yield the keys of a namespace that match a glob, each once, as texts that every operation takes as keys.

    Of a namespace with a version, these are the keys of that version.

    :raises CacheArgumentError: for a namespace that cannot be used, or an empty glob.
    :raises CacheTypeError: for a glob that is no text.
    :raises CacheUnavailableError: when Redis does not answer, or refuses.
    """
    state = engine.state
    state.check_open()
    scope, key_of = keys_by_name(engine, namespace, match)
    seen = set[bytes]()
    if state.endpoint is None:
        for name in state.memory.names():
            if name.startswith(scope.prefix) and (key := key_of(name)) is not None:
                entry = state.memory.get_untrusted(name)
                if entry is not None and state.clock() < entry.fresh_until:
                    yield key
        return
    async for names in state.client.scan(scope):
        for name in names:
            # A SCAN may bring a name twice.
            if name not in seen and (key := key_of(name)) is not None:
                seen.add(name)
                yield key


def keys_by_name(engine: Engine, namespace: str, match: str) -> tuple[ClearScope, Callable[[bytes], KeyText | None]]:
    """Return what to look through in Redis, and what tells the key of a name there: None if it does not match.

    A key is the text that every operation takes for this namespace: without the version, which they add. Names of
    other versions do not match. A name that another program has written need not be UTF-8; see `Keyspace.value_name`.

    :param match: a glob for the keys as their callers wrote them.
    :raises CacheArgumentError: for a namespace that cannot be used, or an empty glob.
    :raises CacheTypeError: for a glob that is no text.
    """
    if not isinstance(match, str):
        raise CacheTypeError("match", f"a glob is a str, not {type(match).__name__}")
    if not match:
        raise CacheArgumentError("match", "a glob is not empty; '*' matches all keys")
    keyspace, name_of_it = engine.state.keyspace, check_name(namespace)
    # A text without a star is a glob as well: with its first character quoted.
    glob = match if is_pattern(match) else f"\\{match}"
    scope = keyspace.scope(f"{keyspace.prefix}:{name_of_it}:{glob}")
    covers = None if match == "*" else scope.covers
    start = len(keyspace.namespace_prefix(namespace))
    version = engine.state.namespaces.resolve(namespace).version
    suffix = b"" if version is None else version_suffix(version, "n").encode()

    def key_of(name: bytes) -> KeyText | None:
        if suffix:
            if not name.endswith(suffix):
                return None
            name = name[: -len(suffix)]
        if covers is not None and not covers(name):
            return None
        return KeyText(name[start:].decode("utf-8", "surrogateescape"))

    # Not what the glob covers: it does not know of versions.
    return ClearScope(scope.prefix, scope.pattern), key_of
