"""A run's directory: claimed once, read back, its trajectories indexed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from evalkit.errors import BadConfig, DamagedRun, Failure
from evalkit.record.journal import Appender
from evalkit.record.rundir import RunDir, TrajectoryFile, write_whole
from evalkit.record.trajectory import Key, StopReason, Trajectory

PLAYED = Trajectory(
    key=Key(env_seed=1, repetition=0, arm="A"),
    turns=(),
    final_observation="over",
    success=True,
    return_=1.0,
    optimal_turns=4,
    stop_reason=StopReason.TERMINATED,
)


def at(seed: int, repetition: int = 0, arm: str = "A") -> Trajectory:
    return replace(PLAYED, key=Key(env_seed=seed, repetition=repetition, arm=arm))


def lost(seed: int) -> Trajectory:
    return replace(
        at(seed),
        success=False,
        return_=0.0,
        stop_reason=StopReason.INFRA_ERROR,
        failure=Failure.TIMEOUT,
        failure_message="slow",
    )


def test_runs_of_one_name_get_directories_of_their_own(tmp_path: Path) -> None:
    made = [RunDir.create(tmp_path / "deep" / "out", "run", {"n": n}) for n in range(3)]
    assert [rundir.path.name for rundir in made] == ["run", "run.2", "run.3"]
    assert [rundir.manifest()["n"] for rundir in made] == [0, 1, 2]


def test_a_run_is_opened_by_its_directory(tmp_path: Path) -> None:
    made = RunDir.create(tmp_path, "run", {"answer": 42})
    assert RunDir.open(made.path).manifest() == {"format": "run/1", "answer": 42}
    assert sorted(file.name for file in made.path.iterdir()) == ["manifest.json"]
    with pytest.raises(BadConfig, match="is not a run"):
        RunDir.open(tmp_path)


def test_results_below_a_file_are_a_bad_config(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(BadConfig, match="cannot write results"):
            RunDir.create(out, "run", {})


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"format":"run/2"}', b"\xff"])
def test_a_manifest_that_is_none_is_damage(tmp_path: Path, data: bytes) -> None:
    rundir = RunDir.create(tmp_path, "run", {})
    rundir.manifest_path.write_bytes(data)
    with pytest.raises(DamagedRun, match=r"manifest\.json"):
        rundir.manifest()


def test_a_discarded_run_leaves_nothing(tmp_path: Path) -> None:
    rundir = RunDir.create(tmp_path, "run", {})
    Appender(rundir.journal_path).close()
    rundir.discard()
    assert list(tmp_path.iterdir()) == []


def test_episodes_are_read_in_the_order_of_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "trajectories.jsonl"
    order = [at(10), at(2, 1), at(2, 0, "B"), at(2), lost(3)]
    written = TrajectoryFile(path)
    with Appender(path) as file:
        for trajectory in order:
            written.append(file, trajectory)
    expected = [at(2), at(2, 0, "B"), at(2, 1), lost(3), at(10)]
    assert list(written) == list(TrajectoryFile(path)) == expected
    assert set(written.scored) == {t.key for t in expected} - {lost(3).key}
    assert written.scored == TrajectoryFile(path).scored
    assert written.unscored == TrajectoryFile(path).unscored


@pytest.mark.parametrize(
    ("lines", "counts"),
    [
        ([lost(1), at(1)], at(1)),
        ([at(1), lost(1)], at(1)),
        ([lost(1), replace(lost(1), failure_message="later")], "later"),
        ([at(1), replace(at(1), return_=2.0)], replace(at(1), return_=2.0)),
    ],
)
def test_the_last_scored_line_of_an_episode_counts(
    tmp_path: Path, lines: list[Trajectory], counts: Trajectory | str
) -> None:
    path = tmp_path / "trajectories.jsonl"
    path.write_bytes(b"".join(line.to_json() + b"\n" for line in lines))
    (found,) = TrajectoryFile(path)
    assert counts in (found, found.failure_message)


def test_a_torn_last_trajectory_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "trajectories.jsonl"
    path.write_bytes(at(1).to_json() + b"\n" + at(2).to_json()[:-5])
    assert list(TrajectoryFile(path)) == [at(1)]
    assert list(TrajectoryFile(tmp_path / "absent")) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644
    target = tmp_path / "folder"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_whole(target, b"data")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


def test_an_arranged_file_has_each_episode_once_in_the_order_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "trajectories.jsonl"
    order = [at(10), lost(2), at(2), lost(3)]
    written = TrajectoryFile(path)
    with Appender(path) as file:
        for trajectory in order:
            written.append(file, trajectory)
    written.arrange()
    expected = [at(2), lost(3), at(10)]
    assert path.read_bytes() == b"".join(each.to_json() + b"\n" for each in expected)
    assert list(written) == expected
    assert (written.scored, written.unscored) == (
        TrajectoryFile(path).scored,
        TrajectoryFile(path).unscored,
    )


def test_a_file_that_is_in_order_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "trajectories.jsonl"
    path.write_bytes(b"".join(at(seed).to_json() + b"\n" for seed in range(3)))
    before = path.stat().st_ino
    TrajectoryFile(path).arrange()
    TrajectoryFile(tmp_path / "absent").arrange()
    assert path.stat().st_ino == before
    assert not (tmp_path / "absent").exists()
