"""Jobs and entry points of the training app: the real client, the real container, no account."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.loopback_modal import LoopbackModal
from train.learner.checkpoints import Checkpoints, TrainState

ROOT = Path(__file__).resolve().parents[3]
RUNS = "palaestra-runs-ann-default"


class World:
    """A control plane with the app on it, and commands that are told so."""

    def __init__(self, modal: LoopbackModal) -> None:
        self.modal = modal
        self.env = {
            "PALAESTRA_TRAIN__VOLUMES__ROOT": str(modal.root / "mnt"),
            "EXPERIMENTER": "ann",
        }

    def cli(self, *words: str) -> CompletedProcess[str]:
        return self.modal.cli(*words, env=self.env, timeout_s=240)

    def train(self, *words: str) -> CompletedProcess[str]:
        return self.modal.python("-m", "train", *words, env=self.env, timeout_s=240)

    def entry(self, name: str, *words: str) -> CompletedProcess[str]:
        return self.cli("run", "-m", f"train.modal_app::{name}", *words)

    def deploy(self) -> None:
        done = self.cli("deploy", "-m", "train.modal_app")
        assert done.returncode == 0, done.stdout + done.stderr

    def status(self, job: str) -> dict[str, object]:
        done = self.train("status", job, "--target", "modal", "--json")
        assert done.returncode == 0, done.stderr
        told: dict[str, object] = json.loads(done.stdout)
        return told

    def until(self, job: str, holds: Callable[[dict[str, object]], bool]) -> dict[str, object]:
        self.modal.wait_for(
            lambda: holds(self.status(job)), timeout_s=240, what=f"{job}: {self.status(job)}"
        )
        return self.status(job)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with LoopbackModal(tmp_path / "modal") as modal:
        yield World(modal)


def said(done: CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def test_a_job_from_start_to_its_end(world: World) -> None:
    """It is refused in the container, which alone knows what models are there."""
    assert (
        "modal deploy -m train.modal_app"
        in world.train(
            *("start", "--env", "key_door", "--model", "./nowhere", "--target", "modal")
        ).stderr
    )
    world.deploy()
    done = world.train(
        *("start", "--env", "key_door", "--model", "./nowhere", "--steps", "3"),
        *("--set", "compute.timeout_s=600", "--set", "compute.retries=2", "--target", "modal"),
    )
    assert done.returncode == 0, said(done)
    job = done.stdout.strip()
    ended = world.until(job, lambda told: told["state"] == "failed")
    assert (ended["id"], ended["env"], ended["steps"]) == (job, "key_door", 3)
    assert "nowhere" in str(ended["message"])
    assert re.fullmatch(r"grpo_[0-9]{8}_[0-9]{6}_[0-9a-f]{4}", str(ended["run"]))
    assert ended["place"] == f"{RUNS}:/{ended['run']}"
    (call,) = world.modal.function_calls(function="train_job_on_cpu")
    assert (call.timeout_s, call.retries, [len(tries) for tries in call.containers]) == (
        600,
        2,
        [1],
    )
    logs = world.train("logs", job, "--follow", "--target", "modal")
    assert f"error: {ended['message']}" in logs.stdout
    listed = world.train("list", "--target", "modal").stdout.splitlines()
    assert [line.split()[:2] for line in listed[1:]] == [[job, "failed"]]
    world.train("cancel", job, "--target", "modal")
    assert world.status(job) == ended
    unknown = world.train("status", "fc-none", "--target", "modal")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "no job 'fc-none'" in unknown.stderr


def test_train_by_modal_run(world: World) -> None:
    done = world.entry(
        "train",
        *("--env", "key_door", "--model", "./nowhere", "--steps", "3"),
        *("--gpu-type", "H100", "--gpu-count", "2", "--settings", "learn.seed=3 learn.mode=sync"),
    )
    assert done.returncode == 1, said(done)
    assert '"state": "refused"' in done.stdout
    (call,) = world.modal.function_calls(function="train_job")
    assert call.gpus == ["H100:2"]
    (config,) = world.modal.volume(RUNS).glob("grpo_*/job.yaml")
    assert "seed: 3" in config.read_text()
    wrong = world.entry("train", "--env", "key_door", "--model", "m", "--settings", "learn.nope=1")
    assert "error: learn.nope: no such key" in said(wrong)
    assert "Traceback" not in said(wrong)


def test_data_goes_up_and_is_compared(world: World, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(b"{}\n" * 100_000)
    done = world.entry("upload_data", "--path", str(file), "--name", "sets/a.jsonl")
    assert done.returncode == 0, said(done)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"0.30 MB (300000 bytes), sha256 {digest}" in done.stdout
    there = world.modal.volume("palaestra-data") / "sets" / "a.jsonl"
    assert there.read_bytes() == file.read_bytes()
    missing = world.entry("upload_data", "--path", str(tmp_path / "none"))
    assert "error: cannot upload" in said(missing)


def test_checkpoints_come_down_and_are_compared(world: World, tmp_path: Path) -> None:
    run = world.modal.volume(RUNS) / "grpo_20260101_000000"
    checkpoints = Checkpoints(run / "checkpoints", keep=3)
    for step in (1, 2):
        with checkpoints.writing(step) as folder:
            (folder / "model.safetensors").write_bytes(b"w" * (17 << 20))
            (folder / "sub").mkdir()
            (folder / "sub" / "config.json").write_text(f"{step}")
            TrainState(step=step, next_group=8).write(folder)
    listed = world.entry("list_checkpoints", "--run", run.name)
    assert listed.returncode == 0, said(listed)
    assert f"{run.name}  1, 2" in listed.stdout
    assert "step 2  17.83 MB" in listed.stdout
    done = world.entry("download", "--run", run.name, "--to", str(tmp_path / "here"))
    assert done.returncode == 0, said(done)
    assert "all digests as on the volume" in done.stdout
    here = tmp_path / "here" / run.name / "step-000002"
    assert (here / "sub" / "config.json").read_text() == "2"
    assert (here / "model.safetensors").stat().st_size == 17 << 20
    again = world.entry("download", "--run", run.name, "--to", str(tmp_path / "here"))
    assert "is there already" in said(again)
    (run / "checkpoints" / "step-000001" / "sub" / "config.json").write_text("9")
    damaged = world.entry(
        *("download", "--run", run.name, "--step", "1", "--to", str(tmp_path / "there"))
    )
    assert "came over otherwise" in said(damaged)


def test_a_job_that_is_cancelled_ends_cleanly_and_only_once(world: World) -> None:
    """It is still starting its engine: there is nothing to save, and nothing may be left."""
    world.deploy()
    model = ROOT / "train" / "tiny" / "shipped" / "key_door_before"
    done = world.train("start", "--env", "key_door", "--model", str(model), "--target", "modal")
    job = done.stdout.strip()
    world.until(job, lambda told: told["state"] == "running")
    assert world.train("cancel", job, "--target", "modal").returncode == 0
    stopped = world.until(job, lambda told: told["state"] == "stopped")
    assert "cancelled" in str(stopped["message"])
    (status,) = world.modal.volume(RUNS).glob("grpo_*/status.json")
    world.modal.wait_for(
        lambda: json.loads(status.read_text())["state"] == "interrupted",
        timeout_s=120,
        what="the run's own end",
    )
    assert json.loads(status.read_text())["message"] == "stopped by SIGTERM"
    (call,) = world.modal.function_calls(function="train_job_on_cpu")
    assert [len(tries) for tries in call.containers] == [1]
