"""A run from its config to its report, by the Python API."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import evalkit
from envs.base import Info, StepResult
from envs.games.key_door import KeyDoor
from evalkit.errors import BadConfig, CallFailed, Failure
from evalkit.play import reference
from evalkit.play.policy import Ask
from evalkit.record.rundir import RunDir
from evalkit.record.tables import read_csv
from evalkit.testing import FakePolicy, Reply

TABLES = (
    *("summary.csv", "episodes.csv", "turns.csv", "compare.csv", "paired.csv"),
    *("report.md", "pass.csv"),
)
SMALL: dict[str, Any] = {"env_args": {"size": 2, "max_turns": 3}, "seeds": "0:12"}


def lively(ask: Ask) -> Reply:
    """Answer by the prompt and the request's seed alone."""
    action = ("up", "interact", "left", "fly")[(ask.seed + len(ask.messages)) % 4]
    return f"<scratchpad>{ask.turn}</scratchpad><action>{action}</action>"


def play(model: Any, out: Path, **settings: Any) -> evalkit.Run:
    return evalkit.evaluate(model, "key_door", out=str(out), **{**SMALL, **settings})


def tables(run: evalkit.Run) -> dict[str, bytes]:
    return {name: (run.path / name).read_bytes() for name in TABLES if (run.path / name).exists()}


def test_result_files_do_not_depend_on_concurrency(tmp_path: Path) -> None:
    runs = [
        play(
            FakePolicy(lively, shuffle=shuffle),
            tmp_path,
            strategy="FULL_HISTORY,SCRATCHPAD",
            k=2,
            concurrency=concurrency,
        )
        for concurrency, shuffle in ((1, None), (3, 1), (50, 2))
    ]
    assert list(tables(runs[0])) == list(TABLES)
    assert tables(runs[0]) == tables(runs[1]) == tables(runs[2])
    names = [run.path.name for run in runs]
    assert names == [names[0], f"{names[0]}.2", f"{names[0]}.3"]


def test_every_table_is_readable_by_pandas(tmp_path: Path) -> None:
    run = play(FakePolicy(lively), tmp_path, strategy="NO_HISTORY,SCRATCHPAD", k=2)
    for name in (*TABLES[:5], "performance.csv", "pass.csv"):
        frame = pd.read_csv(run.path / name)
        assert len(frame) > 0
        kind = name.removesuffix(".csv")
        edition = 2 if kind in ("summary", "compare") else 1
        assert set(frame["format"]) == {f"{kind}/{edition}"}
        assert set(frame["run_id"]) == {run.report.run_id}


def test_a_run_tells_what_it_found(tmp_path: Path) -> None:
    run = play("oracle", tmp_path, env_args={"size": 2, "max_turns": 9})
    (row,) = run.summary
    assert (row["success_rate"], row["norm_score"], row["spl"]) == pytest.approx((1, 1, 1))
    assert row["steps_mean"] == row["oracle_steps_mean"]
    assert (run.verdicts, run.n_error) == ([], 0)
    assert len(run.episodes()) == 12
    assert len(run.turns()) == row["turns"]


def test_the_manifest_says_what_was_asked_of_whom(tmp_path: Path) -> None:
    run = play("noop", tmp_path, extra_body={"min_p": 0.1})
    manifest = RunDir.open(run.path).manifest()
    config = evalkit.RunConfig.read(manifest["config"])
    assert manifest["format"] == "run/1"
    assert manifest["run_id"] == run.path.name == f"key_door-{manifest['config_digest']}"
    assert config.seeds == tuple(range(12))
    assert manifest["env"]["params"] == KeyDoor(size=2, max_turns=3).params
    assert manifest["policy"] is None
    assert manifest["started_at"] <= manifest["finished_at"]
    assert manifest["arms"] == [
        {
            "name": "noop",
            "strategy": "NO_HISTORY",
            "guided": False,
            "host": "",
            "model": "noop",
            "base_url": "",
            "server_version": "",
            "max_model_len": None,
            "usd_per_mtok": None,
            "request": {
                "model": "noop",
                "temperature": 0.1,
                "max_tokens": 256,
                "min_p": 0.1,
            },
        }
    ]


