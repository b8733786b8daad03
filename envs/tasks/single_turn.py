"""What envs of one question and one answer have in common.

Lives here: the course of such an episode. Knows neither questions nor answers.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from envs.base import EpisodeOver, Info, StepResult, TextEnv

NO_NOTES = "There is one question and one answer: no notes are needed."


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an answer was worth. `said`: in words; `error`: why it is none, if it is none."""

    reward: float
    right: bool
    said: str
    error: str | None = None


class SingleTurn(TextEnv):
    """Ask once, judge the answer: terminated with it, truncated if the reply held none.

    Actions are open-ended here: `legal_actions` is a sample of them that holds the right one, for
    the random baseline to draw from; `step` takes any that reads as an answer. What is shown to a
    model (the prompts, `action_pattern`, `tools`) never depends on that sample.

    `info["event"]`: right, wrong, no_answer.
    """

    max_turns = 1

    def __init__(self) -> None:
        self._number = 0
        self._over, self._right = True, False

    @abstractmethod
    def open(self, number: int) -> str:
        """Make the question of this number the present one; return it."""

    @abstractmethod
    def judge(self, action: str) -> Verdict:
        """Judge an answer to the present question; never raises."""

    @abstractmethod
    def about(self) -> Info:
        """Return what `reset` tells besides the question: where it is from."""

    def number(self, seed: int) -> int:
        """Return the number of the question that `seed` asks."""
        return seed

    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> tuple[str, Info]:
        """Ask the question of `seed`.

        Raises:
            ValueError: `options` are given: there are none.

        """
        if options:
            raise ValueError(f"{self.id} takes no options, got {dict(options)}")
        self._number = self.number(seed)
        self._over = self._right = False
        return self.open(self._number), self.about()

    def step(self, action: str) -> StepResult:
        """Judge the answer; see `TextEnv.step`."""
        if self._over:
            raise EpisodeOver("the episode is over or was never reset: call reset first")
        self._over = True
        verdict = self.judge(action)
        if verdict.error is not None:
            info: Info = {"illegal": True, "error": verdict.error, "event": "no_answer"}
            return f"That was no answer: {verdict.error}.", 0.0, False, True, info
        self._right = verdict.right
        event = "right" if verdict.right else "wrong"
        return verdict.said, verdict.reward, True, False, {"event": event}

    @property
    def success(self) -> bool:
        """Whether the answer was right."""
        return self._right

    def state(self) -> dict[str, Any]:
        """Return the question's number and what became of it."""
        return {"number": self._number, "over": self._over, "right": self._right}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._number = state["number"]
        self.open(self._number)
        self._over, self._right = state["over"], state["right"]

    def clone(self) -> Self:
        """Return an independent copy: every field is immutable."""
        return copy.copy(self)

    @property
    def scratchpad_prompt(self) -> str:
        """That there is nothing to note."""
        return NO_NOTES
