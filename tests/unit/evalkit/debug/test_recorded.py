"""Recorded answers, and how two records differ."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from envs.games.key_door import KeyDoor
from evalkit.debug.recorded import Recording, completion_of, difference
from evalkit.errors import CallFailed, ContextOverflow, Failure, ReplayDiffers
from evalkit.play.baselines import OraclePolicy
from evalkit.play.policy import Completion
from evalkit.play.rollout import Arm, play
from evalkit.play.strategies import FullHistory
from evalkit.record.trajectory import Key, StopReason, Trajectory
from evalkit.testing import FakePolicy, Reply

KEY = Key(env_seed=7, repetition=0, arm="A")
ARM = Arm(
    name="A",
    policy=OraclePolicy(),
    strategy=FullHistory(),
    make_env=lambda: KeyDoor(size=3, max_turns=9),
    run_id="run",
)


def played(arm: Arm = ARM) -> Trajectory:
    return asyncio.run(play(arm, KEY))


def replayed(trajectory: Trajectory) -> Trajectory:
    return played(replace(ARM, policy=Recording(trajectory.turns, trajectory)))


@pytest.mark.parametrize(
    "reply",
    [
        "<action>up</action>",
        "<think>a</think><action>up</action>",
        "up",
        Completion(text="<action>up", finish_reason="length", prompt_tokens=3),
        Completion(text="No.", refusal=True, completion_tokens=2, policy_version="v3"),
        Completion(text="<action>up</action>", reasoning="because", finish_reason=None),
        CallFailed(Failure.TIMEOUT, "slow"),
        ContextOverflow("full"),
    ],
)
def test_every_kind_of_answer_plays_the_same_again(reply: Reply) -> None:
    policy = FakePolicy(lambda ask: reply if ask.turn == 2 else "<action>down</action>")
    trajectory = played(replace(ARM, policy=policy))
    assert difference(trajectory, replayed(trajectory)) == ""
    if isinstance(reply, Completion):
        assert completion_of(trajectory.turns[2]) == reply


def test_a_record_that_stops_too_early_is_said_to() -> None:
    trajectory = played()
    short = replace(trajectory, turns=trajectory.turns[:2])
    with pytest.raises(ReplayDiffers, match="the record has no turn 2: it ended before"):
        replayed(short)


def test_the_first_thing_that_differs_is_named() -> None:
    trajectory = played()
    turns = trajectory.turns
    long = "x" * 200
    cases = {
        f"turn 1: observation is {turns[1].observation!r}"[:60]: replace(
            trajectory, turns=(turns[0], replace(turns[1], observation=long), *turns[2:])
        ),
        "turn 0: the prompt is not the recorded one": replace(
            trajectory, turns=(replace(turns[0], prompt_digest="0" * 16), *turns[1:])
        ),
        "at its end: success is True, and False is recorded": replace(trajectory, success=False),
        f"it ends after turn {len(turns)}, terminated: {len(turns) + 1} turns": replace(
            trajectory, turns=(*turns, turns[-1])
        ),
    }
    for said, changed in cases.items():
        found = difference(changed, replayed(changed))
        assert found.startswith(said)
        assert len(found) < 300


def test_an_env_error_is_no_call_that_failed() -> None:
    trajectory = replace(played(), stop_reason=StopReason.ENV_ERROR, failure=Failure.ENV_BUG)
    cut = replace(trajectory, turns=trajectory.turns[:1])
    with pytest.raises(ReplayDiffers, match="no turn 1"):
        replayed(cut)
