"""The runs of a folder: found by their manifests, each told in one line, nothing outside read.

A run is named by its path below the folder. What its manifest says is another's word until it was
looked at: a run that cannot be read is an entry that says so.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from evalkit.errors import DamagedRun, EvalkitError
from evalkit.judge.intervals import wilson
from evalkit.manifest import package_version
from evalkit.record.rundir import RunDir
from evalkit.record.shard import Shard
from evalkit.record.tables import read_csv
from evalkit.view.live import Played
from evalkit.view.routes import NotFound

MAX_DEPTH = 6
FILES = (".csv", ".md", ".html", ".json")
"""What may be taken from a run's directory, by its ending."""
LOCKS = Path("/proc/locks")
JUST_S = 15.0
"""A file that was written this long ago may be written again: between a run's locks, or by another
machine, whose locks are not seen."""


class RunState(StrEnum):
    """How far a run is."""

    RUNNING = "running"
    """A process of this machine holds its journal, or a file of it was just written."""
    FINISHED = "finished"
    """Played to its end, with its tables."""
    INTERRUPTED = "interrupted"
    """Begun and not finished, and nobody seems to play it: `resume` goes on."""
    DAMAGED = "damaged"
    """A file of it is not what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmLine:
    """What an arm has shown so far."""

    name: str
    model: str
    strategy: str
    guided: bool
    n: int = 0
    """Episodes that count."""
    success: float | None = None
    lo: float | None = None
    hi: float | None = None
    errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A run in one line."""

    name: str
    state: RunState
    env: str = ""
    env_digest: str = ""
    env_args: Mapping[str, Any] = field(default_factory=dict)
    arms: tuple[ArmLine, ...] = ()
    n_seeds: int = 0
    k: int = 1
    shard: str = ""
    fork: str = ""
    """At which turn it was forked from another run, where it was."""
    played: int = 0
    """Episodes finished, those lost to errors too."""
    total: int = 0
    """Episodes that are to be played, or fewer where the run stops when it is decided."""
    may_stop_early: bool = False
    headline: str = ""
    """What the first comparison of two arms says on success."""
    started_at: str = ""
    finished_at: str = ""
    config_digest: str = ""
    git_sha: str = ""
    version: int = 0
    """Grows when the run did."""
    problem: str = ""
    """Why it cannot be read."""

    @property
    def date(self) -> str:
        """When it ended, or else began; UTC."""
        return self.finished_at or self.started_at


