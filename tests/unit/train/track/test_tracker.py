"""Everybody is told of each step, and nobody who fails stops a run."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest

from train.config import EnvSection, LearnSection, ModelSection, TrackSection, TrainConfig
from train.track.metrics import MetricsFile, StepMetrics, read_metrics
from train.track.tracker import Tracker, open_tracker


class Remembering:
    """A sink that keeps what it is told, and fails when it shall."""

    def __init__(self, name: str, *, fails: bool = False) -> None:
        self.name = name
        self.fails = fails
        self.told: list[int] = []
        self.closed = 0

    def step(self, metrics: StepMetrics) -> None:
        if self.fails:
            raise ConnectionError("no route to host")
        self.told.append(metrics.step)

    def close(self) -> None:
        self.closed += 1
        if self.fails:
            raise ConnectionError("no route to host")


def test_a_sink_that_fails_is_said_once_and_told_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing, other = Remembering("service", fails=True), Remembering("other")
    tracker = Tracker(MetricsFile(tmp_path / "metrics.csv", after_step=0), [failing, other])
    with caplog.at_level(logging.WARNING):
        tracker.step(StepMetrics(step=1))
        tracker.step(StepMetrics(step=2))
        failing.fails = False
        tracker.step(StepMetrics(step=3))
        failing.fails = True
        tracker.close()
    assert other.told == [1, 2, 3]
    assert failing.told == [3]
    assert (failing.closed, other.closed) == (1, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "service fails, training goes on: no route to host"
    ]
    assert len(read_metrics(tmp_path / "metrics.csv")) == 3


def config(**track: str) -> TrainConfig:
    return TrainConfig(
        env=EnvSection(name="key_door"),
        model=ModelSection(path="tiny"),
        learn=LearnSection(steps=9),
        track=TrackSection.model_validate(track),
    )


def test_it_opens_what_the_config_asks_for(tmp_path: Path) -> None:
    stream = io.StringIO()
    tracker = open_tracker(config(), run_dir=tmp_path, after_step=0, stream=stream)
    tracker.step(StepMetrics(step=1))
    tracker.close()
    assert stream.getvalue() == "step 1/9\n"
    silent = open_tracker(config(), run_dir=tmp_path, after_step=1, stream=None)
    silent.step(StepMetrics(step=2))
    silent.close()
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == ["1", "2"]
