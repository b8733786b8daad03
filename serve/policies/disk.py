"""Bytes that survive a crash: copied with their digests, replaced in one step, guarded by a lock.

Knows no policy. Locks are the kernel's, so the death of their holder releases them.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from serve.errors import StateError

_CHUNK_BYTES = 1 << 20
_LOCK_TIMEOUT_S = 60.0
_POLL_S = 0.01
_STAGE = ".new-"
_UNSUPPORTED = frozenset((errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK))


def digest_of(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bring(source: Path, target: Path, *, link: bool) -> str:
    """Put a file's bytes durably at `target` and return their SHA-256.

    A hard link where that is wanted and possible; else a copy, digested while it is made.
    """
    if link:
        with contextlib.suppress(OSError):
            os.link(source.resolve(), target)
            sync(target)
            return digest_of(target)
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def write(path: Path, text: str) -> None:
    """Write a new file durably; its folder is the caller's to sync."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, text: str) -> None:
    """Replace a file's content: a reader, or a crash, sees the old or the new, whole."""
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    write(Path(scratch), text)
    Path(scratch).chmod(0o644)
    Path(scratch).replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED or not path.is_dir():
            raise  # of a folder, a file system over the network may know nothing to bring
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one who changes this folder; raise StateError after a minute of waiting."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        deadline_s = time.monotonic() + _LOCK_TIMEOUT_S
        while not _lock(handle):
            if time.monotonic() > deadline_s:
                raise StateError(f"somebody else has been publishing to {folder} for too long")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def stage(folder: Path) -> Iterator[Path]:
    """Give an empty folder inside `folder`, removed at the end unless it was renamed.

    What publishers that died have left is removed on this occasion.
    """
    with locked(folder):
        for left in folder.glob(f"{_STAGE}*"):
            _remove_if_abandoned(left)
        staged = Path(tempfile.mkdtemp(dir=folder, prefix=_STAGE))
        handle = os.open(staged, os.O_RDONLY)
        _lock(handle)
    try:
        staged.chmod(0o755)
        yield staged
    finally:
        os.close(handle)
        shutil.rmtree(staged, ignore_errors=True)


def _remove_if_abandoned(staged: Path) -> None:
    handle = os.open(staged, os.O_RDONLY)
    try:
        if _lock(handle):
            shutil.rmtree(staged, ignore_errors=True)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        # Over the network there may be no locks: then only one machine may write, as on a volume.
    return True