def test_a_policy_of_ones_own_is_an_arm_of_its_own_name(tmp_path: Path) -> None:
    run = play(FakePolicy(lively), tmp_path)
    assert [(row["arm"], row["model"]) for row in run.summary] == [("FakePolicy", "FakePolicy")]
    assert RunDir.open(run.path).manifest()["policy"] == "FakePolicy"
    with pytest.raises(BadConfig, match="played by a Python object, FakePolicy"):
        asyncio.run(evalkit.resume(run.path))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"model": "noop"}, ["noop"]),
        ({"model": "X=noop"}, ["X"]),
        ({"model": ["noop", "random"]}, ["noop", "random"]),
        ({"model": "noop", "strategy": "WINDOW(2),NO_HISTORY"}, ["WINDOW_k_2", "NO_HISTORY"]),
        (
            {"model": ["noop", "B=random"], "strategy": "NO_HISTORY,SUMMARY"},
            ["noop.NO_HISTORY", "noop.SUMMARY", "B.NO_HISTORY", "B.SUMMARY"],
        ),
        (
            {"model": FakePolicy(lively), "guided": "off,on"},
            ["FakePolicy.free", "FakePolicy.guided"],
        ),
    ],
)
def test_arms_are_named_by_what_distinguishes_them(
    tmp_path: Path, settings: dict[str, Any], names: list[str]
) -> None:
    run = play(settings.pop("model"), tmp_path, seeds=[0], **settings)
    assert [row["arm"] for row in run.summary] == names


def test_in_a_running_loop_a_run_is_awaited(tmp_path: Path) -> None:
    async def both() -> list[evalkit.Run]:
        runs = (
            evalkit.evaluate_async(model, "key_door", out=str(tmp_path), **SMALL)
            for model in ("noop", "random")
        )
        return list(await asyncio.gather(*runs))

    assert [run.summary[0]["arm"] for run in asyncio.run(both())] == ["noop", "random"]


def test_a_run_shows_itself_where_it_is_asked_to(tmp_path: Path) -> None:
    stream = io.StringIO()
    run = play("noop", tmp_path, show=stream)
    lines = stream.getvalue().splitlines()
    assert lines[0] == f"run {run.path}"
    assert lines[-1].startswith("12/12 episodes")


def test_the_report_says_the_verdict_first_and_what_qualifies_it(tmp_path: Path) -> None:
    def half_lost(ask: Ask) -> Reply:
        if ask.session_id.endswith("SCRATCHPAD-3-0"):
            return CallFailed(Failure.TIMEOUT, "slow")
        return "" if "NO_HISTORY" in ask.session_id else "<action>up</action>"

    run = play(FakePolicy(half_lost), tmp_path, strategy="NO_HISTORY,SCRATCHPAD")
    text = (run.path / "report.md").read_text().replace("FakePolicy.", "")
    lines = text.splitlines()
    assert run.n_error == 1
    assert lines[0] == "# key_door: NO_HISTORY against SCRATCHPAD"
    assert [line.startswith("- **") for line in lines[2:6]] == [True, False, False, False]
    assert f"- **{run.verdicts[0]}**\n" in (run.path / "report.md").read_text()
    assert lines[2].startswith("- **no decision between NO_HISTORY and SCRATCHPAD: +0.0 points")
    assert lines[7].startswith("| arm | strategy | answers | episodes | success | 95 % CI |")
    assert [line.split(" | ")[0] for line in lines[9:13]] == [
        "| NO_HISTORY",
        "| SCRATCHPAD",
        "| random",
        "| oracle",
    ]
    assert "`NO_HISTORY`: 36 turns: empty 36." in lines
    assert "`SCRATCHPAD`: 33 turns: ok 33." in lines
    assert (
        "`SCRATCHPAD`: 1 of 12 episodes were lost to errors and are not scored. Had all of them "
        "failed, success would be 0.0 %; had all succeeded, 8.3 %."
    ) in lines
    assert lines[-1] == (
        "`NO_HISTORY` and `SCRATCHPAD`: 0 of 11 episodes are identical, turn by turn."
    )
    assert {row["scratchpad_missing_rate"] for row in run.summary} == {None, 1.0}


