"""SPL by hand, within its limits, and clustered as any other mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.judge.intervals import clustered_mean
from evalkit.judge.spl import path_weighted, spl


def test_by_hand() -> None:
    weighted = path_weighted([1, 1, 0, 1, 1], [8, 4, 4, 2, 0], [4, 4, 4, 4, 0])
    assert weighted.tolist() == [0.5, 1.0, 0.0, 1.0, 1.0]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 100), st.floats(0, 100)), min_size=1))
def test_it_never_exceeds_success(rows: list[tuple[float, float, float]]) -> None:
    won, taken, best = np.array(rows).T
    weighted = path_weighted(won, taken, best)
    assert np.all((weighted >= 0.0) & (weighted <= won))
    assert path_weighted(won, best, best).tolist() == won.tolist()


def test_over_seeds() -> None:
    estimate = spl([[1, 1], [0, 1]], [[5, 10], [7, 4]], [5, 4])
    assert estimate == clustered_mean([[1.0, 0.5], [0.0, 1.0]])
    assert estimate.mean == 0.625


def test_inputs_are_checked() -> None:
    with pytest.raises(ValueError, match="shapes"):
        path_weighted([1], [1, 2], [1])
    with pytest.raises(ValueError, match="successes"):
        path_weighted([2], [1], [1])
    with pytest.raises(ValueError, match="argument"):
        spl([[1]], [[1]], [1, 2])
