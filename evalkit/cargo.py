"""A shard's journey into a container and back, over a volume.

    sent.tar.gz      the shard as it was sent, and the files that its config names
    journal.jsonl, trajectories.jsonl, manifest.json: what was played, copied every few seconds
    back.tar.gz      the same, when its command has ended

The container runs the command that a laptop would, on a disk of its own, because a volume is no
place for appending and locking. The next one goes on from what was kept. Knows no Modal.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import evalkit
from envs.registry import SHIPPED
from evalkit.config import Concurrency, RunConfig
from evalkit.environment import for_children
from evalkit.errors import BadConfig, RunFailed
from evalkit.processes import GRACE_S, end, last_words, resume_command, spawn
from evalkit.record.rundir import RunDir, write_whole

FILES = ("journal.jsonl", "trajectories.jsonl", "manifest.json")
"""What a shard is. The manifest comes last: it says whether the others are whole."""
OURS = ("envs", "evalkit")
SENT = "sent.tar.gz"
BACK = "back.tar.gz"
KEEP_AT_MOST_EVERY_S = 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A shard on its way to a container."""

    shard: str
    """Its folder's name."""
    kept: str
    """Where it is kept, below the volume."""
    concurrency: Concurrency
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """How a shard's command ended."""

    shard: str
    code: int
    said: str
    """Its last words."""


def named_files(config: RunConfig, here: Path) -> list[PurePosixPath]:
    """Return the files that a config names, which must travel with it: its env, and scripts.

    Raises:
        BadConfig: an env cannot travel, because it is not a file below `here`, or not ours.

    """
    named = [spec.target.removeprefix("script:") for _, spec in config.models()]
    scripts = [
        name
        for name, (_, spec) in zip(named, config.models(), strict=True)
        if spec.baseline == "script"
    ]
    place = SHIPPED.get(config.env, config.env).rpartition(":")[0]
    if place.endswith(".py"):
        scripts.append(place)
    elif place.partition(".")[0] not in OURS:
        raise BadConfig(
            f"{config.env} is not in the container: name it as a file, path/to/file.py:Class"
        )
    for name in scripts:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BadConfig(f"{name} cannot travel: name a file below {here}, without ..")
        if not (here / name).is_file():
            raise BadConfig(f"there is no file {here / name}")
    return [PurePosixPath(name) for name in scripts]


def pack(rundir: RunDir, here: Path, files: Sequence[PurePosixPath] = ()) -> bytes:
    """Return a shard, and files below `here`, as one archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=3) as archive:
        for name in FILES:
            if (rundir.path / name).exists():
                archive.add(rundir.path / name, f"run/{name}")
        for file in files:
            archive.add(here / file, f"here/{file}")
    return buffer.getvalue()


def unpack(cargo: bytes, folder: Path) -> None:
    """Lay out an archive's `run/` and `here/` in `folder`."""
    with tarfile.open(fileobj=io.BytesIO(cargo), mode="r:gz") as archive:
        archive.extractall(folder, filter="data")
    for name in ("run", "here"):
        (folder / name).mkdir(exist_ok=True)


def take_back(rundir: RunDir, cargo: bytes) -> None:
    """Put what came back into a shard's place."""
    with tempfile.TemporaryDirectory(dir=rundir.path.parent, prefix=".back-") as scratch:
        unpack(cargo, Path(scratch))
        for name in FILES:
            came = Path(scratch) / "run" / name
            if came.exists():
                came.replace(rundir.path / name)


def carry(
    job: Job,
    volume: Path,
    *,
    reload: Callable[[], object],
    commit: Callable[[], object],
    say: Callable[[str], object] = sys.stdout.write,
) -> Returned:
    """Play a shard in a container, and keep what was played below `volume`.

    Raises:
        RunFailed: the command was killed; another container can go on.

    """
    reload()
    kept = RunDir(volume / job.kept)
    with tempfile.TemporaryDirectory(prefix="palaestra-") as scratch:
        rundir, log = RunDir(Path(scratch) / "run"), Path(scratch) / "log"
        unpack((kept.path / SENT).read_bytes(), Path(scratch))
        _begin_where_it_stood(rundir, kept)
        with log.open("wb") as output:
            child = spawn(
                resume_command(rundir.path, job.concurrency, job.options),
                environ=for_children(PYTHONPATH=str(Path(evalkit.__file__).parents[1])),
                output=output.fileno(),
                cwd=Path(scratch) / "here",
            )
        with log.open(encoding="utf-8", errors="replace") as lines:
            try:
                for pause_s in _pauses():
                    if _has_ended(child, pause_s):
                        break
                    _keep(rundir, kept)
                    commit()
                    _pass_on(lines.read(), job.shard, say)
            finally:
                end([child], GRACE_S)
                _keep_whole(rundir, kept)
                commit()
                _pass_on(lines.read(), job.shard, say)
        said = last_words(log.read_text("utf-8", "replace"), child.returncode)
    if child.returncode < 0:
        raise RunFailed(f"shard {job.shard}: {said}")
    return Returned(shard=job.shard, code=child.returncode, said=said)


def _begin_where_it_stood(rundir: RunDir, kept: RunDir) -> None:
    """Take what a container before this one kept, where it is more than what was sent."""
    if _progress(kept) > _progress(rundir):
        source, target = kept, rundir
    else:
        source, target = rundir, kept
    for name in FILES:
        if (source.path / name).exists():
            shutil.copyfile(source.path / name, target.path / name)
        else:
            (target.path / name).unlink(missing_ok=True)


def _progress(rundir: RunDir) -> tuple[int, bool]:
    """Return how far a shard is: the size of its journal, and whether it is finished."""
    if not rundir.manifest_path.exists():
        return -1, False
    journal = rundir.journal_path
    size = journal.stat().st_size if journal.exists() else 0
    return size, rundir.manifest()["finished_at"] is not None


def _keep(rundir: RunDir, kept: RunDir) -> None:
    """Copy what is new: no episode without its calls."""
    trajectories = rundir.trajectories_path
    played = trajectories.stat().st_size if trajectories.exists() else 0
    _append(rundir.journal_path, kept.journal_path, None)
    _append(trajectories, kept.trajectories_path, played)


def _keep_whole(rundir: RunDir, kept: RunDir) -> None:
    """Copy everything: at its end a run puts its trajectories in order, and says so."""
    for name in FILES:
        if (rundir.path / name).exists():
            part = kept.path / f".{name}"
            shutil.copyfile(rundir.path / name, part)
            part.replace(kept.path / name)
    write_whole(kept.path / BACK, pack(rundir, rundir.path))


def _append(source: Path, target: Path, until: int | None) -> None:
    """Append to a copy what the original has beyond it, up to a size in bytes."""
    if not source.exists():
        return
    with source.open("rb") as file, target.open("ab") as copy:
        file.seek(copy.tell())
        copy.write(file.read() if until is None else file.read(max(0, until - copy.tell())))


def _has_ended(child: subprocess.Popen[bytes], wait_s: float) -> bool:
    try:
        child.wait(wait_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _pauses() -> Iterator[float]:
    """Yield how long to play between two copies: a short run is kept often, a long one seldom."""
    pause_s = 0.5
    while True:
        yield pause_s
        pause_s = min(KEEP_AT_MOST_EVERY_S, 2 * pause_s)


def _pass_on(text: str, shard: str, say: Callable[[str], object]) -> None:
    """Say what the command has printed, a line at a time, under the shard's name."""
    for line in text.splitlines():
        say(f"{shard}: {line}\n")
