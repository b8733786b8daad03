"""Files to a volume and checkpoints from one, with sizes and digests compared on both sides.

What only a container can tell, the digest of a file on the volume, comes in as a function.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from train.errors import BadConfig, SaveFailed
from train.learner.checkpoints import MARKER, MARKER_FORMAT

_CHUNK_BYTES = 1 << 20
_STEP = re.compile(r"step-([0-9]{6,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A file, as one side sees it."""

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Measured:
        """Read a file."""
        sha256, size = hashlib.sha256(), 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                sha256.update(chunk)
                size += len(chunk)
        return cls(size_bytes=size, sha256=sha256.hexdigest())

    def __str__(self) -> str:
        return f"{self.size_bytes / 1e6:.2f} MB ({self.size_bytes} bytes), sha256 {self.sha256}"


class Volume(Protocol):
    """What is needed of Modal's volumes."""

    def listdir(self, path: str, /) -> Iterable[Any]:
        """Return what is in a folder; raise FileNotFoundError."""
        ...

    def read_file(self, path: str, /) -> Iterable[bytes]:
        """Yield a file's bytes; raise FileNotFoundError."""
        ...


Measure = Callable[[str], Measured]
"""A path on the volume to what a container reads there."""


def ensure_equal(here: Measured, there: Measured, what: str) -> None:
    """Raise SaveFailed where a file came over as another one."""
    if here != there:
        raise SaveFailed(f"{what} came over otherwise: here {here}, there {there}; try again")


def remote_name(path: Path, name: str) -> str:
    """Return where an uploaded file goes; raise BadConfig for a place outside the volume."""
    if not path.is_file():
        raise BadConfig(f"cannot upload {path}: there is no such file")
    wanted = PurePosixPath("/") / (name or path.name)
    if ".." in wanted.parts or wanted == PurePosixPath("/"):
        raise BadConfig(f"expected a name on the data volume, not {name!r}")
    return str(wanted)


def runs_of(volume: Volume) -> list[str]:
    """Return the names of the runs on a volume, the newest first."""
    names = (PurePosixPath(entry.path).name for entry in volume.listdir("/"))
    return sorted((name for name in names if name.startswith("grpo_")), reverse=True)


def steps_of(volume: Volume, run: str) -> list[int]:
    """Return the steps of a run's complete checkpoints, ascending."""
    try:
        entries = list(volume.listdir(f"/{run}/checkpoints"))
    except FileNotFoundError:
        return []
    found = (_STEP.fullmatch(PurePosixPath(entry.path).name) for entry in entries)
    steps = sorted(int(name[1]) for name in found if name)
    return [step for step in steps if _marker(volume, run, step) is not None]


def files_of(volume: Volume, run: str, step: int) -> list[Mapping[str, Any]]:
    """Return the files that a checkpoint's marker lists, the marker left out; raise BadConfig."""
    marker = _marker(volume, run, step)
    if marker is None:
        raise BadConfig(f"{run} has no complete checkpoint of step {step}")
    return list(marker["files"])


def download(
    volume: Volume, run: str, step: int, to: Path, measure: Measure
) -> tuple[Path, list[Measured]]:
    """Bring a checkpoint into `to/RUN/step-N`; return the folder and what was brought.

    A file has come over when its digest is the one that was sealed with it, or, where the marker
    has none because the file is large, the one that a container reads on the volume.

    Raises:
        BadConfig: there is no such checkpoint, or the folder is there already.
        SaveFailed: a file came over otherwise.

    """
    files = files_of(volume, run, step)
    folder = f"{run}/checkpoints/step-{step:06d}"
    target = to / run / f"step-{step:06d}"
    if target.exists():
        raise BadConfig(f"{target} is there already; move it away, or take another folder")
    brought = []
    for file in (*files, {"name": MARKER, "sha256": None}):
        path = target / str(file["name"])
        if not path.resolve().is_relative_to(target.resolve()):
            raise BadConfig(f"the marker of {folder} names a file outside it: {file['name']!r}")
        remote = f"{folder}/{file['name']}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            for chunk in volume.read_file(remote):
                out.write(chunk)
        here = Measured.of(path)
        if file["sha256"] is None:
            there = measure(remote)
        else:
            there = Measured(size_bytes=int(file["size_bytes"]), sha256=str(file["sha256"]))
        ensure_equal(here, there, remote)
        brought.append(here)
    return target, brought


def _marker(volume: Volume, run: str, step: int) -> Mapping[str, Any] | None:
    path = f"{run}/checkpoints/step-{step:06d}/{MARKER}"
    try:
        told = json.loads(b"".join(volume.read_file(path)))
    except (FileNotFoundError, ValueError):
        return None
    is_one = isinstance(told, dict) and told.get("format") == MARKER_FORMAT
    return told if is_one else None