def test_equal_arms_differ_in_no_turn_and_others_name_the_first(tmp_path: Path) -> None:
    def drifting(ask: Ask) -> Reply:
        drifted = ask.session_id.endswith("SUMMARY-5-0") and ask.turn == 1
        return "<action>left</action>" if drifted else "<action>up</action>"

    run = play(FakePolicy(drifting), tmp_path, strategy="FULL_HISTORY,SUMMARY")
    assert (run.path / "report.md").read_text().splitlines()[-1] == (
        "`FakePolicy.FULL_HISTORY` and `FakePolicy.SUMMARY`: 11 of 12 episodes are identical, "
        "turn by turn."
    )
    rows = read_csv(run.path / "paired.csv")
    assert {row["env_seed"]: row["first_divergent_turn"] for row in rows} == {
        str(seed): "1" if seed == 5 else "" for seed in range(12)
    }


def test_runs_are_compared_on_the_seeds_they_share(tmp_path: Path) -> None:
    roomy = {"size": 2, "max_turns": 9}
    noop = play("noop", tmp_path / "a", env_args=roomy, seeds="0:12")
    oracle = play("oracle", tmp_path / "b", env_args=roomy, seeds="4:20")
    report = evalkit.compare(noop, str(oracle.path))
    found = report.compared[0].found
    assert (found.n_pairs, found.dropped_a, found.dropped_b) == (8, 4, 8)
    assert report.verdicts[0].startswith(f"{oracle.path.name} is better than {noop.path.name}")
    named = evalkit.compare(noop, oracle, names=("before", "after"))
    assert named.verdicts[0].startswith("after is better than before")


class Fragile(KeyDoor):
    """A key_door that breaks on some seeds."""

    id = "fragile"

    def __init__(self, *, breaks_on: list[int]) -> None:
        super().__init__(size=2, max_turns=3)
        self.breaks_on = breaks_on
        self.seed = 0

    @property
    def params(self) -> dict[str, Any]:
        return {"breaks_on": self.breaks_on}

    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> tuple[str, Info]:
        self.seed = seed
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> StepResult:
        if self.seed in self.breaks_on:
            raise ZeroDivisionError(self.seed)
        return super().step(action)


FRAGILE = f"{Path(__file__)}:Fragile"


def test_an_env_that_breaks_on_a_seed_loses_that_seed_only(tmp_path: Path) -> None:
    run = evalkit.evaluate(
        "noop", FRAGILE, env_args={"breaks_on": [2]}, seeds="0:4", out=str(tmp_path)
    )
    assert run.n_error == 1
    (row,) = run.summary
    assert (row["n_ok"], row["success_hi_worst"]) == (3, 0.25)
    assert run.report.references["random"].n_episodes == 3
    lost = [row for row in run.episodes() if row["scored"] == "false"]
    assert [(row["env_seed"], row["stop_reason"], row["failure_message"]) for row in lost] == [
        ("2", "env_error", "ZeroDivisionError(2)")
    ]


def test_an_env_that_always_breaks_is_no_result(tmp_path: Path) -> None:
    out = tmp_path / "results"
    with pytest.raises(BadConfig, match="the env broke under the random policy"):
        evalkit.evaluate("noop", FRAGILE, env_args={"breaks_on": [0]}, seeds="0", out=out)
    assert not out.exists()


def test_evaluate_in_a_running_loop_says_what_to_do(tmp_path: Path) -> None:
    async def blocking() -> None:
        evalkit.evaluate("noop", "key_door", out=tmp_path)

    with pytest.raises(BadConfig, match="await evaluate_async"):
        asyncio.run(blocking())


def test_references_are_played_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> KeyDoor:
        made.append(1)
        return KeyDoor(size=2)

    first = asyncio.run(reference.references(make, range(5), cache=tmp_path))
    played = len(made)
    assert asyncio.run(reference.references(make, range(5), cache=tmp_path)) == first
    assert len(made) == played + 1
    assert asyncio.run(reference.references(make, range(6), cache=tmp_path)) != first
    assert first["oracle"].success_rate == 1.0
    assert list(first) == ["random", "oracle"]


def test_a_cache_that_cannot_be_written_costs_no_results(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = asyncio.run(
        reference.references(lambda: KeyDoor(size=2), range(3), cache=tmp_path / "file")
    )
    assert found["oracle"].n_episodes == 3


def test_the_package_loads_its_names_when_they_are_used() -> None:
    assert {name: getattr(evalkit, name).__name__ for name in evalkit.__all__} == {
        name: name for name in evalkit.__all__
    }
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        evalkit.nothing  # noqa: B018
