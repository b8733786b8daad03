"""`evalkit report`: the same bytes as the run wrote, and what it says of a run that is not done."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from evalkit.cli import main
from evalkit.commands.report import meanwhile, uncollected
from evalkit.errors import DamagedRun
from evalkit.record.rundir import RunDir
from evalkit.run import Run, evaluate

SMALL: dict[str, Any] = {"env_args": {"size": 2, "max_turns": 3}, "seeds": "0:6", "k": 2}


def play(out: Path) -> Run:
    return evaluate(["A=random", "B=oracle"], "key_door", out=str(out), **SMALL)


def written(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("*.csv"), *folder.glob("report.*")]
    return {file.name: file.read_bytes() for file in files}


def cut(run: Run, lines: int) -> RunDir:
    """Make it a run that was stopped after so many episodes."""
    rundir = RunDir(run.path)
    manifest = rundir.manifest()
    manifest.pop("references")
    rundir.write_manifest({**manifest, "finished_at": None})
    kept = rundir.trajectories_path.read_bytes().splitlines(keepends=True)[:lines]
    rundir.trajectories_path.write_bytes(b"".join(kept))
    return rundir


def test_files_are_made_anew_byte_for_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = play(tmp_path)
    before = written(run.path)
    assert {"summary.csv", "turns.csv", "paired.csv", "performance.csv", "report.md"} <= set(before)
    for name in before:
        (run.path / name).unlink()
    assert main(["report", str(run.path)]) == 0
    assert written(run.path) == before
    assert "between A and B" in capsys.readouterr().out


def test_files_go_where_they_are_wanted(tmp_path: Path) -> None:
    run = play(tmp_path)
    before = written(run.path)
    assert main(["report", str(run.path), "--out", str(tmp_path / "deep" / "er")]) == 0
    assert written(tmp_path / "deep" / "er") == before


@pytest.mark.parametrize(
    ("lines", "said"), [(7, "7 of 24 episodes are played (A 4 of 12, B 3 of 12)"), (0, "0 of 24")]
)
def test_a_run_that_is_not_done_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: int, said: str
) -> None:
    rundir = cut(play(tmp_path), lines)
    assert main(["report", str(rundir.path)]) == 0
    assert f"Unfinished: {said}" in capsys.readouterr().out
    assert f"**Unfinished: {said}" in (rundir.path / "report.md").read_text()
    assert (rundir.path / "episodes.csv").read_text().count("\n") == lines + 1


def test_a_shard_lacks_what_is_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rundir = cut(play(tmp_path), 4)
    rundir.write_manifest({**rundir.manifest(), "shard": "1/3"})
    assert main(["report", str(rundir.path)]) == 0
    assert "4 of 8 episodes are played (A 2 of 4, B 2 of 4)" in capsys.readouterr().out


def test_what_cannot_be_reported_is_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run: it has no manifest.json" in capsys.readouterr().err
    rundir = RunDir(play(tmp_path).path)
    (tmp_path / "file").write_text("")
    assert main(["report", str(rundir.path), "--out", str(tmp_path / "file")]) == 2
    assert "cannot write below" in capsys.readouterr().err
    first, *others = rundir.trajectories_path.read_bytes().splitlines(keepends=True)
    rundir.trajectories_path.write_bytes(first + b"{}\n" + b"".join(others))
    before = written(rundir.path)
    assert main(["report", str(rundir.path)]) == 1
    assert f"byte {len(first)}: not a trajectory/1 line" in capsys.readouterr().err
    assert written(rundir.path) == before
    rundir.shards_path.mkdir()
    rundir.trajectories_path.unlink()
    assert main(["report", str(rundir.path)]) == 2
    assert "is played in shards" in capsys.readouterr().err


def test_work_meanwhile_is_another_process_and_its_errors_rise(tmp_path: Path) -> None:
    done: list[str] = []

    def work() -> None:
        done.append("here")
        (tmp_path / "file").write_text("written")

    with meanwhile(work):
        pass
    assert (done, (tmp_path / "file").read_text()) == ([], "written")

    def damaged() -> None:
        raise DamagedRun("byte 7")

    with pytest.raises(DamagedRun, match="byte 7"), meanwhile(damaged):
        done.append("the block ends first")
    assert done == ["the block ends first"]
    with pytest.raises(DamagedRun, match="byte 8"), meanwhile(work):
        raise DamagedRun("byte 8")


def test_the_collector_is_as_it_was() -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
