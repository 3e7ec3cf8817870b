"""Reads recorded accesses: the files of one or many processes, as they are, also where the last block was cut short."""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from magnus_cache._engine.runtime.access_format import (
    DETAILED,
    FORMAT,
    FRAME,
    MAGIC,
    NO_KEY,
    SUFFIX,
    VERSION,
    Kind,
    Source,
    unpacked_column,
)

__all__ = ["Process", "RecordingError", "Row", "read_processes"]

_HEADER: Final = ("process", "number", "share", "group", "redis", "default_ttl", "l1_max_entries", "l1_max_bytes")
_PART: Final = 2**20
_KINDS: Final = {int(kind) for kind in Kind}
_DETAILED: Final = {int(kind) for kind in DETAILED}


class RecordingError(ValueError):
    """A recording that cannot be read, or that has nothing in it; the message names the file and the remedy."""


class Row(NamedTuple):
    """One record: microseconds, its kind, the number of its source (0 for none), its key (None for none), details."""

    at: int
    kind: int
    source: int
    key: int | None
    detail: Any


_Part = tuple[int, Mapping[str, Any], Path, list[dict[str, Any]], bool]
"""A file: its number, its header, where it is, its other blocks, and whether it ends in the midst of one."""


@dataclass
class Process:
    """What one process has recorded.

    :ivar header: the settings it ran with.
    :ivar rows: in the order of their times.
    :ivar sources: by number.
    :ivar totals: by source: hits in memory, hits in Redis and misses of all keys, if only a share was recorded.
    :ivar spent: by source: billionths of the money that its loads have cost, and how many they were.
    :ivar cut: how many of its files end in the midst of a block.
    :ivar lost: accesses that it could not record.
    """

    header: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)
    sources: dict[int, Source] = field(default_factory=dict)
    totals: dict[int, list[int]] = field(default_factory=dict)
    spent: dict[int, tuple[int, int]] = field(default_factory=dict)
    cut: int = 0
    lost: int = 0


def read_processes(paths: Iterable[str | PathLike[str]]) -> list[Process]:
    """Return what each process has recorded.

    :param paths: folders, of which all recordings are read, and single files.
    :raises RecordingError: for what is no recording, or one of another version, and if there is no access in them.
    """
    found: dict[str, dict[int, _Part]] = {}
    for path in _files(paths):
        blocks, cut = _blocks(path)
        if not blocks:
            continue  # the process was killed before its first block was whole
        header = _header(path, blocks[0])
        parts, number = found.setdefault(header["process"], {}), header["number"]
        # A file that was given twice, or copied while it was written, counts once: as far as the longest copy goes.
        if number not in parts or len(parts[number][3]) < len(blocks) - 1:
            parts[number] = number, header, path, blocks[1:], cut
    processes = [_process(list(parts.values())) for _, parts in sorted(found.items())]
    processes = [process for process in processes if process.rows]
    if not processes:
        raise RecordingError(
            "nothing was recorded in these files; was the cache in use, and did the program run for some seconds?"
        )
    return processes


def _files(paths: Iterable[str | PathLike[str]]) -> list[Path]:
    files: dict[Path, None] = {}
    given = list(paths)
    for path in map(Path, given):
        if path.is_dir():
            files.update(dict.fromkeys(sorted(path.glob(f"*{SUFFIX}"))))
        elif path.is_file():
            files[path] = None
        else:
            raise RecordingError(f"{path}: there is no such file or folder")
    if not files:
        where = ", ".join(map(str, given)) or "nothing"
        raise RecordingError(f"{where}: there are no recordings (*{SUFFIX}); set MAGNUS_CACHE_RECORD to make some")
    return list(files)


def _blocks(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Return the whole blocks of a file, and whether it ends in the midst of one."""
    blocks: list[dict[str, Any]] = []
    try:
        with path.open("rb") as file:
            while head := file.read(FRAME.size):
                if not head.strip(b"\0") and not any(part.strip(b"\0") for part in iter(lambda: file.read(_PART), b"")):
                    return blocks, True  # as a file system leaves it when the power fails
                if not MAGIC.startswith(head[: len(MAGIC)]):
                    raise RecordingError(f"{path}: this is no recording of accesses, or it is damaged")
                if len(head) < FRAME.size:
                    return blocks, True
                _, length, check = FRAME.unpack(head)
                rest = file.read(length)
                if len(rest) < length:
                    return blocks, True
                if zlib.crc32(rest) != check:
                    raise RecordingError(f"{path}: block {len(blocks) + 1} is damaged; leave this file out")
                blocks.append(_unpacked(path, rest))
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror}") from error
    return blocks, False


def _unpacked(path: Path, rest: bytes) -> dict[str, Any]:
    try:
        block = msgpack.unpackb(zlib.decompress(rest), unicode_errors="surrogatepass")
    except Exception as error:
        raise RecordingError(f"{path}: a block cannot be unpacked: {type(error).__name__}") from error
    if not isinstance(block, dict):
        raise RecordingError(f"{path}: this is no recording of accesses")
    return block


def _header(path: Path, header: Mapping[str, Any]) -> Mapping[str, Any]:
    if header.get("format") != FORMAT:
        raise RecordingError(f"{path}: this is no recording of accesses")
    if header.get("version") != VERSION:
        problem = f"the format has version {header.get('version')}, and this program reads version {VERSION}"
        raise RecordingError(f"{path}: {problem}; use the version of magnus_cache that has recorded it")
    if missing := [name for name in _HEADER if name not in header]:
        raise RecordingError(f"{path}: the header lacks {', '.join(missing)}")
    return header


def _process(files: list[_Part]) -> Process:
    files.sort(key=lambda file: file[0])
    process = Process(files[0][1])
    blocks: list[tuple[Path, dict[str, Any]]] = []
    for _, _, path, its, cut in files:
        process.cut += cut
        blocks += ((path, block) for block in its)
    offsets = [block["offset"] for _, block in blocks if block.get("offset") is not None]
    # What was recorded before Redis answered has the same clock as the rest.
    offset = offsets[0] if offsets else 0
    for path, block in blocks:
        try:
            process.lost += block["lost"]
            for found in block["found"]:
                source = Source(*found)
                process.sources[source.number] = source
            for number, *counts in block["totals"]:
                sums = process.totals.setdefault(number, [0, 0, 0])
                for place, count in enumerate(counts):
                    sums[place] += count
            process.spent |= {number: (nanos, loads) for number, nanos, loads in block["spent"]}
            process.rows += _rows(block, offset)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RecordingError(f"{path}: a block does not have what it should: {error}") from error
    process.rows.sort(key=lambda row: row[0])
    return process


def _rows(block: Mapping[str, Any], offset: int) -> Iterator[Row]:
    times, kinds = unpacked_column("I", block["times"]), block["kinds"]
    sources, places = unpacked_column("H", block["sources"]), unpacked_column("I", block["places"])
    keys, details, base = unpacked_column("Q", block["keys"]), iter(block["details"]), block["base"] + offset
    if not len(times) == len(kinds) == len(sources) == len(places):
        raise ValueError("its columns differ in length")
    unknown = set(kinds) - _KINDS
    if unknown:
        raise ValueError(f"unknown kinds of records: {sorted(unknown)}")
    for time, kind, source, place in zip(times, kinds, sources, places, strict=True):
        key = None if place == NO_KEY else keys[place]
        yield Row(base + time, kind, source, key, next(details, None) if kind in _DETAILED else None)
