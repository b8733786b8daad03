"""Which runs a folder holds, told in a line each."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from evalkit.record.journal import Appender
from evalkit.view.folder import RunFolder, RunState, as_data
from evalkit.view.routes import NotFound

from .conftest import unfinished


def test_runs_are_found_by_their_manifests(runs: Path) -> None:
    (runs / "sweep" / "deep").mkdir(parents=True)
    (runs / "evil").rename(runs / "sweep" / "deep" / "evil")
    (runs / ".hidden").mkdir()
    (runs / ".hidden" / "manifest.json").write_text("{}")
    (runs / "pair" / "shards" / "1-of-2").mkdir(parents=True)
    (runs / "pair" / "shards" / "1-of-2" / "manifest.json").write_text("{}")
    (runs / "notes.txt").write_text("a file")
    assert RunFolder(runs).names() == ["pair", "sweep/deep/evil", "ttt"]
    assert RunFolder(runs / "pair").names() == ["."]


def test_a_finished_run_is_told_by_its_tables(runs: Path) -> None:
    (runs / "pair" / "trajectories.jsonl").unlink()
    entry = RunFolder(runs).entry("pair")
    assert (entry.state, entry.env, entry.played, entry.total) == (
        RunState.FINISHED,
        "key_door",
        16,
        16,
    )
    assert [(arm.name, arm.model, arm.n) for arm in entry.arms] == [
        ("bad", "random", 8),
        ("good", "oracle", 8),
    ]
    assert entry.arms[1].success == 1.0
    assert entry.headline.startswith("good is better than bad: +")
    data = as_data(entry)
    assert (data["state"], data["arms"][0]["name"]) == ("finished", "bad")


def later() -> float:
    return 1e12


def test_one_that_is_played_is_running_and_else_interrupted(runs: Path, tmp_path: Path) -> None:
    unfinished(runs / "pair", 5)
    folder = RunFolder(runs, clock=later)
    assert folder.entry("pair").state is RunState.INTERRUPTED
    with Appender(runs / "pair" / "journal.jsonl"):
        entry = folder.entry("pair")
    assert (entry.state, entry.played, entry.total) == (RunState.RUNNING, 5, 16)
    assert [arm.n for arm in entry.arms] == [3, 2]
    assert folder.entry("pair").state is RunState.INTERRUPTED
    with Appender(runs / "pair" / "journal.jsonl"):
        nowhere = RunFolder(runs, locks=tmp_path / "none", clock=later)
        assert nowhere.entry("pair").state is RunState.INTERRUPTED


def test_one_that_was_just_written_is_running(runs: Path) -> None:
    unfinished(runs / "pair", 5)
    just, long_ago = RunFolder(runs, clock=lambda: 14.0), RunFolder(runs, clock=lambda: 16.0)
    assert just.entry("pair").state is RunState.RUNNING
    assert long_ago.entry("pair").state is RunState.INTERRUPTED
    shard = runs / "pair" / "shards" / "1-of-2"
    shard.mkdir(parents=True)
    (shard / "trajectories.jsonl").write_bytes(b"")
    assert RunFolder(runs).entry("pair").state is RunState.RUNNING


def test_looking_takes_no_lock(runs: Path) -> None:
    unfinished(runs / "pair", 5)
    RunFolder(runs).entries()
    Appender(runs / "pair" / "journal.jsonl").close()


def test_one_that_finishes_is_told_anew(runs: Path, made: Path) -> None:
    rest = unfinished(runs / "pair", 5)
    folder = RunFolder(runs)
    before = folder.entry("pair")
    with (runs / "pair" / "trajectories.jsonl").open("ab") as file:
        file.writelines(rest)
    assert folder.entry("pair").version > before.version
    for name in ("summary.csv", "compare.csv", "manifest.json"):
        (runs / "pair" / name).write_bytes((made / "pair" / name).read_bytes())
    assert folder.entry("pair").state is RunState.FINISHED


def test_a_shard_has_its_own_seeds(runs: Path) -> None:
    unfinished(runs / "pair", 5)
    manifest = orjson.loads((runs / "pair" / "manifest.json").read_bytes())
    (runs / "pair" / "manifest.json").write_bytes(orjson.dumps({**manifest, "shard": "1/3"}))
    entry = RunFolder(runs).entry("pair")
    assert (entry.shard, entry.n_seeds, entry.total) == ("1/3", 3, 6)


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("manifest.json", "{", "manifest.json"),
        ("manifest.json", '{"format":"run/1"}', "no 'finished_at'"),
        ("manifest.json", '{"format":"run/1","finished_at":null,"arms":[1]}', "arms"),
        ("manifest.json", '{"format":"run/9"}', "expected format run/1"),
        ("summary.csv", "a,b\n1,2\n", "no 'arm'"),
    ],
)
def test_damage_is_an_entry(runs: Path, file: str, damage: str, said: str) -> None:
    (runs / "pair" / file).write_text(damage)
    entries = RunFolder(runs).entries()
    assert [entry.name for entry in entries if entry.state is RunState.FINISHED] != []
    (damaged,) = [entry for entry in entries if entry.state is RunState.DAMAGED]
    assert damaged.name == "pair"
    assert said in damaged.problem


@pytest.mark.parametrize(
    "name",
    [
        *("", "..", "../made", "/etc", "pair/../pair/..", "nope", "pair\0", ".hidden", "link"),
        *("pair/", "./pair", "/pair", "pair/."),
    ],
)
def test_what_is_no_run_of_the_folder_is_not_there(runs: Path, made: Path, name: str) -> None:
    (runs / "link").symlink_to(made / "pair")
    with pytest.raises(NotFound):
        RunFolder(runs).run(name)


def test_only_tables_and_reports_are_given_away(runs: Path, made: Path) -> None:
    run = runs / "pair"
    (run / "secret.csv").symlink_to(made / "pair" / "summary.csv")
    (run / "inside.csv").symlink_to(run / "summary.csv")
    (run / "key.pem").write_text("secret")
    (run / ".env.csv").write_text("secret")
    folder = RunFolder(runs)
    assert "inside.csv" in folder.files("pair")
    assert "summary.csv" in folder.files("pair")
    for name in ("secret.csv", "key.pem", ".env.csv", "trajectories.jsonl", "../ttt/summary.csv"):
        with pytest.raises(NotFound):
            folder.file("pair", name)


def test_a_run_that_is_removed_meanwhile_is_no_entry(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(runs)
    monkeypatch.setattr(folder, "names", lambda: ["gone", "pair"])
    assert [entry.name for entry in folder.entries()] == ["pair"]


def test_the_runs_of_a_matrix_are_found_and_forks_are_told(runs: Path) -> None:
    (runs / "matrix-key_door-1").mkdir()
    cell = runs / "matrix-key_door-1" / "cell"
    (runs / "pair").rename(cell)
    manifest = orjson.loads((cell / "manifest.json").read_bytes())
    (cell / "manifest.json").write_bytes(orjson.dumps({**manifest, "fork": {"turn": 4}}))
    entry = RunFolder(runs).entry("matrix-key_door-1/cell")
    assert entry in RunFolder(runs).entries()
    assert (entry.state, entry.fork) == (RunState.FINISHED, "fork at turn 4")
