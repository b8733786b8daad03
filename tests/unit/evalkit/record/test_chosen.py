"""A few episodes are found among many, in one run or in several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from evalkit.errors import DamagedRun
from evalkit.record.chosen import Source, read_chosen, sources
from evalkit.record.rundir import RunDir
from evalkit.record.testing import lost, played
from evalkit.record.trajectory import Key, Trajectory


def _write(path: Path, *trajectories: Trajectory) -> None:
    path.write_bytes(b"".join(one.to_json() + b"\n" for one in trajectories))


def test_those_asked_for_are_read_by_the_names_they_go_by(tmp_path: Path) -> None:
    one, two = RunDir(tmp_path / "1"), RunDir(tmp_path / "2")
    for rundir in (one, two):
        rundir.path.mkdir()
    first = [played(seed, arm) for seed in (3, 33, 1) for arm in ("A", "AA")]
    second = [played(3, success=True), played(3, repetition=1)]
    _write(one.trajectories_path, *first)
    _write(two.trajectories_path, *second)
    found_in = {"mine": sources(one, ["A", "AA"])["AA"], "yours": sources(two, ["A"])["A"]}
    found = read_chosen(found_in, [(3, 0), (1, 0), (7, 0)])
    assert found == {
        Key(env_seed=3, repetition=0, arm="mine"): first[1],
        Key(env_seed=1, repetition=0, arm="mine"): first[5],
        Key(env_seed=3, repetition=0, arm="yours"): second[0],
    }


def test_the_line_that_counts_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    scored, later = played(1), replace(played(1), return_=0.5)
    key = Key(env_seed=1, repetition=0, arm="A")
    for lines, counts in [
        ([lost(1), scored, lost(1)], scored),
        ([scored, later], later),
        ([lost(1), replace(lost(1), failure_message="again")], "again"),
    ]:
        _write(path, *lines)
        found = read_chosen({"A": Source(path=path, arm="A")}, [(1, 0)])[key]
        assert counts in (found, found.failure_message)


def test_a_line_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(played(1).to_json()[:-9] + b"\n")
    with pytest.raises(DamagedRun, match="trajectory/1"):
        read_chosen({"A": Source(path=path, arm="A")}, [(1, 0)])
    assert read_chosen({"A": Source(path=tmp_path / "none", arm="A")}, [(1, 0)]) == {}
