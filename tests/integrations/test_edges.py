"""What the edges have in common: how they use the engine, and values that are coded, compressed and sealed at once."""

import ast
from pathlib import Path

import magnus_cache.integrations

HERE = Path(magnus_cache.integrations.__file__).parent


def engine_imports(path: Path) -> list[str]:
    """Return the modules of the engine that a module imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
        found += [name for name in names if name and name.startswith("magnus_cache._engine")]
    return found


def test_one_module_of_the_edges_knows_the_engine() -> None:
    found = {str(path.relative_to(HERE)) for path in HERE.rglob("*.py") if engine_imports(path)}
    assert found == {"engine.py"}
