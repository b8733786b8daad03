"""Runs that stop when they are decided: the same bytes however played, and what they say."""

from __future__ import annotations

import asyncio
import io
import random
import re
import shutil
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import evalkit
from envs.base import EpisodeOver, Info, StepResult, TextEnv
from evalkit.cli import main
from evalkit.errors import BadConfig
from evalkit.judge.sequential import StoppingRule, judge_sequence
from evalkit.play.policy import Ask
from evalkit.record.rundir import RunDir
from evalkit.record.tables import read_csv
from evalkit.testing import FakePolicy, FakeServer, Reply, Said

FILES = (
    *("trajectories.jsonl", "summary.csv", "episodes.csv", "turns.csv", "compare.csv"),
    *("paired.csv", "sequential.csv", "report.md"),
)


class Coin(TextEnv):
    """One turn, won or lost as the policy says."""

    id = "coin"
    system_prompt = "Answer <action>win</action> or <action>lose</action>."
    max_turns = 1

    def __init__(self) -> None:
        self.seed, self.said = -1, "over"

    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> tuple[str, Info]:
        self.seed, self.said = seed, ""
        return f"coin {seed}", {}

    def step(self, action: str) -> StepResult:
        if self.said:
            raise EpisodeOver("call reset first")
        self.said = action or "nothing"
        won = self.success
        return "over", 2.0 if won else -1.0, won, not won, {} if action else {"illegal": True}

    @property
    def success(self) -> bool:
        return self.said == "win"

    def legal_actions(self) -> tuple[str, ...]:
        return ("win", "lose")

    def oracle(self) -> str:
        return "win"

    def state(self) -> dict[str, Any]:
        return {"seed": self.seed, "said": self.said}

    def load(self, state: Mapping[str, Any]) -> None:
        self.seed, self.said = state["seed"], state["said"]


COIN = f"{Path(__file__)}:Coin"


def wins(arm: str, seed: int, repetition: int = 0) -> bool:
    """Whether an arm wins: NO_HISTORY and `a` at .3, SCRATCHPAD and `b` at .6."""
    rate = 0.3 if arm in {"NO_HISTORY", "a"} else 0.6
    return random.Random(f"{arm} {seed} {repetition}").random() < rate


def tossed(ask: Ask) -> Reply:
    stem, seed, repetition = ask.session_id.rsplit("-", 2)
    arm = stem.rpartition(".")[2]
    return f"<action>{'win' if wins(arm, int(seed), int(repetition)) else 'lose'}</action>"


def play(out: Path, reply: Callable[[Ask], Reply] = tossed, **settings: Any) -> evalkit.Run:
    settings = {"strategy": "NO_HISTORY,SCRATCHPAD", "stop": "decided", "out": out, **settings}
    return evalkit.evaluate(
        FakePolicy(reply, shuffle=settings.pop("shuffle", None)), COIN, **settings
    )


