"""The commands that train, as a user types them, on real vLLM; too short to learn much."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = (sys.executable, "-W", "ignore")


def ran(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYTHON, *words], cwd=folder, capture_output=True, text=True)


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_the_demo_of_training_says_when_nothing_was_learned() -> None:
    """All of its way, with so few steps that its promise cannot hold."""
    short = ("--set", "learn.steps=3", "--set", "learn.learning_rate=1e-7")
    done = ran("demo_train.py", "key_door", *short)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    assert "step 3/3" in done.stdout
    assert "not 20 points with an interval above 0" in done.stdout
    assert re.search(r"key_door_tiny\s", done.stdout)


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_run_of_its_own_is_trained_listed_and_compared(tmp_path: Path) -> None:
    settings = (
        "learn.steps=4",
        "checkpoints.every=2",
        "rollouts.groups_per_step=4",
        f"out={tmp_path}",
    )
    words = [word for each in settings for word in ("--set", each)]
    config = "train/configs/key_door_tiny.yaml"
    done = ran("-m", "train", "grpo", "--config", config, *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (run,) = tmp_path.iterdir()
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[0]["gap_max"]) <= 1e-5
    assert {float(row["staleness_max"]) for row in rows} <= {0.0, 1.0}
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    listed = ran("-m", "train", "checkpoints", "list", str(run))
    assert listed.returncode == 0
    assert re.findall(r"^\s*(\d+)\s", listed.stdout, re.MULTILINE) == ["2", "4"]
    shown = ran("-m", "train", "checkpoints", "show", str(run), "--step", "4")
    assert shown.returncode == 0
    assert "model.safetensors" in shown.stdout
    compared = ran("-m", "train", "checkpoints", "compare", str(run), "--steps", "2,4", "-n", "24")
    assert compared.returncode == 0, compared.stdout[-3000:] + compared.stderr[-3000:]
    assert re.search("step-4 is|between step-2 and step-4", compared.stdout)
