"""The learning curve's rows, and how seldom it calls a version worse that is not."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from scipy.stats import binomtest

from evalkit.record.numbers import ArmNumbers
from evalkit.record.trajectory import StopReason
from evalkit.watch.curve import (
    ALPHA,
    COLUMNS,
    Curve,
    Point,
    Status,
    p_worse,
    sentence,
)

KNOWN = {"status": Status.EVALUATED, "message": None}


def _numbers(successes: list[list[float]]) -> ArmNumbers:
    numbers = ArmNumbers()
    for seed, values in enumerate(successes):
        numbers.success[seed] = values
        numbers.return_[seed] = values
        numbers.stops[StopReason.TERMINATED] += len(values)
    return numbers


def _add(curve: Curve, name: str, successes: list[list[float]]) -> dict[str, Any]:
    point = Point(version=name, numbers=_numbers(successes))
    return curve.add({"version": name, **KNOWN}, point)


def _played(rate: float, n: int = 100) -> list[list[float]]:
    return [[1.0] if seed < rate * n else [0.0] for seed in range(n)]


def test_a_row_compares_with_the_previous_the_best_and_the_first() -> None:
    curve = Curve()
    for name, rate in (("v1", 0.2), ("v2", 0.6), ("v3", 0.4)):
        _add(curve, name, _played(rate))
    row = _add(curve, "v4", _played(0.5))
    assert (row["first"], row["best"], row["previous"]) == ("v1", "v2", "v3")
    assert [row[f"diff_{name}"] for name in ("first", "best", "previous")] == pytest.approx(
        [0.3, -0.1, 0.1]
    )
    assert row["lo_best"] < -0.1 < row["hi_best"] < 0.0
    assert row["p_previous"] == pytest.approx(binomtest(0, 10).pvalue)
    assert list(row) == COLUMNS


def test_the_p_value_is_exact_and_pays_for_selection_and_looks() -> None:
    curve = Curve()
    for n in range(1, 4):
        _add(curve, f"v{n}", _played(0.8))
    row = _add(curve, "v4", _played(0.5))
    one_sided = binomtest(30, 30, alternative="greater").pvalue
    assert row["p_worse"] == pytest.approx(one_sided * 3 * 3 * 4)
    assert row["worse"]


@pytest.mark.parametrize(("lost", "won"), [(9, 0), (12, 3), (3, 12), (5, 5), (0, 0)])
def test_one_side_of_mcnemar(lost: int, won: int) -> None:
    n = 40
    before = {s: [1.0 if s < lost else 0.0] for s in range(n)}
    now = {s: [1.0 if lost <= s < lost + won else 0.0] for s in range(n)}
    exact = binomtest(lost, lost + won, alternative="greater").pvalue if lost + won else 1.0
    assert p_worse(before, now) == pytest.approx(exact if lost > won else 1.0)


def test_repetitions_are_judged_by_a_bet_that_knows_no_smallest_p() -> None:
    before = {seed: [1.0, 1.0] for seed in range(80)}
    now = {seed: [0.0, 1.0] for seed in range(80)}
    assert p_worse(before, now) < 1e-9
    assert p_worse(now, before) == 1.0
    assert p_worse(before, before) == 1.0
    assert p_worse(before, {999: [1.0]}) == 1.0


@pytest.mark.parametrize("k", [1, 2])
def test_equal_versions_are_seldom_ever_called_worse(k: int) -> None:
    """At most alpha of the curves have a false call, and less where the p-value is a bet's."""
    rng, n_curves = random.Random(6), 500
    n_false = 0
    for _ in range(n_curves):
        curve: list[dict[int, list[float]]] = []
        called = False
        for i in range(8):
            now = {s: [float(rng.random() < 0.5) for _ in range(k)] for s in range(40)}
            if curve:
                best = max(curve, key=lambda each: sum(map(sum, each.values())))
                called |= p_worse(best, now) * i * i * (i + 1) <= ALPHA
            curve.append(now)
        n_false += called
    assert n_false <= n_curves * ALPHA


def test_a_version_that_was_not_played_has_a_row_and_counts_for_nothing() -> None:
    curve = Curve()
    _add(curve, "v1", _played(0.9))
    missed = curve.add({"version": "v2", "status": Status.MISSED, "message": "gone"}, None)
    assert (missed["success"], missed["worse"]) == (None, None)
    row = _add(curve, "v3", _played(0.2))
    assert row["previous"] == "v1"


def test_rows_as_sentences() -> None:
    curve = Curve()
    first = _add(curve, "v1", _played(0.9))
    assert sentence(first).startswith("v1: 90.0 % success (95 % CI ")
    second = _add(curve, "v2", _played(0.2))
    assert "-70.0 points against the best so far, v1: significantly worse" in sentence(second)
    third = _add(curve, "v3", _played(0.9))
    assert "not significantly worse (one-sided p=1," in sentence(third)
    failed = curve.add({"version": "v4", "status": Status.FAILED, "message": "refused"}, None)
    assert sentence(failed) == "v4 failed: refused"
    hostile = curve.add({**failed, "message": "\x1b[2J\x00no"}, None)
    assert sentence(hostile) == "v4 failed: [2Jno"
    assert "n=100, 7 episodes lost to errors)" in sentence({**first, "n_error": 7})


def test_the_best_of_equal_versions_is_the_first() -> None:
    curve = Curve()
    for name in ("v1", "v2", "v3"):
        row = _add(curve, name, _played(0.5))
    assert row["best"] == "v1"
    assert math.isclose(row["success"], 0.5)
