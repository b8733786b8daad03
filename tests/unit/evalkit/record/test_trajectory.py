"""Trajectories as lines of JSON, and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import DamagedRun, Failure
from evalkit.record.trajectory import Key, Memory, Outcome, StopReason, Trajectory, Turn

counts = st.none() | st.integers(0, 2**40)
texts = st.text(max_size=20)
words = st.none() | texts
numbers = st.floats(allow_nan=False, allow_infinity=False)

turns = st.builds(
    Turn,
    turn=st.integers(0, 99),
    observation=texts,
    completion=texts,
    reasoning=words,
    action=words,
    outcome=st.sampled_from(Outcome),
    valid=st.booleans(),
    reward=numbers,
    event=words,
    error=words,
    memory=st.none() | st.sampled_from(Memory),
    finish_reason=words,
    prompt_tokens=counts,
    completion_tokens=counts,
    request_seed=st.integers(0, 2**31),
    prompt_digest=texts,
    policy_version=words,
)
trajectories = st.builds(
    Trajectory,
    key=st.builds(Key, env_seed=st.integers(0, 2**62), repetition=st.integers(0, 9), arm=texts),
    turns=st.lists(turns, max_size=3).map(tuple),
    final_observation=texts,
    success=st.booleans(),
    return_=numbers,
    optimal_turns=counts,
    stop_reason=st.sampled_from(StopReason),
    failure=st.none() | st.sampled_from(Failure),
    failure_message=words,
)


@given(trajectory=trajectories)
def test_a_trajectory_survives_the_disk(trajectory: Trajectory) -> None:
    line = trajectory.to_json()
    assert b"\n" not in line
    assert json.loads(line)["format"] == "trajectory/1"
    assert Trajectory.from_json(line) == trajectory
    assert Trajectory.from_json(line).to_json() == line


@pytest.mark.parametrize("stop", StopReason)
def test_errors_are_never_scored(stop: StopReason) -> None:
    trajectory = Trajectory(
        key=Key(env_seed=0, repetition=0, arm="A"),
        turns=(),
        final_observation="",
        success=False,
        return_=0.0,
        optimal_turns=None,
        stop_reason=stop,
    )
    assert trajectory.scored == (stop not in {StopReason.INFRA_ERROR, StopReason.ENV_ERROR})


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"format":"trajectory/2"}',
        b'{"format":"trajectory/1"}',
        b'{"format":"trajectory/1","failure":null,"key":{},"turns":[]}',
        b'{"format":"trajectory/1","failure":"bored","key":{},"turns":[]}',
    ],
)
def test_what_is_no_trajectory_is_damage(line: bytes) -> None:
    with pytest.raises(DamagedRun):
        Trajectory.from_json(line)
