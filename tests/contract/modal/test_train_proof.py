"""The proof: GRPO on real vLLM in a container that is lost in the middle, and none of it shows."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from serve.policies.store import PolicyStore
from tests.loopback_modal import LoopbackModal
from train.learner.checkpoints import SavedCheckpoints
from train.run import RunDir, State

ROOT = Path(__file__).resolve().parents[3]
RUNS = "palaestra-runs-default-default"
NAME = "key_door_tiny"


@pytest.fixture
def modal(tmp_path: Path) -> Iterator[LoopbackModal]:
    with LoopbackModal(
        tmp_path / "modal", container_env={"VLLM_CPU_KVCACHE_SPACE": "1"}
    ) as loopback:
        yield loopback


def settings(modal: LoopbackModal, path: Path) -> Path:
    file = path / "run.yaml"
    told = yaml.safe_load((ROOT / "train/configs/key_door_tiny.yaml").read_text())
    told["model"]["path"] = str(ROOT / told["model"]["path"])
    told["rollouts"] |= {"group_size": 4, "groups_per_step": 4, "concurrency": 16}
    told["learn"] |= {"steps": 3, "warmup_steps": 0}
    told["checkpoints"] = {"every": 1, "keep": 3}
    told["publish"] = {"probes": 1}
    told["gateway"] = {"wait_s": 900, "engine_args": ["--enforce-eager"]}
    told["volumes"] = {"root": str(modal.root / "mnt")}
    file.write_text(yaml.safe_dump(told))
    return file


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_container_that_is_lost_in_the_middle(modal: LoopbackModal, tmp_path: Path) -> None:
    file = settings(modal, tmp_path)
    env = {"PALAESTRA_TRAIN_CONFIG": str(file)}
    done = modal.cli("deploy", "-m", "train.modal_app", env=env, timeout_s=240)
    assert done.returncode == 0, done.stdout + done.stderr
    started = modal.python(
        *("-m", "train", "start", "--config", str(file), "--target", "modal"), timeout_s=120
    )
    assert started.returncode == 0, started.stderr
    job = started.stdout.strip()
    folder = modal.volume(RUNS)

    def saved() -> Path | None:
        return next((path.parent for path in folder.glob("grpo_*/checkpoints/step-000001")), None)

    modal.wait_for(saved, timeout_s=400, what="the first checkpoint")
    (container,) = modal.containers(function="train_job_on_cpu")
    modal.kill(container)
    (run,) = (RunDir.open(path) for path in folder.glob("grpo_*"))
    before = run.status().step
    assert before < 3

    def is_over() -> bool:
        return run.status().state in (State.FINISHED, State.FAILED)

    modal.wait_for(is_over, timeout_s=400, what=f"the end of {job}")
    log = (run.path / "job.log").read_text()
    assert run.status().state is State.FINISHED, log[-3000:]
    rows = rows_of(run.path)
    assert (run.status().step, [int(row["step"]) for row in rows]) == (3, [1, 2, 3]), log[-3000:]
    (resumed,) = run.about()["resumed"]
    assert resumed["config_sha256"] == run.about()["config_sha256"]
    assert SavedCheckpoints(run.checkpoints_path).list() == (1, 2, 3)
    versions = PolicyStore(run.serve_path / "policies").versions(NAME)
    # As without the loss: the model as it came, as the trainer wrote it, each step that learned.
    learned = [float(row["step"]) for row in rows if int(row["flat_groups"]) < int(row["groups"])]
    assert [version.metrics.get("step") for version in versions] == [None, 0.0, *learned]
    assert [version.version for version in versions] == list(range(1, len(versions) + 1))
    assert run.status().version == versions[-1].version
    (call,) = modal.function_calls(function="train_job_on_cpu")
    assert [len(tries) for tries in call.containers] == [2]
    told = modal.python("-m", "train", "status", job, "--target", "modal", "--json", timeout_s=120)
    assert json.loads(told.stdout)["step"] == 3
