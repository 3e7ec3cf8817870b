"""The story of the documentation, typed as a reader would type it: files, commands, and what is printed."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from tests.support.dashboards import free_port
from tests.support.documents import PAGES, ROOT
from tests.support.wait import wait_until

_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
_PATIENCE = 60.0


class Block(NamedTuple):
    """A block of code of the page."""

    language: str
    title: str
    text: str


STORY = [Block(*found) for found in _BLOCK.findall(PAGES["story"].text)]


def _plain(text: str) -> str:
    """Return what is printed, without the times that differ from run to run, and the blanks of another `wc`."""
    return re.sub(r"^[ ]+", "", re.sub(r"\d+\.\d s\b", "… s", text), flags=re.MULTILINE)


class Terminal:
    """A window in which one program runs at a time, in the background."""

    def __init__(self, path: Path, desk: "Desk") -> None:
        self._path = path
        self._desk = desk
        self._program: subprocess.Popen[bytes] | None = None
        self._read = 0

    def type(self, text: str) -> None:
        """Type the commands of a block, and wait for the lines that it shows."""
        for line in text.splitlines():
            if line == "^C":
                self.close()
            elif line.startswith("$ "):
                self._start(line[2:])
            else:
                self._wait_for(line)

    def _start(self, command: str) -> None:
        with self._path.open("ab") as output:
            self._program = self._desk.start(command, output)

    def _wait_for(self, line: str) -> None:
        wait_until(lambda: line in self._unread(), _PATIENCE)
        self._read += self._unread().index(line) + len(line)

    def _unread(self) -> str:
        return self._desk.shown(self._path.read_text(encoding="utf-8"))[self._read :]

    def close(self) -> None:
        """Press Ctrl-C, and wait for the end of the program."""
        if self._program is not None:
            self._program.send_signal(signal.SIGINT)
            self._program.wait(_PATIENCE)
            self._program = None


class Desk:
    """A folder, a shell, and a Redis that is expected at a free port instead of 6379."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "shop"
        self._port = str(free_port())
        programs = folder / "bin"
        for place in (self.folder, programs):
            place.mkdir()
        for name, arguments in (("python", ""), ("magnus-cache", "-m magnus_cache ")):
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
            (programs / name).chmod(0o755)
        # Unbuffered, programs that print at once would mix their lines.
        others = ("REDIS_", "MAGNUS_", "PYTHONUNBUFFERED")
        settings = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        self._environment = settings | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "REDIS_PORT": self._port,
        }  # fmt: skip
        self._terminals: dict[str, Terminal] = {}

    def shown(self, text: str) -> str:
        """Return what is printed, as it would be at the usual port."""
        return text.replace(self._port, "6379")

    def start(self, command: str, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """Start a command in the folder."""
        typed = command.replace("magnus-cache serve", f"exec magnus-cache serve --port {self._port}")
        typed = f"exec {typed}" if typed == "python watch.py" else typed
        return subprocess.Popen(
            ["bash", "-c", typed], cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def terminal(self, name: str) -> Terminal:
        """Return the terminal of this name."""
        if name not in self._terminals:
            output = self.folder.parent / f"{name}.txt"
            output.touch()
            self._terminals[name] = Terminal(output, self)
        return self._terminals[name]

    def type(self, text: str) -> None:
        """Type commands one after the other, and compare what they print with what is written below them."""
        for command, expected in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
            printed, _ = self.start(command, subprocess.PIPE).communicate(timeout=_PATIENCE)
            shown = self.shown(printed.decode())
            if command.startswith("magnus-cache explain"):
                shown = shown.partition("\n")[0] + "\n"
            assert _plain(shown) == _plain(expected), command

    def close(self) -> None:
        """Close all terminals."""
        for terminal in reversed(self._terminals.values()):
            terminal.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with contextlib.closing(Desk(tmp_path)) as desk:
        yield desk


def test_the_text_names_each_file_and_terminal() -> None:
    """GitHub does not show the titles of blocks."""
    text = PAGES["story"].text
    for found in _BLOCK.finditer(text):
        before = " ".join(text[: found.start()].rstrip().rpartition("\n\n")[2].split())
        assert not found[2] or found[2].lower() in before.lower(), before


@pytest.mark.timeout(300)
def test_the_story_can_be_typed(desk: Desk) -> None:
    kinds = {block.language for block in STORY if block.title or block.language == "console"}
    assert kinds == {"python", "json", "bash", "console"}
    for block in STORY:
        if block.language == "console" and block.title:
            desk.terminal(block.title).type(block.text)
        elif block.language == "console":
            desk.type(block.text)
        elif block.title:
            (desk.folder / block.title).write_text(block.text)
