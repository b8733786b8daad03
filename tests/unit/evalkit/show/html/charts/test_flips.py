"""The mosaic: its areas are the counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from evalkit.record.numbers import gather
from evalkit.record.testing import arms_of, played
from evalkit.show.html.charts.flips import Flips, count_flips, fields, flips_figure
from evalkit.show.report import Report


def test_seeds_are_sorted_by_who_wins_them() -> None:
    arms = arms_of(A="110010.", B="101010.")
    found = count_flips("A", "B", arms["A"], arms["B"])
    assert found == Flips(a="A", b="B", both=2, a_only=1, b_only=1, neither=2)
    assert found.total == 6


def test_with_repetitions_the_means_decide() -> None:
    ends = {("A", 0): "11", ("B", 0): "10", ("A", 1): "10", ("B", 1): "01", ("A", 2): "00"}
    ends["B", 2] = "00"
    arms = gather(
        [
            played(seed, arm, success=mark == "1", repetition=n)
            for (arm, seed), marks in ends.items()
            for n, mark in enumerate(marks)
        ],
        ["A", "B"],
    )
    found = count_flips("A", "B", arms["A"], arms["B"])
    assert found == Flips(a="A", b="B", both=1, a_only=1, b_only=0, neither=1, graded=True)


@pytest.mark.parametrize(
    ("both", "a_only", "b_only", "neither"),
    [(18, 14, 37, 51), (0, 0, 50, 0), (3, 0, 0, 4), (0, 5, 0, 5), (1, 1, 1, 1)],
)
def test_areas_are_proportional(both: int, a_only: int, b_only: int, neither: int) -> None:
    flips = Flips(a="A", b="B", both=both, a_only=a_only, b_only=b_only, neither=neither)
    laid = fields(flips)
    for field in laid:
        assert field.width * field.height == pytest.approx(100.0 * field.count / flips.total)
        assert field.x + field.width <= 100.0 + 1e-9
        assert field.y + field.height <= 1.0 + 1e-9
    assert sum(field.width * field.height for field in laid) == pytest.approx(100.0)
    assert {field.name for field in laid} == {
        name
        for name, count in [
            ("both", both),
            ("a_only", a_only),
            ("b_only", b_only),
            ("neither", neither),
        ]
        if count
    }


def test_no_seed_has_no_mosaic(reported: Callable[..., Report]) -> None:
    assert fields(Flips(a="A", b="B", both=0, a_only=0, b_only=0, neither=0)) == []
    assert flips_figure(reported(arms_of(A="1"))) is None


def test_the_title_says_for_whom(reported: Callable[..., Report]) -> None:
    def title(**successes: str) -> str:
        figure = flips_figure(reported(arms_of(**successes)))
        assert figure is not None
        return figure.finding

    assert title(A="1100", B="1010") == "2 of 4 seeds flip: 1 for B, 1 for A"
    assert title(A="0000", B="1010") == "2 of 4 seeds flip: all for B"
    assert title(A="0101", B="0101") == "No seed flips: every one ends alike in both arms"


def test_pairs_have_the_colours_of_their_arms(reported: Callable[..., Report]) -> None:
    report = reported(arms_of(A="10", B="01", C="10"))
    figure = flips_figure(replace(report, pairs=[("B", "C")]))
    assert figure is not None
    assert 'class="only a1"' in figure.body
    assert 'class="only a2"' in figure.body
    assert 'class="only a0"' not in figure.body
