"""An example of a shaped reward: the env's return with small bonuses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evalkit.record.trajectory import Trajectory
from train.errors import BadConfig
from train.rewards.base import Reward, Scored, Unscored


class Shaped(Reward):
    """The env's return, a bonus for valid turns and for success, and a price for each turn.

    reward = return + valid_bonus * (valid turns / turns) + turn_cost * turns
           + success_bonus * (1 if it succeeded else 0)

    What is shaped is what is learned: a `valid_bonus` near the worth of winning teaches to be legal
    and lose. Compare policies by the env's return, which evalkit reports, never by this.
    """

    def __init__(
        self, *, valid_bonus: float = 0.0, turn_cost: float = 0.0, success_bonus: float = 0.0
    ) -> None:
        """Check the terms; with none given it is the env's return.

        Raises:
            BadConfig: a term is no finite number, a bonus is below 0, or `turn_cost` above 0.

        """
        self.valid_bonus = _number("valid_bonus", valid_bonus)
        self.turn_cost = _number("turn_cost", turn_cost)
        self.success_bonus = _number("success_bonus", success_bonus)
        for name, bonus in (("valid_bonus", valid_bonus), ("success_bonus", success_bonus)):
            if bonus < 0:
                raise BadConfig(f"reward.args.{name} must be at least 0, not {bonus:g}")
        if turn_cost > 0:
            raise BadConfig(
                "reward.args.turn_cost is added for each turn and must be at most 0, "
                f"not {turn_cost:g}"
            )

    async def score(self, episodes: Sequence[Trajectory]) -> Sequence[Scored | Unscored]:
        """Return the shaped return of each episode, with its parts."""
        return [self._verdict(episode) for episode in episodes]

    def _verdict(self, episode: Trajectory) -> Scored | Unscored:
        if not episode.scored:
            return Unscored(reason=f"the episode ended by {episode.stop_reason}", retry=False)
        turns = len(episode.turns)
        valid = sum(turn.valid for turn in episode.turns)
        parts = {
            "return": episode.return_,
            "valid": self.valid_bonus * valid / turns if turns else 0.0,
            "turns": self.turn_cost * turns,
            "success": self.success_bonus * episode.success,
        }
        return Scored(reward=sum(parts.values()), parts=parts)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadConfig(f"reward.args.{name} must be a finite number, not {value!r}")
    return float(value)
