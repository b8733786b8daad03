"""Episodes of a run that grows, each line read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from evalkit.errors import DamagedRun
from evalkit.record.numbers import gather
from evalkit.record.rundir import TrajectoryFile
from evalkit.record.trajectory import Key, StopReason
from evalkit.view import live
from evalkit.view.live import Count, Played

ARMS = ("bad", "good")
KEPT = {"repetition": 0, "arm": "good"}


def changed(line: bytes, **fields: Any) -> bytes:
    return orjson.dumps({**orjson.loads(line), **fields}) + b"\n"


def test_what_grows_is_what_was_there_at_once(made: Path, tmp_path: Path) -> None:
    whole = made / "pair" / "trajectories.jsonl"
    lines = whole.read_bytes().splitlines(keepends=True)
    played = Played(tmp_path, ARMS)
    before = played.look()
    growing = tmp_path / "trajectories.jsonl"
    for line in lines:
        with growing.open("ab") as file:
            file.write(line[:40])
            file.flush()
            assert played.look() == before
            file.write(line[40:])
        assert played.look() == before + 1
        before += 1
        played.numbers()
    assert played.numbers() == gather(TrajectoryFile(whole), ARMS)
    assert played.counts["good"] == Count(n=8, successes=8, errors=0)
    assert len(played.ended) == 16


def test_a_line_is_read_once(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    decode = live._decode

    def counting(line: bytes) -> live._Head:
        decoded.append(line)
        return decode(line)

    monkeypatch.setattr(live, "_decode", counting)
    played = Played(made / "pair", ARMS)
    for _ in range(3):
        played.look()
    assert len(decoded) == 16


def test_an_episode_that_was_lost_and_played_again_counts_once(made: Path, tmp_path: Path) -> None:
    (line, *_) = (made / "pair" / "trajectories.jsonl").read_bytes().splitlines()
    key = Key(**orjson.loads(line)["key"])
    lost = changed(line, stop_reason="infra_error", failure="timeout", failure_message="late")
    file = tmp_path / "trajectories.jsonl"
    file.write_bytes(lost + lost)
    played = Played(tmp_path, ARMS)
    played.look()
    assert played.counts[key.arm] == Count(n=0, successes=0, errors=1)
    first = played.numbers()[key.arm]
    assert (first.stops, first.n_error, first.n_ok) == ({StopReason.INFRA_ERROR: 1}, 1, 0)
    file.write_bytes(lost + lost + line + b"\n" + lost)
    played.look()
    then = played.numbers()[key.arm]
    assert (then.n_error, then.n_ok) == (0, 1)
    assert (played.counts[key.arm].n, played.counts[key.arm].errors) == (1, 0)
    assert played.ended[key].scored


def test_a_file_that_was_replaced_is_read_anew(made: Path, tmp_path: Path) -> None:
    lines = (made / "pair" / "trajectories.jsonl").read_bytes().splitlines(keepends=True)
    file = tmp_path / "trajectories.jsonl"
    file.write_bytes(b"".join(lines))
    played = Played(tmp_path, ARMS)
    first = played.look()
    played.numbers()
    other = tmp_path / "other"
    other.write_bytes(b"".join(reversed(lines)))
    other.replace(file)
    assert played.look() > first
    assert len(played.ended) == 16
    assert played.numbers()["good"].n_ok == 8
    file.write_bytes(b"".join(lines[:4]))
    played.look()
    assert len(played.ended) == 4
    file.unlink()
    played.look()
    assert (played.ended, played.numbers()["good"].n_ok) == ({}, 0)


def test_the_episodes_of_shards_are_counted(made: Path, tmp_path: Path) -> None:
    lines = (made / "pair" / "trajectories.jsonl").read_bytes().splitlines(keepends=True)
    for number in (1, 2):
        shard = tmp_path / "shards" / f"{number}-of-2"
        shard.mkdir(parents=True)
        (shard / "trajectories.jsonl").write_bytes(b"".join(lines[number - 1 :: 2]))
    played = Played(tmp_path, ARMS)
    played.look()
    assert len(played.ended) == 16
    assert list(played.episodes(0, 0)) == ["bad", "good"]


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'{"format":"trajectory/2"}', b"\xff", b'{"key":{"arm":1}}']
)
def test_a_damaged_line_says_where(made: Path, tmp_path: Path, line: bytes) -> None:
    whole = (made / "pair" / "trajectories.jsonl").read_bytes()
    (tmp_path / "trajectories.jsonl").write_bytes(whole + line + b"\n")
    with pytest.raises(DamagedRun, match=rf"trajectories.jsonl, byte {len(whole)}"):
        Played(tmp_path, ARMS).look()


def test_an_arm_that_is_not_the_runs_is_damage(made: Path) -> None:
    with pytest.raises(DamagedRun, match="not a trajectory/1 line of this run's arms"):
        Played(made / "pair", ("bad",)).look()


def test_a_link_out_of_the_run_is_not_followed(made: Path, tmp_path: Path) -> None:
    (tmp_path / "trajectories.jsonl").symlink_to(made / "pair" / "trajectories.jsonl")
    played = Played(tmp_path, ARMS)
    played.look()
    assert played.ended == {}


def test_damage_stays_damage_however_often_one_looks(made: Path, tmp_path: Path) -> None:
    whole = (made / "pair" / "trajectories.jsonl").read_bytes()
    growing = tmp_path / "trajectories.jsonl"
    growing.write_bytes(b"{\n" + whole)
    played = Played(tmp_path, ARMS)
    for _ in range(2):
        with pytest.raises(DamagedRun, match="byte 0"):
            played.look()
    first = whole.splitlines()[0]
    growing.unlink()
    growing.write_bytes(whole + changed(first, turns=1, key={**KEPT, "env_seed": 90}))
    played.look()
    for _ in range(2):
        with pytest.raises(DamagedRun, match=f"byte {len(whole)}"):
            played.numbers()
