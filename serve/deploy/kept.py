"""The gateway's state, between a container's own disk and a volume that outlives it.

SQLite wants a file system that locks, and a volume shows others only what was committed: so the
gateway works on its own disk, and whole copies go to the volume when something changed. What a
container that is killed did in its last seconds is lost.
"""

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from serve.errors import StateError

_DATABASE = "state.db"
_LEFT_OUT = frozenset(("logs", "policies"))
_EVERY_S = 5.0
_Stamp = tuple[tuple[str, int, int], ...]


class KeptState:
    """Copies `state` to `kept`, and calls `commit` when something went there."""

    def __init__(self, state: Path, kept: Path, commit: Callable[[], None]) -> None:
        self._state = state
        self._kept = kept
        self._commit = commit
        self._seen: _Stamp = ()
        self._saved_s = -_EVERY_S

    def restore(self) -> bool:
        """Bring what was kept; return whether there was anything."""
        self._state.mkdir(parents=True, exist_ok=True)
        if not (self._kept / _DATABASE).is_file():
            return False
        shutil.copytree(self._kept, self._state, dirs_exist_ok=True)
        return True

    def look(self) -> None:
        """Save if something changed, and not more often than every five seconds."""
        if time.monotonic() - self._saved_s >= _EVERY_S:
            self.save()

    def save(self) -> None:
        """Save if something changed."""
        stamp = tuple(
            (str(path), found.st_mtime_ns, found.st_size)
            for path in sorted(self._files())
            if (found := _stat(path)) is not None
        )
        if stamp == self._seen:
            return
        for path in self._files():
            target = self._kept / path.relative_to(self._state)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            if path.name == _DATABASE:
                _back_up(path, partial)
            elif not path.name.endswith(("-wal", "-shm")):
                shutil.copy2(path, partial)
            else:
                continue
            partial.replace(target)
        self._commit()
        self._seen = stamp
        self._saved_s = time.monotonic()

    def _files(self) -> Iterator[Path]:
        for folder, names, files in os.walk(self._state):
            names[:] = [name for name in names if name not in _LEFT_OUT]
            yield from (Path(folder, name) for name in files if not name.startswith("."))


def _back_up(source: Path, target: Path) -> None:
    """Copy a database that others write to."""
    target.unlink(missing_ok=True)
    with sqlite3.connect(source) as read, sqlite3.connect(target) as written:
        read.backup(written)
    read.close()
    written.close()


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def adopt_admin_key(state: Path, key: str) -> None:
    """Make a key of scope admin of a text from a secret, unless it is there; raise StateError."""
    from serve.accounts.limits import Limits  # noqa: PLC0415  # the database, only for gateways
    from serve.accounts.passwords import bearer, id_of  # noqa: PLC0415
    from serve.accounts.store import AccountStore  # noqa: PLC0415
    from serve.wire import Scope  # noqa: PLC0415

    if bearer(f"Bearer {key}".encode()) is None:
        raise StateError(
            "PALAESTRA_ADMIN_KEY is no key: expected one from `python -m serve keys create "
            "--scope admin`, such as ak_1a2b3c4d_..."
        )
    store = AccountStore.open(state)
    try:
        known = store.keys()
        if id_of(key) not in {info.id for info in known}:
            store.create_key("admin", (Scope.ADMIN,), Limits(), actor="cli:deploy", key=key)
    finally:
        store.close()
