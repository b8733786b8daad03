"""`checkpoints download --target modal`: from a volume, by the same command as from a folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loopback_modal import LoopbackModal
from train.config import EnvSection, ModelSection, TrainConfig
from train.learner.checkpoints import Checkpoints, SavedCheckpoints, TrainState
from train.run import RunDir


@pytest.mark.slow
def test_a_checkpoint_comes_from_the_volume_with_its_digests(tmp_path: Path) -> None:
    config = TrainConfig(env=EnvSection(name="key_door"), model=ModelSection(path="tiny"))
    rundir = RunDir.create(tmp_path / "runs", config, {})
    with Checkpoints(rundir.checkpoints_path, keep=1).writing(20) as staging:
        TrainState(step=20, next_group=1).write(staging)
        (staging / "model.safetensors").write_bytes(bytes(range(256)) * 400)
    with LoopbackModal(tmp_path / "modal") as modal:
        volume = modal.volume("palaestra-runs-default-default")
        shutil.copytree(rundir.path, volume / rundir.path.name)
        env = modal.env({"PALAESTRA_TRAIN__VOLUMES__ROOT": str(modal.root / "mnt")})
        for name in ("EXPERIMENTER", "EXPERIMENT_NAME"):
            env.pop(name, None)

        def download(step: int) -> subprocess.CompletedProcess[str]:
            words = [rundir.path.name, str(step), "--to", "there", "--target", "modal"]
            return subprocess.run(
                [sys.executable, "-m", "train", "checkpoints", "download", *words],
                env=env,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )

        came, missing = download(20), download(30)
    assert came.returncode == 0, came.stdout + came.stderr
    copied = SavedCheckpoints(tmp_path / "there" / rundir.path.name)
    copied.verify(20)
    assert (copied.path(20) / "model.safetensors").read_bytes() == bytes(range(256)) * 400
    assert missing.returncode == 2
    assert "has no complete checkpoint of step 30" in missing.stdout + missing.stderr
