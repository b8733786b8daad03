"""The default reward: what the env itself gave."""

from __future__ import annotations

from collections.abc import Sequence

from evalkit.record.trajectory import Trajectory
from train.rewards.base import Reward, Scored, Unscored


class EnvReturn(Reward):
    """The sum of the env's own rewards."""

    async def score(self, episodes: Sequence[Trajectory]) -> Sequence[Scored | Unscored]:
        """Return the return of each episode that was played to an end of its own."""
        return [_verdict(episode) for episode in episodes]


def _verdict(episode: Trajectory) -> Scored | Unscored:
    if not episode.scored:
        return Unscored(reason=f"the episode ended by {episode.stop_reason}", retry=False)
    return Scored(reward=episode.return_)