class RunFolder:
    """A folder of runs, or the directory of one."""

    def __init__(
        self, root: Path, locks: Path = LOCKS, clock: Callable[[], float] = time.time
    ) -> None:
        self.root = root.resolve()
        self._locks = locks
        self._clock = clock
        self._played: dict[str, Played] = {}
        self._finished: dict[str, tuple[tuple[int, int], Entry]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Return the names of all runs, sorted; "." is the folder itself."""
        return sorted(self._found(self.root, 0))

    def entries(self) -> list[Entry]:
        """Return all runs, the latest first."""
        found = []
        for name in self.names():
            with suppress(NotFound):  # it was removed meanwhile
                found.append(self.entry(name))
        return sorted(found, key=lambda entry: (entry.date, entry.name), reverse=True)

    def run(self, name: str) -> RunDir:
        """Return the directory of a run.

        Raises:
            NotFound: it is not a run of this folder.

        """
        path = self.root / name
        hidden = any(part.startswith(".") for part in Path(name).parts)
        plain = "\0" not in name and Path(name).as_posix() == name  # one name for each run
        if hidden or not plain or not self.holds(path / "manifest.json"):
            raise NotFound(f"there is no run {name} in {self.root}")
        return RunDir(path)

    def holds(self, path: Path) -> bool:
        """Whether a file is there and lies, links followed, in the folder."""
        try:
            return path.resolve().is_relative_to(self.root) and path.is_file()
        except (OSError, ValueError):
            return False

    def file(self, name: str, file: str) -> Path:
        """Return a table or a report of a run.

        Raises:
            NotFound: there is no such file, or it is none to be given away.

        """
        if file not in self.files(name):
            raise NotFound(f"run {name} has no file {file}")
        return self.run(name).path / file

    def files(self, name: str) -> list[str]:
        """Return the names of the tables and reports of a run."""
        path = self.run(name).path
        return sorted(
            each.name
            for each in path.iterdir()
            if each.suffix in FILES and not each.name.startswith(".") and self.holds(each)
        )

    def played(self, name: str) -> Played:
        """Return the episodes of a run, followed from now on.

        Raises:
            NotFound: it is not a run of this folder.
            DamagedRun: its manifest is none.

        """
        rundir = self.run(name)
        arms = tuple(arm.name for arm in _arms(rundir.manifest()))
        with self._lock:
            known = self._played.get(name)
            if known is None or known.arms != arms:
                known = self._played[name] = Played(rundir.path, arms)
            return known

    def entry(self, name: str) -> Entry:
        """Tell a run in one line."""
        rundir = self.run(name)
        try:
            return self._entry(name, rundir)
        except (EvalkitError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            return Entry(name=name, state=RunState.DAMAGED, problem=why(error))

    def _entry(self, name: str, rundir: RunDir) -> Entry:
        found = rundir.manifest_path.stat()
        stamp = (found.st_mtime_ns, found.st_size)
        kept = self._finished.get(name)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        manifest = rundir.manifest()
        if manifest["finished_at"] is not None and self.holds(rundir.path / "summary.csv"):
            entry = _finished(name, rundir, manifest, self.holds(rundir.path / "compare.csv"))
            self._finished[name] = (stamp, entry)
            return entry
        return self._unfinished(name, rundir, manifest)

    def _unfinished(self, name: str, rundir: RunDir, manifest: Mapping[str, Any]) -> Entry:
        played = self.played(name)
        version = played.look()
        if manifest["finished_at"] is not None:
            state = RunState.FINISHED
        else:
            state = RunState.RUNNING if self._is_played(rundir.path) else RunState.INTERRUPTED
        arms = []
        for arm in _arms(manifest):
            count = played.counts[arm.name]
            arms.append(_counted(arm, count.n, count.successes, count.errors))
        asked, done = _asked(name, manifest), len(played.ended)
        return replace(asked, state=state, arms=tuple(arms), played=done, version=version)

    def _is_played(self, path: Path) -> bool:
        """Whether a run is being played.

        Locks are read where the kernel lists them: to try one would take it for a moment.
        """
        names = ("manifest.json", "journal.jsonl", "trajectories.jsonl")
        folders = [path, *path.glob("shards/*")]
        files = [folder / name for folder in folders for name in names]
        found = [file.stat() for file in files if self.holds(file)]
        if any(self._clock() - each.st_mtime < JUST_S for each in found):
            return True
        try:
            held = [line.split()[5] for line in self._locks.read_text().splitlines() if line]
        except (OSError, IndexError):
            return False
        inodes = {lock.rpartition(":")[2] for lock in held}
        return any(str(each.st_ino) in inodes for each in found)

    def _found(self, folder: Path, depth: int) -> Iterator[str]:
        if self.holds(folder / "manifest.json"):
            yield folder.relative_to(self.root).as_posix()
            return
        if depth == MAX_DEPTH:
            return
        try:
            with os.scandir(folder) as scanned:
                inside = [each.name for each in scanned if each.is_dir(follow_symlinks=False)]
        except OSError:
            return
        for name in inside:
            if not name.startswith("."):
                yield from self._found(folder / name, depth + 1)


def _finished(name: str, rundir: RunDir, manifest: Mapping[str, Any], compared: bool) -> Entry:
    """Tell a finished run by its tables: its episodes are not read."""
    rows = {row["arm"]: row for row in read_csv(rundir.path / "summary.csv")}
    arms, played = [], 0
    for arm in _arms(manifest):
        row = rows[arm.name]
        played += int(row["n_episodes"])
        arms.append(
            replace(
                arm,
                n=int(row["n_ok"]),
                success=number(row["success_rate"]),
                lo=number(row["success_lo"]),
                hi=number(row["success_hi"]),
                errors=int(row["n_error"]),
            )
        )
    headline = _headline(read_csv(rundir.path / "compare.csv")) if compared else ""
    state = RunState.FINISHED
    asked = _asked(name, manifest)
    return replace(asked, state=state, arms=tuple(arms), played=played, headline=headline)


def _asked(name: str, manifest: Mapping[str, Any]) -> Entry:
    """Tell a run as it was asked for, before anything was played."""
    config, env = manifest["config"], manifest["env"]
    seeds = config["seeds"]
    shard = str(manifest.get("shard") or "")
    fork = manifest.get("fork")
    n_seeds = len(Shard.parse(shard).of(seeds)) if shard else len(seeds)
    return Entry(
        name=name,
        state=RunState.INTERRUPTED,
        env=str(env["id"]),
        env_digest=str(env["digest"]),
        env_args=dict(env["params"]),
        n_seeds=n_seeds,
        k=int(config["k"]),
        shard=shard,
        fork="" if fork is None else f"fork at turn {fork['turn']}",
        total=n_seeds * int(config["k"]) * len(manifest["arms"]),
        may_stop_early=config.get("stop") is not None,
        started_at=str(manifest["started_at"]),
        finished_at=str(manifest["finished_at"] or ""),
        config_digest=str(manifest["config_digest"]),
        git_sha=str(manifest["git_sha"]),
    )


def _arms(manifest: Mapping[str, Any]) -> list[ArmLine]:
    """Return the arms as they were asked for.

    Raises:
        DamagedRun: the manifest does not say.

    """
    try:
        return [
            ArmLine(
                name=str(arm["name"]),
                model=str(arm["model"]),
                strategy=str(arm["strategy"]),
                guided=bool(arm["guided"]),
            )
            for arm in manifest["arms"]
        ]
    except (KeyError, TypeError) as error:
        raise DamagedRun(f"manifest.json does not say which arms there are: {error!r}") from error


def _counted(arm: ArmLine, n: int, successes: int, errors: int) -> ArmLine:
    if n == 0:
        return replace(arm, errors=errors)
    found = wilson(successes, n)
    return replace(arm, n=n, success=successes / n, lo=found.lo, hi=found.hi, errors=errors)


def _headline(rows: list[dict[str, str]]) -> str:
    """Say what compare.csv has on success, of its first pair of arms; and how many there are."""
    rows = [row for row in rows if row["metric"] == "success" and row["slice"] == "all"]
    if not rows:
        return ""
    row = rows[0]
    more = f" (and {len(rows) - 1} more pairs)" if len(rows) > 1 else ""
    diff, lo, hi = (number(row[name]) for name in ("diff", "lo", "hi"))
    size = "" if diff is None else f": {100 * diff:+.1f} points"
    if diff is not None and lo is not None and hi is not None:
        size += f" ({100 * lo:+.1f} .. {100 * hi:+.1f})"
    if row["verdict"] in {"better", "worse"}:
        return f"{row['b']} is {row['verdict']} than {row['a']}{size}{more}"
    word = row["verdict"].replace("_", " ").replace("undecided", "no decision")
    return f"{word} between {row['a']} and {row['b']}{size}{more}"


def why(error: Exception) -> str:
    """Say why a run cannot be read."""
    if isinstance(error, KeyError):
        return f"a file of it has no {error.args[0]!r}, which evalkit {package_version()} writes"
    return str(error) if isinstance(error, EvalkitError) else f"a file of it is damaged: {error}"


def number(text: str) -> float | None:
    """Read a cell of a table; None where it is empty or no number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def as_data(entry: Entry) -> dict[str, Any]:
    """Return an entry as what JSON has."""
    named = {name: getattr(entry, name) for name in entry.__slots__ if name != "arms"}
    arms = [{name: getattr(arm, name) for name in arm.__slots__} for arm in entry.arms]
    raw: dict[str, Any] = orjson.loads(
        orjson.dumps({**named, "arms": arms}, option=orjson.OPT_NON_STR_KEYS, default=str)
    )
    return raw
