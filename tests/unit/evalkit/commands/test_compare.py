"""`evalkit compare`, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalkit.cli import main
from evalkit.record.tables import read_csv


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_compare_judges_many_runs_and_envs_as_one_family(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: dict[str, list[str]] = {}
    for env in ("key_door", "tic_tac_toe"):
        for model in ("noop", "oracle", "random"):
            assert main(["--model", model, "--env", env, "-n", "8", "--out", f"{env}.{model}"]) == 0
            (run,) = (folder / f"{env}.{model}").iterdir()
            runs.setdefault(env, []).append(str(run))
    three = runs["key_door"]
    assert main(["compare", *three, "--names", "N,O,R", "--margin", ".3", "--out", "three"]) == 0
    said = capsys.readouterr().out
    assert "O is better than N: +100.0 points success" in said
    rows = read_csv(folder / "three" / "compare.csv")
    assert [(row["a"], row["b"]) for row in rows[:3]] == [("N", "O"), ("N", "R"), ("O", "R")]
    assert {row["equiv_margin"] for row in rows[:3]} == {"0.3"}
    every = [*three, *runs["tic_tac_toe"]]
    assert main(["compare", *every, "--out", "both"]) == 0
    (key_door, tic_tac_toe) = sorted((folder / "both").iterdir())
    alone, together = rows[0], read_csv(key_door / "compare.csv")[0]
    assert (alone["p"], float(together["p_holm"])) == (together["p"], 6 * float(alone["p"]))
    assert "told apart" in (tic_tac_toe / "report.md").read_text()
    assert "Ended on" not in (tic_tac_toe / "report.md").read_text()
    stop = ["--model", "noop", "--model", "oracle", "--env", "key_door", "--stop", "decided"]
    assert main([*stop, "--out", "stopped"]) == 0
    (stopped,) = (folder / "stopped").iterdir()
    assert main(["compare", three[0], str(stopped), "--names", "N,S", "--out", "late"]) == 0
    assert "Ended on what they saw: S." in (folder / "late" / "report.md").read_text()
    for wrong, message in (
        (["--names", "A,B"], "expected 3 distinct names, one for each run"),
        (["--names", "A,B,"], "expected 3 distinct names"),
        (["--margin", "0"], "a difference of rates, between 0 and 1, not 0.0"),
        ([runs["tic_tac_toe"][0]], "did not play the same env as the others did"),
    ):
        capsys.readouterr()
        assert main(["compare", *three, *wrong]) == 2
        assert message in capsys.readouterr().err
