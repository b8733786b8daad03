"""`checkpoints download` on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from train import checkpoints_cli
from train.config import EnvSection, ModelSection, TrainConfig
from train.errors import BadConfig, BadModel
from train.learner.checkpoints import Checkpoints, SavedCheckpoints, TrainState
from train.run import RunDir

CONFIG = TrainConfig(env=EnvSection(name="key_door"), model=ModelSection(path="models/tiny"))


@pytest.fixture(name="rundir")
def _rundir(tmp_path: Path) -> RunDir:
    rundir = RunDir.create(tmp_path / "runs", CONFIG, {})
    checkpoints = Checkpoints(rundir.checkpoints_path, keep=9)
    for step in (20, 40):
        with checkpoints.writing(step) as staging:
            TrainState(step=step, next_group=1).write(staging)
            (staging / "model.safetensors").write_bytes(bytes([step]) * 1000)
    return rundir


def ran(*words: object) -> int:
    parser = argparse.ArgumentParser()
    checkpoints_cli.add_parser(parser.add_subparsers(dest="command", required=True))
    return checkpoints_cli.run(parser.parse_args(["checkpoints", *map(str, words)]))


def test_a_checkpoint_is_copied_whole_and_said(
    rundir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran("download", rundir.path, 20, "--to", tmp_path / "there") == 0
    folder = tmp_path / "there" / rundir.path.name / "step-000020"
    assert capsys.readouterr().out == f"{folder}\n"
    copied = SavedCheckpoints(folder.parent)
    assert copied.list() == (20,)
    copied.verify(20)
    assert [path.name for path in folder.parent.iterdir()] == ["step-000020"]
    with pytest.raises(BadConfig, match="is there already: move it away"):
        ran("download", rundir.path, 20, "--to", tmp_path / "there")


def test_what_is_not_there_or_damaged_is_refused(rundir: RunDir, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="no complete checkpoint of step 30: there are 20, 40"):
        ran("download", rundir.path, 30, "--to", tmp_path / "there")
    (rundir.checkpoint_path(40) / "model.safetensors").write_bytes(bytes(1000))
    with pytest.raises(BadModel, match="has other bytes"):
        ran("download", rundir.path, 40, "--to", tmp_path / "there")
    assert not (tmp_path / "there").exists()
