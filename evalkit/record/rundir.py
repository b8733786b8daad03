"""A run's directory: `results/<run_id>/`, what lies in it, and how trajectories are found again.

manifest.json       what was asked, of whom, with what versions
journal.jsonl       one line per answered call
trajectories.jsonl  one line per finished episode, in the order in which they finished; once all
                    are played, put into the order of `Key`, the last line of each
*.csv, report.*     made from the trajectories at the end, in the order of `Key`
shards/             the shards of a run that is being played by several, until they are merged
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import orjson

from evalkit.errors import BadConfig, DamagedRun
from evalkit.record.journal import Appender, read_lines
from evalkit.record.trajectory import UNSCORED, Key, Plain, Trajectory, parsed

MANIFEST_FORMAT = "run/1"
Raised = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
"""What `__exit__` is told."""


class RunDir:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, out: Path, run_id: str, manifest: Mapping[str, Any]) -> RunDir:
        """Make `out/run_id`, or `out/run_id.2` and so on where that is taken, with its manifest.

        Raises:
            BadConfig: the directory cannot be made.

        """
        try:
            out.mkdir(parents=True, exist_ok=True)
            path = _claim(out, run_id)
        except OSError as error:
            raise BadConfig(f"cannot write results below {out}: {error}") from error
        rundir = cls(path)
        rundir.write_manifest(manifest)
        return rundir

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open a run that was begun.

        Raises:
            BadConfig: there is no run at `path`.

        """
        rundir = cls(path)
        if not rundir.manifest_path.is_file():
            raise BadConfig(f"{path} is not a run: it has no manifest.json")
        return rundir

    @property
    def manifest_path(self) -> Path:
        """Where the manifest lies."""
        return self.path / "manifest.json"

    @property
    def journal_path(self) -> Path:
        """Where the journal lies."""
        return self.path / "journal.jsonl"

    @property
    def trajectories_path(self) -> Path:
        """Where the trajectories lie."""
        return self.path / "trajectories.jsonl"

    @property
    def shards_path(self) -> Path:
        """Where the shards lie while several play the run."""
        return self.path / "shards"

    @property
    def untouched(self) -> bool:
        """Whether nothing was played yet."""
        files = (self.journal_path, self.trajectories_path)
        return all(not file.exists() or file.stat().st_size == 0 for file in files)

    def manifest(self) -> dict[str, Any]:
        """Read the manifest.

        Raises:
            DamagedRun: it is not one.

        """
        try:
            manifest = orjson.loads(self.manifest_path.read_bytes())
        except (OSError, ValueError) as error:
            raise DamagedRun(f"{self.manifest_path}: {error}") from error
        if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
            raise DamagedRun(f"{self.manifest_path}: expected format {MANIFEST_FORMAT}")
        return manifest

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, all or nothing."""
        whole = {"format": MANIFEST_FORMAT, **manifest}
        write_whole(
            self.manifest_path,
            orjson.dumps(whole, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS) + b"\n",
        )

    def discard(self) -> None:
        """Remove the run, as long as nothing was played in it."""
        for file in self.path.iterdir():
            file.unlink()
        self.path.rmdir()


class TrajectoryFile:
    """trajectories.jsonl with an index in memory: an episode's last line is the one that counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scored: dict[Key, int] = {}
        """Where each finished, scored episode lies, in bytes."""
        self.unscored: dict[Key, int] = {}
        self._lines = 0
        for offset, line in read_lines(path):
            raw = _placed(path, offset, line)
            self._note(Key(**raw["key"]), offset, scored=raw["stop_reason"] not in UNSCORED)

    def append(self, file: Appender, trajectory: Trajectory) -> None:
        """Write a finished episode."""
        offset = file.write(trajectory.to_json())
        self._note(trajectory.key, offset, scored=trajectory.scored)

    def __iter__(self) -> Iterator[Trajectory]:
        """Read all episodes in the order of `Key`, one at a time."""
        return (Trajectory.from_json(line) for _, line in self.lines())

    def lines(self) -> Iterator[tuple[Key, bytes]]:
        """Yield (key, line without its newline) of all episodes in the order of `Key`."""
        places = sorted([*self.scored.items(), *self.unscored.items()])
        if not places:
            return
        with self.path.open("rb") as file:
            for key, offset in places:
                file.seek(offset)
                yield key, file.readline().rstrip(b"\n")

    def leave_out(self, unwanted: Callable[[Key], bool]) -> None:
        """Forget episodes; `arrange` then takes their lines away."""
        self.scored = {key: at for key, at in self.scored.items() if not unwanted(key)}
        self.unscored = {key: at for key, at in self.unscored.items() if not unwanted(key)}

    def arrange(self) -> None:
        """Put the file into the order of `Key`, so that equal runs give equal bytes.

        Lines that no longer count go. Whoever calls holds the run, by its journal, from which an
        episode that a power cut takes here is played again without a call.
        """
        offsets = [offset for _, offset in sorted([*self.scored.items(), *self.unscored.items()])]
        if len(offsets) == self._lines and offsets == sorted(offsets):
            return
        moved: dict[Key, int] = {}
        with WholeFile(self.path) as file:
            size_bytes = 0
            for key, line in self.lines():
                moved[key] = size_bytes
                size_bytes += file.write(line + b"\n")
        self._lines = len(moved)
        self.scored = {key: moved[key] for key in self.scored}
        self.unscored = {key: moved[key] for key in self.unscored}

    def _note(self, key: Key, offset: int, *, scored: bool) -> None:
        self._lines += 1
        if scored:
            self.unscored.pop(key, None)
            self.scored[key] = offset
        elif key not in self.scored:
            self.unscored[key] = offset


