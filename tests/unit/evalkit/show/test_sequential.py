"""Sequential comparisons from recorded numbers: looks, words, and what a stop saved."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from evalkit.judge.deciding import Deciding
from evalkit.judge.saved import FixedSizes
from evalkit.judge.sequential import Look, StoppingRule, Verdict, judge_sequence
from evalkit.record.numbers import ArmNumbers
from evalkit.show.sequential import (
    SeedLook,
    Sequential,
    look_words,
    savings_words,
    sequential,
    sequential_rows,
    sequential_words,
)

CONFIG: dict[str, Any] = {
    "stop": "decided",
    "stop_on": "success",
    "alpha": 0.05,
    "margin": None,
    "span": 1.0,
    "k": 1,
    "seeds": list(range(1_000)),
}
LOOK = Look(
    n_pairs=1_195,
    diff=0.103,
    lo=0.012,
    hi=0.198,
    level=0.95,
    log_e=3.5,
    p_anytime=0.0304,
    verdict=Verdict.BETTER,
)
FOUND = Sequential(
    a="A",
    b="B",
    deciding=Deciding.SUCCESS,
    margin=0.02,
    looks=(SeedLook(env_seed=1_194, look=LOOK),),
    verdict=Verdict.BETTER,
    n_lost=0,
    n_episodes=2_390,
    fixed=FixedSizes(effect=0.103, paired=1_500, unpaired=1_100),
    tokens_per_episode=1_000.0,
)
FACTS = "(95 % confidence sequence +1.2..+19.8, e = 33.1, anytime p=.030)"


def numbers(successes: list[float], lost: tuple[int, ...] = ()) -> ArmNumbers:
    """Return what an arm scored, seed by seed."""
    arm = ArmNumbers(success={n: [won] for n, won in enumerate(successes) if n not in lost})
    arm.lost.update(lost)
    return arm


def drawn(rate: float, n: int) -> list[float]:
    rng = random.Random(f"{rate}")
    return [float(rng.random() < rate) for _ in range(n)]


def test_looks_thin_out_and_the_last_one_is_the_verdict() -> None:
    a, b = drawn(0.5, 1_000), drawn(0.61, 1_000)
    (found,) = sequential(CONFIG, {"A": numbers(a), "B": numbers(b)}, [("A", "B")])
    expected = judge_sequence([y - x for x, y in zip(a, b, strict=True)], StoppingRule())
    assert found.last == expected
    assert expected.n_pairs > 300
    at = [seen.look.n_pairs for seen in found.looks]
    assert at[:201] == [*range(1, 201), 210]
    assert (at[-1], found.looks[-1].env_seed) == (expected.n_pairs, expected.n_pairs - 1)
    assert len(at) == len(set(at)) < 250
    rows = list(sequential_rows("run", [found]))
    assert [row["n_pairs"] for row in rows] == at
    assert {row["verdict"] for row in rows[:-1]} == {"undecided"}
    assert rows[-1]["verdict"] == "better"


def test_the_seeds_are_judged_in_the_order_of_the_run() -> None:
    order = [2, 0, 1]
    arms = {"A": numbers([1.0, 0.0, 0.0]), "B": numbers([1.0, 0.0, 1.0])}
    (found,) = sequential({**CONFIG, "seeds": order}, arms, [("A", "B")])
    assert [seen.env_seed for seen in found.looks] == order
    assert [seen.look.diff for seen in found.looks] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert found.verdict is Verdict.OUT_OF_BUDGET


def test_a_run_that_is_not_finished_is_undecided_as_far_as_it_goes() -> None:
    arms = {"A": numbers([1.0] * 9, lost=(2,)), "B": numbers([0.0] * 4)}
    (found,) = sequential(CONFIG, arms, [("A", "B")])
    assert (found.verdict, found.n_lost, found.n_episodes) == (Verdict.CONTINUE, 1, 6)
    assert found.fixed is None
    assert sequential_words(found).startswith("undecided between A and B: after 3 pairs: -100.0 ")
    assert sequential_words(found).endswith("; 1 seed was lost to errors")


def test_a_run_of_fixed_size_has_none() -> None:
    arms = {"A": numbers([1.0]), "B": numbers([0.0])}
    assert sequential({**CONFIG, "stop": None}, arms, [("A", "B")]) == []
    assert sequential({}, arms, [("A", "B")]) == []


def test_no_seed_in_common_is_no_data() -> None:
    arms = {"A": numbers([1.0], lost=(0,)), "B": numbers([0.0])}
    (found,) = sequential({**CONFIG, "seeds": [0]}, arms, [("A", "B")])
    assert found.last is None
    said = "no data: A and B share no finished seed; 1 seed was lost to errors"
    assert sequential_words(found) == said
    assert savings_words(found) == ""


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (Verdict.BETTER, "B is better than A: decided after"),
        (Verdict.WORSE, "B is worse than A: decided after"),
        (Verdict.EQUIVALENT, "A and B are equivalent within 2.0 points after"),
        (Verdict.OUT_OF_BUDGET, "undecided between A and B, out of budget: after"),
    ],
)
def test_every_verdict_has_its_words(verdict: Verdict, words: str) -> None:
    said = sequential_words(replace(FOUND, verdict=verdict))
    assert said == f"{words} 1,195 pairs: +10.3 points success {FACTS}"


def test_savings_are_said_both_ways() -> None:
    assert savings_words(FOUND) == (
        "A against B took 2,390 episodes: 610 fewer (20 %, about 610,000 tokens) than the 3,000 of "
        "a paired run of fixed size, 190 more (9 %, about 190,000 tokens) than the 2,200 of an "
        "unpaired one. Those see the observed difference, 10.3 points, 80 % of the time"
    )
    silent = savings_words(replace(FOUND, tokens_per_episode=None, verdict=Verdict.EQUIVALENT))
    assert "610 fewer (20 %) than" in silent
    assert "Those see the margin, 10.3 points" in silent
    assert savings_words(replace(FOUND, fixed=None)) == ""
    same = savings_words(replace(FOUND, n_episodes=3_000))
    assert "3,000 episodes: as many as the 3,000 of a paired run of fixed size, 800 more" in same


def test_a_look_is_said_while_it_plays() -> None:
    going = replace(LOOK, verdict=Verdict.CONTINUE)
    said = "B - A after 1,195 pairs: +10.3 points (+1.2..+19.8), e=33.1"
    assert look_words(("A", "B"), going, Deciding.SUCCESS) == said
    assert look_words(("A", "B"), LOOK, Deciding.SUCCESS) == f"{said}, better"
    returns = look_words(("A", "B"), going, Deciding.RETURN)
    assert returns == "B - A after 1,195 pairs: +0.10 (+0.01..+0.20), e=33.1"
    nothing = replace(going, n_pairs=0, diff=None)
    assert look_words(("A", "B"), nothing, Deciding.SUCCESS) == "B - A: no pair yet"
