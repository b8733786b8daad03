"""The port through which episodes are scored.

A reward may take its time and fail: it is asynchronous, gets episodes in batches, and says of each
one what it is worth or why it cannot say. What cannot be scored is tried again or left out of its
group; it is never worth 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from evalkit.record.trajectory import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What one episode is worth."""

    reward: float
    parts: dict[str, float] = field(default_factory=dict)
    """What it is made of, for the metrics; the parts need not add up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscored:
    """Why one episode could not be scored."""

    reason: str
    retry: bool = True
    """Whether asking again may help."""


class Reward(ABC):
    """Scores episodes."""

    @abstractmethod
    async def score(self, episodes: Sequence[Trajectory]) -> Sequence[Scored | Unscored]:
        """Return one verdict per episode, in order. All are of one group.

        An exception is a bug of the reward and stops the run; what may happen to a judge or a
        sandbox is an `Unscored`.
        """

    async def aclose(self) -> None:  # noqa: B027 - most rewards hold nothing
        """Let go of connections."""

    @classmethod
    def make(cls, **args: Any) -> Self:  # noqa: ANN401 - the config's reward.args
        """Make one from the config's `reward.args`."""
        return cls(**args)
