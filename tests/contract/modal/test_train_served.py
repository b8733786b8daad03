"""Training through the served policy: both apps on one control plane, the learner lost."""

import json
from pathlib import Path

import pytest
import yaml

from tests.contract.modal.targets import POLICY, VLLM, OnModal, write_config
from train.run import RunDir, State

ROOT = Path(__file__).resolve().parents[3]
RUNS = "palaestra-runs-default-default"


def settings(target: OnModal, path: Path) -> Path:
    told = yaml.safe_load((ROOT / "train/configs/key_door_tiny.yaml").read_text())
    told["model"] = {"path": str(ROOT / told["model"]["path"]), "name": POLICY}
    told["rollouts"] |= {"group_size": 4, "groups_per_step": 4, "concurrency": 16}
    told["learn"] |= {"steps": 3, "warmup_steps": 0}
    told["checkpoints"] = {"every": 1, "keep": 3}
    told["publish"] = {"probes": 1}
    told["gateway"] = {"url": f"{target.url}/v1", "wait_s": 600}
    told["volumes"] = {"root": str(target.modal.root / "mnt")}
    path.write_text(yaml.safe_dump(told))
    return path


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_versions_reach_the_serving_app_though_the_learner_is_lost(tmp_path: Path) -> None:
    config = write_config(tmp_path / "serve.yaml", (), **VLLM)
    told = json.loads(config.read_text())
    told["deploy"]["volumes"]["runs"] = RUNS  # one folder of containers is one volume here
    config.write_text(json.dumps(told))
    target = OnModal(tmp_path, config)
    modal = target.modal
    folder = modal.volume(RUNS)
    try:
        target.deploy()
        file = settings(target, tmp_path / "train.yaml")
        env = {"PALAESTRA_TRAIN_CONFIG": str(file), "PALAESTRA_API_KEY": target.key}
        done = modal.cli("deploy", "-m", "train.modal_app", env=env, timeout_s=240)
        assert done.returncode == 0, done.stdout + done.stderr
        argv = ("-m", "train", "start", "--config", str(file), "--target", "modal")
        started = modal.python(*argv, env=env, timeout_s=240)
        assert started.returncode == 0, started.stderr

        def is_saved() -> bool:
            return any(folder.glob("grpo_*/checkpoints/step-000001"))

        modal.wait_for(is_saved, timeout_s=600, what="the first checkpoint")
        (container,) = modal.containers(function="train_job_on_cpu")
        modal.kill(container)
        (run,) = (RunDir.open(path) for path in folder.glob("grpo_*"))

        def is_over() -> bool:
            return run.status().state in (State.FINISHED, State.FAILED)

        modal.wait_for(is_over, timeout_s=600, what="the end of the run")
        log = (run.path / "job.log").read_text()
        assert run.status().state is State.FINISHED, log[-3000:]
        assert run.status().step == 3
        with target.admin() as gateway:
            (policy,) = gateway.policies()
            newest = run.status().version
            assert newest is not None
            first, *trained = policy.versions
            assert "step" not in first.metrics  # the model as it came
            steps = [version.metrics["step"] for version in trained]
            assert steps == sorted({0.0, *steps})  # as the trainer wrote it; no step twice
            assert (policy.latest, policy.versions[-1].version) == (newest, newest)
            gateway.wait_ready(POLICY, newest, timeout_s=60)
    finally:
        target.close()
