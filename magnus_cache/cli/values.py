"""The commands about keys and values: `ls`, `get`, `set`, `ttl`, `explain`, `delete`, `clear`, `tags`."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any
from urllib.parse import unquote

import typer

from magnus_cache import CacheManager, Namespace
from magnus_cache._engine.codec.sealing import is_sealed_text
from magnus_cache._engine.keys.globs import ClearScope, prefix_pattern
from magnus_cache._engine.redis.client import Client
from magnus_cache.cli.common import (
    FINDING,
    WRONG_USAGE,
    CommandError,
    Json,
    Prefix,
    Url,
    key_of,
    key_shown,
    note,
    opened,
    print_json,
    shown,
    value_of,
)

__all__ = ["add_to", "clear", "delete", "explain", "get", "ls", "namespaces", "set_value", "tags", "ttl"]

_Namespace = Annotated[str, typer.Argument(help="The namespace.", show_default=False)]
_Key = Annotated[str, typer.Argument(help="The key, as `ls` shows it or as a program writes it.", show_default=False)]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (ls, get, explain, ttl, delete, clear, tags):
        app.command()(command)
    app.command("set")(set_value)


def ls(
    namespace: Annotated[str | None, typer.Argument(help="Only its keys; else all, with their namespaces.")] = None,
    match: Annotated[str, typer.Option(metavar="GLOB", help="Only keys that match, as in 'users:*'.")] = "*",
    limit: Annotated[int, typer.Option(min=1, help="Stop after so many keys.")] = 1_000,
    url: Url = None,
    prefix: Prefix = None,
    json: Json = False,
) -> None:
    """List keys."""
    with opened(url, prefix) as cache:
        found = list(islice(_keys(cache, namespace, match), limit + 1))
    more = len(found) > limit
    found = sorted(found[:limit])
    if json:
        print_json(found)
    else:
        for key in found:
            typer.echo(key)
    if more:
        note(f"and more: the first {limit:,} are shown; --limit shows more")
    if not found and not json:
        note("no keys" if namespace is None else f"no keys in namespace {namespace!r}")


def _keys(cache: CacheManager, namespace: str | None, match: str) -> Iterator[str]:
    if namespace is not None:
        yield from map(key_shown, cache.scan(namespace, match))
        return
    for name in namespaces(cache):
        for key in cache.scan(name, match):
            yield f"{name}:{key_shown(key)}"


def namespaces(cache: CacheManager) -> list[str]:
    """Return the names of all namespaces that have an epoch in Redis: each that was ever used has one."""
    return sorted(_controls(cache, "epoch"))


def _controls(cache: CacheManager, kind: str) -> set[str]:
    state = cache._engine.state
    start = state.keyspace.control_name(kind) + b":"
    names = cache._call(_scanned, state.client, start)
    return {unquote(name[len(start) :].partition(b"{")[0].decode("utf-8", "replace")) for name in names}


async def _scanned(client: Client, start: bytes) -> list[bytes]:
    found: list[bytes] = []
    async for names in client.scan(ClearScope(start, prefix_pattern(start))):
        found += names
    return found


def get(
    namespace: _Namespace,
    key: _Key,
    reveal: Annotated[bool, typer.Option("--reveal", help="Also print a sealed value; needs the keys.")] = False,
    url: Url = None,
    prefix: Prefix = None,
    json: Json = False,
) -> None:
    """Print a value, as JSON. Exit code 1 if there is none, or if it is sealed and --reveal is not given.

    Of what a codec of the application has stored, only the size can be told.
    """
    with opened(url, prefix) as cache:
        if reveal and cache._engine.state.settings.seal_keys is None:
            raise CommandError(WRONG_USAGE, "--reveal needs the keys of sealed values: set MAGNUS_CACHE_SEAL_KEYS")
        place = _place(cache, namespace, key)
        unused = _unused(cache, place)
        if not reveal and (is_sealed_text(key) or (place.seal and cache.contains(place, key_of(key)))):
            raise CommandError(FINDING, f"{namespace}:{key}: the value is sealed; --reveal shows it")
        value = cache.get(place, key_of(key), default=_NOTHING)
        if value is not _NOTHING:
            typer.echo(shown(value))
            return
        found = cache.explain(place, key_of(key))
    if not found.opaque:
        raise CommandError(FINDING, f"{namespace}:{key}: {found.verdict}{unused}")
    if json:
        print_json({"opaque_bytes": found.size})
    else:
        typer.echo(f"{found.size} opaque bytes, stored by the codec of namespace {namespace!r}")


_NOTHING = object()


def _unused(cache: CacheManager, place: Namespace) -> str:
    """Return what to say beside "not there" if no program has used a namespace: its name or the prefix is another one.

    It is asked first: a read notes the namespace in Redis. Of a cluster it is not told, where each group of slots has
    notes of its own.
    """
    state = cache._engine.state
    if state.topology.is_cluster or cache._call(state.client.count, [state.epochs.epoch_names(place).control]):
        return ""
    return (
        f"; no program has used namespace {str(place)!r} under the prefix {state.settings.prefix!r}: "
        "magnus-cache ls shows what is there, --prefix takes another one"
    )


def _place(cache: CacheManager, namespace: str, key: str) -> Namespace:
    """Return the namespace of a key: a sealed one, if there are keys for sealed values, and such values in it.

    :raises CommandError: if the library is missing.
    """
    state = cache._engine.state
    policy = state.namespaces.resolve(namespace)
    if state.settings.seal_keys is None or policy.seal:
        return policy
    if not is_sealed_text(key) and not any(map(is_sealed_text, cache.scan(namespace, "*sealed.*"))):
        return policy
    options: dict[str, Any] = {**policy.policy, "seal": True}
    try:
        return Namespace(str(policy), **options)
    except ImportError as error:
        raise CommandError(WRONG_USAGE, str(error)) from error


def explain(namespace: _Namespace, key: _Key, url: Url = None, prefix: Prefix = None, json: Json = False) -> None:
    """Tell what is known of a key: where its value is, how old, why it is a miss, who loads it, what happened to it.

    Exit code 1 for a miss.
    """
    with opened(url, prefix) as cache:
        place = _place(cache, namespace, key)
        unused = _unused(cache, place)
        found = cache.explain(place, key_of(key))
    if json:
        print_json(asdict(found))
    else:
        typer.echo(f"{found}{unused}")
    if found.level is None:
        raise typer.Exit(FINDING)


def ttl(namespace: _Namespace, key: _Key, url: Url = None, prefix: Prefix = None, json: Json = False) -> None:
    """Print the seconds that a value has left. Exit code 1 if there is none."""
    with opened(url, prefix) as cache:
        place = _place(cache, namespace, key)
        unused = _unused(cache, place)
        left = cache.ttl(place, key_of(key))
    if json:
        print_json(left)
    elif left is not None:
        typer.echo(f"{left:.3f}")
    if left is None:
        raise CommandError(FINDING, f"{namespace}:{key}: not there{unused}")


def set_value(
    namespace: _Namespace,
    key: _Key,
    value: Annotated[str, typer.Argument(help="JSON, or else text; - reads it from stdin.", show_default=False)],
    ttl: Annotated[str | None, typer.Option(metavar="T", help="Such as 90, 5m or 1h30m; else the default.")] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="A tag; may be given repeatedly.")] = None,
    url: Url = None,
    prefix: Prefix = None,
) -> None:
    """Store a value."""
    text = sys.stdin.read() if value == "-" else value
    seconds: str | float | None = ttl
    if ttl is not None and ttl.replace(".", "", 1).isdigit():
        seconds = float(ttl)
    with opened(url, prefix) as cache:
        if not cache.set(_place(cache, namespace, key), key_of(key), value_of(text), seconds, tags=tag or ()):
            raise CommandError(FINDING, f"{namespace}:{key}: Redis did not take the value")


def delete(namespace: _Namespace, key: _Key, url: Url = None, prefix: Prefix = None) -> None:
    """Remove a value everywhere. Exit code 1 if there was none."""
    with opened(url, prefix) as cache:
        place = _place(cache, namespace, key)
        unused = _unused(cache, place)
        if not cache.delete(place, key_of(key)):
            raise CommandError(FINDING, f"{namespace}:{key}: not there{unused}")


def clear(
    target: Annotated[str, typer.Argument(metavar="NAMESPACE|GLOB", help="As in 'portfolio', 'portfolio:us*'.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
    prefix: Prefix = None,
    json: Json = False,
) -> None:
    """Remove all values of a namespace, or those that match a glob, everywhere."""
    if not yes:
        if not sys.stdin.isatty():
            raise CommandError(
                WRONG_USAGE, "clear asks before it removes anything, and there is no terminal; add --yes"
            )
        if not typer.confirm(f"Remove all values of {target!r}?", err=True):
            raise CommandError(FINDING, "nothing was removed")
    with opened(url, prefix) as cache:
        removed = cache.clear(target)
    if json:
        print_json(removed)
    else:
        typer.echo(f"{removed} value{'' if removed == 1 else 's'} removed")


def tags(
    invalidate: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Invalidate the values of a tag.")] = None,
    url: Url = None,
    prefix: Prefix = None,
    json: Json = False,
) -> None:
    """List the tags in use, or invalidate the values of some."""
    with opened(url, prefix) as cache:
        if invalidate:
            cache.invalidate_tags(*invalidate)
            return
        # Those with a tilde are the cache's own, one for each cached function.
        found = sorted(tag for tag in _controls(cache, "tag") if not tag.startswith("~"))
    if json:
        print_json(found)
        return
    for tag in found:
        typer.echo(tag)
    if not found:
        note("no tags")
