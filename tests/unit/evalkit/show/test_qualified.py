"""What qualifies a report, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from evalkit.record.numbers import ArmNumbers, gather
from evalkit.record.references import Reference
from evalkit.record.testing import arms_of, played
from evalkit.record.trajectory import Outcome
from evalkit.show.report import Report, make_report, markdown

REFERENCES = {
    name: Reference(policy=name, n_episodes=4, successes=1, return_mean=score, turns_mean=3.0)
    for name, score in (("random", 0.0), ("oracle", 1.0))
}


def report(numbers: Mapping[str, ArmNumbers], k: int = 1, **known: Any) -> Report:
    identities = {
        arm: {
            "run_id": "run",
            "env": "key_door",
            "arm": arm,
            "strategy": "NO_HISTORY",
            "guided": False,
            "k": k,
            "usd_per_mtok_in": None,
            "usd_per_mtok_out": None,
            **known,
        }
        for arm in numbers
    }
    return make_report(numbers, identities, REFERENCES)


def paragraphs(numbers: Mapping[str, ArmNumbers], k: int = 1, **known: Any) -> list[str]:
    return markdown(report(numbers, k, **known)).split("\n\n")


def test_three_arms_are_sets_of_those_not_told_apart() -> None:
    said = paragraphs(arms_of(A="0" * 30, B="1" * 29 + "0", C="1" * 30))
    assert (
        "Arms of one set are not told apart on success (Holm's correction, 5 % for a single false "
        "difference), best first: {`C`, `B`}; {`A`}."
    ) in said
    assert (
        "By e-values, however often one looked, `A` and `B`, `A` and `C` differ on success (e-BH: "
        "at most 5 % of such findings are false)."
    ) in said


def test_two_arms_make_no_sets() -> None:
    assert not any("told apart" in line for line in paragraphs(arms_of(A="01", B="11")))


def test_turns_to_success_are_said_where_not_all_succeeded() -> None:
    said = paragraphs(arms_of(A="0011", B="1111"))
    assert any(
        line.startswith("Mean turns to success within 2 turns") and "`A` 2.00, `B` 2.00." in line
        for line in said
    )
    assert not any("turns to success" in line for line in paragraphs(arms_of(A="1111")))


def test_an_interval_of_turns_says_whether_it_holds_zero() -> None:
    numbers = gather(
        [
            played(seed, arm, success=seed > 0, outcomes=[Outcome.OK] * (6 + seed % 2 - less))
            for arm, less in (("A", 0), ("B", 4))
            for seed in range(12)
        ],
        ["A", "B"],
    )
    assert any(
        line.startswith("`B` less `A`: -") and line.endswith(" turns, an interval without 0.")
        for line in paragraphs(numbers)
    )


def test_lost_episodes_may_take_a_decision_back() -> None:
    few = paragraphs(arms_of(A="0" * 8 + "....", B="1" * 8 + "...."))
    assert (
        "`B` less `A`: 4 of 12 seeds lack an episode that was lost; however those had ended, the "
        "difference of success lies between +33.3 and +100.0 points, and the decision does not "
        "stand in the worst case."
    ) in few
    many = paragraphs(arms_of(A="0" * 60 + ".", B="1" * 60 + "."))
    assert any("and the decision stands in the worst case." in line for line in many)
    none = paragraphs(arms_of(A="01.", B="01."))
    assert any(line.endswith("between -33.3 and +33.3 points.") for line in none)


def repeated(successes: list[list[int]]) -> dict[str, ArmNumbers]:
    trajectories = [
        played(seed, success=bool(won), repetition=repetition)
        for seed, wins in enumerate(successes)
        for repetition, won in enumerate(wins)
    ]
    return gather(trajectories, ["A"])


@pytest.mark.parametrize(
    ("successes", "share", "advice"),
    [
        ([[1, 0], [0, 1]] * 20, "0 %", "0.079."),
        (
            [[1, 1], [0, 0]] * 20,
            "100 %",
            "0.057. Repetitions gain little here: one each gives 0.080.",
        ),
    ],
)
def test_repetitions_are_weighed_against_seeds(
    successes: list[list[int]], share: str, advice: str
) -> None:
    line = next(line for line in paragraphs(repeated(successes), k=2) if "variance" in line)
    assert line.startswith(f"`A`: {share} of the variance of success lies between seeds")
    assert "40 seeds, 2 times each, give a standard error of" in line
    assert line.strip().endswith(f"as many episodes on 80 seeds, once each, would give {advice}")


def test_tries_are_told_in_words() -> None:
    said = paragraphs(repeated([[1, 0], [1, 1], [0, 0], [1, 1]]), k=2)
    assert any(
        line.startswith("`A`: of 2 tries at a seed at least one succeeds in 75.0 % (")
        and "all in 50.0 % (" in line
        for line in said
    )
    assert not any("tries" in line for line in paragraphs(arms_of(A="01")))


def test_costs_are_told_where_prices_are_known() -> None:
    prices: dict[str, Any] = {"usd_per_mtok_in": 1_000.0, "usd_per_mtok_out": 0.0}
    said = paragraphs(arms_of(A="01", B="00"), **prices)
    assert "Tokens of the scored episodes cost `A` $0.04 ($0.04 a success), `B` $0.04." in said
    assert not any("$" in line for line in paragraphs(arms_of(A="01", B="00")))


def test_a_rate_on_one_seed_has_no_interval() -> None:
    one = gather([played(0, success=n > 0, repetition=n) for n in range(3)], ["A"])
    said = (
        "`A`: of 2 tries at a seed at least one succeeds in 100.0 % (20.7 % .. 100.0 %) of seeds "
        "(pass@2), all in 33.3 % (pass^2)."
    )
    assert said in "\n\n".join(paragraphs(one, 2))


def test_repetitions_that_differ_are_named() -> None:
    arms = gather(
        [
            played(0, arm, repetition=repetition, prompt_digest=arm)
            for repetition in range(2)
            for arm in ("A", "B")
        ],
        ["A", "B"],
    )
    named = "First turns that differ: seed 0 repetition 0 turn 0, seed 0 repetition 1 turn 0"
    assert named in markdown(report(arms, 2))


def test_arms_without_a_common_seed_have_one_line() -> None:
    assert report(arms_of(A="1.", B=".1")).verdicts == ["no data: A and B share no finished seed"]
