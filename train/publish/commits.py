"""Versions on their way to a gateway in another container: on a volume, which must be committed.

Only the process that Modal runs can commit a volume, and the one that writes versions to it is
below it: the learner puts a request into a folder and waits, the container's process answers.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

from train.config import TrainConfig
from train.environment import commits
from train.errors import PublishFailed
from train.run import RunDir

_WANTED, _DONE, _FAILED = ".wanted", ".done", ".failed"
_POLL_S = 0.05


class CommitServer:
    """Answers requests in a folder; for the process that can commit."""

    def __init__(self, folder: Path, commit: Callable[[], None]) -> None:
        self._folder, self._commit = folder, commit

    def serve(self) -> None:
        """Commit once for all requests that are there."""
        wanted = sorted(self._folder.glob(f"*{_WANTED}"))
        if not wanted:
            return
        ending, told = _DONE, ""
        try:
            self._commit()
        except Exception as error:  # noqa: BLE001  # whoever asked gets it, and must not wait forever
            ending, told = _FAILED, f"{type(error).__name__}: {error}"
        for path in wanted:
            path.write_text(told, "utf-8")
            path.rename(path.with_suffix(ending))


def commit(
    folder: Path,
    timeout_s: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Ask for a commit, and return when it was made.

    Raises:
        PublishFailed: it could not be made, or nobody answered in `timeout_s`.

    """
    request = folder / f"{uuid.uuid4().hex}{_WANTED}"
    request.touch()
    deadline_s = clock() + timeout_s
    done, failed = request.with_suffix(_DONE), request.with_suffix(_FAILED)
    while not done.exists():
        if failed.exists():
            raise PublishFailed(f"the policies volume was not committed: {failed.read_text()}")
        if clock() >= deadline_s:
            raise PublishFailed(f"the policies volume was not committed within {timeout_s:.0f} s")
        sleep(_POLL_S)
    done.unlink()


def committing(config: TrainConfig) -> Callable[[], None]:
    """Return what makes a version visible to its gateway: a commit, where that is far away."""
    requests = commits()
    if requests is None or config.gateway.url is None:
        return lambda: None
    return partial(commit, requests, config.gateway.wait_s)


def outbox(config: TrainConfig, run: RunDir) -> Path:
    """Return where versions wait: with the run, or on the volume that is shared with serving."""
    if commits() is None or config.gateway.url is None:
        return run.versions_path
    folder = Path(config.volumes.root) / "policies" / "incoming" / run.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
