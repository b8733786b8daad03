"""A training run's directory: what lies in it, who may write to it, and how it is found again.

config.yaml      the resolved config
run.json         name, times, commit, versions, the env's digest
status.json      how far it is; replaced as a whole
costs.json       what it has used up
metrics.csv      a row per step
checkpoints/     step-000020 and so on
versions/        weights on their way to the gateway
logs/            what the gateway said
serve/           state of a gateway of its own
lock             held by the process that trains, and by those that it started
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from evalkit.record.rundir import write_whole
from train.config import TrainConfig, dumps, load
from train.errors import BadConfig, SaveFailed

FORMAT = "train-run/1"
STATUS_FORMAT = "train-status/1"
_PREFIX = "step-"
_POLL_S = 0.1


class State(StrEnum):
    """Where a run is."""

    RUNNING = "running"
    """It trains, or was killed while it did."""
    FINISHED = "finished"
    """All steps are done."""
    FAILED = "failed"
    """It stopped by an error; the message says which."""
    INTERRUPTED = "interrupted"
    """It was asked to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far a run is."""

    state: State
    step: int = 0
    """Steps that are done."""
    message: str = ""
    version: int | None = None
    """The version that the gateway was given last."""


class RunDir:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock_descriptor: int | None = None
        """While the run is locked; children that inherit it hold the lock too."""

    @classmethod
    def create(
        cls,
        out: Path,
        config: TrainConfig,
        about: Mapping[str, Any],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Self:
        """Make `out/grpo_YYYYMMDD_HHMMSS`, with `.2` and so on where that is taken.

        Raises:
            BadConfig: it cannot be made.

        """
        return cls.create_at(claim(out, now()), config, about, now=now)

    @classmethod
    def create_at(
        cls,
        path: Path,
        config: TrainConfig,
        about: Mapping[str, Any],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Self:
        """Make a run in a folder of one's own choice, which may be there but holds no run yet.

        Raises:
            BadConfig: it cannot be made.

        """
        created = now()
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path.resolve())
            for folder in (run.checkpoints_path, run.logs_path, run.versions_path):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise BadConfig(f"cannot make a run at {path}: {error}") from error
        run.write_config(config)
        run.write_about(
            {"name": run.name, "created": created.isoformat(timespec="seconds"), **about}
        )
        run.write_status(Status(state=State.RUNNING))
        return run

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a run that was begun.

        Raises:
            BadConfig: there is none at `path`, or not all of it; says what is missing.

        """
        if not path.is_dir():
            raise BadConfig(f"{path} is not a training run: there is no such folder")
        run = cls(path.resolve())
        needed = (run.config_path, run.about_path, run.status_path)
        missing = [file.name for file in needed if not file.is_file()]
        if missing:
            raise BadConfig(f"{path} is not a training run: it has no {', '.join(missing)}")
        run.about()
        run.status()
        run.config()
        return run

    @staticmethod
    def is_begun(path: Path) -> bool:
        """Whether there is a run in a folder, and not only the folder."""
        return (path / "status.json").is_file()

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.path.name

    @property
    def config_path(self) -> Path:
        """Where the resolved config lies."""
        return self.path / "config.yaml"

    @property
    def about_path(self) -> Path:
        """Where the run's description lies."""
        return self.path / "run.json"

    @property
    def status_path(self) -> Path:
        """Where it says how far it is."""
        return self.path / "status.json"

    @property
    def metrics_path(self) -> Path:
        """Where the rows of the steps lie."""
        return self.path / "metrics.csv"

    @property
    def costs_path(self) -> Path:
        """Where it says what it has used up."""
        return self.path / "costs.json"

    @property
    def checkpoints_path(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def versions_path(self) -> Path:
        """Where weights lie on their way to the gateway."""
        return self.path / "versions"

    @property
    def logs_path(self) -> Path:
        """Where the logs lie."""
        return self.path / "logs"

    @property
    def gateway_log_path(self) -> Path:
        """Where a gateway of the run's own says what it does."""
        return self.logs_path / "gateway.log"

    @property
    def serve_path(self) -> Path:
        """Where a gateway of the run's own keeps its state."""
        return self.path / "serve"

    @property
    def lock_path(self) -> Path:
        """What the process that trains holds."""
        return self.path / "lock"

    def checkpoint_path(self, step: int) -> Path:
        """Return where the checkpoint of a step lies, or will."""
        return self.checkpoints_path / f"{_PREFIX}{step:06d}"

    def config(self) -> TrainConfig:
        """Read the resolved config.

        Raises:
            BadConfig: it is none.

        """
        return load(self.config_path, {})

    def write_config(self, config: TrainConfig) -> None:
        """Write the resolved config."""
        self._write(self.config_path, dumps(config).encode())

    def about(self) -> dict[str, Any]:
        """Read the run's description.

        Raises:
            BadConfig: it is none.

        """
        return _read_json(self.about_path, FORMAT)

    def write_about(self, about: Mapping[str, Any]) -> None:
        """Write the run's description."""
        self._write(self.about_path, _json({"format": FORMAT, **about}))

    def note_resumed(
        self,
        about: Mapping[str, Any],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Add to the description that the run goes on, and with what."""
        before = self.about()
        entry = {"at": now().isoformat(timespec="seconds"), **about}
        self.write_about({**before, "resumed": [*before.get("resumed", []), entry]})

    def status(self) -> Status:
        """Read how far it is.

        Raises:
            BadConfig: what lies there does not say.

        """
        found = _read_json(self.status_path, STATUS_FORMAT)
        try:
            return Status(
                state=State(found["state"]),
                step=int(found["step"]),
                message=str(found["message"]),
                version=None if found["version"] is None else int(found["version"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadConfig(f"{self.status_path} is damaged: {error!r}") from error

    def write_status(self, status: Status) -> None:
        """Write how far it is; one process does so at a time, the learner while it lives."""
        self._write(self.status_path, _json({"format": STATUS_FORMAT, **asdict(status)}))

    def update_status(self, state: State, message: str = "") -> None:
        """Change the state, and leave the step and the version alone."""
        self.write_status(replace(self.status(), state=state, message=message))

    @contextlib.contextmanager
    def locked(
        self, wait_s: float = 20.0, sleep: Callable[[float], None] = time.sleep
    ) -> Iterator[None]:
        """Be the only one who trains the run.

        The leftovers of a run that was killed are waited for: they are about to end.

        Raises:
            BadConfig: another process trains it.

        """
        descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            deadline_s = time.monotonic() + wait_s
            while not _try_lock(descriptor):
                holder = self._holder()
                if holder is not None:
                    raise BadConfig(f"{self.path} is being trained by another process, {holder}")
                if time.monotonic() >= deadline_s:
                    raise BadConfig(
                        f"{self.path} is in use: processes of an earlier start still hold "
                        f"{self.lock_path}"
                    )
                sleep(_POLL_S)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            self.lock_descriptor = descriptor
            yield
        finally:
            self.lock_descriptor = None
            os.close(descriptor)

    def _holder(self) -> int | None:
        """Return the process named in the lock, if it has the lock open."""
        try:
            pid = int(self.lock_path.read_text())
            files = list(Path(f"/proc/{pid}/fd").iterdir())
        except (OSError, ValueError):
            return None
        return pid if any(_leads_to(file, self.lock_path) for file in files) else None

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_whole(path, data)
        except OSError as error:
            raise SaveFailed(f"cannot write {path}: {error.strerror or error}") from error


def claim(out: Path, created: datetime) -> Path:
    """Make the folder of a new run, `.2`, `.3` and so on at its end where the name is taken.

    Raises:
        BadConfig: it cannot be made.

    """
    name, number = run_name(created), 1
    try:
        out.mkdir(parents=True, exist_ok=True)
        while True:
            path = out.resolve() / (name if number == 1 else f"{name}.{number}")
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
            else:
                return path
    except OSError as error:
        raise BadConfig(f"cannot make a run below {out}: {error}") from error


def run_name(created: datetime) -> str:
    """Return what a run that begins then is called."""
    return f"grpo_{created:%Y%m%d_%H%M%S}"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _read_json(path: Path, expected: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadConfig(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict) or found.get("format") != expected:
        raise BadConfig(f"{path} is not of this program: expected format {expected}")
    return found


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _leads_to(link: Path, target: Path) -> bool:
    try:
        return link.readlink() == target.resolve()
    except OSError:
        return False
