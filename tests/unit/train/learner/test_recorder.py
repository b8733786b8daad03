"""What a step's numbers say of the sampler."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from train.config import load
from train.errors import BadModel
from train.learner.losses import Diagnostics
from train.publish.publisher import Sent
from train.run import RunDir
from train.track.metrics import StepMetrics

with warnings.catch_warnings():
    # TRL says of each vLLM that it has not seen that it has not seen it.
    warnings.simplefilter("ignore")
    from train.learner.recorder import Recorder


def recorder(out: Path, gaps: list[list[float]], **told: Any) -> Recorder:
    """Return one whose trainer tells these gaps, a list for each step."""
    config = load(None, {"env.name": "key_door", "model.path": "m"})
    made = Recorder(None, RunDir.create(out, config, {}), **told)
    steps = iter(gaps)
    made.trainer = SimpleNamespace(  # as much of one as is asked
        live_version=3, take_diagnostics=lambda: (Diagnostics(tokens=9), torch.tensor(next(steps)))
    )
    made.channel = SimpleNamespace(  # type: ignore[assignment]
        last=Sent(version=3, seconds=0.5, probe_gap=2e-6)
    )
    made.worker = SimpleNamespace(replayed=0)  # type: ignore[assignment]
    return made


def log(made: Recorder, step: int) -> StepMetrics:
    made.took(step, ())
    nobody: Any = None
    made.on_log(nobody, nobody, nobody, {"loss": 0.25})
    assert made.last is not None
    return made.last


def test_a_step_says_what_the_probes_said(tmp_path: Path) -> None:
    told = log(recorder(tmp_path, [[0.25, 0.75]]), 1)
    assert (told.step, told.loss, told.probe_gap, told.sync_s) == (1, 0.25, 2e-6, 0.5)
    assert (told.gap_mean, told.gap_max) == (0.5, 0.75)


def test_logprobs_of_another_temperature_are_refused(tmp_path: Path) -> None:
    made = recorder(tmp_path, [[], [0.1, 0.4]], temperature=0.7)
    log(made, 1)  # nothing to compare yet
    with pytest.raises(BadModel, match=r"by 0\.25 in the mean.*temperature=0\.7.*logprobs-mode"):
        log(made, 2)


def test_logprobs_are_looked_at_once_and_not_at_temperature_1(tmp_path: Path) -> None:
    log(recorder(tmp_path / "plain", [[0.4]]), 1)
    made = recorder(tmp_path / "cool", [[0.01], [0.4]], temperature=0.7)
    assert log(made, 1).gap_mean == pytest.approx(0.01)
    assert log(made, 2).gap_mean == pytest.approx(0.4)
