"""Scales, ticks and paths."""

from __future__ import annotations

import pytest

from evalkit.show.html.plot import (
    Scale,
    amount,
    area,
    log_ticks,
    nice_ticks,
    number,
    path,
    steps,
    thin,
    whole_ticks,
)


def test_scales_map_and_stop_at_their_ends() -> None:
    up, down = Scale(0.0, 10.0), Scale(0.0, 1.0, 200.0, 0.0)
    assert [up(value) for value in (-1.0, 0.0, 2.5, 10.0, 11.0)] == [0.0, 0.0, 25.0, 100.0, 100.0]
    assert [down(value) for value in (0.0, 0.25, 1.0)] == [200.0, 150.0, 0.0]
    assert Scale(1.0, 10_000.0, log=True)(100.0) == pytest.approx(50.0)
    assert Scale(3.0, 3.0)(3.0) == 50.0


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-4.0, 33.0, [0.0, 10.0, 20.0, 30.0]),
        (0.0, 0.0, [0.0]),
    ],
)
def test_ticks_are_round(lo: float, hi: float, expected: list[float]) -> None:
    assert nice_ticks(lo, hi) == expected


def test_other_ticks() -> None:
    assert whole_ticks(0.0, 2.0) == [0.0, 1.0, 2.0]
    assert log_ticks(0.5, 2000.0) == [1.0, 10.0, 100.0, 1000.0]
    assert log_ticks(3.0, 60.0) == [5.0, 10.0, 20.0, 50.0]
    assert [amount(value) for value in (0.25, 12000.0, 1e7, 2.5e6)] == [
        *("0.25", "12,000", "1e7", "2.5e+06"),
    ]


def test_numbers_are_short() -> None:
    written = [number(value) for value in (0.0, -0.001, -0.5, 33.333333, 20.0)]
    assert written == ["0", "0", "-0.5", "33.33", "20"]


def test_paths() -> None:
    points = [(0.0, 10.0), (5.0, 8.0), (9.0, 2.0)]
    assert steps(points) == [(0.0, 10.0), (5.0, 10.0), (5.0, 8.0), (9.0, 8.0), (9.0, 2.0)]
    assert path(points[:2]) == "M0 10L5 8"
    assert area(points[:2], [(0.0, 0.0), (5.0, 1.0)], "band") == (
        '<path class="band" d="M0 10L5 8L5 1L0 0Z"/>'
    )
    assert steps([]) == []


def test_thinning_keeps_both_ends() -> None:
    assert thin(3, 5) == [0, 1, 2]
    assert thin(100, 4) == [0, 33, 66, 99]
    assert len(thin(100_000, 160)) == 160
