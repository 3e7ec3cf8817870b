"""The part of the documentation that a run writes: what it printed, between two marks of a Markdown file."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["BEGIN", "END", "document"]

BEGIN: Final = "<!-- What follows is written by `nox -s bench`. -->"
END: Final = "<!-- End of what is written by `nox -s bench`. -->"


def document(
    path: Path, texts: Mapping[str, str], machine: Mapping[str, Any], command: str, pictures: Sequence[Path] = ()
) -> None:
    """Replace what stands between the marks of a file.

    :param texts: blocks of output by their headings.
    :param machine: what is to be known about the machine.
    :param command: the command that printed it.
    :param pictures: to be shown, at or below the file's folder.
    :raises ValueError: if the file does not have the two marks.
    """
    facts = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in machine.items())
    parts = [f"Command: `{command}`. Machine: {facts}."]
    parts += [f"![{shown.stem}]({shown.relative_to(path.parent).as_posix()})" for shown in pictures]
    parts += [f"### {heading}\n\n```text\n{_trimmed(text)}\n```" for heading, text in texts.items()]
    text = path.read_text(encoding="utf-8")
    between = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not between.search(text):
        raise ValueError(f"{path} has no part between {BEGIN!r} and {END!r}")
    written = "\n\n".join([BEGIN, *parts, END])
    path.write_text(between.sub(lambda _: written, text), encoding="utf-8")


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())
