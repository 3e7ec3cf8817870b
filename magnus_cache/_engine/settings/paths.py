"""Paths among the settings, checked when they are made: later, a line in the log is all there can be."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

__all__ = ["RecordFolder", "RecoveryFile"]


def _absent(value: Any) -> Any:
    return None if value == "" else value


def _usable_file(value: Path | None) -> Path | None:
    if value is None:
        return None
    if value.name == ":memory:":
        raise ValueError("memory does not outlive the process; name a file")
    path = value.expanduser().absolute()
    if path.is_dir():
        raise ValueError("it is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise ValueError("it exists and is not an ordinary file; name another")
    if not path.parent.is_dir():
        raise ValueError("its folder does not exist; create it, readable by this user only")
    if not os.access(path.parent, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.R_OK | os.W_OK)):
        raise ValueError("this user cannot write there; the file and its folder must be writable")
    return path


def _usable_folder(value: Path | None) -> Path | None:
    if value is None:
        return None
    path = value.expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise ValueError("it is not a folder; name one, where each process writes files of its own")
    there = next((parent for parent in (path, *path.parents) if parent.exists()), path)
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError("this user cannot write there; the folder must be writable")
    return path


RecoveryFile = Annotated[Path | None, AfterValidator(_usable_file), BeforeValidator(_absent)]
"""A file that can be written; it is made an absolute path. An empty text is None."""

RecordFolder = Annotated[Path | None, AfterValidator(_usable_folder), BeforeValidator(_absent)]
"""A folder that is there or can be made; it is made an absolute path. An empty text is None."""
