"""Counts of a run in progress: written by the runner, read by whoever shows them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from evalkit.record.trajectory import Trajectory


@dataclass(slots=True)
class ArmTally:
    """What an arm has done so far."""

    episodes: int = 0
    scored: int = 0
    successes: int = 0
    errors: int = 0


@dataclass(slots=True)
class Tally:
    """Counts of a run in progress, read by whoever shows them."""

    total_episodes: int
    arms: dict[str, ArmTally]
    turns: int = 0
    """Calls answered in this session, not counting those read from the journal."""
    started_s: float = field(default_factory=time.monotonic)
    at_once: int | None = None
    """Episodes that are played at once for now, where that adapts to the servers."""
    episodes_before: int = 0
    """Episodes that were finished when this session began."""
    may_stop: bool = False
    """Whether the total is a budget: the run ends when it is decided."""

    @property
    def episodes(self) -> int:
        """Episodes finished, earlier sessions included."""
        return sum(arm.episodes for arm in self.arms.values())

    def add(self, trajectory: Trajectory) -> None:
        """Count a finished episode."""
        arm = self.arms[trajectory.key.arm]
        arm.episodes += 1
        arm.scored += trajectory.scored
        arm.successes += trajectory.success
        arm.errors += not trajectory.scored
