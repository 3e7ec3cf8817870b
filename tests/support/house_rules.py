"""What the rules for tests forbid, found by reading: looks deep inside, and tests that sleep."""

import ast
import re
import textwrap
from collections.abc import Iterator
from typing import Final, TypeAlias

__all__ = ["deep_looks", "own_sleeps"]

_PRIVATE: Final = re.compile(r"_[a-z]\w*\Z")
_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_PASSES_ON: Final = {"iter", "list", "next", "set", "sorted", "tuple", "vars"}
"""Built-in functions that return what is in their argument."""


def deep_looks(code: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each place that reaches through two private attributes, or more, in a row.

    Variables are followed within their function, also from a loop or a comprehension. What an object has as its own
    (`self._cache`) does not count. Programs within texts are read as well.
    """
    yield from sorted(set(_looks(ast.parse(code), {})))


def _looks(scope: ast.AST, known: dict[str, int]) -> Iterator[tuple[int, str]]:
    own = {each.arg for each in ast.walk(scope) if isinstance(each, ast.arg)} if isinstance(scope, _Function) else ()
    depths, inner = {name: depth for name, depth in known.items() if name not in own}, list[ast.AST]()
    nodes = list(_within(scope, inner))
    for node in nodes:
        for target, value in _bindings(node):
            values = value.elts if isinstance(value, ast.Tuple) else [value]
            depth = max((_depth(each, depths) for each in values), default=0)
            stored = (each for each in ast.walk(target) if isinstance(each, ast.Name))
            depths |= {name.id: depth for name in stored if isinstance(name.ctx, ast.Store)}
    for node in nodes:
        match node:
            case ast.Attribute(attr=name) if _PRIVATE.match(name) and _depth(node, depths) >= 2:
                yield node.lineno, ast.unparse(node)
            case ast.Call(args=[owner, ast.Constant(value=str(name)), *_]) if _PRIVATE.match(name):
                # getattr, setattr, monkeypatch.setattr and the like.
                if _depth(owner, depths) >= 1:
                    yield node.lineno, ast.unparse(node)
            case ast.Constant(value=str(text)) if "._" in text:
                yield from ((node.lineno + line, look) for line, look in _looks_in_text(text))
            case _:
                pass
    for each in inner:
        yield from _looks(each, depths)


def _looks_in_text(text: str) -> Iterator[tuple[int, str]]:
    try:
        program = ast.parse(textwrap.dedent(text))
    except SyntaxError:
        return
    yield from _looks(program, {})


def _within(scope: ast.AST, inner: list[ast.AST]) -> Iterator[ast.AST]:
    """Yield the nodes of a scope in the order of the text; leave the functions and classes in it to `inner`."""
    for child in ast.iter_child_nodes(scope):
        if isinstance(child, _Function | ast.ClassDef):
            inner.append(child)
        else:
            yield child
            yield from _within(child, inner)


def _bindings(node: ast.AST) -> Iterator[tuple[ast.AST, ast.expr]]:
    match node:
        case ast.Assign(targets=targets, value=value):
            yield from ((target, value) for target in targets)
        case ast.AnnAssign(target=target, value=ast.expr() as value) | ast.NamedExpr(target=target, value=value):
            yield target, value
        case (
            ast.For(target=target, iter=value)
            | ast.AsyncFor(target=target, iter=value)
            | ast.comprehension(target=target, iter=value)
            | ast.withitem(optional_vars=ast.expr() as target, context_expr=value)
        ):
            yield target, value
        case _:
            pass


def _depth(found: ast.expr, depths: dict[str, int]) -> int:
    """Return through how many private attributes an expression reaches."""
    match found:
        case (
            ast.Attribute(value=ast.Name(id="self" | "cls"))
            | ast.Attribute(value=ast.Name(id="magnus_cache"), attr="_engine")
        ):
            return 0
        case ast.Attribute(value=value, attr=name):
            return _depth(value, depths) + bool(_PRIVATE.match(name))
        case ast.NamedExpr(value=value):
            return _depth(value, depths)
        case ast.Call(func=ast.Name(id=name), args=[argument, *_]) if name in _PASSES_ON:
            return _depth(argument, depths)
        case ast.Call(func=value) | ast.Subscript(value=value) | ast.Await(value=value) | ast.Starred(value=value):
            return _depth(value, depths)
        case ast.Name(id=name):
            return depths.get(name, 0)
        case _:
            return 0


def own_sleeps(code: str) -> Iterator[int]:
    """Yield the lines in which a test, or a function of its module, lets time pass by itself.

    What a test hands over may sleep: functions within functions, and methods, are slow sources. Nor does it count to
    give the loop a turn, with ``sleep(0)``.
    """
    tree = ast.parse(code)
    for function in tree.body:
        if isinstance(function, _Function):
            yield from (node.lineno for node in _within(function, []) if isinstance(node, ast.Call) and _sleeps(node))


def _sleeps(call: ast.Call) -> bool:
    match ast.unparse(call.func):
        case "time.sleep" | "asyncio.sleep":
            return ast.unparse(call.args[0]) != "0"
        case "threading.Event().wait":
            return bool(call.args)
        case _:
            return False
