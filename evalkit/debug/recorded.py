"""Recorded answers, given again: each only to the prompt that it answered, byte for byte.

Lives here: the policy that replays, and how two records of an episode differ. Knows no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from evalkit.errors import CallFailed, ContextOverflow, Failure, ReplayDiffers
from evalkit.play.policy import Ask, Completion, Policy
from evalkit.record.trajectory import Outcome, Trajectory, Turn


class Recording(Policy):
    """The answers of recorded turns, and then the failure that ended them, where one did.

    A prompt that is not the recorded one is refused as too long, as it was when it was recorded: a
    strategy that may forget then forgets, until the prompt is the recorded one or nothing is left.
    """

    def __init__(self, turns: Sequence[Turn], end: Trajectory | None = None) -> None:
        self._turns = turns
        self._end = end

    async def complete(self, ask: Ask) -> Completion:
        """Give the recorded answer.

        Raises:
            ContextOverflow: the prompt is not the recorded one, or overflowed when it was recorded.
            CallFailed: the recorded call failed.
            ReplayDiffers: there was no such call.

        """
        if ask.turn < len(self._turns):
            turn = self._turns[ask.turn]
            if turn.prompt_digest != ask.prompt:
                raise ContextOverflow(f"the prompt of turn {ask.turn} is not the recorded one")
            return completion_of(turn)
        if self._end is None or self._end.failure in {None, Failure.ENV_BUG}:
            raise ReplayDiffers(f"the record has no turn {ask.turn}: it ended before")
        message = self._end.failure_message or ""
        if self._end.failure is Failure.CONTEXT_OVERFLOW:
            raise ContextOverflow(message)
        raise CallFailed(self._end.failure, message)


def completion_of(turn: Turn) -> Completion:
    """Return the answer that a turn records, as far as it decides what is played."""
    return Completion(
        text=turn.completion,
        reasoning=turn.reasoning,
        finish_reason=turn.finish_reason,
        refusal=turn.outcome is Outcome.REFUSAL,
        prompt_tokens=turn.prompt_tokens,
        completion_tokens=turn.completion_tokens,
        policy_version=turn.policy_version,
    )


def turn_difference(recorded: Turn, replayed: Turn) -> str:
    """Say in what a replayed turn is not the recorded one; "" where it is."""
    return _difference(f"turn {recorded.turn}", recorded, replayed)


def difference(recorded: Trajectory, replayed: Trajectory) -> str:
    """Say in what a replayed episode is first not the recorded one; "" where it is."""
    if recorded == replayed:
        return ""
    for was, now in zip(recorded.turns, replayed.turns, strict=False):
        if was != now:
            return turn_difference(was, now)
    if len(replayed.turns) < len(recorded.turns):
        return (
            f"turn {len(replayed.turns)}: the prompt is not the recorded one"
            if replayed.failure is Failure.CONTEXT_OVERFLOW
            else f"it ends after turn {len(replayed.turns)}, {replayed.stop_reason.value}: "
            f"{len(recorded.turns)} turns are recorded"
        )
    return _difference("at its end", recorded, replayed)


def _difference(where: str, was: Turn | Trajectory, now: Turn | Trajectory) -> str:
    for field in fields(was):
        old, new = getattr(was, field.name), getattr(now, field.name)
        if old != new:
            return f"{where}: {field.name} is {_short(new)}, and {_short(old)} is recorded"
    return ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
