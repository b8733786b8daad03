"""Several arms, seed by seed: shares of alpha, lost seeds, and until when pairs take them in."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from evalkit.judge.deciding import SequentialArms, next_look
from evalkit.judge.sequential import StoppingRule, Verdict, judge_sequence

RULE = StoppingRule(alpha=0.05, margin=0.2)


def drawn(seeds: int, **rates: float) -> list[dict[str, float | None]]:
    """Return the success of every arm on every seed."""
    rng = random.Random(8)
    return [{arm: float(rng.random() < rate) for arm, rate in rates.items()} for _ in range(seeds)]


def test_every_pair_is_judged_as_alone_at_its_share_of_alpha() -> None:
    played = drawn(600, A=0.5, B=0.5, C=0.9)
    pairs = list(combinations("ABC", 2))
    arms = SequentialArms(pairs, RULE)
    taken = 0
    while not arms.done:
        arms.add(played[taken])
        taken += 1
    for pair in pairs:
        diffs = [(each[pair[1]] or 0.0) - (each[pair[0]] or 0.0) for each in played]
        assert arms.tests[pair].look() == judge_sequence(diffs, RULE.split(3))
    verdicts = {pair: test.verdict for pair, test in arms.tests.items()}
    assert verdicts == {
        ("A", "B"): Verdict.EQUIVALENT,
        ("A", "C"): Verdict.BETTER,
        ("B", "C"): Verdict.BETTER,
    }
    stops = [test.stopped_at for test in arms.tests.values()]
    assert taken == max(stop or 0 for stop in stops)
    assert len(set(stops)) == 3


def test_a_seed_that_an_arm_lost_counts_for_the_other_pairs() -> None:
    arms = SequentialArms([("A", "B"), ("A", "C")], RULE)
    assert arms.add({"A": 1.0, "B": None, "C": 0.0}) == [("A", "C")]
    assert arms.add({"A": 1.0, "B": 1.0, "C": 0.0}) == [("A", "B"), ("A", "C")]
    assert arms.add({"A": None, "B": 1.0, "C": 0.0}) == []
    assert {pair: test.n_pairs for pair, test in arms.tests.items()} == {
        ("A", "B"): 1,
        ("A", "C"): 2,
    }
    assert dict(arms.lost) == {("A", "B"): 2, ("A", "C"): 1}


def test_a_decided_pair_takes_in_no_further_seed() -> None:
    arms = SequentialArms([("A", "B")], RULE)
    counted = [arms.add({"A": 0.0, "B": 1.0}) for _ in range(12)]
    assert counted == [[("A", "B")]] * 9 + [[]] * 3
    assert (arms.done, arms.tests["A", "B"].look().n_pairs) == (True, 9)


def test_progress_is_that_of_the_pair_farthest_from_its_verdict() -> None:
    arms = SequentialArms([("A", "B"), ("A", "C")], StoppingRule(alpha=0.1))
    seen = []
    for _ in range(10):
        seen.append(arms.progress)
        arms.add({"A": 0.0, "B": 1.0, "C": 0.0})
    assert seen == [0.0] * 10
    for _ in range(9):
        arms.add({"A": 0.0, "B": 1.0, "C": 1.0})
        seen.append(arms.progress)
    assert seen[10:] == sorted(seen[10:])
    assert 0.1 < seen[12] < 0.9
    halves = [test.progress for test in arms.tests.values()]
    assert halves[0] == 1.0


@pytest.mark.parametrize("pairs", [[], [("A", "B"), ("A", "B")]])
def test_pairs_are_there_once(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(ValueError, match="one or more distinct pairs"):
        SequentialArms(pairs, RULE)


def test_looks_thin_out() -> None:
    at = [1]
    while at[-1] < 2_000:
        at.append(next_look(at[-1]))
    assert at[:200] == list(range(1, 201))
    assert at[200:204] == [210, 220, 231, 242]
    assert len(at) <= 250
