"""The run's directory: made once, opened only whole, trained by one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.unit.train.fakes import until
from train.config import TrainConfig, resolve
from train.errors import BadConfig, SaveFailed
from train.run import RunDir, State, Status

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


def config() -> TrainConfig:
    return resolve({"env": {"name": "key_door"}, "model": {"path": "m"}}, {"learn.steps": 3})


def made(out: Path) -> RunDir:
    return RunDir.create(out, config(), {"git_sha": "abc"}, now=lambda: NOON)


def test_a_run_is_named_by_its_time_and_never_twice(tmp_path: Path) -> None:
    names = [made(tmp_path / "runs").name for _ in range(3)]
    assert names == ["grpo_20260102_120000", "grpo_20260102_120000.2", "grpo_20260102_120000.3"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    run = RunDir.open(made(tmp_path).path)
    assert run.config() == config()
    assert run.about() == {
        "format": "train-run/1",
        "name": "grpo_20260102_120000",
        "created": "2026-01-02T12:00:00+00:00",
        "git_sha": "abc",
    }
    assert run.status() == Status(state=State.RUNNING)
    status = Status(state=State.FAILED, step=7, message="x", version=3)
    run.write_status(status)
    assert run.status() == status
    run.update_status(State.FINISHED)
    assert run.status() == Status(state=State.FINISHED, step=7, version=3)


def test_places(tmp_path: Path) -> None:
    run = made(tmp_path)
    assert run.checkpoint_path(20) == run.path / "checkpoints" / "step-000020"
    assert run.checkpoints_path.is_dir()
    assert run.versions_path.is_dir()
    assert run.gateway_log_path.parent.is_dir()
    assert not run.serve_path.exists()
    assert run.metrics_path == run.path / "metrics.csv"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadConfig, match="cannot make a run below"):
        made(tmp_path / "file")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="no such folder"):
        RunDir.open(tmp_path / "nope")


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "status.json"])
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    run = made(tmp_path)
    (run.path / name).unlink()
    with pytest.raises(BadConfig, match=f"is not a training run: it has no {name}$"):
        RunDir.open(run.path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.json", "{", "run.json is damaged"),
        ("run.json", '{"format": "run/1"}', "expected format train-run/1"),
        ("run.json", "[]", "expected format train-run/1"),
        ("status.json", '{"format": "train-status/1"}', "status.json is damaged: KeyError"),
        (
            "status.json",
            '{"format": "train-status/1", "state": "lost", "step": 1}',
            "'lost' is not a valid State",
        ),
        ("config.yaml", "env: {name: x}\nmodel: {path: m}\nlearn: {old: 1}", "learn.old: no such"),
    ],
)
def test_what_is_damaged_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    run = made(tmp_path)
    (run.path / name).write_text(content)
    with pytest.raises(BadConfig, match=said):
        RunDir.open(run.path)


def test_an_evaluation_is_no_training_run(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "run/1"}))
    with pytest.raises(BadConfig, match=r"it has no config.yaml, run.json, status.json"):
        RunDir.open(tmp_path)


def test_a_status_that_cannot_be_written_is_a_save_that_failed(tmp_path: Path) -> None:
    run = made(tmp_path)
    lost = RunDir(run.path / "gone")
    with pytest.raises(SaveFailed, match=r"cannot write .*status.json: No such file"):
        lost.write_status(Status(state=State.RUNNING))


HOLDER = """
import sys, time
from pathlib import Path
from train.run import RunDir
with RunDir(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_two_processes_cannot_train_the_same_run(tmp_path: Path) -> None:
    run = made(tmp_path)
    argv = [sys.executable, "-c", HOLDER, str(run.path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            with (
                pytest.raises(BadConfig, match=f"by another process, {holder.pid}$"),
                run.locked(),
            ):
                pytest.fail("it was locked")
        finally:
            holder.kill()
            holder.wait()
    with run.locked():
        assert run.lock_path.read_text() == f"{os.getpid()}\n"
        assert run.lock_descriptor is not None
    assert run.lock_descriptor is None


def test_a_process_that_has_ended_is_not_named(tmp_path: Path) -> None:
    """A child that inherited the lock holds it, but the process in the file is gone."""
    run = made(tmp_path)
    with run.locked():
        assert run.lock_descriptor is not None
        child = subprocess.Popen(["sleep", "60"], pass_fds=[run.lock_descriptor])
    run.lock_path.write_text("999999999\n")
    slept: list[float] = []
    try:
        with (
            pytest.raises(BadConfig, match="of an earlier start still hold") as caught,
            run.locked(wait_s=0.0, sleep=slept.append),
        ):
            pytest.fail("it was locked")
        assert "999999999" not in str(caught.value)
    finally:
        child.kill()
        child.wait()


def test_leftovers_are_waited_for(tmp_path: Path) -> None:
    run = made(tmp_path)
    with run.locked():
        assert run.lock_descriptor is not None
        child = subprocess.Popen(["sleep", "60"], pass_fds=[run.lock_descriptor])
    run.lock_path.write_text("999999999\n")

    def ends(_: float) -> None:
        child.kill()
        child.wait()

    with run.locked(sleep=ends):
        assert run.lock_descriptor is not None
    until(lambda: child.poll() is not None)
