"""Forest, taxonomy, cost, seeds and latency: where marks stand, and what titles say."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from evalkit.record.numbers import gather
from evalkit.record.testing import arms_of, lost, played
from evalkit.record.trajectory import Outcome, StopReason
from evalkit.show.html.charts.cost import cost
from evalkit.show.html.charts.forest import forest, interval_marks
from evalkit.show.html.charts.latency import latency, quantile
from evalkit.show.html.charts.seeds import MOST_CELLS, seed_cells, seeds_figure
from evalkit.show.html.charts.taxonomy import taxonomy
from evalkit.show.html.plot import Scale
from evalkit.show.report import Report


def test_marks_of_a_forest_stand_at_their_values() -> None:
    marks = interval_marks(0.25, 0.5, 0.625, Scale(0.0, 1.0))
    assert re.findall(r'(x1|x2|cx)="([^"]+)"', marks) == [
        ("x1", "25%"),
        ("x2", "62.5%"),
        ("cx", "50%"),
    ]
    assert "interval" not in interval_marks(None, 0.5, None, Scale(0.0, 1.0))


def test_a_forest_has_arms_references_and_differences(reported: Callable[..., Report]) -> None:
    figure = forest(reported(arms_of(A="0100", B="1101")))
    assert figure is not None
    assert figure.finding == "B succeeds in 75.0 % of its episodes, A in 25.0 %"
    assert figure.body.count('class="reference"') == 4  # random and oracle, in two rows
    assert "B − A" in figure.body
    assert 'cx="75%"' in figure.body
    assert forest(reported(arms_of(A=".."))) is None


def test_the_worst_arm_is_named_with_its_commonest_fault(reported: Callable[..., Report]) -> None:
    outcomes = [Outcome.OK, Outcome.ILLEGAL, Outcome.NO_ACTION, Outcome.NO_ACTION]
    numbers = gather(
        [
            played(0, "A", outcomes=outcomes, stop=StopReason.TRUNCATED),
            played(0, "B"),
            lost(1, "B"),
        ],
        ["A", "B"],
    )
    figure = taxonomy(reported(numbers))
    assert figure is not None
    assert figure.finding == "75.0 % of A's turns went wrong, most often no action"
    widths = re.findall(r'class="k-(\w+)" x="([\d.]+)%" y="0" width="([\d.]+)%"', figure.body)
    assert widths == [
        ("ok", "0", "25"),
        ("no_action", "25", "50"),
        ("illegal", "75", "25"),
        ("ok", "0", "100"),
        ("truncated", "0", "100"),
        ("terminated", "0", "50"),
        ("infra_error", "50", "50"),
    ]


def test_cost_is_tokens_per_episode(reported: Callable[..., Report]) -> None:
    numbers = gather(
        [
            played(0, "A", success=True, prompt_tokens=100, completion_tokens=50),
            played(0, "B", prompt_tokens=20, completion_tokens=5),
        ],
        ["A", "B"],
    )
    figure = cost(reported(numbers))
    assert figure is not None
    assert figure.finding == "B spends 50 tokens per episode, A 300"
    none = gather([played(0, prompt_tokens=None, completion_tokens=None)], ["A"])
    assert cost(reported(none)) is None


def test_seeds_stand_easiest_first() -> None:
    cells = seed_cells(arms_of(A="0101.", B="0011."))
    assert cells.columns == [[3], [1], [2], [0]]
    found = {arm: values.tolist() for arm, values in cells.success.items()}
    assert found == {"A": [1.0, 1.0, 0.0, 0.0], "B": [1.0, 0.0, 1.0, 0.0]}
    assert (cells.always, cells.never) == (1, 1)


def test_many_seeds_are_gathered() -> None:
    arms = arms_of(A="0011" * 300, B="0101" * 300)
    cells = seed_cells(arms)
    assert len(cells.columns) == MOST_CELLS
    assert sorted(seed for column in cells.columns for seed in column) == list(range(1200))
    for arm, found in arms.items():
        total = sum(
            value * len(column)
            for value, column in zip(cells.success[arm].tolist(), cells.columns, strict=True)
        )
        assert total == pytest.approx(found.n_success)


def test_the_title_counts_seeds_that_all_or_none_win(reported: Callable[..., Report]) -> None:
    figure = seeds_figure(reported(arms_of(A="11000", B="10100")))
    assert figure is not None
    assert figure.finding == "1 of 5 seeds are won by every arm, 2 by none"
    assert seeds_figure(reported(arms_of(A="."))) is None


def test_latencies_of_who_waited() -> None:
    known = {"A": [0.010, 0.020, 0.040], "B": [0.0, 0.0]}
    figure = latency(["A", "B"], known)
    assert figure is not None
    assert figure.finding == "Half of the answers came: A's within 20 ms"
    assert "of 3 calls" in figure.body
    assert latency(["B"], known) is None
    assert latency(["A"], {}) is None
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
