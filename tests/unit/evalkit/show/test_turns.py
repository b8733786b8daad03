"""Turns to success: what is cut off, what never gets there, and how far means are known."""

from __future__ import annotations

import math

import pytest

from evalkit.record.numbers import gather
from evalkit.record.testing import lost, played
from evalkit.record.trajectory import Outcome, StopReason, Trajectory
from evalkit.show.turns import Endings, endings, horizon, mean_turns, mean_turns_difference

CUT, OVERFLOW = StopReason.TRUNCATED, StopReason.CONTEXT_OVERFLOW


def ends(*trajectories: Trajectory) -> Endings:
    return endings(gather(trajectories, ["A"])["A"])


def of_turns(
    seed: int, turns: int, *, success: bool = False, stop: StopReason = StopReason.TERMINATED
) -> Trajectory:
    return played(seed, success=success, outcomes=[Outcome.OK] * turns, stop=stop)


def test_only_the_turn_budget_cuts_off() -> None:
    found = ends(
        of_turns(0, 3, success=True),
        of_turns(1, 5, stop=CUT),
        of_turns(2, 4),
        of_turns(3, 2, stop=OVERFLOW),
        lost(4),
    )
    assert found == {
        0: ((3.0, True),),
        1: ((5.0, False),),
        2: ((math.inf, False),),
        3: ((math.inf, False),),
    }


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ([], None),
        ([{}], None),
        ([{0: [(math.inf, False)]}], None),
        ([{0: ((3.0, True),), 1: [(7.0, True)]}], 7.0),
        ([{0: [(3.0, True)]}, {0: [(5.0, False)]}], 5.0),
        # after 5 turns nothing is known of the first arm, which one of 9 turns cannot change
        ([{0: ((5.0, False),), 1: [(5.0, True)]}, {0: [(9.0, True)]}], 5.0),
        # an episode that never gets there says what comes after
        ([{0: ((5.0, False),), 1: [(math.inf, False)]}, {0: [(9.0, True)]}], 9.0),
    ],
)
def test_the_horizon_is_as_far_as_all_means_are_known(
    arms: list[Endings], expected: float | None
) -> None:
    assert horizon(arms) == expected


def test_the_mean_counts_what_never_gets_there_as_the_horizon() -> None:
    arm = ends(of_turns(0, 2, success=True), of_turns(1, 1), of_turns(2, 4, success=True))
    found = mean_turns(arm, 10.0)
    assert found is not None
    assert found.value == pytest.approx((2 + 10 + 4) / 3)
    assert 0.0 <= found.lo < found.value < found.hi <= 10.0
    assert mean_turns(arm, None) is None
    assert mean_turns({}, 10.0) is None


def test_a_difference_is_over_shared_seeds() -> None:
    a = ends(*(of_turns(seed, seed + 2, success=True) for seed in range(5)))
    b = ends(*(of_turns(seed, seed + 1, success=True) for seed in range(1, 5)))
    found = mean_turns_difference(a, b, 6.0)
    assert found is not None
    assert found.value == pytest.approx(-1.0)
    assert found.n_seeds == 4
    assert mean_turns_difference(a, {}, 6.0) is None
    assert mean_turns_difference(a, b, None) is None


def test_the_seeds_that_are_shared_may_know_less() -> None:
    a = {0: [(4.0, False)], 1: [(4.0, False)], 2: [(9.0, True)]}
    b = {0: [(2.0, True)], 1: [(8.0, True)]}
    found = mean_turns_difference(a, b, 9.0)
    assert found is not None
    assert found.horizon == 4.0
    assert found.value == pytest.approx((2 + 4) / 2 - 4)
