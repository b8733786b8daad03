"""Samples for TRL's trainers, as TRL itself sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

import evalkit
from evalkit.exchange.played import Played, as_dicts
from evalkit.exchange.trl_samples import export_trl
from evalkit.play.policy import Ask
from evalkit.testing import FakePolicy


def _lines(file: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in file.read_bytes().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> evalkit.Run:
    return evalkit.evaluate(
        ["A=random", "B=oracle"], "key_door", strategy="FULL_HISTORY", seeds="0:8", k=2,
        out=tmp_path_factory.mktemp("results"),
    )  # fmt: skip


@pytest.mark.parametrize("only_success", [False, True])
def test_every_turn_is_a_prompt_and_a_completion(
    run: evalkit.Run, tmp_path: Path, *, only_success: bool
) -> None:
    played = Played.open(run.path)
    sft, _ = export_trl(played, tmp_path, only_success=only_success)
    expected = [
        (as_dicts(prompt), [{"role": "assistant", "content": turn.completion}])
        for episode in played.trajectories()
        if episode.success or not only_success
        for turn, prompt in zip(episode.turns, played.prompts(episode), strict=True)
    ]
    samples = _lines(sft)
    assert [(each["prompt"], each["completion"]) for each in samples] == expected
    assert {each["success"] for each in samples} == ({True} if only_success else {True, False})


def test_a_flip_is_a_pair_where_the_episodes_part(run: evalkit.Run, tmp_path: Path) -> None:
    played = Played.open(run.path)
    _, preference = export_trl(played, tmp_path)
    pairs = _lines(preference)
    by_key = {(e.key.arm, e.key.env_seed, e.key.repetition): e for e in played.trajectories()}
    assert pairs
    for pair in pairs:
        won, lost = (
            [
                episode
                for (arm, seed, _), episode in by_key.items()
                if arm == pair[f"{side}_arm"] and seed == pair["env_seed"]
            ]
            for side in ("chosen", "rejected")
        )
        turn = pair["turn"]
        found = [
            (a, b)
            for a in won
            for b in lost
            if a.success and not b.success and turn < min(len(a.turns), len(b.turns))
            and [t.completion for t in a.turns[:turn]] == [t.completion for t in b.turns[:turn]]
            and pair["chosen"][0]["content"] == a.turns[turn].completion
            and pair["rejected"][0]["content"] == b.turns[turn].completion
        ]  # fmt: skip
        assert found
        assert pair["prompt"] == as_dicts(played.prompts(found[0][0])[turn])
        assert pair["chosen"] != pair["rejected"]
    unique = {orjson.dumps([p["prompt"], p["chosen"], p["rejected"]]) for p in pairs}
    assert len(unique) == len(pairs)


def test_episodes_that_never_saw_the_same_prompt_make_no_pair(tmp_path: Path) -> None:
    def by_strategy(ask: Ask) -> str:
        asks_for_notes = "scratchpad" in ask.messages[0].content
        return f"<action>{'up' if asks_for_notes else ask.env.oracle()}</action>"

    run = evalkit.evaluate(
        FakePolicy(by_strategy), "key_door", strategy=["NO_HISTORY", "SCRATCHPAD"], seeds="0:3",
        out=tmp_path,
    )  # fmt: skip
    assert [row["success_rate"] for row in run.summary] == [1.0, 0.0]
    sft, preference = export_trl(Played.open(run.path), tmp_path)
    assert len(_lines(sft)) > 0
    assert preference.read_bytes() == b""


@pytest.mark.slow
def test_trl_takes_them_for_conversations(run: evalkit.Run, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data_utils = pytest.importorskip("trl.data_utils")
    for file in export_trl(Played.open(run.path), tmp_path):
        loaded = datasets.Dataset.from_list(_lines(file))
        assert data_utils.is_conversational(loaded[0])
        names = {"prompt", "completion"} if file.stem == "sft" else {"prompt", "chosen", "rejected"}
        assert names <= set(loaded.column_names)