def files(run: evalkit.Run) -> dict[str, bytes]:
    return {name: (run.path / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("k", [1, 2])
def test_result_files_do_not_depend_on_concurrency(tmp_path: Path, k: int) -> None:
    runs = [
        play(tmp_path, k=k, concurrency=concurrency, shuffle=shuffle, seeds="50:500,3")
        for concurrency, shuffle in ((1, None), (3, 1), (64, 2))
    ]
    assert files(runs[0]) == files(runs[1]) == files(runs[2])
    seeds = [*range(50, 500), 3]
    diffs = [
        sum(wins("SCRATCHPAD", seed, n) - wins("NO_HISTORY", seed, n) for n in range(k)) / k
        for seed in seeds
    ]
    look = judge_sequence(diffs, StoppingRule())
    (found,) = runs[0].report.sequential
    assert found.last == look
    assert 10 < look.n_pairs < 450
    assert {int(row["env_seed"]) for row in runs[0].episodes()} == set(seeds[: look.n_pairs])
    assert {row["n_seeds"] for row in runs[0].summary} == {look.n_pairs}
    assert runs[0].report.references["random"].n_episodes == look.n_pairs
    assert RunDir.open(runs[0].path).manifest()["n_seeds_judged"] == look.n_pairs


def test_every_look_is_in_the_table_and_the_last_one_decides(tmp_path: Path) -> None:
    run = play(tmp_path)
    (found,) = run.report.sequential
    frame = pd.read_csv(run.path / "sequential.csv")
    assert set(frame["format"]) == {"sequential/1"}
    assert list(frame["n_pairs"]) == list(range(1, len(frame) + 1))
    assert list(frame["env_seed"]) == list(range(len(frame)))
    assert list(frame["verdict"]) == ["undecided"] * (len(frame) - 1) + ["better"]
    assert frame["lo"].iloc[-1] > 0.0
    assert frame["p_anytime"].is_monotonic_decreasing
    assert found.last is not None
    assert frame["log_e"].iloc[-1] == pytest.approx(found.last.log_e)


def test_the_verdict_leads_and_says_what_it_saved(tmp_path: Path) -> None:
    run = play(tmp_path)
    text = (run.path / "report.md").read_text().replace("FakePolicy.", "")
    lines = text.splitlines()
    assert re.fullmatch(
        r"- \*\*SCRATCHPAD is better than NO_HISTORY: decided after \d+ pairs: \+[\d.]+ points "
        r"success \(95 % confidence sequence \+[\d.]+\.\.\+[\d.]+, e = [\d.]+, "
        r"anytime p=\.\d+\)\*\*",
        lines[2],
    )
    assert re.fullmatch(
        r"- NO_HISTORY against SCRATCHPAD took \d+ episodes: [\d,]+ (fewer|more) \(\d+ %\) than "
        r"the [\d,]+ of a paired run of fixed size, [\d,]+ (fewer|more) \(\d+ %\) than the [\d,]+ "
        r"of an unpaired one\. Those see the observed difference, [\d.]+ points, 80 % of the time",
        lines[3],
    )
    assert not any("McNemar" in line for line in lines)
    assert "This run looked after every seed and stopped on what it saw." in text
    assert run.verdicts[:2] == [
        line.strip("-* ").replace("NO_", "FakePolicy.NO_").replace("SCR", "FakePolicy.SCR")
        for line in lines[2:4]
    ]


def test_arms_that_hardly_differ_are_equivalent_or_out_of_budget(tmp_path: Path) -> None:
    def always(ask: Ask) -> Reply:
        return "<action>win</action>"

    same = play(tmp_path, always, margin=0.1)
    assert same.verdicts[0].startswith(
        "FakePolicy.NO_HISTORY and FakePolicy.SCRATCHPAD are equivalent within 10.0 points after "
    )
    assert "Those see the margin, 10.0 points" in same.verdicts[1]
    spent = play(tmp_path, always, max_seeds=30)
    assert spent.verdicts[0].startswith(
        "undecided between FakePolicy.NO_HISTORY and FakePolicy.SCRATCHPAD, out of budget: after "
        "30 pairs: +0.0 points success (95 % confidence sequence "
    )
    assert read_csv(spent.path / "sequential.csv")[-1]["verdict"] == "out_of_budget"
    assert read_csv(spent.path / "compare.csv")[0]["verdict"] == "out_of_budget"
    assert not any("of fixed size, " in line for line in spent.verdicts)
    assert len(spent.episodes()) == 60


def test_what_decides_may_be_another_number(tmp_path: Path) -> None:
    def silent(ask: Ask) -> Reply:
        return "" if "NO_HISTORY" in ask.session_id else "<action>lose</action>"

    valid = play(tmp_path, silent, stop_on="valid_action_rate")
    assert "decided after 9 pairs: +100.0 points valid actions (" in valid.verdicts[0]
    returns = play(tmp_path, stop_on="return", span=3.0)
    (found,) = returns.report.sequential
    (success,) = play(tmp_path).report.sequential
    assert "return (95 % confidence sequence +" in returns.verdicts[0]
    assert found.last is not None
    assert success.last is not None
    assert found.last.n_pairs == success.last.n_pairs
    assert found.last.diff == pytest.approx(3.0 * (success.last.diff or 0.0))


def test_several_pairs_of_arms_share_alpha_and_the_run_goes_on_until_all_are_done(
    tmp_path: Path,
) -> None:
    def three(ask: Ask) -> Reply:
        return tossed(ask) if "SUMMARY" not in ask.session_id else "<action>lose</action>"

    run = play(tmp_path, three, strategy="NO_HISTORY,SCRATCHPAD,SUMMARY")
    found = run.report.sequential
    pairs = [each.last.n_pairs for each in found if each.last is not None]
    assert [each.last.level for each in found if each.last] == [pytest.approx(1 - 0.05 / 3)] * 3
    assert len(set(pairs)) == 3
    assert {int(row["env_seed"]) for row in run.episodes()} == set(range(max(pairs)))


def server(
    lost: set[tuple[str, int]], told: Callable[[int], None] = lambda n_calls: None
) -> FakeServer:
    """Return models `a` and `b`; what is in `lost` is answered by an error, once."""
    calls = count(1)

    def chat(body: dict[str, Any]) -> str | Said:
        told(next(calls))
        seed = int(body["messages"][-1]["content"].split()[-1])
        arm = body["model"]
        if (arm, seed) in lost:
            lost.discard((arm, seed))
            return 400, {"error": {"message": "no"}}
        return f"<action>{'win' if wins(arm, seed) else 'lose'}</action>"

    return FakeServer(chat, models=[{"id": "a"}, {"id": "b"}])


def duel(url: str, out: Path, **settings: Any) -> evalkit.Run:
    models = [f"A={url}#a", f"B={url}#b"]
    return evalkit.evaluate(models, COIN, stop="decided", out=out, **settings)


def test_lost_seeds_are_left_out_and_resume_plays_them_again(tmp_path: Path) -> None:
    lost = {("a", 6), ("b", 11)}
    with server(lost) as fake:
        broken = duel(fake.url, tmp_path, concurrency=4)
        (found,) = broken.report.sequential
        assert (broken.n_error, found.n_lost, lost) == (2, 2, set())
        assert broken.verdicts[0].endswith("); 2 seeds were lost to errors")
        resumed = asyncio.run(evalkit.resume(broken.path, concurrency=4))
        whole = duel(fake.url, tmp_path, concurrency=1)
        assert (resumed.n_error, resumed.report.sequential[0].n_lost) == (0, 0)
        assert files(resumed) == files(whole)
        received = len(fake.bodies)
        again = asyncio.run(evalkit.resume(whole.path, concurrency=3))
        assert files(again) == files(whole)
        assert len(fake.bodies) == received


@pytest.mark.parametrize("calls", [1, 20, 45])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(tmp_path: Path, calls: int) -> None:

    async def cut() -> str:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def told(n_calls: int) -> None:
            if n_calls == calls and task is not None:
                loop.call_soon_threadsafe(task.cancel)

        with server(set(), told) as fake:
            models = [f"A={fake.url}#a", f"B={fake.url}#b"]
            with pytest.raises(asyncio.CancelledError):
                await evalkit.evaluate_async(
                    models, COIN, stop="decided", out=tmp_path, concurrency=4
                )
            return fake.url

    url = asyncio.run(cut())
    (path,) = tmp_path.iterdir()
    assert not (path / "sequential.csv").exists()
    with server(set()) as fake:
        moved = [f"A={fake.url}#a", f"B={fake.url}#b"]
        resumed = asyncio.run(evalkit.resume(path, concurrency=3, model=moved))
        whole = duel(fake.url, tmp_path, concurrency=1)
    assert url != fake.url
    for name in FILES:
        text = (whole.path / name).read_bytes()
        assert (path / name).read_bytes() == text.replace(
            whole.report.run_id.encode(), resumed.report.run_id.encode()
        )


def test_what_was_played_beyond_the_stop_is_left_out_on_resume(tmp_path: Path) -> None:
    """As after a crash between the decision and the tables."""
    with server(set()) as fake:
        whole = duel(fake.url, tmp_path, concurrency=4)
        models = [f"A={fake.url}#a", f"B={fake.url}#b"]
        longer = evalkit.evaluate(models, COIN, seeds="0:80", out=tmp_path, concurrency=4)
        path = tmp_path / "crashed"
        path.mkdir()
        for name, source in (("manifest.json", whole), ("trajectories.jsonl", longer)):
            shutil.copyfile(source.path / name, path / name)
        received = len(fake.bodies)
        resumed = asyncio.run(evalkit.resume(path, concurrency=4))
        assert files(resumed) == files(whole)
        assert len(fake.bodies) == received
        assert len(longer.episodes()) > len(resumed.episodes())


def test_the_person_who_waits_sees_the_look(tmp_path: Path) -> None:
    stream = io.StringIO()
    run = play(tmp_path, show=stream, concurrency=64, shuffle=3)
    (found,) = run.report.sequential
    lines = stream.getvalue().splitlines()
    assert f"{found.n_episodes // 2} pairs" in lines[-2]
    assert re.search(r"of at most 4000 episodes  [\d.]+ turns/s  \d:\d\d  success", lines[-3])
    assert lines[-2].startswith("FakePolicy.SCRATCHPAD - FakePolicy.NO_HISTORY after ")
    assert lines[-2].endswith(", better")
    assert re.fullmatch(r"\d+ episodes beyond the stop were begun, and do not count", lines[-1])
    assert int(lines[-1].split()[0]) <= 2 * 64


@pytest.mark.parametrize(
    "words",
    [["--procs", "2"], ["--shard", "1/2"], ["--target", "modal"]],
    ids=lambda words: words[0],
)
def test_shards_cannot_stop(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--model", "noop", "--model", "random"]
    out = ["--out", str(tmp_path)]
    assert main([*models, "--env", "key_door", "--stop", "decided", *words, *out]) == 2
    assert "--stop takes neither --procs, --shard nor --target modal" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_cannot_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--model noop --model random --env key_door --size 3,4 --stop decided"
    assert main([*words.split(), "--out", str(tmp_path)]) == 2
    assert "a sweep plays all of its seeds: leave --stop away" in capsys.readouterr().err


def test_shards_cannot_stop_in_python_either(tmp_path: Path) -> None:
    from evalkit.record.shard import Shard
    from evalkit.sharded import start_shard

    config = evalkit.RunConfig.read(
        {"model": ["noop", "random"], "env": "key_door", "stop": "decided", "out": tmp_path}
    )
    with pytest.raises(BadConfig, match="judges seed by seed, and not in shards"):
        asyncio.run(start_shard(config, Shard.parse("1/2")))


def test_the_command_prints_the_decision_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--model A=random --model B=oracle --env key_door --stop decided --max-seeds 50"
    assert main([*words.split(), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert said[0].startswith("B is better than A: decided after 9 pairs: +100.0 points success (")
    assert said[1].startswith("A against B took 18 episodes: 6 more (50 %) than the 12 of a paired")
    assert said[2] == "Not corrected for the stop:"
    assert [line.partition(":")[0] for line in said[3:]] == [
        "B is better than A",
        "no decision between A and B",
        "B takes fewer turns than A",
    ]
