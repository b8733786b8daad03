"""Prompts made again from what a run recorded."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

import evalkit
from evalkit.errors import BadConfig, CallFailed, ContextOverflow, DamagedRun, Failure
from evalkit.exchange.played import Played, as_dicts
from evalkit.play.policy import Ask
from evalkit.play.strategies import STRATEGIES
from evalkit.testing import FakePolicy, Reply


def _wanders(ask: Ask) -> Reply:
    """Walk about, think aloud, and write notes now and then."""
    move = ("up", "left", "down", "right", "interact")[ask.turn % 5]
    pad = f"<scratchpad>turn {ask.turn}</scratchpad>" if ask.turn % 3 == 0 else ""
    return f"<think>what now</think>{pad}<action>{move}</action>"


@pytest.mark.parametrize("keep_reasoning", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prompts_are_those_that_were_sent(
    tmp_path: Path, strategy: str, *, keep_reasoning: bool
) -> None:
    policy = FakePolicy(_wanders)
    run = evalkit.evaluate(
        policy, "key_door", strategy=strategy, seeds="0:2", k=2, keep_reasoning=keep_reasoning,
        concurrency=1, out=tmp_path,
    )  # fmt: skip
    played = Played.open(run.path)
    made = [prompt for episode in played.trajectories() for prompt in played.prompts(episode)]
    assert [as_dicts(prompt) for prompt in made] == [as_dicts(ask.messages) for ask in policy.asked]


def test_a_history_that_had_to_shrink_is_made_again(tmp_path: Path) -> None:
    def overflows(ask: Ask) -> Reply:
        return ContextOverflow("too long") if len(ask.messages) > 6 else _wanders(ask)

    policy = FakePolicy(overflows)
    run = evalkit.evaluate(
        policy, "key_door", strategy="FULL_HISTORY(overflow=drop_oldest)", seeds="0:1", out=tmp_path
    )
    played = Played.open(run.path)
    (episode,) = played.trajectories()
    assert len(episode.turns) > 4
    assert max(len(prompt) for prompt in played.prompts(episode)) == 6


@pytest.mark.parametrize("overflow", ["stop", "error"])
def test_a_prompt_that_cannot_be_made_again_is_damage(tmp_path: Path, overflow: str) -> None:
    strategy = f"FULL_HISTORY(overflow={overflow})"
    run = evalkit.evaluate("random", "key_door", strategy=strategy, seeds="0:1", out=tmp_path)
    file = run.path / "trajectories.jsonl"
    raw = orjson.loads(file.read_bytes())
    raw["turns"][0]["completion"] += " "
    file.write_bytes(orjson.dumps(raw) + b"\n")
    played = Played.open(run.path)
    (episode,) = played.trajectories()
    with pytest.raises(DamagedRun, match=r"random/0/0, turn 1, cannot be made again"):
        played.prompts(episode)


def test_lost_episodes_have_the_prompts_of_their_turns(tmp_path: Path) -> None:
    gone = CallFailed(Failure.TIMEOUT, "no answer")
    policy = FakePolicy(lambda ask: gone if ask.turn == 2 else _wanders(ask))
    run = evalkit.evaluate(policy, "key_door", seeds="0:1", out=tmp_path)
    played = Played.open(run.path)
    (episode,) = played.trajectories()
    assert len(played.prompts(episode)) == 2


def _manifest(path: Path, change: dict[str, object]) -> None:
    file = path / "manifest.json"
    file.write_bytes(orjson.dumps({**orjson.loads(file.read_bytes()), **change}))


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="is not a run"):
        Played.open(tmp_path)
    run = evalkit.evaluate("oracle", "key_door", seeds="0:1", out=tmp_path)
    env = {"id": "key_door", "version": "1", "digest": "0" * 16, "params": {}}
    _manifest(run.path, {"env": env})
    with pytest.raises(BadConfig, match="the env key_door is not what it was"):
        Played.open(run.path)
    _manifest(run.path, {"finished_at": None})
    with pytest.raises(BadConfig, match="is not finished: python -m evalkit resume"):
        Played.open(run.path)
    _manifest(run.path, {"imported": {"file": "a.eval"}})
    with pytest.raises(BadConfig, match=r"was imported from a\.eval"):
        Played.open(run.path)
