"""A shard's journey, with folders for volumes."""

from __future__ import annotations

import asyncio
import io
import tarfile
from pathlib import Path, PurePosixPath

import pytest

from evalkit import cargo
from evalkit.cargo import BACK, SENT, Job, carry, named_files, pack, take_back, unpack
from evalkit.config import RunConfig
from evalkit.errors import BadConfig
from evalkit.record.rundir import RunDir
from evalkit.run import start
from evalkit.sharded import Ended, Task, start_sharded


def config(out: Path, **values: object) -> RunConfig:
    said = {"model": "random", "env": "key_door", "seeds": "0:6", "k": 2, **values}
    return RunConfig.read({**said, "out": str(out)})


class Shipping:
    """A fleet whose containers are this process, and whose volume is a folder."""

    name = "modal"

    def __init__(self, volume: Path, here: Path) -> None:
        self.volume, self.here = volume, here
        self.commits: list[str] = []
        self.said: list[str] = []

    async def play(self, task: Task, show: object) -> list[Ended]:
        for shard in task.todo:
            kept = self.volume / shard.path.name
            kept.mkdir(parents=True, exist_ok=True)
            files = named_files(task.config, self.here)
            (kept / SENT).write_bytes(pack(shard, self.here, files))
            job = Job(shard=shard.path.name, kept=shard.path.name, concurrency=2, options=())
            done = await asyncio.to_thread(self.carry, job)
            assert (done.shard, done.code) == (shard.path.name, 0), done.said
            take_back(shard, (kept / BACK).read_bytes())
        return []

    def carry(self, job: Job) -> cargo.Returned:
        return carry(
            job,
            self.volume,
            reload=lambda: self.commits.append("reload"),
            commit=lambda: self.commits.append("commit"),
            say=self.said.append,
        )


def test_a_run_that_travels_is_the_run_that_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from envs.games.key_door import KeyDoor\n\n\nclass Mine(KeyDoor):\n    pass\n"
    )
    (tmp_path / "script.txt").write_text("<action>up</action>\n<action>interact</action>\n")
    fleet = Shipping(tmp_path / "volume", tmp_path)
    whole = asyncio.run(start(config(tmp_path / "whole")))
    run = asyncio.run(start_sharded(config(tmp_path / "there"), 2, fleet))
    for name in ("summary.csv", "turns.csv", "report.md", "trajectories.jsonl"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert fleet.commits[0] == "reload"
    assert fleet.commits.count("commit") >= 2
    assert any(line.startswith("1-of-2: ") and "6/6 episodes" in line for line in fleet.said)


def test_the_next_container_goes_on_where_one_was_taken_away(tmp_path: Path) -> None:
    fleet = Shipping(tmp_path / "volume", tmp_path)
    asked = config(tmp_path / "there")
    whole = asyncio.run(start(config(tmp_path / "whole")))

    class Stopped(Exception):
        pass

    class OnlySends(Shipping):
        async def play(self, task: Task, show: object) -> list[Ended]:
            for shard in task.todo:
                (self.volume / shard.path.name).mkdir(parents=True)
                (self.volume / shard.path.name / SENT).write_bytes(pack(shard, self.here))
            raise Stopped

    with pytest.raises(Stopped):
        asyncio.run(start_sharded(asked, 1, OnlySends(tmp_path / "volume", tmp_path)))
    kept = RunDir(tmp_path / "volume" / "1-of-1")
    job = Job(shard="1-of-1", kept="1-of-1", concurrency=2, options=())
    assert fleet.carry(job).code == 0
    journal = kept.journal_path.read_bytes()
    kept.journal_path.write_bytes(b"".join(journal.splitlines(keepends=True)[:-5]))
    lines = kept.trajectories_path.read_bytes().splitlines(keepends=True)
    kept.trajectories_path.write_bytes(b"".join(lines[:4]) + b'{"torn')
    manifest = kept.manifest()
    kept.write_manifest({**manifest, "finished_at": None})
    (kept.path / BACK).unlink()

    assert fleet.carry(job).code == 0
    assert kept.trajectories_path.read_bytes() == (whole.path / "trajectories.jsonl").read_bytes()
    unpack((kept.path / BACK).read_bytes(), tmp_path / "back")
    assert (tmp_path / "back" / "run" / "manifest.json").exists()
    said = len(fleet.said)
    assert fleet.carry(job).code == 0  # a third finds it finished, and asks nobody
    assert kept.manifest()["finished_at"] is not None
    assert len(fleet.said) > said


def test_files_that_a_config_names_travel(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("sub/env.py", "script.txt"):
        (tmp_path / name).write_text("")
    asked = config(tmp_path, env="sub/env.py:Mine", model=["script:script.txt", "random"])
    assert named_files(asked, tmp_path) == [
        PurePosixPath("script.txt"),
        PurePosixPath("sub/env.py"),
    ]
    assert named_files(config(tmp_path), tmp_path) == []
    assert named_files(config(tmp_path, env="envs.games.key_door:KeyDoor"), tmp_path) == []


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("theirs.envs:Mine", "theirs.envs:Mine is not in the container: name it as a file"),
        ("/abs/env.py:Mine", "/abs/env.py cannot travel: name a file below"),
        ("../env.py:Mine", r"\.\./env.py cannot travel"),
        ("absent.py:Mine", "there is no file"),
    ],
)
def test_what_cannot_travel_is_refused(env: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=said):
        named_files(config(tmp_path, env=env), tmp_path)


def test_an_archive_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../outside"))
    with pytest.raises(tarfile.FilterError):
        unpack(buffer.getvalue(), tmp_path / "in")
    assert not (tmp_path / "outside").exists()
