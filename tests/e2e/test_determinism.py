"""Equal seeds give equal trajectories on real vLLM, whatever the concurrency."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def _evalkit(*words: str | Path) -> str:
    command = [sys.executable, "-m", "evalkit", *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_concurrency_does_not_change_a_trajectory(vllm_url: str, tmp_path: Path) -> None:
    task = ["--model", vllm_url, "--env", "key_door", "--env-arg", "size=3", "-n", "4"]
    task += ["--env-arg", "max_turns=5", "--temperature", "0.8", "--max-tokens", "16"]
    for concurrency in ("1", "8"):
        out = tmp_path / concurrency
        _evalkit(*task, "--strategy", "FULL_HISTORY", "-c", concurrency, "--out", out)
    (alone,), (together,) = (tmp_path / "1").iterdir(), (tmp_path / "8").iterdir()
    assert (alone / "turns.csv").read_bytes() == (together / "turns.csv").read_bytes()

    _evalkit("compare", alone, together, "--out", tmp_path / "compared")
    report = (tmp_path / "compared" / "report.md").read_text()
    assert "4 of 4 episodes are identical, turn by turn" in report


def test_turns_that_differ_are_named(tmp_path: Path) -> None:
    script = tmp_path / "replies.txt"
    script.write_text("<action>up</action>\n<action>up</action>\n<action>left</action>\n")
    other = tmp_path / "other.txt"
    other.write_text("<action>up</action>\n<action>up</action>\n<action>right</action>\n")
    task = ["--env", "key_door", "--env-arg", "max_turns=4", "-n", "3"]
    for name, file in (("a", script), ("b", other)):
        _evalkit("--model", f"script:{file}", *task, "--out", tmp_path / name)
    (a,), (b,) = (tmp_path / "a").iterdir(), (tmp_path / "b").iterdir()
    _evalkit("compare", a, b, "--out", tmp_path / "compared")
    report = (tmp_path / "compared" / "report.md").read_text()
    assert "0 of 3 episodes are identical" in report
    assert "First turns that differ: seed 0 turn 2, seed 1 turn 2, seed 2 turn 2" in report
    paired = (tmp_path / "compared" / "paired.csv").read_text().splitlines()
    assert [row.rsplit(",", 1)[1] for row in paired] == ["first_divergent_turn", "2", "2", "2"]
