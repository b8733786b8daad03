"""What a job's log says, read as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def new_lines(log: Path, at: int, *, whole: bool = False) -> tuple[Sequence[str], int]:
    """Return the lines from a position on, and the position after them.

    A line that is not complete waits for its end, unless `whole` asks for all there is.
    """
    try:
        with log.open("rb") as file:
            file.seek(at)
            said = file.read()
    except FileNotFoundError:
        return (), at
    return complete(said, at, whole=whole)


def complete(said: bytes, at: int, *, whole: bool = False) -> tuple[Sequence[str], int]:
    """Split what came from position `at` on into lines."""
    if not whole:
        said = said[: said.rfind(b"\n") + 1]
    return said.decode("utf-8", "replace").splitlines(), at + len(said)


def last_error(log: Path) -> str:
    """Return what the last line says that begins with `error: `, "" without one."""
    lines, _ = new_lines(log, 0, whole=True)
    told = [line for line in lines if line.startswith("error: ")]
    return told[-1].removeprefix("error: ") if told else ""
