"""The curve that is drawn is the one that the judge estimates."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from evalkit.judge.survival import kaplan_meier
from evalkit.record.numbers import gather
from evalkit.record.testing import arms_of, played
from evalkit.record.trajectory import Outcome, StopReason
from evalkit.show.html.charts.survival import corners, episodes, half_time, survival
from evalkit.show.html.plot import Scale
from evalkit.show.report import Report
from evalkit.show.turns import endings

ENDS = [(2, "won"), (2, "won"), (3, "cut"), (4, "won"), (1, "lost"), (6, "won")]


def _numbers() -> list[tuple[float, bool]]:
    made = [
        played(
            seed,
            success=how == "won",
            outcomes=[Outcome.OK] * turns,
            stop=StopReason.TRUNCATED if how == "cut" else StopReason.TERMINATED,
        )
        for seed, (turns, how) in enumerate(ENDS)
    ]
    return episodes(endings(gather(made, ["A"])["A"]), 6.0)


def test_losers_are_censored_at_the_end_and_cut_ones_where_they_were_cut() -> None:
    assert _numbers() == [(2, True), (2, True), (3, False), (4, True), (6, False), (6, True)]


def test_the_steps_are_the_judges() -> None:
    curve = kaplan_meier(_numbers())
    x, y = Scale(0.0, 6.0, 0.0, 60.0), Scale(0.0, 1.0, 100.0, 0.0)
    after_2, after_4, after_6 = 1 - 2 / 6, (1 - 2 / 6) * (1 - 1 / 3), (1 - 2 / 6) * (2 / 3) * 0.5
    assert curve.share.tolist() == pytest.approx([after_2, after_4, after_6])
    expected = [(0.0, 1.0), (20.0, 1.0), (20.0, after_2), (40.0, after_2), (40.0, after_4)]
    expected += [(60.0, after_4), (60.0, after_6), (60.0, after_6)]
    found = corners(curve, 6.0, x, y)
    assert [at for at, _ in found] == pytest.approx([at for at, _ in expected])
    assert [height for _, height in found] == pytest.approx([100 * left for _, left in expected])


def test_half_time() -> None:
    assert half_time(kaplan_meier(_numbers())) == 4.0
    assert half_time(kaplan_meier([(2.0, True), (5.0, False), (5.0, False)])) is None


def test_the_title_says_when_half_had_succeeded(reported: Callable[..., Report]) -> None:
    report = reported(arms_of(A="111", B="110"))
    figure = survival(report)
    assert figure is not None
    assert figure.finding == "Half of A's episodes succeed by turn 2 and half of B's by turn 2"
    never = survival(reported(arms_of(A="000")))
    assert never is not None
    assert never.finding == "By turn 2, 0 % of A's episodes have succeeded"
    assert "3 without success are followed up to here" in never.body
    assert survival(reported(arms_of(A=".."))) is None
