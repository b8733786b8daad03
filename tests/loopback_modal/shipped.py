"""The files that an app ships, written where its container finds them, compiled once for all."""

from __future__ import annotations

import py_compile
from dataclasses import dataclass, field
from importlib.util import cache_from_source
from pathlib import Path, PurePosixPath

from tests.loopback_modal.images import copied
from tests.loopback_modal.plane import HOME, Function, Plane


@dataclass(slots=True)
class Shipped:
    """Writes what a function's image copies and its mounts hold, and nothing else.

    Byte code goes along, by the digest of its source, so that not every process of every container
    compiles the same files; Python checks it against the source.
    """

    plane: Plane
    _compiled: dict[str, bytes] = field(default_factory=dict)

    def write(self, function: Function, folder: Path) -> Path:
        """Write all below the folder; return the container's home."""
        files = copied(self.plane, function.definition.image_id)
        for mount_id in function.definition.mount_ids:
            files |= self.plane.mounts.get(mount_id, {})
        home = inside(folder, HOME)
        home.mkdir()
        for name, digest in files.items():
            path = inside(folder, PurePosixPath(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.plane.blobs[digest])
            if path.suffix == ".py":
                self._compile(path, digest)
        return home

    def _compile(self, path: Path, digest: str) -> None:
        target = Path(cache_from_source(str(path)))
        if digest not in self._compiled:
            mode = py_compile.PycInvalidationMode.CHECKED_HASH
            try:
                py_compile.compile(str(path), str(target), doraise=True, invalidation_mode=mode)
            except py_compile.PyCompileError:
                return  # the container will say what is wrong with it
            self._compiled[digest] = target.read_bytes()
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(self._compiled[digest])


def inside(folder: Path, path: PurePosixPath) -> Path:
    """Where a container's absolute path lies on this machine."""
    return folder / path.relative_to("/")
