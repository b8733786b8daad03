"""Append-only files of a run: a line is on its way to the disk before the next call is made.

The journal holds one line per answered call. It is the crash log, the response cache of a resumed
run, and the only place that says how long calls took.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from evalkit.errors import BadConfig, DamagedRun, RunFailed

FORMAT = "journal/1"


class Appender:
    """A file that only grows, one whole line per write, held by one process at a time.

    Opening it cuts off a last line that was torn by a crash. Each `write` is one system call on a
    descriptor without a buffer, so killing the process loses no line that was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o644)
        except OSError as error:
            raise BadConfig(f"cannot write {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise BadConfig(f"{path.parent} is being played by another process") from error
        self.size_bytes = _whole_lines(path)
        os.ftruncate(self._fd, self.size_bytes)

    def write(self, line: bytes) -> int:
        """Append `line` and a newline; return where it begins, in bytes.

        Raises:
            RunFailed: the file system took only a part, or nothing.

        """
        offset = self.size_bytes
        data = line + b"\n"
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise RunFailed(f"cannot write {self.path}: {error}") from error
        if written != len(data):
            os.ftruncate(self._fd, offset)
            raise RunFailed(f"cannot write {self.path}: the disk took a part of a line only")
        self.size_bytes += written
        return offset

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (offset in bytes, line without its newline) of every whole line."""
    if not path.exists():
        return
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield offset, line[:-1]
            offset += len(line)


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the journal's entries.

    Raises:
        DamagedRun: a line that is not the last cannot be read.

    """
    for offset, line in read_lines(path):
        try:
            entry = orjson.loads(line)
        except ValueError as error:
            raise DamagedRun(f"{path}, byte {offset}: {error}") from error
        if not isinstance(entry, dict) or entry.get("format") != FORMAT:
            raise DamagedRun(f"{path}, byte {offset}: expected a {FORMAT} entry")
        yield entry


def _whole_lines(path: Path) -> int:
    """Return the size up to and including the last newline, in bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while size:
            start = max(0, size - 65536)
            file.seek(start)
            newline = file.read(size - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            size = start
    return 0
