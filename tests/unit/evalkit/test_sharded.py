"""Runs in shards: the same bytes as a whole run, whatever was shared out, lost or interrupted."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalkit.config import RunConfig
from evalkit.errors import BadConfig, DamagedRun, RunFailed
from evalkit.record.rundir import RunDir
from evalkit.record.shard import Shard
from evalkit.run import Run, resume, start
from evalkit.sharded import (
    Ended,
    Task,
    merge,
    resume_shard,
    resume_sharded,
    start_shard,
    start_sharded,
)
from evalkit.testing import FakeServer, Said

CLOCKED = {"manifest.json", "journal.jsonl", "performance.csv"}
LATENCY = re.compile(rb'<figure id="latency".*?</figure>', re.DOTALL)
"""What depends on the clock in report.html."""
STRATEGIES = ["NO_HISTORY", "FULL_HISTORY", "SCRATCHPAD", "WINDOW(2)", "OPTIMAL_SCRATCHPAD"]


def chat(body: dict[str, Any]) -> str | Said:
    """Answer by the request alone: a move, nonsense, or an error that costs the episode."""
    drawn = zlib.crc32(json.dumps([body["messages"], body["seed"]]).encode()) % 40
    if drawn == 0 and len(body["messages"]) > 1:
        return 500, {"error": {"message": "out of luck"}}
    action = ("up", "down", "left", "right", "interact", "fly")[drawn % 6]
    return f"<scratchpad>{drawn}</scratchpad><action>{action}</action>"


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[FakeServer]:
    with FakeServer(chat) as server:
        yield server


def files(run: Run | Path) -> dict[str, bytes]:
    """Return every file of a run that does not depend on the clock."""
    folder = run if isinstance(run, Path) else run.path
    return {
        file.name: LATENCY.sub(b"", file.read_bytes())
        for file in folder.iterdir()
        if file.name not in CLOCKED
    }


def config(out: Path, model: Sequence[str] | str = "random", **values: Any) -> RunConfig:
    said = {"env": "key_door", "env_args": {"size": 2, "max_turns": 3}, "seeds": "0:7", **values}
    return RunConfig.read({"model": model, "out": str(out), "attempts": 1, **said})


def play_shards(asked: RunConfig, count: int) -> list[Path]:
    shards = Shard.all(count, asked.seeds)
    return [asyncio.run(start_shard(asked, shard)).path for shard in shards]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_merged_shards_are_the_whole_run_byte_for_byte(
    server: FakeServer, data: st.DataObject
) -> None:
    draw = data.draw
    served = [f"A={server.url}", f"B={server.url}#fake"]
    seeds = draw(st.lists(st.integers(0, 99), min_size=1, max_size=8, unique=True), "seeds")
    values: dict[str, Any] = {
        "env": draw(st.sampled_from(["key_door", "tic_tac_toe"])),
        "model": draw(
            st.lists(
                st.sampled_from([*served, "random", "oracle", "noop"]), min_size=1, unique=True
            )
        ),
        "strategy": draw(st.lists(st.sampled_from(STRATEGIES[:3]), min_size=1, unique=True)),
        "seeds": seeds,
        "k": draw(st.integers(1, 2), "k"),
        "run_seed": draw(st.integers(0, 3)),
        "temperature": draw(st.sampled_from([None, 0.0, 0.7])),
    }
    values["env_args"] = {"size": 2, "max_turns": 3} if values["env"] == "key_door" else {}
    count = draw(st.integers(1, len(seeds)), "shards")
    concurrency = draw(st.integers(1, 9), "concurrency")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        whole = asyncio.run(start(config(out / "whole", **values, concurrency=9)))
        paths = play_shards(config(out / "parts", **values, concurrency=concurrency), count)
        merged = asyncio.run(merge(out / "merged", draw(st.permutations(paths))))
        assert files(merged) == files(whole)
        assert merged.path.name == whole.path.name
        assert manifest_of(merged.path) == manifest_of(whole.path)
        assert merged.n_error == whole.n_error


def manifest_of(path: Path) -> dict[str, Any]:
    """Return a manifest without what says when, where and by how many it was played."""
    manifest = RunDir.open(path).manifest()
    for name in ("started_at", "finished_at", "shards", "target"):
        manifest.pop(name, None)
    manifest["config"] = {
        name: value
        for name, value in manifest["config"].items()
        if name not in {"out", "concurrency"}
    }
    return manifest


def test_journals_are_joined_so_that_costs_are_counted(tmp_path: Path, server: FakeServer) -> None:
    asked = config(tmp_path / "parts", server.url)
    paths = play_shards(asked, 3)
    merged = asyncio.run(merge(tmp_path / "merged", paths))
    calls = sum(len((path / "journal.jsonl").read_bytes().splitlines()) for path in paths)
    assert len((merged.path / "journal.jsonl").read_bytes().splitlines()) == calls
    (row,) = (merged.path / "performance.csv").read_text().splitlines()[1:]
    assert row.split(",")[3] == str(calls)


def test_a_merged_run_plays_again_what_was_lost(tmp_path: Path) -> None:
    broken = True

    def moody(body: dict[str, Any]) -> str | Said:
        return (500, {"error": {"message": "no"}}) if broken else chat(body)

    with FakeServer(moody) as server:
        paths = play_shards(config(tmp_path / "parts", server.url), 2)
        merged = asyncio.run(merge(tmp_path / "merged", paths))
        assert merged.n_error == 7
        broken = False
        whole = asyncio.run(start(config(tmp_path / "whole", server.url)))
        again = asyncio.run(resume(merged.path))
    assert again.n_error == whole.n_error < 7
    assert files(again) == files(whole)


def test_a_shard_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    asked = config(tmp_path, "random", k=2)
    whole = asyncio.run(start_shard(asked, Shard.parse("1/2")))
    data = (whole.path / "trajectories.jsonl").read_bytes()
    lines = data.splitlines(keepends=True)
    (whole.path / "trajectories.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:20])
    manifest = json.loads((whole.path / "manifest.json").read_bytes())
    (whole.path / "manifest.json").write_bytes(
        json.dumps({**manifest, "finished_at": None}).encode()
    )
    resumed = asyncio.run(resume_shard(whole.path))
    assert (whole.path / "trajectories.jsonl").read_bytes() == data
    assert (resumed.n_episodes, resumed.n_error) == (8, 0)
    assert RunDir.open(whole.path).manifest()["finished_at"] is not None


def test_a_shard_lies_beside_where_the_run_would_and_has_no_tables(tmp_path: Path) -> None:
    played = asyncio.run(start_shard(config(tmp_path), Shard.parse("2/3")))
    whole = asyncio.run(start(config(tmp_path)))
    assert played.path.name == f"{whole.path.name}.shard-2-of-3"
    assert {file.name for file in played.path.iterdir()} == {
        "manifest.json",
        "journal.jsonl",
        "trajectories.jsonl",
    }
    with pytest.raises(BadConfig, match=f"{played.path} is played in shards"):
        asyncio.run(resume(played.path))


def edited(path: Path, **values: Any) -> Path:
    manifest = json.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_bytes(json.dumps({**manifest, **values}).encode())
    return path


def test_shards_that_are_not_one_run_are_refused(tmp_path: Path) -> None:
    first, second, third = play_shards(config(tmp_path), 3)
    (foreign,) = play_shards(config(tmp_path, run_seed=1), 1)
    (halved, _) = play_shards(config(tmp_path), 2)
    whole = asyncio.run(start(config(tmp_path))).path
    copy = shutil.copytree(second, tmp_path / "copy")
    other_commit = edited(shutil.copytree(third, tmp_path / "other"), git_sha="0" * 40)
    unfinished = edited(shutil.copytree(third, tmp_path / "unfinished"), finished_at=None)
    other_server = shutil.copytree(third, tmp_path / "server")
    arms = json.loads((other_server / "manifest.json").read_bytes())["arms"]
    edited(other_server, arms=[{**arms[0], "server_version": "2"}])
    run_id = whole.name
    out = tmp_path / "merged"
    for paths, message in (
        ([first, third], f"run {run_id} lacks shard 2/3: expected 3 shards, found 2"),
        ([first], f"run {run_id} lacks shard 2/3, 3/3: expected 3 shards, found 1"),
        ([first, second, third, copy], f"shard 2/3 is there twice: {second} and {copy}"),
        ([first, foreign], f"{foreign} is a shard of run .*, and {first} of {run_id}"),
        ([first, halved], f"{halved} is shard 1/2 and {first} is shard 1/3: a run is divided in"),
        ([first, whole], f"{whole} is a whole run, not a shard of one"),
        ([first, second, other_commit], "their manifests differ in git_sha"),
        ([first, second, other_server], "their manifests differ in arms"),
        ([first, second, unfinished], f"{unfinished} is not finished: python -m evalkit resume"),
        ([first, tmp_path], f"{tmp_path} is not a run"),
        ([], "nothing to merge"),
    ):
        with pytest.raises(BadConfig, match=message):
            asyncio.run(merge(out, paths))
    assert not out.exists()


def test_a_shard_with_other_episodes_than_its_own_is_damage(tmp_path: Path) -> None:
    first, second = play_shards(config(tmp_path), 2)
    lines = (first / "trajectories.jsonl").read_bytes().splitlines(keepends=True)
    (first / "trajectories.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(DamagedRun, match=r"episode random/6/0 is missing"):
        asyncio.run(merge(tmp_path / "merged", [first, second]))
    (first / "trajectories.jsonl").write_bytes((second / "trajectories.jsonl").read_bytes())
    with pytest.raises(DamagedRun, match=r"episode random/1/0 is not of shard 1/2"):
        asyncio.run(merge(tmp_path / "merged", [first, second]))
    assert list((tmp_path / "merged").iterdir()) == []


class HereFleet:
    """Plays shards in this process, one after the other, and leaves out the first few times."""

    name = "here"

    def __init__(self, leave_out: Sequence[str] = (), *, usage: bool = False) -> None:
        self.leave_out = list(leave_out)
        self.usage = usage
        self.played: list[str] = []

    async def play(self, task: Task, show: TextIO | None) -> Sequence[Ended]:
        ended = []
        for shard in task.todo:
            if shard.path.name in self.leave_out:
                ended.append(Ended(shard=shard, said="out of patience", usage=self.usage))
                continue
            self.played.append(shard.path.name)
            await resume_shard(shard.path, concurrency=task.concurrency(shard))
        return ended


def test_a_fleet_plays_what_is_missing_and_leaves_one_run(tmp_path: Path) -> None:
    whole = asyncio.run(start(config(tmp_path / "whole")))
    fleet = HereFleet(leave_out=["2-of-3"])
    asked = config(tmp_path / "sharded")
    path = tmp_path / "sharded" / whole.path.name
    with pytest.raises(RunFailed) as failed:
        asyncio.run(start_sharded(asked, 3, fleet))
    assert str(failed.value) == (
        "1 of 3 shards did not finish (2-of-3: out of patience); what was played is kept: "
        f"python -m evalkit resume {path}"
    )
    fleet.leave_out.clear()
    run = asyncio.run(resume_sharded(path, fleet))
    assert fleet.played == ["1-of-3", "3-of-3", "2-of-3"]
    assert run.path == path
    assert files(run) == files(whole)
    assert manifest_of(path) == manifest_of(whole.path)
    assert RunDir.open(path).manifest()["shards"] == 3


def test_a_refused_run_leaves_nothing(tmp_path: Path) -> None:
    fleet = HereFleet(leave_out=["1-of-2", "2-of-2"], usage=True)
    with pytest.raises(BadConfig, match=r"^out of patience$"):
        asyncio.run(start_sharded(config(tmp_path), 2, fleet))
    assert list(tmp_path.iterdir()) == []


def test_a_merge_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    """Killed after the tables, before the shards were cleared away; or in the middle of it."""
    fleet = HereFleet(leave_out=["2-of-2"])
    with pytest.raises(RunFailed):
        asyncio.run(start_sharded(config(tmp_path), 2, fleet))
    (path,) = tmp_path.iterdir()
    (path / "trajectories.jsonl").write_bytes(b'{"torn')
    (path / "summary.csv").write_bytes(b"torn")
    fleet.leave_out.clear()
    kept = shutil.copytree(path / "shards", tmp_path.parent / f"{tmp_path.name}-shards")
    expected = files(asyncio.run(resume_sharded(path, fleet)))
    assert "shards" not in {file.name for file in path.iterdir()}
    shutil.copytree(kept, path / "shards")
    assert files(asyncio.run(resume_sharded(path, fleet))) == expected
    assert not (path / "shards").exists()


def test_two_cannot_play_one_run(tmp_path: Path) -> None:
    class Nested(HereFleet):
        async def play(self, task: Task, show: TextIO | None) -> Sequence[Ended]:
            with pytest.raises(BadConfig, match="is being played by another process"):
                await resume_sharded(task.run.path, HereFleet())
            return await super().play(task, show)

    assert asyncio.run(start_sharded(config(tmp_path), 2, Nested())).n_error == 0


def test_concurrency_is_that_of_the_whole_run(tmp_path: Path) -> None:
    shares: list[int | str] = []

    class Shares(HereFleet):
        async def play(self, task: Task, show: TextIO | None) -> Sequence[Ended]:
            shares.extend(task.concurrency(shard) for shard in task.todo)
            return await super().play(task, show)

    asyncio.run(start_sharded(config(tmp_path, concurrency="auto"), 2, Shares()))
    assert shares == ["auto", "auto"]
    shares.clear()
    asyncio.run(start_sharded(config(tmp_path, concurrency=8), 3, Shares()))
    assert shares == [3, 3, 2]
    asyncio.run(start_sharded(config(tmp_path, concurrency=1), 3, Shares()))
    assert shares[3:] == [1, 1, 1]


@pytest.mark.parametrize("count", [0, 8])
def test_a_run_of_seven_seeds_has_one_to_seven_shards(count: int, tmp_path: Path) -> None:
    message = re.escape(f"7 env seeds make 1 to 7 shards, not {count}")
    with pytest.raises(BadConfig, match=message):
        asyncio.run(start_sharded(config(tmp_path), count, HereFleet()))


def test_a_human_is_not_shared_out(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="a human plays alone, and not in shards"):
        asyncio.run(start_sharded(config(tmp_path, "human"), 2, HereFleet()))
    with pytest.raises(BadConfig, match="a human plays alone, and not in shards"):
        asyncio.run(start_shard(config(tmp_path, "human"), Shard.parse("1/2")))
