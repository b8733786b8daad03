"""Plays and scores groups: evalkit's episode loop in token mode, one env seed for a whole group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from envs import TextEnv
from evalkit.play.rollout import Arm, play
from evalkit.play.strategies import Strategy
from evalkit.play.tokens import TokenModel, TokenPolicy, TokenTurn
from evalkit.record.trajectory import Key, StopReason, Trajectory
from train.errors import RolloutFailed
from train.rewards.base import Reward
from train.rewards.scoring import score_group
from train.rollouts.ledger import rows_of
from train.rollouts.rows import Episode, Group
from train.rollouts.seeds import group_seed

_ARM = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One episode as it was played, not yet scored."""

    trajectory: Trajectory
    turns: tuple[TokenTurn, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is played, and how often."""

    run_id: str
    run_seed: int
    make_env: Callable[[], TextEnv]
    strategy: Strategy
    group_size: int
    concurrency: int
    """Episodes in flight at once."""
    attempts: int
    """Tries of an episode that infrastructure cuts short."""
    reward_attempts: int


class Player:
    """Plays groups on one served model, any number of them at once."""

    def __init__(
        self,
        plan: Plan,
        model: TokenModel,
        reward: Reward,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._plan = plan
        self._model = model
        self._reward = reward
        self._clock = clock
        self._sleep = sleep
        self._free = asyncio.Semaphore(plan.concurrency)
        self.replayed = 0
        """Episodes that were played again because infrastructure cut them short."""

    async def play_group(self, index: int, version: int) -> Group:
        """Play and score one group.

        Raises:
            RolloutFailed: the env raises, or episodes keep being cut short.
            RewardFailed: the reward breaks its port.
            EvalkitError: the server does not take the key, lost the model, or is away for good.

        """
        started_s = self._clock()
        env_seed = group_seed(self._plan.run_seed, index)
        keys = [
            Key(env_seed=env_seed, repetition=repetition, arm=_ARM)
            for repetition in range(self._plan.group_size)
        ]
        async with asyncio.TaskGroup() as tasks:
            playing = [tasks.create_task(self._play(key)) for key in keys]
        played = [task.result() for task in playing]
        trajectories = [each.trajectory for each in played]
        scores = await score_group(
            self._reward, trajectories, self._plan.reward_attempts, sleep=self._sleep
        )
        return Group(
            index=index,
            env_seed=env_seed,
            episodes=tuple(
                _episode(each, score.reward)
                for each, score in zip(played, scores, strict=True)
                if score is not None
            ),
            started_version=version,
            dropped=sum(score is None for score in scores),
            played_s=self._clock() - started_s,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._model.aclose()
        await self._reward.aclose()

    async def _play(self, key: Key) -> Played:
        """Play one episode to its end, however often infrastructure cuts it short."""
        for attempt in range(self._plan.attempts):
            if attempt:
                self.replayed += 1
                await self._sleep(2.0 ** (attempt - 1))
            policy = TokenPolicy(self._model)
            async with self._free:
                trajectory = await play(self._arm(policy), key)
            if trajectory.stop_reason is StopReason.ENV_ERROR:
                raise RolloutFailed(
                    f"the env raised in seed {key.env_seed}, turn {len(trajectory.turns)}: "
                    f"{trajectory.failure_message}"
                )
            if not trajectory.turns and trajectory.stop_reason is StopReason.CONTEXT_OVERFLOW:
                raise RolloutFailed(
                    f"the first prompt does not fit: {trajectory.failure_message}; raise "
                    "learn.max_row_tokens, or the server's max_model_len"
                )
            if trajectory.stop_reason is not StopReason.INFRA_ERROR:
                return Played(trajectory=trajectory, turns=tuple(policy.turns))
        raise RolloutFailed(
            f"seed {key.env_seed} was cut short {self._plan.attempts} times, the last time by: "
            f"{trajectory.failure_message}"
        )

    def _arm(self, policy: TokenPolicy) -> Arm:
        plan = self._plan
        return Arm(
            name=_ARM,
            policy=policy,
            strategy=plan.strategy,
            make_env=plan.make_env,
            run_id=plan.run_id,
            run_seed=plan.run_seed,
        )


def _episode(played: Played, reward: float) -> Episode:
    trajectory = played.trajectory
    return Episode(
        env_seed=trajectory.key.env_seed,
        repetition=trajectory.key.repetition,
        rows=rows_of(played.turns),
        env_return=trajectory.return_,
        reward=reward,
        success=trajectory.success,
        turns=len(trajectory.turns),
    )
