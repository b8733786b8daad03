"""Rows of data sets: read from JSON Lines files, the shipped ones included, never at import.

Knows no task. A file that does not hold what it must is a `ValueError` that names the line.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

Row = Mapping[str, Any]


def shipped_text(name: str) -> str:
    """Return the text of a data file that is shipped with the package."""
    return resources.files("envs.tasks").joinpath("data", name).read_text("utf-8")


def file_text(path: str) -> str:
    """Return the text of a user's file.

    Raises:
        ValueError: it cannot be read.

    """
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def rows_of(text: str, source: str) -> list[tuple[str, Row]]:
    """Read one JSON object a line; each row comes with its place, `source:line`.

    Raises:
        ValueError: a line holds something else, or there is none.

    """
    rows: list[tuple[str, Row]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{source}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{place}: expected a JSON object, and this is none: {error}"
            ) from None
        if not isinstance(row, dict):
            raise ValueError(f"{place}: expected a JSON object, found a {type(row).__name__}")
        rows.append((place, row))
    if not rows:
        raise ValueError(f"{source}: expected one JSON object a line, found no line")
    return rows


def text_field(row: Row, name: str, place: str) -> str:
    """Return a field that must be a text.

    Raises:
        ValueError: it is missing, empty or no text.

    """
    value = row.get(name)
    if not (isinstance(value, str) and value.strip()):
        shown = f"found {value!r}" if name in row else f"found {', '.join(row) or 'none'}"
        raise ValueError(f"{place}: expected a field {name!r} that is a text, {shown}")
    return value


def stamp(path: str) -> tuple[int, int]:
    """Return what changes when a file does: a key for caches of what was read from it.

    Raises:
        ValueError: there is no such file.

    """
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    return stat.st_mtime_ns, stat.st_size


def digest_of(*texts: str) -> str:
    """Name texts: 16 hexadecimal digits."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@cache
def source_of(module: ModuleType) -> str:
    """Return the source of a module whose rules an env applies; part of the env's digest."""
    return inspect.getsource(module)
