"""The verbs of jobs on the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from train import jobs_cli
from train.cli import main
from train.config import TrainConfig
from train.errors import UnknownJob
from train.jobs.base import Job, Jobs, JobState

LEAST = ("--env", "key_door", "--model", "m")


class FakeJobs(Jobs):
    """One job, which ends as told."""

    def __init__(self, state: JobState = JobState.FINISHED) -> None:
        self.started: list[TrainConfig] = []
        self.cancelled: list[str] = []
        self.state = state

    def start(self, config: TrainConfig) -> str:
        self.started.append(config)
        return "job-1"

    def status(self, job: str) -> Job:
        if job != "job-1":
            raise UnknownJob(f"no job {job!r}")
        return Job(
            id=job,
            run="grpo_1",
            target="fake",
            state=self.state,
            created="2026-11-21T18:00:00+00:00",
            env="key_door",
            model="m",
            step=3,
            steps=4,
            gpu_hours=0.5,
            usd=2.0,
            place="/p",
        )

    def cancel(self, job: str) -> None:
        self.status(job)
        self.cancelled.append(job)

    def logs(self, job: str, *, follow: bool = False) -> Iterator[str]:
        self.status(job)
        yield from ("one", "two") if follow else ("one",)

    def list(self) -> tuple[Job, ...]:
        return (self.status("job-1"),)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeJobs:
    made = FakeJobs()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs_cli, "_jobs", lambda config, target: made)
    return made


def test_start_says_the_id_and_nothing_else(
    jobs: FakeJobs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["start", *LEAST, "--steps", "9", "--target", "modal"]) == 0
    out, err = capsys.readouterr()
    assert out == "job-1\n"
    assert err == "python -m train logs job-1 --follow --target modal\n"
    assert jobs.started[0].learn.steps == 9


@pytest.mark.parametrize(
    ("state", "code"),
    [(JobState.FINISHED, 0), (JobState.FAILED, 1), (JobState.STOPPED, 143)],
)
def test_grpo_elsewhere_starts_and_follows(
    jobs: FakeJobs, state: JobState, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.state = state
    assert main(["grpo", *LEAST, "--target", "modal"]) == code
    out = capsys.readouterr().out
    assert "one\ntwo\n" in out
    assert f"state      {state.value}" in out


def test_the_other_verbs(jobs: FakeJobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "job-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 3
    assert main(["logs", "job-1"]) == 0
    assert capsys.readouterr().out == "one\n"
    assert main(["cancel", "job-1"]) == 0
    assert jobs.cancelled == ["job-1"]
    capsys.readouterr()
    assert main(["list"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["id", "state", "step", "env", "model", "created", "used"]
    assert row.split()[:5] == ["job-1", "finished", "3/4", "key_door", "m"]
    assert row.endswith("0.50 GPU-h, 2.00 USD")
    assert main(["status", "none"]) == 2
    assert capsys.readouterr().err == "error: no job 'none'\n"


def test_a_list_needs_neither_env_nor_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "--out", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_precedence_is_options_over_environment_over_file(
    jobs: FakeJobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "env: {name: key_door}\nmodel: {path: m}\n"
        "learn: {steps: 1, seed: 1, warmup_steps: 1, beta2: 0.5}\n"
    )
    (tmp_path / ".env").write_text("PALAESTRA_TRAIN__LEARN__WARMUP_STEPS=9\nEXPERIMENTER=ann\n")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("PALAESTRA_TRAIN__LEARN__STEPS", "2")
    monkeypatch.setenv("PALAESTRA_TRAIN__LEARN__SEED", "2")
    assert main(["start", "--config", str(file), "--steps", "3"]) == 0
    config = jobs.started[0]
    learn = config.learn
    assert (learn.steps, learn.seed, learn.warmup_steps, learn.beta2) == (3, 2, 9, 0.5)
    assert config.volumes.runs == "palaestra-runs-ann-default"


def test_a_dry_run_says_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["grpo", *LEAST, "--set", "compute.gpu=H100", "--dry-run"]) == 0
    comments = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    assert len(comments[0]) == len("# sha256 ") + 64
    assert comments[1].startswith("# estimate: 0.90 GPU-hours, 3.84 USD on Modal, 0.90 h of H100")
