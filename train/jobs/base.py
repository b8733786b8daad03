"""The port of jobs, and what is told of one. Knows neither processes nor Modal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from train.config import TrainConfig
from train.errors import BadConfig
from train.run import State, Status

FORMAT = "train-job/1"


class JobState(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    """It was started, and has not begun to train."""
    RUNNING = "running"
    """It trains."""
    FINISHED = "finished"
    """All steps are done."""
    FAILED = "failed"
    """It ended by an error, or was killed; the message says which."""
    STOPPED = "stopped"
    """It was cancelled or its budget is spent; its checkpoint is there to go on from."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


OVER = {
    State.FINISHED: JobState.FINISHED,
    State.FAILED: JobState.FAILED,
    State.INTERRUPTED: JobState.STOPPED,
}
"""What a job is whose run says so and whose process is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training run that somebody asked for."""

    id: str
    run: str
    """Its name: grpo_YYYYMMDD_HHMMSS."""
    target: str
    """local or modal."""
    state: JobState
    created: str
    """When it was asked for, ISO 8601."""
    env: str
    model: str
    step: int = 0
    steps: int
    version: int | None = None
    """What the gateway was given last."""
    message: str = ""
    gpu_hours: float | None = None
    usd: float | None = None
    place: str
    """Where its files lie: a folder, or volume:folder."""


class Jobs(ABC):
    """Somewhere to train. A job goes on when whoever started it is gone."""

    @abstractmethod
    def start(self, config: TrainConfig) -> str:
        """Start a run and return the job's id at once.

        Raises:
            BadConfig: it cannot be started as asked; says why.

        """

    @abstractmethod
    def status(self, job: str) -> Job:
        """Return what is known of a job; raise UnknownJob."""

    @abstractmethod
    def cancel(self, job: str) -> None:
        """Have it save a checkpoint and end; one that is over stays as it is. Raise UnknownJob."""

    @abstractmethod
    def logs(self, job: str, *, follow: bool = False) -> Iterator[str]:
        """Yield the lines it has said, and with `follow` those it says until it is over."""

    @abstractmethod
    def list(self) -> tuple[Job, ...]:
        """Return all jobs, the newest first."""


def described(config: TrainConfig, run: str, created: str) -> dict[str, Any]:
    """Return what is written down of a job when it is started."""
    return {
        "format": FORMAT,
        "run": run,
        "created": created,
        "env": config.env.name,
        "model": config.model.name or config.model.path,
        "steps": config.learn.steps,
    }


def job_of(
    record: Mapping[str, Any],
    *,
    id: str,  # noqa: A002  # it is a field's name
    target: str,
    place: str,
    state: JobState,
    status: Status | None,
    message: str = "",
    costs: Mapping[str, Any] | None = None,
) -> Job:
    """Put together what was written down and what the run says; raise BadConfig."""
    try:
        return Job(
            id=id,
            run=str(record["run"]),
            target=target,
            state=state,
            created=str(record["created"]),
            env=str(record["env"]),
            model=str(record["model"]),
            step=status.step if status else 0,
            steps=int(record["steps"]),
            version=status.version if status else None,
            message=message or (status.message if status else ""),
            gpu_hours=costs.get("gpu_hours") if costs else None,
            usd=costs.get("usd") if costs else None,
            place=place,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadConfig(f"the record of job {id} is damaged: {error!r}") from error
