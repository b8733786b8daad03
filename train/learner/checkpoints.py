"""Checkpoints that are complete or invisible: `checkpoints/step-000020/`.

A checkpoint is written into a hidden folder, sealed with the marker `COMPLETE` that lists its
files, and renamed. What a crash leaves is hidden, and removed when the next writer opens the
folder. Beside the weights and the trainer's own files each holds:

state.json   where the run stood, format `train-state/1`
groups.npz   groups that were played and not yet trained on, format `groups/1`
COMPLETE     every file with its size, and the SHA-256 of those below 16 MiB; written last
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from train.errors import BadModel, SaveFailed
from train.rollouts.rows import Episode, Group, Row

logger = logging.getLogger(__name__)

MARKER = "COMPLETE"
STATE = "state.json"
MARKER_FORMAT = "train-checkpoint/1"
STATE_FORMAT = "train-state/1"
GROUPS_FORMAT = "groups/1"

_VISIBLE = re.compile(r"step-([0-9]{6,})")
_TMP, _OLD, _GONE = ".tmp", ".old", ".gone"
_DIGESTED_BYTES = 16 << 20
_FULL_BYTES = 1 << 20
"""A disk with less than that to spare is full, whatever the writer's error says."""
_TOKENS = ("ids", np.int32), ("trained", np.int8), ("logprobs", np.float32), ("versions", np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """Where a run stood when a checkpoint was written."""

    step: int
    next_group: int
    """The seed cursor: the first group that was not admitted, or is to be played again."""
    published_version: int | None = None
    """The version that the gateway made of these weights; None where none was published."""
    versions: Mapping[int, int] = field(default_factory=dict)
    """The version of each checkpoint that is kept, by step."""
    metrics: Mapping[str, float | int | None] = field(default_factory=dict)
    """The step's row of metrics.csv."""

    def write(self, folder: Path) -> None:
        """Write state.json into a checkpoint that is being made."""
        text = json.dumps({"format": STATE_FORMAT, **asdict(self)}, indent=1)
        (folder / STATE).write_text(text + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> TrainState:
        """Read a checkpoint's state.json; raise BadModel if it cannot be understood."""
        path = folder / STATE
        said = _json(path, STATE_FORMAT)
        try:
            return cls(
                step=int(said["step"]),
                next_group=int(said["next_group"]),
                published_version=said["published_version"],
                versions={int(step): int(version) for step, version in said["versions"].items()},
                metrics=said["metrics"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadModel(f"{path} is damaged: {type(error).__name__} {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedFile:
    """One file of a checkpoint, as its marker has it."""

    name: str
    size_bytes: int
    sha256: str | None
    """None for large files, whose size alone is checked."""


class SavedCheckpoints:
    """The complete checkpoints in a folder. Only looks: a run may be writing there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._warned: set[Path] = set()

    def path(self, step: int) -> Path:
        """Return where the checkpoint of a step lies, or would lie."""
        return self.root / f"step-{step:06d}"

    def list(self) -> tuple[int, ...]:
        """Return the steps of the complete checkpoints, ascending.

        One that lacks a file, or has one of another size, is left out, with a warning.
        """
        if not self.root.is_dir():
            return ()
        names = (_VISIBLE.fullmatch(path.name) for path in self.root.iterdir())
        steps = sorted(int(name[1]) for name in names if name)
        return tuple(step for step in steps if self._is_complete(step))

    def latest(self) -> int | None:
        """Return the newest complete step, if there is one."""
        return max(self.list(), default=None)

    def files(self, step: int) -> tuple[SavedFile, ...]:
        """Return what the marker says of a checkpoint; raise BadModel if there is none."""
        path = self.path(step) / MARKER
        said = _json(path, MARKER_FORMAT)
        try:
            if said["step"] != step:
                raise ValueError(f"of step {said['step']}")
            return tuple(SavedFile(**file) for file in said["files"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadModel(f"{path} is damaged: {type(error).__name__} {error}") from error

    def verify(self, step: int) -> None:
        """Raise BadModel unless every file has its size, and every small one its digest."""
        folder = self.path(step)
        for file in self.files(step):
            path = folder / file.name
            if fault := _fault(path, file):
                raise BadModel(f"checkpoint {folder} is damaged: {fault}")
            if file.sha256 is not None and _digest(path) != file.sha256:
                raise BadModel(f"checkpoint {folder} is damaged: {path} has other bytes")

    def load_state(self, step: int) -> TrainState:
        """Verify a checkpoint and return where the run stood; raise BadModel."""
        self.verify(step)
        return TrainState.read(self.path(step))

    def staging(self, step: int) -> Path:
        """Return where `Checkpoints.writing` lets a step's checkpoint be written."""
        return self.root / f".{self.path(step).name}{_TMP}"

    def _is_complete(self, step: int) -> bool:
        folder = self.path(step)
        try:
            faults = [
                fault for file in self.files(step) if (fault := _fault(folder / file.name, file))
            ]
        except BadModel as error:
            faults = [str(error)]
        if faults and folder not in self._warned:
            self._warned.add(folder)
            logger.warning("checkpoint %s is left out: %s", folder, "; ".join(faults))
        return not faults


class Checkpoints(SavedCheckpoints):
    """The checkpoints of a run, for the one process that writes them."""

    def __init__(self, root: Path, keep: int) -> None:
        """Open the folder, and remove from it what writers that died have left.

        Raises:
            SaveFailed: it cannot be written to.

        """
        super().__init__(root)
        if keep < 1:
            raise ValueError(f"expected to keep at least 1 checkpoint, got {keep}")
        self.keep = keep
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._sweep()
        except OSError as error:
            raise SaveFailed(f"cannot keep checkpoints in {root}: {error}") from error

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Give a hidden folder that becomes the checkpoint when the block ends well.

        The block puts all files in it, `TrainState.write` among them. One that is there under the
        same step is replaced. Then all but the newest checkpoints are removed.

        Raises:
            SaveFailed: it could not be written; the checkpoints before it are untouched.

        """
        staging = self.staging(step)
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            yield staging
            _seal(staging, step)
            self._place(staging, step)
        except Exception as error:
            # Tensor libraries have errors of their own for a full disk: told apart here, where it
            # can still be seen to be full; all others pass as they are.
            failed = self._failure(step, error)
            if failed is None:
                raise
            raise failed from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._retain()

    def _failure(self, step: int, error: Exception) -> SaveFailed | None:
        """Return what a failed disk is called, or None if something else failed."""
        free = shutil.disk_usage(self.root).free
        full = free < _FULL_BYTES or "No space left" in str(error)
        if not full and not isinstance(error, OSError):
            return None
        why = f"the disk is full, {free:,} bytes are free" if full else f"{free:,} bytes are free"
        newest = self.latest()
        kept = "there is none before it" if newest is None else f"step {newest} is untouched"
        return SaveFailed(
            f"cannot write the checkpoint of step {step} below {self.root}: {error} ({why}); "
            f"{kept}; make room, then go on with --resume"
        )

    def _place(self, staging: Path, step: int) -> None:
        """Make a sealed folder visible, in the place of one of the same step if there is one."""
        target, old = self.path(step), self._hidden(step, _OLD)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        staging.rename(target)
        _sync(self.root)
        shutil.rmtree(old, ignore_errors=True)
        self._warned.discard(target)

    def _retain(self) -> None:
        """Remove all but the newest: hidden first, so that no half-removed one is ever visible."""
        for step in self.list()[: -self.keep]:
            gone = self._hidden(step, _GONE)
            try:
                self.path(step).rename(gone)
                shutil.rmtree(gone)
            except OSError as error:
                logger.warning("the old checkpoint of step %d cannot be removed: %s", step, error)

    def _sweep(self) -> None:
        """Remove hidden leftovers; what was moved aside for a successor that never came returns."""
        for path in sorted(self.root.glob(".step-*")):
            visible = path.with_name(path.name.removeprefix(".").removesuffix(_OLD))
            if path.suffix == _OLD and not visible.exists():
                path.rename(visible)
            elif path.suffix in {_TMP, _OLD, _GONE}:
                shutil.rmtree(path)

    def _hidden(self, step: int, suffix: str) -> Path:
        return self.root / f".step-{step:06d}{suffix}"


def save_groups(path: Path, groups: Sequence[Group]) -> None:
    """Write groups into one .npz without pickles, so that they can be read back as they are."""
    rows = [row for group in groups for episode in group.episodes for row in episode.rows]
    arrays: dict[str, Any] = {
        name: np.concatenate([np.empty(0, kind), *(getattr(row, name) for row in rows)]).astype(
            kind
        )
        for name, kind in _TOKENS
    }
    told = {"format": GROUPS_FORMAT, "groups": [_told_group(group) for group in groups]}
    arrays["about"] = np.frombuffer(json.dumps(told).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **arrays)


def load_groups(path: Path) -> tuple[Group, ...]:
    """Read what `save_groups` wrote; raise BadModel if it is not that."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            told = json.loads(arrays["about"].tobytes())
            if told["format"] != GROUPS_FORMAT:
                raise ValueError(f"expected format {GROUPS_FORMAT}, found {told['format']}")
            rows = _rows([arrays[name] for name, _ in _TOKENS], told["groups"])
        return tuple(_group(group, rows) for group in told["groups"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise BadModel(f"{path} does not hold groups: {type(error).__name__} {error}") from error


def _told_group(group: Group) -> dict[str, Any]:
    return {
        "index": int(group.index),
        "env_seed": int(group.env_seed),
        "started_version": int(group.started_version),
        "dropped": int(group.dropped),
        "played_s": float(group.played_s),
        "episodes": [_told_episode(episode) for episode in group.episodes],
    }


def _told_episode(episode: Episode) -> dict[str, Any]:
    return {
        "env_seed": int(episode.env_seed),
        "repetition": int(episode.repetition),
        "env_return": float(episode.env_return),
        "reward": float(episode.reward),
        "success": bool(episode.success),
        "turns": int(episode.turns),
        "advantage": float(episode.advantage),
        "rows": [len(row.ids) for row in episode.rows],
    }


def _rows(tokens: Sequence[Any], groups: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Return all rows, cut from the flat arrays by the lengths that the episodes tell."""
    lengths = [n for group in groups for episode in group["episodes"] for n in episode["rows"]]
    ends = np.cumsum([0, *lengths])
    if any(len(array) != ends[-1] for array in tokens):
        raise ValueError(f"expected {ends[-1]} tokens, found {[len(array) for array in tokens]}")
    cut = (np.split(array, ends[1:-1]) if lengths else [] for array in tokens)
    names = [name for name, _ in _TOKENS]
    return (Row(**dict(zip(names, parts, strict=True))) for parts in zip(*cut, strict=True))


def _group(told: Mapping[str, Any], rows: Iterator[Row]) -> Group:
    episodes = tuple(
        Episode(**{**episode, "rows": tuple(next(rows) for _ in episode["rows"])})
        for episode in told["episodes"]
    )
    return Group(**{**told, "episodes": episodes})


def _seal(staging: Path, step: int) -> None:
    """Bring every file to the disk and write the marker, which lists them, last."""
    if not (staging / STATE).is_file():
        raise SaveFailed(f"the checkpoint of step {step} has no {STATE}: nothing could resume it")
    files = []
    for path in sorted(path for path in staging.rglob("*") if path.is_file()):
        _sync(path)
        size = path.stat().st_size
        digest = _digest(path) if size < _DIGESTED_BYTES else None
        name = path.relative_to(staging).as_posix()
        files.append(SavedFile(name=name, size_bytes=size, sha256=digest))
    told = {"format": MARKER_FORMAT, "step": step, "files": [asdict(file) for file in files]}
    marker = staging / MARKER
    marker.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    _sync(marker)
    for folder in (path for path in staging.rglob("*") if path.is_dir()):
        _sync(folder)
    _sync(staging)


def _fault(path: Path, file: SavedFile) -> str:
    """Say what is wrong with a file, without reading it; "" if nothing can be seen."""
    if not path.is_file():
        return f"{path} is missing"
    size = path.stat().st_size
    return "" if size == file.size_bytes else f"{path} has {size} of {file.size_bytes} bytes"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Bring a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _json(path: Path, expected: str) -> dict[str, Any]:
    """Read a JSON object of a format; raise BadModel."""
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadModel(f"cannot read {path}: {error}") from error
    if not isinstance(said, dict) or said.get("format") != expected:
        raise BadModel(f"{path}: expected the format {expected}")
    return said
