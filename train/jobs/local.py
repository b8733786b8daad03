"""Jobs on this machine: a process of its own each, which outlives whoever started it.

A job is a run's folder with a `job.json` in it that names the process; its id is the run's name. A
process is known by its number and its start time, so that a number that was given out again is not
taken for the job.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evalkit.record.rundir import write_whole
from train.config import TrainConfig, dumps
from train.costs import read_costs
from train.environment import without_settings
from train.errors import BadConfig, UnknownJob
from train.jobs.base import FORMAT, OVER, Job, Jobs, JobState, described, job_of
from train.jobs.tail import last_error, new_lines
from train.run import RunDir, State, Status, claim

_ID = re.compile(r"grpo_[0-9]{8}_[0-9]{6}(\.[0-9]+)?")
_RESET = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S = 0.2


class LocalJobs(Jobs):
    """Jobs whose runs lie in one folder."""

    def __init__(
        self,
        out: Path,
        *,
        command: tuple[str, ...] = (sys.executable, "-m", "train", "grpo"),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`command` is followed by `--config FILE --run FOLDER`."""
        self._out = out.resolve()
        self._command, self._now, self._sleep = command, now, sleep

    def start(self, config: TrainConfig) -> str:
        """Start a process; the folder of its run is there when this returns."""
        created = self._now()
        folder = claim(self._out, created)
        config = config.model_copy(update={"out": str(self._out)})
        record = described(config, folder.name, created.isoformat(timespec="seconds"))
        try:
            (folder / "job.yaml").write_text(dumps(config), "utf-8")
            pid = _detach(
                (*self._command, "--config", str(folder / "job.yaml"), "--run", str(folder)),
                folder / "job.log",
                without_settings(),
            )
            record |= {"pid": pid, "started": _started(pid)}
            write_whole(folder / "job.json", json.dumps(record, indent=2).encode() + b"\n")
        except OSError as error:
            raise BadConfig(f"cannot start a job in {folder}: {error}") from error
        return folder.name

    def status(self, job: str) -> Job:
        """Return what is known of a job."""
        folder, record = self._find(job)
        is_alive = _is_alive(record)
        status = _read_status(folder)
        message = ""
        if is_alive:
            state = JobState.QUEUED if status is None else JobState.RUNNING
        elif status is not None and status.state in OVER:
            state = OVER[status.state]
        else:
            state = JobState.FAILED
            message = last_error(folder / "job.log") or (
                f"its process is gone; python -m train grpo --resume {folder} goes on"
            )
        return job_of(
            record,
            id=job,
            target="local",
            place=str(folder),
            state=state,
            status=status,
            message=message,
            costs=read_costs(folder / "costs.json"),
        )

    def cancel(self, job: str) -> None:
        """Ask the process to save a checkpoint and end."""
        _, record = self._find(job)
        if _is_alive(record):
            os.kill(int(record["pid"]), signal.SIGTERM)

    def logs(self, job: str, *, follow: bool = False) -> Iterator[str]:
        """Yield what the process, and what it started, have printed."""
        folder, record = self._find(job)
        at = 0
        while True:
            is_over = not _is_alive(record)  # asked first, so that its last words are not missed
            lines, at = new_lines(folder / "job.log", at, whole=is_over or not follow)
            yield from lines
            if is_over or not follow:
                return
            self._sleep(_POLL_S)

    def list(self) -> tuple[Job, ...]:
        """Return all jobs of the folder; runs that were begun otherwise are none."""
        found = sorted(self._out.glob("grpo_*/job.json"), reverse=True)
        names = (path.parent.name for path in found)
        return tuple(self.status(name) for name in names if _ID.fullmatch(name))

    def _find(self, job: str) -> tuple[Path, Mapping[str, Any]]:
        folder = self._out / job
        if not _ID.fullmatch(job) or not (folder / "job.json").is_file():
            raise UnknownJob(f"no job {job!r} in {self._out}; `python -m train list` shows them")
        try:
            record = json.loads((folder / "job.json").read_bytes())
            if record["format"] != FORMAT:
                raise ValueError(f"expected format {FORMAT}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadConfig(f"{folder / 'job.json'} is damaged: {error!r}") from error
        return folder, record


def _detach(command: tuple[str, ...], log: Path, environment: Mapping[str, str]) -> int:
    """Start a process in a session of its own, with its words in a file; return its number."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=_RESET,
    )


def _started(pid: int) -> int | None:
    """Return when a process began, in the kernel's ticks; None for one that is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else int(fields[18])


def _is_alive(record: Mapping[str, Any]) -> bool:
    pid, started = record.get("pid"), record.get("started")
    if not isinstance(pid, int) or started is None:
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # a child of ours that has ended would stay as a zombie
    return bool(_started(pid) == started)


def _read_status(folder: Path) -> Status | None:
    if not RunDir.is_begun(folder):
        return None
    try:
        return RunDir(folder).status()
    except BadConfig:
        return Status(state=State.RUNNING)
