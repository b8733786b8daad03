"""What a checkpoint is, before it is any version: its files, their digests, and its kind."""

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from serve.policies import disk
from serve.policies.checkpoint import Checkpoint
from serve.policies.manifest import PolicyFile, PolicyInfo
from serve.wire import PolicyKind


def draft_of(name: str, found: Checkpoint | None, files: tuple[PolicyFile, ...]) -> PolicyInfo:
    """Describe a checkpoint that has no number yet; without one, an upstream's weights."""
    lines = "".join(f"{file.name} {file.sha256}\n" for file in files)
    return PolicyInfo(
        name=name,
        version=0,
        kind=found.kind if found else PolicyKind.FULL,
        base=0,
        parent=None,
        created=datetime.now(UTC),
        digest=hashlib.sha256(lines.encode()).hexdigest() if files else "",
        size_bytes=sum(file.size_bytes for file in files),
        files=files,
        path=None,
        source=str(found.folder) if found else None,
    )


def digested(name: str, found: Checkpoint | None) -> PolicyInfo:
    """Describe a checkpoint by its bytes, where it lies."""
    paths = [found.folder / file for file in found.files] if found else []
    return draft_of(name, found, tuple(file_at(path, disk.digest_of(path)) for path in paths))


def file_at(path: Path, sha256: str) -> PolicyFile:
    """Describe one file."""
    found = path.stat()
    return PolicyFile(
        name=path.name, size_bytes=found.st_size, sha256=sha256, mtime_ns=found.st_mtime_ns
    )


def is_untouched(info: PolicyInfo, folder: Path) -> bool:
    """Whether a version lies in that folder by reference, and no file there was written to."""
    stats = {file.name: (file.size_bytes, file.mtime_ns) for file in info.files}
    return info.path == folder and stats == _stats(folder, stats)


def _stats(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    found = {name: (folder / name).stat() for name in names if (folder / name).is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}
