"""Docstrings that are written once: the blocking operations take theirs from the operations for coroutines."""

import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["documented_by"]

C = TypeVar("C", bound=type)

_REFERENCE = re.compile(r"Do what `(\w+)\.(\w+)` does[^.]*\.\s*")
_FIELD = re.compile(r":(param|raises|ivar) (\w+):")


def documented_by(other: type) -> Callable[[C], C]:
    """Return a class decorator for methods whose docstring begins with "Do what `Other.method` does".

    Such a method gets the text of the other method. The rest of its own docstring is added: paragraphs after those of
    the other method, and fields (of parameters and errors) in place of fields of the same name. `help()` shows all.

    :param other: the class that the docstrings name.
    """

    def document(cls: C) -> C:
        for member in vars(cls).values():
            text = inspect.cleandoc(getattr(member, "__doc__", None) or "")
            reference = _REFERENCE.match(text)
            if inspect.isfunction(member) and reference is not None and reference[1] == other.__name__:
                source: Any = inspect.getattr_static(other, reference[2])
                member.__doc__ = _combined(inspect.cleandoc(source.__doc__), text[reference.end() :])
        return cls

    return document


def _combined(text: str, more: str) -> str:
    (head, fields), (added, own) = _parts(text), _parts(more)
    last = fields.pop("Exception", None)
    fields |= own
    if last is not None:
        fields.setdefault("Exception", last)
    return "\n\n".join(part for part in (head, added, "\n".join(fields.values())) if part)


def _parts(text: str) -> tuple[str, dict[str, str]]:
    """Return the text before the fields, and the fields by name. Text after the fields is dropped."""
    head: list[str] = []
    fields: dict[str, str] = {}
    name = ""
    for line in text.split("\n"):
        found = _FIELD.match(line)
        if found is not None:
            name = found[2]
            fields[name] = line
        elif not fields:
            head.append(line)
        elif line.startswith(" "):
            fields[name] += f"\n{line}"
        else:
            break
    return "\n".join(head).strip(), fields
