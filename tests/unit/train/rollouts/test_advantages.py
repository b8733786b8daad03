"""Advantages: centred in their group, scaled as TRL does, and the control that shuffles rewards."""

import random
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import Scale
from train.rollouts.advantages import EPSILON, with_advantages
from train.rollouts.rows import Episode, Group

REWARDS = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 3))
STEPS = st.lists(st.lists(REWARDS, min_size=1, max_size=6), min_size=1, max_size=5)
FAST = settings(max_examples=60, deadline=None)


def group(rewards: Sequence[float], index: int = 0) -> Group:
    return Group(
        index=index,
        env_seed=2**32 + index,
        episodes=tuple(
            Episode(
                env_seed=2**32 + index,
                repetition=number,
                rows=(),
                env_return=reward,
                reward=reward,
                success=False,
                turns=1,
            )
            for number, reward in enumerate(rewards)
        ),
        started_version=0,
    )


def step(rewards: Sequence[Sequence[float]]) -> list[Group]:
    return [group(some, index) for index, some in enumerate(rewards)]


def advantages(groups: Sequence[Group]) -> list[list[float]]:
    return [[episode.advantage for episode in each.episodes] for each in groups]


def test_the_numbers_of_trl() -> None:
    """Two groups by hand: Bessel's correction, epsilon 1e-4, the std of the step's rewards."""
    rewards = [[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]
    flat = [reward for some in rewards for reward in some]
    none = [[-2.0, -1.0, 3.0], [-1.0, -1.0, 2.0]]
    for scale, divisors in (
        (Scale.NONE, [1.0, 1.0]),
        (Scale.GROUP, [statistics.stdev(some) + 1e-4 for some in rewards]),
        (Scale.BATCH, [statistics.stdev(flat) + 1e-4] * 2),
    ):
        found = advantages(with_advantages(step(rewards), scale))
        for centred, divisor, row in zip(none, divisors, found, strict=True):
            assert row == pytest.approx([value / divisor for value in centred], rel=1e-12)


@given(STEPS, st.sampled_from(Scale))
@FAST
def test_each_group_sums_to_nothing(rewards: list[list[float]], scale: Scale) -> None:
    for some in advantages(with_advantages(step(rewards), scale)):
        assert sum(some) == pytest.approx(0.0, abs=1e-6)


@given(STEPS, st.sampled_from(Scale), st.floats(-50, 50))
@FAST
def test_a_shift_of_a_groups_rewards_changes_nothing(
    rewards: list[list[float]], scale: Scale, shift: float
) -> None:
    moved = [[reward + shift for reward in some] for some in rewards]
    before = advantages(with_advantages(step(rewards), scale))
    after = advantages(with_advantages(step(moved), scale))
    for some, others in zip(before, after, strict=True):
        assert some == pytest.approx(others, abs=1e-6, rel=1e-6)


@given(STEPS, st.floats(0.5, 20))
@FAST
def test_the_scale_of_rewards_matters_only_unscaled(
    rewards: list[list[float]], factor: float
) -> None:
    larger = [[reward * factor for reward in some] for some in rewards]
    plain = advantages(with_advantages(step(rewards), Scale.NONE))
    scaled = advantages(with_advantages(step(larger), Scale.NONE))
    for some, others in zip(plain, scaled, strict=True):
        assert [value * factor for value in some] == pytest.approx(others, abs=1e-6)


def test_group_scale_gives_deviation_one_and_forgets_the_unit() -> None:
    small, large = step([[0.0, 1.0, 5.0]]), step([[0.0, 1000.0, 5000.0]])
    (first,) = advantages(with_advantages(small, Scale.GROUP))
    (second,) = advantages(with_advantages(large, Scale.GROUP))
    assert statistics.stdev(first) == pytest.approx(1.0, abs=2 * EPSILON)
    assert first == pytest.approx(second, rel=1e-3)


def test_batch_scale_keeps_the_relation_of_groups() -> None:
    found = advantages(with_advantages(step([[0.0, 1.0], [0.0, 10.0]]), Scale.BATCH))
    assert found[1][1] == pytest.approx(10 * found[0][1])


@pytest.mark.parametrize("scale", Scale)
def test_what_is_flat_gets_exactly_nothing(scale: Scale) -> None:
    rewards = [[0.1 + 0.2, 0.3, 0.3], [7.0], [0.0, 1.0]]
    found = advantages(with_advantages(step(rewards), scale))
    assert found[0] == [0.0, 0.0, 0.0]
    assert found[1] == [0.0]
    assert found[2][0] < 0 < found[2][1]


def test_a_step_of_nothing_and_a_group_of_nothing() -> None:
    assert with_advantages([], Scale.BATCH) == ()
    assert advantages(with_advantages(step([[]]), Scale.BATCH)) == [[]]


@given(STEPS, st.integers(0, 2**16))
@FAST
def test_shuffling_moves_rewards_and_nothing_else(rewards: list[list[float]], seed: int) -> None:
    groups = step(rewards)
    found = with_advantages(groups, Scale.NONE, random.Random(seed))
    before = [episode for each in groups for episode in each.episodes]
    after = [episode for each in found for episode in each.episodes]
    assert sorted(e.reward for e in before) == sorted(e.reward for e in after)
    assert [e.env_return for e in before] == [e.env_return for e in after]
    again = with_advantages(groups, Scale.NONE, random.Random(seed))
    assert again == found
    for each in found:
        if each.is_flat:
            assert all(episode.advantage == 0.0 for episode in each.episodes)


def test_shuffling_crosses_groups_and_comes_first() -> None:
    groups = step([[1.0] * 4, [0.0] * 4])
    found = with_advantages(groups, Scale.NONE, random.Random(1))
    assert any(value for some in advantages(found) for value in some)
    for some, each in zip(advantages(found), found, strict=True):
        rewards = [episode.reward for episode in each.episodes]
        mean = statistics.fmean(rewards)
        assert some == pytest.approx([reward - mean for reward in rewards])


def test_rewards_keep_their_place_without_shuffling() -> None:
    groups = step([[1.0, 0.0], [2.0, 5.0]])
    found = with_advantages(groups, Scale.GROUP)
    assert [e.reward for each in found for e in each.episodes] == [1.0, 0.0, 2.0, 5.0]
    assert groups[0].episodes[0].advantage == 0.0, "the argument is left as it was"
