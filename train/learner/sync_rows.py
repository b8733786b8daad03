"""From groups to what TRL wants of a `rollout_func`: one row for each prompt. No torch.

A prompt is the number of a group, which names its env seed; TRL gives each as often as a group has
episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from train.errors import RolloutFailed
from train.rollouts.rows import Episode, Group, Row


def step_of(prompts: Sequence[str], group_size: int) -> int:
    """Return the step (from 1) whose prompts these are: each group's number, once per episode.

    Raises:
        RolloutFailed: they are not those of one whole step, in order.

    """
    numbers = [int(prompt) for prompt in prompts]
    first, count = numbers[0], len(numbers) // group_size
    expected = [first + at // group_size for at in range(count * group_size)]
    if numbers != expected or first % count:
        raise RolloutFailed(
            f"expected the prompts of one step, {group_size} for each of {count} groups in order, "
            f"found groups {sorted(set(numbers))[:8]}"
        )
    return first // count + 1


def assemble(groups: Sequence[Group], group_size: int, filler: int) -> dict[str, list[Any]]:
    """Return what TRL expects of a `rollout_func`, one row for each episode.

    TRL wants `group_size` rows of every group. In the place of an episode that could not be
    scored stands the token `filler`, not trained on, with no reward: TRL leaves it out of the
    group's mean.

    Raises:
        RolloutFailed: an episode has several rows.

    """
    names = ("prompt_ids", "completion_ids", "env_mask", "logprobs", "told_reward")
    told: dict[str, list[Any]] = {name: [] for name in names}
    for group in groups:
        missing = group_size - len(group.episodes)
        lines = [_line(episode, filler) for episode in group.episodes]
        for line in [*lines, *[_empty(filler, None)] * missing]:
            for name, value in zip(names, line, strict=True):
                told[name].append(value)
    return told


def _line(episode: Episode, filler: int) -> tuple[Any, ...]:
    if not episode.rows:
        return _empty(filler, episode.reward)
    if len(episode.rows) > 1:
        raise RolloutFailed(
            f"the episode of seed {episode.env_seed} has {len(episode.rows)} rows, because its "
            "prompts do not go on from each other; learn.mode=sync takes one: use learn.mode=async"
        )
    return (*split(episode.rows[0]), episode.reward)


def split(row: Row) -> tuple[list[int], list[int], list[int], list[float]]:
    """Cut a row where the policy begins: its prompt, and ids, mask and logprobs from there on."""
    first = int(row.trained.argmax())
    return (
        row.ids[:first].tolist(),
        row.ids[first:].tolist(),
        row.trained[first:].tolist(),
        row.logprobs[first:].tolist(),
    )


def _empty(filler: int, reward: float | None) -> tuple[Any, ...]:
    return ([filler], [filler], [0], [0.0], reward)


def told_reward(told_reward: list[float | None], **_: object) -> list[float | None]:
    """Return the rewards that came with the rollouts: TRL's reward function."""
    return told_reward
