"""Pictures of commands as a person sees them: a real terminal, drawn by a browser."""

import html
import os
import sys
import time
from typing import Any, Final

import pexpect
import pyte

from tests.support.programs import ROOT

__all__ = ["screen_of"]

_COLOURS: Final = {
    "default": "#d7dae0", "black": "#3b4048", "red": "#ef6b73", "green": "#98c379", "brown": "#e5c07b",
    "yellow": "#e5c07b", "blue": "#61afef", "magenta": "#c678dd", "cyan": "#56b6c2", "white": "#ffffff",
}  # fmt: skip
_PAGE: Final = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: #fff }}
#screen {{ display: inline-block; padding: 14px 18px; border-radius: 8px; background: #21252b;
          font: 14px/1.45 "DejaVu Sans Mono", monospace; white-space: pre; color: #d7dae0 }}
</style><div id="screen">{lines}</div>"""


def screen_of(
    command: tuple[str, ...], url: str, *, columns: int = 110, lines: int = 40, until: str | None = None
) -> str:
    """Run ``magnus-cache`` in a terminal, and return its screen as a page of HTML.

    :param until: a pattern to wait for; then the command gets Ctrl-C. None waits for its end.
    """
    left_out = {"COLUMNS", "LINES", "NO_COLOR"}
    environment = {name: text for name, text in os.environ.items() if name not in left_out}
    variables = {**environment, "PYTHONPATH": str(ROOT), "REDIS_URL": url, "TERM": "xterm-256color"}
    program: Any = pexpect.spawn(
        sys.executable, ["-m", "magnus_cache", *command], env=variables,  # type: ignore[arg-type]  # a mapping of texts
        encoding="utf-8", dimensions=(lines, columns), timeout=60,
    )  # fmt: skip
    screen = pyte.Screen(columns, lines)
    stream = pyte.Stream(screen)
    if until is None:
        program.expect(pexpect.EOF)
        stream.feed(program.before)
    else:
        program.expect(until)
        stream.feed(program.before + program.after + program.buffer)
        # The rest of the table that the pattern is in.
        ended = time.monotonic() + 1.0
        while time.monotonic() < ended:
            try:
                stream.feed(program.read_nonblocking(100_000, timeout=0.2))
            except pexpect.TIMEOUT:
                break
    program.close(force=True)
    shown = [f"$ <b>magnus-cache {html.escape(' '.join(command))}</b>"]
    shown += [_line(screen.buffer[number], columns) for number in range(lines)]
    while not shown[-1].strip():
        shown.pop()
    return _PAGE.format(lines="\n".join(shown))


def _line(cells: Any, columns: int) -> str:
    parts, text, style = list[str](), "", ""
    for number in range(columns):
        cell = cells[number]
        colour = _COLOURS.get(cell.fg, f"#{cell.fg}")
        wanted = f"color: {colour}" + ("; font-weight: bold" if cell.bold else "")
        if wanted != style and text:
            parts.append(f'<span style="{style}">{html.escape(text)}</span>')
            text = ""
        style = wanted
        text += cell.data
    if text.strip():
        parts.append(f'<span style="{style}">{html.escape(text.rstrip())}</span>')
    return "".join(parts).rstrip()
