"""After a reload, what was stored before comes back as instances of the new class, also from memory."""

import dataclasses
import enum
import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from magnus_cache import CacheEncodeError, CacheManager, Namespace, register_type
from magnus_cache._engine.codec import decode, encode, registry, renewed
from magnus_cache._engine.memory.store import LocalCache
from magnus_cache._engine.runtime.critical import section

pytestmark = pytest.mark.anyio

TEXT = """
import dataclasses, enum, typing
import pydantic
from magnus_cache import register_type

{register}
class Colour(enum.Enum):
    RED = 1

{register}
@dataclasses.dataclass
class Leg:
    colour: Colour
    size: int = 1

{register}
class Model(pydantic.BaseModel):
    leg: typing.Any

{register}
class Point(typing.NamedTuple):
    x: typing.Any
"""
_modules: list[str] = []


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    monkeypatch.syspath_prepend(tmp_path)

    def make(register: str = "@register_type") -> ModuleType:
        name = f"reloaded_module_{len(_modules)}"
        _modules.append(name)
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(TEXT.format(register=register)))
        return importlib.import_module(name)

    yield make
    for name in _modules:
        sys.modules.pop(name, None)


@pytest.fixture
def cache() -> Iterator[CacheManager]:
    with CacheManager(redis_enabled=False) as manager:
        yield manager


SHARED = Namespace("shared", share=True)


def values(module: Any) -> dict[str, Any]:
    leg = module.Leg(module.Colour.RED)
    return {
        "one": module.Colour.RED,
        "tuple": (1, (module.Colour.RED, "x")),
        "point": module.Point(module.Colour.RED),
        "list": [module.Colour.RED],
        "leg": leg,
        "model": module.Model(leg=leg),
        "key": {module.Colour.RED: 1},
    }


@pytest.mark.parametrize("space", ["plain", SHARED])
def test_what_was_kept_comes_back_as_the_new_class(
    cache: CacheManager, shapes: Callable[..., ModuleType], space: str
) -> None:
    module = shapes()
    for _ in range(2):  # and again
        old = values(module)
        for key, value in old.items():
            cache.set(space, key, value)
            assert cache.get(space, key) == value
        importlib.reload(module)
        new = values(module)
        for key, value in new.items():
            got = cache.get(space, key)
            assert got == value
            assert got != old[key]
            # Made anew once, not at each call.
            assert cache.get(space, key) is got or space == "plain"
        assert cache.get(space, "one") is module.Colour.RED
        assert cache.get(space, "leg").colour is module.Colour.RED
        assert cache.get(space, "model").leg.colour is module.Colour.RED
        assert cache.get(space, "point").x is module.Colour.RED


def test_what_a_function_is_typed_with_is_found_anew(cache: CacheManager, shapes: Callable[..., ModuleType]) -> None:
    """As when a notebook's cell with the class is run again, and the one with the function is not."""
    module = shapes(register="")

    @cache.cached("notebook")
    def leg(number: int) -> module.Leg:  # type: ignore[name-defined]
        return module.Leg(module.Colour.RED, number)

    assert leg(1) == leg(1) == module.Leg(module.Colour.RED, 1)
    importlib.reload(module)
    assert leg(2) == leg(2) == module.Leg(module.Colour.RED, 2)
    assert leg(2).colour is module.Colour.RED
    assert leg(1) == module.Leg(module.Colour.RED, 1)


def test_an_annotation_from_before_a_reload_does_not_bring_the_old_class_back(
    cache: CacheManager, shapes: Callable[..., ModuleType]
) -> None:
    module = shapes()
    old = module.Colour
    importlib.reload(module)

    @cache.cached("late")
    def colour() -> old:  # type: ignore[valid-type]
        return module.Colour.RED

    assert colour() is colour() is module.Colour.RED
    with pytest.raises(CacheEncodeError):
        encode(old.RED)


def test_a_class_of_another_module_or_scope_does_not_take_over() -> None:
    def make() -> type[enum.Enum]:
        class Local(enum.Enum):
            ONE = 1

        return Local

    one, two = make(), make()
    register_type(one)
    with pytest.raises(CacheEncodeError):
        encode(two.ONE)  # type: ignore[attr-defined]
    assert decode(encode(one.ONE)) is one.ONE  # type: ignore[attr-defined]


