"""Weights & Biases: the real package offline where it is installed, a stand-in for its failures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from train.config import EnvSection, ModelSection, TrackSection, TrainConfig
from train.errors import BadConfig
from train.track.metrics import StepMetrics
from train.track.tracker import open_tracker
from train.track.wandb_sink import WandbSink

TRACK = TrackSection(wandb_project="p", wandb_entity="team", wandb_mode="offline")


class FakeError(Exception):
    pass


class FakeUsageError(FakeError):
    pass


class FakeRun:
    """What `wandb.init` returns."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0
        self.fails = False

    def log(self, row: dict[str, Any], *, step: int) -> None:
        if self.fails:
            raise FakeError("the service has gone")
        self.logged.append((step, row))

    def finish(self) -> None:
        self.finished += 1


class FakeWandb(ModuleType):
    """Stands in for the package, with errors under its names."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.Error = FakeError
        self.errors = SimpleNamespace(UsageError=FakeUsageError, AuthenticationError=FakeUsageError)
        self.Settings = dict
        self.began: list[dict[str, Any]] = []
        self.runs: list[FakeRun] = []
        self.error: FakeError | None = None

    def init(self, **settings: Any) -> FakeRun:
        if self.error is not None:
            raise self.error
        self.began.append(settings)
        self.runs.append(FakeRun())
        return self.runs[-1]


@pytest.fixture
def wandb() -> Iterator[FakeWandb]:
    before, fake = sys.modules.get("wandb"), FakeWandb()
    sys.modules["wandb"] = fake
    yield fake
    del sys.modules["wandb"]
    if before is not None:
        sys.modules["wandb"] = before


def sink(run_dir: Path, track: TrackSection = TRACK) -> WandbSink:
    return WandbSink(track, run_dir=run_dir, run_name="grpo_x", config={"learn": {"steps": 5}})


def test_it_is_begun_as_configured(tmp_path: Path, wandb: FakeWandb) -> None:
    sink(tmp_path)
    (began,) = wandb.began
    assert (began["project"], began["entity"], began["mode"]) == ("p", "team", "offline")
    assert (began["name"], began["dir"]) == ("grpo_x", str(tmp_path))
    assert began["config"] == {"learn": {"steps": 5}}
    assert began["resume"] == "allow"
    named = TRACK.model_copy(update={"run_name": "mine"})
    sink(tmp_path, named)
    assert wandb.began[-1]["name"] == "mine"


def test_a_resumed_run_goes_on_in_the_same_one_and_tells_no_step_twice(
    tmp_path: Path, wandb: FakeWandb
) -> None:
    first = sink(tmp_path)
    for step in (1, 2, 3):
        first.step(StepMetrics(step=step, loss=0.5))
    second = sink(tmp_path)
    for step in (3, 4):
        second.step(StepMetrics(step=step))
    assert len({began["id"] for began in wandb.began}) == 1
    assert wandb.runs[0].logged[0] == (1, {"step": 1, "loss": 0.5})
    assert [step for run in wandb.runs for step, _ in run.logged] == [1, 2, 3, 4]


def test_other_runs_are_others(tmp_path: Path, wandb: FakeWandb) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sink(tmp_path / name)
    assert len({began["id"] for began in wandb.began}) == 2


def test_a_service_that_dies_is_a_lost_connection(tmp_path: Path, wandb: FakeWandb) -> None:
    told = sink(tmp_path)
    wandb.runs[0].fails = True
    with pytest.raises(ConnectionError, match="FakeError: the service has gone"):
        told.step(StepMetrics(step=1))
    wandb.runs[0].fails = False
    told.step(StepMetrics(step=1))
    assert [step for step, _ in wandb.runs[0].logged] == [1]


def test_a_login_that_is_missing_is_a_bad_config(tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.error = FakeUsageError("No API key configured.")
    with pytest.raises(BadConfig, match=r"No API key.*wandb_mode=offline"):
        sink(tmp_path)


def test_a_service_that_is_not_there_does_not_stop_a_run(
    tmp_path: Path, wandb: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.error = FakeError("timed out")
    config = TrainConfig(
        env=EnvSection(name="key_door"), model=ModelSection(path="tiny"), track=TRACK
    )
    tracker = open_tracker(config, run_dir=tmp_path, after_step=0, stream=None)
    tracker.step(StepMetrics(step=1))
    tracker.close()
    assert "training goes on without it: FakeError: timed out" in caplog.text


def test_without_the_package_it_says_how_to_get_it(tmp_path: Path, wandb: FakeWandb) -> None:
    sys.modules["wandb"] = None  # type: ignore[assignment]  # how Python is told that there is none
    with pytest.raises(BadConfig, match="pip install wandb"):
        sink(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"format": "train-wandb/9"}'])
def test_a_damaged_id_is_said(tmp_path: Path, wandb: FakeWandb, text: str) -> None:
    (tmp_path / "wandb.json").write_text(text)
    with pytest.raises(BadConfig, match=r"wandb\.json does not name a W&B run"):
        sink(tmp_path)


def test_the_real_package_works_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    for steps in (range(1, 4), range(2, 6)):
        told = sink(tmp_path)
        for step in steps:
            told.step(StepMetrics(step=step, loss=step / 2))
        told.close()
        told.close()
    kept = json.loads((tmp_path / "wandb.json").read_text())
    assert kept["told"] == 5
    written = list(tmp_path.glob(f"wandb/offline-run-*-{kept['id']}/run-{kept['id']}.wandb"))
    assert written
