"""Jobs on Modal: a call of the deployed app's `train_job` each, on hardware of the config's choice.

A job's id is its FunctionCall's. What is known of jobs lies on the runs volume, `jobs/ID.json`, and
what a run says of itself beside it, `RUN/status.json`: any machine with the same account can ask.
`modal` is imported here and in `train.modal_app` only.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import modal

from train.config import TrainConfig
from train.environment import SECRETS, secret
from train.errors import BadConfig, TrainError, UnknownJob
from train.jobs.base import FORMAT, Job, Jobs, JobState, described, job_of
from train.jobs.order import Order, Outcome
from train.jobs.tail import complete
from train.run import STATUS_FORMAT, State, Status, run_name

FUNCTION = "train_job"
"""The app's function for a GPU of any kind: its image has vLLM's CUDA build."""
ON_CPU = "train_job_on_cpu"
CLUSTER = "train_cluster"
_ID = re.compile(r"fc-[A-Za-z0-9]+")
_POLL_S = 5.0

Mounts = dict[str | PurePosixPath, modal.Volume | modal.CloudBucketMount]
"""What Modal takes as volumes, by where they are seen."""

_ENDED = {
    State.FINISHED.value: JobState.FINISHED,
    State.INTERRUPTED.value: JobState.STOPPED,
}


class Files:
    """A volume's files, with Python's own error for one that is not there."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def volume(self) -> modal.Volume:
        """The volume, which is made if there is none."""
        return modal.Volume.from_name(self.name, create_if_missing=True, version=2)

    def listdir(self, path: str) -> list[Any]:
        """Return what is in a folder."""
        with _translated(f"the volume {self.name}"):
            try:
                return list(self.volume.listdir(path))
            except modal.exception.NotFoundError as error:
                raise FileNotFoundError(path) from error

    def read_file(self, path: str) -> list[bytes]:
        """Return a file's bytes, in pieces."""
        with _translated(f"the volume {self.name}"):
            try:
                return list(self.volume.read_file(path))
            except modal.exception.NotFoundError as error:
                raise FileNotFoundError(path) from error

    def write(self, path: str, data: bytes) -> None:
        """Put a small file there, over one that is there."""
        with _translated(f"the volume {self.name}"), self.volume.batch_upload(force=True) as batch:
            batch.put_file(io.BytesIO(data), path)