def test_a_value_that_does_not_fit_the_new_class_is_a_miss(
    cache: CacheManager, shapes: Callable[..., ModuleType]
) -> None:
    module = shapes()
    cache.set(SHARED, "leg", module.Leg(module.Colour.RED))
    assert cache.get(SHARED, "leg")
    (Path(module.__file__ or "")).write_text(
        TEXT.format(register="@register_type").replace("size: int = 1", "weight: int")
    )
    importlib.invalidate_caches()
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        Path(importlib.util.cache_from_source(module.__file__ or "")).unlink(missing_ok=True)
        importlib.reload(module)
    finally:
        sys.dont_write_bytecode = before
    assert cache.get(SHARED, "leg") is None
    cache.set(SHARED, "leg", module.Leg(module.Colour.RED, 5))
    assert cache.get(SHARED, "leg").weight == 5


def test_what_holds_no_replaced_class_stays_the_very_object(
    cache: CacheManager, shapes: Callable[..., ModuleType]
) -> None:
    module = shapes()
    cache.set(SHARED, "k", {"a": [1, (2, 3)]})
    before = cache.get(SHARED, "k")
    importlib.reload(module)
    assert cache.get(SHARED, "k") is before
    lock = object()
    assert renewed([lock])[0] is lock


def test_under_the_lock_nothing_of_the_program_runs(cache: CacheManager) -> None:
    """The collector looks at what is kept, too; it renews nothing, and hides nothing that is to be renewed."""
    engaged: list[bool] = []
    lock = section()

    def make() -> Any:
        @dataclasses.dataclass(frozen=True)
        class Local:
            a: int

        def taken(value: Any) -> int:
            engaged.append(lock._is_owned())  # type: ignore[attr-defined]
            return int(value.a)

        return register_type(Local, encode=taken, decode=Local)

    old = make()
    cache.set(SHARED, "k", old(1))
    assert type(cache.get(SHARED, "k")) is old
    engaged.clear()
    new = make()
    assert engaged == []
    cache._state.memory.sweep()
    assert engaged == []
    assert cache.get(SHARED, "k") == new(1)
    assert engaged == [False]
    assert cache.get(SHARED, "k") == new(1)
    assert engaged == [False]


def test_a_reload_takes_no_time_per_value(cache: CacheManager, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bytes] = []
    stands = LocalCache._is_current

    def counted(self: LocalCache, name: bytes, entry: Any) -> bool:
        looked.append(name)
        return stands(self, name, entry)

    for number in range(100):
        cache.set("many", number, "x")
    monkeypatch.setattr(LocalCache, "_is_current", counted)
    for _ in range(2):
        register_type(enum.Enum("Reloaded", {"ONE": 1}, module=__name__))
    assert looked == []


def test_replaced_classes_are_not_kept_alive(shapes: Callable[..., ModuleType]) -> None:
    import gc
    import weakref

    module = shapes()
    old = weakref.ref(module.Colour)
    encode(module.Colour.RED)
    importlib.reload(module)
    gc.collect()
    assert old() is None
    assert all(cls is not None for cls in registry._replaced)


async def test_from_redis_it_is_the_new_class_too(url: str, shapes: Callable[..., ModuleType]) -> None:
    module = shapes()
    with CacheManager(redis_url=url) as cache:
        cache.set("colours", "one", module.Colour.RED)
        cache.set("colours", "tuple", (module.Colour.RED, 1))
        importlib.reload(module)
        assert cache.get("colours", "one") is module.Colour.RED
        assert cache.get("colours", "tuple") == (module.Colour.RED, 1)


def test_objects_of_local_namespaces_stay_the_very_objects(shapes: Callable[..., ModuleType], url: str) -> None:
    """They are kept by reference: what a caller has changed in one must not get lost with a copy."""
    local = Namespace("reloaded-local", local=True)
    for options in ({"redis_enabled": False}, {"redis_url": url}):
        with CacheManager(**options) as cache:  # type: ignore[arg-type]
            module = shapes()
            kept = values(module)
            for key, value in kept.items():
                cache.set(local, key, value)
                assert cache.touch(local, key, "1h")
            loaded = cache.get_or_set(local, "loaded", lambda leg=kept["leg"]: leg)
            assert loaded is kept["leg"]
            importlib.reload(module)
            for key, value in kept.items():
                assert cache.get(local, key) is value
            assert cache.get(local, "loaded") is loaded
