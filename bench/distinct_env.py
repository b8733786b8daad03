"""key_door whose observations never repeat: the worst case for sharing texts between episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envs.base import Info, StepResult
from envs.games.key_door import KeyDoor


class Distinct(KeyDoor):
    """Adds the seed and the turn to every observation."""

    def reset(self, *, seed: int, options: Mapping[str, Any] | None = None) -> tuple[str, Info]:
        """Start the episode of `seed`."""
        self.seed = seed
        observation, info = super().reset(seed=seed, options=options)
        return f"{observation} (seed {seed}, turn 0)", info

    def step(self, action: str) -> StepResult:
        """Take one turn."""
        observation, reward, terminated, truncated, info = super().step(action)
        turn = self.state()["turn"]
        return f"{observation} (seed {self.seed}, turn {turn})", reward, terminated, truncated, info
