"""Forks as runs of their own: what they hold, what they say of their parent, that they replay."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from evalkit.config import RunConfig
from evalkit.debug.check import check_run
from evalkit.debug.forks import Change, Forked, fork
from evalkit.debug.interventions import InterventionKind
from evalkit.debug.origin import Episode, Models, RecordedRun
from evalkit.errors import BadConfig, DamagedRun, ReplayDiffers, RunFailed
from evalkit.leaderboard import leaderboard
from evalkit.record.journal import read_journal
from evalkit.record.rundir import RunDir, TrajectoryFile
from evalkit.run import Run, evaluate, resume
from evalkit.testing import FakePolicy, FakeServer

ACTION, STRATEGY = InterventionKind.ACTION, InterventionKind.STRATEGY


def run_of(tmp_path: Path, model: str = "random", **settings: Any) -> Run:
    values = {"env_args": {"size": 2, "max_turns": 6}, "seeds": "3:5", "out": tmp_path, **settings}
    return evaluate(model, "key_door", **values)


def forked(path: Path, turn: int, *changes: Change, **options: Any) -> Forked:
    run = RecordedRun(path)
    repetition = options.pop("repetition", 0)
    parent = run.find(3, options.pop("arm", None), repetition)
    return asyncio.run(fork(run, parent, turn, changes, **options))


def test_a_fork_is_a_run_beside_its_parent(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    made = forked(run.path, 2, (ACTION, "interact"), model="oracle")
    assert made.path.parent == tmp_path
    manifest = RunDir.open(made.path).manifest()
    assert manifest["fork"] == {
        "format": "fork/1",
        "parent": {
            "run_id": run.path.name,
            "directory": run.path.name,
            "env_seed": 3,
            "repetition": 0,
            "arm": "random",
        },
        "turn": 2,
        "strategy": "NO_HISTORY",
        "repetition": 0,
        "interventions": [
            {"turn": 2, "kind": "action", "value": "interact"},
            {"turn": 2, "kind": "model", "value": "oracle"},
        ],
    }
    assert [arm["name"] for arm in manifest["arms"]] == ["oracle"]
    assert manifest["finished_at"] is not None
    kept = list(TrajectoryFile(made.path / "trajectories.jsonl"))
    assert tuple(kept) == made.futures
    assert kept[0].turns[:2] == made.parent.turns[:2]
    assert kept[0].turns[2].action == "interact"
    assert (made.path / "summary.csv").is_file()
    calls = [entry["request_id"] for entry in read_journal(made.path / "journal.jsonl")]
    assert calls == [
        f"{manifest['run_id']}-oracle-3-0-{turn}" for turn in range(3, len(kept[0].turns))
    ]


def test_the_same_model_without_a_change_has_the_same_future(tmp_path: Path) -> None:
    run = run_of(tmp_path, strategy="FULL_HISTORY,SCRATCHPAD", k=2)
    with pytest.raises(BadConfig, match="--arm is missing: the run's arms are FULL_HISTORY"):
        forked(run.path, 1)
    made = forked(run.path, 1, arm="SCRATCHPAD", repetition=1)
    assert made.futures == (made.parent,)


def test_several_futures_differ_only_from_the_fork_on(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    made = forked(run.path, 2, n=4)
    assert [future.key.repetition for future in made.futures] == [0, 1, 2, 3]
    assert made.futures[0] == made.parent
    assert {future.turns[:2] for future in made.futures} == {made.parent.turns[:2]}
    assert len({future.turns for future in made.futures}) == 4
    assert asyncio.run(check_run(made.path)).differences == []


def test_forks_of_forks_replay_through_all_changes(tmp_path: Path) -> None:
    path = run_of(tmp_path, "noop", strategy="SCRATCHPAD").path
    changes: list[list[Change]] = [
        [(InterventionKind.NOTES, "here"), (InterventionKind.REPLY, "<action>up</action>")],
        [(STRATEGY, "FULL_HISTORY"), (InterventionKind.OBSERVATION, "a void")],
        [(STRATEGY, "OPTIMAL_SCRATCHPAD"), (ACTION, "down")],
    ]
    repetition = 0
    for turn, made_there in enumerate(changes, 1):
        made = forked(path, turn, *made_there, n=2, repetition=repetition, model="random")
        checked = asyncio.run(check_run(made.path))
        assert (checked.episodes, checked.differences) == (2, [])
        path, repetition = made.path, repetition + 1
    seen = made.futures[0].turns
    assert [turn.observation == "a void" for turn in seen[:4]] == [False, False, True, False]
    fork_said = RunDir.open(path).manifest()["fork"]
    assert (fork_said["strategy"], fork_said["repetition"]) == ("SCRATCHPAD", 0)
    assert [made["kind"] for made in fork_said["interventions"]] == [
        *("notes", "reply", "model", "repetition"),
        *("strategy", "observation", "model", "repetition"),
        *("strategy", "action", "model"),
    ]


@pytest.mark.parametrize("turn", [-1, 6, 99])
def test_a_turn_that_the_episode_does_not_have_is_refused(tmp_path: Path, turn: int) -> None:
    run = run_of(tmp_path, "noop")
    with pytest.raises(BadConfig, match=f"no turn {turn} to fork at: it has turns 0 to 5"):
        forked(run.path, turn)
    assert [path.name for path in tmp_path.iterdir()] == [run.path.name]


def test_an_episode_that_overflowed_can_be_forked_at_its_end(tmp_path: Path) -> None:
    full = 400, {"error": {"message": "context length exceeded", "code": "context_length_exceeded"}}
    with FakeServer(
        lambda body: "<action>up</action>" if len(body["messages"]) < 5 else full
    ) as server:
        run = run_of(tmp_path, server.url, strategy="FULL_HISTORY", max_tokens=8)
        assert asyncio.run(check_run(run.path)).differences == []
        made = forked(run.path, 2, (STRATEGY, "WINDOW(1)"))
    assert [len(made.parent.turns), len(made.futures[0].turns)] == [2, 6]
    assert asyncio.run(check_run(made.path)).differences == []


def test_a_parent_that_is_not_what_was_recorded_leaves_nothing_behind(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    file = run.path / "trajectories.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"reward":0.0', b'"reward":0.5', 1))
    with pytest.raises(ReplayDiffers, match=r"turn 0: reward is 0\.0, and 0\.5 is recorded"):
        forked(run.path, 2)
    assert [path.name for path in tmp_path.iterdir()] == [run.path.name]


def test_an_env_that_is_another_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    file = run.path / "manifest.json"
    manifest = orjson.loads(file.read_bytes())
    manifest["env"]["digest"] = "0" * 16
    file.write_bytes(orjson.dumps(manifest))
    with pytest.raises(BadConfig, match="the env key_door is not what it was when"):
        RecordedRun(run.path)


def test_a_fork_is_not_resumed(tmp_path: Path) -> None:
    made = forked(run_of(tmp_path).path, 2)
    with pytest.raises(BadConfig, match="is a fork, which is not resumed"):
        asyncio.run(resume(made.path))


def test_a_fork_is_not_ranked(tmp_path: Path) -> None:
    made = forked(run_of(tmp_path).path, 2)
    board = leaderboard(tmp_path, tmp_path)
    assert board.arms == 1
    (warning,) = board.warnings
    assert warning.startswith(f"{made.path.name} is left out: it is a fork")


def test_what_a_python_object_played_needs_a_model_to_go_on(tmp_path: Path) -> None:
    policy = FakePolicy(lambda _: "<action>up</action>")
    run = evaluate(policy, "key_door", seeds="3:4", out=tmp_path)
    assert asyncio.run(check_run(run.path)).differences == []
    with pytest.raises(BadConfig, match="played by a Python object, FakePolicy: name a --model"):
        forked(run.path, 1)
    assert forked(run.path, 1, model="noop").futures[0].turns[1].completion == ""


def test_a_key_goes_to_no_other_server_than_it_was_meant_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLD_KEY", "old")
    monkeypatch.setenv("NEW_KEY", "new")
    with FakeServer(lambda _: "<action>up</action>") as old, FakeServer(lambda _: "") as new:
        run = run_of(tmp_path, f"A={old.url}", seeds="3:4", api_key_env=["A=OLD_KEY"])
        seen = len(old.received)
        forked(run.path, 1)
        assert {r.headers["authorization"] for r in old.received[seen:]} == {"Bearer old"}
        forked(run.path, 1, model=new.url)
        assert {r.headers.get("authorization") for r in new.received} == {None}
        forked(run.path, 1, model=new.url, api_key_env=["NEW_KEY"])
        assert new.received[-1].headers["authorization"] == "Bearer new"

        episode = RecordedRun(run.path).episode(RecordedRun(run.path).find(3, None, 0))
        models = Models(episode.config, ["B=NEW_KEY"])
        assert models.config(models.first).api_key_env == ("OLD_KEY",)
        assert models.config(new.url).api_key_env == ()
        assert models.config(f"B={new.url}").api_key_env == ("B=NEW_KEY",)


def test_futures_that_are_lost_are_data(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with FakeServer(lambda _: (400, {"error": {"message": "no"}})) as server:
        made = forked(run.path, 1, model=server.url)
    assert [future.scored for future in made.futures] == [False]
    assert len(made.futures[0].turns) == 1


def test_a_check_names_every_episode_that_is_not_as_recorded(tmp_path: Path) -> None:
    run = run_of(tmp_path, seeds="0:20")
    file = run.path / "trajectories.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b"You are at", b"You were at", 1)
    changed = orjson.loads(lines[7])
    lines[7] = orjson.dumps({**changed, "success": not changed["success"]}) + b"\n"
    changed = orjson.loads(lines[9])
    changed["turns"] = changed["turns"][:-1]
    lines[9] = orjson.dumps(changed) + b"\n"
    file.write_bytes(b"".join(lines))
    checked = asyncio.run(check_run(run.path))
    assert checked.episodes == 20
    assert [key.env_seed for key, _ in checked.differences] == [4, 7, 9]
    assert checked.differences[0][1].startswith("turn 0: observation is 'You are at")
    assert checked.differences[1][1].startswith("at its end: success is ")
    assert "the record has no turn" in checked.differences[2][1]


def test_an_arm_that_the_run_does_not_have(tmp_path: Path) -> None:
    run = RecordedRun(run_of(tmp_path).path)
    with pytest.raises(BadConfig, match="no finished episode of seed 9, repetition 0, arm random"):
        run.find(9, None, 0)
    with pytest.raises(BadConfig, match="has no arm B; it has random"):
        run.arm("B", "replay")


def test_an_episode_that_was_never_played_begins_where_its_config_says() -> None:
    config = RunConfig.read(
        {"model": ["oracle", "noop"], "env": "key_door", "seeds": "4:9", "k": 3}, "test"
    )
    episode = Episode.fresh(config)
    assert (episode.key.env_seed, episode.key.arm, episode.config.k) == (4, "oracle", 1)
    assert episode.config.model == ("oracle",)


def test_a_record_of_another_format_is_refused(tmp_path: Path) -> None:
    made = forked(run_of(tmp_path).path, 2)
    manifest = RunDir.open(made.path).manifest()
    manifest["fork"]["format"] = "fork/9"
    RunDir(made.path).write_manifest(manifest)
    with pytest.raises(RunFailed, match="expected a fork of fork/1"):
        asyncio.run(check_run(made.path))


@pytest.mark.parametrize(
    "damage",
    [
        {"arms": 1},
        {"config": []},
        {"env": {"id": "key_door"}},
        {"fork": []},
        {"fork": {"format": "fork/1", "strategy": "NO_HISTORY", "interventions": [{"turn": 1}]}},
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, damage: dict[str, Any]) -> None:
    path = run_of(tmp_path).path
    file = path / "manifest.json"
    file.write_bytes(orjson.dumps({**orjson.loads(file.read_bytes()), **damage}))
    with pytest.raises(DamagedRun, match=r"manifest\.json"):
        forked(path, 1)


def test_a_run_of_which_another_episode_is_damaged_can_be_forked(tmp_path: Path) -> None:
    path = run_of(tmp_path).path
    with (path / "trajectories.jsonl").open("ab") as file:
        file.write(b"{}\n")
    assert forked(path, 1, (ACTION, "up")).path.is_dir()


def test_a_seed_that_no_record_can_hold_is_none(tmp_path: Path) -> None:
    run = RecordedRun(run_of(tmp_path).path)
    with pytest.raises(BadConfig, match="no finished episode of seed 99999999999999999999,"):
        run.find(99999999999999999999, None, 0)


def test_a_fork_does_not_claim_the_reply_of_the_turn_that_it_plays_anew(tmp_path: Path) -> None:
    reply = (InterventionKind.REPLY, "zzz <action>interact</action>")
    parent = forked(run_of(tmp_path).path, 1, (InterventionKind.OBSERVATION, "fog"), reply)
    child = forked(parent.path, 1)
    assert child.futures[0].turns[1].completion != parent.futures[0].turns[1].completion
    made = RunDir(child.path).manifest()["fork"]["interventions"]
    assert [change["kind"] for change in made] == ["observation"]
    later = forked(parent.path, 2)
    made = RunDir(later.path).manifest()["fork"]["interventions"]
    assert [change["kind"] for change in made] == ["observation", "reply"]
    for path in (child.path, later.path):
        assert asyncio.run(check_run(path)).differences == []


def test_a_fork_of_a_long_line_of_forks_has_a_name_that_a_folder_can_have(tmp_path: Path) -> None:
    path = run_of(tmp_path).path
    file = path / "manifest.json"
    file.write_bytes(orjson.dumps({**orjson.loads(file.read_bytes()), "run_id": "r" * 250}))
    assert forked(path, 1).path.name.startswith("r" * 120 + "-s3-t1-")
