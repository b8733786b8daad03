"""Jobs on this machine: processes that outlive their starter, known again by their folder."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.unit.train.fakes import alive, until
from train.config import TrainConfig, resolve
from train.errors import BadConfig, UnknownJob
from train.jobs.base import Job, JobState
from train.jobs.local import LocalJobs

ROOT = Path(__file__).resolve().parents[4]
COMMAND = (sys.executable, "-m", "tests.unit.train.jobs.fakes")
NOW = datetime(2026, 11, 21, 18, 0, 0, tzinfo=UTC)


def config(script: str, **settings: Any) -> TrainConfig:
    tree = {"env": {"name": "key_door"}, "model": {"path": script}, "learn": {"steps": 4}}
    return resolve(tree, {key.replace("__", "."): value for key, value in settings.items()})


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalJobs]:
    monkeypatch.chdir(ROOT)
    made = LocalJobs(
        tmp_path, command=COMMAND, now=lambda: NOW, sleep=lambda seconds: time.sleep(0.01)
    )
    yield made
    for record in tmp_path.glob("*/job.json"):
        pid = json.loads(record.read_text())["pid"]
        if pid != os.getpid() and alive(pid):
            os.kill(pid, signal.SIGKILL)
            until(partial(is_gone, pid))


def is_gone(pid: int) -> bool:
    return not alive(pid)


def ended(jobs: LocalJobs, job: str) -> Job:
    until(lambda: jobs.status(job).state.is_over)
    return jobs.status(job)


def test_a_job_that_ends_well(jobs: LocalJobs, tmp_path: Path) -> None:
    job = jobs.start(config("finish", model__name="mine"))
    assert job == "grpo_20261121_180000"
    assert ended(jobs, job) == Job(
        id=job,
        run=job,
        target="local",
        state=JobState.FINISHED,
        created="2026-11-21T18:00:00+00:00",
        env="key_door",
        model="mine",
        step=4,
        steps=4,
        version=5,
        place=str(tmp_path / job),
    )
    assert list(jobs.logs(job)) == [f"begun {job}", "settings []"]


@pytest.mark.parametrize(
    ("script", "state", "step", "message"),
    [
        ("fail", JobState.FAILED, 3, "no disk"),
        ("refuse", JobState.FAILED, 0, "no such env"),
        ("spend", JobState.STOPPED, 3, "the budget is spent"),
    ],
)
def test_how_jobs_end(
    jobs: LocalJobs, script: str, state: JobState, step: int, message: str
) -> None:
    job = ended(jobs, jobs.start(config(script)))
    assert (job.state, job.step, job.message) == (state, step, message)


def test_a_job_that_was_killed_says_how_to_go_on(jobs: LocalJobs, tmp_path: Path) -> None:
    job = ended(jobs, jobs.start(config("die")))
    assert job.state is JobState.FAILED
    assert job.message == (
        f"its process is gone; python -m train grpo --resume {tmp_path / job.id} goes on"
    )


def test_a_job_is_cancelled_with_a_checkpoint_and_seen_by_others(
    jobs: LocalJobs, tmp_path: Path
) -> None:
    job = jobs.start(config("wait"))
    until(lambda: jobs.status(job).step == 2)
    other = LocalJobs(tmp_path)
    assert other.status(job).state is JobState.RUNNING
    lines = other.logs(job, follow=True)
    assert list(itertools.islice(lines, 3))[-1] == "waiting"
    other.cancel(job)
    assert list(lines) == ["saved"]
    told = ended(jobs, job)
    assert (told.state, told.message) == (JobState.STOPPED, "stopped by SIGTERM")
    other.cancel(job)


def test_it_outlives_whoever_started_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from train.jobs.local import LocalJobs;"
        "from tests.unit.train.jobs.test_local import config, COMMAND;"
        "print(LocalJobs(Path(sys.argv[1]), command=COMMAND).start(config('wait')))"
    )
    environment = os.environ | {"PALAESTRA_TRAIN__LEARN__STEPS": "9"}
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    jobs, job = LocalJobs(tmp_path), said.stdout.strip()
    until(lambda: jobs.status(job).step == 2)
    assert "settings []" in list(jobs.logs(job))  # they are in the config already
    jobs.cancel(job)
    assert ended(jobs, job).state is JobState.STOPPED


def test_a_number_that_was_given_out_again_is_not_the_job(jobs: LocalJobs, tmp_path: Path) -> None:
    job = jobs.start(config("finish"))
    ended(jobs, job)
    path = tmp_path / job / "job.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"pid": os.getpid()}))
    assert jobs.status(job).state is JobState.FINISHED
    jobs.cancel(job)  # this process goes on


def test_jobs_are_listed_the_newest_first(jobs: LocalJobs, tmp_path: Path) -> None:
    first, second = jobs.start(config("finish")), jobs.start(config("finish"))
    (tmp_path / "grpo_20250101_000000").mkdir()
    assert [job.id for job in jobs.list()] == [second, first]
    assert second == f"{first}.2"


@pytest.mark.parametrize("job", ["grpo_20260101_000000", "../etc", "", "grpo_x", "/tmp"])
def test_unknown_jobs(jobs: LocalJobs, job: str) -> None:
    for ask in (jobs.status, jobs.cancel, lambda job: list(jobs.logs(job))):
        asked: Callable[[str], object] = ask
        with pytest.raises(UnknownJob, match="no job"):
            asked(job)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadConfig, match="cannot make a run below"):
        LocalJobs(tmp_path / "file" / "runs").start(config("finish"))