class ModalJobs(Jobs):
    """Jobs of one app, whose runs lie on one volume."""

    def __init__(
        self,
        app: str,
        runs: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`app` is a deployed app's name, `runs` a volume's."""
        self._app, self._runs, self._files = app, runs, Files(runs)
        self._now, self._sleep = now, sleep

    @classmethod
    def of(cls, config: TrainConfig) -> ModalJobs:
        """Return those that a config means."""
        return cls(config.compute.app, config.volumes.runs)

    def start(self, config: TrainConfig) -> str:
        """Hand a run to the app."""
        name = function_for(config)
        with _translated(f"the app {self._app}, with its function {name}"):
            function = modal.Function.from_name(self._app, name)
            return spawn(function, config, now=self._now)

    def status(self, job: str) -> Job:
        """Return what the call and the volume say."""
        record = self._record(job)
        run = str(record["run"])
        told = self._json(f"{run}/status.json")
        status = None if told is None else _status(told)
        state, message = self._state(job, record, status)
        return job_of(
            record,
            id=job,
            target="modal",
            place=f"{self._runs}:/{run}",
            state=state,
            status=status,
            message=message,
            costs=self._json(f"{run}/costs.json"),
        )

    def cancel(self, job: str) -> None:
        """Cancel the call: its container has the run save a checkpoint and end."""
        record = self._record(job)
        if self._state(job, record, None)[0].is_over:
            return
        cancelled = {**record, "cancelled": self._now().isoformat(timespec="seconds")}
        self._files.write(f"/jobs/{job}.json", json.dumps(cancelled).encode())
        with _translated(f"the job {job}"):
            modal.FunctionCall.from_id(job).cancel()

    def logs(self, job: str, *, follow: bool = False) -> Iterator[str]:
        """Yield the lines of the run's log on the volume, which is some seconds behind."""
        record = self._record(job)
        at = 0
        while True:
            is_over = not follow or self._state(job, record, None)[0].is_over
            said = self._read(f"{record['run']}/job.log") or b""
            lines, at = complete(said[at:], at, whole=is_over)
            yield from lines
            if is_over:
                return
            self._sleep(_POLL_S)

    def list(self) -> tuple[Job, ...]:
        """Return all jobs of the volume."""
        try:
            entries = self._files.listdir("/jobs")
        except FileNotFoundError:
            return ()
        ids = [entry.path.rpartition("/")[2].removesuffix(".json") for entry in entries]
        jobs = [self.status(each) for each in ids if _ID.fullmatch(each)]
        return tuple(sorted(jobs, key=lambda job: job.created, reverse=True))

    def _state(
        self, job: str, record: Mapping[str, Any], status: Status | None
    ) -> tuple[JobState, str]:
        """Return where the call is, and what is to be said of its end."""
        with _translated(f"the job {job}"):
            try:
                outcome = Outcome.load(modal.FunctionCall.from_id(job).get(timeout=0))
            except modal.exception.OutputExpiredError:  # Modal keeps a week of them
                return (JobState.FAILED, "") if status is None else (_kept(status), "")
            except TimeoutError:
                return JobState.QUEUED if status is None else JobState.RUNNING, ""
            except TrainError as error:
                return JobState.FAILED, str(error)
            except modal.exception.FunctionTimeoutError:
                return JobState.FAILED, "compute.timeout_s has passed, and compute.retries are used"
            except (modal.exception.RemoteError, modal.exception.InternalFailure) as error:
                if "cancelled" in record:
                    return JobState.STOPPED, "cancelled; a checkpoint is being saved, or was"
                return JobState.FAILED, str(error) or "its container was lost"
        return _ENDED.get(outcome.state, JobState.FAILED), outcome.message

    def _record(self, job: str) -> Mapping[str, Any]:
        found = self._json(f"jobs/{job}.json") if _ID.fullmatch(job) else None
        if found is None or found.get("format") != FORMAT:
            raise UnknownJob(
                f"no job {job!r} on the volume {self._runs}; `python -m train list --target modal` "
                "shows them, and volumes.runs or EXPERIMENTER and EXPERIMENT_NAME say which volume"
            )
        return found

    def _json(self, path: str) -> dict[str, Any] | None:
        said = self._read(path)
        if said is None:
            return None
        try:
            told = json.loads(said)
        except ValueError:
            return None
        return told if isinstance(told, dict) else None

    def _read(self, path: str) -> bytes | None:
        try:
            return b"".join(self._files.read_file(path))
        except FileNotFoundError:
            return None


def function_for(config: TrainConfig) -> str:
    """Return which of the app's functions carries a run out: their images differ."""
    if config.compute.nodes > 1:
        return CLUSTER
    return ON_CPU if config.compute.gpu is None else FUNCTION


def spawn(
    function: modal.Function[..., Any, Any],
    config: TrainConfig,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> str:
    """Call the app's function on the config's hardware, and write the job down; return its id."""
    created = now()
    run = f"{run_name(created)}_{uuid.uuid4().hex[:4]}"  # nobody else sees who starts what
    compute = config.compute
    called = function.with_options(
        gpu=compute.gpu,
        cpu=compute.cpu,
        memory=compute.memory_mib,
        timeout=compute.timeout_s,
        retries=retries(config),
        region=compute.region,
        volumes=volumes(config),
        secrets=secrets(config),
    ).spawn(Order(run=run, config=config).dump())
    record = described(config, run, created.isoformat(timespec="seconds"))
    job: str = called.object_id
    Files(config.volumes.runs).write(f"/jobs/{job}.json", json.dumps(record).encode())
    return job


def retries(config: TrainConfig) -> modal.Retries:
    """Return the policy that goes on at once from the last checkpoint."""
    return modal.Retries(
        max_retries=config.compute.retries, initial_delay=0.0, backoff_coefficient=1.0
    )


def volumes(config: TrainConfig) -> Mounts:
    """Return the volumes of a job, by where it sees them."""
    names = config.volumes
    return {
        f"{names.root}/{key}": modal.Volume.from_name(name, create_if_missing=True, version=2)
        for key, name in names
        if key != "root"
    }


def secrets(config: TrainConfig) -> list[modal.Secret]:
    """Return the secrets of a job: Modal's, and the variables of here that it needs."""
    named = [
        modal.Secret.from_name(name, required_keys=list(keys))
        for name, keys in config.compute.secrets.items()
    ]
    needed = (*SECRETS, config.gateway.api_key_env, config.notify.url_env)
    found: dict[str, str | None] = {
        name: value for name in needed if name and (value := secret(name)) is not None
    }
    return [*named, modal.Secret.from_dict(found)] if found else named


def account_rates() -> dict[str, str]:
    """Return what Modal asks of this account, USD per hour; empty where there is no account."""
    try:
        return {
            key: str(value) for key, value in modal.Workspace.from_context().billing.rates().items()
        }
    except modal.exception.Error:
        return {}


def _kept(status: Status) -> JobState:
    return _ENDED.get(status.state.value, JobState.FAILED)


def _status(told: Mapping[str, Any]) -> Status | None:
    if told.get("format") != STATUS_FORMAT:
        return None
    return Status(
        state=State(told["state"]),
        step=told["step"],
        message=told["message"],
        version=told["version"],
    )


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """Say in one line what Modal refuses."""
    try:
        yield
    except modal.exception.AuthError as error:
        raise BadConfig(
            f"Modal does not let us in: {error}; `modal setup` makes a token, or set "
            "MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
        ) from error
    except modal.exception.NotFoundError as error:
        raise BadConfig(
            f"Modal does not have {what}: {error}; `modal deploy -m train.modal_app` deploys it"
        ) from error
    except modal.exception.ConnectionError as error:
        raise BadConfig(f"Modal cannot be reached: {error}") from error
