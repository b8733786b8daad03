"""What a watch has done, in `watch.json`: it goes on from there, and evaluates nothing twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from evalkit.errors import BadConfig, DamagedRun
from evalkit.record.rundir import write_whole
from evalkit.watch.curve import Status

FILE = "watch.json"
FORMAT = "watch/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What became of one version."""

    version: str
    status: Status | None
    """None while it is being evaluated."""
    number: int
    served: str | None = None
    """What requests called it."""
    run: str | None = None
    """Its run's directory, below the watch's own."""
    message: str | None = None


class State:
    """The versions so far, in the order in which they were settled."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Go on with what `folder` holds, or begin.

        Raises:
            BadConfig: it holds a watch with other settings, or cannot be written.
            DamagedRun: its file is not one of ours.

        """
        self._path = folder / FILE
        self._settings = dict(settings)
        self.entries: dict[str, Entry] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                self._read()
        except OSError as error:
            raise BadConfig(f"cannot write {folder}: {error}") from error

    def settle(self, entry: Entry) -> None:
        """Write down what is known of a version, as the newest entry."""
        self.entries.pop(entry.version, None)
        self.entries[entry.version] = entry
        whole = {
            "format": FORMAT,
            "settings": self._settings,
            "versions": [asdict(each) for each in self.entries.values()],
        }
        write_whole(self._path, orjson.dumps(whole, option=orjson.OPT_INDENT_2) + b"\n")

    def _read(self) -> None:
        try:
            said = orjson.loads(self._path.read_bytes())
            if said["format"] != FORMAT:
                raise ValueError(f"expected format {FORMAT}, found {said['format']}")
            before = said["settings"]
            for row in said["versions"]:
                status = None if row["status"] is None else Status(row["status"])
                self.entries[row["version"]] = Entry(**{**row, "status": status})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedRun(f"{self._path}: {error}") from error
        for name, value in self._settings.items():
            if before.get(name) != value:
                raise BadConfig(
                    f"{self._path.parent} watches with {name} = {before.get(name)!r}, not "
                    f"{value!r}: versions compare on equal terms only; choose another --out"
                )
