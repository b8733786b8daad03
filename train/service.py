"""Jobs over HTTP: routes that a gateway takes up by `mounts: ["train.service:local"]`, or `:modal`.

Where training and serving meet. A key with the scope train may start jobs on hardware and volumes
that the operator has chosen in the YAML file $PALAESTRA_TRAIN_CONFIG: what a request may not say is
what would run code, reach files, or spend more than the operator allows.
"""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fastapi import APIRouter, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from serve.front.control.guard import Caller
from serve.front.control.mounts import MountContext
from serve.wire import Scope
from train import environment
from train.config import TrainConfig, read_tree, resolve
from train.errors import TrainError, UnknownJob, UsageError
from train.jobs.base import Job, Jobs

Answer = TypeVar("Answer")

_ALLOWED = ("env", "model", "rollouts", "reward", "learn", "publish", "checkpoints", "track")
_ALLOWED_KEYS = ("compute.gpu", "compute.timeout_s", "budget.usd", "budget.gpu_hours")
"""Sections, and keys of others, that a request may set."""
_CODE = ("env.name", "reward.name")
"""Keys whose value can name code to import."""


class Wanted(BaseModel):
    """A job that is asked for: the sections of a config, as in its YAML file."""

    model_config = ConfigDict(extra="forbid")

    config: dict[str, Any] = Field(
        examples=[{"env": {"name": "key_door"}, "model": {"path": "key_door_tiny"}}]
    )
    settings: dict[str, Any] = Field(default_factory=dict, examples=[{"learn.steps": 20}])
    """Single keys, over the sections."""


class Started(BaseModel):
    """A job that was started."""

    id: str
    status_url: str


class JobList(BaseModel):
    """All jobs."""

    data: list[Job]


def local(context: MountContext) -> APIRouter:
    """Return routes for jobs on the gateway's own machine."""
    from train.jobs.local import LocalJobs  # noqa: PLC0415  # one of two

    operator = _operator()
    out = operator.get("out")
    jobs = LocalJobs(Path(out) if isinstance(out, str) else context.state / "train")
    return router(context, jobs, operator)


def modal(context: MountContext) -> APIRouter:
    """Return routes for jobs on Modal; also in a gateway that runs there."""
    from train.jobs.modal_jobs import ModalJobs  # noqa: PLC0415  # modal

    operator = _operator()
    whereabouts: dict[str, Any] = {"env": {"name": "any"}, "model": {"path": "any"}}
    return router(context, ModalJobs.of(resolve(whereabouts | operator, {})), operator)


def router(context: MountContext, jobs: Jobs, operator: dict[str, Any]) -> APIRouter:
    """Return the routes; `operator` is the tree that requests are put over."""
    made = APIRouter(prefix="/v1/jobs", tags=["jobs"])
    needs: Any = context.require(Scope.TRAIN)

    @made.post("", status_code=202)
    async def start(wanted: Wanted, caller: Caller = needs) -> Started:
        """Start a training run, and return at once."""

        def begin() -> str:
            return jobs.start(_config(wanted, operator))

        job = await _asked(begin)
        await context.audit(caller.actor, "train.start", job)
        return Started(id=job, status_url=f"/v1/jobs/{job}")

    @made.get("", dependencies=[needs])
    async def listed() -> JobList:
        """Return all jobs, the newest first."""
        return JobList(data=list(await _asked(jobs.list)))

    @made.get("/{job}", dependencies=[needs])
    async def status(job: str) -> Job:
        """Return how far a job is."""
        return await _asked(lambda: jobs.status(job))

    @made.get("/{job}/logs", dependencies=[needs], response_class=StreamingResponse)
    async def logs(job: str, follow: bool = False) -> StreamingResponse:
        """Return what a job says, with `follow` until it is over."""
        await _asked(lambda: jobs.status(job))
        return StreamingResponse(_text(jobs, job, follow), media_type="text/plain; charset=utf-8")

    @made.post("/{job}/cancel", status_code=202)
    async def cancel(job: str, caller: Caller = needs) -> Job:
        """Have a job save a checkpoint and end."""
        await _asked(lambda: jobs.cancel(job))
        await context.audit(caller.actor, "train.cancel", job)
        return await _asked(lambda: jobs.status(job))

    return made


async def _asked(question: Callable[[], Answer]) -> Answer:
    """Ask in a thread; turn what is raised into an answer."""
    try:
        return await asyncio.to_thread(question)
    except UnknownJob as error:
        raise HTTPException(404, str(error)) from error
    except UsageError as error:
        raise HTTPException(400, str(error)) from error
    except TrainError as error:
        raise HTTPException(503, str(error)) from error


def _text(jobs: Jobs, job: str, follow: bool) -> Iterator[str]:
    for line in jobs.logs(job, follow=follow):
        yield f"{line}\n"


def _operator() -> dict[str, Any]:
    file = environment.deployed()
    return read_tree(Path(file)) if file else {}


def _config(wanted: Wanted, operator: dict[str, Any]) -> TrainConfig:
    """Return the config of a job; raise UsageError for what a request may not say."""
    told = dict(_leaves(wanted.config)) | wanted.settings
    for key, value in told.items():
        if key.partition(".")[0] not in _ALLOWED and key not in _ALLOWED_KEYS:
            raise UsageError(
                f"{key} is the operator's to choose; a request may set {', '.join(_ALLOWED)}, "
                f"{', '.join(_ALLOWED_KEYS)}"
            )
        if key in _CODE and ":" in str(value):
            raise UsageError(f"{key}: a request may name only what is registered, not {value!r}")
    config = resolve(operator, environment.settings() | told)
    path = PurePosixPath(config.model.path)
    is_theirs = any(key.startswith(("model.path", "model.overrides")) for key in told)
    if is_theirs and (path.is_absolute() or ".." in path.parts):
        raise UsageError(f"model.path: a request may name a model, not a place: {path}")
    return _within(config, operator)


def _within(config: TrainConfig, operator: dict[str, Any]) -> TrainConfig:
    """Hold a request to the operator's budget."""
    allowed = operator.get("budget") or {}
    budget = config.budget
    lowered = {
        key: limit
        for key in ("usd", "gpu_hours")
        if (limit := allowed.get(key)) is not None
        and ((asked := getattr(budget, key)) is None or asked > limit)
    }
    return config.model_copy(update={"budget": budget.model_copy(update=lowered)})


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a tree's values by dotted key; an empty section is a value."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
