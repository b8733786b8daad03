"""Verdicts, word for word."""

from __future__ import annotations

import pytest

from evalkit.judge.compare import Decision, compare, decide
from evalkit.record.testing import arms_of
from evalkit.show.pairs import METRICS, Compared, Metric, compare_arms
from evalkit.show.verdict import p_value, share, verdict

METRIC = {metric.name: metric for metric in METRICS}


def compared(metric: Metric, a: str, b: str, p_holm: float | None = None) -> Compared:
    """Compare values written as words; the n-th is that of seed n."""
    values_a, values_b = (
        {seed: [float(word)] for seed, word in enumerate(text.split()) if word != "-"}
        for text in (a, b)
    )
    found = compare(
        values_a, values_b, binary=metric.binary, higher_is_better=metric.higher_is_better
    )
    return Compared(
        a="base",
        b="tuned",
        metric=metric,
        found=found,
        p_holm=found.p if p_holm is None else p_holm,
    )


def ones(n: int) -> str:
    return " ".join("1" * n)


def zeros(n: int) -> str:
    return " ".join("0" * n)


# Tango's bounds by hand where all n pairs are discordant one way, (n - z^2) / (n + z^2), and where
# none is, z^2 / (n + z^2), with z^2 = 3.8415.
SENTENCES = {
    "better": (
        compared(METRIC["success"], zeros(10), ones(10)),
        (
            "tuned is better than base: +100.0 points success (95 % CI +44.5..+100.0, exact "
            "McNemar p=.002, flips: 10 won only by tuned, 0 only by base, n=10 paired seeds)"
        ),
    ),
    "worse": (
        compared(METRIC["success"], ones(10), zeros(10)),
        (
            "tuned is worse than base: -100.0 points success (95 % CI -100.0..-44.5, exact McNemar "
            "p=.002, flips: 0 won only by tuned, 10 only by base, n=10 paired seeds)"
        ),
    ),
    "better after Holm": (
        compared(METRIC["success"], zeros(10), ones(10), p_holm=0.006),
        (
            "tuned is better than base: +100.0 points success (95 % CI +44.5..+100.0, exact "
            "McNemar p=.002, p=.006 after Holm, flips: 10 won only by tuned, 0 only by base, "
            "n=10 paired seeds)"
        ),
    ),
    "no decision": (
        compared(METRIC["success"], f"1 {zeros(9)}", f"{zeros(8)} 1 1"),
        (
            "no decision between base and tuned: +10.0 points success (95 % CI -28.0..+45.4, exact "
            "McNemar p=1.000, flips: 2 won only by tuned, 1 only by base, n=10 paired seeds); with "
            "80 % power the observed one would need 253 seeds"
        ),
    ),
    "all the same": (
        compared(METRIC["success"], zeros(5), zeros(5)),
        (
            "no decision between base and tuned: +0.0 points success (95 % CI -43.4..+43.4, exact "
            "McNemar p=1.000, flips: 0 won only by tuned, 0 only by base, n=5 paired seeds)"
        ),
    ),
    "no data": (
        compared(METRIC["success"], "0 -", "- 1"),
        "no data: base and tuned share no finished seed",
    ),
    "constant difference": (
        compared(METRIC["return"], zeros(8), ones(8)),
        (
            "tuned is better than base: +1.00 return (the same in every pair, so no interval, "
            "sign-flip permutation p=.008, n=8 paired seeds)"
        ),
    ),
    "fewer turns": (
        compared(METRIC["steps"], "9 9 9 9 9 9 9 9", "4 5 4 5 4 5 4 5"),
        (
            "tuned takes fewer turns than base: -4.50 (95 % CI -4.95..-4.05, sign-flip permutation "
            "p=.008, n=8 paired seeds)"
        ),
    ),
    "one pair": (
        compared(METRIC["valid_action_rate"], "0.5", "1"),
        (
            "no decision between base and tuned: +50.0 points valid actions (too few pairs for an "
            "interval, sign-flip permutation p=1.000, n=1 paired seeds)"
        ),
    ),
}


def test_arms_within_the_margin_are_equivalent() -> None:
    marks = "01" * 150
    pair = arms_of(base=marks, tuned=marks)
    success, _, valid, _ = compare_arms(pair, [("base", "tuned")], margin=0.02)
    assert verdict(success) == (
        "base and tuned are equivalent within ±2.0 points: +0.0 points success (95 % CI "
        "-1.3..+1.3, exact McNemar p=1.000, TOST of ±2.0 points p=.007, flips: 0 won only by "
        "tuned, 0 only by base, n=300 paired seeds)"
    )
    assert verdict(valid).startswith("base and tuned are equivalent within ±2.0 points: +0.0 point")


def test_a_difference_that_does_not_matter_is_still_a_difference() -> None:
    pair = arms_of(base="0" * 9 + "1" * 991, tuned="1" * 1_000)
    success = compare_arms(pair, [("base", "tuned")], margin=0.05)[0]
    assert success.decision is Decision.BETTER
    assert "TOST of ±5.0 points p<.001" in verdict(success)
    wide = compare_arms(pair, [("base", "tuned")], margin=0.001)[0]
    assert "TOST" not in verdict(wide)


def test_a_margin_that_is_not_shown_is_said() -> None:
    pair = [arms_of(A="01" * 60, B="01" * 60, C="01" * 60)]
    three = compare_arms(pair[0], [("A", "B"), ("A", "C"), ("B", "C")], margin=0.03)
    assert verdict(three[0]).startswith("no decision between A and B: +0.0 points success")
    assert "TOST of ±3.0 points p=.027, p=.081 after Holm" in verdict(three[0])


@pytest.mark.parametrize("case", SENTENCES)
def test_a_verdict_is_a_sentence(case: str) -> None:
    found, sentence = SENTENCES[case]
    assert verdict(found) == sentence


def test_no_decision_says_what_the_seeds_could_have_shown() -> None:
    found = compared(METRIC["return"], zeros(8), "1 -1 1 -1 1 -1 1 0")
    assert verdict(found).endswith(
        f"; with 80 % power these seeds show differences from {found.found.mde80:.2f} on, "
        f"the observed one would need {found.found.n_for_observed} seeds"
    )


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0, "p<.001"),
        (0.00099, "p<.001"),
        (0.001, "p=.001"),
        (0.05, "p=.050"),
        (0.5, "p=.500"),
        (0.9996, "p=1.000"),
        (1.0, "p=1.000"),
    ],
)
def test_p_values(p: float, text: str) -> None:
    assert p_value(p) == text


@pytest.mark.parametrize(
    ("rate", "text"), [(None, ""), (0.0, "0.0 %"), (1 / 3, "33.3 %"), (1.0, "100.0 %")]
)
def test_shares(rate: float | None, text: str) -> None:
    assert share(rate) == text


def test_the_decision_is_made_on_the_corrected_p() -> None:
    found = compared(METRIC["success"], zeros(10), ones(10), p_holm=0.06)
    assert verdict(found).startswith("no decision between base and tuned: +100.0 points success")
    assert found.decision is decide(1.0, 0.06)


def test_a_difference_that_rounds_to_none_has_no_minus() -> None:
    said = verdict(compared(METRIC["return"], "1 2 3 4", "1.001 2 2.998 4"))
    assert said.startswith("no decision between base and tuned: +0.00 return (")
