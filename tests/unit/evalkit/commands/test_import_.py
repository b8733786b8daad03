"""`evalkit import`, as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalkit.cli import main

LOGS = Path(__file__).parents[1] / "exchange" / "logs"
BAD, GOOD = str(LOGS / "bad.eval"), str(LOGS / "good.eval")


def test_two_logs_become_runs_that_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--out", str(tmp_path), "--score", "partial/points", "--success-at", "0.5"]
    assert main(["import", BAD, GOOD, *words]) == 0
    bad, good, _, hint = capsys.readouterr().out.splitlines()
    assert hint == f"compare them: python -m evalkit compare {bad} {good}"
    assert main(["compare", bad, good]) == 0
    said = capsys.readouterr().out
    assert "+50.0 points success" in said
    assert "+0.38 return" in said


def test_a_score_that_is_not_named_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", GOOD, "--out", str(tmp_path / "out")]) == 2
    assert "choose one by --score" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_success_is_at_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--score", "match", "--success-at", "nan", "--out", str(tmp_path / "out")]
    assert main(["import", GOOD, *words]) == 2
    assert "--success-at is a number, not nan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
