"""`make demo`, as a newcomer types it."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_make_demo_leaves_a_report_from_real_vllm() -> None:
    before = set((ROOT / "results").glob("*/"))
    ran = subprocess.run(["make", "demo"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    (run,) = set((ROOT / "results").glob("*/")) - before
    assert str(run.relative_to(ROOT)) in ran.stdout
    assert {"summary.csv", "compare.csv", "paired.csv", "report.md"} <= {
        file.name for file in run.iterdir()
    }
    with (run / "summary.csv").open(newline="") as file:
        arms = {row["arm"]: row for row in csv.DictReader(file)}
    assert arms.keys() == {"free", "guided"}
    assert {row["n_error"] for row in arms.values()} == {"0"}
    assert {row["model"] for row in arms.values()} == {"smollm2-135m-instruct"}
    assert float(arms["guided"]["valid_action_rate"]) > float(arms["free"]["valid_action_rate"])
    assert int(arms["free"]["completion_tokens"]) > 0
    assert "after is better than before" in ran.stdout
    assert "guided is better than free" in ran.stdout
    assert "no decision between" in ran.stdout
