"""Episodes made up for tests of what is worked out from trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evalkit.record.numbers import ArmNumbers, gather
from evalkit.record.trajectory import Key, Outcome, StopReason, Trajectory, Turn


def turn(number: int, outcome: Outcome = Outcome.OK, **changes: Any) -> Turn:  # noqa: ANN401
    """Make a turn; `changes` are fields of `Turn`."""
    values: dict[str, Any] = {
        "turn": number,
        "observation": "o",
        "completion": outcome.value,
        "reasoning": None,
        "action": "go",
        "outcome": outcome,
        "valid": outcome is Outcome.OK,
        "reward": 0.0,
        "event": None,
        "error": None,
        "memory": None,
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "completion_tokens": 1,
        "request_seed": 0,
        "prompt_digest": f"prompt {number}",
        "policy_version": None,
    }
    return Turn(**{**values, **changes})


def played(
    seed: int,
    arm: str = "A",
    *,
    success: bool = False,
    outcomes: Sequence[Outcome] = (Outcome.OK, Outcome.OK),
    return_: float | None = None,
    repetition: int = 0,
    stop: StopReason = StopReason.TERMINATED,
    **changes: Any,  # noqa: ANN401
) -> Trajectory:
    """Make an episode of a turn for each of `outcomes`; `changes` are fields of every `Turn`."""
    return Trajectory(
        key=Key(env_seed=seed, repetition=repetition, arm=arm),
        turns=tuple(turn(number, outcome, **changes) for number, outcome in enumerate(outcomes)),
        final_observation="",
        success=success,
        return_=float(success) if return_ is None else return_,
        optimal_turns=2,
        stop_reason=stop,
    )


def lost(seed: int, arm: str = "A", stop: StopReason = StopReason.INFRA_ERROR) -> Trajectory:
    """Make an episode that is not scored."""
    return played(seed, arm, return_=-9.0, stop=stop)


def arms_of(**successes: str) -> dict[str, ArmNumbers]:
    """Make arms from texts: the n-th character is "1" where seed n succeeds, "." where lost."""
    return gather(
        [
            lost(seed, arm) if mark == "." else played(seed, arm, success=mark == "1")
            for arm, marks in successes.items()
            for seed, mark in enumerate(marks)
        ],
        successes,
    )