def episodes(path: Path) -> Iterator[Plain]:
    """Yield all episodes of a trajectories.jsonl in the order of `Key`, as plain values.

    What is there already in that order, as in every run that came to its end, is read once and
    not kept.

    Raises:
        DamagedRun: a line is not a trajectory; says where.

    """
    if _arranged(path):
        return (_placed(path, offset, line) for offset, line in read_lines(path))
    return (parsed(line) for _, line in TrajectoryFile(path).lines())


def _arranged(path: Path) -> bool:
    """Whether each line's key is above the one before, by how lines begin."""
    before: tuple[int, int, bytes] | None = None
    for _, line in read_lines(path):
        match = _BEGIN.match(line)
        if match is None:
            return False
        key = (int(match[1]), int(match[2]), match[3])
        if before is not None and key <= before:
            return False
        before = key
    return True


def _placed(path: Path, offset: int, line: bytes) -> Plain:
    """Read a line. Raises DamagedRun with its place."""
    try:
        return parsed(line)
    except DamagedRun as error:
        raise DamagedRun(f"{path}, byte {offset}: {error}") from error


_BEGIN = re.compile(
    rb'\{"format":"trajectory/1","key":\{"env_seed":(-?\d+),"repetition":(\d+),"arm":"([^"\\]*)"\},'
)
"""As `Trajectory.to_json` writes it; UTF-8 sorts as the characters do."""


class WholeFile:
    """A file that is either the old one or the new one, never a part: a temporary until the end."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> IO[bytes]:
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        self._temporary = Path(name)
        self._file = os.fdopen(handle, "wb")
        return self._file

    def __exit__(self, *raised: *Raised) -> None:
        try:
            self._file.close()
            if raised[0] is None:
                self._temporary.chmod(0o644)
                self._temporary.replace(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, all or nothing."""
    with WholeFile(path) as file:
        file.write(data)


def _claim(out: Path, run_id: str) -> Path:
    """Make the first free directory of `run_id`, `run_id.2`, `run_id.3`..."""
    number = 1
    while True:
        path = out / (run_id if number == 1 else f"{run_id}.{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path
