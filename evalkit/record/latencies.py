"""How long calls took, as a sample: enough for a distribution, whatever the size of the journal.

`performance` counts every call; here the journal is read at evenly spaced places only.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from evalkit.errors import DamagedRun
from evalkit.record.journal import read_lines

MOST_CALLS = 4000
WHOLE_BYTES = 2_000_000
"""A journal up to this size is read in full."""


def sampled_latencies(journal: Path, run_id: str, arms: Iterable[str]) -> dict[str, list[float]]:
    """Return the seconds of some answered calls of each arm: all of them in a small journal.

    Raises:
        DamagedRun: an entry cannot be read.

    """
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    stem = len(run_id) + 1
    for line in _sample(journal):
        try:
            entry: dict[str, Any] = orjson.loads(line)
            arm = entry["request_id"][stem:].rsplit("-", 3)[0]
            if arm in found:
                found[arm].append(float(entry["completion"]["elapsed_s"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedRun(f"{journal}: {error} is not as expected") from error
    return found


def _sample(path: Path) -> Iterable[bytes]:
    size_bytes = path.stat().st_size if path.exists() else 0
    if size_bytes <= WHOLE_BYTES:
        return (line for _, line in read_lines(path))
    return _spread(path, size_bytes)


def _spread(path: Path, size_bytes: int) -> Iterable[bytes]:
    """Yield the lines that follow evenly spaced places, each once."""
    before = -1
    with path.open("rb") as file:
        for place in range(MOST_CALLS):
            file.seek(place * size_bytes // MOST_CALLS)
            if place:
                file.readline()
            begin = file.tell()
            line = file.readline()
            if begin != before and line.endswith(b"\n"):
                yield line
            before = begin
