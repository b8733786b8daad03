"""Real inspect reads what evalkit exports, and evalkit imports what real inspect writes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import evalkit
from evalkit.commands.export import command as export
from evalkit.commands.import_ import command as import_
from evalkit.exchange.played import Played, as_dicts
from evalkit.testing import FakePolicy

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-inspect" / "bin" / "python"
SIDE = Path(__file__).with_name("inspect_side.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="inspect is not installed: make inspect"),
]


def _inspect(*words: str | Path) -> str:
    ran = subprocess.run([PYTHON, SIDE, *words], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _read(file: Path) -> dict[str, Any]:
    seen: dict[str, Any] = json.loads(_inspect("read", file))
    return seen


@pytest.mark.parametrize("strategy", ["FULL_HISTORY", "SCRATCHPAD"])
def test_inspect_reads_an_export(tmp_path: Path, strategy: str) -> None:
    run = evalkit.evaluate(
        "random",
        "key_door",
        strategy=strategy,
        seeds="0:4",
        k=2,
        env_args={"size": 2},
        out=tmp_path,
    )
    export([str(run.path), "--to", "inspect", "--out", str(tmp_path / "logs")])
    (file,) = (tmp_path / "logs").glob("*.eval")
    seen = _read(file)
    played = Played.open(run.path)
    trajectories = list(played.trajectories())
    assert (seen["status"], seen["task"], seen["model"]) == ("success", "key_door", "random")
    assert seen["epochs"] == 2
    assert seen["summaries"] == len(seen["samples"]) == 8
    row = run.summary[0]
    assert seen["metrics"]["success"]["accuracy"] == row["success_rate"]
    assert seen["metrics"]["return"]["mean"] == pytest.approx(row["return_mean"])
    assert seen["metrics"]["return"]["stderr"] == pytest.approx(row["return_se_cluster"])
    by_key = {(each.key.env_seed, each.key.repetition + 1): each for each in trajectories}
    for sample in seen["samples"]:
        trajectory = by_key[sample["id"], sample["epoch"]]
        prompts = [as_dicts(prompt) for prompt in played.prompts(trajectory)]
        sent = [[[m["role"], m["content"]] for m in prompt] for prompt in prompts]
        assert sample["prompts"] == sent
        assert sample["scores"] == {
            "success": "C" if trajectory.success else "I",
            "return": trajectory.return_,
        }
        replies = [text for role, text in sample["messages"] if role == "assistant"]
        assert replies == [turn.completion for turn in trajectory.turns]
        assert sample["error"] is None
        assert sample["limit"] == (None if trajectory.stop_reason == "terminated" else "turn")


def test_inspect_shows_lost_episodes_as_errors(tmp_path: Path) -> None:
    from evalkit.errors import CallFailed, Failure

    gone = CallFailed(Failure.TIMEOUT, "no answer in time")
    policy = FakePolicy(lambda ask: "<action>up</action>" if ask.turn == 0 else gone)
    run = evalkit.evaluate(policy, "key_door", seeds="0:2", out=tmp_path)
    export([str(run.path), "--to", "inspect"])
    (file,) = (run.path / "inspect").glob("*.eval")
    samples = _read(file)["samples"]
    assert [sample["error"] for sample in samples] == ["timeout: no answer in time"] * 2
    assert [sample["scores"] for sample in samples] == [{}, {}]


def test_logs_of_inspect_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _inspect("write", tmp_path)
    files = [str(tmp_path / f"{name}.eval") for name in ("bad", "good")]
    assert import_([*files, "--out", str(tmp_path / "runs"), "--score", "match"]) == 0
    bad, good = capsys.readouterr().out.splitlines()[:2]
    report = evalkit.compare(bad, good)
    success = report.compared[0].found
    assert (success.n_pairs, success.mean_a, success.mean_b) == (4, 0.5, 1.0)
    assert [row["n_ok"] for row in report.summary] == [8, 8]
    assert [row["prompt_tokens"] for row in report.summary] == [25 * 8, 25 * 8]
